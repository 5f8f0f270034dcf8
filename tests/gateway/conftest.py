"""The gateway's own event loop for its tests: uvloop's transports are not asyncio's."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """One loop: the product's."""
    return {"uvloop": uvloop.new_event_loop}
