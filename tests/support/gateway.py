"""A gateway inside the test's own loop, in front of fake engines and hosted APIs with real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from flotilla.gateway.app import Gateway, GatewayOptions
from flotilla.gateway.http.server import ServerLimits
from flotilla.gateway.limits.accounts import Accounts
from flotilla.routing.document import GatewayDocument, compile_policy, key_file
from tests.support.hosted import HostedApi
from tests.support.routing import FACTS, resource


@dataclass
class Running:
    """The gateway, and a client of it."""

    gateway: Gateway
    session: aiohttp.ClientSession
    url: str
    directory: Path
    document: GatewayDocument
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return self.gateway.server.port

    async def post(
        self, body: Any, path: str = "/v1/chat/completions", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON document and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        async with self.session.post(self.url + path, data=data, headers=sent) as answer:
            content = await answer.read()
            return answer.status, json.loads(content) if content else None, answer.headers

    async def chat(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, Any, Any]:
        """A small chat completion."""
        return await self.post(chat_body(**fields), headers=headers)

    async def stream(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, list[Any], Any]:
        """Status, the data of all events ([DONE] as text) and headers."""
        body = chat_body(stream=True, **fields)
        async with self.session.post(self.url + "/v1/chat/completions", json=body, headers=headers) as answer:
            text = (await answer.read()).decode()
            if answer.status != 200:
                return answer.status, [json.loads(text)], answer.headers
            return answer.status, events(text), answer.headers

    async def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """All that comes back for these bytes until the gateway closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def admin(self, path: str) -> tuple[int, str]:
        """Status and text of the admin port."""
        async with self.session.get(f"http://127.0.0.1:{self.gateway.admin_port}{path}") as answer:
            return answer.status, await answer.text()

    async def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """What is above 0 of one metric, by the values of the labels but the policy's, in the order of their names."""
        _, text = await self.admin("/metrics")
        return {
            tuple(value for label, value in sorted(sample.labels.items()) if label != "policy"): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"flotilla_gateway_{name}" and sample.value
        }

    def serves(self, model: str) -> bool:
        """Whether the document in use has the model."""
        setup = self.gateway.config.current
        return setup is not None and model in setup.document.by_model

    def serve(self, owner: str, apis: Iterable[HostedApi], *, name: str | None = None) -> None:
        """What the cluster says of a ModelDeployment's endpoints."""
        self.gateway.endpoints.put(endpoint_slice(owner, [api.port for api in apis], name=name))

    def replace_document(self, document: GatewayDocument) -> None:
        """As the kubelet does: another file takes the place."""
        new = self.directory / "document.new"
        new.write_bytes(document.text)
        new.replace(self.directory / "document.json")


def chat_body(model: str = "support", text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def events(text: str) -> list[Any]:
    """The data of all events."""
    data = [block.removeprefix("data: ") for block in text.split("\n\n") if block and not block.startswith(":")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def said(chunks: Iterable[Any]) -> str:
    """The text of a stream."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if isinstance(chunk, dict) and chunk.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)


def endpoint_slice(owner: str, ports: Iterable[int], *, name: str | None = None, **conditions: bool) -> dict[str, Any]:
    """An EndpointSlice; each fake engine is a pod of its own address, which one slice cannot tell apart by port, so
    that there is a slice for each."""
    (port,) = ports
    return {
        "metadata": {"name": name or f"{owner}-{port}", "labels": {"kubernetes.io/service-name": owner}},
        "ports": [{"name": "http", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True, **conditions}}],
    }


def document_of(*specs: Mapping[str, Any], private: bool = True) -> GatewayDocument:
    """Policies named policy-0, policy-1..."""
    policies = [compile_policy(resource(dict(s), name=f"policy-{i}"), FACTS) for i, s in enumerate(specs)]
    return GatewayDocument(namespace="team", allow_private_hosted_addresses=private, policies=tuple(policies))


@asynccontextmanager
async def running_gateway(
    directory: Path,
    document: GatewayDocument,
    *,
    engines: Mapping[str, Iterable[HostedApi]] | None = None,
    limits: ServerLimits | None = None,
    accounts: Accounts | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Every Secret that the document names holds `key-of-NAME`."""
    (directory / "document.json").write_bytes(document.text)
    secrets = {}
    for secret in document.secrets:
        file = directory / "keys" / key_file(secret)
        file.parent.mkdir(parents=True, exist_ok=True)
        secrets[secret.name] = f"key-of-{secret.name}-{secret.key}"
        file.write_text(secrets[secret.name])
    # The system's authorities take longer to read than most tests run.
    tls = settings.pop("tls", None) or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    config = GatewayOptions(
        document=directory / "document.json",
        keys=directory / "keys",
        state=directory,
        host="127.0.0.1",
        port=0,
        admin_host="127.0.0.1",
        admin_port=0,
        lame_duck_s=0,
        grace_s=5,
        access_log=False,
    )
    config = replace(config, limits=limits or ServerLimits(), tls=settings.pop("tls_files", None))
    gateway = Gateway(replace(config, **settings), accounts=accounts, tls=tls)
    await gateway.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            url = f"http://127.0.0.1:{gateway.server.port}"
            running = Running(gateway, session, url, directory, document, secrets)
            for owner, apis in (engines or {}).items():
                for api in apis:
                    running.serve(owner, [api])
            yield running
    finally:
        await gateway.stop()


async def eventually(condition: Any, *, timeout_s: float = 10) -> None:
    """Until the condition, a plain function, holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
