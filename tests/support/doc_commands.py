"""The command lines of README and docs, and the environment in which a reader types them."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "charts/flotilla/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
QUICK_START = "docs/guides/quick-start.md"
"""Its lines are typed one after another on a cluster: devcluster/tests/controlplane/test_command.py."""
Surroundings = Literal["quick start", "policy", "prometheus", "fleet", "none"]
_ASK_A_FLEET = frozenset({"cost", "describe", "doctor", "logs", "status", "top"})
_SHELL = frozenset({"", "sh", "bash", "console"})


@dataclass(frozen=True, slots=True)
class Line:
    """One command, and the lines of output that the page shows below a command with a prompt."""

    page: str
    command: str
    shown: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Of the first of several commands, without comment and redirections; `uv run` runs what is behind it."""
        lexer = shlex.shlex(self.command, posix=True, punctuation_chars="|&>")
        lexer.whitespace_split = True
        words = list(takewhile(lambda word: word not in ("|", "&&", ">"), lexer))
        return words[2:] if words[:3] == ["uv", "run", "flotilla"] else words

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def surroundings(self) -> Surroundings:
        """What a line of our own command needs around it to work."""
        if self.page == QUICK_START:
            return "quick start"
        if self.words[1] == "envelope":
            return "policy"
        if "--prometheus" in self.words:
            return "prometheus"
        return "fleet" if self.words[1] in _ASK_A_FLEET else "none"


def blocks(page: Path) -> Iterator[list[Line]]:
    """The fenced blocks of a shell. Those without a language are one: output and drawings are `text`."""
    name = str(page.relative_to(ROOT))
    for language, body in re.findall(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language in _SHELL:
            joined = re.sub(r"(?:\\|(\|))\n\s*", r"\1 ", body)
            yield list(_lines(name, [line.strip() for line in joined.splitlines()]))


def _lines(page: str, lines: list[str]) -> Iterator[Line]:
    """With a prompt anywhere, what has none is output; without one, every line is a command."""
    prompted = any(line.startswith("$ ") for line in lines)
    starts = [index for index, line in enumerate(lines) if line and (line.startswith("$ ") or not prompted)]
    for index, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield Line(page, lines[index].removeprefix("$ "), tuple(filter(None, lines[index + 1 : end])))


def lines() -> list[Line]:
    """Each once for each page."""
    found = {line for page in PAGES for block in blocks(page) for line in block}
    return sorted(found, key=lambda line: (line.page, line.command))


def own(surroundings: Surroundings) -> list[Line]:
    """Those of our own command that need them; never empty."""
    found = [line for line in lines() if line.program == "flotilla" and line.surroundings == surroundings]
    assert found, surroundings
    return found


def in_shell(command: str, folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What a shell in `folder` makes of it."""
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def typed(command: str, folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The same; raises AssertionError with what it said where it fails."""
    done = in_shell(command, folder, environ)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def squeezed(text: str) -> str:
    """Without the layout."""
    return re.sub(r"\s+", " ", text).strip()


def reader(folder: Path, programs: Mapping[str, Path]) -> dict[str, str]:
    """PATH of a reader, by `folder`/bin: `programs`, our own command, and a uv that runs what is installed already."""
    shims = folder / "bin"
    shims.mkdir()
    installed = Path(sys.executable).parent
    for name, target in {**programs, "flotilla": installed / "flotilla"}.items():
        (shims / name).symlink_to(target)
    (shims / "uv").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (shims / "uv").chmod(0o755)
    return {"PATH": f"{shims}:/usr/bin:/bin"}


def checkout(folder: Path) -> Path:
    """A working folder with the parts of the repository that commands name; what they write stays in it."""
    for name in ("operator", "docs", "manifests", "crds", "charts"):
        (folder / name).symlink_to(ROOT / name)
    return folder
