"""Where the control plane's programs come from, and when they are built again."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flotilla.errors import NotReady
from flotilla_devcluster import programs
from flotilla_devcluster.programs import ETCD, KUBECTL, KUBERNETES, Bundle

REPOSITORY = Path(__file__).resolve().parents[3]
TRIO = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]


def program(path: Path, says: str = "", *, calls: Path | None = None) -> Path:
    """An executable that prints `says`, and notes each run in `calls`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f'echo "$0" >> "{calls}"\n' if calls else ""
    path.write_text(f"#!/bin/sh\n{note}echo '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fill(bundle: Bundle, environ: Mapping[str, str], *, calls: Path | None = None) -> Path:
    directory = bundle.directory(environ)
    for name in bundle.packages:
        program(directory / name, f"Version {bundle.version}", calls=calls)
    return directory


class Builder:
    """Stands in for the build: remembers what it was asked for, and makes it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.asked: dict[str, list[str]] = {}

    def __call__(self, bundle: Bundle, names: Sequence[str]) -> None:
        self.asked[bundle.name] = list(names)
        for name in names:
            program(bundle.directory(self.environ) / name, f"Version {bundle.version}")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/nonexistent"}


def test_assets_folder_goes_before_the_cache(environ: dict[str, str], tmp_path: Path) -> None:
    fill(ETCD, environ)
    fill(KUBERNETES, environ)
    assets = tmp_path / "assets"
    for name in ["etcd", *TRIO]:
        program(assets / name, "any version")
    found = programs.find_control_plane(
        environ={**environ, "KUBEBUILDER_ASSETS": str(assets)}, builder=Builder(environ)
    )
    assert found == {name: assets / name for name in ["etcd", *TRIO]}


def test_incomplete_assets_folder_is_an_error_that_names_what_it_lacks(environ: dict[str, str], tmp_path: Path) -> None:
    """envtest's own download holds etcd, kube-apiserver and kubectl only."""
    assets = tmp_path / "assets"
    program(assets / "etcd")
    program(assets / "kube-apiserver")
    environ["KUBEBUILDER_ASSETS"] = str(assets)
    with pytest.raises(NotReady, match="lacks kube-controller-manager, kube-scheduler"):
        programs.find_control_plane(environ=environ)
    assert set(programs.find_control_plane(controllers=False, environ=environ)) == {"etcd", "kube-apiserver"}


def test_complete_cache_is_used_without_building(environ: dict[str, str]) -> None:
    fill(ETCD, environ)
    directory = fill(KUBERNETES, environ)
    builder = Builder(environ)
    found = programs.find_control_plane(environ=environ, builder=builder)
    assert builder.asked == {}
    assert [found[name] for name in TRIO] == [directory / name for name in TRIO]


def test_empty_cache_builds_everything(environ: dict[str, str]) -> None:
    builder = Builder(environ)
    programs.find_control_plane(environ=environ, builder=builder)
    assert builder.asked == {"etcd": ["etcd"], "kubernetes": TRIO}


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_text(""), id="empty"),
        pytest.param(lambda path: path.chmod(0o644), id="not executable"),
        pytest.param(lambda path: path.write_bytes(b"\x7fELF truncated"), id="truncated"),
        pytest.param(lambda path: program(path, "Kubernetes v1.35.0"), id="another version"),
    ],
)
def test_only_the_unusable_program_is_built_again(environ: dict[str, str], break_it: object) -> None:
    fill(ETCD, environ)
    directory = fill(KUBERNETES, environ)
    assert callable(break_it)
    break_it(directory / "kube-scheduler")
    builder = Builder(environ)
    programs.find_control_plane(environ=environ, builder=builder)
    assert builder.asked == {"kubernetes": ["kube-scheduler"]}


def test_program_that_changed_after_its_check_is_checked_again(environ: dict[str, str]) -> None:
    fill(ETCD, environ)
    directory = fill(KUBERNETES, environ)
    programs.find_control_plane(environ=environ, builder=Builder(environ))
    program(directory / "kube-apiserver", "Kubernetes v0.0.0-master+$Format:%H$")
    builder = Builder(environ)
    programs.find_control_plane(environ=environ, builder=builder)
    assert builder.asked == {"kubernetes": ["kube-apiserver"]}


def test_each_program_is_run_for_its_version_only_once(environ: dict[str, str], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    fill(ETCD, environ, calls=calls)
    fill(KUBERNETES, environ, calls=calls)
    for _ in range(3):
        programs.find_control_plane(environ=environ, builder=Builder(environ))
    assert len(calls.read_text().splitlines()) == 4


def test_new_version_does_not_use_the_folder_of_the_old_one(environ: dict[str, str]) -> None:
    fill(ETCD, environ)
    builder = Builder(environ)
    programs.ensure(replace(ETCD, version="v3.7.0"), environ=environ, builder=builder)
    assert builder.asked == {"etcd": ["etcd"]}


def test_cache_defaults_to_the_home_folder() -> None:
    assert programs.cache_directory({"HOME": "/home/me"}) == Path("/home/me/.cache/flotilla/bin")


def test_kubectl_of_the_path_goes_first(environ: dict[str, str], tmp_path: Path) -> None:
    fill(KUBECTL, environ)
    mine = program(tmp_path / "bin" / "kubectl")
    environ["PATH"] = str(tmp_path / "bin")
    assert programs.find_kubectl(environ=environ, builder=Builder(environ)) == mine


def test_kubectl_is_built_only_when_asked_for(environ: dict[str, str]) -> None:
    builder = Builder(environ)
    programs.find_control_plane(environ=environ, builder=builder)
    assert "kubectl" not in builder.asked["kubernetes"]
    found = programs.find_kubectl(environ=environ, builder=builder)
    assert builder.asked["kubernetes"] == ["kubectl"]
    assert os.access(found, os.X_OK)


@pytest.mark.parametrize(
    ("module", "requirement"),
    [
        ("controlplane", f"k8s.io/kubernetes {programs.KUBERNETES_VERSION}"),
        ("etcd", f"go.etcd.io/etcd/server/v3 {programs.ETCD_VERSION}"),
    ],
)
def test_go_modules_build_the_versions_that_the_cache_is_named_after(module: str, requirement: str) -> None:
    assert f"\t{requirement}" in (REPOSITORY / "hack" / module / "go.mod").read_text()


def test_staging_modules_follow_the_version_of_kubernetes() -> None:
    """k8s.io/kubernetes requires its 33 staging modules at v0.0.0, so go.mod must say which is meant."""
    lines = (REPOSITORY / "hack" / "controlplane" / "go.mod").read_text().splitlines()
    replaced = [line.split("=>")[1].split() for line in lines if "=>" in line]
    wanted = "v0" + programs.KUBERNETES_VERSION.removeprefix("v1")
    assert len(replaced) == 33
    assert {version for _, version in replaced} == {wanted}
