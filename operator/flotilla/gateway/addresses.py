"""Names to addresses, and which of them may be dialled: what is checked is what is connected to, so that a name that
leads somewhere else a moment later (DNS rebinding) gains nothing."""

import asyncio
import socket
from ipaddress import ip_address
from typing import Protocol

from flotilla.routing.check import address_problem

_KEEP_S = 30.0
_KEPT = 1024


class Resolver(Protocol):
    """Turns the host of an origin into addresses."""

    async def resolve(self, host: str, *, check: bool) -> tuple[str, ...]:
        """Addresses to try in order; `check` refuses those that are not public. Raises OSError where none is left."""


class SystemResolver:
    """The system's, with a short memory."""

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self._kept: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def resolve(self, host: str, *, check: bool) -> tuple[str, ...]:
        """Addresses to try in order."""
        addresses = (host,) if _is_address(host) else await self._looked_up(host)
        if not check or self.allow_private:
            return addresses
        problems = [address_problem(address) for address in addresses]
        public = tuple(a for a, problem in zip(addresses, problems, strict=True) if problem is None)
        if not public:
            raise OSError(f"{host!r} leads to no address that may be dialled: {problems[0]}")
        return public

    async def _looked_up(self, host: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        found = self._kept.get(host)
        if found is not None and found[0] > loop.time():
            return found[1]
        answers = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[host] = (loop.time() + _KEEP_S, addresses)
        return addresses


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
