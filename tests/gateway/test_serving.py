"""Requests through the gateway, as clients see them."""

from pathlib import Path

import pytest
from tests.support.gateway import chat_body, document_of, running_gateway, said
from tests.support.hosted_answers import hosted_api
from tests.support.routing import SOUND
from yarl import URL

from flotilla.gateway.limits.accounts import LimitLease


async def test_a_whole_answer_comes_from_the_model_of_the_rule(tmp_path: Path) -> None:
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(SOUND), engines={"qwen-medium": [engine]}) as gw,
    ):
        status, body, headers = await gw.chat(temperature=0.5, unknown_field={"a": [1, 2.50]})
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "Hello there"
        assert headers["x-flotilla-route"].startswith(
            "rule=default;target=medium;attempts=1;class=sovereign;policy=policy-0@"
        )
        (sent,) = engine.received
        assert sent.path == "/v1/chat/completions"
        assert sent.json == {
            "model": "qwen2.5-7b",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "unknown_field": {"a": [1, 2.5]},
        }
        assert b'{"a": [1, 2.5]}' in sent.body


async def test_clients_find_health_models_and_operations_where_they_look(tmp_path: Path) -> None:
    spec = {**SOUND, "hostModels": ["Qwen/Qwen2.5-7B"]}
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(spec), engines={"qwen-medium": [engine]}) as gw,
    ):
        for path in ("/", "/health"):
            for method in ("GET", "HEAD"):
                async with gw.session.request(method, gw.url + path) as answer:
                    assert answer.status == 200
            async with gw.session.post(gw.url + path) as answer:
                assert answer.status == 405
        for path in ("/v1/models/Qwen%2FQwen2.5-7B", "/models/Qwen/Qwen2.5-7B"):
            async with gw.session.get(URL(gw.url + path, encoded=True)) as answer:
                assert (answer.status, (await answer.json())["id"]) == (200, "Qwen/Qwen2.5-7B")
        status, body, _ = await gw.post(chat_body("Qwen/Qwen2.5-7B"), "/chat/completions")
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello there")
        assert engine.received[0].path == "/v1/chat/completions"


async def test_a_stream_is_passed_on_and_ends_with_done(tmp_path: Path) -> None:
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(SOUND), engines={"qwen-medium": [engine]}) as gw,
    ):
        status, chunks, _ = await gw.stream()
        assert status == 200
        assert said(chunks) == "Hello there"
        assert chunks[-1] == "[DONE]"
        assert engine.received[0].json["stream_options"] == {"include_usage": True}
        assert not any("usage" in chunk for chunk in chunks[:-1])
        _, metrics = await gw.admin("/metrics")
        assert (
            'flotilla_gateway_tokens_total{answer="first",policy="policy-0",target="medium",token_type="output"} 2.0'
            in metrics
        )


async def test_a_defect_of_ours_is_one_requests_and_is_told_in_openais_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Defect:
        immediate = True

        async def admit(self, *_: object) -> LimitLease:
            raise RuntimeError("a defect")

    policy = {**SOUND, "limits": {"rates": [{"name": "fair", "requestsPerMinute": 9}]}}
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(policy), engines={"qwen-medium": [engine]}, accounts=Defect()) as gw,
    ):
        status, body, _ = await gw.chat(text="a secret prompt")
        assert (status, body["error"]["code"], body["error"]["type"]) == (500, "internal_error", "server_error")
        assert "RuntimeError: a defect" in caplog.text
        assert "secret" not in caplog.text
        gw.gateway.state.accounts = None
        assert (await gw.chat())[0] == 200
