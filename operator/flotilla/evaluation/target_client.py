"""One request to an OpenAI-compatible API, streamed, with its times and its usage."""

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from flotilla.api.routing_policy import Provider
from flotilla.catalog.providers import rules_for
from flotilla.errors import InvalidSpec, Transient
from flotilla.evaluation.plan import PlannedTarget

_ATTEMPTS = 4
_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 30.0
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MAX_ANSWER_BYTES = 4 * 2**20
_MAX_ERROR_BYTES = 2000


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """What came back. Times are seconds from the start of the attempt that was answered."""

    text: str = ""
    first_token_s: float | None = None
    total_s: float = 0.0
    prompt_tokens: int | None = None
    """None where the API reports no usage."""
    cached_tokens: int = 0
    generated_tokens: int | None = None
    error: str = ""
    """Why there is no answer; empty when there is one."""
    status: int = 0
    """HTTP status; 0 without an answer from the server."""

    @property
    def refused(self) -> bool:
        """The server rejects the request itself, such as one that is too long: a proper answer to a weird input."""
        return self.status in (400, 413, 422)


class _Hosts(AbstractResolver):
    """Names that are given, and DNS for all others."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self._hosts = hosts
        self._others = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        known = self._hosts.get(host)
        return await self._others.resolve(host if known is None else known, port, family)

    async def close(self) -> None:
        await self._others.close()


def open_session(hosts: Mapping[str, str]) -> aiohttp.ClientSession:
    """The connections of a run. `hosts` are addresses by name: the local cluster has no DNS."""
    connector = aiohttp.TCPConnector(limit=0, resolver=_Hosts(hosts) if hosts else None)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))


class TargetClient:
    """Asks one target. The key stays in memory and appears in no message."""

    def __init__(self, session: aiohttp.ClientSession, target: PlannedTarget, key: str) -> None:
        self._session = session
        self._target = target
        by_header = {"api-key": key} if target.provider == Provider.AZURE_OPENAI else {"Authorization": f"Bearer {key}"}
        self._headers = by_header if key else {}
        # Anthropic's API of OpenAI's form is not the one that its row of the table describes.
        known = "OpenAI" if target.provider == Provider.ANTHROPIC else target.provider
        self._rules = rules_for(known, target.url, target.model)
        self._url = target.url.rstrip("/")
        self.model = target.model

    async def find_model(self) -> str:
        """The model's name, the first that the API lists where none is given. Raises Transient or InvalidSpec."""
        if self.model:
            return self.model
        url = f"{self._url}/models"
        try:
            async with self._session.get(url, headers=self._headers) as answer:
                listed = await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Transient(f"Target {self._target.name!r} does not answer at {url}: {_said(error)}") from error
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            raise InvalidSpec(
                f"Target {self._target.name!r} lists no models at {url} (HTTP {answer.status}). Name its model.",
                field="target",
            )
        self.model = str(models[0].get("id"))
        return self.model

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], *, max_tokens: int, timeout_s: float
    ) -> CaseAnswer:
        """The answer, or what went wrong; failures that time may heal are retried. Never raises for them."""
        body = self._body(messages, parameters, max_tokens)
        answer = CaseAnswer(error="not asked")
        for attempt in range(1, _ATTEMPTS + 1):
            answer, wish_s = await self._attempt(body, timeout_s)
            if not answer.error or (answer.status and answer.status not in _RETRIED) or attempt == _ATTEMPTS:
                break
            backoff_s = _BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            await asyncio.sleep(min(max(backoff_s, wish_s), _LONGEST_WAIT_S))
        return answer

    def _body(
        self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        body = {
            "max_tokens": max_tokens,
            # The same input gives the same answer, where the model accepts the field.
            "temperature": 0,
            **parameters,
            "model": self.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return self._rules.conform(body).fields if self._target.hosted else body

    async def _attempt(self, body: Mapping[str, Any], timeout_s: float) -> tuple[CaseAnswer, float]:
        """The answer, and the seconds that the server wants a client to wait."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                url = f"{self._url}/chat/completions"
                async with self._session.post(url, json=body, headers=self._headers) as response:
                    if response.status != 200:
                        said = (await response.content.read(_MAX_ERROR_BYTES)).decode(errors="replace")
                        wish = response.headers.get("Retry-After", "")
                        error = f"HTTP {response.status}: {' '.join(said.split())[:300]}"
                        waited = float(wish) if wish.isdecimal() else 0.0
                        return CaseAnswer(error=error, status=response.status), waited
                    return await self._read(response, started), 0.0
        except TimeoutError:
            return CaseAnswer(error=f"no whole answer within {timeout_s:g} s", status=408), 0.0
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return CaseAnswer(error=_said(error)), 0.0

    async def _read(self, response: aiohttp.ClientResponse, started: float) -> CaseAnswer:
        parts: list[str] = []
        first: float | None = None
        usage: Mapping[str, Any] = {}
        async for chunk in _chunks(response):
            if isinstance(wrong := chunk.get("error"), dict):
                return CaseAnswer(error=str(wrong.get("message", "error in the stream"))[:300], status=502)
            if isinstance(found := chunk.get("usage"), dict):
                usage = found
            for choice in (chunk.get("choices") or ())[:1]:
                said = (choice.get("delta") or choice.get("message") or {}).get("content")
                if isinstance(said, str) and said:
                    first = time.perf_counter() - started if first is None else first
                    parts.append(said)
        details = usage.get("prompt_tokens_details") or {}
        return CaseAnswer(
            text="".join(parts),
            first_token_s=first,
            total_s=time.perf_counter() - started,
            prompt_tokens=usage.get("prompt_tokens"),
            cached_tokens=int(details.get("cached_tokens") or 0),
            generated_tokens=usage.get("completion_tokens"),
            status=200,
        )


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of events, or the one object of an API that does not stream. Raises ValueError."""
    if response.content_type == "application/json":
        whole = json.loads(await response.content.read())
        if isinstance(whole, dict):
            yield whole
        return
    buffer, size = b"", 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer exceeds {_MAX_ANSWER_BYTES} bytes")
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (text := line[5:].strip()) != b"[DONE]" and text:
                event = json.loads(text)
                if isinstance(event, dict):
                    yield event


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
