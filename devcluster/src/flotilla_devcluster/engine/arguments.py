"""Command lines of the real engines: the reader of their tables, and the three kinds of parser that they have.

A row of `data/ENGINE-VERSION.flags` is `name kind [option=value ...] [:: remark]`; `load_flags` reads a table. The
parsers take what the real ones take, and refuse in their words and with their exit codes:

- `argparse_parser`: Python's argparse, for vLLM and SGLang, which bring converters for their own kinds of values
- `parse_clap`: clap 4, for TGI's launcher
- `parse_llama`: the handwritten parser of llama.cpp (common/arg.cpp)

A parser returns values by the option's first long name without dashes (`max-model-len`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, NoReturn

from flotilla_devcluster.engine.settings import DATA, Refused

Kinds = Mapping[str, Callable[[str], Any]]
"""From the second column of a table to the function that reads a value; argparse puts its name into its messages."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of a table."""

    name: str
    kind: str
    aliases: tuple[str, ...]
    negatives: tuple[str, ...]
    """Names that set the option to false."""
    choices: tuple[str, ...]
    default: str | None
    nargs: str | None
    append: bool
    required: bool
    variable: str | None
    """Environment variable of the same meaning."""
    remark: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def key(self) -> str:
        """The first long name without dashes."""
        return next((name for name in self.names if name.startswith("--")), self.name).lstrip("-")

    @property
    def takes_value(self) -> bool:
        return self.kind not in ("flag", "bool", "exit")


@cache
def load_flags(table: str) -> tuple[Flag, ...]:
    """The rows of `data/TABLE`."""
    flags = []
    for line in (DATA / table).read_text().splitlines():
        if line and not line.startswith("#"):
            head, _, remark = line.partition(" :: ")
            name, kind, *rest = head.split()
            options = dict(part.partition("=")[::2] for part in rest)
            flags.append(
                Flag(
                    name=name,
                    kind=kind,
                    aliases=tuple(filter(None, options.get("alias", "").split(","))),
                    negatives=tuple(filter(None, options.get("no", "").split(","))),
                    choices=tuple(filter(None, options.get("choices", "").split("|"))),
                    default=options.get("default"),
                    nargs=options.get("nargs"),
                    append="append" in options,
                    required="required" in options,
                    variable=options.get("env"),
                    remark=remark,
                )
            )
    return tuple(flags)


class RefusingParser(argparse.ArgumentParser):
    """Raises Refused where argparse would print and exit; its options do not change after the first refusal."""

    @cached_property
    def usage_text(self) -> str:
        """The usage of hundreds of options takes as long as all the rest of a refusal."""
        return self.format_usage()

    def error(self, message: str) -> NoReturn:
        raise Refused(2, f"{self.usage_text}{self.prog}: error: {message}")


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag], kinds: Kinds) -> None:
    """Add every flag of a table; each is stored under its first name."""
    for flag in flags:
        destination = flag.name[2:].replace("-", "_")
        if not flag.takes_value:
            parser.add_argument(*flag.names, dest=destination, action="store_true")
            for negative in flag.negatives:
                parser.add_argument(negative, dest=destination, action="store_false")
            continue
        convert = kinds[flag.kind]
        extra: dict[str, Any] = {"required": flag.required}
        if flag.choices:
            extra["choices"] = [convert(choice) for choice in flag.choices]
        if flag.nargs:
            extra["nargs"] = flag.nargs
        if flag.append:
            extra["action"] = "append"
        parser.add_argument(*flag.names, dest=destination, type=convert, **extra)


def parse_argparse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Values of the options that are given; the others are absent. Raises Refused."""
    if any(re.match(r"^--config(=|$)", argument) for argument in arguments):
        raise Refused(1, "The simulated engine does not read --config files; pass the options themselves.")
    namespace = parser.parse_args(arguments)
    return {name.replace("_", "-"): value for name, value in vars(namespace).items()}


_LARGEST: Final = {"port": 2**16 - 1, "uint": 2**64 - 1}


def parse_clap(program: str, table: str, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values of all options, None where an option has neither value nor default. Raises Refused.

    Each option but --env is an environment variable too (--model-id: MODEL_ID); the command line has precedence.
    """
    clap = _Clap(program)
    flags = load_flags(table)
    by_name = {name: flag for flag in flags for name in flag.names}
    given: dict[str, str] = {}
    queue = list(argv[1:] if argv[:1] == [program] else argv)
    while queue:
        argument = queue.pop(0)
        name, equals, text = argument.partition("=")
        flag = by_name.get(name)
        if flag is None or argument in ("-", "--"):
            raise clap.refusal(f"unexpected argument '{name}' found", usage=True)
        if flag.key in given:
            raise clap.refusal(f"the argument '{clap.usage(flag)}' cannot be used multiple times", usage=True)
        given[flag.key] = clap.raw_value(flag, text if equals else None, queue)
    values: dict[str, Any] = {}
    for flag in flags:
        raw = given.get(flag.key, env.get(_clap_variable(flag)) if flag.key != "env" else None)
        raw = flag.default if raw is None else raw
        values[flag.key] = None if raw is None else clap.convert(flag, raw)
    return values


