"""What is sent to a target for a client's request: path, headers and body, in the API that the target speaks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flotilla.gateway import anthropic, body
from flotilla.gateway.body import Body, Translated
from flotilla.gateway.origin import Origin
from flotilla.routing.document import Target
from flotilla.routing.request import Operation


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a target beyond what the client asked for, and taken out of the answer again."""

    usage: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Payload:
    """The inside of one request to a target."""

    content: bytes
    dropped: tuple[str, ...] = ()
    """Fields of the client's that the target's API has no word for."""


class Dialect:
    """How one target is spoken to. The head is made once for each of its origins."""

    def __init__(self, target: Target, key: str | None) -> None:
        self._target = target
        self._key = key
        self._heads: dict[tuple[Origin, Operation], bytes] = {}
        self.anthropic = target.hosted is not None and target.hosted.provider == "Anthropic"

    @property
    def has_key(self) -> bool:
        """False for a hosted target whose Secret is missing."""
        return self._target.hosted is None or self._key is not None

    def payload(self, asked: Body, wanted: Wanted) -> Payload:
        """The body; raises anthropic.Untranslatable."""
        model = self._target.served_model
        own = asked if type(asked) is Translated else None
        if self.anthropic:
            sent = anthropic.request(asked.fields, model) if own is None else anthropic.passed_on(own.message, model)
            return Payload(sent.content, sent.dropped)
        if own is not None and self._target.hosted is not None and "top_k" in own.fields:
            raise anthropic.Untranslatable("top_k", "OpenAI's API has no word for it, engines in the cluster have one.")
        content = body.rewritten(asked, model, usage=wanted.usage, logprobs=wanted.logprobs)
        return Payload(content) if own is None else Payload(content, own.dropped)

    def message(self, origin: Origin, operation: Operation, content: bytes, extra: bytes = b"") -> bytes:
        """The bytes of the whole request. `extra` are header lines for targets in the cluster."""
        key = (origin, operation)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 256:
                # Origins come and go with pods.
                self._heads.clear()
            head = self._heads[key] = self._head(origin, operation)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, b"" if origin.hosted else extra, len(content), content)

    def translator(self, created: int, *, include_usage: bool) -> Callable[[bytes], bytes] | None:
        """Turns the target's stream into OpenAI's, None where it is."""
        if not self.anthropic:
            return None
        return anthropic.StreamTranslator(created=created, include_usage=include_usage).feed

    def answer(self, status: int, content: bytes, created: int) -> tuple[int, bytes]:
        """Status and body of a whole answer in OpenAI's shape; raises ValueError where it is no answer."""
        if not self.anthropic:
            return status, content
        return (
            (status, anthropic.answer(content, created=created)) if status < 300 else anthropic.error(status, content)
        )

    def _head(self, origin: Origin, operation: Operation) -> bytes:
        hosted = self._target.hosted
        headers: dict[str, Any] = {"content-type": "application/json"}
        path = f"/v1/{operation.value}"
        if hosted is not None:
            base = "/" + hosted.base_url.partition("://")[2].partition("/")[2]
            path = base.rstrip("/") + (anthropic.PATH if self.anthropic else f"/{operation.value}")
            if self.anthropic:
                headers |= anthropic.headers(self._key or "")
            else:
                headers["authorization"] = f"Bearer {self._key}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            f"POST {path} HTTP/1.1\r\nhost: {origin.authority}\r\nuser-agent: flotilla-gateway\r\n"
            f"accept-encoding: identity\r\n{lines}"
        ).encode("latin-1")
