"""Which tests share a worker where there are several (make test).

pytest-xdist 3.8 marks groups in a way that pytest 9.2 no longer reads, so its own `--dist loadgroup` groups nothing.
"""

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_NODES = {
    "test_chaos": "nodes-1",
    "test_reconcile": "nodes-1",
    "test_gitops": "nodes-1",
    "test_scaling": "nodes-2",
    "test_engines": "nodes-2",
    "test_gateway": "nodes-2",
}
"""Two thirds of the time of the tests on a whole cluster with simulated nodes, which those of a lane share."""
_OWN = {"test_chart", "test_command", "test_demo", "test_own"}
"""Modules whose tests start clusters of their own."""
_SDK = {
    "test_anthropic_inbound", "test_anthropic_inbound_properties", "test_anthropic_outbound",
    "test_anthropic_outbound_properties", "test_clients", "test_messages",
}  # fmt: skip
"""Modules whose tests load Anthropic's SDK."""
_FIRST = ("nodes-1", "nodes-2", "nodes-3", "own", "api", "chart", "sdk")


def lane(nodeid: str) -> str:
    """The name that the tests of one worker share: that of their module, or of a group of modules.

    With more clusters at one time two cores starve. Those of `api` share a control plane, those of `chart` a wheel, and
    those of `sdk` a library that takes a second to load.
    """
    module = PurePosixPath(nodeid.split("::", 1)[0])
    folder = module.parent.name
    if folder in {"cluster", "controlplane"} and module.stem in _OWN:
        return "own"
    if folder == "cluster":
        return _NODES.get(module.stem, "nodes-3")
    if folder in {"api", "controlplane"}:
        return "api"
    if module.stem in _SDK:
        return "sdk"
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
