"""The task of a request by a small model: what it decides, what it costs, and what it may do."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Received, Reply, Whole, fault
from tests.support.hosted_answers import answered, chat, hosted_api
from tests.support.routing import HOSTED, SOUND

from flotilla.gateway.limits.accounts import StoreAccounts
from flotilla.gateway.limits.local import LocalLimitStore

PUBLIC = {"x-data-class": "public"}
TASKS = [{"name": "classification", "description": "x"}, {"name": "drafting", "description": "y"}]


async def test_a_classifier_names_the_task(tmp_path: Path) -> None:
    def classifying(request: Received) -> Reply:
        asked = request.json
        return Whole(chat("classification")) if asked.get("max_tokens") == 16 else answered(request)

    policy = {**SOUND, "classifier": {"target": "medium", "tasks": TASKS}}
    async with hosted_api() as small, hosted_api(classifying) as medium:
        engines = {"qwen-small": [small], "qwen-medium": [medium]}
        async with running_gateway(tmp_path, document_of(policy), engines=engines) as gw:
            _, _, headers = await gw.chat()
            assert "rule=classify;target=small;attempts=1" in headers["x-flotilla-route"]
            _, _, headers = await gw.chat(headers={"x-flotilla-task": "drafting"})
            assert "rule=default;target=medium" in headers["x-flotilla-route"]
            medium.script(Whole(b"no json"))
            _, _, headers = await gw.chat()
            assert "rule=default;target=medium" in headers["x-flotilla-route"]


async def test_what_the_classifier_used_is_counted_apart_and_hosted_models_would_not_have_needed_it(
    tmp_path: Path,
) -> None:
    rule = {"name": "tasks", "match": {"tasks": ["classification"]}, "route": {"split": [{"target": "small"}]}}
    async with hosted_api() as small, hosted_api() as frontier:
        external = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{frontier.url}/v1"}}
        policy = {
            **SOUND,
            "targets": [*SOUND["targets"][:2], external],
            "rules": [rule],
            "classifier": {"target": "small", "tasks": TASKS},
        }
        async with running_gateway(tmp_path, document_of(policy), engines={"qwen-small": [small]}) as gw:
            small.script(Whole(chat("classification", usage=(100, 3))), Whole(chat("Hello", usage=(7, 2))))
            _, _, headers = await gw.chat()
            assert "rule=tasks;target=small;attempts=1" in headers["x-flotilla-route"]
            assert await gw.counted("tokens_total") == {
                ("classifier", "small", "input"): 100,
                ("classifier", "small", "output"): 3,
                ("first", "small", "input"): 7,
                ("first", "small", "output"): 2,
            }
            both = {("small", "other", "input"): 107, ("small", "other", "output"): 5}
            assert await gw.counted("team_tokens_total") == both
            would = await gw.counted("counterfactual_cost_usd_total")
            assert would == {("frontier",): pytest.approx((7 * 3 + 2 * 15) / 1e6)}


async def test_a_classifier_that_fails_again_and_again_is_asked_no_more(tmp_path: Path) -> None:
    policy = {**SOUND, "classifier": {"target": "small", "tasks": TASKS}}
    async with hosted_api(lambda _: fault(503)) as small, hosted_api() as medium:
        engines = {"qwen-small": [small], "qwen-medium": [medium]}
        async with running_gateway(tmp_path, document_of(policy), engines=engines) as gw:
            for _ in range(8):
                status, _, _ = await gw.chat()
                assert status == 200
            assert len(small.received) == 5  # what opens a target's breaker


@asynccontextmanager
async def hosted_classifier(
    directory: Path, limits: Mapping[str, Any], **route: Any
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi, LocalLimitStore]]:
    """A gateway that asks a hosted model for the task, and answers from the cluster unless `route` says other."""
    async with hosted_api() as hosted, hosted_api() as engine:
        external = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{hosted.url}/v1"}}
        policy = {
            **SOUND,
            "targets": [*SOUND["targets"][:2], external],
            "classifier": {"target": "frontier", "tasks": TASKS},
            "rules": [{**SOUND["rules"][0], "route": {"split": [{"target": "small"}]}}],
            "defaultRoute": {"split": [{"target": "medium"}], **route},
            "limits": limits,
        }
        store = LocalLimitStore()
        engines = {"qwen-small": [engine], "qwen-medium": [engine]}
        async with running_gateway(
            directory, document_of(policy), engines=engines, accounts=StoreAccounts(store)
        ) as gw:
            yield gw, hosted, engine, store


def budget(usd: str) -> dict[str, Any]:
    return {"budgets": [{"name": "month", "amountUSD": usd}]}


async def test_what_a_hosted_classifier_may_cost_is_reserved_and_then_paid(tmp_path: Path) -> None:
    async with hosted_classifier(tmp_path, budget("0.0047")) as (gw, hosted, engine, store):
        gate = asyncio.Event()
        # 0.0045 dollars at 3 and 15 dollars per million.
        hosted.script(Whole(chat("classification", usage=(1000, 100)), gate=gate))
        asking = asyncio.create_task(gw.chat(headers=PUBLIC))
        await hosted.until(lambda api: len(api.received) == 1)
        assert Decimal("0.00024") < store.reserved_usd < Decimal("0.0006")  # sixteen tokens, and the question
        gate.set()
        _, _, headers = await asking
        assert "rule=classify;target=small" in headers["x-flotilla-route"]
        await eventually(lambda: store.reserved_usd == 0)

        _, _, headers = await gw.chat(headers=PUBLIC)

        assert "rule=default;target=medium" in headers["x-flotilla-route"]
        assert (len(hosted.received), len(engine.received)) == (1, 2)


async def test_the_classifiers_cost_is_paid_once_beside_the_answers_own(tmp_path: Path) -> None:
    async with hosted_classifier(tmp_path, budget("0.01"), split=[{"target": "frontier"}]) as (gw, hosted, _, store):
        hosted.script(Whole(chat("other", usage=(500, 50))), Whole(chat(usage=(500, 50))))
        assert (await gw.chat(headers=PUBLIC, max_tokens=100))[0] == 200
        await eventually(lambda: store.reserved_usd == 0)
        # Two of 0.00225 dollars are spent. 0.0055 are left, of which the classifier's next question takes some.
        status, body, _ = await gw.chat(headers=PUBLIC, max_tokens=364)
        assert (status, body["error"]["code"]) == (429, "budget_exceeded")
        assert (await gw.chat(headers=PUBLIC, max_tokens=300))[0] == 200


async def test_a_refused_request_pays_for_the_classifiers_call_all_the_same(tmp_path: Path) -> None:
    async with hosted_classifier(tmp_path, budget("0.0047"), split=[{"target": "frontier"}]) as (gw, hosted, _, store):
        hosted.script(Whole(chat("other", usage=(1000, 100))))
        for asked in (1, 1):
            status, body, _ = await gw.chat(headers=PUBLIC, max_tokens=1000)
            assert (status, body["error"]["code"]) == (429, "budget_exceeded")
            assert len(hosted.received) == asked
        await eventually(lambda: store.reserved_usd == 0)


async def test_a_client_above_its_rate_makes_no_work_for_the_classifier(tmp_path: Path) -> None:
    limits = {"rates": [{"name": "fair", "requestsPerMinute": 1}]}
    async with hosted_classifier(tmp_path, limits) as (gw, hosted, _, _):
        statuses = [(await gw.chat(headers=PUBLIC))[0] for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert len(hosted.received) == 1
