"""A simulated vLLM over HTTP, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
from tests.support.engine_sim import FAST, events, eventually, running_vllm

CHAT = {"messages": [{"role": "user", "content": "What is a lighthouse for?"}]}
SLOW = {"FLOTILLA_SIM_STEP_SECONDS": "0.02", "FLOTILLA_SIM_TOKENS_PER_SECOND": "100000"}


def chunks(data: list[str]) -> list[dict[str, Any]]:
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def text_of(parts: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


async def test_a_chat_answer_has_exactly_the_tokens_that_were_asked_for() -> None:
    async with running_vllm("--served-model-name", "lamp", "alias") as vllm:
        status, document = await vllm.post("/v1/chat/completions", {**CHAT, "model": "alias", "max_tokens": 12})
        again = await vllm.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 12})
    assert status == 200
    [choice] = document["choices"]
    assert len(choice["message"]["content"].split()) == 12
    assert (choice["finish_reason"], document["model"], document["object"]) == ("length", "lamp", "chat.completion")
    assert document["usage"]["completion_tokens"] == 12
    assert document["usage"]["total_tokens"] == document["usage"]["prompt_tokens"] + 12
    assert again[1]["choices"][0]["message"] == choice["message"]


async def test_without_a_limit_the_answer_ends_by_itself_at_a_length_fixed_by_the_prompt() -> None:
    async with running_vllm() as vllm:
        lengths = set()
        for prompt in ("one", "two", "three", "four"):
            body = {"messages": [{"role": "user", "content": prompt}]}
            _, first = await vllm.post("/v1/chat/completions", body)
            _, second = await vllm.post("/v1/chat/completions", body)
            assert first["choices"] == second["choices"]
            assert first["choices"][0]["finish_reason"] == "stop"
            lengths.add(first["usage"]["completion_tokens"])
    assert len(lengths) > 1
    assert all(32 <= length <= 96 for length in lengths)


async def test_a_stream_has_the_text_of_the_document_and_counts_it() -> None:
    body = {**CHAT, "max_tokens": 40}
    async with running_vllm() as vllm:
        _, document = await vllm.post("/v1/chat/completions", body)
        status, data = await vllm.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
        _, bare = await vllm.stream("/v1/chat/completions", body)
    parts = chunks(data)
    assert status == 200
    assert text_of(parts) == document["choices"][0]["message"]["content"]
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [part["choices"][0]["finish_reason"] for part in parts[:-1]][-2:] == [None, "length"]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == document["usage"]
    assert {part["id"] for part in parts} == {parts[0]["id"]}
    assert all("usage" not in part for part in chunks(bare))


async def test_usage_can_come_with_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with running_vllm() as vllm:
        _, data = await vllm.stream("/v1/completions", {"prompt": "x", "max_tokens": 30, "stream_options": options})
    counts = [part["usage"]["completion_tokens"] for part in chunks(data)]
    assert counts == sorted(counts)
    assert counts[-1] == 30


async def test_several_prompts_and_choices_are_answered_by_index() -> None:
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 5}
    async with running_vllm() as vllm:
        _, document = await vllm.post("/v1/completions", body)
        _, data = await vllm.stream("/v1/completions", body)
        _, tokens = await vllm.post("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 2})
    texts = [choice["text"] for choice in document["choices"]]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3]
    assert [text_of(chunks(data), index) for index in range(4)] == texts
    assert len(set(texts)) == 4
    assert document["usage"]["completion_tokens"] == 20
    assert tokens["usage"]["prompt_tokens"] == 3


async def test_completions_default_to_sixteen_tokens() -> None:
    async with running_vllm() as vllm:
        _, document = await vllm.post("/v1/completions", {"prompt": "x"})
    assert document["usage"]["completion_tokens"] == 16


async def test_a_mean_length_makes_answers_end_before_the_limit_unless_told_otherwise() -> None:
    body = {"prompt": "x", "max_tokens": 500}
    async with running_vllm(env={**FAST, "FLOTILLA_SIM_OUTPUT_TOKENS": "20"}) as vllm:
        _, natural = await vllm.post("/v1/completions", body)
        _, forced = await vllm.post("/v1/completions", {**body, "ignore_eos": True})
    assert natural["choices"][0]["finish_reason"] == "stop"
    assert 10 <= natural["usage"]["completion_tokens"] <= 30
    assert forced["usage"]["completion_tokens"] == 500


async def test_a_long_prompt_leaves_less_room_for_the_answer() -> None:
    async with running_vllm("--max-model-len", "100") as vllm:
        _, document = await vllm.post("/v1/completions", {"prompt": "x" * 360, "max_tokens": 50})
    assert document["usage"] == {
        "prompt_tokens": 90,
        "total_tokens": 100,
        "completion_tokens": 10,
        "prompt_tokens_details": None,
    }
    assert document["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("chat/completions", {**CHAT, "model": "gpt-4"}, 404, "NotFoundError", "The model `gpt-4` does not exist."),
        ("completions", {"prompt": "x", "model": "y"}, 404, "NotFoundError", "Valid aliases: m/x."),
        ("chat/completions", {**CHAT, "max_tokens": 101}, 400, "BadRequestError", "max_tokens=101 cannot be greater"),
        ("chat/completions", {**CHAT, "max_completion_tokens": 101}, 400, "BadRequestError", "max_completion_tokens="),
        ("completions", {"prompt": "x" * 400}, 400, "BadRequestError", "maximum context length is 100 tokens."),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "max_tokens must be at least 1"),
        ("completions", {}, 400, "BadRequestError", "Either prompt or prompt_embeds must be provided"),
        ("chat/completions", {}, 400, "Bad Request", "'loc': 'messages', 'msg': 'Field required'"),
        ("chat/completions", {"messages": "x"}, 400, "Bad Request", "Input should be a valid list"),
        ("completions", {"prompt": "x", "n": "two"}, 400, "Bad Request", "Input should be a valid integer"),
        ("completions", {"prompt": "x", "stream_options": {"a": 1}}, 400, "Bad Request", "when `stream=True`"),
        ("completions", {"prompt": "x", "stream_options": 1}, 400, "Bad Request", "'loc': 'stream_options'"),
        ("completions", ["x"], 400, "Bad Request", "Input should be a valid dictionary"),
        ("embeddings", {"input": "x"}, 404, "Not Found", "Not Found"),
    ],
)
async def test_errors_have_vllm_s_status_and_document(
    path: str, body: Any, status: int, kind: str, message: str
) -> None:
    async with running_vllm("--max-model-len", "100") as vllm:
        got, document = await vllm.post(f"/v1/{path}", body)
    assert got == status
    error = document["error"]
    assert (error["type"], error["code"]) == (kind, status)
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content_type", "data", "message"),
    [("application/json", b"{nope", "JSON decode error"), ("text/plain", b"{}", "Unsupported Media Type")],
)
async def test_a_body_that_is_no_json_is_a_400(content_type: str, data: bytes, message: str) -> None:
    async with running_vllm() as vllm:
        url = vllm.url + "/v1/chat/completions"
        async with vllm.session.post(url, data=data, headers={"Content-Type": content_type}) as response:
            assert response.status == 400
            assert message in (await response.json())["error"]["message"]


async def test_a_key_guards_the_api_and_nothing_else() -> None:
    async with running_vllm("--api-key", "one", "two") as vllm:
        statuses = {}
        for key in ("one", "two", "three", ""):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with vllm.session.get(vllm.url + "/v1/models", headers=headers) as response:
                statuses[key] = response.status
                body = await response.text()
        for path in ("/health", "/metrics", "/version", "/ping"):
            async with vllm.session.get(vllm.url + path) as response:
                assert response.status == 200
    assert statuses == {"one": 200, "two": 200, "three": 401, "": 401}
    assert body == '{"error":"Unauthorized"}'


async def test_models_are_the_served_names() -> None:
    async with (
        running_vllm("--served-model-name", "a", "b", "--max-model-len", "4096") as vllm,
        vllm.session.get(vllm.url + "/v1/models") as response,
    ):
        cards = (await response.json())["data"]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("a", "m/x", 4096),
        ("b", "m/x", 4096),
    ]


async def test_over_the_limit_plain_and_chat_streams_get_503_and_a_completion_stream_an_error_in_200() -> None:
    async with running_vllm("--max-num-seqs", "1", "--max-num-queued-reqs", "2", env=SLOW) as vllm:
        held = [asyncio.create_task(vllm.post("/v1/completions", {"prompt": "x", "max_tokens": 30})) for _ in "12"]

        async def full() -> bool:
            return (await vllm.metrics())["vllm:num_requests_waiting"] == 1

        await eventually(full)
        plain = await vllm.post("/v1/completions", {"prompt": "x"})
        chat_status, _ = await vllm.stream("/v1/chat/completions", CHAT)
        status, data = await vllm.stream("/v1/completions", {"prompt": "x"})
        metrics = await vllm.metrics()
        assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]
    error = plain[1]["error"]
    assert (plain[0], error["code"], error["type"], error["param"]) == (503, 503, "Service Unavailable", None)
    assert "try again later or on a different instance" in error["message"]
    assert chat_status == 503
    assert status == 200
    assert [json.loads(data[0])["error"]["code"], data[1]] == [503, "[DONE]"]
    assert metrics["vllm:admission_rejections_total{reason=max_num_queued_reqs}"] == 3
    assert metrics["vllm:num_requests_running"] == 1
    assert metrics["http_requests_total{handler=/v1/completions,method=POST,status=5xx}"] == 1


async def test_metrics_follow_requests() -> None:
    async with running_vllm() as vllm:
        for _ in range(3):
            await vllm.post("/v1/completions", {"prompt": "x" * 40, "max_tokens": 20})
        await vllm.post("/v1/chat/completions", CHAT)
        metrics = await vllm.metrics()
    natural = metrics["vllm:generation_tokens_total"] - 60
    assert 32 <= natural <= 96
    assert metrics["vllm:request_success_total{finished_reason=length}"] == 3
    assert metrics["vllm:request_success_total{finished_reason=stop}"] == 1
    assert metrics["vllm:request_prompt_tokens_bucket{le=10.0}"] == 3
    assert metrics["vllm:time_to_first_token_seconds_count"] == 4
    assert metrics["vllm:inter_token_latency_seconds_count"] == metrics["vllm:generation_tokens_total"] - 4
    assert metrics["vllm:iteration_tokens_total_sum"] == (
        metrics["vllm:generation_tokens_total"] - 4 + metrics["vllm:prompt_tokens_total"]
    )
    assert metrics["vllm:e2e_request_latency_seconds_sum"] >= metrics["vllm:request_decode_time_seconds_sum"] > 0
    assert metrics["vllm:num_requests_running"] == metrics["vllm:kv_cache_usage_perc"] == 0
    assert metrics["http_requests_total{handler=/v1/completions,method=POST,status=2xx}"] == 3


async def test_counters_and_gauges_move_while_a_request_runs() -> None:
    async with running_vllm("--num-gpu-blocks-override", "600", env=SLOW) as vllm:
        task = asyncio.create_task(vllm.post("/v1/completions", {"prompt": "x" * 400, "max_tokens": 25}))

        async def some_tokens() -> bool:
            metrics = await vllm.metrics()
            running = metrics["vllm:num_requests_running"] == 1 and metrics["vllm:kv_cache_usage_perc"] > 7 / 600
            return running and 3 <= metrics["vllm:generation_tokens_total"] < 25

        await eventually(some_tokens)
        assert (await task)[0] == 200


async def test_a_client_that_leaves_frees_its_place() -> None:
    async with running_vllm("--max-num-seqs", "1", env=SLOW) as vllm:
        body = {**CHAT, "max_tokens": 5000, "stream": True}
        async with vllm.session.post(vllm.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()
            assert (await vllm.metrics())["vllm:num_requests_running"] == 1
            response.close()

        async def gone() -> bool:
            return (await vllm.metrics())["vllm:num_requests_running"] == 0

        await eventually(gone)
        metrics = await vllm.metrics()
    assert metrics["vllm:request_success_total{finished_reason=abort}"] == 1
    assert metrics["vllm:kv_cache_usage_perc"] == 0


async def test_a_stream_comes_in_pieces_with_its_first_token_in_time() -> None:
    async with running_vllm(env=SLOW) as vllm:
        started_s = time.monotonic()
        body = {**CHAT, "max_tokens": 25, "stream": True}
        async with vllm.session.post(vllm.url + "/v1/chat/completions", json=body) as response:
            arrivals_s = [
                time.monotonic() - started_s async for piece in response.content.iter_any() if b'"content":"' in piece
            ]
    # one step of 20 ms to the first token, 24 more to the last; a tick is 50 ms
    assert 0.02 <= arrivals_s[0] < 0.3
    assert arrivals_s[-1] >= 25 * 0.02
    assert len(arrivals_s) >= 4


async def test_while_it_drains_requests_end_new_ones_get_500_and_health_stays_good() -> None:
    async with running_vllm("--shutdown-timeout", "10", "--max-num-seqs", "2", env=SLOW) as vllm:
        body = {**CHAT, "max_tokens": 15}
        tasks = [asyncio.create_task(vllm.stream("/v1/chat/completions", body)) for _ in range(4)]

        async def queued() -> bool:
            return (await vllm.metrics())["vllm:num_requests_waiting"] == 2

        await eventually(queued)
        ending = asyncio.create_task(vllm.engine.terminate(vllm.server))
        await asyncio.sleep(0)
        status, document = await vllm.post("/v1/chat/completions", body)
        async with vllm.session.get(vllm.url + "/health") as response:
            health = response.status
        assert not ending.done()
        answers = await asyncio.gather(*tasks)
        await asyncio.wait_for(ending, 5)
    assert (status, document["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
    assert document["error"]["type"] == "InternalServerError"
    assert health == 200
    assert all(len(text_of(chunks(data)).split()) == 15 for _, data in answers)


async def test_a_drain_gives_up_after_its_time_out() -> None:
    async with running_vllm("--shutdown-timeout", "1", env=SLOW) as vllm:
        body = {**CHAT, "max_tokens": 8000, "stream": True}
        async with vllm.session.post(vllm.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()
            started_s = time.monotonic()
            await vllm.engine.terminate(vllm.server)
            assert 0.9 <= time.monotonic() - started_s < 3
            await vllm.server.close()
            with pytest.raises(aiohttp.ClientError):
                await response.text()


async def falls_silent(content: aiohttp.StreamReader) -> None:
    """Returns once nothing came for a while; AssertionError where the stream ends instead."""
    while True:
        try:
            piece = await asyncio.wait_for(content.readany(), 0.4)
        except TimeoutError:
            return
        assert piece


async def test_without_a_drain_streams_hang_silently_and_connections_are_refused() -> None:
    async with running_vllm(env=SLOW) as vllm:
        body = {**CHAT, "max_tokens": 8000, "stream": True}
        async with vllm.session.post(vllm.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()
            ending = asyncio.create_task(vllm.engine.terminate(vllm.server))
            await falls_silent(response.content)
            async with aiohttp.ClientSession() as other:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await other.get(vllm.url + "/health")
            assert not ending.done()
            response.close()
        await asyncio.wait_for(ending, 2)


async def test_without_a_drain_and_without_requests_the_end_comes_at_once() -> None:
    async with running_vllm() as vllm:
        await asyncio.wait_for(vllm.engine.terminate(vllm.server), 1)


def test_events_are_split_at_empty_lines() -> None:
    assert events("data: a\n\ndata: b\n\n") == ["a", "b"]
