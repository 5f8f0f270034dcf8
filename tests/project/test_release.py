"""The steps of a release, on a copy of the files that they change; the files of a release, by the real uv and helm."""

import datetime
import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hack import release
from hack.release import ReleaseError
from tests.support.helm import Helm

from flotilla import __version__
from flotilla.api import crd

DAY = datetime.date(2027, 1, 31)
CHANGES = f"# Changelog\n\n## Unreleased\n\n- One thing.\n\n## {__version__} - 2026-12-01\n\n- Another.\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that name the version, and a changelog: the repository's own has nothing unreleased after a release."""
    for path in {place.path for place in release.places(release.ROOT)}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release.ROOT / path, tmp_path / path)
    (tmp_path / release.CHANGELOG).write_text(CHANGES)
    return tmp_path


def contents(tree: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in tree.rglob("*") if path.is_file()}


def next_version(of: str = __version__) -> str:
    major, minor, _ = of.split(".")
    return f"{major}.{int(minor) + 1}.0"


def test_the_repository_names_one_version() -> None:
    assert release.check(release.ROOT) == __version__


def test_one_place_that_was_forgotten_is_named(tree: Path) -> None:
    for place in release.places(tree):
        text = (tree / place.path).read_text()
        match = re.search(place.pattern, text)
        assert match is not None
        (tree / place.path).write_text(text[: match.start("version")] + "9.9.9" + text[match.end("version") :])
        line = text.count("\n", 0, match.start("version")) + 1
        with pytest.raises(ReleaseError, match=re.escape(f"{place.path}:{line} 9.9.9")):
            release.check(tree)
        (tree / place.path).write_text(text)


def test_a_place_without_a_version_is_an_error(tree: Path) -> None:
    (tree / release.CHART / "Chart.yaml").write_text("apiVersion: v2\n")
    with pytest.raises(ReleaseError, match=r"Chart\.yaml names no version"):
        release.check(tree)


def test_a_bump_writes_every_place_and_cuts_the_changelog(tree: Path) -> None:
    version = next_version()
    release.bump(tree, version, DAY)

    assert set(release.versions(tree).values()) == {version}
    assert release.check(tree, f"v{version}") == version
    heading = f"## Unreleased\n\n## {version} - 2027-01-31\n"
    assert (tree / release.CHANGELOG).read_text() == CHANGES.replace("## Unreleased\n", heading)


def test_only_versions_change_beside_the_changelog(tree: Path) -> None:
    before = contents(tree)
    release.bump(tree, next_version(), DAY)
    for path, text in contents(tree).items():
        if path.name != release.CHANGELOG.name:
            assert text.replace(next_version(), __version__) == before[path], path


def test_the_first_release_may_have_the_version_that_the_tree_has(tree: Path) -> None:
    (tree / release.CHANGELOG).write_text("# Changelog\n\n## Unreleased\n\n- One thing.\n")
    release.bump(tree, __version__, DAY)
    assert release.check(tree, f"v{__version__}") == __version__


@pytest.mark.parametrize(
    ("version", "changelog", "why"),
    [
        ("0.2", "\n## Unreleased\n\n- a\n", "not of the form MAJOR.MINOR.PATCH"),
        ("v0.2.0", "\n## Unreleased\n\n- a\n", "not of the form MAJOR.MINOR.PATCH"),
        ("0.2.0-rc.1", "\n## Unreleased\n\n- a\n", "not of the form MAJOR.MINOR.PATCH"),
        ("0.9.0", "\n## Unreleased\n\n- a\n\n## 0.10.0 - 2026-12-01\n\n- b\n", "is not above 0.10.0"),
        ("0.10.0", "\n## Unreleased\n\n- a\n\n## 0.10.0 - 2026-12-01\n\n- b\n", "is not above 0.10.0"),
        ("0.2.0", "\n## Unreleased\n\n## 0.1.0 - 2026-12-01\n\n- b\n", "is empty: there is nothing to release"),
        ("0.2.0", "\n## 0.1.0 - 2026-12-01\n\n- b\n", "has no section '## Unreleased'"),
    ],
)
def test_a_bump_that_cannot_be_released_writes_nothing(tree: Path, version: str, changelog: str, why: str) -> None:
    (tree / release.CHANGELOG).write_text(changelog)
    before = contents(tree)
    with pytest.raises(ReleaseError, match=re.escape(why)):
        release.bump(tree, version, DAY)
    assert contents(tree) == before


def test_a_version_without_its_section_of_the_changelog_is_refused(tree: Path) -> None:
    (tree / release.CHANGELOG).write_text("\n## Unreleased\n\n## 0.0.1 - 2026-12-01\n\n- b\n")
    with pytest.raises(ReleaseError, match=r"has 0\.0\.1 as its newest release"):
        release.check(tree)


