"""The checks before a commit are those of `make lint`."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]


def checks_of_make_lint() -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    match = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", makefile)
    assert match is not None
    return [line.strip().replace("$(RUN) ", "uv run --locked ") for line in match[1].splitlines()]


def test_both_lists_hold_the_same_checks_in_the_same_order() -> None:
    assert [hook["entry"] for repo in HOOKS for hook in repo["hooks"]] == checks_of_make_lint()


def test_each_hook_checks_the_whole_tree_with_the_locked_tools() -> None:
    (repo,) = HOOKS
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["entry"].startswith("uv run --locked "), hook["id"]
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True), hook["id"]
