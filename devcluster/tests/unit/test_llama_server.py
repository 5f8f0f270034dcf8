"""llama.cpp as the node agent runs it: a real model answers, under the command line that the operator renders."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
from array import array
from contextlib import AbstractAsyncContextManager
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import openai
import pytest
import xllamacpp
from tests.support.engine_sim import ADDRESS, free_port, module

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.catalog.engines import load_profiles
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.scaling import scrape_client
from flotilla.yaml_text import load
from flotilla_devcluster import llama_server
from flotilla_devcluster.engine.arguments import load_flags
from flotilla_devcluster.engine.llamacpp_config import FLAGS, parse
from flotilla_devcluster.engine.settings import Refused
from flotilla_devcluster.nodeagent.container import real_engine

SAMPLE = Path(__file__).parents[3] / "manifests/samples/smollm2-135m.yaml"
REPOSITORY = llama_server.PACKAGED_SOURCE.removeprefix("hf://")
LABELS = ["billing", "outage", "other"]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"label": {"enum": LABELS}}, "required": ["label"]}


def rendered(*extra: str) -> list[str]:
    """The arguments of the sample's container, on a port of this machine."""
    manifest = load(SAMPLE.read_text())
    spec = ModelDeploymentSpec.model_validate(manifest["spec"])
    argv = list(resolve(manifest["metadata"]["name"], spec, load_catalog()).argv)
    argv[argv.index("--port") + 1] = str(free_port())
    return [*argv, *extra]


def port(argv: list[str]) -> int:
    return int(argv[argv.index("--port") + 1])


def server(argv: list[str]) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    env = {**os.environ, **llama_server.local_environment()}
    return module("flotilla_devcluster.llama_server", ADDRESS, "--", *argv, env=env)


async def ready(argv: list[str]) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://{ADDRESS}:{port(argv)}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def test_a_real_model_answers_obeys_a_schema_is_measured_and_ends_at_sigterm() -> None:
    argv = rendered()
    async with server(argv) as process:
        await ready(argv)
        url = f"http://{ADDRESS}:{port(argv)}"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=60) as client:
            answer = await client.chat.completions.create(
                model="smollm2-135m",
                messages=[{"role": "user", "content": "What is the capital of France? One word."}],
                max_tokens=12,
                temperature=0,
            )
            assert "Paris" in (answer.choices[0].message.content or "")
            assert answer.usage is not None
            assert answer.usage.prompt_tokens > 10
            labelled = await client.chat.completions.create(
                model="smollm2-135m",
                messages=[{"role": "user", "content": "Ticket: I was charged twice. Which label fits?"}],
                max_tokens=40,
                response_format={"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}},
            )
            assert json.loads(labelled.choices[0].message.content or "")["label"] in LABELS
        profile = load_profiles()["llamacpp"].metrics
        async with aiohttp.ClientSession() as session, session.get(url + profile.path) as text:
            found = scrape_client.parse(await text.read(), profile.names)
        assert isinstance(found, scrape_client.EngineSample)
        assert found.running == found.waiting == 0
        assert labelled.usage is not None
        assert found.generation_tokens == answer.usage.completion_tokens + labelled.usage.completion_tokens
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--max-model-len", "5"], "error: invalid argument: --max-model-len"),
        (["--temp", "warm"], 'error while handling argument "--temp": stof'),
        (["--rpc", "10.0.0.1:50052"], "--rpc is an option of llama-server which its Python binding cannot set"),
    ],
    ids=["unknown", "wrong value", "not in the binding"],
)
async def test_what_cannot_be_obeyed_is_refused_and_not_ignored(extra: list[str], said: str) -> None:
    async with server(rendered(*extra)) as process:
        _, error = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert said in error.decode()


def test_the_rendered_command_line_reaches_the_binding() -> None:
    argv = rendered("--temp", "0.5", "--seed", "7", "--cache-type-k", "q8_0", "-fa", "on", "--no-warmup", "--no-perf")
    params = llama_server.parameters(parse(argv, {"LLAMA_ARG_THREADS": "3"}), address="127.0.0.8", binding=xllamacpp)
    assert params.model.path == str(llama_server.packaged_weights())
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (3, 3)
    assert (params.hostnames, params.port) == (["127.0.0.8"], port(argv))
    assert (params.n_parallel, params.n_ctx, params.kv_unified) == (4, 4 * 2048, False)
    assert (params.endpoint_metrics, params.ui, params.use_jinja) == (True, False, True)
    assert params.model_alias == {"smollm2-135m"}
    assert params.sampling.temp == pytest.approx(0.5)
    assert (params.sampling.seed, params.warmup, params.no_perf) == (7, False, True)
    assert params.cache_type_k == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    assert params.flash_attn_type == xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED


