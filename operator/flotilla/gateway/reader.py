"""One client's requests as llhttp reads them: what it leaves to us is judged here, and bounded in size."""

from dataclasses import dataclass
from typing import Final, Protocol

import httptools

from flotilla.gateway import wire

_NAMES: dict[bytes, str] = {}
"""Header names as they were spelled, to lower case: clients use the same dozen again and again."""
_NAMES_LIMIT: Final = 500


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one connection, and of all."""

    head_bytes: int = 32 * 1024
    """Of request line and headers, of one chunk's size line, of trailers."""
    headers: int = 100
    target_bytes: int = 8192
    body_bytes: int = 32 * 2**20
    pipelined: int = 8
    """Requests of one connection that wait for the answers before them."""
    connections: int = 20_000
    head_timeout_s: float = 10
    """From the first byte of a head to its last, so that slow clients hold no memory for long."""
    body_timeout_s: float = 60
    idle_timeout_s: float = 75
    """Between requests; more than the 60 s of usual load balancers, so that they and not we close."""
    stall_timeout_s: float = 60
    """A client that reads nothing for so long is cut off."""


class Refused(Exception):
    """The connection's bytes are no request that we serve."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error_body(message, code=code)


class Listener(Protocol):
    """What is told of the requests; each of these may raise Refused."""

    def on_begin(self) -> None:
        """The first byte of a request."""

    def on_head(self, *, expects: bool) -> None:
        """The head is read; `expects`: the client sends the body when it is told to."""

    def on_request(self) -> None:
        """A request is whole: the reader's fields are its own until the next one begins."""


class RequestReader:
    """Reads the requests of one connection, one after the other."""

    def __init__(self, limits: ServerLimits, listener: Listener) -> None:
        self._limits, self._listener = limits, listener
        self._parser = httptools.HttpRequestParser(self)
        self._since_body = 0
        """Bytes since the message began or brought a piece of its body."""
        self._new_message()

    def _new_message(self) -> None:
        self._target = b""
        self.headers: dict[str, str] = {}
        self._header_count = self._header_bytes = 0
        self._head_done = False
        self._body: list[bytes] = []
        self._body_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what came. Raises Refused where it is no request that we serve."""
        self._since_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise
        except httptools.HttpParserInvalidMethodError as error:
            raise Refused(501, "method_unknown", "The method is not known.") from error
        except httptools.HttpParserError as error:
            raise Refused(400, "bad_http", f"The request is not valid HTTP/1.1: {error}.") from error
        if self._since_body > self._limits.head_bytes:
            raise Refused(431, "headers_too_large", f"More than {self._limits.head_bytes} bytes of headers.")

    def close(self) -> None:
        """Read no more. The parser holds us, and the collector that would find the circle runs seldom."""
        del self._parser

    @property
    def method(self) -> str:
        """Of the request in hand."""
        method: bytes = self._parser.get_method()
        return method.decode("latin-1")

    @property
    def version(self) -> str:
        """Of HTTP: 1.0 or 1.1."""
        version: str = self._parser.get_http_version()
        return version

    @property
    def keep_alive(self) -> bool:
        """Whether the client may send another request."""
        return bool(self._parser.should_keep_alive())

    @property
    def path(self) -> str:
        """Without the query; nothing is decoded."""
        return self._target.partition(b"?")[0].decode("latin-1")

    def take_body(self) -> bytes:
        """The body of a whole request; the reader keeps nothing of it."""
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    def _decline(self, rest: bytes) -> None:
        """An offer of another protocol need not be taken, but llhttp stops before the body of a request that makes one.

        Java's client offers HTTP/2 with its first request. The head is read again without the offer.
        """
        method = self.method
        if method == "CONNECT":
            raise Refused(405, "method_not_allowed", "Nothing is tunnelled here.")
        kept = {n: v for n, v in self.headers.items() if n not in ("upgrade", "connection", "http2-settings")}
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        head = f"{method} {self._target.decode('latin-1')} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        self._parser = httptools.HttpRequestParser(self)
        self.feed(head + rest)

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._new_message()
        self._listener.on_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            raise Refused(414, "uri_too_long", f"The URL is longer than {self._limits.target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which nobody asked for."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > self._limits.headers or self._header_bytes > self._limits.head_bytes:
            raise Refused(431, "headers_too_large", "The request has too many or too large headers.")
        if self._head_done:
            return
        key = _NAMES.get(name)
        if key is None:
            key = name.decode("latin-1").lower()
            if len(_NAMES) < _NAMES_LIMIT and len(name) < 64:
                _NAMES[name] = key
        text = value.decode("latin-1")
        if key in self.headers:
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text

    def on_headers_complete(self) -> None:
        """Judge what llhttp leaves to us."""
        self._head_done = True
        headers = self.headers
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise Refused(505, "http_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if "host" not in headers and self._parser.get_http_version() == "1.1":
            raise Refused(400, "bad_http", "The header Host is missing.")
        if ", " in headers.get("host", ""):
            raise Refused(400, "bad_http", "There is more than one header Host.")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise Refused(501, "transfer_encoding", "Transfer-Encoding must be chunked, and nothing else.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "content_encoding", "Compressed requests are not read. Send the body as it is.")
        length = headers.get("content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise self._too_large()
        expected = headers.get("expect")
        if expected is not None and expected.lower() != "100-continue":
            raise Refused(417, "expectation_failed", "Only Expect: 100-continue is understood.")
        self._listener.on_head(expects=expected is not None)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._since_body = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            raise self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A whole request, or the head of one that offers another protocol, which is read again."""
        self._since_body = 0
        if not self._parser.should_upgrade():
            self._listener.on_request()

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"The body is larger than {self._limits.body_bytes} bytes.")
