"""Which tests share a worker where there are several (make test).

pytest-xdist 3.8 marks groups in a way that pytest 9.2 no longer reads, so its own `--dist loadgroup` groups nothing.
"""

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_NODES_1 = {"test_chaos", "test_engines", "test_gateway", "test_gitops", "test_reconcile"}
"""Half of the time of the tests on a whole cluster with simulated nodes, which the session shares."""
_OWN = {"test_chart", "test_command", "test_demo", "test_own"}
"""Modules whose tests start clusters of their own."""
_FIRST = ("nodes-1", "nodes-2", "own", "api", "chart")


def lane(nodeid: str) -> str:
    """The name that the tests of one worker share: that of their module, or of a group of modules.

    With more clusters at one time two cores starve. Those of `api` share a control plane, and those of `chart` a wheel.
    """
    module = PurePosixPath(nodeid.split("::", 1)[0])
    folder = module.parts[1]
    if folder in {"cluster", "controlplane"} and module.stem in _OWN:
        return "own"
    if folder == "cluster":
        return "nodes-1" if module.stem in _NODES_1 else "nodes-2"
    if folder in {"api", "controlplane"}:
        return "api"
    return "chart" if folder == "chart" else str(module)


def rank(nodeid: str) -> int:
    """The order of the lanes: the long ones start first."""
    name = lane(nodeid)
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a whole lane to a worker, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
