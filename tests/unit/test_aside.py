"""Objects go past kopf: it gets their names, whatever the network does to the lines."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from flotilla.kube.aside import Aside, _Lines, response_class
from flotilla.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, Kind

PATH = DEPLOYMENT.path()


def deployment(version: int, uid: str = "u") -> dict[str, Any]:
    meta = {"name": "m", "namespace": "n", "uid": uid, "resourceVersion": str(version), "managedFields": [{}]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {"replicas": version}}


def event(type_: str, obj: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": type_, "object": obj})


def test_a_name_leads_back_to_its_object_once() -> None:
    aside = Aside(lambda *_: False)
    told = orjson.loads(aside.line(DEPLOYMENT, event("ADDED", deployment(7))))
    assert told["type"] == "ADDED"
    assert told["object"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "m", "namespace": "n", "uid": "u", "resourceVersion": "7"},
    }
    assert aside.take(told["object"]) == deployment(7)
    assert aside.take(told["object"]) == told["object"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"BOOKMARK","object":{"kind":"Deployment","metadata":{"resourceVersion":"9"}}}',
        b'{"type":"ERROR","object":{"kind":"Status","code":410}}',
    ],
)
def test_what_is_no_object_passes_as_it_is(line: bytes) -> None:
    assert Aside(lambda *_: True).line(DEPLOYMENT, line) == line


def test_what_the_store_has_is_not_announced_but_for_its_end() -> None:
    asked: list[Kind] = []

    def known(kind: Kind, obj: dict[str, Any]) -> bool:
        asked.append(kind)
        return bool(obj["metadata"]["resourceVersion"] == "7")

    aside = Aside(known)
    assert aside.line(DEPLOYMENT, event("MODIFIED", deployment(7))) == b""
    assert aside.line(DEPLOYMENT, event("MODIFIED", deployment(8))) != b""
    assert aside.line(DEPLOYMENT, event("DELETED", deployment(7))) != b""
    assert asked == [DEPLOYMENT, DEPLOYMENT]


def test_a_life_that_ended_leaves_nothing() -> None:
    aside = Aside(lambda *_: False)
    named = orjson.loads(aside.line(DEPLOYMENT, event("ADDED", deployment(7))))["object"]
    aside.clear()
    assert aside.take(named) == named


class Chunks:
    """A stream that comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"") + b"x"), max_size=8),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    ended=st.booleans(),
)
async def test_lines_stay_whole_wherever_they_are_cut(lines: list[bytes], cuts: list[int], ended: bool) -> None:
    body = b"\n".join(lines) + (b"\n" if lines and ended else b"")
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(edges)]
    seen: list[bytes] = []

    def change(line: bytes) -> bytes:
        seen.append(line)
        return line

    told = b"".join([data async for data in _Lines(Chunks(pieces), change).iter_chunked(10)])  # type: ignore[arg-type]
    assert [line for line in seen if line] == lines
    assert told.rstrip(b"\n") == b"\n".join(lines)


async def test_lists_and_watches_of_our_kinds_go_by_way_of_it_and_others_do_not() -> None:
    page = orjson.dumps({"kind": "DeploymentList", "metadata": {"resourceVersion": "9"}, "items": [deployment(7)]})

    async def answer(request: web.Request) -> web.Response:
        watched = "watch" in request.query
        return web.Response(
            body=event("ADDED", deployment(8)) + b"\n" if watched else page, content_type="application/json"
        )

    app = web.Application()
    for path in (PATH, MODEL_DEPLOYMENT.path()):
        app.router.add_get(path, answer)
    aside, heard = Aside(lambda *_: False), list[int]()
    made = response_class(aside, {PATH: DEPLOYMENT}, lambda: heard.append(1))
    async with TestServer(app) as server, aiohttp.ClientSession(response_class=made) as session:
        async with session.get(server.make_url(PATH)) as listed:
            (item,) = (await listed.json())["items"]
        assert "spec" not in item
        assert aside.take(item) == deployment(7)
        async with session.get(server.make_url(PATH), params={"watch": "true"}) as watched:
            (line,) = [chunk async for chunk in watched.content.iter_chunked(1000)]
        assert aside.take(orjson.loads(line)["object"]) == deployment(8)
        assert heard == [1]
        async with session.get(server.make_url(MODEL_DEPLOYMENT.path())) as other:
            assert (await other.json())["items"] == [deployment(7)]
