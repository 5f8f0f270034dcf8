"""What a routing decision may look at: a few facts of a request, and none of its text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

from flotilla.routing.clients import ClientLimits
from flotilla.routing.document import Policy

BOUNDS = ("max_completion_tokens", "max_tokens")
"""The fields that bound the answer."""
TASK_HEADER = "x-flotilla-task"
TEAM_HEADER = "x-flotilla-team"
SESSION_HEADER = "x-session-id"
BYTES_PER_TOKEN = 4
"""Of English text; code and other languages have more tokens. Good enough for routing, not for billing."""
_LABEL_LENGTH = 200
SOUND_BYTES_PER_TOKEN = 125
"""Of compressed sound: 32 tokens a second (Gemini; OpenAI has 10) at 32 kbit/s, which few recordings are below."""
DOCUMENT_BYTES_PER_TOKEN = 25
"""Of a PDF: a page of text has 1,500 to 3,000 tokens (Anthropic) and usually more than 40 kB."""
_IMAGES = frozenset({"image_url", "input_image", "image"})
_SOUNDS = frozenset({"input_audio", "audio_url", "video_url"})
_DOCUMENTS = frozenset({"file", "input_file", "document"})


class Operation(StrEnum):
    """What is asked for, by its path below /v1."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    """Documents by how well they answer a query, as Cohere, Jina and vLLM have it."""
    SCORE = "score"
    """How alike pairs of texts are, as vLLM has it."""


_PAIRED = {
    Operation.RERANK: ("query", "documents"),
    Operation.SCORE: ("text_1", "text_2", "queries", "documents", "items"),
}
"""The fields that hold the texts of operations on pairs."""


@dataclass(slots=True)
class Features:
    """Everything that `decide` sees of a request. It is not changed; freezing it would only make it slower."""

    operation: Operation = Operation.CHAT
    model: str = ""
    """As the client asked for it."""
    task: str | None = None
    data_class: str | None = None
    """The header's value, whether or not there is such a class."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that rules look at, names in lower case."""
    prompt_tokens: int = 0
    """Estimated."""
    max_tokens: int | None = None
    """Of one answer, as the client bounded it."""
    answers: int = 1
    """How many answers were asked for (`n`, `best_of`)."""
    tools: int = 0
    json_schema: bool = False
    images: int = 0
    sound_tokens: int = 0
    """Of sound and video in the prompt, estimated; they are not among `prompt_tokens`."""
    service_tier: str = ""
    """As the client asked for it; empty for the provider's default."""
    stream: bool = False
    session: str | None = None
    client: str | None = None
    """Name of the client whose key was shown; None for a request without a key."""
    client_class: str | None = None
    """Data class of a client that is not one of the policy's `clients`."""
    client_limits: ClientLimits | None = None
    team: str | None = None

    def with_task(self, task: str | None) -> "Features":
        """The same request, after the classifier has named its task."""
        return replace(self, task=task)


def features_of(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    policy: Policy,
    *,
    operation: Operation = Operation.CHAT,
    client: str | None = None,
) -> Features:
    """Read a parsed body and headers (names in lower case; values that came twice joined with ", ").

    Odd types are no error here: the target judges the body. A data class that came twice is no known class.
    """
    wanted = body.get("response_format")
    prompt = _prompt(body, operation)
    tools = body.get("tools")
    return Features(
        operation=operation,
        model=_text(body.get("model")) or "",
        task=headers.get(TASK_HEADER),
        data_class=headers.get(policy.class_header),
        headers={name: headers[name] for name in policy.headers if name in headers} if policy.headers else _NO_HEADERS,
        prompt_tokens=-(-prompt.text_bytes // BYTES_PER_TOKEN) + prompt.document_bytes // DOCUMENT_BYTES_PER_TOKEN,
        # Targets differ in which of the two they obey if both are given.
        max_tokens=max((_bound(body.get(name)) for name in BOUNDS), default=0) or None,
        answers=max(_count(body.get("n")), _count(body.get("best_of"))) if "n" in body or "best_of" in body else 1,
        tools=len(tools) if isinstance(tools, list) else 0,
        json_schema=isinstance(wanted, dict) and wanted.get("type") == "json_schema",
        images=prompt.images,
        sound_tokens=prompt.sound_bytes // SOUND_BYTES_PER_TOKEN,
        service_tier=_text(body.get("service_tier")) or "",
        stream=operation in (Operation.CHAT, Operation.COMPLETIONS) and body.get("stream") is True,
        session=_label(headers.get(SESSION_HEADER)),
        client=client,
        team=_label(headers.get(TEAM_HEADER)),
    )


_NO_HEADERS: Final[Mapping[str, str]] = {}


class _Prompt(NamedTuple):
    """The sizes of a prompt by kind. Token numbers count as BYTES_PER_TOKEN bytes of text each."""

    text_bytes: int = 0
    images: int = 0
    sound_bytes: int = 0
    document_bytes: int = 0


def _prompt(body: Mapping[str, Any], operation: Operation) -> _Prompt:
    if operation in _PAIRED:
        return _Prompt(sum(_json_size(body.get(name)) for name in _PAIRED[operation]))
    if operation is not Operation.CHAT:
        return _Prompt(_input(body.get("input" if operation is Operation.EMBEDDINGS else "prompt")))
    messages = body.get("messages")
    size = images = sound = documents = 0
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if type(content) is str:
            size += len(content) if content.isascii() else _bytes(content)
        elif isinstance(content, list):
            for part in content:
                if not isinstance(part, dict):
                    continue
                size += _bytes(part.get("text"))
                kind = part.get("type")
                if not isinstance(kind, str):
                    continue
                images += kind in _IMAGES
                if kind in _SOUNDS:
                    sound += _encoded_bytes(part)
                elif kind in _DOCUMENTS:
                    documents += _encoded_bytes(part)
        if "tool_calls" in message:
            size += _calls(message["tool_calls"])
    return _Prompt(size + (_json_size(body["tools"]) if "tools" in body else 0), images, sound, documents)


def _encoded_bytes(part: Mapping[str, Any]) -> int:
    """The bytes that a part carries in base64, in any of its fields; 0 for one that only names a URL or a file."""
    return _json_size(part) * 3 // 4


def _input(value: Any) -> int:
    """A text, texts, token numbers or lists of them."""
    if not isinstance(value, list):
        return _bytes(value)
    size = 0
    for item in value:
        if isinstance(item, list):
            size += len(item) * BYTES_PER_TOKEN
        else:
            size += BYTES_PER_TOKEN if isinstance(item, int) else _bytes(item)
    return size


def _calls(calls: Any) -> int:
    if not isinstance(calls, list):
        return 0
    functions: Iterable[Any] = (call.get("function") for call in calls if isinstance(call, dict))
    return sum(_bytes(function.get("arguments")) for function in functions if isinstance(function, dict))


def _json_size(value: Any) -> int:
    """About the bytes of a JSON value, without writing it; by a stack, for a client chooses how deep it nests."""
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            size += _bytes(item) + 2
        elif isinstance(item, dict):
            size += sum(len(key) + 4 for key in item)
            stack.extend(item.values())
        elif isinstance(item, list):
            size += len(item)
            stack.extend(item)
        elif item is not None:
            size += BYTES_PER_TOKEN
    return size


def _bytes(text: Any) -> int:
    if not isinstance(text, str):
        return 0
    # A body may hold half of a surrogate pair, which has no UTF-8.
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _bound(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _count(value: Any) -> int:
    return max(value, 1) if type(value) is int else 1


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _label(value: str | None) -> str | None:
    return value[:_LABEL_LENGTH] or None if value is not None else None
