"""The ready pods of each ModelDeployment, and which of them gets a request. Pure; the caller gives the time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from flotilla.gateway.http.client import Origin
from flotilla.gateway.resilience import Breaker, BreakerSettings

LABEL_SERVICE = "kubernetes.io/service-name"
_PORT_NAME = "http"
_BREAKER_SETTINGS = BreakerSettings(failures=3, open_s=1.0, open_limit_s=30.0)
_BOUND_PERCENT = 125
"""An endpoint with more than this share of the mean load gets no request by affinity: consistent hashing with bounded
loads (Mirrokni, Thorup, Zadimoghaddam 2018)."""
_MIX = 0x9E3779B1
"""2^32 divided by the golden ratio, for multiplicative hashing."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address and port of a ready pod."""

    host: str
    port: int


class Endpoint:
    """One ready pod, its breaker and its load."""

    __slots__ = ("address", "breaker", "digest", "origin", "outstanding")

    def __init__(self, address: Address, origin: Origin) -> None:
        self.address = address
        self.origin = origin
        self.breaker = Breaker(_BREAKER_SETTINGS)
        self.digest = crc32(f"{address.host}:{address.port}".encode())
        self.outstanding = 0
        """Requests that were sent and have not ended."""


class EndpointPool:
    """The endpoints of one ModelDeployment."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._turn = 0
        self.endpoints: tuple[Endpoint, ...] = ()

    def update(self, addresses: Mapping[Address, Origin]) -> bool:
        """Set the endpoints; those that stay keep breaker and load. Returns whether any is new."""
        known = {endpoint.address: endpoint for endpoint in self.endpoints}
        self.endpoints = tuple(known.get(a) or Endpoint(a, origin) for a, origin in sorted(addresses.items(), key=_key))
        return any(address not in known for address in addresses)

    def pick(self, now_s: float, *, affinity: int | None = None, without: Iterable[Endpoint] = ()) -> Endpoint | None:
        """Choose the endpoint for a request, other than those in `without`. None if there is none.

        With `affinity` (a hash of the session or of the prompt's beginning) it is the one that the hash prefers, unless
        that is busier than the others; without, it is the least busy one. Endpoints whose breaker is open are chosen
        only if all are open, because the cluster says that they are ready.
        """
        left = [endpoint for endpoint in self.endpoints if endpoint not in without] if without else self.endpoints
        if len(left) < 2:
            return left[0] if left else None
        able = [endpoint for endpoint in left if endpoint.breaker.allows(now_s)] or list(left)
        if affinity is not None:
            bound = (_BOUND_PERCENT * (sum(e.outstanding for e in able) + 1) + 100 * len(able) - 1) // (100 * len(able))
            free = [endpoint for endpoint in able if endpoint.outstanding < bound]
            if free:
                return max(free, key=lambda endpoint: (endpoint.digest ^ affinity) * _MIX & 0xFFFFFFFF)
        self._turn += 1
        start = self._turn % len(able)
        return min(able[start:] + able[:start] if start else able, key=lambda endpoint: endpoint.outstanding)


class EndpointRegistry:
    """The endpoint pools of all ModelDeployments, kept up to date from the namespace's EndpointSlices."""

    def __init__(self, translate: Callable[[str], str] = lambda address: address) -> None:
        self._translate = translate
        self._slices: dict[str, tuple[str, frozenset[Address]]] = {}
        self._pools: dict[str, EndpointPool] = {}
        self.on_ready: Callable[[str], None] = lambda owner: None
        """Called with the name of a ModelDeployment that has a new endpoint."""

    def pool(self, owner: str) -> EndpointPool:
        """The pool of a ModelDeployment; empty if no EndpointSlice names it."""
        found = self._pools.get(owner)
        if found is None:
            # The admin server's threads come here too: one step, so that none replaces the pool of another.
            found = self._pools.setdefault(owner, EndpointPool(owner))
        return found

    def put(self, endpoint_slice: Mapping[str, Any]) -> None:
        """Add or replace an EndpointSlice, given as the API returns it."""
        meta = endpoint_slice["metadata"]
        owner = (meta.get("labels") or {}).get(LABEL_SERVICE)
        before = self._slices.get(meta["name"])
        if owner is None:
            self.remove(meta["name"])
            return
        self._slices[meta["name"]] = (owner, ready_addresses(endpoint_slice))
        if before is not None and before[0] != owner:
            self._refresh(before[0])
        self._refresh(owner)

    def remove(self, name: str) -> None:
        """Remove an EndpointSlice by its name."""
        before = self._slices.pop(name, None)
        if before is not None:
            self._refresh(before[0])

    def replace(self, slices: Iterable[Mapping[str, Any]]) -> None:
        """Replace all EndpointSlices by these."""
        kept = list(slices)
        names = {item["metadata"]["name"] for item in kept}
        for item in kept:
            self.put(item)
        for name in [name for name in self._slices if name not in names]:
            self.remove(name)

    def _refresh(self, owner: str) -> None:
        addresses = frozenset[Address]().union(*(found for name, found in self._slices.values() if name == owner))
        origins = {a: Origin(owner, self._translate(a.host), a.port) for a in addresses}
        if self.pool(owner).update(origins):
            self.on_ready(owner)


def ready_addresses(endpoint_slice: Mapping[str, Any]) -> frozenset[Address]:
    """The addresses that serve: ready, not terminating, with the port that engine Services have."""
    ports = endpoint_slice.get("ports") or ()
    port = next((p["port"] for p in ports if p.get("name") == _PORT_NAME and p.get("port")), None)
    if port is None:
        return frozenset()
    found: set[Address] = set()
    for endpoint in endpoint_slice.get("endpoints") or ():
        conditions = endpoint.get("conditions") or {}
        # The API says that a missing `ready` means true.
        if conditions.get("ready") is False or conditions.get("terminating") is True:
            continue
        found.update(Address(address, port) for address in (endpoint.get("addresses") or ())[:1])
    return frozenset(found)


def _key(item: tuple[Address, Origin]) -> tuple[str, int]:
    return item[0].host, item[0].port
