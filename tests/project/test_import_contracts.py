"""The import contracts of pyproject.toml hold for modules that nobody has written yet."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in (ROOT / "operator/flotilla").glob("*/__init__.py"))
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
NEW = "added_by_a_test"


def contract(name: str) -> list[str]:
    """The source packages of a contract, or the layers."""
    found = next(one for one in LINTER["contracts"] if one["name"] == name)
    rows = found.get("source_modules") or found["layers"]
    return [package for row in rows for package in row.split(" | ")]


DECIDING = [name.removeprefix("flotilla.") for name in contract("modules that decide do no I/O")]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports prints when each package has a new module that imports what it must not."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("operator", "devcluster/src"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        upwards = "" if package == "cli" else "import flotilla.cli\n"
        text = f"import aiohttp\nimport kopf\nimport kubernetes\n{upwards}"
        (root / "operator/flotilla" / package / f"{NEW}.py").write_text(text)
    sources = os.pathsep.join(str(root / folder) for folder in ("operator", "devcluster/src"))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": sources, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_a_new_module_of_any_package_may_import_neither_kopf_nor_kubernetes(complaints: str, package: str) -> None:
    for library in ("kopf", "kubernetes"):
        assert f"flotilla.{package}.{NEW} -> {library} " in complaints


@pytest.mark.parametrize("package", DECIDING)
def test_a_new_module_of_a_package_that_decides_may_do_no_io(complaints: str, package: str) -> None:
    assert f"flotilla.{package}.{NEW} -> aiohttp " in complaints


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "cli"])
def test_a_new_module_may_not_import_a_package_above_its_own(complaints: str, package: str) -> None:
    assert f"flotilla.{package}.{NEW} -> flotilla.cli " in complaints


def test_every_package_has_a_layer() -> None:
    layers = {name.removeprefix("flotilla.") for name in contract("layers")}
    assert set(PACKAGES) - layers == set()
    modules = {path.stem for path in (ROOT / "operator/flotilla").glob("*.py")} - {"__init__", "__main__"}
    assert modules - layers == set()


def test_no_two_classes_of_the_product_have_one_name() -> None:
    """A reader who searches for a name finds one class."""
    names = Counter(
        node.name
        for path in (ROOT / "operator/flotilla").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
