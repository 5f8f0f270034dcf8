"""From the arguments and environment of a vLLM container to a configuration, or to the real error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from flotilla.simulation.engine import Limits, Speed
from flotilla_devcluster.engine.settings import DATA, SimSettings
from flotilla_devcluster.engine.vllm_arguments import parse

VERSION: Final = "0.33.0"
DEPRECATED_QUANTIZATIONS: Final = ("fbgemm_fp8", "fp_quant")
_NOMINAL_BYTES_PER_TOKEN: Final = 131072
"""For GiB figures in messages: the 16-bit KV of Llama-3.1-8B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    """`load_failure`: the process ends with exit code 1 and this text instead of serving."""

    model: str
    served_names: tuple[str, ...]
    adapters: Mapping[str, str]
    """Path of each LoRA adapter by its name; they have names only, and answer as the model does."""
    host: str
    port: int
    api_keys: tuple[str, ...]
    context_tokens: int
    limits: Limits
    speed: Speed
    shutdown_timeout_s: int
    force_usage: bool
    dtype_of_cache: str
    gpu_memory_utilization: float
    log_stats: bool
    settings: SimSettings
    load_failure: str | None


def configure(argv: Sequence[str], env: Mapping[str, str]) -> VllmConfig:
    """Raises Refused where the real parser refuses."""
    values = parse(argv)
    settings = SimSettings.from_env(env)
    model = values.get("model") or "Qwen/Qwen3-0.6B"
    limits = _limits(values, settings)
    context = values.get("max-model-len", settings.context_length)
    if context == -1:
        context = min(settings.context_length, limits.kv_blocks * limits.block_size)
    return VllmConfig(
        model=model,
        served_names=tuple(values.get("served-model-name") or [model]),
        adapters=_adapters(values),
        host=values.get("host") or "0.0.0.0",
        port=values.get("port", 8000),
        api_keys=tuple(values.get("api-key") or filter(None, [env.get("VLLM_API_KEY")])),
        context_tokens=context,
        limits=limits,
        speed=settings.speed,
        shutdown_timeout_s=values.get("shutdown-timeout", 0),
        force_usage=values.get("enable-force-include-usage", False),
        dtype_of_cache=values.get("kv-cache-dtype", "auto"),
        gpu_memory_utilization=values.get("gpu-memory-utilization", 0.92),
        log_stats=not values.get("disable-log-stats", False),
        settings=settings,
        load_failure=_load_failure(values, env, context=context, limits=limits),
    )


def _adapters(values: Mapping[str, Any]) -> dict[str, str]:
    """`--lora-modules name=path ...`, or JSON objects (vllm/entrypoints/openai/cli_args.py); needs --enable-lora."""
    found: dict[str, str] = {}
    for given in values.get("lora-modules") or ():
        if given.strip().startswith("{"):
            document = json.loads(given)
            found[str(document["name"])] = str(document["path"])
        else:
            name, _, path = given.partition("=")
            found[name] = path
    return found


def _limits(values: Mapping[str, Any], settings: SimSettings) -> Limits:
    block_size = values.get("block-size") or 16
    running = values.get("max-num-seqs", settings.max_num_seqs)
    return Limits(
        max_running=running,
        kv_blocks=values.get("num-gpu-blocks-override") or settings.kv_tokens // block_size,
        block_size=block_size,
        max_batched_tokens=values.get("max-num-batched-tokens", max(2048, running)),
        max_unfinished=values.get("max-num-queued-reqs"),
        max_prefill_backlog_tokens=values.get("max-num-queued-tokens"),
    )


def _load_failure(values: Mapping[str, Any], env: Mapping[str, str], *, context: int, limits: Limits) -> str | None:
    """The first check that the real program fails after its parser was content, in its order."""
    known = dict(_known_values())
    checks = (
        _tool_choice(values),
        _quantization(values, known["quantization"]),
        _kv_cache_dtype(values, known["kv-cache-dtype"]),
        _batch(limits),
        _port_variable(env),
        _load_format(values, known["load-format"]),
        _kv_cache(context=context, kv=limits.kv_blocks * limits.block_size),
    )
    return next((failure for failure in checks if failure), None)


def _known_values() -> Iterator[tuple[str, list[str]]]:
    for line in (DATA / "vllm-0.33.values").read_text().splitlines():
        if not line.startswith("#"):
            option, *values = line.split()
            yield option, values


def _tool_choice(values: Mapping[str, Any]) -> str | None:
    if values.get("enable-auto-tool-choice") and not values.get("tool-call-parser"):
        return "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser"
    return None


def _quantization(values: Mapping[str, Any], known: list[str]) -> str | None:
    method = values.get("quantization")
    if method is None:
        return None
    if method not in known:
        return _validation_error("ModelConfig", f"Unknown quantization method: {method}. Must be one of {known}.")
    if method in DEPRECATED_QUANTIZATIONS and not values.get("allow-deprecated-quantization"):
        return _validation_error(
            "ModelConfig",
            f"The quantization method {method} is deprecated and will be removed in future versions of vLLM. "
            "To bypass, set `--allow-deprecated-quantization`.",
        )
    return None


def _kv_cache_dtype(values: Mapping[str, Any], known: list[str]) -> str | None:
    dtype = values.get("kv-cache-dtype", "auto")
    if dtype in known:
        return None
    expected = ", ".join(f"'{name}'" for name in known[:-1]) + f" or '{known[-1]}'"
    return (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\ncache_dtype\n"
        f"  Input should be {expected} [type=literal_error, input_value='{dtype}', input_type=str]"
    )


def _batch(limits: Limits) -> str | None:
    tokens, sequences = limits.max_batched_tokens, limits.max_running
    if tokens >= sequences:
        return None
    return _validation_error(
        "SchedulerConfig",
        f"max_num_batched_tokens ({tokens}) must be greater than or equal to max_num_seqs ({sequences}).",
    )


def _port_variable(env: Mapping[str, str]) -> str | None:
    """A Service called `vllm` makes Kubernetes set VLLM_PORT=tcp://..., which is vLLM's own setting too."""
    port = env.get("VLLM_PORT", "0")
    try:
        int(port)
    except ValueError:
        if urlsplit(port).scheme:
            return (
                f"ValueError: VLLM_PORT '{port}' appears to be a URI. This may be caused by a Kubernetes "
                "service discovery issue,check the warning in: "
                "https://docs.vllm.ai/en/latest/configuration/env_vars.html"
            )
        return f"ValueError: VLLM_PORT '{port}' must be a valid integer"
    return None


def _load_format(values: Mapping[str, Any], known: list[str]) -> str | None:
    load_format = str(values.get("load-format", "auto")).lower()
    if load_format in known:
        return None
    return f"ValueError: Load format `{load_format}` is not supported"


def _kv_cache(*, context: int, kv: int) -> str | None:
    if kv >= context:
        return None
    needed, available = (tokens * _NOMINAL_BYTES_PER_TOKEN / 2**30 for tokens in (context, kv))
    return (
        f"ValueError: To serve at least one request with the model's max seq len ({context}), "
        f"({needed:.2f} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({available:.2f} GiB). Based on the available memory, the estimated maximum model length is {kv}. "
        "Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or "
        "decreasing `max_model_len` when initializing the engine. See "
        "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )


def _validation_error(title: str, message: str) -> str:
    return (
        f"pydantic_core._pydantic_core.ValidationError: 1 validation error for {title}\n"
        f"  Value error, {message} [type=value_error]"
    )
