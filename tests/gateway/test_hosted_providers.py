"""What hosted providers refuse, count and charge: fields, refused escalations, bounds, service tiers, fallbacks."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, eventually, running_gateway, said
from tests.support.hosted import HostedApi, Received, Reply, Stream, Whole, fault
from tests.support.hosted_answers import answered, chat, event, hosted_api, openai_chunk, openai_chunks
from tests.support.routing import HOSTED, SOUND

from flotilla.gateway.limits.accounts import StoreAccounts
from flotilla.gateway.limits.local import LocalLimitStore

PUBLIC = {"x-data-class": "public"}
TASKS = [{"name": "classification", "description": "x"}, {"name": "drafting", "description": "y"}]
TO_FRONTIER = {"split": [{"target": "frontier"}]}
ESCALATES = {
    "split": [{"target": "small"}],
    "escalation": {"target": "frontier", "signals": ["EmptyAnswer"], "maxRatePercent": 100},
}


def strict(request: Received) -> Reply:
    """As OpenAI answers a reasoning model's request with fields of older models."""
    asked = request.json
    for name in ("max_tokens", "temperature", "top_k"):
        if name in asked:
            return fault(400, message=f"Unsupported parameter: '{name}' is not supported with this model.")
    return answered(request)


def mistral(request: Received) -> Reply:
    """As Mistral answers a field that it does not know."""
    if "stream_options" in request.json:
        detail = [
            {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
        ]
        return Whole({"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"}, 422)
    return Stream(openai_chunks("Hello there", usage=True))


@asynccontextmanager
async def serving(
    directory: Path,
    route: Mapping[str, Any],
    *,
    answer: Any = None,
    external: Mapping[str, Any] | None = None,
    capabilities: Mapping[str, Any] | None = None,
    **policy: Any,
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi, LocalLimitStore]]:
    """The gateway, the engine of `small` and `medium`, the hosted API, and the accounts."""
    store = LocalLimitStore()
    async with hosted_api() as engine, hosted_api(answer) as hosted:
        frontier: dict[str, Any] = {
            "name": "frontier",
            "external": {**HOSTED, "baseURL": f"{hosted.url}/v1", **(external or {})},
            "capabilities": capabilities or {},
        }
        spec = {**SOUND, "targets": [*SOUND["targets"][:2], frontier], "rules": [], "defaultRoute": route, **policy}
        engines = {"qwen-small": [engine], "qwen-medium": [engine]}
        accounts = StoreAccounts(store)
        async with running_gateway(directory, document_of(spec), engines=engines, accounts=accounts) as gw:
            yield gw, engine, hosted, store


