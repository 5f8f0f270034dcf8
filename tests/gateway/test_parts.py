"""Breaker, endpoints and relay without sockets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.gateway import endpoint_slice
from tests.support.hosted_answers import openai_chunks

from flotilla.api.routing_policy import Failure
from flotilla.gateway.endpoints import EndpointRegistry, ready_addresses
from flotilla.gateway.openai.responses import StreamRelay
from flotilla.gateway.resilience import (
    Breaker,
    BreakerSettings,
    BreakerState,
    EscalationRate,
    RetryBudget,
    TargetBreakers,
)

SETTINGS = BreakerSettings(failures=3, open_s=1, open_limit_s=4, trial_s=10)


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens: few requests reach what fails, and what has healed is found out in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.in_a_row, self.trial = Breaker(SETTINGS), 0.0, 0, False

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule(good=st.booleans())
    def request(self, good: bool) -> None:
        half_open = self.breaker.state(self.now) is BreakerState.HALF_OPEN
        self.breaker.started(self.now)
        if half_open:
            assert not self.breaker.allows(self.now)
        if good:
            self.breaker.succeeded()
            self.in_a_row = 0
            assert self.breaker.state(self.now) is BreakerState.CLOSED
        else:
            self.breaker.failed(self.now)
            self.in_a_row += 1
            if half_open or self.in_a_row >= SETTINGS.failures:
                assert self.breaker.state(self.now) is BreakerState.OPEN

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule()
    def client_leaves(self) -> None:
        self.breaker.started(self.now)
        self.breaker.release()
        assert self.breaker.allows(self.now)

    @invariant()
    def never_shut_for_longer_than_the_limit(self) -> None:
        assert self.breaker.allows(self.now + max(SETTINGS.open_limit_s, SETTINGS.trial_s))


TestBreaker = BreakerMachine.TestCase


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
    before = {affinity: pool.pick(0, affinity=affinity) for affinity in hashes}
    gone = pool.endpoints[0]
    found.remove(f"m-{gone.address.port}")
    for affinity, endpoint in before.items():
        assert endpoint is gone or pool.pick(0, affinity=affinity) is endpoint


@given(busy=st.lists(st.integers(0, 50), min_size=2, max_size=6), affinity=st.integers(0, 2**32 - 1))
def test_affinity_never_overloads(busy: list[int], affinity: int) -> None:
    pool = book(*range(1, len(busy) + 1)).pool("m")
    for endpoint, outstanding in zip(pool.endpoints, busy, strict=True):
        endpoint.outstanding = outstanding
    chosen = pool.pick(0, affinity=affinity)
    assert chosen is not None
    assert chosen.outstanding <= 1.25 * (sum(busy) + 1) / len(busy) + 1


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


def test_retries_are_earned() -> None:
    budget = RetryBudget()
    spent = sum(budget.spend() for _ in range(100))
    for _ in range(50):
        budget.earn()
    assert spent + sum(budget.spend() for _ in range(100)) <= 10 + 10


def test_the_share_of_escalations_forgets() -> None:
    rate = EscalationRate()
    for _ in range(200):
        rate.count(escalated=True)
    assert rate.percent == 100
    for _ in range(2000):
        rate.count(escalated=False)
    assert rate.percent < 5


class Sent:
    """What a client gets."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def relay(sent: Sent, *, strip: bool = True, logprobs: bool = False) -> StreamRelay:
    return StreamRelay(sent, on_start=lambda: None, strip_usage=strip, strip_logprobs=logprobs)  # type: ignore[arg-type]


@given(cuts=st.lists(st.integers(1, 400), max_size=30), line=st.sampled_from([b"\n", b"\r\n"]), strip=st.booleans())
def test_events_are_the_same_however_the_network_cut_them(cuts: list[int], line: bytes, strip: bool) -> None:
    whole = b"".join(openai_chunks("One two three", usage=True))
    data = whole.replace(b"\n", line)
    sent = Sent()
    relayed = relay(sent, strip=strip)
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        if piece:
            assert relayed.feed(piece) is None
            assert sent.data.endswith((b"\n\n", b"\r\n\r\n")) or not sent.data
    expected = [_read(block) for block in whole.split(b"\n\n") if block]
    got = [_read(block) for block in sent.data.replace(b"\r\n", b"\n").split(b"\n\n") if block]
    assert got == [item for item in expected if not strip or item == b"[DONE]" or item["choices"]]
    assert relayed.done
    assert relayed.usage is not None


def _read(block: bytes) -> Any:
    text = block.removeprefix(b"data: ")
    return text if text == b"[DONE]" else {k: v for k, v in json.loads(text).items() if k != "usage"}


def test_what_comes_after_done_is_dropped() -> None:
    sent = Sent()
    relayed = relay(sent)
    relayed.feed(b'data: {"choices": []}\n\ndata: [DONE]\n\ndata: {"more": 1}\n\n')
    relayed.feed(b"data: more\n\n")
    assert sent.data.endswith(b"data: [DONE]\n\n")


def test_a_text_that_says_done_is_no_end() -> None:
    relayed = relay(Sent())
    relayed.feed(b'data: {"choices": [{"delta": {"content": "data: [DONE]"}}]}\n\n')
    assert not relayed.done


def test_token_probabilities_of_a_stream_are_taken_out() -> None:
    sent = Sent()
    relay(sent, logprobs=True).feed(
        b'data: {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": []}}]}\n\n'
    )
    assert json.loads(sent.data[6:])["choices"][0]["logprobs"] is None


def test_an_event_without_end_is_refused() -> None:
    relayed = relay(Sent())
    wrong = None
    for _ in range(10):
        wrong = wrong or relayed.feed(b"x" * 2**20)
    assert wrong == "an event without an end"


@pytest.mark.parametrize("line", ["id: 7", "event: message", ": a comment", "retry: 10"])
def test_the_data_of_an_event_is_read_whatever_other_lines_it_has(line: str) -> None:
    sent = Sent()
    relayed = relay(sent)
    answer = {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    for data in (json.dumps(answer), json.dumps(usage), "[DONE]"):
        assert relayed.feed(f"{line}\ndata: {data}\n\n".encode()) is None
    assert relayed.usage is not None
    assert (relayed.usage.prompt_tokens, relayed.usage.completion_tokens) == (3, 2)
    assert relayed.done
    assert sent.data.decode() == (
        f'{line}\ndata: {{"choices":[{{"delta":{{"content":"a"}}}}]}}\n\n{line}\ndata: [DONE]\n\n'
    )


def test_an_error_event_before_the_first_chunk_is_no_answer_whatever_its_lines() -> None:
    for error in (b'event: error\ndata: {"error": {}}\n\n', b': hi\n\ndata: {"error": {}}\n\n'):
        sent = Sent()
        assert relay(sent).feed(error) == "an error instead of a stream"
        assert not sent.data


def test_a_stream_with_its_finish_reason_is_complete_without_done() -> None:
    for finish in (b'"finish_reason":"stop"', b'"finish_reason": "length"'):
        sent = Sent()
        relayed = relay(sent)
        relayed.feed(b'data: {"choices":[{"delta":{},' + finish + b"}]}\n\n")
        assert relayed.complete()
        assert sent.data.endswith(b"data: [DONE]\n\n")
    unfinished = relay(Sent())
    unfinished.feed(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n')
    assert not unfinished.complete()
    cut = relay(Sent())
    cut.feed(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: {"cho')
    assert not cut.complete()


def test_what_one_client_causes_never_closes_a_target_to_the_others() -> None:
    breakers = TargetBreakers()
    for _ in range(100):
        breakers.record("uid", "medium", Failure.SERVER_ERROR, 0, suspect="one")
        breakers.record("uid", "medium", Failure.SERVER_ERROR, 0, suspect="two")
    assert breakers.unavailable("uid", 0) == frozenset()


def test_what_several_clients_meet_closes_a_target_unless_one_got_an_answer() -> None:
    breakers = TargetBreakers()
    for number in range(20):
        breakers.record("uid", "answers", Failure.SERVER_ERROR, 0, suspect=str(number))
        if number % 2:
            breakers.record("uid", "answers", None, 0)
        breakers.record("uid", "fails", Failure.SERVER_ERROR, 0, suspect=str(number))
    assert breakers.unavailable("uid", 0) == {"fails"}


def test_a_target_rests_for_as_long_as_it_asks_within_five_minutes() -> None:
    breakers = TargetBreakers()
    breakers.rest("uid", "hosted", 37, 100)
    breakers.rest("uid", "absurd", 1e9, 100)
    assert breakers.unavailable("uid", 136) == {"hosted", "absurd"}
    assert breakers.unavailable("other", 136) == frozenset()
    assert breakers.unavailable("uid", 138) == {"absurd"}
    assert breakers.unavailable("uid", 401) == frozenset()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_open_times_double_up_to_a_limit(failures: int) -> None:
    breaker = Breaker(SETTINGS)
    now = 0.0
    breaker.failed(now, at_once=True)
    for _ in range(failures):
        wait = next(s / 10 for s in range(1000) if breaker.state(now + s / 10) is BreakerState.HALF_OPEN)
        now += wait
        breaker.started(now)
        breaker.failed(now)
    assert breaker.state(now + min(2**failures, 4) - 0.01) is BreakerState.OPEN
    assert breaker.state(now + min(2**failures, 4)) is BreakerState.HALF_OPEN