def test_a_tag_names_the_version_and_its_section(tree: Path) -> None:
    (tree / release.CHANGELOG).write_text("# Changelog\n\n## Unreleased\n\n- One thing.\n")
    with pytest.raises(ReleaseError, match=r"the tag must be 'v"):
        release.check(tree, "v9.9.9")
    with pytest.raises(ReleaseError, match="has no section"):
        release.check(tree, f"v{__version__}")


def test_notes_are_one_section() -> None:
    changelog = """\
## Unreleased

- c

## [0.2.0] - 2027-01-31

### Added

- b, which needs 0.1.0 - 2026

## 0.1.0 - 2026-12-01
"""
    assert release.notes(changelog, "0.2.0") == "### Added\n\n- b, which needs 0.1.0 - 2026\n"
    with pytest.raises(ReleaseError, match=r"The section 0\.1\.0 of CHANGELOG\.md is empty"):
        release.notes(changelog, "0.1.0")
    with pytest.raises(ReleaseError, match=r"has no section '## 0\.3\.0 - DATE'"):
        release.notes(changelog, "0.3.0")


def test_the_bundle_holds_every_definition() -> None:
    bundled = list(yaml.safe_load_all(release.crd_bundle(release.ROOT)))
    assert [one["kind"] for one in bundled] == ["CustomResourceDefinition"] * len(crd.DEFINITIONS)
    assert len({one["metadata"]["name"] for one in bundled}) == len(crd.DEFINITIONS)


@pytest.fixture(scope="module")
def built(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("release")
    release.build(release.ROOT, output, helm.program)
    return output


def test_a_release_has_wheels_chart_definitions_and_bill_of_materials(built: Path) -> None:
    python = [f"flotilla_operator-{__version__}-py3-none-any.whl", f"flotilla_operator-{__version__}.tar.gz"]
    others = [f"flotilla-{__version__}.{kind}" for kind in ("tgz", "cdx.json")]
    expected = {*python, *others, f"flotilla-crds-{__version__}.yaml", "SHA256SUMS"}
    found = {path.name for path in built.iterdir()}
    assert expected <= found
    assert len([name for name in found if name.endswith(".whl")]) == len(release.distributions(release.ROOT))


def test_every_file_has_its_checksum(built: Path) -> None:
    lines = (line.split("  ") for line in (built / "SHA256SUMS").read_text().splitlines())
    listed = {name: checksum for checksum, name in lines}
    assert listed == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in built.iterdir()
        if path.name != "SHA256SUMS"
    }


def test_the_files_of_a_release_say_its_version(built: Path) -> None:
    with tarfile.open(built / f"flotilla-{__version__}.tgz") as chart:
        description = chart.extractfile("flotilla/Chart.yaml")
        assert description is not None
        packaged = yaml.safe_load(description.read())
    with zipfile.ZipFile(built / f"flotilla_operator-{__version__}-py3-none-any.whl") as wheel:
        metadata = wheel.read(f"flotilla_operator-{__version__}.dist-info/METADATA").decode()
    bill = json.loads((built / f"flotilla-{__version__}.cdx.json").read_text())

    assert (packaged["version"], packaged["appVersion"]) == (__version__, __version__)
    assert f"\nVersion: {__version__}\n" in metadata
    assert bill["metadata"]["component"]["version"] == __version__


def test_the_packaged_chart_installs_what_the_folder_does(built: Path, helm: Helm) -> None:
    assert helm.render(chart=built / f"flotilla-{__version__}.tgz") == helm.render()


def test_two_checkouts_of_one_commit_give_the_same_chart(tmp_path: Path, helm: Helm) -> None:
    packages = []
    for checkout, checked_out_at_s in (("first", 1_700_000_000), ("second", 1_750_000_000)):
        chart = Path(shutil.copytree(release.ROOT / release.CHART, tmp_path / checkout / release.CHART.name))
        for path in chart.rglob("*"):
            os.utime(path, (checked_out_at_s, checked_out_at_s))
        release.package_chart(chart, tmp_path / checkout, helm.program, made_at_s=1_790_000_000)
        packages.append((tmp_path / checkout / f"flotilla-{__version__}.tgz").read_bytes())
    assert packages[0] == packages[1]


def test_a_folder_with_other_files_is_not_used(tmp_path: Path, helm: Helm) -> None:
    (tmp_path / "old.whl").touch()
    with pytest.raises(ReleaseError, match="is not empty: name a new folder"):
        release.build(release.ROOT, tmp_path, helm.program)


def test_a_program_that_fails_ends_the_build_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"false package .* exit code 1"):
        release.build(release.ROOT, tmp_path / "release", Path("/bin/false"))


def test_the_commands_of_the_procedure_are_those_of_the_program() -> None:
    page = (release.ROOT / "docs/operations/release.md").read_text()
    documented = re.findall(r"(?m)^ *uv run python -m hack\.release (.*)$", page)
    named = {release.parser().parse_args(line.split()).command for line in documented}
    assert named == {"check", "bump", "notes", "build"}


def test_the_command_says_what_stands_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["check", "--tag", "v9.9.9"]) == 1
    assert "the tag must be" in capsys.readouterr().err
    assert release.main(["check"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
