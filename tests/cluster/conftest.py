"""One whole cluster for the session: control plane, simulated GPU nodes, the operator under its own role."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.hosted import HostedApi, Received, Whole
from tests.support.models import Models

from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.stack import Stack

ROOT = Path(__file__).parents[2]
FAST = {
    "scaling_interval_s": 0.5,
    "status_interval_s": 0.2,
    "resync_interval_s": 3600,
    "allow_private_hosted_addresses": True,  # the hosted APIs of tests are on this machine
    # Short, for the tests that kill the operator; long enough for a machine that stalls for some seconds.
    "leader_election": {"duration_s": 12, "renew_deadline_s": 10, "retry_s": 1},
}
NODES = AgentConfig(
    simulation={"FLOTILLA_SIM_LOAD_SECONDS": "0.2", "FLOTILLA_SIM_TOKENS_PER_SECOND": "4000"}, crash_backoff_s=0.5
)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running cluster."""
    directory = tmp_path_factory.mktemp("stack")
    with Stack.start(directory=directory, crds=ROOT / "crds", nodes=NODES, settings=FAST) as running:
        yield running


@pytest.fixture
def models(stack: Stack, namespace_of_stack: str) -> Models:
    """ModelDeployments and their children in a namespace of the test's own."""
    return Models(stack, namespace_of_stack)


@pytest.fixture
def namespace_of_stack(stack: Stack) -> Iterator[str]:
    """A fresh namespace in the session's cluster."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    stack.plane.create_namespace(name)
    yield name
    stack.plane.delete_namespace(name)


@pytest.fixture
def spec() -> dict[str, Any]:
    """The smallest ModelDeployment spec."""
    return {
        "model": {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"},
        "engine": {"name": "vllm"},
        "accelerator": {"class": "nvidia-l4"},
    }


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedApi]:
    """A hosted API that says who it is."""

    def answer(request: Received) -> Whole:
        message = {"role": "assistant", "content": "from the hosted model"}
        return Whole(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": request.json["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
            }
        )

    with in_thread() as run:
        api = HostedApi(answer)
        run(api.start)
        yield api
        run(api.stop)


@contextmanager
def in_thread() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """An event loop of its own, for what is asynchronous in tests that are not."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda start: asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
