"""The documentation builds as a site, and a broken link is an error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")

    assert done.returncode == 0, done.stderr
    assert "spec.scaling" in (tmp_path / "site/reference/modeldeployment/index.html").read_text()


@pytest.mark.parametrize("link", ["guides/nowhere.md", "../nowhere.yaml"])
def test_a_link_to_what_does_not_exist_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Start\n\n[A page]({link})\n")
    (tmp_path / "hack").mkdir()
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copy(ROOT / "hack/docs_hooks.py", tmp_path / "hack")

    done = build(tmp_path, tmp_path / "site")

    assert done.returncode != 0
    assert link in done.stdout + done.stderr
