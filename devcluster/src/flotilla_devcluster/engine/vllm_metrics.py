"""The numbers of a vLLM engine: what each event of the batcher does to its metrics."""

from __future__ import annotations

from collections.abc import Sequence as Row

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.exposition import python_text
from flotilla_devcluster.engine.metrics import Metrics, load_families
from flotilla_devcluster.engine.vllm_config import VllmConfig

_UNMEASURED_PATHS = frozenset(("/metrics", "/health", "/load", "/ping", "/version", "/server_info"))


class VllmMetrics:
    """Histograms fill as things happen; gauges and token counters are read from the batcher at a scrape."""

    def __init__(self, config: VllmConfig, batcher: Batcher) -> None:
        families = load_families("vllm-0.33.metrics", buckets={"context": one_two_five(config.context_tokens)})
        self._metrics = Metrics(families, constants=_constants(config))
        self._batcher = batcher
        self._engine_families = config.log_stats
        self._metrics.value("vllm:cache_config_info").value = 1
        self._metrics.value("vllm:engine_sleep_state", sleep_state="awake").value = 1
        self._iteration = self._metrics.distribution("vllm:iteration_tokens_total")
        self._inter_token = self._metrics.distribution("vllm:inter_token_latency_seconds")

    def on_event(self, event: Event | Steps) -> None:
        if isinstance(event, Steps):
            tokens = event.decoding + event.prefill_tokens
            if tokens:
                self._iteration.observe(tokens, event.count)
            if event.decoding:
                self._inter_token.observe(event.duration_s, event.count * event.decoding)
        elif event.kind is EventKind.ADMITTED:
            self._count("vllm:prefix_cache_queries_total", event.sequence.prompt_tokens)
        elif event.kind is EventKind.FIRST_TOKEN:
            self._observe("vllm:time_to_first_token_seconds", event.at_s - event.sequence.arrived_s)
        elif event.kind is EventKind.RESUMED:
            self._inter_token.observe(event.stall_s)
        elif event.kind is EventKind.PREEMPTED:
            self._count("vllm:num_preemptions_total")
        elif event.kind is EventKind.FINISHED:
            self._finished(event.sequence, event.at_s)
        elif event.kind is EventKind.ABORTED:
            self._ended("abort")

    def asked(self, *, max_tokens: int, sequences: int) -> None:
        """Parameters of a request that was admitted."""
        self._observe("vllm:request_params_n", sequences)
        self._observe("vllm:request_params_max_tokens", max_tokens)

    def rejected(self, reason: str) -> None:
        self._metrics.value("vllm:admission_rejections_total", reason=reason).value += 1

    def answered(
        self, path: str, method: str, status: int, *, seconds: float, request_bytes: int, response_bytes: int
    ) -> None:
        """One HTTP exchange, as prometheus-fastapi-instrumentator counts it."""
        if path in _UNMEASURED_PATHS:
            return
        metrics = self._metrics
        metrics.value("http_requests_total", handler=path, method=method, status=f"{status // 100}xx").value += 1
        metrics.distribution("http_request_size_bytes", handler=path).observe(request_bytes)
        metrics.distribution("http_response_size_bytes", handler=path).observe(response_bytes)
        metrics.distribution("http_request_duration_highr_seconds").observe(seconds)
        metrics.distribution("http_request_duration_seconds", handler=path, method=method).observe(seconds)

    def text(self) -> str:
        batcher, metrics = self._batcher, self._metrics
        metrics.value("vllm:num_requests_running").value = len(batcher.running)
        metrics.value("vllm:num_requests_waiting").value = len(batcher.waiting)
        metrics.value("vllm:num_requests_waiting_by_reason", reason="capacity").value = len(batcher.waiting)
        metrics.value("vllm:kv_cache_usage_perc").value = batcher.kv_usage
        metrics.value("vllm:prompt_tokens_total").value = batcher.prefilled_tokens
        metrics.value("vllm:prompt_tokens_by_source_total", source="local_compute").value = batcher.prefilled_tokens
        metrics.value("vllm:generation_tokens_total").value = batcher.generated_tokens
        return python_text(metrics, prefix="" if self._engine_families else "http_")

    def _finished(self, sequence: SimulatedSequence, now_s: float) -> None:
        admitted_s = sequence.arrived_s if sequence.admitted_s is None else sequence.admitted_s
        first_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        observations: Row[tuple[str, float]] = (
            ("vllm:request_prompt_tokens", sequence.prompt_tokens),
            ("vllm:request_generation_tokens", sequence.output_tokens),
            ("vllm:request_max_num_generation_tokens", sequence.output_tokens),
            ("vllm:request_prefill_kv_computed_tokens", sequence.prompt_tokens),
            ("vllm:request_num_preemptions", sequence.preemptions),
            (
                "vllm:request_time_per_output_token_seconds",
                (now_s - first_s) / max(1, sequence.output_tokens - 1),
            ),
            ("vllm:e2e_request_latency_seconds", now_s - sequence.arrived_s),
            ("vllm:request_queue_time_seconds", admitted_s - sequence.arrived_s),
            ("vllm:request_inference_time_seconds", now_s - admitted_s),
            ("vllm:request_prefill_time_seconds", first_s - admitted_s),
            ("vllm:request_decode_time_seconds", now_s - first_s),
        )
        for name, value in observations:
            self._observe(name, value)
        self._ended(sequence.finish_reason)

    def _ended(self, reason: str) -> None:
        self._metrics.value("vllm:request_success_total", finished_reason=reason).value += 1

    def _observe(self, name: str, value: float) -> None:
        self._metrics.distribution(name).observe(value)

    def _count(self, name: str, amount: float = 1) -> None:
        self._metrics.value(name).value += amount


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`."""
    bounds: list[float] = []
    magnitude = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * magnitude > largest:
                return tuple(bounds)
            bounds.append(float(mantissa * magnitude))
        magnitude *= 10


def _constants(config: VllmConfig) -> dict[str, str]:
    limits = config.limits
    return {
        "engine": "0",
        "model_name": config.served_names[0],
        "block_size": str(limits.block_size),
        "effective_attention_block_size": str(limits.block_size),
        "num_gpu_blocks": str(limits.kv_blocks),
        "kv_cache_size_tokens": str(limits.kv_blocks * limits.block_size),
        "kv_cache_max_concurrency": str(limits.kv_blocks * limits.block_size / config.context_tokens),
        "kv_cache_memory_bytes": "None",
        "cache_dtype": config.dtype_of_cache,
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
    }
