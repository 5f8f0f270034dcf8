"""Every command line of README and docs works: run here where that needs no cluster, else by the test that is named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli.test_calibrate import judged
from tests.cli.test_convert import KSERVE
from tests.support.doc_commands import (
    QUICK_START,
    ROOT,
    Line,
    Surroundings,
    checkout,
    lines,
    own,
    reader,
    squeezed,
    typed,
)
from typer.testing import CliRunner

from flotilla.cli import app

ELSEWHERE: dict[Surroundings, str] = {
    "quick start": "devcluster/tests/controlplane/test_command.py",
    "fleet": "tests/cluster/test_chart.py",
    "prometheus": "tests/cluster/test_monitoring.py",
    "policy": "tests/cluster/test_monitoring.py",
}
"""Where lines of our own command are run that need more than files."""
PROGRAMS = {
    "kubectl": "tests/api/test_doc_commands.py",
    "helm": "tests/api/test_doc_commands.py",
    "curl": "devcluster/tests/controlplane/test_command.py",
    "export": "devcluster/tests/controlplane/test_command.py",
}
"""Programs whose lines that test runs, in a cluster."""
NOT_RUN = {
    "git clone": "it fetches this repository, which has no published address yet",
    "docker build": "it needs a builder and the network: tests/chart/test_image.py reads the Dockerfile",
    "uv export": "tests/chart/test_image.py runs it",
    "uv run python": "benchmarks take minutes, a release changes the tree; that the module is there is checked",
    "uv run pytest": "they are tests; that the files are there and have such a test is checked",
    "uv lock": "it asks the package index and changes the tree",
    "git tag": "it makes a release",
    "git push": "it makes a release",
    "cosign": "it verifies what only a release has",
    "sha256sum": "it verifies what only a release has",
    "make": "what it runs is what CI runs; that the target is there is checked",
}
"""All that no test runs as it stands, and why. A cloud's own tools (eksctl, gcloud, az) would belong here."""
LINES = lines()


def test_every_program_of_the_documentation_has_a_test_or_a_reason() -> None:
    """A line with another program, such as a cloud's, fails here until it is run or listed."""
    unknown = [
        line
        for line in LINES
        if line.program not in {*PROGRAMS, "flotilla", "echo"}
        and not any(line.command.startswith(start) for start in NOT_RUN)
    ]
    assert unknown == []


def test_what_is_listed_is_in_the_documentation_and_its_test_is_there() -> None:
    assert [start for start in NOT_RUN if not any(line.command.startswith(start) for line in LINES)] == []
    assert {path for path in [*ELSEWHERE.values(), *PROGRAMS.values()] if not (ROOT / path).is_file()} == set()
    assert QUICK_START in (ROOT / ELSEWHERE["quick start"]).read_text()
    for surroundings in ("fleet", "prometheus", "policy"):
        assert f'own("{surroundings}")' in (ROOT / ELSEWHERE[surroundings]).read_text()


@pytest.mark.parametrize("line", own("none"), ids=lambda line: f"{line.page}: {line.command}")
def test_our_own_command_works_as_the_page_shows(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    bring_your_own(line, tmp_path)
    result = CliRunner().invoke(app, line.words[1:])
    assert result.exit_code == 0, result.output
    assert missing(line, result.output) == []


def bring_your_own(line: Line, folder: Path) -> None:
    """The files that a page presumes its reader to have: judged answers, or the manifests of a peer."""
    if "calibrate" in line.words:
        judged(folder / line.words[3])
    elif "convert" in line.words:
        (folder / line.words[2]).unlink()
        (folder / line.words[2]).mkdir()
        (folder / line.words[2] / "llama.yaml").write_text(yaml.safe_dump(KSERVE))


def missing(line: Line, output: str) -> list[str]:
    """What the page shows and the command does not; a line of dots is what the page leaves out."""
    return [text for text in line.shown if text != "..." and squeezed(text) not in squeezed(output)]


@pytest.mark.parametrize("line", [line for line in LINES if line.program == "echo"], ids=lambda line: line.page)
def test_a_pipe_works_as_the_page_shows(line: Line, tmp_path: Path) -> None:
    environ = {**os.environ, **reader(tmp_path, {}), "COLUMNS": "80"}
    done = typed(line.command, checkout(tmp_path), environ)
    assert line.shown
    assert missing(line, done.stdout) == []


def assert_selects_tests(line: Line) -> None:
    """By pytest's own collection, in a process of its own."""
    argv = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:randomly", *line.words[3:]]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("line", [line for line in LINES if line.program in ("make", "uv")], ids=lambda line: line.page)
def test_targets_and_modules_that_the_documentation_names_are_there(line: Line) -> None:
    if line.program == "make":
        assert line.words[1] in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif line.words[1:3] == ["run", "python"]:
        assert line.words[3] == "-m"
        assert (ROOT / (line.words[4].replace(".", "/") + ".py")).exists()
    elif line.words[1:3] == ["run", "pytest"]:
        assert_selects_tests(line)
    elif line.words[1] == "export":
        assert line.command in (ROOT / "docs/guides/install.md").read_text()
