"""The answers of a response, whole or put together from its chunks, in the one form that is judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flotilla.domain.routing.answer import Choice, ToolCall


def choices_of(body: Mapping[str, Any]) -> tuple[Choice, ...]:
    """The answers of a whole body of chat/completions or completions. What is odd in it is left out."""
    return tuple(_whole(choice) for choice in _maps(body.get("choices")))


def _whole(choice: Mapping[str, Any]) -> Choice:
    said = choice.get("message")
    if not isinstance(said, dict):
        said = {"content": choice.get("text")}
    text, refusal, reason = said.get("content"), said.get("refusal"), choice.get("finish_reason")
    calls, probabilities = said.get("tool_calls"), choice.get("logprobs")
    return Choice(
        text=text if isinstance(text, str) else "",
        tool_calls=tuple(_call(call.get("function")) for call in _maps(calls)) if calls else (),
        finish_reason=reason if isinstance(reason, str) else None,
        refusal=isinstance(refusal, str) and bool(refusal),
        logprobs=tuple(_maps(probabilities.get("content"))) if isinstance(probabilities, dict) else (),
    )


def _call(function: Any) -> ToolCall:
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    return ToolCall(name if isinstance(name, str) else "", arguments if isinstance(arguments, str) else "")


@dataclass(slots=True)
class _Open:
    """One answer as far as it has come."""

    text: list[str] = field(default_factory=list)
    names: dict[Any, str] = field(default_factory=dict)
    arguments: dict[Any, list[str]] = field(default_factory=dict)
    finish_reason: str | None = None
    refusal: bool = False
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)


class Collector:
    """Puts the chunks of a stream together; `pieces` counts those that brought something."""

    def __init__(self) -> None:
        self._open: dict[Any, _Open] = {}
        self.pieces = 0

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk."""
        for choice in _maps(chunk.get("choices")):
            answer = self._open.setdefault(_key(choice.get("index")), _Open())
            said = choice.get("delta") or {"content": choice.get("text")}
            if isinstance(said, dict):
                self._say(answer, said)
            if isinstance(choice.get("finish_reason"), str):
                answer.finish_reason = choice["finish_reason"]
            probabilities = choice.get("logprobs")
            if isinstance(probabilities, dict):
                answer.logprobs += _maps(probabilities.get("content"))

    def choices(self) -> tuple[Choice, ...]:
        """The answers so far."""
        return tuple(
            Choice(
                text="".join(answer.text),
                tool_calls=tuple(
                    ToolCall(answer.names.get(key, ""), "".join(parts)) for key, parts in answer.arguments.items()
                ),
                finish_reason=answer.finish_reason,
                refusal=answer.refusal,
                logprobs=tuple(answer.logprobs),
            )
            for answer in self._open.values()
        )

    def _say(self, answer: _Open, said: Mapping[str, Any]) -> None:
        text, refusal = said.get("content"), said.get("refusal")
        if isinstance(text, str) and text:
            answer.text.append(text)
            self.pieces += 1
        if isinstance(refusal, str) and refusal:
            answer.refusal = True
            self.pieces += 1
        for place, call in enumerate(_maps(said.get("tool_calls"))):
            key = _key(call.get("index", place))
            parts = answer.arguments.setdefault(key, [])
            function = call.get("function")
            if not isinstance(function, dict):
                continue
            if isinstance(function.get("name"), str):
                answer.names[key] = function["name"]
            if isinstance(function.get("arguments"), str):
                parts.append(function["arguments"])
                self.pieces += 1


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _key(value: Any) -> int:
    return value if isinstance(value, int) else 0
