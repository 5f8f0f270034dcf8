"""What is kept of a request: which ones, and their line in a file. Pure.

A line is chat-completion JSONL as TRL and OpenAI's fine-tuning read it: `messages` ends with the answer that the client
got. An escalated pair also has `rejected`, the first model's answer that a signal called not good enough.
What only Flotilla needs is under `flotilla`."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from flotilla.api.routing_policy import CaptureSpec, EscalatedCapture, RedactionRule
from flotilla.finetuning.redaction import redact_json

_SAMPLE_SPACE: Final = 2**32


@dataclass(frozen=True, slots=True)
class CapturedExample:
    """One answered request. Texts are as they came; `line` redacts them."""

    request_id: str
    at_s: float
    """Unix time of the answer."""
    policy: str
    rule: str
    data_class: str
    task: str
    user: str
    """The client's name of its user (`user` or `safety_identifier`), or else the client; only a hash is kept."""
    target: str
    """The target whose answer the client got."""
    messages: Sequence[Mapping[str, Any]]
    answer: Mapping[str, Any]
    """The assistant's message."""
    tools: Sequence[Mapping[str, Any]] = ()
    rejected: Mapping[str, Any] | None = None
    """The answer that was escalated."""
    rejected_target: str = ""
    signal: str = ""
    """Why it was escalated."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def is_sampled(spec: CaptureSpec, request_id: str, *, rule: str, data_class: str, escalated: bool) -> bool:
    """Whether this request is kept. The sample depends on the ID alone, so that all replicas agree."""
    if data_class not in spec.classes or (spec.rules and rule not in spec.rules):
        return False
    if escalated and spec.include_escalated is not EscalatedCapture.SAMPLED:
        return spec.include_escalated is EscalatedCapture.ALL
    drawn = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:4], "big")
    return drawn * 100 < spec.percent * _SAMPLE_SPACE


def user_hash(user: str) -> str:
    """How a user is written into a line: deletion by user works, and the line names no one. Empty stays empty."""
    return hashlib.sha256(b"flotilla-user:" + user.encode()).hexdigest()[:32] if user else ""


def line(example: CapturedExample, rules: Sequence[RedactionRule]) -> bytes:
    """The example as one line of JSON, redacted, with its line feed."""
    document: dict[str, Any] = {
        "messages": redact_json([*map(dict, example.messages), _message(example.answer)], rules),
    }
    if example.tools:
        document["tools"] = redact_json([dict(tool) for tool in example.tools], rules)
    if example.rejected is not None:
        document["rejected"] = redact_json(_message(example.rejected), rules)
    about = {
        "id": example.request_id,
        "time": round(example.at_s, 3),
        "policy": example.policy,
        "rule": example.rule,
        "class": example.data_class,
        "task": example.task,
        "user": user_hash(example.user),
        "target": example.target,
        "rejectedTarget": example.rejected_target,
        "signal": example.signal,
    }
    document["flotilla"] = {key: value for key, value in about.items() if value != ""}
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _message(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an answer that are taught: text, refusal and tool calls, not reasoning or annotations."""
    kept = {key: answer[key] for key in ("content", "tool_calls") if answer.get(key) is not None}
    return {"role": "assistant", **kept}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which captured lines a command or a deletion means; what is empty is not asked for."""

    request_ids: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    """Hashes by `user_hash`."""
    rules: frozenset[str] = frozenset()
    escalated_only: bool = False

    def matches(self, document: Mapping[str, Any]) -> bool:
        """Whether a decoded line is meant."""
        about = document.get("flotilla") or {}
        return (
            (not self.request_ids or about.get("id") in self.request_ids)
            and (not self.users or about.get("user") in self.users)
            and (not self.rules or about.get("rule") in self.rules)
            and (not self.escalated_only or "rejected" in document)
        )


def read_lines(data: bytes) -> Iterable[dict[str, Any]]:
    """The decoded lines of a file. A last line without its line feed is being written, or was cut by a crash: it is not
    an example yet."""
    for text in data[: data.rfind(b"\n") + 1].splitlines():
        if not text.strip():
            continue
        try:
            document = orjson.loads(text)
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(document.get("messages"), list):
            yield document


def without_metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    """A line for other tools: `messages` and `tools` only."""
    return {key: document[key] for key in ("messages", "tools") if key in document}


def as_preference(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """An escalated pair as TRL's DPOTrainer reads it (`prompt`, `chosen`, `rejected`); None for another line."""
    rejected = document.get("rejected")
    if rejected is None:
        return None
    messages = document["messages"]
    return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected]}
