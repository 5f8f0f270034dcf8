"""How far a run is: JSON lines on standard output, gauges at /metrics, and the summary of the end.

The operator reads the gauges while the pod runs (`flotilla_finetune_*`) and the summary from the container's
termination message, so that the trainer needs no access to Kubernetes."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

# Kubernetes keeps at most 4,096 bytes of a termination message.
TERMINATION_MESSAGE_BYTES = 4096


@dataclass(frozen=True)
class Summary:
    """What a finished run reports. Losses are mean cross-entropy in nats a learned token; absent if not measured."""

    digest: str
    examples: int
    skipped_examples: int
    steps: int
    resumed_from_step: int
    train_loss: float
    validation_loss: float | None
    seconds: float
    backend: str
    output: str


class Progress:
    """Reports steps and losses of one run. `port` 0 serves no metrics."""

    def __init__(self, port: int = 0) -> None:
        registry = CollectorRegistry()
        self._step = Gauge("flotilla_finetune_step", "Optimizer steps done.", registry=registry)
        self._steps = Gauge("flotilla_finetune_steps", "Optimizer steps of the whole run.", registry=registry)
        self._epoch = Gauge("flotilla_finetune_epoch", "Epochs completed.", registry=registry)
        self._loss = Gauge("flotilla_finetune_loss_nats", "Mean loss of a learned token.", ["split"], registry=registry)
        self._rate = Gauge("flotilla_finetune_tokens_per_second", "Tokens trained in a second.", registry=registry)
        self._started = time.monotonic()
        if port:
            start_http_server(port, registry=registry)

    def event(self, name: str, **fields: Any) -> None:
        """One line of the log, as JSON."""
        line = {"event": name, "seconds": round(time.monotonic() - self._started, 1), **fields}
        print(json.dumps(line), flush=True)

    def step(self, step: int, steps: int, loss: float, tokens_per_second: float) -> None:
        """An optimizer step was done."""
        self._step.set(step)
        self._steps.set(steps)
        self._loss.labels("train").set(loss)
        self._rate.set(tokens_per_second)
        self.event("step", step=step, steps=steps, loss=round(loss, 4), tokensPerSecond=round(tokens_per_second))

    def epoch(self, epoch: int, epochs: int, train_loss: float, validation_loss: float | None) -> None:
        """An epoch was completed, and the held-out examples were measured if there are any."""
        self._epoch.set(epoch)
        self._loss.labels("train").set(train_loss)
        if validation_loss is not None:
            self._loss.labels("validation").set(validation_loss)
        self.event(
            "epoch",
            epoch=epoch,
            epochs=epochs,
            trainLoss=round(train_loss, 4),
            validationLoss=None if validation_loss is None else round(validation_loss, 4),
        )

    def seconds(self) -> float:
        """Seconds since the start of this process's run."""
        return time.monotonic() - self._started


def camel_case(fields: dict[str, Any]) -> dict[str, Any]:
    """Names as in the status of a FineTune."""
    return {
        name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:]): value
        for name, value in fields.items()
    }


def summary_document(summary: Summary) -> dict[str, Any]:
    """The summary as the JSON object of the termination message and of `report.json`."""
    fields = {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(summary).items()}
    return camel_case({key: value for key, value in fields.items() if value is not None})


def write_termination_message(path: Path | None, document: dict[str, Any]) -> None:
    """Leave `document` where the kubelet looks for it. A folder that does not exist means that no kubelet is there."""
    if path is None or not path.parent.is_dir():
        return
    text = json.dumps(document)[:TERMINATION_MESSAGE_BYTES]
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"The termination message cannot be written to {path}: {error}\n")
