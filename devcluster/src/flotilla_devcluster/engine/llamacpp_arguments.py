"""The command line and environment of llama-server, refused in the words of its own parser.

The table is common/arg.cpp of ggml-org/llama.cpp@0c1e57098 (0.5.0), which the source distribution of llama-cpp-python
0.3.36 carries; its names are those of the generated table in tools/server/README.md there. A refused value is followed
by the option's names and not, as in the real one, by its help too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from flotilla_devcluster.engine.flag_tables import listed, rows
from flotilla_devcluster.engine.settings import Refused

_FLAGS_FILE: Final = "llamacpp-0.5.0.flags"
_PROGRAMS: Final = ("llama-server", "/app/llama-server")
_TRUTHY: Final = ("on", "enabled", "true", "1")
_FALSEY: Final = ("off", "disabled", "false", "0")
_AUTO: Final = ("auto", "-1")
_NO_VALUE: Final = ("flag", "bool", "exit")


class _Wrong(Exception):
    """A value that its option does not take."""


@dataclass(frozen=True, slots=True)
class _Flag:
    names: tuple[str, ...]
    negatives: tuple[str, ...]
    kind: str
    variable: str | None
    choices: tuple[str, ...]
    remark: str

    @property
    def key(self) -> str:
        """The first long name without dashes."""
        long = next((name for name in self.names if name.startswith("--")), self.names[0])
        return long.lstrip("-")


def parse(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values by an option's first long name without dashes (`ctx-size`); the command line goes before the environment.

    Raises Refused with the text that the real parser prints.
    """
    flags = _table()
    values = _from_environment(flags, env)
    queue = list(argv[1:] if argv[:1] and argv[0] in _PROGRAMS else argv)
    while queue:
        given = queue.pop(0)
        name = given.replace("_", "-") if given.startswith("--") else given
        if name not in flags:
            raise Refused(1, f"error: invalid argument: {name}")
        flag = flags[name]
        try:
            values[flag.key] = _value(flag, name, queue)
        except _Wrong as wrong:
            raise Refused(1, _complaint(flag, name, str(wrong))) from None
    return values


def _complaint(flag: _Flag, name: str, reason: str) -> str:
    usage = ", ".join((*flag.names, *flag.negatives))
    how = f"usage:\n{usage}\n\nto show complete usage, run with -h"
    return f'error while handling argument "{name}": {reason}\n\n{how}'


@cache
def _table() -> dict[str, _Flag]:
    flags: dict[str, _Flag] = {}
    for name, kind, options, remark in rows(_FLAGS_FILE):
        flag = _Flag(
            names=(name, *listed(options.get("alias"))),
            negatives=tuple(listed(options.get("no"))),
            kind=kind,
            variable=options.get("env"),
            choices=tuple(filter(None, options.get("choices", "").split("|"))),
            remark=remark,
        )
        flags |= dict.fromkeys((*flag.names, *flag.negatives), flag)
    return flags


def _from_environment(flags: Mapping[str, _Flag], env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for flag in dict.fromkeys(flags.values()):
        text = _variable(flag, env)
        if text is None:
            continue
        try:
            if flag.kind == "flag":
                values |= {flag.key: True} if text in _TRUTHY else {}
            elif flag.kind == "bool":
                values[flag.key] = _switch(text, "invalid boolean value") == "on"
            else:
                values[flag.key] = _convert(flag, flag.names[0], text)
        except _Wrong as wrong:
            raise Refused(1, f'error while handling environment variable "{flag.variable}": {wrong}\n\n') from None
    return values


def _variable(flag: _Flag, env: Mapping[str, str]) -> str | None:
    if flag.variable is None:
        return None
    if flag.negatives and flag.variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") in env:
        return "0"
    return env.get(flag.variable)


def _value(flag: _Flag, name: str, queue: list[str]) -> Any:
    if flag.kind == "exit":
        raise Refused(0, f"The simulated llama-server has nothing to print for {name}.")
    if flag.kind in _NO_VALUE:
        return name not in flag.negatives
    wanted = 2 if flag.kind == "pair" else 1
    if len(queue) < wanted:
        raise _Wrong("expected value for argument")
    texts = [queue.pop(0) for _ in range(wanted)]
    return texts if wanted == 2 else _convert(flag, name, texts[0])


def _convert(flag: _Flag, name: str, text: str) -> Any:
    """What the option's handler makes of a value; the messages are those of each handler, or of std::stoi."""
    if flag.kind == "removed":
        raise _Wrong(f"the argument has been removed. {flag.remark}")
    if flag.kind == "switch":
        long = f"--{flag.key}"
        return _switch(text, f"error: unknown value for {long}: '{text}'\n", auto="auto" in flag.choices)
    if flag.choices and text not in flag.choices:
        raise _Wrong(f"Unsupported cache type: {text}" if flag.kind == "cache_type" else "invalid value")
    if flag.kind == "layers" and text in ("auto", "all"):
        return text
    if flag.kind in ("int", "layers"):
        number = int(_leading(r"\s*[+-]?\d+", text, "stoi"))
        if flag.key == "parallel" and number == 0:
            raise _Wrong("error: invalid value for n_parallel\n")
        return number
    if flag.kind == "float":
        return float(_leading(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, "stof"))
    return text


def _switch(text: str, complaint: str, *, auto: bool = False) -> str:
    if text in _TRUTHY:
        return "on"
    if text in _FALSEY:
        return "off"
    if auto and text in _AUTO:
        return "auto"
    raise _Wrong(complaint)


def _leading(pattern: str, text: str, function: str) -> str:
    """As the C++ library reads numbers: what follows them is ignored, and an error has the function's name only."""
    match = re.match(pattern, text)
    if match is None:
        raise _Wrong(function)
    return match.group()
