"""The HTTP API: which handler a path has, and the frame of every routed request.

`Api.handle` is called by the server for each request. Routed operations (chat, completions, embeddings, and Anthropic's
messages, which become a chat) go to `_serve`: admit, exchange, settle, record. Everything else is answered here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from urllib.parse import unquote

import orjson

from flotilla.gateway.admission import LARGE_BYTES, admit_request, hold_memory, identify, now, read_body, waits
from flotilla.gateway.anthropic.inbound_requests import MESSAGES_PATH, read_count_request, wants_thinking
from flotilla.gateway.anthropic.inbound_requests import read_request as read_messages_request
from flotilla.gateway.anthropic.inbound_responses import MessagesResponse, error_body_for
from flotilla.gateway.config import RoutePlan, ServedPolicy, Setup, operation_paths
from flotilla.gateway.dispatch import Dispatcher
from flotilla.gateway.exchange import DEFECT, Exchange
from flotilla.gateway.http.message import HttpError, Request, header
from flotilla.gateway.limits.accounts import LimitLease
from flotilla.gateway.openai import responses
from flotilla.gateway.openai.requests import Body, parse_body
from flotilla.gateway.openai.response_events import ResponsesResponse
from flotilla.gateway.openai.response_requests import RESPONSES_PATH, read_response_request
from flotilla.gateway.record import Record
from flotilla.gateway.state import GatewayState
from flotilla.routing.budgets import prompt_estimate
from flotilla.routing.decide import Refusal, model_not_found
from flotilla.routing.request import Operation

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_HEALTH = ("/", "/health")
"""Paths that load balancers and SDKs ask to see whether a server is there."""
_RESPONSES = frozenset({RESPONSES_PATH, RESPONSES_PATH.removeprefix("/v1")})
_COUNT_TOKENS = f"{MESSAGES_PATH}/count_tokens"
_ID_LIMIT = 128
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


class Api:
    """The handler of the server."""

    def __init__(self, state: GatewayState, cors_origins: Collection[str] = ()) -> None:
        self._state = state
        self._cors_origins = frozenset(cors_origins)
        self._operations = operation_paths()
        self._started_s = int(time.time())
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)
        self._settling: set[asyncio.Task[None]] = set()
        self._parsers = ThreadPoolExecutor(1, thread_name_prefix="parser")

    def close(self) -> None:
        """Stop the thread that parses large bodies."""
        self._parsers.shutdown(wait=False)

    def handle(self, request: Request) -> None:
        """Answer one request. An unexpected exception is logged and answered with 500, and affects no other request."""
        try:
            if self._cors_origins and "origin" in request.headers and self._allow_origin(request):
                return
            self._route(request)
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect(request)
            request.ended(request)

    def _allow_origin(self, request: Request) -> bool:
        """Let the pages of an allowed origin read the response. Returns whether the request was only the question."""
        origin, headers = request.headers["origin"], request.headers
        if origin not in self._cors_origins and "*" not in self._cors_origins:
            return False
        exposed = b"access-control-expose-headers: x-request-id, x-flotilla-route, retry-after\r\nvary: origin\r\n"
        request.response.extra = header("access-control-allow-origin", origin) + exposed
        if request.method != "OPTIONS" or "access-control-request-method" not in headers:
            return False
        lines = b"access-control-allow-methods: GET, POST, OPTIONS\r\naccess-control-max-age: 3600\r\n"
        lines += header("access-control-allow-headers", headers.get("access-control-request-headers", ""))
        request.response.send(200, b"", lines)
        request.ended(request)
        return True

    def _defect(self, request: Request) -> None:
        if not request.response.started:
            body = responses.error_body("The gateway failed.", kind="server_error", code="internal_error")
            request.response.send(500, error_body_for(request.path, 500, body))

    def _route(self, request: Request) -> None:
        operation = self._operations.get(request.path)
        setup = self._state.config.current
        if operation is not None and setup is not None and request.method == "POST":
            self._serve(request, setup, operation)
            return
        if operation is None:
            read: Callable[[bytes], Body] | None = None
            if request.path.startswith(MESSAGES_PATH):
                read = self._as_chat_request(request)
                if request.path == _COUNT_TOKENS and setup is not None and request.method == "POST":
                    self._count_tokens(request, setup)
                    request.ended(request)
                    return
                read = read if request.path == MESSAGES_PATH else None
            elif request.path in _RESPONSES:
                read = self._as_response_request(request)
            if read is None:
                self._handle_other(request, setup)
                request.ended(request)
                return
            if setup is not None and request.method == "POST":
                self._serve(request, setup, Operation.CHAT, read)
                return
        if request.method != "POST":
            self._not_allowed(request, "POST, OPTIONS")
        else:
            self._not_ready(request)
        request.ended(request)

    def _as_chat_request(self, request: Request) -> Callable[[bytes], Body]:
        """Give the request a response that writes Anthropic's format, and its key in the Authorization header.

        Returns what reads the body.
        """
        request_id = self._request_id(request)
        request.headers |= {"x-request-id": request_id, "authorization": _authorization(request.headers)}
        request.response = response = MessagesResponse(request.response, request_id)

        def read(raw: bytes) -> Body:
            body = read_messages_request(raw)
            response.thinking = wants_thinking(body.message)
            return body

        return read

    def _count_tokens(self, request: Request, setup: Setup) -> None:
        """Estimate the tokens of a request of Anthropic's API. Only the target counts them exactly."""
        record = Record(request, request.headers["x-request-id"], Operation.CHAT)
        refusal = hold_memory(self._state.memory, request) if len(request.body) > LARGE_BYTES else None
        served = refusal or read_body(record, read_count_request) or identify(setup, record)
        if isinstance(served, Refusal):
            request.response.send(served.status, responses.refusal_body(served), responses.refusal_headers(served))
            return
        assert record.features is not None
        tokens = prompt_estimate(record.features)
        assert isinstance(request.response, MessagesResponse)
        request.response.send_as_it_is(orjson.dumps({"input_tokens": tokens}))

    def _as_response_request(self, request: Request) -> Callable[[bytes], Body]:
        """Give the request a response that writes the Responses API's format; returns what reads the body."""
        request_id = self._request_id(request)
        request.headers["x-request-id"] = request_id
        request.response = response = ResponsesResponse(request.response, request_id)

        def read(raw: bytes) -> Body:
            body, response.asked = read_response_request(raw)
            return body

        return read

    def _serve(
        self, request: Request, setup: Setup, operation: Operation, read: Callable[[bytes], Body] = parse_body
    ) -> None:
        """Admit and answer a routed request. `_ended` is called for it, however it ends."""
        state = self._state
        record = Record(request, self._request_id(request), operation)
        if state.tracing is not None:
            record.span = state.tracing.start_request(request)
        try:
            if len(request.body) > LARGE_BYTES:
                refusal = hold_memory(state.memory, request)
                if refusal is None:
                    task = state.loop.create_task(self._read_in_task(setup, record, read))
                    request.on_left = task.cancel
                    return
            else:
                refusal = read_body(record, read)
            if refusal is not None:
                self._refuse(record, refusal)
                return
            served = identify(setup, record)
            if type(served) is Refusal:
                self._refuse(record, served)
                return
            assert isinstance(served, ServedPolicy)
            if waits(state, record):
                task = state.loop.create_task(self._admit_in_task(setup, record, served))
                request.on_left = task.cancel
                return
            self._answer(record, now(admit_request(state, setup, record, served)))
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect(request)
            self._ended(record)

    async def _read_in_task(self, setup: Setup, record: Record, read: Callable[[bytes], Body]) -> None:
        """Parse a large body on a thread, one after the other, and then admit the request."""
        try:
            refusal = await self._state.loop.run_in_executor(self._parsers, read_body, record, read)
            served = identify(setup, record) if refusal is None else refusal
            if isinstance(served, ServedPolicy):
                admitted = await admit_request(self._state, setup, record, served)
                record.request.on_left = None
                self._answer(record, admitted)
            else:
                self._refuse(record, served)
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            self._ended(record)
            raise
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect(record.request)
            self._ended(record)

    async def _admit_in_task(self, setup: Setup, record: Record, served: ServedPolicy) -> None:
        """Admit a request that must wait for its classifier or for a store of limits elsewhere."""
        try:
            admitted = await admit_request(self._state, setup, record, served)
            record.request.on_left = None
            self._answer(record, admitted)
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            self._ended(record)
            raise
        except Exception:  # the outermost handler: the client must get an answer
            log.exception(DEFECT)
            self._defect(record.request)
            self._ended(record)

    def _answer(self, record: Record, admitted: tuple[RoutePlan, Dispatcher] | Refusal) -> None:
        if isinstance(admitted, Refusal):
            self._refuse(record, admitted)
        else:
            Exchange(self._state, record, *admitted, self._ended).start()

    def client_of_head(self, path: str, headers: Mapping[str, str], peer: str) -> str:
        """Whose share of the memory a large body takes: the client's by its key, else that of its address.

        A key that no policy knows is refused here, before the body is read, if every policy requires one.
        """
        setup = self._state.config.current
        if setup is None:
            return peer
        client = setup.client_of_head(_authorization(headers))
        if client is None:
            raise HttpError(401, "invalid_api_key", "Incorrect API key provided.")
        return client or peer

    def _refuse(self, record: Record, refusal: Refusal) -> None:
        record.refusal, record.outcome = refusal, "refused"
        lines = b"x-request-id: %b\r\n" % record.id.encode() + responses.refusal_headers(refusal)
        record.request.response.send(refusal.status, responses.refusal_body(refusal), lines)
        self._ended(record)

    def _ended(self, record: Record) -> None:
        """The client has its answer, or has left: settle the limits, then write metrics and log.

        Everything that is done with an answer after the client has it begins here.
        """
        lease, accounts = record.lease, self._state.accounts
        if lease is None or accounts is None:
            self._finish(record)
        elif accounts.immediate:
            now(lease.settle(record.usd, record.total_tokens))
            self._finish(record)
        else:
            task = self._state.loop.create_task(self._settle(record, lease))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle(self, record: Record, lease: LimitLease) -> None:
        try:
            await lease.settle(record.usd, record.total_tokens)
        finally:
            self._finish(record)

    def _finish(self, record: Record) -> None:
        try:
            record.finish(self._state.loop.time(), self._state.metrics, self._state.access_log)
            if record.decision is not None and record.decision.route.preference and record.outcome != "cancelled":
                self._state.guard.count(record.decision, record.attempts, first_token_s=record.first_token_s)
            if record.decision is not None and record.decision.route.shadow is not None:
                self._copy(record)
            if self._state.capture is not None:
                self._state.capture.offer(record)
        finally:
            record.request.ended(record.request)

    def _copy(self, record: Record) -> None:
        if self._state.on_answered is not None:
            self._state.on_answered(record)

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
        body = responses.error_body(f"There is no {path[:100]!r} here.", code="unknown_url")
        request.response.send(404, body)

    def _list_models(self, request: Request, setup: Setup, name: str) -> None:
        """List the models of all policies that the client may use, or describe one of them."""
        authorization = _authorization(request.headers)
        models = [
            {"id": model, "object": "model", "created": self._started_s, "owned_by": policy.name}
            for model, served in setup.served.items()
            if not (policy := served.policy).guarded
            or ((grant := served.grant_of(authorization)) is not None and (not grant.models or model in grant.models))
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
