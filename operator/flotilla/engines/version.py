"""Versions of engines, compared as numbers: releases (0.33.0), builds (b7000), and the floating `latest`."""

import re
import sys

LATEST = "latest"


def numbers(version: str) -> tuple[int, ...]:
    """`0.33.0` as (0, 33, 0), `b7000` as (7000,), `latest` above all; raises ValueError for what holds no number."""
    if version == LATEST:
        return (sys.maxsize,)
    found = tuple(int(part) for part in re.findall(r"\d+", version))
    if not found:
        raise ValueError(f"{version!r} holds no number; versions look like 0.33.0 or b7000")
    return found


def at_least(version: str, other: str) -> bool:
    """Whether `version` is `other` or newer."""
    return numbers(version) >= numbers(other)
