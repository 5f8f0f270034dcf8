"""Bytes of HTTP/1.1 answers, and errors in OpenAI's shape. No I/O."""

from http import HTTPStatus
from typing import Any

import orjson

from flotilla.routing.decide import INVALID_REQUEST, SERVER_ERROR, Refusal

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
_NOT_IN_HEADERS = str.maketrans(dict.fromkeys(map(chr, [*range(32), 127]), "_"))


def status_line(status: int) -> bytes:
    """With the usual phrase, where there is one."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def header(name: str, value: str) -> bytes:
    """One header line; what could end it, or is not latin-1, is replaced."""
    if value.isascii() and value.isprintable():
        return f"{name}: {value}\r\n".encode()
    return f"{name}: {value.translate(_NOT_IN_HEADERS)}\r\n".encode("latin-1", "replace")


def error_body(
    message: str, *, kind: str = INVALID_REQUEST, code: str | None = None, param: str | None = None
) -> bytes:
    """An error as OpenAI's clients read it."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(message: str, code: str) -> bytes:
    """An error in the middle of a stream; no [DONE] may follow it."""
    return b"data: " + error_body(message, kind=SERVER_ERROR, code=code) + b"\n\n"


def refusal_body(refusal: Refusal) -> bytes:
    """The body of a refusal."""
    return error_body(refusal.message, kind=refusal.type, code=refusal.code, param=refusal.param)


def refusal_headers(refusal: Refusal) -> bytes:
    """The header lines of a refusal beyond the usual ones."""
    lines = b""
    if refusal.retry_after_s is not None:
        lines += b"retry-after: %d\r\n" % refusal.retry_after_s
    if not refusal.retryable:
        lines += b"x-should-retry: false\r\n"
    return lines
