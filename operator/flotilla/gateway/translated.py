"""The answer to a client of Anthropic's Messages API, by everything that answers clients of OpenAI's."""

import orjson

from flotilla.gateway import messages, wire
from flotilla.gateway.messages import MessageStream
from flotilla.gateway.request import Answer, Source

_UNREADABLE = "answer_unreadable"


class MessagesAnswer(Answer):
    """Takes OpenAI's words and writes Anthropic's to `inner`."""

    __slots__ = ("_id", "_inner", "_stream")

    def __init__(self, inner: Answer, request_id: str) -> None:
        self._inner, self._id = inner, request_id
        self._stream = MessageStream(request_id)

    def whole(self, status: int, body: bytes, headers: bytes = b"", *, content_type: bytes = wire.JSON) -> None:
        """Answer at once; 502 where the target's answer cannot be told."""
        if body and status < 300:
            try:
                body = messages.answer(body)
            except ValueError as error:
                status, body = 502, wire.error_body(str(error), kind="server_error", code=_UNREADABLE)
        if status >= 300:
            body = _error(status, body, self._id)
        self._inner.whole(status, body, headers + self._lines(), content_type=content_type)

    def start(self, status: int, headers: bytes = b"", *, content_type: bytes = wire.EVENT_STREAM) -> None:
        """Begin a stream."""
        self._inner.start(status, headers + self._lines(), content_type=content_type)

    def write(self, data: bytes) -> None:
        """Whole events. What cannot be read is the target's failure, and told to whoever waits for it."""
        out = self._stream.feed(data)
        if out:
            self._inner.write(out)
        if self._stream.failed and self.source is not None:
            self.source.fail(self._stream.failed)

    def end(self, *, close: bool = False) -> None:
        """The stream is whole, or is said to have failed."""
        self._inner.end(close=close or bool(self._stream.failed))

    def _lines(self) -> bytes:
        return b"request-id: %b\r\n" % self._id.encode()

    # What others look at is the connection's own.

    @property
    def source(self) -> Source | None:
        """What fills the answer."""
        return self._inner.source

    @source.setter
    def source(self, source: Source | None) -> None:
        self._inner.source = source

    @property
    def started(self) -> bool:  # type: ignore[override]
        """Whether its head is sent."""
        return self._inner.started

    @property
    def status(self) -> int:  # type: ignore[override]
        """As sent."""
        return self._inner.status


def error_for(path: str, status: int, body: bytes) -> bytes:
    """The body of an error as clients of the path read it, from one in OpenAI's shape."""
    return _error(status, body, None) if path.startswith(messages.PATH) else body


def _error(status: int, body: bytes, request_id: str | None) -> bytes:
    said = orjson.loads(body) if body else {}
    return orjson.dumps(messages.error(said.get("error"), request_id, status))
