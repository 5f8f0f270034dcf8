"""The command line of `vllm serve` and what it configures, or the real error.

vLLM's parser is argparse with flexibilities of its own: `_` for `-` in names, `--json-flag.key value`, `--model` as a
late positional, sizes such as 8k and 1M, unambiguous prefixes. Messages and exit code 2 are argparse's. What its
configuration classes check afterwards ends the process at load, with exit code 1: `_load_failure`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from flotilla.simulation.engine import Limits
from flotilla_devcluster.engine.arguments import Kinds, RefusingParser, add_flags, load_flags, parse_argparse
from flotilla_devcluster.engine.settings import DATA, EngineConfig, Refused, SimSettings

VERSION: Final = "0.33.0"
FLAGS: Final = "vllm-0.33.flags"
DEPRECATED_QUANTIZATIONS: Final = ("fbgemm_fp8", "fp_quant")
_NOMINAL_BYTES_PER_TOKEN: Final = 131072
"""For GiB figures in messages: the 16-bit KV of Llama-3.1-8B."""
_SUBCOMMANDS: Final = "{chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}"
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Parser(RefusingParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            # those are found by the parser above the `serve` subcommand
            raise Refused(2, f"usage: vllm [-h] [-v]\n            {_SUBCOMMANDS} ...\nvllm: error: {message}")
        super().error(message)


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Values by option name without dashes in front (`max-model-len`); options that are not given are absent.

    Raises Refused with the text that the real parser prints.
    """
    values = parse_argparse(_build_parser(), _merge_dotted(_dashes(_model_first(_without_command(argv)))))
    positional = values.pop("model-tag", None)
    if positional is not None:
        values["model"] = positional
    return values


def _without_command(argv: Sequence[str]) -> list[str]:
    arguments = list(argv)
    if arguments[:1] == ["vllm"]:
        arguments = arguments[1:]
    if arguments[:1] == ["serve"]:
        arguments = arguments[1:]
    return arguments


def _model_first(arguments: list[str]) -> list[str]:
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            return [arguments[index + 1], *arguments[:index], *arguments[index + 2 :]]
        if argument.startswith("--model="):
            return [argument.removeprefix("--model="), *arguments[:index], *arguments[index + 1 :]]
    return arguments


def _dashes(arguments: Sequence[str]) -> list[str]:
    result = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            head, dot, rest = name.partition(".")
            argument = head.replace("_", "-") + dot + rest + equals + value
        result.append(argument)
    return result


def _merge_dotted(arguments: Sequence[str]) -> list[str]:
    """`--a.b 1 --a.c.d x` becomes `--a {"b": 1, "c": {"d": "x"}}`."""
    kept: list[str] = []
    merged: dict[str, dict[str, Any]] = {}
    queue = iter(arguments)
    for argument in queue:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--") or "." not in name:
            kept.append(argument)
            continue
        text = value if equals else next(queue, "")
        flag, *path = name.removesuffix("+").split(".")
        node = merged.setdefault(flag, {})
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = text.split(",") if name.endswith("+") else _json_or_text(text)
    for flag, content in merged.items():
        kept += [flag, json.dumps(content)]
    return kept


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@cache
def _build_parser() -> _Parser:
    parser = _Parser(prog="vllm serve", usage="vllm serve [model_tag] [options]", argument_default=argparse.SUPPRESS)
    parser.add_argument("model_tag", nargs="?", default=None)
    add_flags(parser, load_flags(FLAGS), _KINDS)
    return parser


def human_readable_int(text: str) -> int:
    """8k is 8000, 8K is 8192; fractions only before the small letters."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    if suffix in _DECIMAL:
        return int(float(number) * _DECIMAL[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with binary suffixes like {suffix}. "
            f"Did you mean to use {number}{suffix.lower()} instead?"
        )
    return int(number) * _BINARY[suffix]


def human_readable_int_or_auto(text: str) -> int:
    """-1 stands for auto."""
    return -1 if text.strip().lower() in ("-1", "auto") else human_readable_int(text)


def _optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def optional(text: str) -> Any:
        if text in ("", "None"):
            return None
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to {convert}.") from error

    return optional


def _str_or_json(text: str) -> Any:
    return _optional(json.loads)(text) if re.match(r"(?s)^\s*{.*}\s*$", text) else text


def _snake(text: str) -> str:
    return text.lower().replace("-", "_")


_KINDS: Final[Kinds] = {
    "str": str,
    "int": int,
    "float": float,
    "json": _optional(json.loads),
    "str_or_json": _str_or_json,
    "snake": _snake,
    "human_int": human_readable_int,
    "human_int_or_auto": human_readable_int_or_auto,
    "opt_int": _optional(int),
    "opt_float": _optional(float),
    "opt_json": _optional(json.loads),
    "opt_human_int": _optional(human_readable_int),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig(EngineConfig):
    served_names: tuple[str, ...]
    adapters: Mapping[str, str]
    """Path of each LoRA adapter by its name; they have names only, and answer as the model does."""
    loads_adapters: bool
    """Whether the endpoints that load and unload them exist."""
    api_keys: tuple[str, ...]
    context_tokens: int
    shutdown_timeout_s: int
    force_usage: bool
    dtype_of_cache: str
    gpu_memory_utilization: float
    log_stats: bool


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
        loads_adapters=bool(values.get("enable-lora"))
        and env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() in ("1", "true"),
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
    """The first check that the real program fails after its parser has accepted the arguments, in its order."""
    known = _known_values()
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


def _known_values() -> dict[str, list[str]]:
    lines = (DATA / "vllm-0.33.values").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {option: values for option, *values in rows}


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
