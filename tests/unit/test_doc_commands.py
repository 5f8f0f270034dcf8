"""Every command line of README and docs works: run where that needs no cluster, else judged by its parser."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flotilla.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OFFLINE = {"advise", "crds", "estimate", "render", "route explain", "route test", "simulate scaling"}
"""Verbs that are run for real: they need no cluster."""
JUDGED = {
    "flotilla route calibrate answers.jsonl": "tests/unit/test_calibrate_command.py runs it",
    "flotilla convert manifests/ --accelerator nvidia-l4": "tests/unit/test_cli_convert.py runs it",
}
"""Commands of such verbs that are only parsed, because their files are the reader's own."""
ELSEWHERE = {
    "git": "it clones this repository",
    "docker": "no builder in CI; tests/chart/test_image.py reads the Dockerfile",
    "curl": "a served model; tests/controlplane/test_command.py asks the same address",
}
"""Programs whose lines are not run, and why."""
PROGRAMS = {"flotilla", "make", "helm", "kubectl", "uv", "export", *ELSEWHERE}
HELM_VERBS = {"install", "upgrade", "uninstall", "rollback", "template"}
KUBECTL_VERBS = {
    "apply",
    "create",
    "describe",
    "explain",
    "get",
    "logs",
    "port-forward",
    "wait",
    "label",
    "annotate",
    "delete",
    "patch",
}


def blocks(text: str) -> Iterator[list[str]]:
    """Lines of the fenced blocks that are a shell's; continued lines are one."""
    for language, body in re.findall(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "bash", "console"):
            yield re.sub(r"\\\n\s*", " ", body).splitlines()


def cases() -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Page, command, and the lines of output that the page shows below a command with a prompt."""
    for page in PAGES:
        for block in blocks(page.read_text()):
            lines = [line.strip() for line in block]
            for index, line in enumerate(lines):
                command, prompted = line.removeprefix("$ "), line.startswith("$ ")
                if (
                    command.split(" ")[0] not in PROGRAMS
                    or " / " in command
                    or (lines[0].startswith("$ ") and not prompted)
                ):
                    continue
                shown: list[str] = []
                for below in lines[index + 1 :] if prompted else ():
                    if below.startswith("$ "):
                        break
                    shown.append(below)
                yield page, command, tuple(filter(None, shown))


CASES = sorted({(str(page.relative_to(ROOT)), command, shown) for page, command, shown in cases()})


def words_of(command: str) -> list[str]:
    """Of the first of several commands, without comment and redirections."""
    first = re.split(r"\s(?:&&|\||>)\s", re.sub(r"\s+#.*", "", command))[0]
    words = shlex.split(first)
    return words[2:] if words[:3] == ["uv", "run", "flotilla"] and words[2:] else words


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


@pytest.mark.parametrize(("page", "command", "shown"), CASES, ids=[f"{p}: {c}" for p, c, _ in CASES])
def test_a_command_of_the_documentation_works(
    page: str, command: str, shown: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.split(" ")[0] in {*ELSEWHERE, "export"}:
        return
    words = words_of(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    if words[0] in ("helm", "kubectl"):
        verbs = [word for word in words[1:] if word in HELM_VERBS | KUBECTL_VERBS]
        assert verbs, command
        for word in words:
            assert not word.startswith(("manifests/", "charts/")) or (ROOT / word).exists(), word
        return
    if words[0] == "uv":
        if words[1:3] == ["run", "python"]:
            target = words[4].replace(".", "/") + ".py" if words[3] == "-m" else words[3]
            assert (ROOT / target).exists()
        return
    assert words[0] == "flotilla", command
    verb = parsed([word if not (ROOT / word).exists() else str(ROOT / word) for word in words[1:]])
    if verb not in OFFLINE or command in JUDGED:
        return
    for name in ("operator", "docs", "manifests", "crds"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    printed = squeezed(result.output)
    assert [line for line in shown if squeezed(line) not in printed] == []
