"""Rate limits and budgets that all replicas of a gateway share, in Redis or Valkey.

Each call is one script, which the server runs alone. When the server does not answer: rates are counted by this process
alone, and no money is reserved, so that only models of the cluster are asked. What was spent meanwhile is kept and
settled when it answers again.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import urlsplit

from flotilla.errors import InvalidSpec
from flotilla.gateway import redis_scripts
from flotilla.gateway.limits import (
    REDIS_URL,
    Budget,
    Clock,
    Limited,
    Rate,
    Reservation,
    Spent,
    Ticket,
    Unavailable,
    new_id,
)
from flotilla.gateway.local_limits import LocalLimits
from flotilla.gateway.redis_calls import FAILED, Busy, RedisCalls, Script
from flotilla.routing.budgets import ZERO, nanodollars

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 0.5
"""Of a call."""
_PAUSE_S: Final = 1.0
"""After a failure the server is left alone for so long: else each request would wait for it."""
_MAX_PENDING: Final = 100_000
"""Settlements that are kept while the server is away, about 50 MB; the oldest is lost beyond."""


class _Away(TimeoutError):
    """The server was not asked, because it did not answer a moment ago."""


class RedisLimits:
    """A LimitStore on a server.

    `clock` finds the window of a budget. Everything else goes by the server's own time, unless `server_clock` replaces
    it for tests.
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
        self._calls = RedisCalls(url, timeout_s=timeout_s)
        self._clock, self._server_clock = clock, server_clock
        self._alone = LocalLimits(clock)
        self._open: dict[str, Decimal] = {}
        self._pending: deque[tuple[Reservation, Decimal]] = deque(maxlen=_MAX_PENDING)
        self._flusher: asyncio.Task[None] | None = None
        self._ask_again_at: float | None = None
        """On the loop's clock; None while the server answers."""

    @property
    def reserved_usd(self) -> Decimal:
        return sum(self._open.values(), ZERO)

    @property
    def available(self) -> bool:
        return self._ask_again_at is None

    async def admit(self, rates: Sequence[Rate], tokens: int) -> Ticket | Limited:
        if not rates:
            return Ticket((), tokens, 0)
        limits = [limit for rate in rates for limit in (rate.requests_per_minute or 0, rate.tokens_per_minute or 0)]
        try:
            number, value = await self._call(
                redis_scripts.ADMIT, [self._rate_key(rate) for rate in rates], [tokens, *limits]
            )
        except FAILED:
            alone = await self._alone.admit(rates, tokens)
            # Nothing of it is on the server, so that nothing can be taken back there.
            return alone if isinstance(alone, Limited) else replace(alone, at_s=0)
        return Ticket(tuple(rates), tokens, value) if number == 0 else Limited(rates[number - 1].name, value)

    async def correct(self, ticket: Ticket, tokens: int) -> None:
        if tokens != ticket.tokens and any(rate.tokens_per_minute for rate in ticket.rates):
            keys = [self._rate_key(rate) for rate in ticket.rates]
            with suppress(*FAILED):
                await self._call(redis_scripts.CORRECT, keys, [ticket.at_s, tokens - ticket.tokens])

    async def reserve(self, budgets: Sequence[Budget], usd: Decimal, ttl_s: float) -> Reservation | Spent | Unavailable:
        if not budgets or usd <= 0:
            return Reservation(new_id(), (), usd)
        now = self._clock()
        reservation = Reservation(new_id(), tuple((budget, budget.window(now)) for budget in budgets), usd)
        arguments: list[Any] = [nanodollars(usd), math.ceil(ttl_s * 1000)]
        for budget in budgets:
            arguments += [nanodollars(budget.limit), 1000 * budget.left_s(now)]
        try:
            number = await self._call(redis_scripts.RESERVE, self._budget_keys(reservation), arguments)
        except _Away:
            return Unavailable()
        except FAILED:
            # It may have been reserved all the same: what was is given back.
            self._later(reservation, ZERO)
            return Unavailable()
        except asyncio.CancelledError:
            # The client has left, and nobody will settle.
            self._later(reservation, ZERO)
            raise
        if number > 0:
            return Spent(budgets[number - 1], budgets[number - 1].left_s(now))
        self._open[reservation.id] = usd
        return reservation

    async def settle(self, reservation: Reservation, usd: Decimal) -> None:
        self._open.pop(reservation.id, None)
        if not reservation.held:
            return
        try:
            await self._settle_now(reservation, usd)
        except FAILED:
            self._later(reservation, usd)
        except asyncio.CancelledError:
            self._later(reservation, usd)
            raise

    async def close(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._flusher
        self._ask_again_at = None
        with suppress(*FAILED):
            while self._pending:
                await self._settle_now(*self._pending[0])
                self._pending.popleft()
        await self._calls.close()

    async def _settle_now(self, reservation: Reservation, usd: Decimal) -> None:
        await self._call(redis_scripts.SETTLE, self._budget_keys(reservation), [nanodollars(usd)])

    def _later(self, reservation: Reservation, usd: Decimal) -> None:
        self._pending.append((reservation, usd))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush(), name="settle when redis is back")

    async def _flush(self) -> None:
        while self._pending:
            await asyncio.sleep(_PAUSE_S)
            with suppress(*FAILED):
                while self._pending:
                    reservation, usd = self._pending[0]
                    await self._settle_now(reservation, usd)
                    if self._pending and self._pending[0][0] is reservation:
                        self._pending.popleft()

    async def _call(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        now = asyncio.get_running_loop().time()
        if self._ask_again_at is not None:
            if now < self._ask_again_at:
                raise _Away
            # This call asks for all others.
            self._ask_again_at = now + _PAUSE_S
        server_ms = -1 if self._server_clock is None else math.floor(self._server_clock() * 1000)
        try:
            answer = await self._calls.run(script, keys, [server_ms, *arguments])
        except Busy:
            raise
        except FAILED as error:
            if self._ask_again_at is None:
                log.warning("Redis does not answer: models that cost money are left out", extra={"cause": repr(error)})
            self._ask_again_at = asyncio.get_running_loop().time() + _PAUSE_S
            raise
        if self._ask_again_at is not None:
            log.info("Redis answers again", extra={"settlements": len(self._pending)})
            self._ask_again_at = None
        return answer

    def _rate_key(self, rate: Rate) -> str:
        return f"flotilla:rate:{rate.policy}:{rate.name}:{_digest(rate.subject)}"

    def _budget_keys(self, reservation: Reservation) -> list[str]:
        keys = [f"flotilla:settled:{reservation.id}"]
        for budget, number in reservation.held:
            key = f"flotilla:budget:{budget.policy}:{budget.name}:{_digest(budget.subject)}"
            keys += [f"{key}:{budget.window_s}:{number}", f"{key}:{budget.window_s}:{number}:until"]
        return keys


def _digest(subject: str) -> str:
    """Callers choose the names of teams: of any length, and none of the store's business."""
    return blake2b(subject.encode(errors="replace"), digest_size=16).hexdigest() if subject else ""
