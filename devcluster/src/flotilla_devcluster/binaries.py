"""Finding the control plane's programs, and building them where they are nowhere.

The order: the folder KUBEBUILDER_ASSETS (envtest's name; then it must hold all), the cache, a build into the
cache.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flotilla.errors import NotReady

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


def find(
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
            from flotilla_devcluster.build import Build

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
