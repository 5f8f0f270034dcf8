"""Traces as a collector gets them: real OTLP over a real socket."""

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.support.gateway import Running, document_of, running_gateway
from tests.support.hosted import HostedApi, Received, Reply, Whole, fault
from tests.support.hosted_answers import chat, hosted_api, message
from tests.support.routing import HOSTED, SOUND

from flotilla.errors import InvalidSpec
from flotilla.gateway.tracing import ENDPOINT, tracing_from_environment

PUBLIC = {"x-data-class": "public"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

PLAIN: Mapping[str, Any] = {"rules": []}
TASKS = [{"name": "classification", "description": "x"}, {"name": "drafting", "description": "y"}]
CLASSIFIED: Mapping[str, Any] = {
    "rules": [{"name": "tasks", "match": {"tasks": ["classification"]}, "route": {"split": [{"target": "medium"}]}}],
    "classifier": {"target": "medium", "tasks": TASKS},
}


def accepted(request: Received) -> Reply:
    return Whole(b"", headers={"content-type": "application/x-protobuf"})


@asynccontextmanager
async def traced(
    directory: Path, *, policy: Mapping[str, Any] = PLAIN, **external: str
) -> AsyncIterator[tuple[Running, HostedApi, HostedApi, list[Span]]]:
    """A gateway before a model of the cluster with a hosted one to fall back to; the spans are there at its end."""
    spans: list[Span] = []
    async with hosted_api(accepted) as collector, hosted_api() as hosted, hosted_api() as engine:
        frontier = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{hosted.url}/v1", **external}}
        document = document_of({**SOUND, "targets": [*SOUND["targets"][:2], frontier], **policy})
        tracing = tracing_from_environment({ENDPOINT: collector.url})
        assert tracing is not None
        async with running_gateway(directory, document, engines={"qwen-medium": [engine]}) as gw:
            gw.gateway.state.tracing = tracing
            yield gw, engine, hosted, spans
        await tracing.close()
        for request in collector.received:
            assert request.path == "/v1/traces"
            assert b"secret prompt" not in request.body
            assert b"Hello there" not in request.body
            exported = ExportTraceServiceRequest.FromString(request.body)
            for resource in exported.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert names["service.name"] == "flotilla-gateway"
                spans += [span for scope in resource.scope_spans for span in scope.spans]


def attributes(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind or "string_value")
        found[attribute.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


async def test_a_request_has_a_span_and_its_attempt_one_below_it(tmp_path: Path) -> None:
    async with traced(tmp_path) as (gw, engine, _, spans):
        headers = {"traceparent": PARENT, "x-session-id": "s-1"}
        status, _, _ = await gw.chat(headers=headers, text="a secret prompt", max_tokens=9)
        assert status == 200
        passed_on = engine.received[0].headers["traceparent"]

    attempt, request = spans
    assert (attempt.name, request.name) == ("chat qwen2.5-7b", "POST /v1/chat/completions")
    assert (attempt.kind, request.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    assert request.trace_id.hex() == attempt.trace_id.hex() == PARENT.split("-")[1]
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    assert attempt.parent_span_id == request.span_id
    # The engine's own spans hang below ours.
    assert passed_on.split("-")[2] == request.span_id.hex()
    told = attributes(attempt)
    assert told | {"server.port": 0} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "qwen2.5-7b",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.conversation.id": "s-1",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "qwen2.5-7b",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "server.address": "127.0.0.1",
        "server.port": 0,
        "flotilla.target": "medium",
        "flotilla.attempt.escalated": False,
    }
    told = attributes(request)
    assert (told["http.response.status_code"], told["flotilla.policy"]) == (200, "policy-0")
    assert (told["flotilla.rule"], told["flotilla.data_class"]) == ("default", "sovereign")
    assert request.start_time_unix_nano <= attempt.start_time_unix_nano < attempt.end_time_unix_nano
    assert attempt.end_time_unix_nano <= request.end_time_unix_nano


async def test_a_fallback_is_two_attempts_and_the_failed_one_says_why(tmp_path: Path) -> None:
    async with traced(tmp_path, provider="Anthropic") as (gw, engine, hosted, spans):
        engine.script(fault(503))
        usage = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}
        hosted.script(Whole(message(usage=usage)))
        status, _, _ = await gw.chat(headers={**PUBLIC, "traceparent": PARENT})
        assert status == 200
        # What a hosted API learns of our traces is nothing.
        assert "traceparent" not in hosted.received[0].headers

    failed, answered, request = spans
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed)["error.type"] == "ServerError"
    assert answered.status.code == request.status.code == Status.STATUS_CODE_UNSET
    told = attributes(answered)
    assert told["gen_ai.provider.name"] == "anthropic"
    assert (told["gen_ai.usage.cache_read.input_tokens"], told["gen_ai.usage.cache_write.input_tokens"]) == (3, 4)
    assert attributes(request)["flotilla.cost_usd"] > 0


async def test_a_stream_tells_its_first_chunk_and_a_failure_its_code(tmp_path: Path) -> None:
    async with traced(tmp_path) as (gw, engine, _, spans):
        assert (await gw.stream())[0] == 200
        engine.script(fault(500))
        assert (await gw.chat())[0] == 502
        assert (await gw.chat(model="nobody"))[0] == 404

    streamed, _, failed, last, refused = spans
    # The loop's clock counts milliseconds.
    assert attributes(streamed)["gen_ai.response.time_to_first_chunk"] >= 0
    assert attributes(streamed)["gen_ai.request.stream"] is True
    assert attributes(failed)["error.type"] == "ServerError"
    assert (attributes(last)["error.type"], last.status.code) == ("upstream_error", Status.STATUS_CODE_ERROR)
    assert attributes(refused)["error.type"] == "model_not_found"
    assert refused.status.code == Status.STATUS_CODE_UNSET


async def test_the_classifiers_call_has_a_span_below_the_requests_own(tmp_path: Path) -> None:
    async with traced(tmp_path, policy=CLASSIFIED) as (gw, engine, _, spans):
        engine.script(Whole(chat("classification", usage=(100, 3))))
        assert (await gw.chat(text="a secret prompt", max_tokens=9))[0] == 200

    classifier, attempt, request = spans
    assert classifier.parent_span_id == attempt.parent_span_id == request.span_id
    told = attributes(classifier)
    assert (told["flotilla.target"], told["flotilla.attempt.classifier"]) == ("medium", True)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (100, 3)
    assert told["gen_ai.request.max_tokens"] == 16
    assert "flotilla.attempt.classifier" not in attributes(attempt)


def test_without_an_endpoint_nothing_is_traced_and_nothing_is_loaded() -> None:
    assert tracing_from_environment({}) is None
    assert tracing_from_environment({ENDPOINT: "http://x", "OTEL_SDK_DISABLED": "true"}) is None
    program = (
        "import sys, flotilla.gateway.app as app; from flotilla.gateway.tracing import tracing_from_environment;"
        "from flotilla.gateway.limits.accounts import store_from_environment;"
        "assert tracing_from_environment({}) is None; store_from_environment(environ={});"
        "print([m for m in sys.modules if m.split('.')[0] in ('opentelemetry', 'redis', 'jsonschema_rs')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_an_endpoint_without_the_library_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidSpec, match=r"Install flotilla-operator\[otlp\]"):
        tracing_from_environment({ENDPOINT: "http://127.0.0.1:4318"})
