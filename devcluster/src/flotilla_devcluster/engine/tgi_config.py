"""The command line and environment of TGI's launcher and what they configure, or the real error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flotilla.simulation.engine import Limits
from flotilla_devcluster.engine.arguments import parse_clap
from flotilla_devcluster.engine.settings import EngineConfig, SimSettings

FLAGS: Final = "tgi-3.3.7.flags"
VERSION: Final = "3.3.6-dev0"
"""What 3.3.7 reports: its workspace was not renamed."""
IMAGE_ENV: Final = {"PORT": "80", "HUGGINGFACE_HUB_CACHE": "/data"}
"""Set by the image, unlike the launcher's own defaults."""
_PREFILL_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TgiConfig(EngineConfig):
    api_key: str | None
    max_input_tokens: int
    max_total_tokens: int
    max_concurrent: int
    max_client_batch: int
    payload_limit_bytes: int
    validation_workers: int
    shutdown_timeout_s: int


def parse(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values by option name without dashes in front; the command line has precedence over the environment.

    Raises Refused with the text that the real parser (clap 4) prints.
    """
    return parse_clap("text-generation-launcher", FLAGS, argv, env)


def configure(argv: Sequence[str], env: Mapping[str, str]) -> TgiConfig:
    """Raises Refused where the real parser refuses."""
    values = parse(argv, {**IMAGE_ENV, **env})
    settings = SimSettings.from_env(env)
    total = values["max-total-tokens"] or settings.context_length
    block_size = 1  # TGI counts tokens
    return TgiConfig(
        model=values["model-id"],
        host=values["hostname"],
        port=values["port"],
        api_key=values["api-key"],
        max_input_tokens=values["max-input-tokens"] or values["max-input-length"] or total - 1,
        max_total_tokens=total,
        max_concurrent=values["max-concurrent-requests"],
        max_client_batch=values["max-client-batch-size"],
        payload_limit_bytes=values["payload-limit"],
        validation_workers=values["validation-workers"],
        limits=Limits(
            max_running=values["max-batch-size"] or values["max-concurrent-requests"],
            kv_blocks=settings.kv_tokens,
            block_size=block_size,
            max_batched_tokens=values["max-batch-prefill-tokens"] or _PREFILL_TOKENS,
            max_unfinished=values["max-concurrent-requests"],
        ),
        speed=settings.speed,
        shutdown_timeout_s=values["graceful-termination-timeout"],
        settings=settings,
        load_failure=_load_failure(values, kv=settings.kv_tokens, total=total),
    )


def _load_failure(values: Mapping[str, Any], *, kv: int, total: int) -> str | None:
    """The first check that the launcher or a shard fails after the parser has accepted the arguments."""
    new, old, most = (values[name] for name in ("max-input-tokens", "max-input-length", "max-total-tokens"))
    if new is not None and old is not None:
        return _argument(
            f"Both `max_input_tokens` ({new}) and `max_input_length` ({old}) are set. Please define only "
            "`max_input_tokens` as `max_input_length is deprecated for naming consistency."
        )
    given = new if new is not None else old
    if given is not None and most is not None and given >= most:
        return _argument(f"`max_input_tokens`({given}) must be < `max_total_tokens`({most})")
    if values["validation-workers"] == 0:
        return _argument("`validation_workers` must be > 0")
    batch = values["max-batch-total-tokens"]
    if batch is not None and most is not None and most > batch:
        return _argument(f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {most} and {batch}")
    if values["dtype"] and values["quantize"]:
        return (
            "RuntimeError: Only 1 can be set between `dtype` and `quantize`, as they both decide how goes "
            "the final model.\nError: ShardCannotStart"
        )
    if total > kv:
        return f"Not enough memory to handle {total} total tokens.\nError: WebserverFailed"
    return None


def _argument(message: str) -> str:
    return f'Error: ArgumentValidation("{message}")'
