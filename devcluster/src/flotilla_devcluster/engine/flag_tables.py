"""Parsers made of the flag tables in `data/`, for the engines whose own parser is Python's argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from flotilla_devcluster.engine.settings import DATA, Refused

Kinds = Mapping[str, Callable[[str], Any]]
"""From the second column of a table to what reads a value; argparse puts the function's name into its messages."""


class RefusingParser(argparse.ArgumentParser):
    """Raises Refused where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise Refused(2, f"{self.format_usage()}{self.prog}: error: {message}")


def rows(table: str) -> list[tuple[str, str, dict[str, str], str]]:
    """Name, kind, options and remark of each line of a table."""
    result = []
    for line in (DATA / table).read_text().splitlines():
        if line and not line.startswith("#"):
            head, _, remark = line.partition(" :: ")
            name, kind, *rest = head.split()
            result.append((name, kind, dict(part.partition("=")[::2] for part in rest), remark))
    return result


def add_options(parser: argparse.ArgumentParser, table: str, kinds: Kinds) -> None:
    """All options of a table; each is stored under its first name."""
    for name, kind, options, _ in rows(table):
        _add(parser, name, kind, options, kinds)


def listed(text: str | None) -> list[str]:
    """The names of an option such as `alias=-x,--other`."""
    return text.split(",") if text else []


def _add(parser: argparse.ArgumentParser, name: str, kind: str, options: Mapping[str, str], kinds: Kinds) -> None:
    names = [name, *listed(options.get("alias")), *listed(options.get("short"))]
    destination = name[2:].replace("-", "_")
    if kind in ("bool", "flag"):
        parser.add_argument(*names, dest=destination, action="store_true")
        for negative in listed(options.get("no")):
            parser.add_argument(negative, dest=destination, action="store_false")
        return
    convert = kinds[kind]
    extra: dict[str, Any] = {}
    if "choices" in options:
        extra["choices"] = [convert(choice) for choice in options["choices"].split("|")]
    if "nargs" in options:
        extra["nargs"] = options["nargs"]
    if "append" in options:
        extra["action"] = "append"
    parser.add_argument(*names, dest=destination, type=convert, required="required" in options, **extra)
