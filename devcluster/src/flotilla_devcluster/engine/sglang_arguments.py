"""The command line of SGLang 0.5.23: argparse over the flag table, as `sglang.srt.server_args` builds it.

The table is what that module's own parser listed (run from the wheel of PyPI, sglang 0.5.23, with stubs for torch and
the like). The parser calls itself `sglang serve` also where `python -m sglang.launch_server` made it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final

from flotilla_devcluster.engine.flag_tables import Kinds, RefusingParser, add_options
from flotilla_devcluster.engine.settings import Refused

_FLAGS_FILE: Final = "sglang-0.5.23.flags"
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
    arguments = _without_command(argv)
    if any(re.match(r"^--config(=|$)", argument) for argument in arguments):
        raise Refused(1, "The simulated engine does not read --config files; pass the options themselves.")
    namespace = _build_parser().parse_args(arguments)
    return {name.replace("_", "-"): value for name, value in vars(namespace).items()}


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
    add_options(parser, _FLAGS_FILE, _KINDS)
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
