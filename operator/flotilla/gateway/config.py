"""The document and the keys that the gateway serves, followed in their mounted files and replaced in one step.

`build_setup` makes a `Setup` of a document and its keys, with a `ServedPolicy` for each policy; `Config` reads the
files and keeps the last good document.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flotilla.api.routing_policy import Failure, Signal
from flotilla.errors import InvalidSpec
from flotilla.gateway.credentials import TokenStore
from flotilla.gateway.dialect import Dialect
from flotilla.gateway.http import message
from flotilla.gateway.http.client import Origin
from flotilla.routing.clients import Grant, TokenVerifier, read_clients
from flotilla.routing.decide import Attempt, Decider, Decision, Refusal, decision_header, wanted_signals
from flotilla.routing.document import DOCUMENT_FILE, GatewayDocument, Policy, key_file, load_document
from flotilla.routing.request import Features, Operation

log = logging.getLogger(__name__)

_POLL_S = 1.0
_HOSTED_KEEP_S = 30.0
_KEY_LIMIT_BYTES = 16 * 1024
_FILE_LIMIT_BYTES = 2**20
"""As much as a Secret can hold."""
_MAX_PLANS = 4096
_REFUSALS = frozenset({Failure.CONTEXT_LENGTH, Failure.CONTENT_FILTER})


class RoutePlan:
    """A decision, with what every request that it is made for needs of it."""

    __slots__ = ("asks_more", "decision", "first", "follows_refusals", "header", "signals")

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.first = decision.first
        """Where the first attempt goes."""
        self.signals = wanted_signals(decision.route) if decision.escalation is not None else frozenset[Signal]()
        """The rule's signals that may escalate the answer; empty if no escalation is possible."""
        paid = bool(decision.policy.limits.budgets) or decision.policy.clients_from is not None
        self.asks_more = Signal.LOW_CONFIDENCE in self.signals or paid
        """Whether targets may be asked for more than what the client asked for."""
        fallback = decision.route.fallback
        self.follows_refusals = fallback is not None and not _REFUSALS.isdisjoint(fallback.on)
        """Whether a refusal of the request may lead to a fallback."""
        self.header = route_header(decision, (Attempt(decision.candidates[0]),))
        """The header line of an answer of the first attempt."""


