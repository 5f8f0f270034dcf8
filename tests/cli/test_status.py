"""`flotilla status` and `describe`: what they make of resources."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.schema import put
from typer.testing import CliRunner

from flotilla.cli import app, describe, status

MODEL: dict[str, Any] = {
    "metadata": {"name": "m", "namespace": "n", "generation": 2},
    "spec": {
        "model": {"source": "hf://Qwen/Qwen2.5-7B-Instruct"},
        "accelerator": {"class": "nvidia-l4"},
        "scaling": {"minReplicas": 1, "maxReplicas": 4},
    },
    "status": {
        "observedGeneration": 2,
        "replicas": 2,
        "scheduledReplicas": 2,
        "readyReplicas": 1,
        "endpoint": "http://m.n.svc:8000/v1",
        "engine": {"name": "vllm", "version": "0.33.0", "image": "vllm/vllm-openai:v0.33.0"},
        "quantization": {"method": "fp8", "kvCache": "auto"},
        "accelerator": {"class": "nvidia-l4", "count": 2, "resource": "nvidia.com/gpu"},
        "fit": {
            "verdict": "Fits",
            "weightsMib": 8192,
            "workingMib": 2048,
            "kvCacheMib": 4096,
            "contextLength": 8192,
            "longestContextLength": 20480,
            "concurrentRequests": 7,
        },
        "scaling": {"mode": "Internal", "desiredReplicas": 2},
        "cost": {
            "gpuHourlyPrice": "0.8048",
            "priceSource": "AWS",
            "priceAsOf": "2026-11-09",
            "comparators": [{"provider": "openai", "model": "gpt-5-mini"}],
        },
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "At least one replica serves."},
            {"type": "Reconciling", "status": "False", "reason": "Settled", "message": "Nothing is left to do."},
            {"type": "Stalled", "status": "False", "reason": "Progressing", "message": "Nothing blocks it."},
        ],
    },
}
POLICY: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "n", "generation": 1},
    "spec": {"hostModels": ["support"]},
    "status": {
        "observedGeneration": 1,
        "conditions": [{"type": "Stalled", "status": "True", "reason": "UnknownTarget", "message": "No such target."}],
    },
}


def shown(obj: Any) -> str:
    console = Console(width=160, record=True)
    console.print(obj)
    return console.export_text()


def test_a_row_says_what_is_known() -> None:
    row = status.row(MODEL)
    assert (row["state"], row["usd_per_hour"], row["engine"]) == ("Ready", "3.22", "vllm 0.33.0")
    assert (row["ready_replicas"], row["desired_replicas"], row["gpus_per_replica"]) == (1, 2, 2)


def test_what_is_unknown_is_absent_and_never_0() -> None:
    fresh = {key: MODEL[key] for key in ("metadata", "spec")}
    row = status.row(fresh)
    assert not {"usd_per_hour", "ready_replicas", "engine", "quantization"} & set(row)
    assert (row["state"], row["reason"]) == ("Reconciling", "NotSeen")
    assert "usd_per_hour" not in json.loads(status.json_text(status.Fleet([fresh], [])))["total"]


def test_the_total_counts_what_has_a_price_and_says_what_has_none() -> None:
    priceless = put(MODEL, ("status", "cost"), {})
    total = json.loads(status.json_text(status.Fleet([MODEL, priceless], [])))["total"]
    assert total == {"models": 2, "gpus": 8, "usd_per_hour": "3.22", "models_without_price": 1}


def test_a_generation_that_nobody_has_seen_is_not_called_ready() -> None:
    assert status.state(put(MODEL, ("metadata", "generation"), 3))[:2] == ("Reconciling", "NotSeen")


def test_the_view_shows_models_policies_and_what_is_stuck() -> None:
    text = shown(status.view(status.Fleet([MODEL], [POLICY]), everywhere=True))
    for part in ("n ", "vllm 0.33.0", "2 x nvidia-l4", "1/2", "3.22", "Serving", "support", "p: No such target."):
        assert part in text
    assert not status.Fleet([MODEL], [POLICY]).all_ready
    assert status.Fleet([MODEL], []).all_ready


def test_an_empty_namespace_says_where_to_look() -> None:
    assert "-A" in shown(status.view(status.Fleet([], []), everywhere=False))


def test_a_description_gives_each_decision_with_its_basis() -> None:
    facts = describe.facts(describe.ModelDescription(MODEL, [], []))
    assert facts["Memory"] == "Fits: weights 8.0 GiB, working 2.0 GiB, KV cache 4.0 GiB"
    assert facts["Context"] == "8,192 tokens, 7 concurrent requests of full context length; 20,480 would fit"
    assert facts["Price"] == "0.8048 $ per GPU-hour (AWS, 2026-11-09); now 3.22 $/h"
    assert facts["Scaling"] == "Internal, 1 to 4"
    busy = {"mode": "Internal", "source": "Pods", "panicSince": "2026-11-25T09:00:00Z"}
    told = describe.facts(describe.ModelDescription(put(MODEL, ("status", "scaling"), busy), [], []))["Scaling"]
    assert told == "Internal, 1 to 4, from the queues of Pods, in panic since 2026-11-25T09:00:00Z"
    led = describe.facts(describe.ModelDescription(put(MODEL, ("status", "scaling"), {"mode": "External"}), [], []))
    assert led["Scaling"] == "External"
    fresh = describe.facts(describe.ModelDescription({key: MODEL[key] for key in ("metadata", "spec")}, [], []))
    assert not {"Memory", "Price", "Context", "Engine", "Endpoint"} & set(fresh)


def test_a_pod_says_where_it_is_and_why_it_waits() -> None:
    crashed = {
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"reason": "OOMKilled"}},
    }
    pod = {
        "metadata": {"name": "m-1"},
        "spec": {"nodeName": "gpu-1"},
        "status": {"containerStatuses": [crashed]},
    }
    assert describe.pod_row(pod) == {
        "name": "m-1",
        "node": "gpu-1",
        "ready": False,
        "restarts": 3,
        "waiting": "CrashLoopBackOff",
        "last_exit": "OOMKilled",
    }
    assert describe.pod_row({"metadata": {"name": "x"}, "spec": {}}) == {"name": "x", "ready": False, "restarts": 0}


def test_a_description_on_a_terminal_shows_what_is_wrong_in_words() -> None:
    broken = put(
        MODEL, ("status", "conditions", 0), {**POLICY["status"]["conditions"][0], "type": "Ready", "status": "False"}
    )
    event = {"metadata": {}, "eventTime": "2026-01-01T00:00:00Z", "type": "Warning", "reason": "R", "note": "It broke."}
    console = Console(width=160, record=True)
    describe.show(console, describe.ModelDescription(broken, [{"metadata": {"name": "m-1"}, "spec": {}}], [event]))
    text = console.export_text()
    for part in ("n/m", "No such target.", "m-1", "no node", "It broke."):
        assert part in text
    assert "Nothing blocks it." not in text


def test_without_a_cluster_the_exit_code_tells(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\nusers: [{name: u, user: {}}]\n"
    )
    for arguments, code in (
        (["status", "--kubeconfig", str(config)], 3),
        (["describe", "m", "--kubeconfig", str(config)], 3),
        (["doctor", "--kubeconfig", str(config)], 3),
        (["status", "--kubeconfig", "/nowhere"], 2),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, (arguments, result.output, result.exception)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_verbs(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"COMP_WORDS": "flotilla de", "COMP_CWORD": "1"}
    asked = {"_TYPER_COMPLETE_ARGS": "flotilla de", "_TYPER_COMPLETE_FISH_ACTION": "get-args", **words}
    for name, value in {**asked, "_FLOTILLA_COMPLETE": f"complete_{shell}"}.items():
        monkeypatch.setenv(name, value)
    assert "describe" in CliRunner().invoke(app, [], prog_name="flotilla").stdout


def test_the_command_starts_without_what_its_verbs_need() -> None:
    """Its start is mostly imports: --help and completion must be quick."""
    heavy = ("rich", "pydantic", "pydantic_settings", "yaml", "kubernetes", "aiohttp", "kopf", "jinja2")
    code = (
        "import sys\nfrom flotilla.cli import app\napp(['--help'], standalone_mode=False)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_watching_shows_the_fleet_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("current-context: c\ncontexts: [{name: c, context: {}}]\n")
    looks: list[int] = []

    def interrupted(_: float) -> None:
        if len(looks) > 2:
            raise KeyboardInterrupt

    def ask(*_: object) -> status.Fleet:
        looks.append(1)
        return status.Fleet([MODEL], [])

    monkeypatch.setattr("flotilla.cli.kubeconfig.Cluster.ask", ask)
    monkeypatch.setattr("flotilla.cli.common.time.sleep", interrupted)
    result = CliRunner().invoke(app, ["status", "--watch", "--kubeconfig", str(config)])
    assert result.exit_code == 0
    assert len(looks) == 3
    assert "nvidia-l4" in result.stdout
