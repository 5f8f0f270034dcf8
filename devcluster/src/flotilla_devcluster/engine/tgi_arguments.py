"""The command line and environment of TGI's launcher, refused in the words of its parser (clap 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flotilla_devcluster.engine.settings import DATA, Refused

_FLAGS_FILE: Final = "tgi-3.3.7.flags"
_PROGRAM: Final = "text-generation-launcher"
_HELP: Final = "For more information, try '--help'."
_LARGEST: Final = {"port": 2**16 - 1, "uint": 2**64 - 1}


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    kind: str
    default: str | None
    choices: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.name[2:]

    @property
    def variable(self) -> str:
        return self.key.upper().replace("-", "_")

    @property
    def usage(self) -> str:
        return self.name if self.kind == "flag" else f"{self.name} <{self.variable}>"


def parse(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values by option name without dashes in front; the command line goes before the environment.

    Raises Refused with the text that the real parser prints.
    """
    flags, shorts = _table()
    given: dict[str, str] = {}
    queue = list(argv[1:] if argv[:1] == [_PROGRAM] else argv)
    while queue:
        argument = queue.pop(0)
        name, equals, text = argument.partition("=")
        flag = flags.get(shorts.get(name, name))
        if flag is None or argument in ("-", "--"):
            raise _refusal(f"unexpected argument '{name}' found", usage=True)
        if flag.key in given:
            raise _refusal(f"the argument '{flag.usage}' cannot be used multiple times", usage=True)
        given[flag.key] = _raw_value(flag, text if equals else None, queue)
    values: dict[str, Any] = {}
    for flag in flags.values():
        raw = given.get(flag.key, env.get(flag.variable) if flag.key != "env" else None)
        raw = flag.default if raw is None else raw
        values[flag.key] = None if raw is None else _convert(flag, raw)
    return values


def _table() -> tuple[dict[str, _Flag], dict[str, str]]:
    flags: dict[str, _Flag] = {}
    shorts: dict[str, str] = {}
    for line in (DATA / _FLAGS_FILE).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, kind, *rest = line.split()
        options = dict(part.partition("=")[::2] for part in rest)
        choices = tuple(filter(None, options.get("choices", "").split("|")))
        flags[name] = _Flag(name, kind, options.get("default"), choices)
        if "short" in options:
            shorts[options["short"]] = name
    return flags, shorts


def _raw_value(flag: _Flag, inline: str | None, queue: list[str]) -> str:
    if flag.kind == "flag":
        if inline is not None:
            raise _refusal(f"unexpected value '{inline}' for '{flag.name}' found; no more were expected", usage=True)
        return "true"
    if inline is not None:
        return inline
    if not queue or queue[0].startswith("-"):
        raise _refusal(f"a value is required for '{flag.usage}' but none was supplied{_possible(flag)}")
    return queue.pop(0)


def _convert(flag: _Flag, text: str) -> Any:
    if flag.choices and text not in flag.choices:
        raise _refusal(f"invalid value '{text}' for '{flag.usage}'{_possible(flag)}")
    if flag.kind in ("flag", "bool"):
        if text not in ("true", "false"):
            raise _refusal(f"invalid value '{text}' for '{flag.usage}'\n  [possible values: true, false]")
        return text == "true"
    if flag.kind in _LARGEST:
        return _whole(flag, text)
    if flag.kind == "uints":
        return [_whole(flag, part) for part in text.split(",")]
    if flag.kind == "float":
        try:
            return float(text)
        except ValueError:
            raise _refusal(f"invalid value '{text}' for '{flag.usage}': invalid float literal") from None
    return text


def _whole(flag: _Flag, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise _refusal(f"invalid value '{text}' for '{flag.usage}': invalid digit found in string")
    largest = _LARGEST.get(flag.kind, _LARGEST["uint"])
    if int(text) > largest:
        raise _refusal(f"invalid value '{text}' for '{flag.usage}': {text} is not in 0..={largest}")
    return int(text)


def _possible(flag: _Flag) -> str:
    return f"\n  [possible values: {', '.join(flag.choices)}]" if flag.choices else ""


def _refusal(message: str, *, usage: bool = False) -> Refused:
    how = f"Usage: {_PROGRAM} [OPTIONS]\n\n" if usage else ""
    return Refused(2, f"error: {message}\n\n{how}{_HELP}")
