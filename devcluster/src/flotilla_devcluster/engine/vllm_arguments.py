"""The command line of `vllm serve`: argparse over the flag table, with vLLM's own flexibilities.

Those are: `_` for `-` in names, `--json-flag.key value`, `--model` as a late positional, sizes such as 8k
and 1M, unambiguous prefixes. Messages and exit code 2 are argparse's, as in the real program.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NoReturn

from flotilla_devcluster.engine.flag_tables import RefusingParser, add_options
from flotilla_devcluster.engine.settings import Refused

_FLAGS_FILE: Final = "vllm-0.33.flags"
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
    arguments = _model_first(_without_command(argv))
    if any(re.match(r"^--config(=|$)", argument) for argument in arguments):
        raise Refused(1, "The simulated engine does not read --config files; pass the options themselves.")
    namespace = _build_parser().parse_args(_merge_dotted(_dashes(arguments)))
    values = {name.replace("_", "-"): value for name, value in vars(namespace).items()}
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
    add_options(parser, _FLAGS_FILE, _KINDS)
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


_KINDS: Final[dict[str, Callable[[str], Any]]] = {
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
