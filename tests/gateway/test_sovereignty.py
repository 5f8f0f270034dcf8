"""Over real sockets, with random policies, requests and faults: nothing is sent outside of where the data may go."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.routing.test_decide_properties import bound
from tests.support.gateway import Running, chat_body, document_of, endpoint_slice, running_gateway
from tests.support.hosted import Garbage, HostedApi, Reset, Stream, Whole, fault
from tests.support.hosted_answers import chat, hosted_api, openai_chunks
from tests.support.routing import CLASSES, SOUND, TASKS, policies

from flotilla.api.routing_policy import Failure
from flotilla.gateway.attempt import ResponseSink
from flotilla.gateway.endpoints import BreakerSettings
from flotilla.gateway.http.client import Origin
from flotilla.routing.decide import Permit, SovereigntyBreach
from flotilla.routing.document import key_file
from flotilla.routing.request import Features

TARGETS = 5
REPLIES = st.sampled_from(
    [
        None,
        None,
        Reset(),
        Garbage(),
        fault(429),
        fault(500),
        fault(401),
        Whole(chat("")),
        Whole(chat("x", finish_reason="length")),
        Whole(b"no json"),
        Stream(openai_chunks("")),
        Stream(openai_chunks("a b c"), reset_after=0),
        Stream(openai_chunks("a b c"), reset_after=2),
    ]
)


class World:
    """Five places that answer, and one gateway whose document changes."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory()
        self.places: list[HostedApi] = []
        self.gw: Running

    async def start(self) -> None:
        for _ in range(TARGETS):
            self.places.append(await self.stack.enter_async_context(hosted_api()))
        empty = document_of()
        self.gw = await self.stack.enter_async_context(running_gateway(Path(self.folder.name), empty))

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def placed(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The policy with each target at a place of its own."""
        targets = []
        for index, target in enumerate(spec["targets"]):
            if "external" in target:
                external = {**target["external"], "baseURL": f"{self.places[index].url}/v1"}
                targets.append({**target, "external": external})
            else:
                targets.append({**target, "modelDeploymentRef": {"name": f"at-{index}"}})
        return {**spec, "targets": targets, "hold": {"maxWaitSeconds": 0}}

    async def set(self, spec: dict[str, Any], absent: frozenset[int], down: frozenset[int]) -> None:
        """The document, the endpoints that are there, and the targets whose breakers are open."""
        document = document_of(spec)
        folder = Path(self.folder.name)
        for secret in document.secrets:
            file = folder / "keys" / key_file(secret)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"key-of-{secret.name}-{secret.key}")
        self.gw.replace_document(document)
        gateway = self.gw.gateway
        gateway.config.load()
        ports = [place.port for index, place in enumerate(self.places) if index not in absent]
        owners = [index for index in range(TARGETS) if index not in absent]
        gateway.endpoints.replace(endpoint_slice(f"at-{i}", [port]) for i, port in zip(owners, ports, strict=True))
        gateway.state.breakers.keep(())
        for index in down:
            for _ in range(BreakerSettings().failures):
                now_s = gateway.state.loop.time()
                gateway.state.breakers.record(document.policies[0].uid, f"t{index}", Failure.SERVER_ERROR, now_s)
        for place in self.places:
            place.received.clear()
            place.forget_script()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    found = World()
    found.runner.run(found.start())
    yield found
    found.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=policies(), data=st.data())
def test_nothing_is_sent_outside_of_where_the_data_may_go(
    world: World, spec: dict[str, Any], data: st.DataObject
) -> None:
    indices = st.frozensets(st.integers(0, TARGETS - 1), max_size=2)
    said = data.draw(st.none() | st.sampled_from([*CLASSES, "no-such-class"]))
    client = data.draw(st.sampled_from([f"of-{c}" for c in CLASSES]))
    headers = {"authorization": f"Bearer key-of-clients-{client.removeprefix('of-')}"}
    headers |= {"x-data-class": said} if said else {}
    task = data.draw(st.none() | st.sampled_from(TASKS))
    headers |= {"x-flotilla-task": task} if task else {}
    body = chat_body("m", stream=data.draw(st.booleans()))
    placed = world.placed(spec)

    async def one() -> tuple[int, str | None]:
        await world.set(placed, data.draw(indices), data.draw(indices))
        for place in world.places:
            place.script(*[reply for reply in data.draw(st.lists(REPLIES, max_size=3)) if reply is not None])
        async with world.gw.session.post(
            world.gw.url + "/v1/chat/completions", data=json.dumps(body), headers=headers
        ) as answer:
            await answer.read()
            return answer.status, answer.headers.get("x-flotilla-route")

    status, route = world.runner.run(one())
    limit = bound(placed, Features(data_class=said, client=client))
    dialled = {f"t{index}" for index, place in enumerate(world.places) if place.received}
    assert dialled <= limit
    if not limit:
        assert status == 403
    if route is not None:
        attempts = int(route.partition("attempts=")[2].partition(";")[0])
        routes = [placed["defaultRoute"], *(rule["route"] for rule in placed["rules"])]
        assert attempts <= max(found["maxAttempts"] for found in routes)


async def test_what_dials_refuses_a_place_that_is_not_the_permitted_targets(tmp_path: Path) -> None:
    async with hosted_api() as place, running_gateway(tmp_path, document_of(SOUND)) as gw:
        policy = gw.document.policies[0]
        permit = Permit(policy.target["small"], frozenset({"small"}))
        shared = gw.gateway.state
        for origin in (
            Origin("qwen-medium", "127.0.0.1", place.port),
            Origin("qwen-small", "127.0.0.1", place.port, hosted=True),
        ):
            with pytest.raises(SovereigntyBreach):
                await shared.upstream.send(permit, origin, b"", ResponseSink(shared.loop, total_s=0))
        assert place.connections == 0
