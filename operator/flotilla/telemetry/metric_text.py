"""A few metrics out of a metric text of hundreds of lines, without reading the others.

A vLLM shows 600 lines (48 KB). The full parser takes 9 ms for them; finding the dozen that matter takes 0.1 ms.
"""

import re
from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from flotilla.engines.metric_name import MetricName, metric_name

_LABEL = rb'(?!__)[a-zA-Z_][a-zA-Z0-9_]*="[^"\\]*"'
_HEAD = re.compile(rb"(?:\{(?:" + _LABEL + rb"(?:," + _LABEL + rb")*,?)?\})?[ \t]")
"""What follows a name in a line of the usual form; all others are left to the full parser."""

_PAIR = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)"')
_AFTER_NAME = (b"{", b" ", b"\t")


def find(body: bytes, names: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """The values of the first of each key's metrics that is there, in the order of their lines.

    Names are as in profiles (`engines.metric_name`).
    Raises ValueError where one of those lines is not to be read.
    """
    text = b"\n" + body
    found: dict[str, list[float]] = {}
    for key, candidates in names.items():
        for name in candidates:
            if values := _values(text, metric_name(name)):
                found[key] = values
                break
    return found


def _values(text: bytes, name: MetricName) -> list[float]:
    values: list[float] = []
    start = b"\n" + name.family.encode()
    after, at = len(start), text.find(start)
    while at >= 0:
        end = text.find(b"\n", at + 1)
        end = len(text) if end < 0 else end
        # A longer name begins with the same letters.
        if text[at + after : at + after + 1] in _AFTER_NAME:
            value = _value(text[at + 1 : end], after - 1, name)
            if value is not None:
                values.append(value)
        at = end if text.startswith(start, end) else text.find(start, end)
    return values


def _value(line: bytes, after_name: int, name: MetricName) -> float | None:
    """None for a sample that is not meant."""
    head = _HEAD.match(line, after_name)
    if head is not None:
        rest = line[head.end() :]
        if b"_" not in rest:
            try:
                # Two numbers are a value and a time, which float refuses.
                value = float(rest)
            except ValueError:
                pass
            else:
                return value if not name.label or name.accepts(_labels(head[0])) else None
    try:
        (family,) = text_string_to_metric_families(line.decode(errors="replace") + "\n")
        (sample,) = family.samples
    except ValueError as error:
        raise ValueError(f"{line[:100]!r} is no sample") from error
    return sample.value if name.accepts(sample.labels) else None


def _labels(head: bytes) -> dict[str, str]:
    return {label.decode(): value.decode(errors="replace") for label, value in _PAIR.findall(head)}
