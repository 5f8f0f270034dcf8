"""Rate limits and budgets that all replicas of a gateway share, counted in Redis or Valkey.

`RedisLimitStore` runs a Lua script for each call, which the server runs in one step; `ScriptClient` sends calls that
wait at the same time together, so that a thousand calls cost a few round trips. While the server does not answer,
rates are counted in this process, no money can be reserved (so that only models of the cluster are asked), and
settlements are kept and sent when it answers again.

In all scripts, argument 1 is the time in ms, or -1 for the server's own. A rate is a hash of counts by second, `q`
for requests and `t` for tokens. A budget's window is a hash with `spent`, `held` and each reservation's amount by its
ID, in billionths of a dollar, and a sorted set of IDs by the time when they expire.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import blake2b, sha1
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from flotilla.errors import InvalidSpec
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.gateway.limits.store import (
    REDIS_URL,
    BudgetExceeded,
    Clock,
    RateExceeded,
    RateTicket,
    Reservation,
    StoreUnavailable,
    SubjectBudget,
    SubjectRate,
    new_id,
)
from flotilla.routing.budgets import ZERO, nanodollars

log = logging.getLogger(__name__)

CALL_ERRORS: Final = (RedisError, OSError, TimeoutError)
"""What a call may raise: the server does not answer, or refuses."""
_CONNECTIONS: Final = 2
_BATCH: Final = 200
_TIMEOUT_S: Final = 0.5
"""Time limit of a call."""
_PAUSE_S: Final = 1.0
"""After a failure the server is not called for so long, so that not every request waits for it."""
_MAX_PENDING: Final = 100_000
"""Settlements that are kept while the server is away, about 50 MB. Beyond that the oldest is lost."""


class ServerBusy(TimeoutError):
    """The server answers, but not all calls in time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    script: "Script"
    arguments: tuple[Any, ...]
    result: "asyncio.Future[Any]"


class Script:
    """A Lua script and the SHA-1 by which the server knows it."""

    __slots__ = ("name", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = sha1(text.encode(), usedforsecurity=False).hexdigest()


class ScriptClient:
    """Runs scripts on a server. No call takes longer than `timeout_s`."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Try once more, in case the server has closed the idle connection.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
        )
        self._waiting: deque[_Call] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._batches = 0
        """Batches that were answered."""

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script and return its answer.

        Raises one of CALL_ERRORS; then it is unknown whether the script has run.
        """
        loop = asyncio.get_running_loop()
        call = _Call(script, (script.name, len(keys), *keys, *arguments), loop.create_future())
        self._waiting.append(call)
        if len(self._senders) < _CONNECTIONS:
            sender = loop.create_task(self._send(), name="redis-calls")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        before = self._batches
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call.result
        except TimeoutError:
            if self._batches > before:
                raise ServerBusy from None
            raise

    async def close(self) -> None:
        """Close the connections."""
        for sender in list(self._senders):
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        with suppress(*CALL_ERRORS):
            await self._redis.aclose()

    async def _send(self) -> None:
        while self._waiting:
            # Leave out calls that have timed out or were cancelled.
            batch = [call for call in self._next() if not call.result.done()]
            if not batch:
                continue
            try:
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._together(batch)
            except CALL_ERRORS as error:
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
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]

    async def _together(self, batch: Sequence[_Call]) -> list[Any]:
        answers = await self._piped(batch)
        # A server that was restarted has forgotten the scripts.
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


_NOW: Final = """
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
_KEPT_MS: Final = 3_600_000
"""How long a settled reservation, and a window after its end, are kept."""

ADMIT: Final = Script(
    _NOW
    + """
-- Returns {0, second} or {number of the rate without room, seconds to wait}.
local second, tokens = math.floor(now / 1000), tonumber(ARGV[2])
local function wait(counts, more, limit)
  if limit == 0 then return 0 end
  table.sort(counts, function(a, b) return a[1] < b[1] end)
  local room = limit
  for _, count in ipairs(counts) do room = room - count[2] end
  if more <= room then return 0 end
  for _, count in ipairs(counts) do
    room = room + count[2]
    if more <= room or room >= limit then return count[1] + 61 - second end
  end
  return 0
