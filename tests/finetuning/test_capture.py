"""Captured examples: who is sampled, what a line holds, and files that survive crashes, deletions and two writers."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import obstore
import orjson
import pytest
from typer.testing import CliRunner

from flotilla.api.routing_policy import CaptureSpec, RedactionRule
from flotilla.cli.captures import app
from flotilla.finetuning.capture import (
    CapturedExample,
    Selection,
    as_preference,
    is_sampled,
    line,
    read_lines,
    user_hash,
    without_metadata,
)
from flotilla.finetuning.capture_store import (
    BucketStore,
    DayQuota,
    ExampleStore,
    FolderStore,
    delete_examples,
    example_path,
    examples,
    expire,
)

DAY = date(2026, 11, 29)


def spec(**changes: Any) -> CaptureSpec:
    return CaptureSpec.model_validate({"classes": ["public"], "to": {"claimName": "captures"}, **changes})


def example(number: int, **changes: Any) -> CapturedExample:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "at_s": 1_790_000_000.0,
        "policy": "support",
        "rule": "triage",
        "data_class": "public",
        "task": "classification",
        "user": f"user{number % 3}",
        "target": "small",
        "messages": [{"role": "user", "content": f"question {number} of ann@example.com"}],
        "answer": {"role": "assistant", "content": "billing", "reasoning_content": "hm", "refusal": None},
    }
    return CapturedExample(**(values | changes))


def written(number: int, **changes: Any) -> bytes:
    return line(example(number, **changes), list(RedactionRule))


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ExampleStore:
    if request.param == "bucket":
        return BucketStore("s3://test", obstore.store.MemoryStore())
    return FolderStore(tmp_path)


def test_a_line_is_what_fine_tuning_reads_and_is_redacted() -> None:
    document = orjson.loads(written(1, rejected={"role": "assistant", "content": ""}, signal="EmptyAnswer"))
    assert without_metadata(document) == {
        "messages": [
            {"role": "user", "content": "question 1 of [Email]"},
            {"role": "assistant", "content": "billing"},
        ]
    }
    pair = as_preference(document)
    assert pair is not None
    assert pair["rejected"] == [{"role": "assistant", "content": ""}]
    assert document["flotilla"]["user"] == user_hash("user1")
    assert b"user1" not in written(1)


def test_a_sample_is_of_the_asked_size_and_the_same_everywhere() -> None:
    kept = [
        number
        for number in range(10_000)
        if is_sampled(spec(percent=7), f"r{number}", rule="triage", data_class="public", escalated=False)
    ]
    assert 600 < len(kept) < 800
    assert all(is_sampled(spec(percent=7), f"r{n}", rule="x", data_class="public", escalated=False) for n in kept)


@pytest.mark.parametrize(("include", "kept"), [("All", 100), ("None", 0)])
def test_escalated_pairs_have_a_rule_of_their_own(include: str, kept: int) -> None:
    wanted = spec(percent=1, includeEscalated=include)
    drawn = [
        is_sampled(wanted, f"r{number}", rule="triage", data_class="public", escalated=True) for number in range(100)
    ]
    assert sum(drawn) == kept


def test_other_classes_and_rules_are_never_sampled() -> None:
    wanted = spec(percent=100, rules=["triage"])
    assert is_sampled(wanted, "r", rule="triage", data_class="public", escalated=False)
    assert not is_sampled(wanted, "r", rule="triage", data_class="secret", escalated=True)
    assert not is_sampled(wanted, "r", rule="other", data_class="public", escalated=True)


def test_examples_are_listed_and_deleted_by_request_and_user(store: ExampleStore) -> None:
    for number in range(6):
        store.append(example_path("support", "triage", DAY, "w"), written(number))
    assert [one["flotilla"]["id"] for one in examples(store, Selection())] == [f"r{number}" for number in range(6)]
    assert delete_examples(store, Selection(request_ids=frozenset({"r4"}))) == 1
    assert delete_examples(store, Selection(users=frozenset({user_hash("user0")}))) == 2
    assert [one["flotilla"]["id"] for one in examples(store, Selection())] == ["r1", "r2", "r5"]
    assert user_hash("user0").encode() not in b"".join(store.read(path) for path in store.paths())


def test_retention_deletes_days_that_are_past(store: ExampleStore) -> None:
    for day in (date(2026, 10, 29), date(2026, 10, 30), DAY):
        store.append(example_path("support", "triage", day, "w"), written(1))
        store.append(example_path("other", "triage", day, "w"), written(1))
    now_s = 1_795_910_400.0  # 2026-11-29
    assert expire(store, "support", 30, now_s) == 1
    assert expire(store, "support", 30, now_s) == 0
    assert len(store.paths()) == 5


def test_a_line_that_a_crash_cut_is_not_read_and_not_glued_to_the_next(tmp_path: Path) -> None:
    store, path = FolderStore(tmp_path), example_path("support", "triage", DAY, "w")
    store.append(path, written(1))
    with (tmp_path / path).open("ab") as file:
        file.write(written(2)[:-30])
    assert [one["flotilla"]["id"] for one in read_lines(store.read(path))] == ["r1"]
    store.append(path, written(3))
    assert [one["flotilla"]["id"] for one in read_lines(store.read(path))] == ["r1", "r3"]


def test_deletions_beside_a_writer_lose_and_keep_nothing_else(tmp_path: Path) -> None:
    path = example_path("support", "triage", DAY, "w")

    def write(numbers: range) -> None:
        for number in numbers:
            FolderStore(tmp_path).append(path, written(number))

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, range(60)), pool.submit(write, range(100, 160))]
        for _ in range(20):
            delete_examples(FolderStore(tmp_path), Selection(users=frozenset({user_hash("user1")})))
        for one in writers:
            one.result()
    delete_examples(FolderStore(tmp_path), Selection(users=frozenset({user_hash("user1")})))
    found = sorted(int(one["flotilla"]["id"][1:]) for one in examples(FolderStore(tmp_path), Selection()))
    assert found == [number for number in (*range(60), *range(100, 160)) if number % 3 != 1]


def test_a_failed_write_leaves_nothing_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = FolderStore(tmp_path), example_path("support", "triage", DAY, "w")
    store.append(path, written(1))
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100:
            return real(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        store.append(path, written(2))
    monkeypatch.undo()
    assert store.read(path) == written(1)


def test_the_quota_of_a_day_is_counted_for_each_policy() -> None:
    quota = DayQuota({"a": 100, "b": 10})
    assert quota.take("a", 60, DAY)
    assert not quota.take("a", 60, DAY)
    assert not quota.take("b", 11, DAY)
    assert quota.take("a", 60, date(2026, 11, 30))


def test_the_command_lists_samples_exports_and_deletes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for number in range(3):
        rejected = {"role": "assistant", "content": "outage"} if number == 2 else None
        store.append(example_path("support", "triage", DAY, "w"), written(number, rejected=rejected))
    place = ["--from", str(tmp_path)]

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, [arguments[0], *place, *arguments[1:]], catch_exceptions=False).output

    assert "support              triage               2026-11-29        3         1" in run("list")
    assert "(rejected: outage)" in run("sample", "--escalated")
    assert [sorted(orjson.loads(text)) for text in run("export").splitlines()] == [["messages"]] * 3
    assert len(run("export", "--format", "preference").splitlines()) == 1
    assert run("delete", "--user", "user1") == "1 example deleted.\n"
    assert "--all" in CliRunner().invoke(app, ["delete", *place]).output
    assert run("delete", "--all") == "2 examples deleted.\n"
