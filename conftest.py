"""Fixtures of all tests. Each comes from a module under tests/support."""

import gc
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.support import lanes
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


# Several control planes of several workers share the cores: a thread for each core in each of their programs only spins
# (a tenth of their CPU). The first process is left as it is: it compiles them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["GOMAXPROCS"] = "1"

# Each worker reads every test: nothing of that is garbage, and walking it again and again takes a tenth of the time.
gc.disable()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> lanes.Lanes:
    """With several workers, tests that share something expensive run on one of them."""
    return lanes.Lanes(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long lanes start first; within a lane the order is random."""
    items.sort(key=lambda item: lanes.rank(item.nodeid))
    gc.freeze()
    gc.enable()
