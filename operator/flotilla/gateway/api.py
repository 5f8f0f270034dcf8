"""The paths that clients may ask for."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from itertools import count

import orjson

from flotilla.gateway import messages, wire
from flotilla.gateway.body import Body, parse
from flotilla.gateway.config import Setup, operation_paths
from flotilla.gateway.exchange import Exchange
from flotilla.gateway.intake import take
from flotilla.gateway.record import Record
from flotilla.gateway.request import Request
from flotilla.gateway.shared import Shared
from flotilla.gateway.translated import MessagesAnswer, error_for
from flotilla.routing.decide import Refusal
from flotilla.routing.request import Operation

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_COUNT_TOKENS = f"{messages.PATH}/count_tokens"
_ID_LIMIT = 128
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


class Api:
    """Handles each request of the server."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._operations = operation_paths()
        self._started_s = int(time.time())
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)

    async def handle(self, request: Request) -> None:
        """Answer one request; a defect of ours is one request's and nobody else's."""
        try:
            await self._routed(request)
        except Exception:  # the last line: whatever the defect is, the client is told and the others are served
            log.exception("a request failed by a defect of the gateway")
            if not request.answer.started:
                body = wire.error_body("The gateway failed.", kind="server_error", code="internal_error")
                request.answer.whole(500, error_for(request.path, 500, body))

    async def _routed(self, request: Request) -> None:
        operation = self._operations.get(request.path)
        setup = self._shared.config.current
        if operation is None:
            if request.path.startswith(messages.PATH):
                await self._messages(request, setup)
            else:
                self._other(request, setup)
        elif request.method != "POST":
            self._not_allowed(request, "POST, OPTIONS")
        elif setup is None:
            self._not_ready(request)
        else:
            await self._exchange(request, setup, operation)

    async def _messages(self, request: Request, setup: Setup | None) -> None:
        """A client of Anthropic's API: its request is translated and then one like any other."""
        request = self._translated(request)
        if request.path != messages.PATH:
            self._other(request, setup)
        elif request.method != "POST":
            self._not_allowed(request, "POST, OPTIONS")
        elif setup is None:
            self._not_ready(request)
        else:
            await self._exchange(request, setup, Operation.CHAT, messages.read)

    def _translated(self, request: Request) -> Request:
        """The same request with an answer in Anthropic's words; its key is where OpenAI's clients show theirs."""
        request_id = self._id(request)
        headers = {**request.headers, "x-request-id": request_id, "authorization": _shown(request.headers)}
        return Request(
            request.method,
            request.path,
            headers,
            request.body,
            answer=MessagesAnswer(request.answer, request_id),
            peer=request.peer,
            arrived_s=request.arrived_s,
        )

    async def _exchange(
        self, request: Request, setup: Setup, operation: Operation, read: Callable[[bytes], Body] = parse
    ) -> None:
        record = Record(request, self._id(request))
        record.span = self._shared.tracing.begin(request) if self._shared.tracing is not None else None
        try:
            taken = await take(self._shared, setup, request, operation, record, read)
            if isinstance(taken, Refusal):
                record.refusal, record.outcome = taken, "refused"
                lines = b"x-request-id: %b\r\n" % record.id.encode() + wire.refusal_headers(taken)
                request.answer.whole(taken.status, wire.refusal_body(taken), lines)
                return
            await Exchange(self._shared, request, taken, record).run()
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            raise
        finally:
            try:
                if record.lease is not None:
                    await record.lease.settle(record.usd, record.total_tokens)
            finally:
                record.close(self._shared)

    def _id(self, request: Request) -> str:
        """The client's own, where it is one that cannot break a log; else a new one."""
        given = request.headers.get("x-request-id")
        if given and len(given) <= _ID_LIMIT and _ID_CHARACTERS.issuperset(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}"

    def _other(self, request: Request, setup: Setup | None) -> None:
        path = request.path
        if path == _MODELS or path.startswith(f"{_MODELS}/"):
            if request.method not in ("GET", "HEAD"):
                self._not_allowed(request, "GET, HEAD, OPTIONS")
            elif setup is None:
                self._not_ready(request)
            else:
                self._models(request, setup, path[len(_MODELS) + 1 :])
            return
        why = " Only the target counts tokens; its answer has them." if path == _COUNT_TOKENS else ""
        body = wire.error_body(f"There is no {path[:100]!r} here.{why}", code="unknown_url")
        request.answer.whole(404, body)

    def _models(self, request: Request, setup: Setup, name: str) -> None:
        """Models of the policies that the client may use."""
        shown = _shown(request.headers)
        models = [
            {"id": model, "object": "model", "created": self._started_s, "owned_by": policy.name}
            for policy in setup.document.policies
            if not policy.clients or setup.client_of(policy, shown) is not None
            for model in policy.host_models
        ]
        if not name:
            request.answer.whole(200, orjson.dumps({"object": "list", "data": models}))
            return
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            message = f"The model {name[:100]!r} does not exist or you do not have access to it."
            request.answer.whole(404, wire.error_body(message, code="model_not_found", param="model"))
        else:
            request.answer.whole(200, orjson.dumps(found))

    def _not_allowed(self, request: Request, allowed: str) -> None:
        lines = wire.header("allow", allowed)
        if request.method == "OPTIONS":
            request.answer.whole(200, b"", lines)
            return
        body = wire.error_body(f"Only {allowed} are allowed here.", code="method_not_allowed")
        request.answer.whole(405, body, lines)

    def _not_ready(self, request: Request) -> None:
        body = wire.error_body("The gateway has no policies yet.", kind="server_error", code="not_ready")
        request.answer.whole(503, body, b"retry-after: 2\r\n")


def _shown(headers: Mapping[str, str]) -> str:
    """A client's key as OpenAI's clients show it; older ones of Anthropic's have a header of their own."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (f"Bearer {key}" if key else "")