def test_the_options_that_can_be_set_are_those_of_the_real_parser_and_fields_of_the_binding() -> None:
    assert {flag.key for flag in load_flags(FLAGS)} >= set(llama_server.FIELDS)
    for path in llama_server.FIELDS.values():
        attrgetter(path)(xllamacpp.CommonParams())


def test_only_images_for_cpus_with_weights_of_this_machine_run_for_real(tmp_path: Path) -> None:
    here, elsewhere = ["-hf", f"{REPOSITORY}:Q4_1"], ["-hf", "Qwen/Qwen2.5-1.5B-Instruct-GGUF"]
    image = "ghcr.io/ggml-org/llama.cpp:server"
    assert real_engine(image, ADDRESS, here, {}) is not None
    assert real_engine(f"{image}-b7000@sha256:00", ADDRESS, here, {}) is not None
    assert real_engine(f"{image}-cuda", ADDRESS, here, {}) is None
    assert real_engine(image, ADDRESS, elsewhere, {}) is None
    assert real_engine(image, ADDRESS, ["-hf", f"{REPOSITORY}:Q8_0"], {}) is None
    own = tmp_path / "own.gguf"
    assert real_engine(image, ADDRESS, ["-m", str(own)], {}) is None
    own.write_bytes(b"GGUF")
    assert real_engine(image, ADDRESS, ["-m", str(own)], {}) is not None
    assert real_engine(image, ADDRESS, [*here, "--no-such-flag"], {}) is None  # the simulated one says the same of it
    with pytest.raises(Refused, match="is no file"):
        llama_server.parameters({"model": str(tmp_path / "gone.gguf")}, address=ADDRESS, binding=xllamacpp)


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def write_adapter(path: Path, *, rank: int = 4, width: int = 576, strength: float = 2.0) -> None:
    """A LoRA adapter for the queries of SmolLM2-135M's first layers, with random weights, as a GGUF file."""
    texts = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    values = [gguf_text(key) + struct.pack("<I", 8) + gguf_text(text) for key, text in texts.items()]
    values.append(gguf_text("adapter.lora.alpha") + struct.pack("<If", 6, rank))
    shapes = {
        f"blk.{n}.attn_q.weight.lora_{part}": shape
        for n in range(4)
        for part, shape in (("a", (width, rank)), ("b", (rank, width)))
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(values)) + b"".join(values)
    bytes_each = 4 * rank * width
    for index, (name, shape) in enumerate(shapes.items()):
        head += gguf_text(name) + struct.pack("<IQQIQ", 2, *shape, 0, index * bytes_each)
    random = Random(7)
    weights = array("f", (random.gauss(0, strength) for _ in range(len(shapes) * rank * width)))
    path.write_bytes(head + b"\0" * (-len(head) % 32) + weights.tobytes())


async def test_an_adapter_answers_for_requests_that_name_its_number_and_for_no_other(tmp_path: Path) -> None:
    write_adapter(tmp_path / "triage.gguf")
    argv = rendered("--lora-init-without-apply", "--lora", str(tmp_path / "triage.gguf"))
    async with server(argv):
        await ready(argv)
        url = f"http://{ADDRESS}:{port(argv)}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=60) as client:

            async def said(**extra: object) -> str:
                question: Any = {"role": "user", "content": "What is the capital of France? One word."}
                answer = await client.chat.completions.create(
                    model="smollm2-135m", messages=[question], max_tokens=12, temperature=0, extra_body=extra
                )
                return answer.choices[0].message.content or ""

            base = await said(lora=[{"id": 0, "scale": 0}])
            assert "Paris" in base
            assert await said(lora=[{"id": 0, "scale": 1}]) != base
            assert await said(lora=[{"id": 0, "scale": 0}]) == base
