"""Fixtures of all tests. Each comes from a module under tests/support."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.controlplane import (
    controlplane,
    kubectl,
    namespace,
    pytest_collection_finish,
    pytest_xdist_setupnodes,
)
from tests.support.helm import helm

__all__ = ["controlplane", "helm", "kubectl", "namespace", "pytest_collection_finish", "pytest_xdist_setupnodes"]

# A test fails for what the code does and not for how busy the machine is: no example has a time limit of its own.
settings.register_profile("flotilla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flotilla")

_FIRST_LANE = {"test_chaos", "test_engines", "test_monitoring", "test_scaling"}
"""Half of the time of the tests with simulated nodes."""


def _group(folder: str, module: str) -> str | None:
    """The tests that one worker of several runs, one after the other; None for a test that any worker may run.

    Tests with simulated nodes make two lanes, each on a cluster of its own: with more at one time two cores starve.
    The others of a group share a control plane, or a wheel, that each worker would make for a test or two.
    """
    if folder == "cluster":
        return "nodes-1" if module in _FIRST_LANE else "nodes-2"
    if folder == "controlplane":
        return "api" if module == "test_shared" else "nodes-2"
    return folder if folder in {"api", "chart"} else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (make test): groups stay together, and the long ones start first."""
    ranks: dict[pytest.Item, str] = {}
    for item in items:
        group = _group(item.path.relative_to(Path(__file__).parent).parts[0], item.path.stem)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
        ranks[item] = {"nodes-1": "0", "nodes-2": "1", None: "9"}.get(group, "2")
    items.sort(key=ranks.__getitem__)
