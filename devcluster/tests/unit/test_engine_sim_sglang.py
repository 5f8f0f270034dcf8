"""A simulated SGLang 0.5.23: its command line, its server in the test's own event loop, and as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support import engine_sim
from tests.support.engine_sim import ADDRESS, FAST, Running, engine, eventually, free_port

from flotilla_devcluster.engine import sglang, sglang_config
from flotilla_devcluster.engine.settings import Refused
from flotilla_devcluster.nodeagent.container import simulated_engine

COMMAND = ["python3", "-m", "sglang.launch_server"]
CHAT = {"messages": [{"role": "user", "content": "What is a lighthouse for?"}]}
SLOW = {"FLOTILLA_SIM_STEP_SECONDS": "0.02", "FLOTILLA_SIM_TOKENS_PER_SECOND": "100000"}
RANKS = "engine_type=unified,moe_ep_rank=0,pp_rank=0,tp_rank=0"


def refusal(*argv: str) -> Refused:
    with pytest.raises(Refused) as caught:
        sglang_config.parse(argv)
    return caught.value


@asynccontextmanager
async def running(*arguments: str, env: dict[str, str] | None = None, up: bool = True) -> AsyncIterator[Running]:
    argv = [*COMMAND, "--model-path", "m/x", "--port", "0", "--host", "0.0.0.0", "--enable-metrics", *arguments]
    config = sglang_config.configure(argv, {"FLOTILLA_SIM_DRAIN_POLL_SECONDS": "0.1", **(env or FAST)})
    async with engine_sim.serving(config, sglang.SglangEngine(config)) as sim:
        if up:
            sim.engine.loaded()
            await eventually(lambda: status_is(sim, "/ready", 200))
        yield sim


async def status_is(sim: Running, path: str, status: int) -> bool:
    async with sim.session.get(sim.url + path) as response:
        return response.status == status


async def running_requests(sim: Running, count: int) -> bool:
    return (await sim.metrics())[f"sglang:num_running_reqs{{{RANKS}}}"] == count


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model-path", "m", "--swap-space", "4"], "sglang serve: error: unrecognized arguments: --swap-space 4"),
        (["--model-path", "m", "--dtype", "fp16"], "error: argument --dtype: invalid choice: 'fp16' (choose from"),
        (["--model-path", "m", "--quantization", "int3"], "argument --quantization: invalid choice: 'int3' (choose"),
        (["--model-path", "m", "--port", "x"], "sglang serve: error: argument --port: invalid int value: 'x'"),
        (["--model-path", "m", "--context-length", "8K"], "Invalid integer value: '8K'. Use a plain integer,"),
        (["--model-path", "m", "--context-length", "1.5Ki"], "Decimals are not allowed with IEC suffixes like 'Ki'."),
        (["--port", "1"], "the following arguments are required: --model-path/--model"),
        (["--model-path", "m", "--tp-size"], "argument --tp-size/--tensor-parallel-size: expected one argument"),
    ],
)
def test_it_refuses_with_argparse_s_messages_and_exit_code_2(argv: list[str], message: str) -> None:
    refused = refusal(*COMMAND, *argv)
    assert refused.exit_code == 2
    assert refused.text.startswith("usage: sglang serve [-h] --model-path MODEL_PATH")
    assert message in refused.text


def test_a_container_without_a_command_cannot_start() -> None:
    refused = refusal("--model-path", "m")
    assert refused.exit_code == 127
    assert 'exec: "--model-path": executable file not found in $PATH' in refused.text


def test_defaults_are_those_of_the_real_one() -> None:
    config = sglang_config.configure([*COMMAND, "--model", "m/x"], {})
    assert (config.host, config.port, config.metrics, config.served_name) == ("127.0.0.1", 30000, False, "m/x")
    assert (config.max_queued, config.adapters, config.warms_up, config.health_generates) == (None, (), True, True)
    assert config.settings.drain_poll_seconds == 5


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        (["--context-length", "8193"], {}, "User-specified context_length (8193) is greater than the derived"),
        (["--context-length", "8193"], {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}, None),
        (["--enable-lora"], {}, "When no initial --lora-paths is provided, you need to specify both --max-lora-rank"),
        (["--enable-lora", "--max-lora-rank", "16", "--lora-target-modules", "all"], {}, None),
        (["--quantization", "fp8", "--kv-cache-dtype", "fp8_e5m2", "--tp-size", "2"], {}, None),
    ],
)
def test_it_fails_at_load_where_only_its_parser_was_content(
    argv: list[str], env: dict[str, str], message: str | None
) -> None:
    failure = sglang_config.configure([*COMMAND, "--model-path", "m", *argv], env).load_failure
    assert (failure is None) if message is None else (failure is not None and message in failure)


@pytest.mark.parametrize(
    ("image", "engine"),
    [
        ("lmsysorg/sglang:v0.5.23", "sglang"),
        ("registry.local/lmsysorg/sglang@sha256:0", "sglang"),
        ("lmsysorg/sglang-router:v1", None),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", "llamacpp"),
        ("ghcr.io/ggml-org/llama.cpp:full", None),
        ("vllm/vllm-openai:v0.33.0", "vllm"),
    ],
)
def test_images_are_played_by_their_engine(image: str, engine: str | None) -> None:
    played = simulated_engine(image, ADDRESS, [*COMMAND, "--model-path", "m"])
    assert played == (None if engine is None else [engine, ADDRESS, "--", *COMMAND, "--model-path", "m"])


async def test_a_stream_has_the_text_of_the_document_and_names_the_model_as_the_client_did() -> None:
    body = {**CHAT, "model": "whatever", "max_tokens": 40}
    async with running() as sim:
        status, document = await sim.post("/v1/chat/completions", body)
        _, data = await sim.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
        _, text = await sim.stream("/v1/completions", {"prompt": "x", "max_tokens": 7})
    parts = [json.loads(item) for item in data[:-1]]
    words = "".join(choice["delta"].get("content", "") for part in parts for choice in part["choices"])
    assert (status, document["model"], parts[0]["model"]) == (200, "whatever", "whatever")
    assert words == document["choices"][0]["message"]["content"]
    assert len(words.split()) == 40
    assert parts[0]["choices"][0]["delta"] == {"reasoning_content": None, "role": "assistant", "content": ""}
    assert parts[-2]["choices"][0]["finish_reason"] == "length"
    assert (parts[-1]["choices"], parts[-1]["usage"], data[-1]) == ([], document["usage"], "[DONE]")
    completion = [json.loads(item)["choices"][0] for item in text[:-1]]
    assert len("".join(choice["text"] for choice in completion).split()) == 7
    assert completion[-1]["finish_reason"] == "length"


async def test_health_fails_until_its_own_first_request_was_answered_and_takes_a_second_then() -> None:
    async with running(up=False, env=SLOW) as sim:
        for path in ("/health", "/health_generate", "/ready"):
            assert await status_is(sim, path, 503)
        sim.engine.loaded()
        assert await status_is(sim, "/health", 503)
        await eventually(lambda: status_is(sim, "/ready", 200))
        started_s = time.monotonic()
        assert await status_is(sim, "/health", 200)
        assert time.monotonic() - started_s >= 1
        metrics = await sim.metrics()
    assert metrics["sglang:num_requests_total{engine_type=unified,is_streaming=false}"] == 1
    assert metrics["sglang:generation_tokens_total{engine_type=unified,is_streaming=false}"] == 8


async def test_over_the_queue_s_limit_answers_are_503_and_streams_are_200_with_an_error() -> None:
    async with running("--max-running-requests", "1", "--max-queued-requests", "1", env=SLOW) as sim:
        body = {**CHAT, "max_tokens": 60}
        first = asyncio.create_task(sim.post("/v1/chat/completions", body))
        await eventually(lambda: running_requests(sim, 1))
        second = asyncio.create_task(sim.post("/v1/chat/completions", body))

        async def one_waits() -> bool:
            return (await sim.metrics())[f"sglang:num_queue_reqs{{{RANKS}}}"] == 1

        await eventually(one_waits)
        plain = await sim.post("/v1/chat/completions", body)
        stream = await sim.stream("/v1/chat/completions", body)
        assert [(await task)[0] for task in (first, second)] == [200, 200]
    error = {"object": "error", "message": "The request queue is full.", "param": None, "code": 503}
    assert plain == (503, {**error, "type": "503"})
    assert (stream[0], stream[1][1]) == (200, "[DONE]")
    assert json.loads(stream[1][0]) == {"error": {**error, "type": "SERVICE_UNAVAILABLE"}}


async def test_adapters_are_listed_and_can_be_asked_for_behind_the_model_s_name() -> None:
    async with running("--served-model-name", "lamp", "--lora-paths", "poet=/adapters/poet", "/adapters/b") as sim:
        async with sim.session.get(sim.url + "/v1/models") as response:
            cards = (await response.json())["data"]
        good = await sim.post("/v1/chat/completions", {**CHAT, "model": "lamp:poet"})
        bad = await sim.post("/v1/chat/completions", {**CHAT, "model": "lamp:none"})
        assert await status_is(sim, "/v1/models/lamp", 200)
        assert await status_is(sim, "/v1/models/poet", 404)
        assert f"sglang:lora_pool_slots_total{{{RANKS}}}" in await sim.metrics()
    shown = [(card["id"], card["root"], card["parent"], card["max_model_len"]) for card in cards]
    assert shown == [
        ("lamp", "lamp", None, 8192),
        ("poet", "/adapters/poet", "lamp", None),
        ("/adapters/b", "/adapters/b", "lamp", None),
    ]
    assert (good[0], good[1]["model"]) == (200, "lamp:poet")
    assert (bad[0], "never been loaded: none" in bad[1]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"messages": []}, "Messages cannot be empty."),
        ("chat/completions", {**CHAT, "model": "m/x:a"}, "'a' was requested, but LoRA is not enabled. Please launch"),
        ("completions", {"prompt": ""}, "Prompt cannot be empty"),
        ("completions", {"prompt": "x" * 400}, "The input (100 tokens) is longer than the model's context length (100"),
        ("completions", {"prompt": "x" * 380}, "You requested a total of 111 tokens: 95 tokens from the input"),
        ("completions", {"prompt": "x", "max_tokens": 100}, "1 tokens from the input messages and 100 tokens for the"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens must be positive"),
        ("completions", {}, "body.prompt: Field required"),
    ],
)
async def test_a_bad_request_is_400_with_sglang_s_messages(path: str, body: dict[str, Any], message: str) -> None:
    async with running("--context-length", "100") as sim:
        status, document = await sim.post(f"/v1/{path}", body)
    assert (status, document["object"], document["code"]) == (400, "error", 400)
    assert message in document["message"]


async def test_a_key_guards_everything_but_probes_and_metrics() -> None:
    async with running("--api-key", "k") as sim:
        assert (await sim.post("/v1/completions", {"prompt": "x"})) == (401, {"error": "Unauthorized"})
        assert await status_is(sim, "/v1/models", 401)
        for path in ("/ready", "/metrics"):
            assert await status_is(sim, path, 200)
        headers = {"Authorization": "Bearer k"}
        async with sim.session.post(sim.url + "/v1/completions", json={"prompt": "x"}, headers=headers) as response:
            assert response.status == 200


async def test_the_metrics_have_the_real_names_and_labels_and_count_streams_apart() -> None:
    async with running("--served-model-name", "lamp") as sim:
        await sim.stream("/v1/completions", {"prompt": "x" * 40, "max_tokens": 5})
        async with sim.session.get(sim.url + "/metrics") as response:
            text = await response.text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kinds = {
        "sglang:num_running_reqs": "gauge",
        "sglang:num_queue_reqs": "gauge",
        "sglang:token_usage": "gauge",
        "sglang:max_total_num_tokens": "gauge",
        "sglang:prompt_tokens": "counter",
        "sglang:generation_tokens": "counter",
        "sglang:num_requests": "counter",
        "sglang:time_to_first_token_seconds": "histogram",
        "sglang:inter_token_latency_seconds": "histogram",
        "sglang:e2e_request_latency_seconds": "histogram",
        "sglang:queue_time_seconds": "histogram",
        "sglang:http_responses": "counter",
    }
    assert {name: families[name].type for name in kinds} == kinds
    [running_reqs] = families["sglang:num_running_reqs"].samples
    assert running_reqs.labels == {
        "engine_type": "unified",
        "model_name": "lamp",
        "moe_ep_rank": "0",
        "pp_rank": "0",
        "tp_rank": "0",
    }
    prompts = {sample.labels["is_streaming"]: sample.value for sample in families["sglang:prompt_tokens"].samples}
    assert prompts == {"false": 8, "true": 10}
    # as prometheus_client's multiprocess mode: no twins, and what nothing touched is absent
    assert "_created" not in text
    assert "sglang:cached_tokens_total" not in text
    assert "sglang:num_aborted_requests_total" not in text


async def test_without_enable_metrics_there_are_none() -> None:
    config = sglang_config.configure([*COMMAND, "--model-path", "m", "--port", "0", "--host", "0.0.0.0"], FAST)
    async with engine_sim.serving(config, sglang.SglangEngine(config)) as sim:
        assert await status_is(sim, "/metrics", 404)


async def test_a_drain_waits_for_everything_while_health_fails_and_new_requests_are_taken() -> None:
    async with running("--max-running-requests", "1", env=SLOW) as sim:
        body = {**CHAT, "max_tokens": 30}
        held = [asyncio.create_task(sim.post("/v1/chat/completions", body)) for _ in "12"]
        await eventually(lambda: running_requests(sim, 1))
        ending = asyncio.create_task(sim.engine.terminate(sim.server))
        await asyncio.sleep(0)
        assert [await status_is(sim, path, 503) for path in ("/health", "/ready")] == [True, True]
        late = asyncio.create_task(sim.post("/v1/completions", {"prompt": "late", "max_tokens": 3}))
        assert [(await task)[0] for task in (*held, late)] == [200] * 3
        await asyncio.wait_for(ending, 3)


async def test_a_forced_shutdown_waits_for_nothing() -> None:
    async with running(env={**SLOW, "SGL_FORCE_SHUTDOWN": "true"}) as sim:
        held = asyncio.create_task(sim.post("/v1/completions", {"prompt": "x", "max_tokens": 5000}))
        await eventually(lambda: running_requests(sim, 1))
        await asyncio.wait_for(sim.engine.terminate(sim.server), 3)
        await sim.server.close()
        with pytest.raises(aiohttp.ClientError):
            await held


async def test_as_a_process_it_streams_to_the_openai_client_and_drains_to_exit_code_0() -> None:
    port = free_port()
    arguments = ["--model-path", "m/x", "--served-model-name", "lamp", "--host", "0.0.0.0", "--port", str(port)]
    async with (
        engine(
            "sglang", *COMMAND, *arguments, LOAD_SECONDS="0.1", STEP_SECONDS="0.02", DRAIN_POLL_SECONDS="0.2"
        ) as process,
        aiohttp.ClientSession() as session,
        openai.AsyncOpenAI(base_url=f"http://{ADDRESS}:{port}/v1", api_key="-", max_retries=0) as client,
    ):

        async def ready() -> bool:
            try:
                async with session.get(f"http://{ADDRESS}:{port}/ready") as response:
                    return response.status == 200
            except aiohttp.ClientConnectorError:
                return False

        await eventually(ready, timeout_s=20)
        assert [model.id async for model in client.models.list()] == ["lamp"]
        stream = await client.chat.completions.create(
            model="lamp", messages=[{"role": "user", "content": "hello"}], max_tokens=60, stream=True
        )
        words = ""
        async for chunk in stream:
            if not words and chunk.choices[0].delta.content:
                process.send_signal(signal.SIGTERM)
            words += chunk.choices[0].delta.content or ""
        assert len(words.split()) == 60
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--model-path", "m", "--gpu-memory-utilization", "0.9"], 2, "error: unrecognized arguments: --gpu-memory-ut"),
        (["--model-path", "m", "--context-length", "1M"], 1, "User-specified context_length (1000000) is greater"),
    ],
)
async def test_a_refusal_ends_the_process_with_the_real_exit_code_and_text(
    argv: list[str], code: int, message: str
) -> None:
    async with engine("sglang", *COMMAND, *argv, LOAD_SECONDS="0.1") as process:
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == code
    assert message in errors.decode()