def _clap_variable(flag: Flag) -> str:
    return flag.key.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class _Clap:
    """How clap 4 reads one value, and its messages."""

    program: str

    def usage(self, flag: Flag) -> str:
        return flag.name if flag.kind == "flag" else f"{flag.name} <{_clap_variable(flag)}>"

    def raw_value(self, flag: Flag, inline: str | None, queue: list[str]) -> str:
        if flag.kind == "flag":
            if inline is not None:
                message = f"unexpected value '{inline}' for '{flag.name}' found; no more were expected"
                raise self.refusal(message, usage=True)
            return "true"
        if inline is not None:
            return inline
        if not queue or queue[0].startswith("-"):
            raise self.refusal(f"a value is required for '{self.usage(flag)}' but none was supplied{_possible(flag)}")
        return queue.pop(0)

    def convert(self, flag: Flag, text: str) -> Any:
        if flag.choices and text not in flag.choices:
            raise self._invalid(flag, text, _possible(flag))
        if flag.kind in ("flag", "true_false"):
            if text not in ("true", "false"):
                raise self._invalid(flag, text, "\n  [possible values: true, false]")
            return text == "true"
        if flag.kind in _LARGEST:
            return self._whole(flag, text)
        if flag.kind == "uints":
            return [self._whole(flag, part) for part in text.split(",")]
        if flag.kind == "float":
            try:
                return float(text)
            except ValueError:
                raise self._invalid(flag, text, ": invalid float literal") from None
        return text

    def _whole(self, flag: Flag, text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise self._invalid(flag, text, ": invalid digit found in string")
        largest = _LARGEST.get(flag.kind, _LARGEST["uint"])
        if int(text) > largest:
            raise self._invalid(flag, text, f": {text} is not in 0..={largest}")
        return int(text)

    def _invalid(self, flag: Flag, text: str, reason: str) -> Refused:
        return self.refusal(f"invalid value '{text}' for '{self.usage(flag)}'{reason}")

    def refusal(self, message: str, *, usage: bool = False) -> Refused:
        how = f"Usage: {self.program} [OPTIONS]\n\n" if usage else ""
        return Refused(2, f"error: {message}\n\n{how}For more information, try '--help'.")


def _possible(flag: Flag) -> str:
    return f"\n  [possible values: {', '.join(flag.choices)}]" if flag.choices else ""


_TRUTHY: Final = ("on", "enabled", "true", "1")
_FALSEY: Final = ("off", "disabled", "false", "0")
_AUTO: Final = ("auto", "-1")


class _Wrong(Exception):
    """A value that its option does not take."""


def parse_llama(programs: Sequence[str], table: str, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values of the options that are given, on the command line or by variable. Raises Refused.

    A refused value is followed by the option's names, and not, as in the real parser, by its help too.
    """
    flags = load_flags(table)
    by_name = {name: flag for flag in flags for name in (*flag.names, *flag.negatives)}
    values = _llama_environment(flags, env)
    queue = list(argv[1:] if argv[:1] and argv[0] in programs else argv)
    while queue:
        given = queue.pop(0)
        name = given.replace("_", "-") if given.startswith("--") else given
        if name not in by_name:
            raise Refused(1, f"error: invalid argument: {name}")
        flag = by_name[name]
        try:
            value = _llama_value(flag, name, queue)
            values[flag.key] = [*values.get(flag.key, ()), value] if flag.append else value
        except _Wrong as wrong:
            usage = ", ".join((*flag.names, *flag.negatives))
            how = f"usage:\n{usage}\n\nto show complete usage, run with -h"
            raise Refused(1, f'error while handling argument "{name}": {wrong}\n\n{how}') from None
    return values


def _llama_environment(flags: Sequence[Flag], env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for flag in flags:
        text = _llama_variable(flag, env)
        if text is None:
            continue
        try:
            if flag.kind == "flag":
                values |= {flag.key: True} if text in _TRUTHY else {}
            elif flag.kind == "bool":
                values[flag.key] = _llama_switch(text, "invalid boolean value") == "on"
            else:
                values[flag.key] = _llama_convert(flag, text)
        except _Wrong as wrong:
            raise Refused(1, f'error while handling environment variable "{flag.variable}": {wrong}\n\n') from None
    return values


def _llama_variable(flag: Flag, env: Mapping[str, str]) -> str | None:
    if flag.variable is None:
        return None
    if flag.negatives and flag.variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") in env:
        return "0"
    return env.get(flag.variable)


def _llama_value(flag: Flag, name: str, queue: list[str]) -> Any:
    if flag.kind == "exit":
        raise Refused(0, f"The simulated llama-server has nothing to print for {name}.")
    if not flag.takes_value:
        return name not in flag.negatives
    wanted = 2 if flag.kind == "pair" else 1
    if len(queue) < wanted:
        raise _Wrong("expected value for argument")
    texts = [queue.pop(0) for _ in range(wanted)]
    return texts if wanted == 2 else _llama_convert(flag, texts[0])


def _llama_convert(flag: Flag, text: str) -> Any:
    """The value as the option's handler reads it; the messages are those of each handler, or of std::stoi."""
    if flag.kind == "removed":
        raise _Wrong(f"the argument has been removed. {flag.remark}")
    if flag.kind == "switch":
        complaint = f"error: unknown value for --{flag.key}: '{text}'\n"
        return _llama_switch(text, complaint, auto="auto" in flag.choices)
    if flag.choices and text not in flag.choices:
        if flag.key == "reasoning-format":
            raise _Wrong(f"Unknown reasoning format: {text}")
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


def _llama_switch(text: str, complaint: str, *, auto: bool = False) -> str:
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
