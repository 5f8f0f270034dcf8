"""Whether an answer is good enough: schema, confidence margin, signals of a rule."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import orjson

from flotilla.api.routing_policy import Confidence, Signal
from flotilla.routing.classify import error_probability

_BACKTRACKS: Final = 10_000
"""Steps of one pattern; otherwise a client's own pattern could run without end."""
_KEPT: Final = 128
_KEPT_BYTES: Final = 16_384


def schema_allows(schema: Any, value: Any) -> bool:
    """Whether the schema allows the value. One that cannot be used allows everything: the target refuses it itself."""
    if not isinstance(schema, dict | bool):
        return True
    try:
        text = orjson.dumps(schema)
        validator = _validator(text) if len(text) <= _KEPT_BYTES else _validator.__wrapped__(text)
        return bool(validator.is_valid(value))
    except (TypeError, ValueError):
        return True


@lru_cache(maxsize=_KEPT)
def _validator(text: bytes) -> Any:
    """Clients send the same schema again and again. Raises ValueError for what is not a schema."""
    # 10 MB that only gateways with such rules need.
    import jsonschema_rs

    # Not offline, a $ref would be fetched from any address or read from any file that the client names.
    return jsonschema_rs.validator_for(
        orjson.loads(text), offline=True, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    )


_DECILE: Final = 10
_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_JSON_TOKEN: Final = re.compile(rf"{_STRING}\s*:|(?P<value>{_STRING}|-?\d[-+.\dEe]*|true|false|null)", re.DOTALL)


def margin_p10(text: str, logprobs: Sequence[Mapping[str, Any]]) -> float | None:
    """The tenth percentile over the tokens of p(first choice) - p(second choice), from 0 to 1.

    Of an answer that is a JSON object or list only the tokens of its values count: keys, quotes and brackets are
    nearly always sure, and would hide the one token that is not. None where no token comes with probabilities.
    """
    scored = list(_values(text, logprobs)) or logprobs
    margins = sorted(margin for entry in scored if (margin := _margin(entry)) is not None)
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
    # There is no second one where only one was possible or asked for: it has at most what the first leaves.
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
            # The quotes of a string are not part of its value.
            quote = 1 if text[low] == '"' else 0
            said[low + quote : high - quote] = b"\1" * (high - low - 2 * quote)
    place = 0
    for entry, token in zip(logprobs, tokens, strict=True):
        start, place = place, place + len(str(token))
        if any(said[start:place]):
            yield entry


_TAIL: Final = 64
"""Characters by whose last repetition a loop is looked for."""
_LONGEST_PERIOD: Final = 512
_LOOP: Final = 200
_ROUNDS: Final = 5
"""A text loops when its last 200 characters, or five periods where that is longer, repeat what is before."""
_REFUSAL_HEAD: Final = 200
_REFUSAL: Final = re.compile(
    r"\s*(?:(?:i'?m |i am )?(?:(?:very|really) )?sorry|i apologi[sz]e|unfortunately)?[,.!]?\s*(?:but )?"
    r"(?:as an ai(?: language)? (?:model|assistant), )?"
    r"i(?:'?m| am)? ?(?:can'?t|cannot|can not|won'?t|will not|unable to|not able to)(?: \w+ly)? "
    r"(?:assist|help|comply|fulfil+|provide|do that|answer|support|create|generate|discuss|engage|continue)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as the model wrote it."""

    name: str
    arguments: str


@dataclass(slots=True)
class Choice:
    """One of the answers of a response."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    refusal: bool = False
    """The API itself reports a refusal."""
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """Of each token, as OpenAI writes them in `logprobs.content`."""


@dataclass(slots=True)
class Expectations:
    """What the request asked for, and which signals its rule looks at."""

    signals: frozenset[Signal]
    confidence: Confidence | None = None
    json: bool = False
    """The answer must be JSON."""
    schema: Any = None
    """JSON schema of the answer."""
    tools: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of each tool's arguments, None where it has none."""
    call_required: bool = False


def expectations(
    body: Mapping[str, Any], signals: Collection[Signal], confidence: Confidence | None = None
) -> Expectations:
    """Read a request's body. What is odd in it is the target's to refuse, and expects nothing here."""
    if "response_format" not in body and "tools" not in body:
        return Expectations(frozenset(signals), confidence)
    wanted = body.get("response_format")
    wanted = wanted if isinstance(wanted, dict) else {}
    described = wanted.get("json_schema") if wanted.get("type") == "json_schema" else None
    tools = body.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    named = {
        f["name"]: f.get("parameters") for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)
    }
    others = isinstance(tools, list) and len(named) < len(tools)
    choice = body.get("tool_choice")
    return Expectations(
        signals=frozenset(signals),
        confidence=confidence,
        json=wanted.get("type") in ("json_object", "json_schema"),
        schema=described.get("schema") if isinstance(described, dict) else None,
        # Tools of other kinds are called by names that are not read here.
        tools={} if others else named,
        call_required=bool(named) and (choice == "required" or isinstance(choice, dict)),
    )


