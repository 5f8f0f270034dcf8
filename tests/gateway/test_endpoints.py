"""Endpoints of models, and which of them gets a request, without sockets."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.gateway import endpoint_slice

from flotilla.gateway.endpoints import EndpointPool, EndpointRegistry, prefix_blocks, ready_addresses

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["text", "content", "x"]), inner),
)


def book(*ports: int) -> EndpointRegistry:
    found = EndpointRegistry()
    for port in ports:
        found.put(endpoint_slice("m", [port]))
    return found


def test_only_ready_endpoints_that_stay_are_taken() -> None:
    conditions: dict[str, Any] = {"ready": True}
    base = {"metadata": {"name": "s"}, "ports": [{"name": "http", "port": 8000}]}
    endpoints = [
        {"addresses": ["10.0.0.1"], "conditions": conditions},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": True, "terminating": True}},
        {"addresses": ["10.0.0.4"], "conditions": {}},
        {"addresses": ["10.0.0.5"]},
    ]
    found = ready_addresses({**base, "endpoints": endpoints})
    assert {address.host for address in found} == {"10.0.0.1", "10.0.0.4", "10.0.0.5"}
    assert not ready_addresses({**base, "ports": [{"name": "metrics", "port": 9}], "endpoints": endpoints})
    assert not ready_addresses({**base, "ports": None, "endpoints": None})


def test_a_thread_that_asks_for_a_pool_does_not_replace_one_that_was_made_meanwhile() -> None:
    class Late(dict[str, EndpointPool]):
        """What another thread sees that looked just before the pool was there."""

        def get(self, *_: object) -> None:  # type: ignore[override]
            return None

    found = book(1)
    found._pools = Late(found._pools)
    assert found.pool("m").endpoints
    assert found.pool("m") is found.pool("m")


def test_the_least_busy_endpoint_is_taken() -> None:
    pool = book(1, 2, 3).pool("m")
    for endpoint, busy in zip(pool.endpoints, (2, 0, 1), strict=True):
        endpoint.outstanding = busy
    assert pool.pick(0) is pool.endpoints[1]


def test_equally_busy_endpoints_take_turns() -> None:
    pool = book(1, 2, 3).pool("m")
    assert {id(pool.pick(0)) for _ in range(3)} == {id(endpoint) for endpoint in pool.endpoints}


@given(hashes=st.lists(st.integers(0, 2**32 - 1), min_size=200, max_size=200, unique=True))
def test_a_session_moves_only_when_its_endpoint_goes(hashes: list[int]) -> None:
    found = book(1, 2, 3, 4)
    pool = found.pool("m")
    before = {affinity: pool.pick(0, affinity=(affinity,)) for affinity in hashes}
    gone = pool.endpoints[0]
    found.remove(f"m-{gone.address.port}")
    for affinity, endpoint in before.items():
        assert endpoint is gone or pool.pick(0, affinity=(affinity,)) is endpoint


@given(busy=st.lists(st.integers(0, 50), min_size=2, max_size=6), affinity=st.integers(0, 2**32 - 1))
def test_affinity_never_overloads(busy: list[int], affinity: int) -> None:
    pool = book(*range(1, len(busy) + 1)).pool("m")
    for endpoint, outstanding in zip(pool.endpoints, busy, strict=True):
        endpoint.outstanding = outstanding
    chosen = pool.pick(0, affinity=(affinity,))
    assert chosen is not None
    assert chosen.outstanding <= 1.25 * (sum(busy) + 1) / len(busy) + 1


SYSTEM = "You sort support tickets by their queue. " * 20
FORMS: dict[str, dict[str, Any]] = {
    "a string": {"messages": [{"role": "system", "content": SYSTEM}]},
    "parts": {"messages": [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]},
    "a prompt": {"prompt": SYSTEM},
    "a list of prompts": {"prompt": [SYSTEM]},
    "tokens": {"prompt": list(range(3000))},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "description": SYSTEM}}], "messages": []},
}


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS.keys())
def test_prompts_that_begin_alike_go_to_one_endpoint_whatever_their_form(fields: dict[str, Any]) -> None:
    pool = book(1, 2, 3).pool("m")
    asked = [
        {**fields, "messages": [*fields.get("messages", []), {"role": "user", "content": f"{n}"}]} for n in range(9)
    ]
    asked = asked if "prompt" not in fields else [fields] * 9
    assert len({id(pool.pick(0, affinity=prefix_blocks(body, "small", None))) for body in asked}) == 1


def test_the_longest_known_beginning_decides_and_adapters_are_kept_apart() -> None:
    pool = book(1, 2).pool("m")
    turns = [{"role": "user", "content": f"{n} " * 200} for n in range(4)]
    short, long = ({"messages": turns[:1]}, {"messages": turns})
    first = pool.pick(0, affinity=prefix_blocks(short, "m", None))
    assert first is not None
    first.outstanding = 5
    other = pool.pick(0, affinity=prefix_blocks(long, "m", None))
    assert other is not first
    first.outstanding = 0
    assert pool.pick(0, affinity=prefix_blocks(long, "m", None)) is other
    assert set(prefix_blocks(long, "m", None)).isdisjoint(prefix_blocks(long, "adapter", None))


@given(fields=st.dictionaries(st.sampled_from(["messages", "prompt", "tools"]), JSON))
def test_the_beginning_of_any_body_is_bounded(fields: dict[str, Any]) -> None:
    assert len(prefix_blocks(fields, "m", None)) <= 129


def test_an_ejected_endpoint_is_left_out_until_all_are() -> None:
    pool = book(1, 2).pool("m")
    first, second = pool.endpoints
    first.breaker.failed(0, at_once=True)
    assert all(pool.pick(0.5) is second for _ in range(4))
    second.breaker.failed(0, at_once=True)
    assert pool.pick(0.5) is not None


def test_an_endpoint_that_stays_keeps_its_counts() -> None:
    found = book(1)
    (kept,) = found.pool("m").endpoints
    kept.outstanding = 3
    told: list[str] = []
    found.on_ready = told.append
    found.replace([endpoint_slice("m", [1]), endpoint_slice("m", [2])])
    assert kept in found.pool("m").endpoints
    assert told == ["m"]
    found.replace([])
    assert not found.pool("m").endpoints


def test_a_slice_that_changes_its_service_leaves_the_old_one() -> None:
    found = book(1)
    found.put({**endpoint_slice("other", [1]), "metadata": {"name": "m-1", "labels": {}}})
    assert not found.pool("m").endpoints
