"""How sure a model was of its answer, from the probabilities of its tokens."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_DECILE: Final = 10
_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_JSON_TOKEN: Final = re.compile(rf"{_STRING}\s*:|(?P<value>{_STRING}|-?\d[-+.\dEe]*|true|false|null)", re.DOTALL)


def margin_p10(text: str, logprobs: Sequence[Mapping[str, Any]]) -> float | None:
    """The tenth percentile over the tokens of p(first choice) - p(second choice), from 0 to 1.

    Of an answer that is a JSON object or list only the tokens of its values count: keys, quotes and brackets are
    nearly always sure, and would hide the one token that is not. None where no token tells its probabilities.
    """
    told = list(_values(text, logprobs)) or logprobs
    margins = sorted(margin for entry in told if (margin := _margin(entry)) is not None)
    # The nearest rank from below: with less than eleven tokens it is the least sure one.
    return margins[(len(margins) - 1) // _DECILE] if margins else None


def _margin(entry: Mapping[str, Any]) -> float | None:
    tops = entry.get("top_logprobs")
    found = [top.get("logprob") for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
    chances = sorted(
        (math.exp(min(value, 0)) for value in found if isinstance(value, int | float) and not math.isnan(value)),
        reverse=True,
    )
    if not chances:
        return None
    # The second is not told where only one was possible or asked for: it has at most what the first leaves.
    second = chances[1] if len(chances) > 1 else min(1 - chances[0], chances[0])
    return chances[0] - second


def _values(text: str, logprobs: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The tokens that lie in values of a JSON text; none where it is no such text, or its tokens do not make it up."""
    if not text.lstrip().startswith(("{", "[")):
        return
    tokens = [entry.get("token") for entry in logprobs]
    if not all(isinstance(token, str) for token in tokens) or "".join(map(str, tokens)) != text:
        return
    said = bytearray(len(text))
    for found in _JSON_TOKEN.finditer(text):
        if found["value"] is not None:
            low, high = found.span("value")
            # The quotes of a string are no part of what it says.
            quote = 1 if text[low] == '"' else 0
            said[low + quote : high - quote] = b"\1" * (high - low - 2 * quote)
    place = 0
    for entry, token in zip(logprobs, tokens, strict=True):
        start, place = place, place + len(str(token))
        if any(said[start:place]):
            yield entry
