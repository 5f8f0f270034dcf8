"""The image's recipe, and what goes into it: the wheel alone."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LAST_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]


def uv(*arguments: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    program = os.environ.get("UV") or shutil.which("uv")  # `uv run` names itself
    assert program is not None, "uv is not on the PATH"
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_base_is_pinned_by_version_and_digest() -> None:
    for line in re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE):
        assert re.match(r"\S+:[0-9]+\.[0-9]+\.[0-9]+\S*@sha256:[0-9a-f]{64}( AS \w+)?$", line), line


def test_the_image_runs_as_nobody_and_holds_no_build_tool() -> None:
    assert "USER 65532:65532" in LAST_STAGE
    assert "--from=uv" not in LAST_STAGE
    assert "apt-get" not in LAST_STAGE
    assert (
        "--locked --extra redis --extra otlp --extra bedrock --extra google --extra jwt --extra buckets --no-dev"
        in DOCKERFILE
    )


def test_the_build_context_holds_all_that_the_recipe_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for names in copied for name in names.split()} <= allowed


def test_the_bill_of_materials_names_every_dependency() -> None:
    """By the command of docs/guides/install.md."""
    bill = json.loads(uv("export", "--format", "cyclonedx1.5", "--no-dev", "--locked", "--quiet"))
    names = {part["name"] for part in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert {"kopf", "kubernetes", "pydantic"} <= names
    assert not {"pytest", "ruff"} & names


def test_the_recipe_installs_the_operator_and_nothing_of_devcluster(tmp_path: Path) -> None:
    """Its two `uv sync` lines, run on nothing but the build context."""
    context = tmp_path / "context"
    for name in re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, context / name)
    environ = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / "env")}
    commands = re.findall(r" uv (sync .*)$", DOCKERFILE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        uv(*command.split(), cwd=context, env=environ)
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    assert (packages / "flotilla/py.typed").is_file()
    assert [path.name for path in packages.iterdir() if "devcluster" in path.name] == []
    assert not {"openai", "pytest"} & {path.name for path in packages.iterdir()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--quiet", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_nothing_of_devcluster(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "flotilla/app.py" in names
    assert [name for name in names if "devcluster" in name] == []


def test_the_wheel_of_devcluster_holds_its_tables_and_adds_its_command(tmp_path: Path) -> None:
    uv("build", "--package", "flotilla-devcluster", "--wheel", "--quiet", "--out-dir", tmp_path)
    (built,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(built)
    names = archive.namelist()
    tables = ROOT / "devcluster/src/flotilla_devcluster/engine/data"
    assert {f"flotilla_devcluster/engine/data/{table.name}" for table in tables.iterdir()} <= set(names)
    assert [name for name in names if name.startswith(("flotilla/", "tests/"))] == []
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "[flotilla.commands]\ndevcluster = flotilla_devcluster.cli:app" in archive.read(entry_points).decode()


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """`flotilla` of a fresh environment that holds the wheel and its dependencies, as the image does."""
    folder = wheel.parent
    locked = folder / "locked.txt"
    locked.write_text(uv("export", "--no-dev", "--locked", "--no-emit-project", "--quiet"))
    uv("venv", "--quiet", folder / "env")
    python = folder / "env/bin/python"
    uv("pip", "install", "--quiet", "--require-hashes", "--requirement", locked, "--python", python)
    uv("pip", "install", "--quiet", "--no-deps", wheel, "--python", python)
    return folder / "env/bin/flotilla"


def run(program: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run([program, *arguments], cwd="/", capture_output=True, text=True, env={}, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_alone_has_the_operator_its_data_and_the_plugin(installed: Path) -> None:
    assert "--config" in run(installed, "operator", "--help")
    assert run(installed, "crds") == "---\n".join(
        path.read_text() for path in sorted((ROOT / "crds").glob("flotilla.dev_*.yaml"))
    )
    (answer,) = json.loads(run(installed, "estimate", "Qwen/Qwen3-14B", "-a", "L4", "--json"))
    assert answer["verdict"] == "Fits"
    assert "operator" in run(installed.with_name("kubectl-flotilla"), "--help")


def test_the_wheel_alone_starts_the_operator_up_to_the_cluster(installed: Path, tmp_path: Path) -> None:
    """It reads its settings, loads everything that it runs with, and names what is missing: the cluster."""
    settings, kubeconfig = tmp_path / "config.yaml", tmp_path / "empty"
    kubeconfig.touch()
    settings.write_text(f"listen_port: 0\nkubeconfig: {kubeconfig}\n")
    assert "has no contexts" in run(installed, "operator", "--config", str(settings), code=3)


def test_the_wheel_alone_says_what_to_install_for_devcluster(installed: Path) -> None:
    assert "devcluster" in run(installed, "--help")
    assert "pip install flotilla-devcluster" in run(installed, "devcluster", "up", "--detach", code=1)
