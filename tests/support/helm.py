"""The real helm."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hack import manifests

from flotilla_devcluster import programs

Object = dict[str, Any]


class Helm:
    """Runs helm, and fails with what it says."""

    def __init__(self, program: Path, kubeconfig: Path | None = None) -> None:
        self.program = program
        self.kubeconfig = kubeconfig

    def __call__(self, *arguments: str | Path, timeout_s: float = 120) -> str:
        """Standard output; raises AssertionError with standard error."""
        access = ["--kubeconfig", str(self.kubeconfig)] if self.kubeconfig else []
        argv = [str(self.program), *map(str, arguments), *access]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def render(self, values: Mapping[str, Any] | None = None, *, chart: Path = manifests.CHART) -> list[Object]:
        """The release `flotilla` in flotilla-system; raises ValueError with helm's words."""
        return manifests.rendered(self.program, values or {}, chart)

    def text(self, values: Mapping[str, Any], *, chart: Path = manifests.CHART) -> str:
        """The same unparsed."""
        return manifests.rendered_text(self.program, values, chart)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Without a cluster."""
    return Helm(programs.find_helm())