async def test_an_escalation_reaches_a_reasoning_model_though_the_client_wrote_for_another(tmp_path: Path) -> None:
    async with serving(tmp_path, ESCALATES, answer=strict, external={"model": "gpt-5-mini"}) as (gw, engine, hosted, _):
        engine.script(Whole(chat("")))
        status, body, headers = await gw.chat(headers=PUBLIC, max_tokens=50, temperature=0)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello there")
        assert "escalated=frontier;reason=EmptyAnswer" in headers["x-flotilla-route"]
        assert headers["x-flotilla-dropped"] == "temperature"
        assert hosted.received[0].json["max_completion_tokens"] == 50
        assert engine.received[0].json["temperature"] == 0
        assert await gw.counted("dropped_fields_total") == {("temperature", "frontier"): 1}
        assert (await gw.counted("escalation_outcomes_total")) == {("answered", "default"): 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_escalation_is_an_outcome_of_its_own(tmp_path: Path, stream: bool) -> None:
    async with serving(tmp_path, ESCALATES, answer=lambda _: fault(400)) as (gw, engine, _, _):
        if stream:
            engine.script(Stream(openai_chunks("")))
            status, _, headers = await gw.stream(headers=PUBLIC)
        else:
            engine.script(Whole(chat("")))
            status, _, headers = await gw.chat(headers=PUBLIC)
        assert status == 200
        assert "target=small;attempts=2;escalated=frontier;refused=frontier" in headers["x-flotilla-route"]
        assert (await gw.counted("escalation_outcomes_total")) == {("refused", "default"): 1}


async def test_a_classifier_at_a_reasoning_model_works_and_one_that_is_refused_is_counted(tmp_path: Path) -> None:
    policy: dict[str, Any] = {"classifier": {"target": "frontier", "tasks": TASKS}, "rules": [SOUND["rules"][0]]}
    default = {"split": [{"target": "medium"}]}

    def classifying(request: Received) -> Reply:
        found = strict(request)
        return found if isinstance(found, Whole) and found.status >= 400 else Whole(chat("classification"))

    async with serving(tmp_path, default, answer=classifying, external={"model": "gpt-5-mini"}, **policy) as found:
        gw, _, hosted, _ = found
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "rule=classify" in headers["x-flotilla-route"]
        asked = hosted.received[0].json
        assert (asked["reasoning_effort"], asked["max_completion_tokens"]) == ("minimal", 512)
        hosted.script(fault(400))
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "rule=default" in headers["x-flotilla-route"]
        assert await gw.counted("classifications_total") == {("named",): 1, ("refused",): 1}


async def test_a_stream_of_mistral_is_asked_for_without_stream_options_and_paid(tmp_path: Path) -> None:
    external = {"provider": "Mistral", "model": "mistral-small-latest"}
    async with serving(tmp_path, TO_FRONTIER, answer=mistral, external=external) as (gw, _, hosted, _):
        status, chunks, _ = await gw.stream(headers=PUBLIC, seed=3)
        assert (status, said(chunks), chunks[-1]) == (200, "Hello there", "[DONE]")
        assert not any("usage" in chunk for chunk in chunks[:-1])
        assert hosted.received[0].json["random_seed"] == 3
        await gw.chat(headers=PUBLIC)
        tokens = await gw.counted("tokens_total")
        assert tokens[("first", "frontier", "output")] == 2


async def test_a_refusal_in_mistrals_form_reaches_the_client_with_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path, TO_FRONTIER, answer=mistral) as (gw, _, _, _):
        status, events, _ = await gw.stream(headers=PUBLIC)
        assert status == 422
        assert "Extra inputs are not permitted" in events[0]["error"]["message"]


async def test_groqs_usage_in_the_last_chunk_is_counted(tmp_path: Path) -> None:
    last = event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "x_groq": {"id": "r", "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}},
        }
    )
    chunks = [openai_chunk({"content": "Hello"}), last, b"data: [DONE]\n\n"]
    async with serving(tmp_path, TO_FRONTIER, external={"provider": "Groq"}) as (gw, _, hosted, _):
        hosted.script(Stream(chunks))
        await gw.stream(headers=PUBLIC)
        tokens = await gw.counted("tokens_total")
        assert tokens == {("first", "frontier", "input"): 11, ("first", "frontier", "output"): 4}


@pytest.mark.parametrize(
    ("able", "bound"), [({}, 4096), ({"maxOutputTokens": 9000}, 9000), ({"contextLength": 1001}, 1000)]
)
async def test_under_a_budget_what_is_reserved_is_sent_along_as_the_bound(
    tmp_path: Path, able: Mapping[str, int], bound: int
) -> None:
    limits = {"budgets": [{"name": "day", "amountUSD": "1000", "windowHours": 24}]}
    async with serving(tmp_path, TO_FRONTIER, capabilities=able, limits=limits) as (gw, _, hosted, store):
        gate = asyncio.Event()
        hosted.script(Whole(chat(), gate=gate))
        asking = asyncio.create_task(gw.chat(headers=PUBLIC))
        await hosted.until(lambda api: len(api.received) == 1)
        assert hosted.received[0].json["max_tokens"] == bound
        assert store.reserved_usd == (Decimal(3) + bound * Decimal(15)) / 1_000_000
        gate.set()
        await asking
        await eventually(lambda: store.reserved_usd == 0)
        await gw.chat(headers=PUBLIC, max_completion_tokens=7)
        assert "max_tokens" not in hosted.received[1].json


async def test_without_a_budget_no_bound_is_added(tmp_path: Path) -> None:
    async with serving(tmp_path, TO_FRONTIER) as (gw, _, hosted, _):
        await gw.chat(headers=PUBLIC)
        assert not {"max_tokens", "max_completion_tokens"} & set(hosted.received[0].json)


