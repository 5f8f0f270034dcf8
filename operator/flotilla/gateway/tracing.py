"""Traces of OpenTelemetry by OTLP over HTTP: a span for each request and one below it for each attempt.

Traces are made if OTEL_EXPORTER_OTLP_ENDPOINT is set. Names follow OpenTelemetry's GenAI conventions, which are not
stable (semantic-conventions-genai, November 2026) and so appear in no other module; other names begin with
`flotilla.`. No text of a prompt or an answer is traced.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flotilla import __version__
from flotilla.errors import InvalidSpec
from flotilla.gateway.attempt import Failed, Interrupted, Outcome
from flotilla.gateway.http.client import Origin
from flotilla.gateway.http.message import Request
from flotilla.routing.budgets import Usage
from flotilla.routing.document import Target
from flotilla.routing.request import Features, Operation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_CLOSE_S: Final = 5
_OPERATIONS: Final[Mapping[Operation, str]] = {
    Operation.CHAT: "chat",
    Operation.COMPLETIONS: "text_completion",
    Operation.EMBEDDINGS: "embeddings",
    Operation.RERANK: "rerank",
    Operation.SCORE: "score",
}


def tracing_from_environment(environ: Mapping[str, str] = os.environ) -> "Tracing | None":
    """The tracing that the OTEL_* variables ask for. None, without loading OpenTelemetry, if no endpoint is set.

    Raises InvalidSpec if an endpoint is set and the library is not installed.
    """
    endpoint = environ.get(_TRACES_ENDPOINT) or environ.get(ENDPOINT)
    if not endpoint or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not environ.get(_TRACES_ENDPOINT):
        endpoint = f"{endpoint.rstrip('/')}/v1/traces"
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidSpec(
            f"{ENDPOINT} is set and OpenTelemetry is not installed. Install flotilla-operator[otlp].", field=ENDPOINT
        ) from error
    named = {"service.name": environ.get("OTEL_SERVICE_NAME", "flotilla-gateway"), "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


class Tracing:
    """Makes the spans of one gateway. A thread of the SDK sends them."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("flotilla.gateway", __version__)
        self._context = TraceContextTextMapPropagator()

    def start_request(self, request: Request) -> "RequestSpan":
        """Start the span of a request, as part of the client's trace if its headers name one."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"{request.method} {request.path}",
            context=self._context.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": request.method, "url.path": request.path, "url.scheme": "http"},
        )
        return RequestSpan(self, span)

    async def close(self) -> None:
        """Send the remaining spans, for five seconds at most."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await loop.run_in_executor(None, self._provider.shutdown)
        except TimeoutError:
            return

    def traceparent(self, span: "Span") -> str:
        """The value of the header traceparent for a span."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._context.inject(carrier, set_span_in_context(span))
        return carrier.get("traceparent", "")

    def attempt(self, parent: "Span", name: str, attributes: dict[str, Any], since_ns: int) -> "Span":
        """Start the span of an attempt, which began at `since_ns` (Unix nanoseconds)."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        return self._tracer.start_span(
            name,
            context=set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=since_ns,
        )


class RequestSpan:
    """The spans of one request."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: "Span") -> None:
        self._tracing, self._span = tracing, span

    @property
    def traceparent(self) -> str:
        """The header value that makes the spans of engines in the cluster part of this trace."""
        return self._tracing.traceparent(self._span)

    def record_attempt(
        self,
        target: Target,
        origin: Origin,
        features: Features,
        *,
        since_ns: int,
        first_byte_s: float,
        outcome: Outcome,
        usage: Usage | None,
        answer: Mapping[str, Any],
        escalated: bool = False,
        classifier: bool = False,
    ) -> None:
        """Write the span of an attempt that has ended. `first_byte_s` counts from its start; NaN if no byte came."""
        operation = _OPERATIONS[features.operation]
        attributes = _request_attributes(target, origin, features, operation) | _response_attributes(answer, usage)
        attributes["flotilla.target"] = target.name
        attributes["flotilla.attempt.escalated"] = escalated
        if classifier:
            attributes["flotilla.attempt.classifier"] = True
        if features.stream and first_byte_s == first_byte_s:
            attributes["gen_ai.response.time_to_first_chunk"] = first_byte_s
        span = self._tracing.attempt(self._span, f"{operation} {target.served_model}", attributes, since_ns)
        if type(outcome) is Failed:
            _mark_failed(span, str(outcome.failure))
        elif type(outcome) is Interrupted:
            _mark_failed(span, "interrupted")
        span.end()

    def end(
        self,
        *,
        status: int,
        request_id: str,
        outcome: str,
        policy: str = "",
        rule: str = "",
        data_class: str = "",
        usd: float = 0.0,
        error_code: str = "",
    ) -> None:
        """End the span of the request.

        Unknown names are empty and an unknown cost is 0: those attributes are left out.
        """
        attributes: dict[str, Any] = {
            "http.response.status_code": status,
            "flotilla.request.id": request_id,
            "flotilla.outcome": outcome,
        }
        if policy:
            attributes["flotilla.policy"] = policy
        if rule:
            attributes["flotilla.rule"] = rule
            attributes["flotilla.data_class"] = data_class
        if usd:
            attributes["flotilla.cost_usd"] = usd
        self._span.set_attributes(attributes)
        if error_code:
            self._span.set_attribute("error.type", error_code)
        if status >= 500 or outcome == "interrupted":
            _mark_failed(self._span, error_code or outcome)
        self._span.end()


def now_ns() -> int:
    """The time in Unix nanoseconds."""
    return time.time_ns()


def _request_attributes(target: Target, origin: Origin, features: Features, operation: str) -> dict[str, Any]:
    provider = target.hosted.provider.lower() if target.hosted is not None else None
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider or (target.cluster.engine if target.cluster is not None else ""),
        "gen_ai.request.model": target.served_model,
        "server.address": origin.host,
        "server.port": origin.port,
    }
    if features.stream:
        attributes["gen_ai.request.stream"] = True
    if features.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = features.max_tokens
    if features.answers != 1:
        attributes["gen_ai.request.choice.count"] = features.answers
    if features.json_schema:
        attributes["gen_ai.output.type"] = "json"
    if features.session is not None:
        attributes["gen_ai.conversation.id"] = features.session
    return attributes


def _response_attributes(answer: Mapping[str, Any], usage: Usage | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name in ("id", "model"):
        if isinstance(answer.get(name), str):
            attributes[f"gen_ai.response.{name}"] = answer[name]
    choices = answer.get("choices")
    choices = choices if isinstance(choices, list) else ()
    reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
    if reasons and all(isinstance(reason, str) for reason in reasons):
        attributes["gen_ai.response.finish_reasons"] = reasons
    if usage is not None:
        attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
        if usage.cached_tokens:
            attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        if usage.cache_creation_tokens:
            attributes["gen_ai.usage.cache_write.input_tokens"] = usage.cache_creation_tokens
    return attributes


def _mark_failed(span: "Span", kind: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