Check = Callable[[Choice, Expectations], bool]


def signals(choices: Collection[Choice], expected: Expectations) -> tuple[Signal, ...]:
    """The signals that any of the answers gives, of those that were asked for, in the order of Signal."""
    found = []
    for signal, check in _checks_of(expected.signals):
        for choice in choices:
            if check(choice, expected):
                found.append(signal)
                break
    return tuple(found)


@lru_cache(maxsize=_KEPT)
def _checks_of(asked: frozenset[Signal]) -> tuple[tuple[Signal, Check], ...]:
    return tuple((signal, check) for signal, check in _CHECKS if signal in asked)


def _schema_invalid(choice: Choice, expected: Expectations) -> bool:
    if not expected.json or choice.tool_calls or choice.refusal:
        return False
    try:
        value = orjson.loads(choice.text)
    except orjson.JSONDecodeError:
        return True
    return not schema_allows(expected.schema, value)


def _cut_off(choice: Choice, expected: Expectations) -> bool:
    return choice.finish_reason == "length"


def _empty(choice: Choice, expected: Expectations) -> bool:
    return not choice.tool_calls and not choice.refusal and not choice.text.strip()


def _repetitive(choice: Choice, expected: Expectations) -> bool:
    if loops(choice.text):
        return True
    return bool(choice.tool_calls) and any(loops(call.arguments) for call in choice.tool_calls)


def _invalid_call(choice: Choice, expected: Expectations) -> bool:
    if expected.call_required and not choice.tool_calls and not choice.refusal:
        return True
    return bool(expected.tools) and any(not _sound(call, expected.tools) for call in choice.tool_calls)


def _sound(call: ToolCall, tools: Mapping[str, Any]) -> bool:
    if call.name not in tools:
        return False
    try:
        arguments = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        return False
    return isinstance(arguments, dict) and schema_allows(tools[call.name], arguments)


def _refused(choice: Choice, expected: Expectations) -> bool:
    """English only. Refusals begin with themselves, so that only the beginning is read."""
    if choice.refusal or choice.finish_reason == "content_filter":
        return True
    return _REFUSAL.match(choice.text[:_REFUSAL_HEAD].replace("\u2019", "'")) is not None


def _doubtful(choice: Choice, expected: Expectations) -> bool:
    """Without token probabilities nothing is known, and nothing is doubted."""
    if expected.confidence is None:
        return False
    margin = margin_p10(choice.text, choice.logprobs)
    if margin is None:
        return False
    error = error_probability(expected.confidence.calibration, margin)
    return error * 1000 > expected.confidence.escalate_above_error_permille


def loops(text: str) -> bool:
    """Whether the text ends in a phrase that is repeated again and again."""
    if len(text) <= _LOOP:
        return False
    tail, end = text[-_TAIL:], len(text) - 1
    oldest = len(text) - _TAIL - _LONGEST_PERIOD
    while (found := text.rfind(tail, max(oldest, 0), end)) >= 0:
        period = len(text) - _TAIL - found
        needed = max(_LOOP, _ROUNDS * period)
        if needed + period <= len(text) and text[-needed:] == text[-needed - period : -period]:
            return True
        end = found + _TAIL - 1
    return False


_CHECKS: Final[tuple[tuple[Signal, Check], ...]] = tuple(
    {
        Signal.SCHEMA_INVALID: _schema_invalid,
        Signal.FINISH_REASON_LENGTH: _cut_off,
        Signal.EMPTY_ANSWER: _empty,
        Signal.REPETITION: _repetitive,
        Signal.INVALID_TOOL_CALL: _invalid_call,
        Signal.REFUSAL: _refused,
        Signal.LOW_CONFIDENCE: _doubtful,
    }.items()
)
"""In the order of Signal."""
