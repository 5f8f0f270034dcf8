"""Programs of Debian's archive, for the tests and the demo: Prometheus, Redis, Chromium.

Taken from the PATH where they are. Else their packages are unpacked into the cache, beside the control plane's
programs: that needs no root, starts no service and changes nothing on the machine. Chromium needs a hundred
libraries, so that it alone is installed, which only root can.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flotilla.errors import NotReady
from flotilla_devcluster.binaries import cache_directory

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


def find(program: str, *, environ: Mapping[str, str] = os.environ) -> Path:
    """The program's path; may download for a minute. Run it with `environment()`.

    Raises NotReady with the remedy where it is neither there nor to be had.
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


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
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
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotReady(f"{program} is not on the PATH and {' '.join(command[:3])} failed: {said[-1:]}. {remedy}")
