"""The HTTP API: which handler a path has, and the frame of every routed request.

`Api.handle` is called by the server for each request. Routed operations (chat, completions, embeddings, and Anthropic's
messages, which become a chat) go to `_serve`: admit, exchange, settle, record. Everything else is answered here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from itertools import count
from urllib.parse import unquote

import orjson

from flotilla.gateway.admission import admit_request
from flotilla.gateway.anthropic.inbound_requests import MESSAGES_PATH, read_request
from flotilla.gateway.anthropic.inbound_responses import MessagesResponse, error_body_for
from flotilla.gateway.config import Setup, operation_paths
from flotilla.gateway.exchange import Exchange
from flotilla.gateway.http.message import Request, header
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.requests import Body, parse_body
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.routing.decide import Refusal, model_not_found
from flotilla.routing.request import Operation

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_HEALTH = ("/", "/health")
"""Paths that load balancers and SDKs ask to see whether a server is there."""
_COUNT_TOKENS = f"{MESSAGES_PATH}/count_tokens"
_ID_LIMIT = 128
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


class Api:
    """The handler of the server."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._operations = operation_paths()
        self._started_s = int(time.time())
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)

    async def handle(self, request: Request) -> None:
        """Answer one request. An unexpected exception is logged and answered with 500, and affects no other request."""
        try:
            await self._route(request)
        except Exception:  # the outermost handler: the client must get an answer
            log.exception("request failed with an unexpected error; please report this")
            if not request.response.started:
                body = responses.error_body("The gateway failed.", kind="server_error", code="internal_error")
                request.response.send(500, error_body_for(request.path, 500, body))

    async def _route(self, request: Request) -> None:
        operation = self._operations.get(request.path)
        setup = self._state.config.current
        if operation is None:
            if request.path.startswith(MESSAGES_PATH):
                await self._handle_messages(request, setup)
            else:
                self._handle_other(request, setup)
        elif request.method != "POST":
            self._not_allowed(request, "POST, OPTIONS")
        elif setup is None:
            self._not_ready(request)
        else:
            await self._serve(request, setup, operation)

    async def _handle_messages(self, request: Request, setup: Setup | None) -> None:
        """Serve a client of Anthropic's API: its request becomes a chat, and its answer is translated back."""
        request = self._as_chat_request(request)
        if request.path != MESSAGES_PATH:
            self._handle_other(request, setup)
        elif request.method != "POST":
            self._not_allowed(request, "POST, OPTIONS")
        elif setup is None:
            self._not_ready(request)
        else:
            await self._serve(request, setup, Operation.CHAT, read_request)

    def _as_chat_request(self, request: Request) -> Request:
        """The request with a response that writes Anthropic's format, and with its key in the Authorization header."""
        request_id = self._request_id(request)
        headers = {**request.headers, "x-request-id": request_id, "authorization": _authorization(request.headers)}
        return Request(
            request.method,
            request.path,
            headers,
            request.body,
            response=MessagesResponse(request.response, request_id),
            peer=request.peer,
            arrived_s=request.arrived_s,
        )

    async def _serve(
        self, request: Request, setup: Setup, operation: Operation, read: Callable[[bytes], Body] = parse_body
    ) -> None:
        """Admit and answer a routed request; then settle its limits and write metrics and log, however it ended."""
        record = Record(request, self._request_id(request))
        record.span = self._state.tracing.start_request(request) if self._state.tracing is not None else None
        try:
            admitted = await admit_request(self._state, setup, request, operation, record, read)
            if isinstance(admitted, Refusal):
                record.refusal, record.outcome = admitted, "refused"
                lines = b"x-request-id: %b\r\n" % record.id.encode() + responses.refusal_headers(admitted)
                request.response.send(admitted.status, responses.refusal_body(admitted), lines)
                return
            await Exchange(self._state, request, admitted, record).run()
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            raise
        finally:
            try:
                if record.lease is not None:
                    await record.lease.settle(record.usd, record.total_tokens)
            finally:
                record.finish(self._state.loop.time(), self._state.metrics, self._state.access_log)

    def _request_id(self, request: Request) -> str:
        """The client's own ID if it is short and of safe characters, else a new one."""
        given = request.headers.get("x-request-id")
        if given and len(given) <= _ID_LIMIT and _ID_CHARACTERS.issuperset(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}"

    def _handle_other(self, request: Request, setup: Setup | None) -> None:
        path = request.path if not request.path.startswith("/models") else f"/v1{request.path}"
        if path in _HEALTH:
            if request.method in ("GET", "HEAD"):
                request.response.send(200, b"{}")
            else:
                self._not_allowed(request, "GET, HEAD, OPTIONS")
            return
        if path == _MODELS or path.startswith(f"{_MODELS}/"):
            if request.method not in ("GET", "HEAD"):
                self._not_allowed(request, "GET, HEAD, OPTIONS")
            elif setup is None:
                self._not_ready(request)
            else:
                self._list_models(request, setup, unquote(path[len(_MODELS) + 1 :]))
            return
        why = " Only the target counts tokens; its answer has them." if path == _COUNT_TOKENS else ""
        body = responses.error_body(f"There is no {path[:100]!r} here.{why}", code="unknown_url")
        request.response.send(404, body)

    def _list_models(self, request: Request, setup: Setup, name: str) -> None:
        """List the models of all policies that the client may use, or describe one of them."""
        authorization = _authorization(request.headers)
        models = [
            {"id": model, "object": "model", "created": self._started_s, "owned_by": policy.name}
            for policy in setup.document.policies
            if not policy.clients or setup.client_of(policy, authorization) is not None
            for model in policy.host_models
        ]
        if not name:
            request.response.send(200, orjson.dumps({"object": "list", "data": models}))
            return
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            refusal = model_not_found(name)
            body = responses.error_body(refusal.message, code=refusal.code, param=refusal.param)
            request.response.send(refusal.status, body)
        else:
            request.response.send(200, orjson.dumps(found))

    def _not_allowed(self, request: Request, allowed: str) -> None:
        lines = header("allow", allowed)
        if request.method == "OPTIONS":
            request.response.send(200, b"", lines)
            return
        body = responses.error_body(f"Only {allowed} are allowed here.", code="method_not_allowed")
        request.response.send(405, body, lines)

    def _not_ready(self, request: Request) -> None:
        body = responses.error_body("The gateway has no policies yet.", kind="server_error", code="not_ready")
        request.response.send(503, body, b"retry-after: 2\r\n")


def _authorization(headers: Mapping[str, str]) -> str:
    """The Authorization header; Anthropic's older clients send the key as x-api-key instead."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (f"Bearer {key}" if key else "")


def protocol_error_body(path: str, status: int, code: str, message: str) -> bytes:
    """The body of an error of the HTTP layer, in the format of the API at `path`."""
    return error_body_for(path, status, responses.error_body(message, code=code))