async def test_requests_at_once_never_exceed_a_budget_by_more_than_one_reservation(tmp_path: Path) -> None:
    def longest(request: Received) -> Reply:
        asked = request.json
        return Whole(chat(usage=(1, asked.get("max_completion_tokens") or asked["max_tokens"])))

    limits = {"budgets": [{"name": "day", "amountUSD": "1", "windowHours": 24}]}
    able = {"maxOutputTokens": 16_000}  # 0.24 dollars
    async with serving(tmp_path, TO_FRONTIER, answer=longest, capabilities=able, limits=limits) as (gw, _, hosted, _):
        found = await asyncio.gather(*(gw.chat(headers=PUBLIC) for _ in range(40)))
        assert sorted({status for status, _, _ in found}) == [200, 429]
        spent = await gw.counted("cost_usd_total")
        assert spent[("first", "frontier")] <= 1
        assert len(hosted.received) == 4


async def test_a_permitted_service_tier_is_sent_and_paid_at_its_price(tmp_path: Path) -> None:
    price = {**HOSTED["price"], "serviceTiers": [{"name": "priority", "percent": 200}]}
    async with serving(tmp_path, TO_FRONTIER, external={"price": price}) as (gw, _, hosted, _):
        hosted.script(Whole({**chat(usage=(1000, 100)), "service_tier": "priority"}))
        await gw.chat(headers=PUBLIC, service_tier="priority")
        assert hosted.received[0].json["service_tier"] == "priority"
        assert (await gw.counted("cost_usd_total"))[("first", "frontier")] == pytest.approx(0.009)
        _, _, headers = await gw.chat(headers=PUBLIC, service_tier="flex")
        assert "service_tier" not in hosted.received[1].json
        assert headers["x-flotilla-dropped"] == "service_tier"


TOO_LONG = [
    {"error": {"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"}},  # OpenAI
    {"error": {"message": "This model's maximum context length is 8192 tokens. However, you requested 9000."}},  # vLLM
    {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error",
        }
    },
    {"object": "error", "message": "The input (9000 tokens) is longer than the model's context length (8192 tokens)."},
    {"error": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}},  # Gemini
]


@pytest.mark.parametrize("refusal", TOO_LONG)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_too_long_for_its_target_goes_to_a_longer_one(
    tmp_path: Path, refusal: Mapping[str, Any], stream: bool
) -> None:
    route = {
        "split": [{"target": "small"}],
        "fallback": {"targets": ["medium", "frontier"], "on": ["ContextLength", "ContentFilter"]},
    }
    async with serving(tmp_path, route) as (gw, engine, hosted, _):
        engine.script(Whole(refusal, 400), Whole(refusal, 400))
        ask = gw.stream if stream else gw.chat
        status, _, headers = await ask(headers=PUBLIC)
        assert status == 200
        assert "target=frontier;attempts=3" in headers["x-flotilla-route"]
        assert (len(engine.received), len(hosted.received)) == (2, 1)
        counted = await gw.counted("fallbacks_total")
        assert counted == {("ContextLength", "small"): 1, ("ContextLength", "medium"): 1}


async def test_a_target_that_is_no_longer_than_the_one_that_failed_is_not_tried(tmp_path: Path) -> None:
    route = {
        "split": [{"target": "medium"}],
        "fallback": {"targets": ["small", "frontier"], "on": ["ContextLength"]},
    }
    async with serving(tmp_path, route) as (gw, engine, _, _):
        engine.script(Whole(TOO_LONG[0], 400))
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "target=frontier;attempts=2" in headers["x-flotilla-route"]


@pytest.mark.parametrize(
    "reply",
    [
        Whole({"error": {"message": "The response was filtered", "code": "content_filter"}}, 400),  # Azure
        Whole(chat("", finish_reason="content_filter")),
    ],
)
async def test_what_a_content_filter_stopped_goes_to_another_target(tmp_path: Path, reply: Whole) -> None:
    route = {"split": [{"target": "frontier"}], "fallback": {"targets": ["medium"], "on": ["ContentFilter"]}}
    async with serving(tmp_path, route) as (gw, _, hosted, _):
        hosted.script(reply)
        status, _, headers = await gw.chat(headers=PUBLIC)
        assert status == 200
        assert "target=medium;attempts=2" in headers["x-flotilla-route"]


