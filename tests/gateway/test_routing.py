"""What a policy says is done: escalation, hold, affinity, classification, clients, hosted targets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.gateway import Running, chat_body, document_of, events, eventually, running_gateway, said
from tests.support.hosted import Hang, HostedApi, Stream, Whole, fault
from tests.support.hosted_answers import chat, hosted_api, hosted_api_over_tls, openai_chunks
from tests.support.routing import HOSTED, SOUND

PUBLIC = {"x-data-class": "public"}
HELLO = [{"role": "user", "content": "Hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def spec(frontier: HostedApi, *, provider: str = "OpenAI", **route: Any) -> dict[str, Any]:
    """Everything to `small`; `frontier` is a hosted model."""
    external = {**HOSTED, "provider": provider, "baseURL": f"{frontier.url}/v1"}
    targets = [*SOUND["targets"][:2], {"name": "frontier", "external": external}]
    return {**SOUND, "targets": targets, "rules": [], "defaultRoute": {"split": [{"target": "small"}], **route}}


def escalation(**more: Any) -> dict[str, Any]:
    signals = ["EmptyAnswer", "FinishReasonLength", "SchemaInvalid"]
    return {"escalation": {"target": "frontier", "signals": signals, "maxRatePercent": 100, **more}}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@asynccontextmanager
async def small_and_frontier(
    directory: Path, provider: str = "OpenAI", **route: Any
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi]]:
    """A gateway, the engine of `small`, and the hosted API."""
    async with hosted_api() as small, hosted_api() as frontier:
        document = document_of(spec(frontier, provider=provider, **route))
        async with running_gateway(directory, document, engines={"qwen-small": [small]}) as gw:
            yield gw, small, frontier


@pytest.mark.parametrize("provider", ["OpenAI", "Anthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_answer_is_asked_again_of_the_better_model(tmp_path: Path, provider: str, stream: bool) -> None:
    async with small_and_frontier(tmp_path, provider, **escalation()) as (gw, small, frontier):
        if stream:
            small.script(Stream(openai_chunks("")))
            status, chunks, headers = await gw.stream(headers=PUBLIC)
            assert said(chunks) == "Hello there"
            assert chunks[-1] == "[DONE]"
        else:
            small.script(Whole(chat("")))
            status, body, headers = await gw.chat(headers=PUBLIC)
            assert body["choices"][0]["message"]["content"] == "Hello there"
        assert status == 200
        assert "target=frontier;attempts=2;escalated=frontier;reason=EmptyAnswer" in headers["x-flotilla-route"]
        (sent,) = frontier.received
        assert sent.path == ("/v1/messages" if provider == "Anthropic" else "/v1/chat/completions")
        assert "key-of-provider-api-key" in sent.headers["authorization"]


@pytest.mark.parametrize("stream", [False, True])
async def test_data_that_must_stay_is_not_asked_again_elsewhere(tmp_path: Path, stream: bool) -> None:
    async with small_and_frontier(tmp_path, **escalation()) as (gw, small, frontier):
        small.script(Stream(openai_chunks("")) if stream else Whole(chat("")))
        status, _, headers = await (gw.stream() if stream else gw.chat())
        assert status == 200
        assert "target=small;attempts=1;class=sovereign" in headers["x-flotilla-route"]
        assert not frontier.received


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_answer_is_given_when_the_better_model_fails(tmp_path: Path, stream: bool) -> None:
    async with small_and_frontier(tmp_path, **escalation()) as (gw, small, frontier):
        cut = {"finish_reason": "length"}
        frontier.script(fault(500))
        if stream:
            small.script(Stream(openai_chunks("Half an", **cut)))  # type: ignore[arg-type]
            status, chunks, headers = await gw.stream(headers=PUBLIC)
            assert said(chunks) == "Half an"
            assert chunks[-1] == "[DONE]"
        else:
            small.script(Whole(chat("Half an", **cut)))  # type: ignore[arg-type]
            status, body, headers = await gw.chat(headers=PUBLIC)
            assert body["choices"][0]["message"]["content"] == "Half an"
        assert status == 200
        assert "target=small;attempts=2;escalated=frontier;reason=FinishReasonLength" in headers["x-flotilla-route"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rule_may_rather_fail_than_give_a_bad_answer(tmp_path: Path, stream: bool) -> None:
    async with small_and_frontier(tmp_path, **escalation(onExhausted="Fail")) as (gw, small, frontier):
        bad = Stream(openai_chunks("")) if stream else Whole(chat(""))
        small.script(bad)
        frontier.script(bad)
        status, answer, _ = await (gw.stream(headers=PUBLIC) if stream else gw.chat(headers=PUBLIC))
        error: Any = answer[0] if isinstance(answer, list) else answer
        assert (status, error["error"]["code"]) == (502, "answer_rejected")


async def test_the_better_model_has_a_time_of_its_own(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path, **escalation(maxAddedLatencySeconds=1)) as (gw, small, frontier):
        small.script(Whole(chat("")))
        frontier.script(Hang())
        status, body, _ = await gw.chat(headers=PUBLIC)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "")


async def test_escalations_are_a_share_of_the_requests(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path, **escalation(maxRatePercent=25)) as (gw, small, frontier):
        small.script(*[Whole(chat(""))] * 20)
        for _ in range(20):
            assert (await gw.chat(headers=PUBLIC))[0] == 200
        assert len(frontier.received) == 5


async def test_a_long_stream_is_passed_on_and_not_judged(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path, **escalation(maxBufferedTokens=2)) as (gw, small, frontier):
        gate = asyncio.Event()
        chunks = openai_chunks("a b c d e f", finish_reason="length")
        small.script(Stream(chunks, gate=gate, gate_after=len(chunks) - 2))
        running = asyncio.create_task(gw.stream(headers=PUBLIC))
        await small.until(lambda api: len(api.received) == 1)
        gate.set()
        _, got, headers = await running
        assert said(got) == "a b c d e f"
        assert "target=small;attempts=1" in headers["x-flotilla-route"]
        assert not frontier.received


async def test_token_probabilities_are_asked_for_judged_and_taken_out(tmp_path: Path) -> None:
    points = [{"marginPermille": 0, "errorPermille": 900}, {"marginPermille": 1000, "errorPermille": 10}]
    confidence = {"escalateAboveErrorPermille": 500, "calibration": points}
    wanted = {"target": "frontier", "confidence": confidence, "maxRatePercent": 100}
    async with small_and_frontier(tmp_path, escalation=wanted) as (gw, small, frontier):
        doubtful = [{"token": "a", "logprob": -0.69, "top_logprobs": [{"logprob": -0.69}, {"logprob": -0.70}]}]
        small.script(Whole(chat("a", logprobs={"content": doubtful})))
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "escalated=frontier;reason=LowConfidence" in headers["x-flotilla-route"]
        assert small.received[0].json["top_logprobs"] == 2
        assert "logprobs" not in frontier.received[0].json
        sure = [{"token": "a", "logprob": -0.01, "top_logprobs": [{"logprob": -0.01}, {"logprob": -9.0}]}]
        small.script(Whole(chat("a", logprobs={"content": sure})))
        _, body, headers = await gw.chat(headers=PUBLIC)
        assert "target=small;attempts=1" in headers["x-flotilla-route"]
        assert body["choices"][0]["logprobs"] is None


async def test_a_hosted_target_never_sees_the_clients_key(tmp_path: Path) -> None:
    async with hosted_api() as frontier:
        document = document_of({**spec(frontier), "defaultRoute": {"split": [{"target": "frontier"}]}})
        async with running_gateway(tmp_path, document) as gw:
            status, _, _ = await gw.chat(headers={**PUBLIC, "authorization": "Bearer mine", "x-request-id": "mine"})
            assert status == 200
            sent = frontier.received[0]
            assert sent.headers["authorization"] == "Bearer key-of-provider-api-key"
            assert "mine" not in str(sent.headers)
            assert sent.json["model"] == "big-1"


async def test_the_hosted_key_never_reaches_an_engine(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        await gw.chat(headers={**PUBLIC, "authorization": "Bearer mine"})
        assert "authorization" not in small.received[0].headers


async def test_a_missing_key_is_a_failure_that_is_followed(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        route = {"split": [{"target": "frontier"}], "fallback": {"targets": ["small"]}}
        document = document_of({**spec(frontier), "defaultRoute": route})
        async with running_gateway(tmp_path, document, engines={"qwen-small": [small]}) as gw:
            for file in (tmp_path / "keys").rglob("key"):
                file.unlink()
            gw.gateway.config.load()
            _, _, headers = await gw.chat(headers=PUBLIC)
            assert "target=small;attempts=2" in headers["x-flotilla-route"]
            assert not frontier.received


async def test_hosted_targets_are_verified_by_name(tmp_path: Path) -> None:
    import ssl

    async with hosted_api_over_tls(tmp_path) as (frontier, trust):
        for host, expected in (("localhost", 200), ("127.0.0.2", 502)):
            external = {**HOSTED, "baseURL": f"https://{host}:{frontier.port}/v1"}
            targets = [*SOUND["targets"][:2], {"name": "frontier", "external": external}]
            route = {"split": [{"target": "frontier"}]}
            document = document_of({**SOUND, "targets": targets, "rules": [], "defaultRoute": route})
            folder = tmp_path / host
            folder.mkdir()
            tls = ssl.create_default_context(cafile=str(trust))
            async with running_gateway(folder, document, tls=tls) as gw:
                assert (await gw.chat(headers=PUBLIC))[0] == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_name_that_leads_inside_is_not_dialled(tmp_path: Path, host: str) -> None:
    async with hosted_api() as frontier:
        external = {**HOSTED, "baseURL": f"http://{host}:{frontier.port}/v1"}
        targets = [*SOUND["targets"][:2], {"name": "frontier", "external": external}]
        route = {"split": [{"target": "frontier"}]}
        document = document_of({**SOUND, "targets": targets, "rules": [], "defaultRoute": route}, private=False)
        async with running_gateway(tmp_path, document) as gw:
            status, body, _ = await gw.chat(headers=PUBLIC)
            assert (status, body["error"]["code"]) == (502, "upstream_unreachable")
            assert frontier.connections == 0


# a model at zero


async def test_a_request_waits_for_the_first_replica(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        running = asyncio.create_task(gw.chat())
        await eventually(lambda: gw.gateway.state.pending.count("qwen-small") == 1)
        assert gw.gateway.state.demand()["qwen-small",] == 1
        assert 'flotilla_gateway_demand_requests{modeldeployment="qwen-small"} 1.0' in (await gw.admin("/metrics"))[1]
        gw.serve("qwen-small", [small])
        assert (await running)[0] == 200
        assert gw.gateway.state.demand()["qwen-small",] == 0


@pytest.mark.parametrize(
    ("hold", "why"), [({"maxWaitSeconds": 1}, "none became ready within"), ({"maxWaitSeconds": 0}, "too many"),
                      ({"maxBytes": 1024}, "too many")]
)  # fmt: skip
async def test_waiting_is_bounded_in_time_and_bytes(tmp_path: Path, hold: dict[str, int], why: str) -> None:
    async with hosted_api() as frontier:
        document = document_of({**spec(frontier), "hold": hold})
        async with running_gateway(tmp_path, document) as gw:
            status, body, headers = await gw.chat(text="x" * 2000)
            assert (status, body["error"]["code"]) == (503, "no_capacity")
            assert why in body["error"]["message"]
            assert int(headers["retry-after"]) > 0


async def test_waiting_is_bounded_in_number(tmp_path: Path) -> None:
    async with hosted_api() as frontier:
        document = document_of({**spec(frontier), "hold": {"maxRequests": 2, "maxWaitSeconds": 1}})
        async with running_gateway(tmp_path, document) as gw:
            answers = await asyncio.gather(*(gw.chat() for _ in range(5)))
            messages = [body["error"]["message"] for _, body, _ in answers]
            assert sum("too many" in message for message in messages) == 3


async def test_those_that_waited_are_let_go_in_order_and_not_at_once(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        pending = gw.gateway.state.pending
        running = []
        for number in range(10):
            running.append(asyncio.create_task(gw.chat(user=str(number))))
            await eventually(lambda: pending.count("qwen-small") == len(running))
        loop = asyncio.get_running_loop()
        started = loop.time()
        gw.serve("qwen-small", [small])
        assert [answer[0] for answer in await asyncio.gather(*running)] == [200] * 10
        assert loop.time() - started >= 9 / 50
        assert [received.json["user"] for received in small.received] == [str(number) for number in range(10)]


async def test_a_client_that_leaves_waits_no_longer(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        running = asyncio.create_task(gw.chat())
        pending = gw.gateway.state.pending
        await eventually(lambda: pending.count("qwen-small") == 1)
        running.cancel()
        await eventually(lambda: pending.count("qwen-small") == 0)
        await eventually(lambda: gw.gateway.server.in_flight == 0)
        assert set(await gw.counted("requests_total")) == {("sovereign", "cancelled", "default", "small")}
        # Nothing of it is left: who comes next, waits alone and is served.
        following = asyncio.create_task(gw.chat())
        await eventually(lambda: pending.count("qwen-small") == 1)
        gw.serve("qwen-small", [small])
        assert (await following)[0] == 200
        assert len(small.received) == 1


@asynccontextmanager
async def held_stream(
    directory: Path, headers: Mapping[str, str] = {}, **route: Any
) -> AsyncIterator[tuple[Running, HostedApi, aiohttp.ClientResponse]]:
    """A streamed request to a model at zero, after two signs of life."""
    async with small_and_frontier(directory, **route) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        gw.gateway.state.pending.heartbeat_s = 0.01
        body = chat_body(stream=True)
        async with gw.session.post(gw.url + "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200
            for _ in range(2):
                assert await answer.content.readuntil(b"\n\n") == b": waiting for a replica\n\n"
            assert "target=small;attempts=1" in answer.headers["x-flotilla-route"]
            yield gw, small, answer


async def whole_stream(answer: aiohttp.ClientResponse) -> list[Any]:
    return events((await answer.read()).decode())


async def test_a_held_stream_shows_signs_of_life_and_then_the_answer(tmp_path: Path) -> None:
    async with held_stream(tmp_path) as (gw, small, answer):
        gw.serve("qwen-small", [small])
        chunks = await whole_stream(answer)
        assert (said(chunks), chunks[-1]) == ("Hello there", "[DONE]")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (fault(500), "upstream_error"),
        (Whole(b'{\n  "error": {\n    "message": "no", "code": "its_own"\n  }\n}', 400), "its_own"),
    ],
)
async def test_after_a_sign_of_life_a_failure_is_told_in_the_stream(tmp_path: Path, reply: Whole, code: str) -> None:
    async with held_stream(tmp_path) as (gw, small, answer):
        small.script(reply)
        gw.serve("qwen-small", [small])
        (told,) = await whole_stream(answer)  # and no [DONE]
        assert told["error"]["code"] == code


async def test_a_held_stream_that_gets_no_replica_is_told_so_in_the_stream(tmp_path: Path) -> None:
    async with held_stream(tmp_path, timeouts={"totalSeconds": 1}) as (_, _, answer):
        (told,) = await whole_stream(answer)
        assert told["error"]["code"] == "no_capacity"


async def test_an_answer_after_signs_of_life_is_still_judged(tmp_path: Path) -> None:
    async with held_stream(tmp_path, PUBLIC, **escalation()) as (gw, small, answer):
        small.script(Stream(openai_chunks("")))
        gw.serve("qwen-small", [small])
        assert said(await whole_stream(answer)) == "Hello there"
        assert ("default", "EmptyAnswer") in await gw.counted("escalations_total")


@pytest.mark.parametrize("stream", [False, True])
async def test_where_another_target_may_follow_or_nothing_is_streamed_the_status_waits_for_the_answer(
    tmp_path: Path, stream: bool
) -> None:
    route: Any = {"fallback": {"targets": ["frontier"], "on": ["ServerError"]}} if stream else {}
    async with small_and_frontier(tmp_path, **route) as (gw, small, _):
        gw.gateway.endpoints.replace([])
        gw.gateway.state.pending.heartbeat_s = 0
        running = asyncio.create_task(gw.stream(headers=PUBLIC) if stream else gw.chat())
        await eventually(lambda: gw.gateway.state.pending.count("qwen-small") == 1)
        for _ in range(20):  # a sign of life would come in the next turn of the loop
            await asyncio.sleep(0)
        small.script(fault(429))
        gw.serve("qwen-small", [small])
        assert (await running)[0] == 429


async def test_elsewhere_rather_than_waiting_where_the_rule_says_so(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path, fallback={"targets": ["frontier"]}) as (gw, _, _):
        gw.gateway.endpoints.replace([])
        _, _, headers = await gw.chat(headers=PUBLIC)
        assert "target=frontier;attempts=2" in headers["x-flotilla-route"]
        assert gw.gateway.state.demand()["qwen-small",] == 1


async def test_data_that_must_stay_waits_although_the_rule_names_a_hosted_fallback(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path, fallback={"targets": ["frontier"]}) as (gw, small, frontier):
        gw.gateway.endpoints.replace([])
        running = asyncio.create_task(gw.chat())
        await eventually(lambda: gw.gateway.state.pending.count("qwen-small") == 1)
        gw.serve("qwen-small", [small])
        assert (await running)[0] == 200
        assert not frontier.received


# which replica


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}),
        ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": [IMAGE, part(text)]}]}),
        ("/v1/completions", lambda text: {"prompt": text}),
        ("/v1/completions", lambda text: {"prompt": [text]}),
        ("/v1/messages", lambda text: {"max_tokens": 5, "system": [part(text)], "messages": HELLO}),
    ],
    ids=["string", "parts", "prompt", "prompts", "system blocks"],
)
async def test_requests_with_one_beginning_go_to_one_replica(
    tmp_path: Path, path: str, body: Callable[[str], dict[str, Any]]
) -> None:
    async with (
        hosted_api() as one,
        hosted_api() as other,
        running_gateway(tmp_path, document_of(SOUND), engines={"qwen-medium": [one, other]}) as gw,
    ):
        for number in range(8):
            for api in (one, other):
                api.received.clear()
            for _ in range(4):
                assert (await gw.post({"model": "support", **body(f"{number} " * 600)}, path))[0] == 200
            assert sorted(len(api.received) for api in (one, other)) == [0, 4]


async def test_a_session_stays_on_its_replica(tmp_path: Path) -> None:
    async with hosted_api() as one, hosted_api() as two, hosted_api() as frontier:
        document = document_of(spec(frontier))
        async with running_gateway(tmp_path, document, engines={"qwen-small": [one, two]}) as gw:
            # Where a session goes follows from the ports: with few, all would go to one now and then.
            for session in range(32):
                before = (len(one.received), len(two.received))
                for _ in range(4):
                    await gw.chat(headers={"x-session-id": str(session)})
                after = (len(one.received), len(two.received))
                assert sorted((after[0] - before[0], after[1] - before[1])) == [0, 4]
            assert one.received
            assert two.received


async def test_a_busy_replica_is_left_to_those_it_has(tmp_path: Path) -> None:
    async with hosted_api() as one, hosted_api() as two, hosted_api() as frontier:
        document = document_of(spec(frontier))
        gate = asyncio.Event()
        one.script(*[Whole(chat(), gate=gate) for _ in range(20)])
        two.script(*[Whole(chat(), gate=gate) for _ in range(20)])
        async with running_gateway(tmp_path, document, engines={"qwen-small": [one, two]}) as gw:
            running = [asyncio.create_task(gw.chat(headers={"x-session-id": "same"})) for _ in range(20)]
            await eventually(lambda: len(one.received) + len(two.received) == 20)
            assert min(len(one.received), len(two.received)) >= 7
            gate.set()
            await asyncio.gather(*running)


# who asks, and what


async def test_a_policy_with_clients_serves_only_them(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        clients = [{"name": "app", "secretRef": {"name": "app", "key": "key"}, "dataClass": "public"}]
        document = document_of({**spec(frontier), "clients": clients})
        async with running_gateway(tmp_path, document, engines={"qwen-small": [small]}) as gw:
            for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
                status, body, _ = await gw.chat(headers=shown)
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                async with gw.session.get(gw.url + "/v1/models", headers=shown) as answer:
                    assert (await answer.json())["data"] == []
            mine = {"authorization": "Bearer key-of-app-key"}
            status, _, headers = await gw.chat(headers=mine)
            assert status == 200
            assert "class=public" in headers["x-flotilla-route"]
            async with gw.session.get(gw.url + "/v1/models/support", headers=mine) as answer:
                assert (await answer.json())["id"] == "support"


@pytest.mark.parametrize("asked", [False, True])
async def test_usage_is_told_only_to_those_who_ask(tmp_path: Path, asked: bool) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
        _, chunks, _ = await gw.stream(**options)
        assert any(chunk.get("usage") for chunk in chunks[:-1]) == asked
        assert ("first", "small", "input") in await gw.counted("tokens_total")


async def test_embeddings_and_completions_are_served(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, small, _):
        status, body, _ = await gw.post({"model": "support", "input": ["a", "b"]}, "/v1/embeddings")
        assert (status, len(body["data"])) == (200, 2)
        status, body, _ = await gw.post({"model": "support", "prompt": "a"}, "/v1/completions")
        assert (status, body["object"]) == (200, "text_completion")
        assert [received.path for received in small.received] == ["/v1/embeddings", "/v1/completions"]


async def test_an_answer_that_was_replaced_is_counted_as_such_and_hosted_models_would_have_given_one(
    tmp_path: Path,
) -> None:
    async with small_and_frontier(tmp_path, **escalation()) as (gw, small, _):
        small.script(Whole(chat("", usage=(1000, 0))))
        await gw.chat(headers=PUBLIC)
        await gw.chat(headers=PUBLIC)
        tokens = await gw.counted("tokens_total")
        assert tokens["replaced", "small", "input"] == 1000
        assert tokens["first", "small", "output"] == tokens["escalation", "frontier", "output"] == 2
        assert ("first", "frontier", "output") not in tokens
        escalated = pytest.approx((7 * 3 + 2 * 15) / 1e6)
        assert await gw.counted("cost_usd_total") == {("escalation", "frontier"): escalated}
        would = await gw.counted("counterfactual_cost_usd_total")
        assert would == {("frontier",): pytest.approx(2 * (7 * 3 + 2 * 15) / 1e6)}


async def test_cached_input_is_counted_apart(tmp_path: Path) -> None:
    answer = chat("Hello", usage=(1000, 5))
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 800}
    async with small_and_frontier(tmp_path) as (gw, small, _):
        small.script(Whole(answer))
        await gw.chat()
        tokens = await gw.counted("tokens_total")
    assert tokens == {
        ("first", "small", "input"): 200,
        ("first", "small", "cached_input"): 800,
        ("first", "small", "output"): 5,
    }


@pytest.mark.parametrize(
    ("named", "said", "team"),
    [(["blue"], "blue", "blue"), (["blue"], "invented", "other"), (["blue"], None, "other"), ([], "blue", "other")],
)
async def test_tokens_and_dollars_are_counted_by_the_teams_that_the_policy_names(
    tmp_path: Path, named: list[str], said: str | None, team: str
) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        document = document_of({**spec(frontier, **escalation()), "teams": named})
        async with running_gateway(tmp_path, document, engines={"qwen-small": [small]}) as gw:
            small.script(Whole(chat("")))
            await gw.chat(headers=PUBLIC | ({"x-flotilla-team": said} if said else {}))
            assert {key[1] for key in await gw.counted("team_tokens_total")} == {team}
            assert set(await gw.counted("team_cost_usd_total")) == {("frontier", team)}


async def test_a_client_is_a_team_where_no_named_one_is_said(tmp_path: Path) -> None:
    policy = {**SOUND, "teams": ["blue"], "clients": [{"name": "app", "secretRef": {"name": "app", "key": "key"}}]}
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(policy), engines={"qwen-medium": [engine]}) as gw,
    ):
        mine = {"authorization": "Bearer key-of-app-key"}
        await gw.chat(headers=mine | {"x-flotilla-team": "green"})
        await gw.chat(headers=mine | {"x-flotilla-team": "blue"})
        assert {key[1] for key in await gw.counted("team_tokens_total")} == {"app", "blue"}


async def test_targets_say_which_models_they_are(tmp_path: Path) -> None:
    async with small_and_frontier(tmp_path) as (gw, _, _):
        assert set(await gw.counted("target_info")) == {
            ("qwen2.5-1.5b", "qwen-small", "small"),
            ("qwen2.5-7b", "qwen-medium", "medium"),
            ("big-1", "", "frontier"),
        }


async def test_the_access_log_has_no_word_of_prompt_or_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        document = document_of(spec(frontier))
        async with running_gateway(tmp_path, document, engines={"qwen-small": [small]}, access_log=True) as gw:
            await gw.chat(text="a secret question", headers={"x-flotilla-team": "blue"})
            await gw.post(json.dumps(chat_body(text="secret", model="none")).encode())
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "secret" not in json.dumps(lines)
    assert "Hello there" not in json.dumps(lines)
    first, second = lines
    assert first["status"] == 200
    assert (first["policy"], first["rule"], first["target"], first["team"]) == ("policy-0", "default", "small", "blue")
    assert (second["status"], second["code"], second["policy"]) == (404, "model_not_found", "other")
