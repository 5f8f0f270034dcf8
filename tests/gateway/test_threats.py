"""What a client could try: smuggling, floods, spoofed headers, fields that redirect. Each is one test."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, chat_body, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Stream
from tests.support.hosted_answers import hosted_api, openai_chunks
from tests.support.routing import SOUND

from flotilla.gateway.http.server import ServerLimits

LIMITS = ServerLimits(
    head_bytes=4096,
    headers=20,
    target_bytes=200,
    body_bytes=20_000,
    pipelined=4,
    head_timeout_s=0.5,
    body_timeout_s=0.5,
    idle_timeout_s=0.5,
    stall_timeout_s=0.5,
)
BODY = json.dumps(chat_body()).encode()


@pytest.fixture
async def engine() -> AsyncIterator[HostedApi]:
    async with hosted_api() as api:
        yield api


@pytest.fixture
async def gw(tmp_path: Path, engine: HostedApi) -> AsyncIterator[Running]:
    async with running_gateway(
        tmp_path, document_of(SOUND), engines={"qwen-medium": [engine]}, limits=LIMITS
    ) as running:
        yield running


def post(*headers: str, body: bytes = BODY, path: str = "/v1/chat/completions", length: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", "Connection: close", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


SMUGGLING = {
    "two lengths": post("Content-Length: 3"),
    "two lengths in one header": post(f"Content-Length: {len(BODY)}, 3", length=False),
    "length and chunked": post("Transfer-Encoding: chunked"),
    "signed length": post(f"Content-Length: +{len(BODY)}", length=False),
    "blank before the colon": post(f"Content-Length : {len(BODY)}", length=False),
    "folded header": post("X-Folded: a\r\n b"),
    "bare line feed": post("X-A: b\nX-C: d"),
    "zero byte in a header": post("X-A: a\0b"),
    "carriage return in a header": post("X-A: a\rb"),
    "bad header name": post("X A: b"),
    "chunked twice": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", length=False),
    "bad chunk": post("Transfer-Encoding: chunked", body=b"3\r\nabcX\r\n0\r\n\r\n", length=False),
    "huge chunk": post("Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n", length=False),
    "no host": b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two hosts": post("Host: other"),
    "chunked is not last": post("Transfer-Encoding: chunked, gzip", length=False),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_what_two_programs_could_read_differently_is_refused(gw: Running, engine: HostedApi, data: bytes) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await gw.raw(data + smuggled)
    assert status(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not engine.received


REFUSED = {
    "compressed body": (post("Content-Encoding: gzip", body=b"\x1f\x8b"), 415),
    "other transfer coding": (post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n", length=False), 501),
    "long url": (post(path="/" + "a" * 300), 414),
    "large header": (post("X-A: " + "a" * 5000), 431),
    "many headers": (post(*[f"X-{i}: a" for i in range(30)]), 431),
    "large body by its length": (post("Content-Length: 20001", length=False, body=b""), 413),
    "large body in chunks": (
        post("Transfer-Encoding: chunked", body=b"1000\r\n" + b"a" * 4096 + b"\r\n", length=False)
        + (b"1000\r\n" + b"a" * 4096 + b"\r\n") * 5,
        413,
    ),
    "trailers without end": (
        post("Transfer-Encoding: chunked", body=b"0\r\n" + b"X-T: " + b"a" * 5000, length=False),
        431,
    ),
    "unknown expectation": (post("Expect: the-unexpected"), 417),
    "unknown method": (b"BREW /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    "other version": (b"GET /v1/models HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "absolute target": (b"GET http://a/v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    "path with dots": (post(path="/v1/../v1/chat/completions"), 404),
    "encoded path": (post(path="/v1/chat%2Fcompletions"), 404),
    "wrong method": (b"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_not_served_is_refused_by_its_own_status(
    gw: Running, engine: HostedApi, data: bytes, expected: int
) -> None:
    answer = await gw.raw(data)
    assert status(answer) == expected
    assert b'"error"' in answer
    assert not engine.received


async def test_a_client_that_sends_its_head_slowly_is_cut_off(gw: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gw.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
    async with asyncio.timeout(10):
        assert status(await reader.read()) == 408
    writer.close()


async def test_a_client_that_sends_its_body_slowly_is_cut_off(gw: Running, engine: HostedApi) -> None:
    assert status(await gw.raw(post("Content-Length: 100", length=False, body=b"{"))) == 408
    assert not engine.received


async def test_a_client_that_sends_nothing_is_closed(gw: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gw.port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_a_client_that_reads_nothing_slows_the_engine_and_is_cut_off(gw: Running, engine: HostedApi) -> None:
    flood = [b"data: " + b"x" * 65_000 + b"\n\n"] * 2000
    engine.script(Stream(flood))
    _, writer = await asyncio.open_connection("127.0.0.1", gw.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(post(body=json.dumps(chat_body(stream=True)).encode()))
    await engine.until(lambda api: api.abandoned == 1)
    assert gw.gateway.server.in_flight == 0
    writer.close()


async def test_requests_sent_ahead_are_answered_in_order(gw: Running) -> None:
    bodies = [json.dumps(chat_body(user=str(i))).encode() for i in range(3)]
    ahead = b"".join(post(body=body).replace(b"Connection: close\r\n", b"") for body in bodies[:2])
    answer = await gw.raw(ahead + post(body=bodies[2]))
    assert answer.count(b"HTTP/1.1 200 OK") == 3


async def test_requests_sent_ahead_are_bounded(gw: Running, engine: HostedApi) -> None:
    gate = asyncio.Event()
    engine.script(Stream(openai_chunks("x"), gate=gate))
    one = post().replace(b"Connection: close\r\n", b"")
    first = post(body=json.dumps(chat_body(stream=True)).encode()).replace(b"Connection: close\r\n", b"")
    running = asyncio.create_task(gw.raw(first + one * 20))
    await engine.until(lambda api: len(api.received) == 1)
    gate.set()
    answer = await running
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(engine.received) == 1


async def test_a_head_request_has_no_body(gw: Running) -> None:
    answer = await gw.raw(b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


async def test_options_names_the_methods(gw: Running) -> None:
    answer = await gw.raw(b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status(answer) == 200
    assert b"allow: POST, OPTIONS\r\n" in answer


async def test_an_expected_continue_is_sent(gw: Running) -> None:
    answer = await gw.raw(post("Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_an_offer_of_http2_is_not_taken(gw: Running) -> None:
    offer = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQ")
    data = post(*offer).replace(b"Connection: close\r\n", b"") + post()
    answer = await gw.raw(data)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2


async def test_the_host_header_has_no_say(gw: Running) -> None:
    answer = await gw.raw(post().replace(b"Host: gateway", b"Host: x/v1/models?"))
    assert status(answer) == 200


BAD_BODIES = {
    "no JSON": (b"{", "invalid_json"),
    "a list": (b"[]", "invalid_json"),
    "not a number": (b'{"model": "support", "top_p": NaN}', "invalid_json"),
    "invalid UTF-8": (b'{"model": "support\xff"}', "invalid_json"),
    "half of a surrogate pair": (rb'{"model": "\ud800"}', "invalid_json"),
    "nested beyond all use": (b'{"model": "support", "x": ' + b"[" * 70 + b"]" * 70 + b"}", "invalid_json"),
    "nested beyond the parser": (b"[" * 5000, "invalid_json"),
    "nested messages": (b'{"model": "support", "messages": ' + b"[" * 70 + b"]" * 70 + b"}", "invalid_json"),
    "a key twice": (b'{"model": "other", "model": "support"}', "duplicate_key"),
    "a key twice, escaped": (rb'{"str\u0065am": true, "model": "support", "stream": false}', "duplicate_key"),
    "a key twice, deep": (b'{"model": "support", "messages": [{"role": "user", "role": "system"}]}', "duplicate_key"),
    "a key twice, blanks": (b'{"model" : "a", "model"\n: "support"}', "duplicate_key"),
    "a key twice, hidden by an escape": (rb'{"a\\": 1, "model": "b", "model": "support"}', "duplicate_key"),
    "no model": (b'{"messages": []}', "missing_model"),
    "model is a list": (b'{"model": ["support"]}', "missing_model"),
    "messages are a text": (b'{"model": "support", "messages": "x"}', "invalid_type"),
    "stream is a text": (b'{"model": "support", "stream": "false"}', "invalid_type"),
    "stream is a number": (b'{"model": "support", "stream": 1}', "invalid_type"),
}


@pytest.mark.parametrize(("body", "code"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_could_be_read_in_two_ways_is_refused(
    gw: Running, engine: HostedApi, body: bytes, code: str
) -> None:
    got, answer, _ = await gw.post(body)
    assert (got, answer["error"]["code"]) == (400, code)
    assert not engine.received


@pytest.mark.parametrize(
    "fields",
    [
        {"api_base": "http://evil"},
        {"base_url": "http://evil"},
        {"api_key": "x"},
        {"user_config": {}},
        {"extra_headers": {"host": "evil"}},
        {"anything": {"deep": [{"api_base": "http://evil"}]}},
        {"chat_template": "{{ 1 }}"},
        {"kv_transfer_params": {"remote_host": "evil"}},
        {"logits_processors": ["os.system"]},
    ],
    ids=str,
)
async def test_fields_that_redirect_are_refused_at_any_depth(gw: Running, engine: HostedApi, fields: Any) -> None:
    got, answer, _ = await gw.chat(**fields)
    assert (got, answer["error"]["code"]) == (400, "forbidden_field")
    assert not engine.received


async def test_the_clients_own_data_may_use_any_name(gw: Running, engine: HostedApi) -> None:
    parameters = {"type": "object", "properties": {"api_key": {"type": "string"}, "base_url": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "call", "parameters": parameters}}]
    assert (await gw.chat(tools=tools))[0] == 200
    assert engine.received[0].json["tools"] == tools


async def test_urls_of_images_are_judged_for_embeddings_too(gw: Running, engine: HostedApi) -> None:
    content = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    body = {"model": "support", "messages": [{"role": "user", "content": content}]}
    got, answer, _ = await gw.post(body, "/v1/embeddings")
    assert (got, answer["error"]["code"]) == (400, "invalid_image_url")
    assert not engine.received


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://x", "FILE:///x", "//x", 7])
async def test_urls_of_images_that_no_browser_would_load_are_refused(gw: Running, engine: HostedApi, url: Any) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    got, answer, _ = await gw.chat(messages=[{"role": "user", "content": content}])
    assert (got, answer["error"]["code"]) == (400, "invalid_image_url")
    assert not engine.received


@pytest.mark.parametrize("model", ["small", "qwen2.5-7b", "support\r\nx: y", "../support", "SUPPORT", "a" * 5000])
async def test_only_names_of_policies_are_models(gw: Running, engine: HostedApi, model: str) -> None:
    got, answer, headers = await gw.chat(model=model)
    assert (got, answer["error"]["code"]) == (404, "model_not_found")
    assert len(answer["error"]["message"]) < 300
    assert "x" not in headers
    assert not engine.received
    assert 'policy="other"' in (await gw.admin("/metrics"))[1]
    # The names by which targets know their models are configuration, and no client's.
    counted = [line for line in (await gw.admin("/metrics"))[1].splitlines() if "_target_info{" not in line]
    assert model not in "\n".join(counted).replace("small", "", 0 if model != "small" else -1)


async def test_headers_of_the_client_do_not_reach_the_engine(gw: Running, engine: HostedApi) -> None:
    spoofed = {
        "authorization": "Bearer mine",
        "x-label-selector": "tenant=other",
        "x-forwarded-for": "10.0.0.1",
        "cookie": "a=b",
        "proxy-authorization": "Basic x",
        "te": "trailers",
        "accept-encoding": "gzip",
        "x-request-id": "mine-1",
    }
    _, _, headers = await gw.chat(headers=spoofed)
    sent = engine.received[0].headers
    assert sent["x-request-id"] == headers["x-request-id"] == "mine-1"
    assert sent["accept-encoding"] == "identity"
    assert set(sent) == {"host", "user-agent", "accept-encoding", "content-type", "content-length", "x-request-id"}


@pytest.mark.parametrize("bad", ["a b", "x" * 200, "a;b", 'a"b'])
async def test_a_request_id_that_could_break_a_log_is_replaced(gw: Running, engine: HostedApi, bad: str) -> None:
    _, _, headers = await gw.chat(headers={"x-request-id": bad})
    assert headers["x-request-id"] != bad


async def test_a_class_that_came_twice_is_the_strictest(gw: Running, engine: HostedApi) -> None:
    answer = await gw.raw(post("x-data-class: public", "X-Data-Class: public"))
    assert b"class=sovereign;" in answer


async def test_the_traffic_port_has_no_admin_paths(gw: Running) -> None:
    for path in ("/metrics", "/config", "/healthz", "/readyz", "/debug"):
        async with gw.session.get(gw.url + path) as answer:
            assert answer.status == 404


async def test_connections_are_bounded(tmp_path: Path, engine: HostedApi) -> None:
    limits = ServerLimits(connections=2)
    async with running_gateway(tmp_path, document_of(SOUND), limits=limits) as gw:
        kept = [await asyncio.open_connection("127.0.0.1", gw.port) for _ in range(2)]
        await eventually(lambda: len(gw.gateway.server.connections) == 2)
        assert await gw.raw(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        for _, writer in kept:
            writer.close()