async def test_without_such_a_fallback_the_client_gets_the_targets_own_refusal(tmp_path: Path) -> None:
    route = {"split": [{"target": "small"}], "fallback": {"targets": ["medium"]}}
    async with serving(tmp_path, route) as (gw, engine, _, _):
        engine.script(Whole(TOO_LONG[0], 400))
        status, body, _ = await gw.chat()
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert len(engine.received) == 1


async def test_a_refusal_does_not_open_a_breaker(tmp_path: Path) -> None:
    route = {"split": [{"target": "small"}], "fallback": {"targets": ["frontier"], "on": ["ContextLength"]}}
    async with serving(tmp_path, route) as (gw, engine, _, _):
        engine.script(*(Whole(TOO_LONG[0], 400) for _ in range(12)))
        for _ in range(12):
            await gw.chat(headers=PUBLIC)
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "target=small;attempts=1" in headers["x-flotilla-route"]


async def test_many_dropped_fields_make_no_long_header_and_no_series_of_a_clients_making(tmp_path: Path) -> None:
    unknown = {f"field-{n:04}" + "x" * 200: 1 for n in range(1000)}
    async with serving(tmp_path, TO_FRONTIER, external={"provider": "Mistral"}) as (gw, _, _, _):
        _, _, headers = await gw.chat(headers=PUBLIC, **unknown)
        assert len(headers["x-flotilla-dropped"]) < 1400
        assert headers["x-flotilla-dropped"].endswith("and 980 more")
        assert set(await gw.counted("dropped_fields_total")) == {("other", "frontier")}


@pytest.mark.parametrize(
    ("version", "base", "path"),
    [
        (None, "/openai/v1", "/openai/v1/chat/completions"),
        ("2024-10-21", "/openai", "/openai/deployments/prod-5/chat/completions?api-version=2024-10-21"),
    ],
)
async def test_azure_is_asked_as_its_own_client_asks(tmp_path: Path, version: str | None, base: str, path: str) -> None:
    """The path and the header are those of openai 3.57, AzureOpenAI."""
    external = {"provider": "AzureOpenAI", "model": "prod-5", "baseModel": "gpt-5-mini"}
    async with hosted_api() as azure:
        more = {"baseURL": azure.url + base, **({} if version is None else {"apiVersion": version})}
        async with serving(tmp_path, TO_FRONTIER, external={**external, **more}) as (gw, _, _, _):
            status, _, headers = await gw.chat(headers=PUBLIC, temperature=0.5)
            assert status == 200
            assert headers["x-flotilla-dropped"] == "temperature"
            (asked,) = azure.received
            assert (asked.path, asked.json["model"]) == (path, "prod-5")
            assert asked.headers["api-key"] == gw.secrets["provider"]
            assert "authorization" not in asked.headers


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/rerank", {"query": "x" * 40, "documents": ["y" * 400, {"text": "z" * 400}]}),
        ("/v1/score", {"text_1": "x" * 400, "text_2": ["y" * 400]}),
    ],
)
async def test_reranks_and_scores_are_routed_to_what_has_them(
    tmp_path: Path, path: str, fields: Mapping[str, Any]
) -> None:
    ranked = {
        "id": "r",
        "model": "m",
        "usage": {"total_tokens": 250},
        "results": [{"index": 0, "relevance_score": 0.9}],
    }
    route = {"split": [{"target": "frontier"}], "fallback": {"targets": ["medium"]}}
    async with serving(tmp_path, route, external={"provider": "Mistral"}) as (gw, engine, hosted, _):
        engine.script(Whole(ranked))
        status, body, headers = await gw.post({"model": "support", "stream": True, **fields}, path, PUBLIC)
        assert (status, body["results"]) == (200, ranked["results"])
        assert "target=medium;attempts=1" in headers["x-flotilla-route"]
        assert (engine.received[0].path, hosted.received) == (path, [])
        assert await gw.counted("tokens_total") == {("first", "medium", "input"): 250}
