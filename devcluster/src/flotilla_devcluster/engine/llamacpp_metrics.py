"""The numbers of a llama.cpp server, and which request is in which of its slots.

What is counted when: tools/server/server-context.cpp (`metrics_post_decode`, `metrics_on_prediction`) of
ggml-org/llama.cpp@0c1e57098.
"""

from __future__ import annotations

from typing import Final

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.exposition import stream_text
from flotilla_devcluster.engine.metrics import Metrics, Value, load_families

_FILE: Final = "llamacpp-0.5.0.metrics"
_PREFIX: Final = "llamacpp:"


class LlamacppMetrics:
    """The two rates are those since the last scrape; generated tokens count when their request leaves its slot."""

    def __init__(self, batcher: Batcher, *, slots: int) -> None:
        self._metrics = Metrics(load_families(_FILE, buckets={}), constants={})
        self._batcher = batcher
        self._busy_slots = 0
        self._prompt_window = _Window()
        self._predicted_window = _Window()
        self.slots: list[SimulatedSequence | None] = [None] * slots

    def on_event(self, event: Event | Steps) -> None:
        if isinstance(event, Steps):
            self._steps(event)
        elif event.kind is EventKind.ADMITTED:
            self.slots[self.slots.index(None)] = event.sequence
        elif event.kind in (EventKind.FINISHED, EventKind.ABORTED) and event.sequence in self.slots:
            self.slots[self.slots.index(event.sequence)] = None
            self._released(event.sequence, event.at_s)

    def text(self) -> str:
        """The text of a scrape, which begins the next window."""
        decodes = self._value("n_decode_total").value
        self._value("prompt_tokens_seconds").value = self._prompt_window.rate
        self._value("predicted_tokens_seconds").value = self._predicted_window.rate
        self._value("requests_processing").value = len(self._batcher.running)
        self._value("requests_deferred").value = len(self._batcher.waiting)
        self._value("n_busy_slots_per_decode").value = self._busy_slots / max(decodes, 1)
        self._prompt_window, self._predicted_window = _Window(), _Window()
        return stream_text(self._metrics)

    def _steps(self, steps: Steps) -> None:
        self._count("n_decode_total", steps.count)
        self._busy_slots += steps.count * steps.sequences
        if steps.prefill_tokens:
            self._count("prompt_tokens_total", steps.prefill_tokens)
            self._count("prompt_seconds_total", steps.duration_s * steps.count)
            self._prompt_window.add(steps.prefill_tokens, steps.duration_s * steps.count)

    def _released(self, sequence: SimulatedSequence, now_s: float) -> None:
        longest = self._value("n_tokens_max")
        longest.value = max(longest.value, sequence.prompt_tokens + sequence.emitted)
        if not sequence.emitted or sequence.first_token_s is None:
            return
        seconds = now_s - sequence.first_token_s
        self._count("tokens_predicted_total", sequence.emitted)
        self._count("tokens_predicted_seconds_total", seconds)
        # the first token came with the prompt
        self._predicted_window.add(sequence.emitted - 1, seconds)

    def _count(self, name: str, amount: float) -> None:
        self._value(name).value += amount

    def _value(self, name: str) -> Value:
        return self._metrics.value(_PREFIX + name)


class _Window:
    """Tokens and the time that they took, between two scrapes."""

    __slots__ = ("_seconds", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0

    @property
    def rate(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds
