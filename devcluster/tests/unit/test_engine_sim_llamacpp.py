"""A simulated llama.cpp server: its command line, its server in the test's own event loop, and as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support import engine_sim
from tests.support.engine_sim import ADDRESS, FAST, Running, engine, eventually, free_port

from flotilla_devcluster.engine import llamacpp, llamacpp_config
from flotilla_devcluster.engine.settings import Refused

CHAT = {"messages": [{"role": "user", "content": "What is a lighthouse for?"}]}
SLOW = {"FLOTILLA_SIM_STEP_SECONDS": "0.02", "FLOTILLA_SIM_TOKENS_PER_SECOND": "100000"}
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


def refusal(*argv: str, **env: str) -> Refused:
    with pytest.raises(Refused) as caught:
        llamacpp_config.parse(argv, env)
    return caught.value


def configured(*argv: str, **env: str) -> llamacpp_config.LlamacppConfig:
    return llamacpp_config.configure(["-m", "/models/x.gguf", *argv], env)


@asynccontextmanager
async def running(*arguments: str, env: dict[str, str] | None = None, loaded: bool = True) -> AsyncIterator[Running]:
    config = llamacpp_config.configure(["-m", "/models/x.gguf", "--port", "0", *arguments], env or FAST)
    async with engine_sim.serving(config, llamacpp.LlamacppEngine(config)) as sim:
        if loaded:
            sim.engine.loaded()
        yield sim


async def get(sim: Running, path: str) -> tuple[int, Any]:
    async with sim.session.get(sim.url + path) as response:
        return response.status, json.loads(await response.text())


async def busy(sim: Running, count: int) -> bool:
    _, slots = await get(sim, "/slots")
    return [slot["is_processing"] for slot in slots].count(True) == count


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--swap-space", "4"], "error: invalid argument: --swap-space"),
        (["--swap_space", "4"], "error: invalid argument: --swap-space"),
        (["--port=8080"], "error: invalid argument: --port=8080"),
        (["model.gguf"], "error: invalid argument: model.gguf"),
        (["--port"], 'error while handling argument "--port": expected value for argument'),
        (
            ["-c", "many"],
            'error while handling argument "-c": stoi\n\nusage:\n-c, --ctx-size\n\nto show complete usage,',
        ),
        (["-ctk", "fp8"], 'error while handling argument "-ctk": Unsupported cache type: fp8'),
        (["-fa", "maybe"], "error: unknown value for --flash-attn: 'maybe'"),
        (["-fit", "auto"], "error: unknown value for --fit: 'auto'"),
        (["-sm", "column"], 'error while handling argument "-sm": invalid value'),
        (["-np", "0"], "error: invalid value for n_parallel"),
        (["-ngl", "most"], 'error while handling argument "-ngl": stoi'),
    ],
)
def test_it_refuses_with_its_own_messages_and_exit_code_1(argv: list[str], message: str) -> None:
    refused = refusal(*argv)
    assert refused.exit_code == 1
    assert refused.text.startswith(message if message.startswith("error: inv") and "n_par" not in message else "error")
    assert message in refused.text


@pytest.mark.parametrize(
    ("argv", "env", "key", "value"),
    [
        (["/app/llama-server", "--ctx_size", "4096"], {}, "ctx-size", 4096),
        ([], {"LLAMA_ARG_CTX_SIZE": "4096"}, "ctx-size", 4096),
        (["-c", "2048"], {"LLAMA_ARG_CTX_SIZE": "4096"}, "ctx-size", 2048),
        (["-hfr", "a/b:Q8_0"], {}, "hf-repo", "a/b:Q8_0"),
        (["--no-webui"], {}, "ui", False),
        ([], {"LLAMA_ARG_NO_JINJA": "anything"}, "jinja", False),
        ([], {"LLAMA_ARG_ENDPOINT_METRICS": "1"}, "metrics", True),
        (["-ngl", "99"], {}, "gpu-layers", 99),
    ],
)
def test_it_reads_its_arguments_before_its_environment(
    argv: list[str], env: dict[str, str], key: str, value: Any
) -> None:
    assert llamacpp_config.parse(argv, env)[key] == value


def test_a_bad_variable_is_refused_by_its_name() -> None:
    assert 'environment variable "LLAMA_ARG_PORT": stoi' in refusal(LLAMA_ARG_PORT="tcp://10.96.0.1:80").text


def test_without_a_model_it_would_be_a_router() -> None:
    with pytest.raises(Refused, match="is no router"):
        llamacpp_config.configure([], {})


def test_slots_share_the_context_unless_their_number_is_given() -> None:
    auto, four = configured("-c", "8192"), configured("-c", "8192", "-np", "4")
    unified, per_slot = configured("-c", "8192", "-np", "2", "-kvu"), configured("--kv-unified-per-slot", "1000")
    assert (auto.slots, auto.slot_context, auto.limits.kv_blocks) == (4, 8192, 8192)
    assert (four.slots, four.slot_context, four.limits.kv_blocks) == (4, 2048, 8192)
    assert (unified.slots, unified.slot_context) == (2, 8192)
    assert (per_slot.slot_context, per_slot.limits.kv_blocks) == (1000, 4000)
    assert configured("-c", "3000", "-np", "2").slot_context == 1536


def test_the_image_listens_on_all_addresses_and_the_program_on_loopback() -> None:
    config = configured("--alias", "lamp,base")
    assert (config.host, config.port, config.metrics, config.alias) == ("0.0.0.0", 8080, False, "base")
    assert configured("--host", "127.0.0.1").host == "127.0.0.1"


def test_a_context_that_was_asked_for_must_fit_and_one_that_was_not_is_made_to() -> None:
    small = {"FLOTILLA_SIM_KV_TOKENS": "5000"}
    failure = configured("-c", "8192", **small).load_failure
    assert failure is not None
    assert "exiting due to model loading error" in failure
    assert (configured(**small).load_failure, configured(**small).slot_context) == (None, 5000)


async def test_while_it_loads_every_answer_is_503() -> None:
    async with running("--metrics", loaded=False) as sim:
        for path in ("/health", "/v1/models", "/metrics"):
            assert await get(sim, path) == (503, LOADING)
        assert await sim.post("/v1/chat/completions", CHAT) == (503, LOADING)
        sim.engine.loaded()
        assert await get(sim, "/health") == (200, {"status": "ok"})


async def test_a_stream_has_the_text_of_the_document() -> None:
    body = {**CHAT, "max_tokens": 40, "model": "whatever"}
    async with running("--alias", "lamp") as sim:
        status, document = await sim.post("/v1/chat/completions", body)
        _, data = await sim.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
        _, text = await sim.stream("/v1/completions", {"prompt": "x", "n_predict": 7})
        _, several = await sim.post("/v1/completions", {"prompt": "x", "n": 2, "max_tokens": 3})
    parts = [json.loads(item) for item in data[:-1]]
    words = "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])
    assert (status, document["model"], words) == (200, "lamp", document["choices"][0]["message"]["content"])
    assert len(words.split()) == 40
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert parts[-2]["choices"][0] == {"finish_reason": "length", "index": 0, "delta": {}}
    assert (parts[-1]["choices"], parts[-1]["usage"], data[-1]) == ([], document["usage"], "[DONE]")
    completion = [json.loads(item) for item in text[:-1]]
    assert len("".join(part["choices"][0]["text"] for part in completion).split()) == 7
    assert completion[-1]["usage"]["completion_tokens"] == 7
    assert [choice["index"] for choice in several["choices"]] == [0, 1]


async def test_slots_take_requests_and_the_rest_are_deferred() -> None:
    async with running("-np", "2", "--metrics", env=SLOW) as sim:
        held = [asyncio.create_task(sim.post("/v1/completions", {"prompt": "x", "max_tokens": 40})) for _ in "123"]
        await eventually(lambda: busy(sim, 2))
        metrics = await sim.metrics()
        assert (metrics["llamacpp:requests_processing"], metrics["llamacpp:requests_deferred"]) == (2, 1)
        _, slots = await get(sim, "/slots")
        assert [(slot["id"], slot["n_ctx"]) for slot in slots] == [(0, 4096), (1, 4096)]
        assert (await get(sim, "/slots?fail_on_no_slot=1"))[1]["error"]["message"] == "no slot available"
        assert [(await task)[0] for task in held] == [200] * 3
        assert await busy(sim, 0)
        metrics = await sim.metrics()
    assert metrics["llamacpp:tokens_predicted_total"] == 120
    assert metrics["llamacpp:prompt_tokens_total"] == 3
    assert metrics["llamacpp:n_tokens_max"] == 41
    assert 1 < metrics["llamacpp:n_busy_slots_per_decode"] <= 2
    assert metrics["llamacpp:predicted_tokens_seconds"] > 10


async def test_a_client_that_leaves_frees_its_slot() -> None:
    async with running("-np", "1", env=SLOW) as sim:
        task = asyncio.create_task(sim.post("/v1/completions", {"prompt": "x", "max_tokens": 4000}))
        await eventually(lambda: busy(sim, 1))
        task.cancel()
        await eventually(lambda: busy(sim, 0))
        assert (await sim.post("/v1/completions", {"prompt": "y", "max_tokens": 1}))[0] == 200


async def test_the_rates_are_those_since_the_last_scrape() -> None:
    async with running("--metrics") as sim:
        await sim.post("/v1/completions", {"prompt": "x" * 40, "max_tokens": 20})
        first, second = await sim.metrics(), await sim.metrics()
    for name in ("llamacpp:prompt_tokens_seconds", "llamacpp:predicted_tokens_seconds"):
        assert (first[name] > 0, second[name]) == (True, 0)
    assert second["llamacpp:tokens_predicted_total"] == 20


async def test_the_metrics_have_the_real_names_and_are_off_without_their_flag() -> None:
    async with running("--metrics") as sim, sim.session.get(sim.url + "/metrics") as response:
        text = await response.text()
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert families["llamacpp:prompt_tokens"] == families["llamacpp:n_decode"] == "counter"
    assert families["llamacpp:requests_processing"] == families["llamacpp:requests_deferred"] == "gauge"
    assert len(families) == 15
    assert "llamacpp:prompt_tokens_total 0\n" in text
    async with running() as sim:
        status, document = await get(sim, "/metrics")
    message = "This server does not support metrics endpoint. Start it with `--metrics`"
    assert (status, document) == (501, {"error": {"code": 501, "message": message, "type": "not_supported_error"}})


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        ({}, 400, "invalid_request_error", "'messages' is required"),
        ({"messages": "x"}, 400, "invalid_request_error", "Expected 'messages' to be an array"),
        ({**CHAT, "n": 3}, 400, "invalid_request_error", "Value must be between 1 <= value <= 2, but got 3"),
        ({**CHAT, "tools": [{}]}, 500, "server_error", "tools param requires --jinja flag"),
        ([], 500, "server_error", "type must be object"),
    ],
)
async def test_a_bad_request_gets_its_own_messages(body: Any, status: int, kind: str, message: str) -> None:
    async with running("-np", "2", "--no-jinja") as sim:
        got, document = await sim.post("/v1/chat/completions", body)
    assert (got, document["error"]["code"], document["error"]["type"]) == (status, status, kind)
    assert message in document["error"]["message"]


async def test_a_prompt_must_fit_into_its_slot_and_the_answer_ends_where_the_slot_does() -> None:
    async with running("-c", "512", "-np", "2") as sim:
        status, document = await sim.post("/v1/completions", {"prompt": "x" * 1024})
        _, cut = await sim.post("/v1/completions", {"prompt": "x" * 1000, "max_tokens": 100})
    message = "request (256 tokens) exceeds the available context size (256 tokens), try increasing it"
    error = {"code": 400, "message": message, "type": "exceed_context_size_error", "n_prompt_tokens": 256, "n_ctx": 256}
    assert (status, document) == (400, {"error": error})
    assert (cut["usage"]["completion_tokens"], cut["choices"][0]["finish_reason"]) == (6, "length")


async def test_a_key_guards_everything_but_health() -> None:
    async with running("--api-key", "k,l") as sim:
        assert (await get(sim, "/health"))[0] == 200
        assert (await get(sim, "/props"))[1]["error"]["type"] == "authentication_error"
        for headers in ({"Authorization": "Bearer l"}, {"X-Api-Key": "k"}):
            async with sim.session.get(sim.url + "/props", headers=headers) as response:
                assert (response.status, (await response.json())["total_slots"]) == (200, 4)


async def test_adapters_models_and_unknown_paths() -> None:
    async with running("--lora", "a.gguf,b.gguf", "--alias", "lamp") as sim:
        assert [entry["path"] for entry in (await get(sim, "/lora-adapters"))[1]] == ["a.gguf", "b.gguf"]
        assert [card["id"] for card in (await get(sim, "/v1/models"))[1]["data"]] == ["lamp"]
        assert (await get(sim, "/load"))[1]["error"] == {
            "message": "File Not Found",
            "type": "not_found_error",
            "code": 404,
        }


async def test_at_its_end_a_stream_falls_silent_and_is_cut_where_a_ping_would_be_due() -> None:
    async with running("--sse-ping-interval", "1", env=SLOW) as sim:
        body = {**CHAT, "max_tokens": 4000, "stream": True}
        async with sim.session.post(sim.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()
            started_s = time.monotonic()
            ending = asyncio.create_task(sim.engine.terminate(sim.server))
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.text()
            assert 0.9 <= time.monotonic() - started_s < 3
        await asyncio.wait_for(ending, 2)


async def test_at_its_end_a_request_that_does_not_stream_waits_for_its_client_to_go() -> None:
    async with running("--sse-ping-interval", "1", env=SLOW) as sim:
        held = asyncio.create_task(sim.post("/v1/completions", {"prompt": "x", "max_tokens": 4000}))
        await eventually(lambda: busy(sim, 1))
        ending = asyncio.create_task(sim.engine.terminate(sim.server))
        await asyncio.sleep(1.3)
        assert not ending.done()
        assert not held.done()
        held.cancel()
        await asyncio.wait_for(ending, 2)


async def test_at_its_end_without_requests_it_leaves_at_once() -> None:
    async with running() as sim:
        ended, _ = await asyncio.wait({asyncio.create_task(sim.engine.terminate(sim.server))}, timeout=1)
        assert len(ended) == 1


async def test_as_a_process_it_answers_while_it_loads_streams_to_the_openai_client_and_cuts_it_at_sigterm() -> None:
    port = free_port()
    url = f"http://{ADDRESS}:{port}"
    arguments = ["-m", "/models/x.gguf", "--alias", "lamp", "--port", str(port), "--sse-ping-interval", "1"]
    async with (
        engine("llamacpp", *arguments, LOAD_SECONDS="4", STEP_SECONDS="0.02") as process,
        aiohttp.ClientSession() as session,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
    ):
        seen: list[tuple[int, Any]] = []

        async def healthy() -> bool:
            try:
                async with session.get(f"{url}/health") as response:
                    seen.append((response.status, await response.json()))
            except aiohttp.ClientConnectorError:
                return False
            return seen[-1][0] == 200

        await eventually(healthy, timeout_s=20)
        assert (seen[0], seen[-1]) == ((503, LOADING), (200, {"status": "ok"}))
        assert [model.id async for model in client.models.list()] == ["lamp"]
        words: list[str] = []
        stream = await client.chat.completions.create(
            model="lamp", messages=[{"role": "user", "content": "hello"}], max_tokens=4000, stream=True
        )

        async def read() -> None:
            async for chunk in stream:
                if not words and chunk.choices[0].delta.content:
                    process.send_signal(signal.SIGTERM)
                words.extend((chunk.choices[0].delta.content or "").split())

        with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
            await read()
        assert 0 < len(words) < 400
        assert await asyncio.wait_for(process.wait(), 5) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "x.gguf", "--max-model-len", "4096"], "error: invalid argument: --max-model-len\n"),
        (["-m", "x.gguf", "-c", "300000"], "failed to allocate buffer for kv cache"),
    ],
)
async def test_a_refusal_ends_the_process_with_exit_code_1(argv: list[str], message: str) -> None:
    async with engine("llamacpp", *argv, LOAD_SECONDS="0.1") as process:
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert message in errors.decode()
