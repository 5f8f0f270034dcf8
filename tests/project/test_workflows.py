"""The forge's workflows: valid, pinned, with few rights, and calling commands that exist.

They run on the forge only; what they call is tested in test_release.py.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import release

from flotilla.constants import IMAGE
from flotilla_devcluster import programs

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
ACTIONLINT = programs.Bundle(
    name="actionlint",
    version="v1.7.12",
    module="actionlint",
    packages={"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"},
    version_args=("-version",),
    version_variable="github.com/rhysd/actionlint.version",
)
Job = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """With `on` as text: YAML 1.1 reads it as true."""
    loaded = yaml.safe_load(re.sub(r"(?m)^on:", '"on":', path.read_text()))
    assert isinstance(loaded, dict)
    return loaded


def jobs(path: Path) -> Iterator[tuple[str, Job]]:
    yield from load(path)["jobs"].items()


def commands(path: Path) -> Iterator[str]:
    for _, job in jobs(path):
        yield from (step["run"] for step in job.get("steps", ()) if "run" in step)


@pytest.fixture(scope="session")
def actionlint() -> Path:
    return programs.ensure(ACTIONLINT, environ=os.environ)["actionlint"]


def lint(actionlint: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path] = [actionlint, "-no-color", "-shellcheck=", "-pyflakes=", *paths]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_actionlint_finds_nothing(actionlint: Path) -> None:
    done = lint(actionlint, *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_an_output_that_no_step_has(actionlint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "release.yaml"
    broken.write_text((ROOT / ".github/workflows/release.yaml").read_text().replace("id: push", "id: pushed"))
    assert 'property "push" is not defined' in lint(actionlint, broken).stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_commit_and_names_its_version(path: Path) -> None:
    uses = re.findall(r"(?m)^\s*(?:- )?uses: (?!\./)(.*)$", path.read_text())
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


def test_one_action_has_one_version() -> None:
    uses = {use for path in WORKFLOWS for use in re.findall(r"uses: ([\w-]+/[\w-]+@\S+)", path.read_text())}
    assert len({use.partition("@")[0] for use in uses}) == len(uses)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_given_job_by_job(path: Path) -> None:
    assert load(path)["permissions"] == {}
    for name, job in jobs(path):
        assert "permissions" in job, name
        writes = {right for right, level in job["permissions"].items() if level == "write"}
        # Code of the repository and its dependencies runs in these, so they can change nothing.
        if any(
            "uv run" in command or ".ci/run" in command for command in (s.get("run", "") for s in job.get("steps", ()))
        ):
            assert writes == set(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_ends_and_keeps_no_token_in_its_checkout(path: Path) -> None:
    for name, job in jobs(path):
        assert "uses" in job or job["timeout-minutes"] <= 90, name
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_shell_command_holds_an_expression(path: Path) -> None:
    """A tag or branch could otherwise be a command."""
    for command in commands(path):
        assert "${{" not in command


def test_the_release_calls_commands_that_exist() -> None:
    called = re.findall(r"python -m hack\.release (.*?)(?: >|$)", "\n".join(commands(WORKFLOWS[1])), re.MULTILINE)
    assert [shlex.split(line)[0] for line in called] == ["check", "build", "notes"]
    for line in called:
        release.parser().parse_args(shlex.split(line))


def test_a_release_follows_the_tests_and_waits_for_a_person() -> None:
    workflow = load(ROOT / ".github/workflows/release.yaml")
    assert workflow["on"] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert workflow["jobs"]["test"]["uses"] == "./.github/workflows/ci.yaml"
    assert workflow["jobs"]["files"]["needs"] == "test"
    assert workflow["jobs"]["publish"]["environment"] == "release"


def test_the_image_that_is_pushed_is_the_one_that_the_chart_names() -> None:
    workflow = load(ROOT / ".github/workflows/release.yaml")
    assert workflow["env"]["IMAGE"].replace("${{ github.repository }}", "flotilla-dev/flotilla") == IMAGE


def test_ci_runs_what_everybody_runs() -> None:
    assert list(commands(ROOT / ".github/workflows/ci.yaml")) == [".ci/run"]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_asks_for_what_is_needed_and_for_nothing_twice(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_links_of_the_issue_chooser_lead_to_pages_of_this_repository() -> None:
    chooser = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text())
    repository = "https://github.com/flotilla-dev/flotilla/"
    for link in chooser["contact_links"]:
        assert link["url"].startswith(repository)
        if (path := link["url"].removeprefix(repository)).startswith("blob/main/"):
            assert (ROOT / path.removeprefix("blob/main/")).is_file()
