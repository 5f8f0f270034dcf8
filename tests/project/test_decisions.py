"""The architecture decision records: complete, numbered, and listed in their index."""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs/design/adr"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name not in ("index.md", "template.md"))
SECTIONS = ["Context", "Decision", "Consequences"]
STATUS = re.compile(r"accepted(, amended by \[\d{4}\]\(\S+\)|; not built yet)?|superseded by \[\d{4}\]\(\S+\)")


@dataclass(frozen=True)
class Record:
    number: str
    title: str
    date: str
    status: str
    text: str

    @staticmethod
    def of(path: Path) -> "Record":
        text = path.read_text()
        match = re.match(r"# (\d{4}): (.+)\n\n- Date: (.+)\n- Status: (.+)\n", text)
        assert match is not None, f"{path.name} does not begin as the template does"
        number, title, date, status = match.groups()
        return Record(number, title, date, status, text)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_the_parts_of_the_template(path: Path) -> None:
    record = Record.of(path)
    assert record.number == path.name[:4]
    assert re.fullmatch(r"\d{4}(-[a-z0-9]+)+\.md", path.name)
    assert datetime.date.fromisoformat(record.date).year >= 2026
    assert STATUS.fullmatch(record.status), record.status
    sections = re.split(r"(?m)^## (.+)$", record.text)[1:]
    assert sections[::2] == SECTIONS
    assert all(part.strip() for part in sections[1::2])


def test_the_template_has_the_same_parts() -> None:
    assert re.findall(r"(?m)^## (.+)$", (FOLDER / "template.md").read_text()) == SECTIONS


def test_numbers_are_given_once_and_in_order_of_date() -> None:
    records = [Record.of(path) for path in RECORDS]
    assert [record.number for record in records] == [f"{number:04d}" for number in range(1, len(records) + 1)]
    assert [record.date for record in records] == sorted(record.date for record in records)


def test_the_index_has_a_row_for_each_record() -> None:
    rows = re.findall(r"(?m)^\| (\[\d{4}\].*) \|$", (FOLDER / "index.md").read_text())
    assert rows == [
        f"[{record.number}]({path.name}) | {record.date} | {record.title} | {record.status}"
        for path, record in ((path, Record.of(path)) for path in RECORDS)
    ]


def test_a_record_that_replaces_another_is_named_by_it() -> None:
    """`amended by` and `superseded by` of the older, `Amends` and `Supersedes` of the newer."""
    older, newer = set(), set()
    for path in RECORDS:
        record = Record.of(path)
        older |= {(record.number, number) for number in re.findall(r"ed by \[(\d{4})\]", record.status)}
        for line in re.findall(r"(?m)^- (?:Amends|Supersedes): (.*)$", record.text):
            newer |= {(number, record.number) for number in re.findall(r"\[(\d{4})\]", line)}
    assert older == newer
    assert older
