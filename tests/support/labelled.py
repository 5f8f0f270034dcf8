"""A stand-in for a hosted API: it answers OpenAI chat completions from labelled cases, streamed, with its usage."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Responder = Callable[[list[dict[str, Any]]], str]
"""From the messages of a request to the answer."""


class Labelled:
    """Counts what it was asked. `fail` answers a request with a status instead, while it returns one."""

    def __init__(self, respond: Responder, *, usage: bool = True) -> None:
        self._respond = respond
        self._usage = usage
        self.asked: Counter[str] = Counter()
        """Requests by their last message."""
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.fail: Callable[[str], int | None] = lambda _: None
        self.pause_s = 0.0
        self.url = ""
        self._now = 0

    @classmethod
    def of(cls, answers: Mapping[str, str], **more: Any) -> "Labelled":
        """Answers each last message by the table, and all others with `?`."""
        return cls(lambda messages: answers.get(messages[-1]["content"], "?"), **more)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Labelled"]:
        """On a free port of this machine."""
        app = web.Application(client_max_size=2**22)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "labelled", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        last = body["messages"][-1]["content"]
        self.asked[last] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.pause_s)
            if (status := self.fail(last)) is not None:
                return web.json_response({"error": {"message": "as the test wants"}}, status=status)
            return await self._stream(request, self._respond(body["messages"]), body)
        finally:
            self._now -= 1

    async def _stream(self, request: web.Request, text: str, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        chunks += [{"choices": [{"delta": {"content": piece}}]} for piece in (text[:3], text[3:]) if piece]
        if self._usage:
            prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
            usage = {"prompt_tokens": prompt, "completion_tokens": len(text.split())}
            chunks.append({"choices": [], "usage": usage})
        for chunk in chunks:
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response
