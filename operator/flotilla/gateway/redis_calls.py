"""Calls of scripts on a Redis server: all that wait at one time are sent together.

One call alone costs a message there and back; a thousand at once cost a few, and need no more connections.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

FAILED: Final = (RedisError, OSError, TimeoutError)
"""What a call may raise: the server does not answer, or refuses."""
_CONNECTIONS: Final = 2
_TOGETHER: Final = 200


class Busy(TimeoutError):
    """The server answers, but there are more calls than it can take in time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    script: "Script"
    arguments: tuple[Any, ...]
    result: "asyncio.Future[Any]"


class Script:
    """Text that the server runs in one step, and the name that it knows it by."""

    __slots__ = ("name", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisCalls:
    """A server; no call takes longer than `timeout_s`."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # One more try for a connection that the server has closed meanwhile.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
        )
        self._waiting: deque[_Call] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._batches = 0
        """That were answered."""

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The script's answer. Raises one of FAILED; whether the server has run it is unknown then."""
        loop = asyncio.get_running_loop()
        call = _Call(script, (script.name, len(keys), *keys, *arguments), loop.create_future())
        self._waiting.append(call)
        if len(self._senders) < _CONNECTIONS:
            sender = loop.create_task(self._send(), name="calls of redis")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        before = self._batches
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call.result
        except TimeoutError:
            if self._batches > before:
                raise Busy from None
            raise

    async def close(self) -> None:
        """Let go of the connections."""
        for sender in list(self._senders):
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        with suppress(*FAILED):
            await self._redis.aclose()

    async def _send(self) -> None:
        while self._waiting:
            # Who has waited too long or has left is not sent for.
            batch = [call for call in self._next() if not call.result.done()]
            if not batch:
                continue
            try:
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._together(batch)
            except FAILED as error:
                for call in [*batch, *self._waiting]:
                    if not call.result.done():
                        call.result.set_exception(error)
                self._waiting.clear()
                return
            self._batches += 1
            for call, answer in zip(batch, answers, strict=True):
                if call.result.done():
                    continue
                if isinstance(answer, Exception):
                    call.result.set_exception(answer)
                else:
                    call.result.set_result(answer)

    def _next(self) -> list[_Call]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))]

    async def _together(self, batch: Sequence[_Call]) -> list[Any]:
        answers = await self._piped(batch)
        # A server that was started anew knows no script.
        unknown = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for text in {batch[number].script.text for number in unknown}:
                await self._redis.script_load(text)
            for number, answer in zip(unknown, await self._piped([batch[n] for n in unknown]), strict=True):
                answers[number] = answer
        return answers

    async def _piped(self, batch: Sequence[_Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in batch:
                pipe.execute_command("EVALSHA", *call.arguments)
            return list(await pipe.execute(raise_on_error=False))
