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

_SHARING = {"api", "chart", "cluster", "controlplane"}
"""Folders whose modules share a control plane, or a wheel: each worker would make one for a test or two."""
_WITH_NODES = {"cluster", "controlplane"}
"""Folders whose tests take turns: several whole clusters at one time starve on two cores."""
_LONGEST = "test_chaos"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (make test): a module of these folders stays together, and the long ones start first."""
    ranks: dict[pytest.Item, int] = {}
    for item in items:
        folder, module = item.path.relative_to(Path(__file__).parent).parts[0], item.path.stem
        ranks[item] = 2
        if folder in _SHARING:
            group = "nodes" if folder in _WITH_NODES else f"{folder}/{module}"
            item.add_marker(pytest.mark.xdist_group(group))
            ranks[item] = 0 if module == _LONGEST else 1
    items.sort(key=ranks.__getitem__)
