"""Every command line of README and docs works: run here where that needs no cluster, else by the test that is named."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer
from tests.support.doc_commands import ROOT, Line, checkout, lines, reader
from typer.testing import CliRunner

from flotilla.cli import app

OFFLINE = {"advise", "crds", "estimate", "render", "route explain", "route test", "simulate scaling"}
"""Verbs that are run for real: they need no cluster."""
ASKING = {
    "status": "tests/cluster/test_cli.py",
    "describe": "tests/cluster/test_cli.py",
    "logs": "tests/cluster/test_cli.py",
    "doctor": "tests/cluster/test_cli.py",
    "cost": "tests/unit/test_cost_command.py",
    "report": "tests/unit/test_report.py",
    "route calibrate": "tests/unit/test_calibrate_command.py",
    "convert": "tests/unit/test_cli_convert.py",
    "devcluster up": "tests/controlplane/test_command.py",
    "devcluster down": "tests/controlplane/test_command.py",
    "devcluster kubeconfig": "tests/controlplane/test_command.py",
}
"""Verbs that ask a cluster, a Prometheus or files of the reader's own: parsed here, run there."""
PROGRAMS = {
    "kubectl": "tests/api/test_doc_commands.py",
    "helm": "tests/api/test_doc_commands.py",
    "curl": "tests/controlplane/test_command.py",
    "export": "tests/controlplane/test_command.py",
}
"""Programs whose lines that test runs, in a cluster."""
NOT_RUN = {
    "git clone": "it fetches this repository, which has no published address yet",
    "docker build": "it needs a builder and the network: tests/chart/test_image.py reads the Dockerfile",
    "uv export": "tests/chart/test_image.py runs it",
    "uv run python": "benchmarks take minutes; that the module is there is checked",
    "make": "what it runs is what CI runs; that the target is there is checked",
}
"""All that no test runs as it stands, and why. A cloud's own tools (eksctl, gcloud, az) would belong here."""
LINES = lines()


def parsed(arguments: list[str]) -> str:
    """The verb, its options parsed by the command line itself and nothing run."""
    command = typer.main.get_command(app)
    context = command.make_context("flotilla", list(arguments), resilient_parsing=False)
    names: list[str] = []
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        assert name is not None
        assert command is not None
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return " ".join(names)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


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
    assert {path for path in {**ASKING, **PROGRAMS}.values() if not (ROOT / path).is_file()} == set()
    for verb, path in ASKING.items():
        assert f'"{verb.split()[-1]}"' in (ROOT / path).read_text(), (verb, path)


@pytest.mark.parametrize(
    "line", [line for line in LINES if line.program == "flotilla"], ids=lambda line: f"{line.page}: {line.command}"
)
def test_our_own_command_works_as_the_page_shows(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb = parsed([str(ROOT / word) if (ROOT / word).exists() else word for word in line.words[1:]])
    assert verb in OFFLINE | set(ASKING)
    if verb in ASKING:
        return
    monkeypatch.chdir(checkout(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, line.words[1:])
    assert result.exit_code == 0, result.output
    assert [text for text in line.shown if squeezed(text) not in squeezed(result.output)] == []


@pytest.mark.parametrize("line", [line for line in LINES if line.program == "echo"], ids=lambda line: line.page)
def test_a_pipe_works_as_the_page_shows(line: Line, tmp_path: Path) -> None:
    environ = {**os.environ, **reader(tmp_path, {}), "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "-c", line.command], cwd=checkout(tmp_path), env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert line.shown
    assert [text for text in line.shown if squeezed(text) not in squeezed(done.stdout)] == []


@pytest.mark.parametrize("line", [line for line in LINES if line.program in ("make", "uv")], ids=lambda line: line.page)
def test_targets_and_modules_that_the_documentation_names_are_there(line: Line) -> None:
    if line.program == "make":
        assert line.words[1] in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif line.words[1:3] == ["run", "python"]:
        assert line.words[3] == "-m"
        assert (ROOT / (line.words[4].replace(".", "/") + ".py")).exists()
    else:
        assert line.command in (ROOT / "docs/guides/install.md").read_text()
