"""Is an answer good enough? Signals that need no second model, over whole answers and collected streams."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from flotilla.api.routes import Confidence, Signal
from flotilla.domain.routing import schema
from flotilla.domain.routing.calibration import error_probability
from flotilla.domain.routing.margin import margin_p10

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


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers of a response."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    refusal: bool = False
    """The API itself says that the model refused."""
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """Of each token, as OpenAI writes them in `logprobs.content`."""


@dataclass(frozen=True, slots=True)
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


def signals(choices: Collection[Choice], expected: Expectations) -> tuple[Signal, ...]:
    """The signals that any of the answers gives, of those that were asked for, in the order of Signal."""
    return tuple(
        signal
        for signal, check in _CHECKS
        if signal in expected.signals and any(check(choice, expected) for choice in choices)
    )


def _schema_invalid(choice: Choice, expected: Expectations) -> bool:
    if not expected.json or choice.tool_calls or choice.refusal:
        return False
    try:
        value = orjson.loads(choice.text)
    except orjson.JSONDecodeError:
        return True
    return not schema.allows(expected.schema, value)


def _cut_off(choice: Choice, expected: Expectations) -> bool:
    return choice.finish_reason == "length"


def _empty(choice: Choice, expected: Expectations) -> bool:
    return not choice.tool_calls and not choice.refusal and not choice.text.strip()


def _repetitive(choice: Choice, expected: Expectations) -> bool:
    return loops(choice.text) or any(loops(call.arguments) for call in choice.tool_calls)


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
    return isinstance(arguments, dict) and schema.allows(tools[call.name], arguments)


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
    """Whether the text ends in a phrase that is said again and again."""
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


_CHECKS: Final = tuple(
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
