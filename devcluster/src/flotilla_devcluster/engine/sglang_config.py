"""The command line of SGLang 0.5.23 and what it configures, or the real error.

The table of flags is what the parser of `sglang.srt.server_args` lists (run from the wheel of PyPI, sglang 0.5.23,
with stubs for torch and the like). The parser calls itself `sglang serve` also where `python -m sglang.launch_server`
made it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final

from flotilla.catalog.models import load_models
from flotilla.simulation.engine import Limits
from flotilla_devcluster.engine.arguments import Kinds, RefusingParser, add_flags, load_flags, parse_argparse
from flotilla_devcluster.engine.settings import EngineConfig, Refused, SimSettings

VERSION: Final = "0.5.23"
FLAGS: Final = "sglang-0.5.23.flags"
_CHUNKED_PREFILL_TOKENS: Final = 8192
"""What 0.5.23 takes on GPUs of 60 to 160 GB; less on smaller ones."""
_MAX_PREFILL_TOKENS: Final = 16384
_TRUTHY: Final = ("true", "1", "yes", "y", "on")
_COMMANDS: Final = (
    ("python3", "-m", "sglang.launch_server"),
    ("python", "-m", "sglang.launch_server"),
    ("sglang", "serve"),
)
_NOT_FOUND: Final = 127
_SI: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_IEC: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Values by an option's first name without dashes in front (`model-path`); what is not given is absent.

    Raises Refused with the text that the real parser prints.
    """
    return parse_argparse(_build_parser(), _without_command(argv))


def _without_command(argv: Sequence[str]) -> list[str]:
    """The image has no entrypoint that would start a server: a container without a command cannot start."""
    for command in _COMMANDS:
        if tuple(argv[: len(command)]) == command:
            return list(argv[len(command) :])
    first = argv[0] if argv else ""
    raise Refused(
        _NOT_FOUND,
        f'exec: "{first}": executable file not found in $PATH\n'
        f"The image starts no server of itself; let the container's command be {list(_COMMANDS[0])}.",
    )


@cache
def _build_parser() -> argparse.ArgumentParser:
    parser = RefusingParser(prog="sglang serve", argument_default=argparse.SUPPRESS)
    add_flags(parser, load_flags(FLAGS), _KINDS)
    return parser


def human_readable_int(text: str) -> int:
    """4k is 4000, 4Ki is 4096; the suffixes distinguish capitals."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)", text.strip())
    if match is None:
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"Invalid integer value: '{text}'. Use a plain integer, SI suffixes (1k, 1M), "
                "or IEC suffixes (1Ki, 1Mi). Suffixes are case-sensitive."
            ) from None
    number, suffix = match.groups()
    if suffix in _SI:
        return int(Decimal(number) * _SI[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with IEC suffixes like '{suffix}'. Use an integer IEC value such as "
            f"'{int(Decimal(number))}{suffix}', or an SI value such as '{number}{suffix[0]}'."
        )
    return int(number) * _IEC[suffix]


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        message = f"Invalid JSON list: {text}. Please provide a valid JSON list."
        raise argparse.ArgumentTypeError(message) from None


def _graph_config(text: str) -> Any:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--cuda-graph-config must be JSON: {error}") from None
    if not isinstance(parsed, dict):
        kind = type(parsed).__name__
        raise argparse.ArgumentTypeError(f"--cuda-graph-config must be a JSON object, got {kind}")
    return parsed


def _graph_backend(text: str) -> str:
    if text == "tc_piecewise":
        raise argparse.ArgumentTypeError("tc_piecewise was removed; select breakable, full, or disabled")
    return text


_KINDS: Final[Kinds] = {
    "str": str,
    "int": int,
    "float": float,
    "json": json.loads,
    "json_list": _json_list,
    "human_int": human_readable_int,
    "nullable_str": lambda text: None if text in ("", "None") else text,
    "graph_config": _graph_config,
    "graph_backend": _graph_backend,
}


@dataclass(frozen=True, slots=True)
class Adapter:
    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangConfig(EngineConfig):
    served_name: str
    api_key: str | None
    context_tokens: int
    max_queued: int | None
    warms_up: bool
    health_generates: bool
    forced_shutdown: bool
    metrics: bool
    lora: bool
    max_loras: int
    adapters: tuple[Adapter, ...]

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
    """The first check that the real program fails after its parser has accepted the arguments."""
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
