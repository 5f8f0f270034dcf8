"""Who can get a request: the ready pods of each ModelDeployment, circuit breakers, and bounds on what is asked again.

Every pod (`Endpoint`) and every target (`TargetBreakers`) has a `Breaker`: after failures in a row it opens for a
while; then one trial request decides whether it closes. `EndpointPool.pick` chooses the pod for a request, by load and
by affinity. `RetryBudget` and `EscalationRate` keep a failing fleet from getting more load. Pure: times are seconds of
any monotonic clock, given by the caller.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from zlib import crc32

from flotilla.api.routing_policy import Failure
from flotilla.gateway.http.client import Origin

LABEL_SERVICE = "kubernetes.io/service-name"
_PORT_NAME = "http"
_BOUND_PERCENT = 125
"""An endpoint with more than this share of the mean load gets no request by affinity: consistent hashing with bounded
loads (Mirrokni, Thorup, Zadimoghaddam 2018)."""
_MIX = 0x9E3779B1
"""2^32 divided by the golden ratio, for multiplicative hashing."""
_PREFIX_CHARS = 8192
"""Length of the prompt's beginning that is compared with what the replicas got before."""
_BLOCK_BYTES = 256
_PREFIX_ITEMS, _PREFIX_STEPS = 16, 200
"""So many tools, messages and parts of one list are looked at, and so many in all."""
_REMEMBERED_BLOCKS = 4096
"""Of each endpoint: a megabyte of text, about what the cache of a small engine holds."""
_RETRY_SHARE = 0.2
"""Retries for each request."""
_RETRY_RESERVE = 10.0
_RATE_WINDOW = 200
_RATE_MINIMUM = 20


class BreakerState(StrEnum):
    """Whether a breaker lets requests through."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When to open, and for how long."""

    failures: int = 5
    """Failures in a row that open the breaker."""
    open_s: float = 5.0
    """How long it stays open the first time; doubled each time that the trial fails."""
    open_limit_s: float = 60.0
    trial_s: float = 30.0
    """A trial without an outcome for so long is given up, and another request is let through."""


