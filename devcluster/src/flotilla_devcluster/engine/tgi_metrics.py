"""The numbers of a TGI server.

A family appears when something touches it for the first time, as in the real one: a fresh server shows
neither a queue nor a batch size.
"""

from __future__ import annotations

from typing import Final

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.exposition import rust_text
from flotilla_devcluster.engine.metrics import Metrics, load_families
from flotilla_devcluster.engine.tgi_config import TgiConfig

_DURATION_BUCKETS: Final = tuple(0.0001 * 1.5**power for power in range(1, 36))
_BATCH_SIZE_BUCKETS: Final = tuple(float(size) for size in range(1, 1025))


class TgiMetrics:
    def __init__(self, config: TgiConfig, batcher: Batcher) -> None:
        buckets = {
            "duration": _DURATION_BUCKETS,
            "batch_size": _BATCH_SIZE_BUCKETS,
            "input_tokens": _hundredths(config.max_input_tokens),
            "total_tokens": _hundredths(config.max_total_tokens),
        }
        families = load_families("tgi-3.3.7.metrics", buckets=buckets)
        self._metrics = Metrics(families, constants={}, lazy=True)
        self._metrics.value("tgi_batch_max_total_tokens").value = batcher.pool.total
        self._batcher = batcher
        self._queued = False
        self._batched = False
        self._admitted = 0

    def on_event(self, event: Event | Steps) -> None:
        if isinstance(event, Steps):
            self._steps(event)
        elif event.kind is EventKind.ADMITTED:
            self._admitted += 1
        elif event.kind is EventKind.FINISHED:
            self._finished(event.sequence, event.at_s)
        elif event.kind is EventKind.ABORTED:
            self.failed("dropped")

    def requested(self) -> None:
        self._metrics.value("tgi_request_count").value += 1

    def failed(self, error: str) -> None:
        self._metrics.value("tgi_request_failure", err=error).value += 1

    def validated(self, *, input_tokens: int, max_new_tokens: int) -> None:
        self._queued = True
        self._metrics.distribution("tgi_request_input_length").observe(input_tokens)
        self._metrics.distribution("tgi_request_max_new_tokens").observe(max_new_tokens)

    def text(self) -> str:
        if self._queued:
            self._metrics.value("tgi_queue_size").value = len(self._batcher.waiting)
        if self._batched:
            self._metrics.value("tgi_batch_current_size").value = len(self._batcher.running)
            self._metrics.value("tgi_batch_current_max_tokens").value = self._batcher.pool.used
        return rust_text(self._metrics)

    def _steps(self, steps: Steps) -> None:
        self._batched = True
        if self._admitted:
            self._metrics.distribution("tgi_batch_next_size").observe(self._admitted)
            self._admitted = 0
        for method, done in (("prefill", steps.prefill_tokens), ("decode", steps.decoding)):
            if done:
                self._metrics.value("tgi_batch_inference_count", method=method).value += steps.count
                self._metrics.value("tgi_batch_inference_success", method=method).value += steps.count
                for part in ("inference", "forward"):
                    name = f"tgi_batch_{part}_duration"
                    self._metrics.distribution(name, method=method).observe(steps.duration_s, steps.count)

    def _finished(self, sequence: SimulatedSequence, now_s: float) -> None:
        admitted_s = sequence.arrived_s if sequence.admitted_s is None else sequence.admitted_s
        inference_s = now_s - admitted_s
        self._metrics.value("tgi_request_success").value += 1
        for name, value in (
            ("tgi_request_duration", now_s - sequence.arrived_s),
            ("tgi_request_validation_duration", 0.0),
            ("tgi_request_queue_duration", admitted_s - sequence.arrived_s),
            ("tgi_request_inference_duration", inference_s),
            ("tgi_request_mean_time_per_token_duration", inference_s / sequence.output_tokens),
            ("tgi_request_generated_tokens", sequence.output_tokens),
        ):
            self._metrics.distribution(name).observe(value)


def _hundredths(largest: int) -> tuple[float, ...]:
    return tuple(largest / 100 * part for part in range(1, 101))
