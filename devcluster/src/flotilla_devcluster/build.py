"""Building the control plane's programs from Go modules into the cache, once for all processes."""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from flotilla.errors import NotReady
from flotilla_devcluster import binaries, golang
from flotilla_devcluster.binaries import Bundle
from flotilla_devcluster.process import Process

_HEARTBEAT_S = 30.0


class Build:
    """A `binaries.Builder`; progress with the elapsed time goes to `console` (standard error by default)."""

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
            still_missing = [name for name in binaries.unusable(bundle, directory) if name in names]
            if still_missing:
                self._build(bundle, still_missing, directory)

    def _build(self, bundle: Bundle, names: Sequence[str], directory: Path) -> None:
        module = self._module(bundle)
        go = golang.find(self._environ)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=directory.parent) as temporary:
            output = Path(temporary)
            log = output / "go.log"
            self._run_go(go, bundle, names, module=module, output=output, log=log)
            for name in names:
                (output / _go_name(bundle.packages[name])).replace(directory / name)
        if wrong := {name: why for name, why in binaries.unusable(bundle, directory).items() if name in names}:
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
                " KUBEBUILDER_ASSETS at a folder with the binaries."
            )
        return module

    def _run_go(
        self, go: golang.Go, bundle: Bundle, names: Sequence[str], *, module: Path, output: Path, log: Path
    ) -> None:
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
        console, start, said = self._console, time.monotonic(), time.monotonic()
        console.print(f"Building {what}: minutes the first time, never again after that.")
        with console.status("Building") as status:
            while not process.wait(1.0):
                now = time.monotonic()
                packages = log.read_bytes().count(b"\n")
                line = f"{_clock(now - start)} {packages} packages compiled"
                status.update(f"Building {what}: {line}")
                if not console.is_terminal and now - said >= _HEARTBEAT_S:
                    console.print(f"  {line}")
                    said = now
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
