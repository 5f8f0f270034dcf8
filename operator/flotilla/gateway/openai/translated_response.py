"""The base of responses that take a chat's answer and write another API's: its state is that of the inner response."""

from flotilla.gateway.http import message
from flotilla.gateway.http.message import Response, ResponseSource


class TranslatedResponse(Response):
    """Stands in for the connection's response `inner`. A subclass translates in `send`, `write` and `end`."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Response) -> None:
        self._inner = inner

    def start(self, status: int, headers: bytes = b"", *, content_type: bytes = message.EVENT_STREAM) -> None:
        """Begin a stream."""
        self._inner.start(status, headers, content_type=content_type)

    def end(self, *, close: bool = False) -> None:
        """End the stream."""
        self._inner.end(close=close)

    @property
    def source(self) -> ResponseSource | None:
        """The connection that the data comes from."""
        return self._inner.source

    @source.setter
    def source(self, source: ResponseSource | None) -> None:
        self._inner.source = source

    @property
    def started(self) -> bool:  # type: ignore[override]
        """Whether status and headers were sent."""
        return self._inner.started

    @property
    def status(self) -> int:  # type: ignore[override]
        """The status that was sent."""
        return self._inner.status