end
for number, key in ipairs(KEYS) do
  local all, gone = redis.call('HGETALL', key), {}
  local counts = {q = {}, t = {}}
  for i = 1, #all, 2 do
    local kind, at, count = string.sub(all[i], 1, 1), tonumber(string.sub(all[i], 2)), tonumber(all[i + 1])
    if at < second - 60 then
      gone[#gone + 1] = all[i]
    elseif count > 0 then
      table.insert(counts[kind], {at, count})
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  local waiting = math.max(
    wait(counts.q, 1, tonumber(ARGV[1 + 2 * number])), wait(counts.t, tokens, tonumber(ARGV[2 + 2 * number])))
  if waiting > 0 then return {number, waiting} end
end
for _, key in ipairs(KEYS) do
  redis.call('HINCRBY', key, 'q' .. second, 1)
  redis.call('HINCRBY', key, 't' .. second, tokens)
  redis.call('EXPIRE', key, 62)
end
return {0, second}
"""
)

CORRECT: Final = Script(
    _NOW
    + """
local second, at, more = math.floor(now / 1000), ARGV[2], tonumber(ARGV[3])
for _, key in ipairs(KEYS) do
  if more > 0 then
    redis.call('HINCRBY', key, 't' .. second, more)
    redis.call('EXPIRE', key, 62)
  elseif redis.call('HEXISTS', key, 't' .. at) == 1 then
    redis.call('HINCRBY', key, 't' .. at, more)
  end
end
return 0
"""
)

RESERVE: Final = Script(
    _NOW
    + f"local kept = {_KEPT_MS}"
    + """
-- Returns 0, or the number of the budget without room.
local name, amount, ttl = string.match(KEYS[1], '[^:]+$'), tonumber(ARGV[2]), tonumber(ARGV[3])
-- A call that came late, after its caller had given it up and released it.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local budgets = (#KEYS - 1) / 2
for number = 1, budgets do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  local gone = redis.call('ZRANGEBYSCORE', untils, '-inf', now, 'LIMIT', 0, 1000)
  for _, old in ipairs(gone) do
    local given_back = redis.call('HGET', window, old)
    if given_back then
      redis.call('HINCRBY', window, 'held', '-' .. given_back)
      redis.call('HDEL', window, old)
    end
    redis.call('ZREM', untils, old)
  end
  if redis.call('HEXISTS', window, name) == 0 then
    local counted = redis.call('HMGET', window, 'spent', 'held')
    local room = tonumber(ARGV[2 + 2 * number]) - (tonumber(counted[1]) or 0) - (tonumber(counted[2]) or 0)
    if amount > room then return number end
  end
end
for number = 1, budgets do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  if redis.call('HSETNX', window, name, ARGV[2]) == 1 then
    redis.call('HINCRBY', window, 'held', ARGV[2])
    redis.call('ZADD', untils, now + ttl, name)
    local left = tonumber(ARGV[3 + 2 * number]) + ttl + kept
    redis.call('PEXPIRE', window, left)
    redis.call('PEXPIRE', untils, left)
  end
end
return 0
"""
)

SETTLE: Final = Script(
    _NOW
    + f"local kept = {_KEPT_MS}"
    + """
-- Returns 1 the first time, and 0 after.
local name = string.match(KEYS[1], '[^:]+$')
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', kept) then return 0 end
for number = 1, (#KEYS - 1) / 2 do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  local held = redis.call('HGET', window, name)
  if held then
    redis.call('HINCRBY', window, 'held', '-' .. held)
    redis.call('HDEL', window, name)
    redis.call('ZREM', untils, name)
  end
  redis.call('HINCRBY', window, 'spent', ARGV[2])
  if redis.call('PTTL', window) < 0 then redis.call('PEXPIRE', window, kept) end
end
return 1
"""
)


class _ServerAway(TimeoutError):
    """The server was not called, because it did not answer a moment ago."""


class RedisLimitStore:
    """A LimitStore on a server.

    `clock` gives the window of a budget. Everything else uses the server's own time, unless a test sets `server_clock`.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = time.time,
        server_clock: Clock | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
            raise InvalidSpec(f"{REDIS_URL} must begin with redis://, rediss:// or unix://.", field=REDIS_URL)
        self._calls = ScriptClient(url, timeout_s=timeout_s)
        self._clock, self._server_clock = clock, server_clock
        self._local = LocalLimitStore(clock)
        self._open: dict[str, Decimal] = {}
        self._pending: deque[tuple[Reservation, Decimal]] = deque(maxlen=_MAX_PENDING)
        self._flusher: asyncio.Task[None] | None = None
        self._retry_at_s: float | None = None
        """When to call the server again, on the loop's clock; None while it answers."""

    @property
    def reserved_usd(self) -> Decimal:
        return sum(self._open.values(), ZERO)

    @property
    def available(self) -> bool:
        return self._retry_at_s is None

    immediate = False

    async def admit(self, rates: Sequence[SubjectRate], tokens: int) -> RateTicket | RateExceeded:
        if not rates:
            return RateTicket((), tokens, 0)
        limits = [limit for rate in rates for limit in (rate.requests_per_minute or 0, rate.tokens_per_minute or 0)]
        try:
            number, value = await self._call(ADMIT, [self._rate_key(rate) for rate in rates], [tokens, *limits])
        except CALL_ERRORS:
            alone = await self._local.admit(rates, tokens)
            # The ticket was not counted on the server, so that nothing can be corrected there.
            return alone if isinstance(alone, RateExceeded) else replace(alone, at_s=0)
        return RateTicket(tuple(rates), tokens, value) if number == 0 else RateExceeded(rates[number - 1].name, value)

    async def correct(self, ticket: RateTicket, tokens: int) -> None:
        if tokens != ticket.tokens and any(rate.tokens_per_minute for rate in ticket.rates):
            keys = [self._rate_key(rate) for rate in ticket.rates]
            with suppress(*CALL_ERRORS):
                await self._call(CORRECT, keys, [ticket.at_s, tokens - ticket.tokens])

    async def reserve(
        self, budgets: Sequence[SubjectBudget], usd: Decimal, ttl_s: float
    ) -> Reservation | BudgetExceeded | StoreUnavailable:
        if not budgets or usd <= 0:
            return Reservation(new_id(), (), usd)
        now = self._clock()
        reservation = Reservation(new_id(), tuple((budget, budget.window(now)) for budget in budgets), usd)
        arguments: list[Any] = [nanodollars(usd), math.ceil(ttl_s * 1000)]
        for budget in budgets:
            arguments += [nanodollars(budget.limit), 1000 * budget.left_s(now)]
        try:
            number = await self._call(RESERVE, self._budget_keys(reservation), arguments)
        except _ServerAway:
            return StoreUnavailable()
        except CALL_ERRORS:
            # The script may have run all the same: release what it may have reserved.
            self._settle_later(reservation, ZERO)
            return StoreUnavailable()
        except asyncio.CancelledError:
            # The client has left, so that nothing else will settle the reservation.
            self._settle_later(reservation, ZERO)
            raise
        if number > 0:
            return BudgetExceeded(budgets[number - 1], budgets[number - 1].left_s(now))
        self._open[reservation.id] = usd
        return reservation

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        self._open.pop(reservation.id, None)
        if not reservation.held:
            return
        try:
            await self._settle_now(reservation, usd)
        except CALL_ERRORS:
            self._settle_later(reservation, usd)
        except asyncio.CancelledError:
            self._settle_later(reservation, usd)
            raise

    async def close(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._flusher
        self._retry_at_s = None
        with suppress(*CALL_ERRORS):
            while self._pending:
                await self._settle_now(*self._pending[0])
                self._pending.popleft()
        await self._calls.close()

    async def _settle_now(self, reservation: Reservation, usd: Decimal) -> None:
        await self._call(SETTLE, self._budget_keys(reservation), [nanodollars(usd)])

    def _settle_later(self, reservation: Reservation, usd: Decimal) -> None:
        self._pending.append((reservation, usd))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush(), name="redis-settlements")

    async def _flush(self) -> None:
        while self._pending:
            await asyncio.sleep(_PAUSE_S)
            with suppress(*CALL_ERRORS):
                while self._pending:
                    reservation, usd = self._pending[0]
                    await self._settle_now(reservation, usd)
                    if self._pending and self._pending[0][0] is reservation:
                        self._pending.popleft()

    async def _call(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        now = asyncio.get_running_loop().time()
        if self._retry_at_s is not None:
            if now < self._retry_at_s:
                raise _ServerAway
            # This call finds out for all others whether the server is back.
            self._retry_at_s = now + _PAUSE_S
        server_ms = -1 if self._server_clock is None else math.floor(self._server_clock() * 1000)
        try:
            answer = await self._calls.run(script, keys, [server_ms, *arguments])
        except ServerBusy:
            raise
        except CALL_ERRORS as error:
            if self._retry_at_s is None:
                log.warning(
                    "Redis does not answer: hosted models with a budget are not used", extra={"cause": repr(error)}
                )
            self._retry_at_s = asyncio.get_running_loop().time() + _PAUSE_S
            raise
        if self._retry_at_s is not None:
            log.info("Redis answers again", extra={"settlements": len(self._pending)})
            self._retry_at_s = None
        return answer

    def _rate_key(self, rate: SubjectRate) -> str:
        return f"flotilla:rate:{rate.policy}:{rate.name}:{_digest(rate.subject)}"

    def _budget_keys(self, reservation: Reservation) -> list[str]:
        keys = [f"flotilla:settled:{reservation.id}"]
        for budget, number in reservation.held:
            key = f"flotilla:budget:{budget.policy}:{budget.name}:{_digest(budget.subject)}"
            keys += [f"{key}:{budget.window_s}:{number}", f"{key}:{budget.window_s}:{number}:until"]
        return keys


def _digest(subject: str) -> str:
    """Callers choose the names of teams, of any length and content, so that the key has a digest only."""
    return blake2b(subject.encode(errors="replace"), digest_size=16).hexdigest() if subject else ""