class ServedPolicy:
    """A policy with its clients' keys, and with a memory of its decisions."""

    def __init__(
        self, policy: Policy, keys: Mapping[bytes, Grant], verifier: TokenVerifier | None = None, problem: str = ""
    ) -> None:
        self.policy = policy
        self.keys = keys
        """SHA-256 of an API key to what it permits. The keys themselves are not kept."""
        self.verifier = verifier
        self.problem = problem
        """Why the file of clients or the keys of the login cannot be used; empty if they can."""
        self._decider = Decider(policy)
        self._plans: dict[int, RoutePlan] = {}

    def client_of(self, authorization: str) -> str | None:
        """Name of the client with this key or token, None if there is none."""
        found = self.grant_of(authorization)
        return None if found is None else found.name

    def grant_of(self, authorization: str) -> Grant | None:
        """What a key or a token permits, None if it is of no client or has expired.

        Digests are compared, so that timing reveals nothing.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = key.strip()
        found = self.keys.get(hashlib.sha256(key.encode("latin-1")).digest())
        if found is None and self.verifier is not None and key.count(".") == 2:
            found = self.verifier.grant(key)
        if found is not None and found.expires_s is not None and found.expires_s <= time.time():
            return None
        return found

    def plan(self, features: Features, seed: str, unavailable: frozenset[str]) -> RoutePlan | Refusal:
        """What `decide` says of a request."""
        found = self._decider.decide(features, seed, unavailable)
        if type(found) is Refusal:
            return found
        assert isinstance(found, Decision)
        plan = self._plans.get(id(found))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            # It keeps the decision, so that no other one gets the same id() while it is here.
            plan = self._plans[id(found)] = RoutePlan(found)
        return plan


@dataclass(frozen=True)
class Setup:
    """One version of document and keys. A request uses the same one from beginning to end."""

    document: GatewayDocument
    served: Mapping[str, ServedPolicy] = field(default_factory=dict)
    """By the model names that clients may ask for."""
    dialects: Mapping[tuple[str, str], Dialect] = field(default_factory=dict)
    """By names of policy and target."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """By base URL of hosted targets."""
    missing_keys: tuple[str, ...] = ()
    """Missing files of keys, named by `key_file`."""

    def client_of_head(self, authorization: str) -> str | None:
        """Name of the client before its request was read, when no policy is known yet.

        Empty if some policy serves clients without a key; None if all require one, and this is the key of none.
        """
        policies = {id(served): served for served in self.served.values()}.values()
        found = next((name for served in policies if (name := served.client_of(authorization))), None)
        if found is None and any(not served.policy.guarded for served in policies):
            return ""
        return found


def route_header(decision: Decision, attempts: Sequence[Attempt], signal: str = "") -> bytes:
    """The header line that says where an answer is from, and why."""
    return message.header("x-flotilla-route", decision_header(decision, attempts, signal))


def build_setup(document: GatewayDocument, keys: Mapping[str, str], tokens: TokenStore | None = None) -> Setup:
    """Prepare what requests need. `keys` are by `key_file`."""
    served = {policy.name: _served(policy, keys) for policy in document.policies}
    targets = [(policy.name, target) for policy in document.policies for target in policy.targets]
    return Setup(
        document,
        {model: served[policy.name] for model, policy in document.by_model.items()},
        {
            (policy, t.name): Dialect(t, keys.get(t.hosted.key_file) if t.hosted else None, tokens)
            for policy, t in targets
        },
        {t.hosted.base_url: origin_of(t.hosted.base_url) for _, t in targets if t.hosted},
        tuple(sorted({key_file(secret) for secret in document.secrets} - {name for name in keys if keys[name]})),
    )


def _served(policy: Policy, keys: Mapping[str, str]) -> ServedPolicy:
    """A policy with all who may call it. A file that cannot be used admits nobody: it may have withdrawn a key."""
    grants = {
        hashlib.sha256(keys[key_file(client.secret_ref)].encode("latin-1", "replace")).digest(): Grant(client.name)
        for client in policy.clients
        if keys.get(key_file(client.secret_ref))
    }
    verifier, problems = None, []
    if policy.clients_from is not None and (text := keys.get(key_file(policy.clients_from))):
        try:
            grants = {**read_clients(text), **grants}
        except InvalidSpec as error:
            problems.append(str(error))
    login = policy.token_login
    if login is not None and (text := keys.get(key_file(login.jwks_from))):
        try:
            verifier = TokenVerifier(login, text)
        except InvalidSpec as error:
            problems.append(str(error))
    for problem in problems:
        log.error("clients cannot be admitted", extra={"policy": policy.name, "cause": problem})
    return ServedPolicy(policy, grants, verifier, " ".join(problems))


def origin_of(base_url: str) -> Origin:
    """The origin of a hosted API. The schema has checked the form of the URL."""
    scheme, _, rest = base_url.partition("://")
    host, _, port = rest.partition("/")[0].partition(":")
    tls = scheme == "https"
    return Origin(base_url, host, int(port or (443 if tls else 80)), tls=tls, hosted=True, keep_s=_HOSTED_KEEP_S)


class Config:
    """Follows the files. `current` is None until a first document was read."""

    def __init__(self, document: Path, keys: Path, state: Path | None) -> None:
        self._document, self._keys = document, keys
        self._last_good = state / DOCUMENT_FILE if state is not None else None
        self._applied: object = None
        self.current: Setup | None = None
        self.tokens = TokenStore()
        self.problem = ""
        """Why the newest document is not served; empty if it is."""
        self.on_change: Callable[[Setup], None] = lambda setup: None

    def load(self) -> None:
        """Apply changes of the files. While a file cannot be read, the last good document is served."""
        text, problem = self._read()
        if text is None and self.current is None:
            text = self._last_good_text()
        if text is None:
            self._report_problem(problem)
            return
        document: GatewayDocument | None
        try:
            document = load_document(text)
        except InvalidSpec as error:
            problem = str(error)
            kept = self._last_good_text() if self.current is None else None
            document = None if kept is None else load_document(kept)
        if document is not None:
            keys = self._read_keys(document)
            seen = (document.hash, sorted(keys.items()))
            if seen != self._applied:
                self._applied = seen
                self._apply(document, keys)
        self._report_problem(problem)

    async def follow(self) -> None:
        """Look for changes every second until cancelled. The kubelet replaces files by renaming directories."""
        signature: object = None
        while True:
            now = self._signature()
            if now != signature:
                signature = now
                self.load()
            await asyncio.sleep(_POLL_S)

    def _apply(self, document: GatewayDocument, keys: Mapping[str, str]) -> None:
        self.current = build_setup(document, keys, self.tokens)
        self.on_change(self.current)
        log.info(
            "serving a new document",
            extra={"hash": document.hash, "policies": len(document.policies), "keys": len(keys)},
        )
        if self._last_good is not None:
            try:
                partial = self._last_good.with_suffix(".partial")
                partial.write_bytes(document.text)
                partial.replace(self._last_good)
            except OSError as error:
                log.warning("the document cannot be saved for a restart", extra={"cause": str(error)})

    def _read(self) -> tuple[bytes | None, str]:
        try:
            return self._document.read_bytes(), ""
        except OSError as error:
            return None, f"{self._document} cannot be read: {error.strerror}"

    def _last_good_text(self) -> bytes | None:
        try:
            return self._last_good.read_bytes() if self._last_good is not None else None
        except OSError:
            return None

    def _read_keys(self, document: GatewayDocument) -> dict[str, str]:
        found = {}
        files = {key_file(secret) for policy in document.policies for secret in policy.client_files}
        for secret in document.secrets:
            name = key_file(secret)
            try:
                with (self._keys / name).open("rb") as file:
                    text = file.read(_FILE_LIMIT_BYTES if name in files else _KEY_LIMIT_BYTES).decode("latin-1").strip()
            except OSError:
                continue
            if name in files:
                found[name] = text
                continue
            # A line break in a key would end the header line; credentials in JSON are no header.
            if text and (text.isprintable() or text.startswith("{")):
                found[name] = text
        return found

    def _signature(self) -> object:
        paths = [self._document]
        if self.current is not None:
            paths += [self._keys / key_file(secret) for secret in self.current.document.secrets]
        return tuple(_stat(path) for path in paths)

    def _report_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("the newest document is not served", extra={"cause": problem})
        self.problem = problem


def operation_paths() -> dict[str, Operation]:
    """The routed paths and their operations. Clients whose base URL lacks /v1 are served too."""
    return {f"{prefix}/{operation.value}": operation for operation in Operation for prefix in ("/v1", "")}


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
