"""The numbers of an SGLang server: what each event of the batcher does to its metrics.

Names, labels and buckets are those that the collector classes of the wheel put out, see the data file.
"""

from __future__ import annotations

import math
import os
from typing import Final

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.exposition import multiprocess_text
from flotilla_devcluster.engine.metrics import Metrics, load_families
from flotilla_devcluster.engine.sglang_config import SglangConfig

_FILE: Final = "sglang-0.5.23.metrics"
_ABORTED: Final = "sglang:num_aborted_requests_total"


class SglangMetrics:
    """Counters of tokens move when a request ends, as in the real one; gauges are read from the batcher at a scrape."""

    def __init__(self, config: SglangConfig, batcher: Batcher) -> None:
        families = load_families(_FILE, buckets={})
        if not config.lora:
            families = [family for family in families if not family.name.startswith("sglang:lora_pool")]
        self._metrics = Metrics(families, constants=_constants(config))
        self._batcher = batcher
        self._streams: set[SimulatedSequence] = set()
        self._throughput = 0.0
        # the one family of a lone server that shows nothing before its first event
        self._metrics.families[_ABORTED].values.clear()
        self._set("sglang:max_total_num_tokens", batcher.pool.total * batcher.pool.block_size)
        self._set("sglang:page_size", batcher.pool.block_size)
        self._set("sglang:num_pages", batcher.pool.total)
        self._set("sglang:context_len", config.context_tokens)
        self._set("sglang:utilization", -1)
        self._set("sglang:fwd_occupancy", math.nan)
        if config.lora:
            self._set("sglang:lora_pool_slots_total", config.max_loras)

    def submitted(self, sequences: list[SimulatedSequence], *, streaming: bool) -> None:
        """Most families tell streams from other requests."""
        if streaming:
            self._streams.update(sequences)

    def on_event(self, event: Event | Steps) -> None:
        if isinstance(event, Steps):
            self._steps(event)
            return
        sequence = event.sequence
        if event.kind is EventKind.ADMITTED:
            self._observe("sglang:queue_time_seconds", event.at_s - sequence.arrived_s)
        elif event.kind is EventKind.FIRST_TOKEN:
            waited_s = event.at_s - sequence.arrived_s
            self._observe("sglang:time_to_first_token_seconds", waited_s, is_streaming=self._streaming(sequence))
            self._count("sglang:prefill_effective_tokens_total", sequence.prompt_tokens, mode="input")
        elif event.kind is EventKind.PREEMPTED:
            self._count("sglang:num_retracted_requests_total")
        elif event.kind is EventKind.FINISHED:
            self._finished(sequence, event.at_s)
        elif event.kind is EventKind.ABORTED:
            self._streams.discard(sequence)
            self._count(_ABORTED)

    def asked(self, path: str, method: str) -> None:
        self._count("sglang:http_requests_total", endpoint=path, method=method)
        self._count("sglang:http_requests_active", endpoint=path, method=method)

    def answered(self, path: str, method: str, status: int | None) -> None:
        """`status` None: the client left before its answer."""
        self._count("sglang:http_requests_active", -1, endpoint=path, method=method)
        if status is not None:
            self._count("sglang:http_responses_total", endpoint=path, method=method, status_code=str(status))

    def text(self) -> str:
        batcher, pool = self._batcher, self._batcher.pool
        self._set("sglang:num_running_reqs", len(batcher.running))
        self._set("sglang:num_queue_reqs", len(batcher.waiting))
        self._set("sglang:gen_throughput", self._throughput if batcher.running else 0)
        self._set("sglang:token_usage", batcher.kv_usage)
        self._set("sglang:full_token_usage", batcher.kv_usage)
        self._set("sglang:num_used_tokens", pool.used * pool.block_size)
        self._set("sglang:kv_used_tokens", pool.used * pool.block_size)
        self._set("sglang:kv_available_tokens", pool.free * pool.block_size)
        held = sum(sequence.prompt_tokens + batcher.tokens(sequence) for sequence in batcher.running)
        self._set("sglang:decode_sum_seq_lens", held)
        return multiprocess_text(self._metrics)

    def _steps(self, steps: Steps) -> None:
        if steps.decoding:
            self._throughput = steps.decoding / steps.duration_s
            self._count("sglang:realtime_tokens_total", steps.decoding * steps.count, mode="decode")
            distribution = self._metrics.distribution("sglang:inter_token_latency_seconds")
            distribution.observe(steps.duration_s, steps.decoding * steps.count)
        if steps.prefill_tokens:
            self._count("sglang:realtime_tokens_total", steps.prefill_tokens, mode="prefill_compute")

    def _finished(self, sequence: SimulatedSequence, now_s: float) -> None:
        kind = self._streaming(sequence)
        first_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        self._count("sglang:prompt_tokens_total", sequence.prompt_tokens, is_streaming=kind)
        self._count("sglang:generation_tokens_total", sequence.output_tokens, is_streaming=kind)
        self._count("sglang:num_requests_total", is_streaming=kind)
        self._observe("sglang:e2e_request_latency_seconds", now_s - sequence.arrived_s, is_streaming=kind)
        if sequence.output_tokens > 1:
            per_token_s = (now_s - first_s) / (sequence.output_tokens - 1)
            self._observe("sglang:request_time_per_output_token_seconds", per_token_s, is_streaming=kind)
        self._observe("sglang:prompt_tokens_histogram", sequence.prompt_tokens)
        self._observe("sglang:uncached_prompt_tokens_histogram", sequence.prompt_tokens)
        self._observe("sglang:generation_tokens_histogram", sequence.output_tokens)
        self._streams.discard(sequence)

    def _streaming(self, sequence: SimulatedSequence) -> str:
        return "true" if sequence in self._streams else "false"

    def _set(self, name: str, value: float) -> None:
        self._metrics.value(name).value = value

    def _count(self, name: str, amount: float = 1, **labels: str) -> None:
        self._metrics.value(name, **labels).value += amount

    def _observe(self, name: str, value: float, **labels: str) -> None:
        self._metrics.distribution(name, **labels).observe(value)


def _constants(config: SglangConfig) -> dict[str, str]:
    return {
        "model_name": config.served_name,
        "engine_type": "unified",
        "tp_rank": "0",
        "pp_rank": "0",
        "moe_ep_rank": "0",
        "pid": str(os.getpid()),
    }
