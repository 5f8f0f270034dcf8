"""Shadow copies: made after the answer, inside the data class, within their money, and without harm to any client."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.gateway import Running, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Whole, fault
from tests.support.hosted_answers import chat, hosted_api
from tests.support.routing import FACTS, HOSTED, SOUND, resource

from flotilla.api.preference import AgreementMethod
from flotilla.gateway.attempt import Complete, Outcome, TargetAnswer
from flotilla.gateway.http.message import Request
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.openai.requests import parse_body
from flotilla.gateway.record import Record
from flotilla.gateway.shadow import Shadow
from flotilla.routing.agreement import agree
from flotilla.routing.check import Problem, check
from flotilla.routing.decide import Attempt, Decision
from flotilla.routing.request import Operation, features_of

PUBLIC = {"x-data-class": "public"}


def spec(frontier: HostedApi, **shadow: Any) -> dict[str, Any]:
    """Everything to `small`; copies of all of it to the hosted model."""
    targets = [*SOUND["targets"][:2], {"name": "frontier", "external": {**HOSTED, "baseURL": f"{frontier.url}/v1"}}]
    copied = {"target": "frontier", "percent": 100, **shadow}
    return {
        **SOUND,
        "targets": targets,
        "rules": [],
        "defaultRoute": {"split": [{"target": "small"}], "shadow": copied},
    }


@asynccontextmanager
async def shadowing(directory: Path, **shadow: Any) -> AsyncIterator[tuple[Running, HostedApi, HostedApi]]:
    async with hosted_api() as small, hosted_api() as frontier:
        document = document_of(spec(frontier, **shadow))
        async with running_gateway(directory, document, engines={"qwen-small": [small]}) as gw:
            yield gw, small, frontier


async def outcomes(gw: Running) -> dict[str, float]:
    """Copies by outcome."""
    return {outcome: count for (outcome, *_), count in (await gw.counted("shadow_copies_total")).items()}


async def copied(gw: Running, expected: dict[str, float]) -> None:
    """Wait until the copies have these outcomes."""
    async with asyncio.timeout(10):
        while await outcomes(gw) != expected:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_is_asked_after_the_answer_and_billed_as_shadow(tmp_path: Path, stream: bool) -> None:
    async with shadowing(tmp_path, maxUSDPerDay="10") as (gw, _, frontier):
        if stream:
            assert (await gw.stream(headers=PUBLIC))[0] == 200
        else:
            assert (await gw.chat(headers=PUBLIC))[0] == 200
        await copied(gw, {"ok": 1})
        (sent,) = frontier.received
        assert sent.json["model"] == "big-1"
        assert not sent.json.get("stream")
        assert sent.headers["authorization"] == "Bearer key-of-provider-api-key"
        tokens = await gw.counted("tokens_total")
        assert {target for answer, target, _ in tokens if answer == "shadow"} == {"frontier"}
        assert {answer for answer, target, _ in tokens if target == "small"} == {"first"}
        cost = await gw.counted("cost_usd_total")
        assert set(cost) == {("shadow", "frontier")}
        # The attempts, breakers and answers that clients see know nothing of copies.
        assert {target for _, target in await gw.counted("upstream_attempts_total")} == {"small"}


async def test_answers_are_compared_and_the_result_is_a_metric(tmp_path: Path) -> None:
    async with shadowing(tmp_path, compare="Label", maxUSDPerDay="10") as (gw, small, frontier):
        small.script(Whole(chat("Billing")), Whole(chat("Billing")))
        frontier.script(Whole(chat(" billing. ")), Whole(chat("Refunds")))
        for number in range(2):
            await gw.chat(headers=PUBLIC)
            await copied(gw, {"ok": number + 1})
        agreement = await gw.counted("shadow_agreement_total")
        assert {result: count for (result, *_), count in agreement.items()} == {"agree": 1, "differ": 1}


async def test_no_byte_of_data_that_must_stay_is_copied_elsewhere(tmp_path: Path) -> None:
    async with shadowing(tmp_path) as (gw, _, frontier):
        for _ in range(5):
            assert (await gw.chat())[0] == 200
        assert await outcomes(gw) == {"class": 5}
        assert frontier.received == []


async def test_a_slow_shadow_delays_no_client_and_gets_no_more_than_its_share(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with shadowing(tmp_path, maxConcurrent=2, maxUSDPerDay="10") as (gw, _, frontier):
        frontier.script(*[Whole(chat("late"), gate=gate) for _ in range(2)])
        for _ in range(10):
            assert (await gw.chat(headers=PUBLIC))[0] == 200  # each is answered while the copies hang
        assert await outcomes(gw) == {"full": 8}
        gate.set()
        await copied(gw, {"full": 8, "ok": 2})


async def test_failures_of_copies_open_a_breaker_of_their_own(tmp_path: Path) -> None:
    async with shadowing(tmp_path, maxUSDPerDay="10") as (gw, _, frontier):
        frontier.script(*[fault(503) for _ in range(5)])
        for number in range(5):
            await gw.chat(headers=PUBLIC)
            await copied(gw, {"failed": number + 1})
        await gw.chat(headers=PUBLIC)
        assert await outcomes(gw) == {"failed": 5, "breaker": 1}
        setup = gw.gateway.config.current
        assert setup is not None
        assert gw.gateway.state.unavailable(setup.document.policies[0]) == frozenset()


async def test_copies_are_dropped_first_under_load(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with shadowing(tmp_path, maxConcurrent=100, maxUSDPerDay="10") as (gw, small, _):
        small.script(*[Whole(chat("late"), gate=gate) for _ in range(70)])
        waiting = [asyncio.create_task(gw.chat(headers=PUBLIC)) for _ in range(70)]
        await eventually(lambda: gw.gateway.server.in_flight >= 70)
        assert (await gw.chat(headers=PUBLIC))[0] == 200
        assert await outcomes(gw) == {"busy": 1}
        gate.set()
        assert {status for status, *_ in await asyncio.gather(*waiting)} == {200}
        await eventually(lambda: not gw.gateway.shadow.running)


async def test_failed_requests_and_embeddings_are_not_copied(tmp_path: Path) -> None:
    async with shadowing(tmp_path) as (gw, small, frontier):
        small.script(fault(400))
        assert (await gw.chat(headers=PUBLIC))[0] == 400
        assert (await gw.post({"model": "support", "input": "x"}, "/v1/embeddings", PUBLIC))[0] == 200
        assert await outcomes(gw) == {}
        assert frontier.received == []


class Untrue(Shadow):
    """Copies that take a random time and cost a random share of what they may at the most."""

    random: random.Random
    charged = Decimal(0)
    most = Decimal(0)
    """The highest sum that was ever charged or could still be."""

    async def _send(self, record: Record, decision: Decision, *arguments: Any) -> Outcome | None:
        body, answer = arguments[2], arguments[3]
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if self.random.random() < 0.2:
            return None
        usage = {
            "prompt_tokens": self.random.randrange(len(body.raw) + 1),
            "completion_tokens": self.random.randrange(body.fields["max_tokens"] + 1),
        }
        answer.fields = {"usage": usage}
        price = decision.policy.target["frontier"].price
        assert price is not None
        self.charged += (
            usage["prompt_tokens"] * Decimal(price.input_per_m_tok)
            + usage["completion_tokens"] * Decimal(price.output_per_m_tok)
        ) / 1_000_000
        self.most = max(self.most, self.charged)
        return Complete(200, b"{}")


async def test_the_days_money_is_never_exceeded_over_a_thousand_random_interleavings(tmp_path: Path) -> None:
    limit = Decimal("0.02")
    async with shadowing(tmp_path, maxUSDPerDay="0.02", maxConcurrent=256) as (gw, _, _):
        state = gw.gateway.state
        setup = state.config.current
        assert setup is not None
        policy = setup.document.policies[0]
        spent_something = dropped = 0
        for seed in range(1000):
            shadow = Untrue(state, LocalLimitStore(lambda: 1_800_000_000.0), lambda: 0)
            shadow.random = random.Random(seed)
            before = (await outcomes_of(gw)).get("budget", 0)
            for number in range(8):
                shadow.offer(answered(gw, policy, f"{seed}-{number}", shadow.random.randrange(1, 600)))
                if shadow.random.random() < 0.5:
                    await asyncio.sleep(0)
            while shadow.running:
                await asyncio.sleep(0)
            assert shadow.most <= limit
            spent_something += shadow.charged > 0
            dropped += (await outcomes_of(gw)).get("budget", 0) > before
        assert spent_something > 900
        assert dropped > 500


async def outcomes_of(gw: Running) -> dict[str, float]:
    """The same without a scrape."""
    return {labels[-1]: float(value) for labels, value in gw.gateway.state.metrics.copies.values.items()}


def answered(gw: Running, policy: Any, request_id: str, max_tokens: int) -> Record:
    """A request that has its answer."""
    setup = gw.gateway.config.current
    assert setup is not None
    body = b'{"model": "support", "max_tokens": %d, "messages": [{"role": "user", "content": "Hi"}]}' % max_tokens
    request: Any = object.__new__(Request)
    request.headers, request.peer = PUBLIC, "client"
    record = Record(request, request_id, Operation.CHAT)
    record.body = parse_body(body)
    record.features = features_of(record.body.fields, PUBLIC, policy, operation=Operation.CHAT, client=None)
    plan: Any = setup.served["support"].plan(record.features, request_id, frozenset())
    record.decision = plan.decision
    record.attempts.append(Attempt("small"))
    record.answer = TargetAnswer("small")
    record.outcome = "ok"
    return record


def test_a_hosted_shadow_needs_a_price() -> None:
    priceless = {**HOSTED}
    del priceless["price"]
    targets = [*SOUND["targets"][:2], {"name": "frontier", "external": priceless}]
    route = {"split": [{"target": "small"}], "shadow": {"target": "frontier", "percent": 1}}
    findings = check(resource({**SOUND, "targets": targets, "rules": [], "defaultRoute": route}).spec, FACTS)
    assert [finding.problem for finding in findings] == [Problem.SHADOW_WITHOUT_PRICE]


@pytest.mark.parametrize(
    ("method", "one", "other", "same"),
    [
        ("Exact", "yes", " yes\n", True),
        ("Exact", "yes", "Yes", False),
        ("Label", "Needs_Review", "**needs review.**", True),
        ("Label", "refund", "refunds", False),
        ("JSON", '{"a": 1, "b": [2]}', '```json\n{"b": [2], "a": 1}\n```', True),
        ("JSON", '{"a": 1}', '{"a": "1"}', False),
        ("JSON", "no", "no", False),
    ],
)
def test_what_counts_as_the_same_answer(method: str, one: str, other: str, same: bool) -> None:
    assert agree(AgreementMethod(method), one, other) is same


@given(one=st.text(), other=st.text(), method=st.sampled_from(list(AgreementMethod)))
def test_agreement_is_mutual(one: str, other: str, method: AgreementMethod) -> None:
    assert agree(method, one, other) == agree(method, other, one)