class Breaker:
    """The circuit breaker of one endpoint or target."""

    __slots__ = ("_failures", "_opened", "_settings", "_trial_until_s", "_until_s")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened = 0
        """How often it opened in a row; 0 while it is closed."""
        self._until_s = 0.0
        self._trial_until_s = 0.0

    def state(self, now_s: float) -> BreakerState:
        """Closed, open, or half open: a trial is due or under way."""
        if not self._opened:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._until_s else BreakerState.HALF_OPEN

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now. Call `started` when it is."""
        if not self._opened:
            return True
        return now_s >= self._until_s and now_s >= self._trial_until_s

    def started(self, now_s: float) -> None:
        """A request is sent.

        If the breaker is half open, it is the trial, and no other may be sent until it has ended.
        """
        if self._opened and now_s >= self._until_s:
            self._trial_until_s = now_s + self._settings.trial_s

    def succeeded(self) -> None:
        """The request was answered: the breaker closes."""
        self._failures = self._opened = 0
        self._trial_until_s = 0.0

    def release(self) -> None:
        """The request ended without saying anything about the target, for example because its client left."""
        self._trial_until_s = 0.0

    def failed(self, now_s: float, *, at_once: bool = False) -> None:
        """The request failed. With `at_once` this failure alone opens the breaker."""
        self._failures += 1
        trial = self._opened > 0 and now_s >= self._until_s
        if trial or (not self._opened and (at_once or self._failures >= self._settings.failures)):
            self._opened += 1
            wait_s = min(self._settings.open_s * 2 ** (self._opened - 1), self._settings.open_limit_s)
            self._until_s = now_s + wait_s
            self._trial_until_s = 0.0
            self._failures = 0


_BREAKER_SETTINGS = BreakerSettings(failures=3, open_s=1.0, open_limit_s=30.0)


@dataclass(frozen=True, slots=True)
class Address:
    """Address and port of a ready pod."""

    host: str
    port: int


class Destination:
    """Where an attempt is sent. `endpoint` is None for a hosted API, which has no pods of ours."""

    __slots__ = ("endpoint", "origin")

    def __init__(self, origin: Origin, endpoint: "Endpoint | None" = None) -> None:
        self.origin, self.endpoint = origin, endpoint


class Endpoint:
    """One ready pod, its breaker and its load."""

    __slots__ = ("_blocks", "address", "breaker", "destination", "digest", "origin", "outstanding")

    def __init__(self, address: Address, origin: Origin) -> None:
        self.address = address
        self.origin = origin
        self.destination = Destination(origin, self)
        self.breaker = Breaker(_BREAKER_SETTINGS)
        self.digest = crc32(f"{address.host}:{address.port}".encode())
        self.outstanding = 0
        """Requests that were sent and have not ended."""
        self._blocks: dict[int, None] = {}
        """Blocks of prompts that it got, the oldest first."""

    def known_blocks(self, blocks: Sequence[int]) -> int:
        """How many of the blocks, from the first on, it got before."""
        known = 0
        for block in blocks:
            if block not in self._blocks:
                break
            known += 1
        return known

    def remember(self, blocks: Sequence[int]) -> None:
        """It gets a prompt of these blocks."""
        kept = self._blocks
        for block in blocks:
            kept.pop(block, None)
            kept[block] = None
        while len(kept) > _REMEMBERED_BLOCKS:
            del kept[next(iter(kept))]


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

    def pick(self, now_s: float, *, affinity: Sequence[int] = (), without: Iterable[Endpoint] = ()) -> Endpoint | None:
        """Choose the endpoint for a request, other than those in `without`. None if there is none.

        With `affinity` (see `prefix_blocks`) it is the one that has got the longest part of the prompt before, and of
        several such ones the one that the hash of the beginning prefers, so that replicas of the gateway that have seen
        nothing yet agree. Endpoints that are busier than the others are left out. Without affinity it is the least busy
        one. Endpoints whose breaker is open are chosen only if all are open, because the cluster says that they are
        ready.
        """
        left = [endpoint for endpoint in self.endpoints if endpoint not in without] if without else self.endpoints
        if len(left) < 2:
            return left[0] if left else None
        able = [endpoint for endpoint in left if endpoint.breaker.allows(now_s)] or list(left)
        if affinity:
            bound = (_BOUND_PERCENT * (sum(e.outstanding for e in able) + 1) + 100 * len(able) - 1) // (100 * len(able))
            free = [endpoint for endpoint in able if endpoint.outstanding < bound]
            if free:
                first = affinity[0]
                chosen = max(free, key=lambda e: (e.known_blocks(affinity), (e.digest ^ first) * _MIX & 0xFFFFFFFF))
                chosen.remember(affinity)
                return chosen
        self._turn += 1
        start = self._turn % len(able)
        return min(able[start:] + able[:start] if start else able, key=lambda endpoint: endpoint.outstanding)


def prefix_blocks(fields: Mapping[str, Any], model: str, session: str | None) -> tuple[int, ...]:
    """Digests of growing parts of the prompt, which a replica that got them before may have in its cache.

    Engines put the tools before the messages, and keep the cache of each adapter (`model`) apart. Texts count whatever
    their form is: strings, content parts, blocks of a system message, prompts of a completion. A session is one block.
    """
    digest = crc32(model.encode(errors="replace"))
    if session is not None:
        return (crc32(session.encode(errors="replace"), digest),)
    tools, messages = fields.get("tools"), fields.get("messages")
    stack: list[Any] = (
        list(reversed(messages[:_PREFIX_ITEMS])) if isinstance(messages, list) else [fields.get("prompt")]
    )
    for tool in reversed(tools[:_PREFIX_ITEMS]) if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            stack += [function.get("description"), function.get("name")]
    texts, left = list[str](), _PREFIX_CHARS
    for _ in range(_PREFIX_STEPS):
        if not stack or left <= 0:
            break
        item = stack.pop()
        if isinstance(item, str):
            texts.append(item[:left])
            left -= len(item)
        elif isinstance(item, dict):
            stack.append(item["text"] if "text" in item else item.get("content"))
        elif isinstance(item, list):
            numbers = bool(item) and isinstance(item[0], int)
            stack += [repr(item[:_PREFIX_CHARS])] if numbers else reversed(item[:_PREFIX_ITEMS])
    text, blocks = "\n".join(texts).encode(errors="replace"), []
    for start in range(0, len(text), _BLOCK_BYTES):
        digest = crc32(text[start : start + _BLOCK_BYTES], digest)
        blocks.append(digest)
    return tuple(blocks)


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


_TARGET_FAILURES = frozenset({Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.UNAUTHORIZED})
"""Failures that say that a target is broken. A full queue (429) and a model without replicas do not."""
_SEVERAL_CLIENTS = 3
"""So many clients must get failures that a request may have caused, before such failures count against the target."""
_MAX_REST_S = 300.0
"""Bound of a Retry-After header."""


class TargetBreakers:
    """The breakers of all targets, by the policy's uid and the target's name.

    A target gets its breaker with its first failure, so that a gateway without failures looks nothing up.
    """

    def __init__(self) -> None:
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._suspects: dict[tuple[str, str], set[str]] = {}
        """Clients that got a failure which their request may have caused, since the target last answered."""
        self._rests_until_s: dict[tuple[str, str], float] = {}
        """Targets that asked not to be called for a while."""

    def __len__(self) -> int:
        return len(self._breakers)

    def get(self, policy_uid: str, target: str) -> Breaker | None:
        """The breaker of a target, None while it has not failed."""
        return self._breakers.get((policy_uid, target))

    def record(
        self, policy_uid: str, target: str, failure: Failure | None, now_s: float, *, suspect: str | None = None
    ) -> None:
        """Count how an attempt at a target ended; `failure` is None if the target answered.

        `suspect` is the client whose request may have caused the failure. Such failures count only once several clients
        got one and none of them an answer, so that the requests of one client never close a target to the others.
        """
        key = (policy_uid, target)
        found = self._breakers.get(key)
        if failure is None and self._suspects:
            self._suspects.pop(key, None)
        if failure in _TARGET_FAILURES and (suspect is None or self._several_clients(key, suspect)):
            if found is None:
                found = self._breakers[key] = Breaker(BreakerSettings())
            found.failed(now_s)
        elif found is not None:
            if failure is None:
                found.succeeded()
            else:
                found.release()

    def unavailable(self, policy_uid: str, now_s: float) -> frozenset[str]:
        """Names of the policy's targets that get no request now: their breaker is open, or they rest."""
        if not self._breakers and not self._rests_until_s:
            return frozenset()
        found = {key for key, breaker in self._breakers.items() if not breaker.allows(now_s)}
        found |= {key for key, until_s in self._rests_until_s.items() if now_s < until_s}
        return frozenset(target for uid, target in found if uid == policy_uid)

    def resting(self, policy_uid: str, now_s: float) -> frozenset[str]:
        """Names of the policy's targets that asked not to be called now."""
        rests = self._rests_until_s
        return frozenset(name for (uid, name), until_s in rests.items() if uid == policy_uid and now_s < until_s)

    def rest(self, policy_uid: str, target: str, seconds: float, now_s: float) -> None:
        """Send a target nothing for so long, as its Retry-After header asks; five minutes at most."""
        self._rests_until_s[policy_uid, target] = now_s + min(seconds, _MAX_REST_S)

    def keep(self, targets: Container[tuple[str, str]]) -> None:
        """Forget the breakers of all targets but these, given by policy uid and target name."""
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if key in targets}
        self._suspects = {key: clients for key, clients in self._suspects.items() if key in targets}
        self._rests_until_s = {key: until_s for key, until_s in self._rests_until_s.items() if key in targets}

    def _several_clients(self, key: tuple[str, str], client: str) -> bool:
        clients = self._suspects.setdefault(key, set())
        if len(clients) < _SEVERAL_CLIENTS:
            clients.add(client)
        return len(clients) >= _SEVERAL_CLIENTS


class RetryBudget:
    """Bounds retries to a share of the requests, so that a failing fleet does not get twice the load."""

    def __init__(self) -> None:
        self._left = _RETRY_RESERVE

    def earn(self) -> None:
        """A request was admitted, which allows a fifth of a retry."""
        self._left = min(self._left + _RETRY_SHARE, _RETRY_RESERVE)

    def spend(self) -> bool:
        """Whether a retry may be made now; if so, it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class EscalationRate:
    """The share of a rule's recent requests that were escalated."""

    def __init__(self) -> None:
        self._all = self._escalated = 0.0

    def count(self, *, escalated: bool) -> None:
        """Count a request. The weight of older ones is halved every 200 requests."""
        if self._all >= _RATE_WINDOW:
            self._all /= 2
            self._escalated /= 2
        self._all += 1
        self._escalated += escalated

    @property
    def percent(self) -> float:
        """From 0 to 100. Fewer than 20 requests count as 20, so that the first ones may escalate at all."""
        return 100 * self._escalated / max(self._all, _RATE_MINIMUM)
