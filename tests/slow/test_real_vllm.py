"""What the operator renders, run by the real engine: it starts, answers, is scraped, and drains with open streams."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.slow.conftest import CLAIM, VLLM_VERSION
from tests.support.combinations import COMBINATIONS
from tests.support.models import Models

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.planning.resolve import load_catalog, resolve
from flotilla_devcluster.stack import Stack, samples, value

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STREAMS = 24
"""Six times what runs at once, so that some still wait when the engine is told to end."""
PRE_STOP_S = 10
ARCHITECTURE = {
    "parametersMillions": 1, "layers": 2, "hiddenSize": 128, "intermediateSize": 256, "attentionHeads": 4, "kvHeads": 2,
    "headDim": 32, "vocabSize": 512, "embeddings": "Tied", "maxContextLength": 2048,
}  # fmt: skip
SPEC: dict[str, Any] = {
    "model": {"source": f"pvc://{CLAIM}", "architecture": ARCHITECTURE, "contextLength": 1024},
    "engine": {
        "name": "vllm",
        "version": VLLM_VERSION,
        "args": ["--enforce-eager", "--max-num-seqs=4"],
        "env": [
            {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "nobind"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
        ],
    },
    "accelerator": {"class": "cpu-amd64"},
    "resources": {"memory": "4Gi"},
}


def test_every_golden_command_line_of_vllm_passes_its_own_parser(vllm: Path) -> None:
    catalog = load_catalog()
    lines = {
        name: list(resolve("tiny", ModelDeploymentSpec.model_validate(spec), catalog).argv)
        for name, (spec, _) in COMBINATIONS.items()
        if spec["engine"]["name"] == "vllm"
    }
    # The parser can refuse.
    lines["wrong"] = ["x", "--no-such-flag"]
    script = Path(__file__).parent / "parse_flags.py"
    done = subprocess.run(
        [str(vllm / "bin" / "python"), str(script)], input=json.dumps(lines), capture_output=True, text=True, check=True
    )
    refusals = json.loads(done.stdout.splitlines()[-1])
    assert set(refusals) == {"wrong"}
    assert "--no-such-flag" in refusals["wrong"]


def stream(url: str) -> str:
    """One long answer; returns why it ended."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    ended = ""
    messages: list[Any] = [{"role": "user", "content": "the quick brown fox"}]
    with client.chat.completions.create(
        model="real", messages=messages, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    ) as chunks:
        for chunk in chunks:
            ended = (chunk.choices and chunk.choices[0].finish_reason) or ended
    return ended


def test_a_real_vllm_serves_is_scraped_and_drains(real_stack: Stack) -> None:
    models = Models(real_stack, "default")
    models.apply("real", SPEC)
    models.wait(lambda: models.condition("real", "Ready").get("status") == "True", "vLLM to serve", timeout_s=400)
    url = real_stack.service_url("real", "default")
    assert url is not None
    client = openai.OpenAI(base_url=url, api_key="none", timeout=120)
    said = client.chat.completions.create(model="real", messages=[{"role": "user", "content": "fox"}], max_tokens=8)
    assert said.usage is not None
    answered = said.usage.completion_tokens
    models.wait_condition("real", "ScalingActive", "True", "Steady")

    def counted() -> bool:
        tokens = value(
            samples(real_stack.operator.metrics()),
            "flotilla_deployment_tokens_total", modeldeployment="real", namespace="default", token_type="output",
        )  # fmt: skip
        return (tokens or 0) >= answered

    models.wait(counted, "the tokens to be counted")
    (pod,) = models.list("Pod")
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, url) for _ in range(STREAMS)]
        models.wait(lambda: _accepted(real_stack) == STREAMS, "every stream to be accepted")
        models.delete("Pod", pod["metadata"]["name"])
        deleted = time.monotonic()
        assert [future.result(timeout=180) for future in streams] == ["length"] * STREAMS
        assert time.monotonic() - deleted > PRE_STOP_S + 1
    models.delete("ModelDeployment", "real")


def _accepted(stack: Stack) -> float:
    found = value(
        samples(stack.operator.metrics()), "flotilla_queue_depth", modeldeployment="real", namespace="default"
    )
    return float(found or 0)
