"""Which tests share a worker where there are several (make test).

pytest-xdist 3.8 marks groups in a way that pytest 9.2 no longer reads, so its own `--dist loadgroup` groups nothing.
"""

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_FIRST_LANE = {"test_chaos", "test_engines", "test_monitoring", "test_scaling"}
"""Half of the time of the tests with simulated nodes."""


def lane(nodeid: str) -> str:
    """The name that the tests of one worker share: that of their module, or of a group of modules.

    Tests with simulated nodes make two lanes, each on a cluster of its own: with more at one time two cores starve.
    Those of `api` share a control plane, and those of `chart` a wheel.
    """
    module = PurePosixPath(nodeid.split("::", 1)[0])
    folder = module.parts[1]
    if folder == "cluster":
        return "nodes-1" if module.stem in _FIRST_LANE else "nodes-2"
    if folder == "controlplane":
        return "api" if module.stem == "test_shared" else "nodes-2"
    return folder if folder in {"api", "chart"} else str(module)


_FIRST = {"nodes-1": 0, "nodes-2": 1, "api": 2, "chart": 3}


def rank(nodeid: str) -> int:
    """The order of the lanes: the long ones start first."""
    return _FIRST.get(lane(nodeid), len(_FIRST))


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a whole lane to a worker, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
