"""From the arguments and environment of an SGLang container to a configuration, or to the real error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flotilla.catalog.models import load_models
from flotilla.simulation.engine import Limits, Speed
from flotilla_devcluster.engine.settings import SimSettings
from flotilla_devcluster.engine.sglang_arguments import parse

VERSION: Final = "0.5.23"
_CHUNKED_PREFILL_TOKENS: Final = 8192
"""What 0.5.23 takes on GPUs of 60 to 160 GB; less on smaller ones."""
_MAX_PREFILL_TOKENS: Final = 16384
_TRUTHY: Final = ("true", "1", "yes", "y", "on")


@dataclass(frozen=True, slots=True)
class Adapter:
    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangConfig:
    """`load_failure`: the process ends with exit code 1 and this text instead of serving."""

    model: str
    served_name: str
    host: str
    port: int
    api_key: str | None
    context_tokens: int
    limits: Limits
    speed: Speed
    max_queued: int | None
    warms_up: bool
    health_generates: bool
    forced_shutdown: bool
    metrics: bool
    lora: bool
    max_loras: int
    adapters: tuple[Adapter, ...]
    settings: SimSettings
    load_failure: str | None

    @property
    def longest_request(self) -> int:
        """Tokens of a prompt and its answer together: one fewer than the context, and than the whole KV cache."""
        return min(self.context_tokens, self.limits.kv_blocks * self.limits.block_size) - 1


def configure(argv: Sequence[str], env: Mapping[str, str]) -> SglangConfig:
    """Raises Refused where the real parser refuses."""
    values = parse(argv)
    settings = SimSettings.from_env(env)
    model = values["model-path"]
    adapters = _adapters(values)
    return SglangConfig(
        model=model,
        served_name=values.get("served-model-name") or model,
        host=values.get("host", "127.0.0.1"),
        port=values.get("port", 30000),
        api_key=values.get("api-key"),
        context_tokens=values.get("context-length") or settings.context_length,
        limits=_limits(values, settings),
        speed=settings.speed,
        max_queued=values.get("max-queued-requests"),
        warms_up=not values.get("skip-server-warmup", False),
        health_generates=_flag(env, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", default=True),
        forced_shutdown=_flag(env, "SGL_FORCE_SHUTDOWN", default=False),
        metrics=values.get("enable-metrics", False),
        lora=values.get("enable-lora", False) or bool(adapters),
        max_loras=values.get("max-loras-per-batch", 8),
        adapters=adapters,
        settings=settings,
        load_failure=_load_failure(values, env, settings, adapters),
    )


def _limits(values: Mapping[str, Any], settings: SimSettings) -> Limits:
    page_size = values.get("page-size") or 1
    chunk = values.get("chunked-prefill-size", _CHUNKED_PREFILL_TOKENS)
    most = values.get("max-prefill-tokens", _MAX_PREFILL_TOKENS)
    return Limits(
        max_running=values.get("max-running-requests") or settings.max_num_seqs,
        # --max-total-tokens cannot add memory
        kv_blocks=min(values.get("max-total-tokens") or settings.kv_tokens, settings.kv_tokens) // page_size,
        block_size=page_size,
        max_batched_tokens=most if chunk == -1 else chunk,
    )


def _adapters(values: Mapping[str, Any]) -> tuple[Adapter, ...]:
    """`name=path`, a path that is its own name, or JSON, as --lora-paths takes them."""
    adapters = []
    for given in values.get("lora-paths") or ():
        if given.strip().startswith("{"):
            document = json.loads(given)
            adapters.append(Adapter(str(document.get("lora_name")), str(document.get("lora_path"))))
        else:
            name, equals, path = given.partition("=")
            adapters.append(Adapter(name, path if equals else name))
    return tuple(adapters)


def _load_failure(
    values: Mapping[str, Any], env: Mapping[str, str], settings: SimSettings, adapters: tuple[Adapter, ...]
) -> str | None:
    """The first check that the real program fails after its parser was content."""
    context, derived = values.get("context-length"), settings.context_length
    if context is not None and context > derived:
        # Of models that the catalogue knows the simulation knows the context too.
        known = load_models().find(values.get("model-path") or "")
        derived = known.architecture.context_length if known else derived
    if context is not None and context > derived and not _flag(env, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"):
        return (
            f"ValueError: Warning: User-specified context_length ({context}) is greater than the derived "
            f"context_length ({derived}). This may lead to incorrect model outputs or CUDA errors. Note that the "
            "derived context_length may differ from max_position_embeddings in the model's config. To allow "
            "overriding this maximum, set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
        )
    sized = values.get("max-lora-rank") and values.get("lora-target-modules")
    if values.get("enable-lora") and not adapters and not sized:
        return (
            "AssertionError: When no initial --lora-paths is provided, you need to specify both --max-lora-rank and "
            "--lora-target-modules for LoRA initialization."
        )
    return None


def _flag(env: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    return env[name].lower() in _TRUTHY if name in env else default
