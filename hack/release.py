"""The steps of a release that need no secret: `python -m hack.release check|bump|notes|build`.

docs/operations/release.md is the procedure; .github/workflows/release.yaml calls `check` and `build` and adds what
only a forge can do: pushing and signing.

A version is three numbers, because Helm (semantic versions) and Python (PEP 440) write pre-releases differently.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flotilla_devcluster import programs

ROOT = Path(__file__).parent.parent
CHANGELOG = Path("CHANGELOG.md")
CHART = Path("charts/flotilla")
UNRELEASED = "## Unreleased"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_HEADING = re.compile(r"^## \[?(?P<version>\d+\.\d+\.\d+)\]? - (?P<date>\d{4}-\d{2}-\d{2})$", re.MULTILINE)
_IN_PROJECT = r'(?m)^version = "(?P<version>[^"]+)"'
_IN_PACKAGE = r'(?m)^__version__ = "(?P<version>[^"]+)"'


class ReleaseError(Exception):
    """The tree cannot be released as it is; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place that names the version: a file, relative to the root, and a pattern with a group `version`."""

    path: Path
    pattern: str


def places(root: Path) -> Iterator[Place]:
    """Every hand-written place that names the version, those of all workspace members included.

    Generated files (the chart's schema and README, `manifests/`) follow from these by `make manifests`, and uv.lock
    by `uv lock`; tests compare them.
    """
    yield Place(CHART / "Chart.yaml", r"(?m)^version: (?P<version>\S+)")
    yield Place(CHART / "Chart.yaml", r"(?m)^appVersion: (?P<version>\S+)")
    yield Place(Path("docs/guides/install.md"), r"image\.tag=(?P<version>[0-9.]+)")
    yield Place(Path("docs/guides/install.md"), r"registry\.example\.com/flotilla:(?P<version>[0-9.]+)")
    for folder in distributions(root):
        project = tomllib.loads((root / folder / "pyproject.toml").read_text())
        yield Place(folder / "pyproject.toml", _IN_PROJECT)
        build = project["tool"].get("uv", {}).get("build-backend", {})
        module = build.get("module-name") or project["project"]["name"].replace("-", "_")
        package = folder / build.get("module-root", "src") / module / "__init__.py"
        if (root / package).exists() and re.search(_IN_PACKAGE, (root / package).read_text()):
            yield Place(package, _IN_PACKAGE)


def distributions(root: Path) -> list[Path]:
    """Folders of the distributions that this repository builds: itself and the members of its uv workspace."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    members = project["tool"]["uv"].get("workspace", {}).get("members", [])
    found = [path.relative_to(root) for member in members for path in sorted(root.glob(member))]
    return [Path(), *(path for path in found if (root / path / "pyproject.toml").exists())]


def versions(root: Path) -> dict[str, str]:
    """The version by the place that names it, as `path: the line`."""
    found = {}
    for place in places(root):
        text = (root / place.path).read_text()
        matches = list(re.finditer(place.pattern, text))
        if not matches:
            raise ReleaseError(
                f"{place.path} names no version by {place.pattern!r}: correct the file or hack/release.py"
            )
        for match in matches:
            line = text.count("\n", 0, match.start("version")) + 1
            found[f"{place.path}:{line}"] = match["version"]
    return found


def check(root: Path, tag: str | None = None) -> str:
    """Return the version of the tree.

    All places must agree, and the newest release of the changelog must be that version (before the first release
    there is none). With a tag, the tag must be `v` and that version, and the changelog must have its section.
    Raises ReleaseError.
    """
    found = versions(root)
    if len(set(found.values())) != 1:
        listed = "\n".join(f"  {place} {version}" for place, version in found.items())
        raise ReleaseError(f"These places name different versions; run `python -m hack.release bump`:\n{listed}")
    version = next(iter(found.values()))
    text = (root / CHANGELOG).read_text()
    released = [match["version"] for match in _HEADING.finditer(text)]
    if released and released[0] != version:
        raise ReleaseError(
            f"{CHANGELOG} has {released[0]} as its newest release, but the version is {version}: cut the section"
            f" with `python -m hack.release bump {version}`"
        )
    if tag is not None:
        if tag != f"v{version}":
            raise ReleaseError(f"The tag is {tag!r}, but the version is {version}: the tag must be 'v{version}'")
        notes(text, version)
    return version


def notes(changelog: str, version: str) -> str:
    """The changelog's section of a version without its heading. Raises ReleaseError where it is missing or empty."""
    for match in _HEADING.finditer(changelog):
        if match["version"] == version:
            section = re.split(r"^## ", changelog[match.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
            if not section:
                raise ReleaseError(f"The section {version} of {CHANGELOG} is empty: say what changed")
            return section + "\n"
    raise ReleaseError(f"{CHANGELOG} has no section '## {version} - DATE': run `python -m hack.release bump {version}`")


def cut(changelog: str, version: str, day: datetime.date) -> str:
    """The changelog with what is unreleased moved below a heading of that version and day."""
    before, heading, after = changelog.partition(f"\n{UNRELEASED}\n")
    if not heading:
        raise ReleaseError(f"{CHANGELOG} has no section '{UNRELEASED}'")
    if not re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0].strip():
        raise ReleaseError(f"The section '{UNRELEASED}' of {CHANGELOG} is empty: there is nothing to release")
    return f"{before}{heading}\n## {version} - {day.isoformat()}\n{after}"


def bump(root: Path, version: str, day: datetime.date) -> None:
    """Write the version into every place and cut the changelog. Raises ReleaseError and then writes nothing."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"The version {version!r} is not of the form MAJOR.MINOR.PATCH, such as 0.2.0")
    changelog = (root / CHANGELOG).read_text()
    released = [match["version"] for match in _HEADING.finditer(changelog)]
    if released and _order(version) <= _order(released[0]):
        raise ReleaseError(f"The version {version} is not above {released[0]}, the newest release in {CHANGELOG}")
    texts = {CHANGELOG: cut(changelog, version, day)}
    for place in places(root):
        text = texts.get(place.path) or (root / place.path).read_text()
        texts[place.path] = re.sub(place.pattern, lambda match: _with_version(match, version), text)
    for path, text in texts.items():
        (root / path).write_text(text)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _with_version(match: re.Match[str], version: str) -> str:
    start, end = (position - match.start() for position in match.span("version"))
    return match[0][:start] + version + match[0][end:]


def crd_bundle(root: Path) -> str:
    """All CustomResourceDefinitions in one file, for `kubectl apply --server-side -f`."""
    definitions = sorted(path for path in (root / "crds").glob("*.yaml") if path.name != "kustomization.yaml")
    if not definitions:
        raise ReleaseError("crds/ holds no definition: run `make generate`")
    return "".join(f"---\n{path.read_text().rstrip()}\n" for path in definitions)


def package_chart(chart: Path, output: Path, helm: Path, *, made_at_s: int) -> None:
    """Write the chart's archive. Files carry `made_at_s` (seconds since 1970): helm would keep the checkout's times."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(chart, Path(folder) / chart.name))
        for path in copy.rglob("*"):
            os.utime(path, (made_at_s, made_at_s))
        _run([str(helm), "package", str(copy), "--destination", str(output.resolve())], copy, os.environ)


def build(root: Path, output: Path, helm: Path) -> list[Path]:
    """Write a release's files into a new folder: wheels, source archives, chart, CRDs, bill of materials, SHA256SUMS.

    uv builds the wheels and source archives, helm the chart. Returns the files that SHA256SUMS lists.
    Raises ReleaseError where the tree is inconsistent, the folder is not empty or a program fails.
    """
    version = check(root)
    if output.exists() and any(output.iterdir()):
        raise ReleaseError(f"{output} is not empty: name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    made_at = _run(["git", "log", "-1", "--format=%ct"], root, os.environ).strip()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": made_at}
    (output / f"flotilla-crds-{version}.yaml").write_text(crd_bundle(root))
    package_chart(root / CHART, output, helm, made_at_s=int(made_at))
    _run([_uv(), "build", "--all-packages", "--quiet", "--out-dir", str(output.resolve())], root, environment)
    (output / ".gitignore").unlink(missing_ok=True)  # uv writes one
    bill = output / f"flotilla-{version}.cdx.json"
    export = ["export", "--format", "cyclonedx1.5", "--no-dev", "--locked", "--quiet", "--extra", "redis"]
    _run([_uv(), *export, "--extra", "otlp", "--output-file", str(bill.resolve())], root, environment)
    files = sorted(output.iterdir())
    (output / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    )
    return files


def _uv() -> str:
    # `uv run` names itself in UV.
    program = os.environ.get("UV") or shutil.which("uv")
    if program is None:
        raise ReleaseError("uv is not on the PATH")
    return program


def _run(argv: list[str], root: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(argv)} ended with exit code {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hack.release", description="The steps of a release.")
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check", help="compare all places that name the version, and the changelog")
    checked.add_argument("--tag", help="the tag that is released; it must be v and the version")
    bumped = commands.add_parser("bump", help="write a new version everywhere and cut the changelog")
    bumped.add_argument("version", help="MAJOR.MINOR.PATCH")
    noted = commands.add_parser("notes", help="print the changelog's section of a version")
    noted.add_argument("version", help="MAJOR.MINOR.PATCH")
    built = commands.add_parser("build", help="write the files of the release")
    built.add_argument("--output", type=Path, default=ROOT / "dist/release", help="a new or empty folder")
    built.add_argument("--helm", type=Path, help="the helm program; by default the tests' own, built on first use")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 1 with the reason on standard error where the tree cannot be released."""
    options = parser().parse_args(argv)
    try:
        if options.command == "check":
            print(check(ROOT, options.tag))
        elif options.command == "bump":
            bump(ROOT, options.version, datetime.datetime.now(datetime.UTC).date())
            print("Now run `uv lock` and `make manifests`, and commit the result.")
        elif options.command == "notes":
            print(notes((ROOT / CHANGELOG).read_text(), options.version), end="")
        else:
            for path in build(ROOT, options.output, options.helm or programs.find_helm()):
                print(path)
    except ReleaseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
