"""What is recorded of a request: metrics, a trace span and a line of the access log. Never its text or its answer.

A `Record` belongs to one request and is filled in the order of the code: `api` makes it, `admission` sets policy,
features, lease and decision, `dispatch` adds time, `exchange` adds attempts, usage and the outcome, and `finish` writes
it all.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson

from flotilla.gateway.attempt import TargetAnswer
from flotilla.gateway.config import RoutePlan
from flotilla.gateway.http.message import Request
from flotilla.gateway.limits.accounts import LimitLease
from flotilla.gateway.metrics import ESCALATION, FIRST, OTHER, REPLACED, GatewayMetrics
from flotilla.gateway.openai.requests import Body
from flotilla.gateway.tracing import RequestSpan
from flotilla.routing.budgets import ZERO, Usage, spent
from flotilla.routing.decide import Attempt, Decision, Refusal
from flotilla.routing.document import Policy, Target
from flotilla.routing.request import Features, Operation

_FLUSH_INTERVAL_S = 0.2
_MAX_LINES = 50_000


class AccessLog:
    """One JSON object a line for each request, written by a thread.

    A slow reader of the log does not delay requests: lines beyond 50,000 waiting ones are dropped and counted.
    """

    def __init__(self, descriptor: int | None, *, on_lost: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self.enabled = descriptor is not None
        self._on_lost = on_lost
        self._lines: deque[bytes] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        if descriptor is not None:
            self._thread.start()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line, if the log is enabled."""
        if len(self._lines) >= _MAX_LINES:
            self._on_lost(1)
            return
        self._lines.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Write the remaining lines, for a second at most."""
        self._stop.set()
        if self._descriptor is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.wait(_FLUSH_INTERVAL_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        count = len(self._lines)
        if not count:
            return
        data = memoryview(b"".join([self._lines.popleft() for _ in range(count)]))
        assert self._descriptor is not None
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._on_lost(count)
                return


class Record:
    """One request and everything that is known and recorded of it."""

    __slots__ = (
        "_first_byte_s",
        "_usages",
        "answer",
        "attempts",
        "body",
        "classification",
        "decision",
        "detail",
        "dropped",
        "escalation",
        "features",
        "id",
        "lease",
        "operation",
        "outcome",
        "plan",
        "policy",
        "refusal",
        "rejected",
        "request",
        "span",
        "total_tokens",
        "upstream_s",
        "usd",
    )

    def __init__(self, request: Request, request_id: str, operation: Operation) -> None:
        self.request, self.id, self.operation = request, request_id, operation
        self.span: RequestSpan | None = None
        """Set by `api` if requests are traced."""
        # Set by admission, as far as it comes.
        self.body: Body | None = None
        self.policy: Policy | None = None
        self.features: Features | None = None
        self.lease: LimitLease | None = None
        """Set if the policy has limits."""
        self.plan: RoutePlan | None = None
        self.decision: Decision | None = None
        self.classification = ""
        """How the classifier's call ended: named, unnamed, refused or failed; empty without a call."""
        # Set by the exchange.
        self.attempts: list[Attempt] = []
        """All attempts in their order; the last one without a failure gave the answer."""
        self.answer: TargetAnswer | None = None
        """What the client got of a target; None for an error of the gateway."""
        self.rejected: TargetAnswer | None = None
        """The first model's answer, if the better model's was sent instead."""
        self.outcome = "failed"
        self.detail = ""
        """Why the request failed, for the log."""
        self.dropped: tuple[str, ...] = ()
        """Fields that a target was not sent, because its API does not have them."""
        self.escalation = ""
        """How the better model ended, if it was asked: answered, refused or failed."""
        self.refusal: Refusal | None = None
        """The error that the client got; from admission, or from the exchange when no target answered."""
        # Summed up over all calls, the classifier's included.
        self.usd: Decimal = ZERO
        self.total_tokens = 0
        self.upstream_s = 0.0
        """Seconds that targets took, including the wait for a replica."""
        self._usages: list[tuple[Target, Usage, str]] = []
        """Tokens by target and kind of answer: `first`, `escalation` or `classifier`."""
        self._first_byte_s: float | None = None

    def response_began(self, at_s: float) -> None:
        """Note when the answer of an attempt began, on the loop's clock; NaN if it did not. The first one counts."""
        if self._first_byte_s is None and at_s == at_s:
            self._first_byte_s = at_s

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request to the beginning of its answer, None if there is none."""
        return None if self._first_byte_s is None else self._first_byte_s - self.request.arrived_s

    def add_usage(self, target: Target, usage: Usage | None, answer: str) -> None:
        """Add the tokens of one answer. Answers that were replaced by a better one are paid too."""
        if usage is None:
            return
        self._usages.append((target, usage, answer))
        self.total_tokens += usage.prompt_tokens + usage.completion_tokens
        if target.hosted is not None:
            self.usd += spent(target, usage) or ZERO

    def finish(self, now_s: float, metrics: GatewayMetrics, access_log: AccessLog) -> None:
        """The request has ended: count it and log it. `now_s` is the loop's time."""
        policy, decision, refusal = self.policy, self.decision, self.refusal
        given = None
        for attempt in reversed(self.attempts):
            if attempt.failure is None:
                given = attempt
                break
        target = given.target if given is not None else ""
        duration_s = now_s - self.request.arrived_s
        name = policy.name if policy is not None else OTHER
        rule = data_class = ""
        if decision is not None:
            rule, data_class = decision.rule, decision.data_class
            place = (name, target)
            metrics.duration.observe(place, duration_s)
            metrics.overhead.observe((name,), max(duration_s - self.upstream_s, 0.0))
            if self._first_byte_s is not None:
                metrics.ttft.observe(place, self._first_byte_s - self.request.arrived_s)
        elif refusal is not None:
            rule, data_class = refusal.rule, refusal.data_class
        metrics.requests.add((name, rule, target, data_class, self.outcome))
        if refusal is not None:
            self._refused(metrics, name, refusal)
        if policy is not None and self._usages:
            self._tokens(metrics, policy, given)
        if access_log.enabled:
            access_log.write(self._entry(name, rule, target, data_class, duration_s))
        if self.span is not None:
            self.span.end(
                status=self.request.response.status,
                request_id=self.id,
                outcome=self.outcome,
                policy=policy.name if policy is not None else "",
                rule=decision.rule if decision is not None else "",
                data_class=decision.data_class if decision is not None else "",
                usd=float(self.usd),
                error_code=self.refusal.code if self.refusal is not None else "",
            )

    def _tokens(self, metrics: GatewayMetrics, policy: Policy, given: Attempt | None) -> None:
        """Count the tokens and the cost of every answer, and what the comparators would have cost."""
        name, team, served = policy.name, self._team(policy), None
        replaced = given is not None and given.escalated
        tokens, team_tokens = metrics.tokens.add, metrics.team_tokens.add
        for target, usage, kind in self._usages:
            answer, place = REPLACED if replaced and kind == FIRST else kind, target.name
            fresh = usage.prompt_tokens - usage.cached_tokens
            tokens((name, place, answer, "input"), fresh)
            team_tokens((name, place, team, "input"), fresh)
            tokens((name, place, answer, "output"), usage.completion_tokens)
            team_tokens((name, place, team, "output"), usage.completion_tokens)
            if usage.cached_tokens:
                tokens((name, place, answer, "cached_input"), usage.cached_tokens)
                team_tokens((name, place, team, "cached_input"), usage.cached_tokens)
            if target.hosted is not None:
                usd = spent(target, usage)
                if usd is not None:
                    metrics.cost.add((name, place, answer), usd)
                    metrics.team_cost.add((name, place, team), usd)
            if given is not None and place == given.target and kind == (ESCALATION if replaced else FIRST):
                served = usage
        if served is not None:
            # A single model for everything would have answered once, so only the answer that was sent counts.
            for comparator in policy.comparators:
                usd = spent(policy.target[comparator], replace(served, service_tier=""))
                if usd is not None:
                    metrics.counterfactual.add((name, comparator), usd)

    def _team(self, policy: Policy) -> str:
        """Who is billed: the team of the header if the policy names it, else the client."""
        features = self.features
        if features is None:
            return OTHER
        of_file = policy.clients_from is not None and policy.token_login is None
        if features.team is not None and (of_file or features.team in policy.team_names):
            return features.team
        # A token may name anybody: only clients that the policy or its file lists are values of a label.
        return features.client or OTHER if policy.token_login is None else OTHER

    def _refused(self, metrics: GatewayMetrics, name: str, refusal: Refusal) -> None:
        if refusal.code == "sovereignty_no_target":
            metrics.denied.add((name, refusal.data_class))
        elif refusal.code in ("rate_limit_exceeded", "budget_exceeded"):
            metrics.limited.add((name, refusal.code))

    def _entry(self, name: str, rule: str, target: str, data_class: str, duration_s: float) -> dict[str, Any]:
        features, request = self.features, self.request
        entry: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": self.id,
            "peer": request.peer,
            "path": request.path[:100],
            "status": request.response.status,
            "outcome": self.outcome,
            "policy": name,
            "rule": rule,
            "target": target,
            "class": data_class,
            "attempts": len(self.attempts),
            "ms": round(duration_s * 1000, 2),
            "upstream_ms": round(self.upstream_s * 1000, 2),
        }
        if self._first_byte_s is not None:
            entry["first_byte_ms"] = round((self._first_byte_s - request.arrived_s) * 1000, 2)
        if features is not None:
            entry["stream"] = features.stream
            if features.client is not None:
                entry["client"] = features.client
            if features.team is not None:
                entry["team"] = features.team
            if features.task is not None:
                entry["task"] = features.task
        if self._usages:
            entry["tokens"] = self.total_tokens
            if self.usd:
                entry["usd"] = str(self.usd)
        if self.refusal is not None:
            entry["code"] = self.refusal.code
        for name in ("classification", "escalation", "dropped"):
            if getattr(self, name):
                entry[name] = getattr(self, name)
        if self.detail:
            entry["detail"] = self.detail
        return entry
