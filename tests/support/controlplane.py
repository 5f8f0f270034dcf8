"""Fixtures around one real control plane for the whole session.

A missing program is built before the first test (which takes minutes, outside of any test's time limit); what
cannot be built fails the tests that need it. Nothing is skipped.
"""

import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import pytest

from flotilla.errors import FlotillaError
from flotilla_devcluster import kubeconfig, programs
from flotilla_devcluster.controlplane import Cluster, ControlPlane

CRDS = Path(__file__).resolve().parents[2] / "crds"
_CLUSTERS = {"controlplane", "stack", "site"}
_FIXTURES = _CLUSTERS | {"kubectl", "helm"}


class Kubectl:
    """Runs kubectl as the administrator of a cluster."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self.program = program
        self.kubeconfig = kubeconfig

    def __call__(
        self, *arguments: str, namespace: str | None = None, stdin: str | None = None, timeout_s: float = 60
    ) -> str:
        """Standard output; a failure raises AssertionError with what kubectl said."""
        scope: Sequence[str] = ["--namespace", namespace] if namespace else []
        done = subprocess.run(
            [self.program, "--kubeconfig", self.kubeconfig, *scope, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)} failed: {done.stderr}"
        return done.stdout


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Before several workers start: one builds, for all of them, where it can be seen."""
    _provide(config, _FIXTURES)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing now, visibly, and not inside the time limit of the first test that needs it."""
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    worker = hasattr(session.config, "workerinput")
    if not worker and not session.config.option.collectonly and names & _FIXTURES:
        _provide(session.config, names)


def _provide(config: pytest.Config, names: Set[str]) -> None:
    plugins = config.pluginmanager
    capture, reporter = plugins.getplugin("capturemanager"), plugins.getplugin("terminalreporter")
    assert capture is not None
    assert reporter is not None
    try:
        with capture.global_and_fixture_disabled():
            if kubeconfig.existing() is None and names & _CLUSTERS:
                programs.find_control_plane()
            if "helm" in names:
                programs.find_helm()
            if "kubectl" in names:
                programs.find_kubectl()
    except FlotillaError as error:
        # The fixtures meet the same error and fail the tests that need them; the others can still run.
        reporter.write_line(str(error), red=True)


@pytest.fixture(scope="session")
def controlplane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd, apiserver, Flotilla's CRDs, controller-manager, scheduler; or the one of USE_EXISTING_CLUSTER.

    Shared by all tests: take the `namespace` fixture and leave cluster-wide objects as they are.
    """
    directory = tmp_path_factory.mktemp("controlplane")
    if (path := kubeconfig.existing(os.environ)) is not None:
        existing = Cluster(path, directory=directory)
        existing.apply_crds(CRDS)
        yield existing
        return
    with ControlPlane.start(directory=directory, crds=CRDS) as plane:
        yield plane


@pytest.fixture
def namespace(controlplane: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a fresh namespace, with its default ServiceAccount.

    It is deleted after the test in a cluster that stays; our own takes forty requests for each deletion, and ends.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{readable}-{uuid.uuid4().hex[:8]}"
    controlplane.create_namespace(name)
    yield name
    if not isinstance(controlplane, ControlPlane):
        controlplane.delete_namespace(name)


@pytest.fixture(scope="session")
def kubectl(controlplane: Cluster) -> Kubectl:
    """kubectl as the administrator: `kubectl("get", "pods", namespace=...)` returns its output."""
    return Kubectl(programs.find_kubectl(), controlplane.kubeconfig)
