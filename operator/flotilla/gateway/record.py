"""What is remembered of a request: metrics and one line of log, and no word of it."""

import time
from decimal import Decimal
from typing import Any

from flotilla.gateway.accounts import Lease
from flotilla.gateway.dial import Dialer
from flotilla.gateway.metrics import Metrics
from flotilla.gateway.request import Request
from flotilla.gateway.shared import Shared
from flotilla.gateway.tracing import RequestSpan
from flotilla.routing.budgets import ZERO, Usage, cost, spent
from flotilla.routing.decide import Attempt, Decision, Refusal
from flotilla.routing.document import Policy, Target
from flotilla.routing.request import Features

FIRST, ESCALATION, REPLACED, CLASSIFIER = "first", "escalation", "replaced", "classifier"
"""What an answer was to its request."""
OTHER = "other"
"""Stands for a model that no policy serves, and a team that none names: clients must not invent label values."""


class Record:
    """One request's."""

    __slots__ = (
        "_counted",
        "_first_byte_s",
        "decision",
        "detail",
        "dialer",
        "features",
        "id",
        "lease",
        "ledger",
        "outcome",
        "policy",
        "refusal",
        "request",
        "span",
        "total_tokens",
        "usd",
    )

    def __init__(self, request: Request, request_id: str) -> None:
        self.request, self.id = request, request_id
        self.ledger: list[Attempt] = []
        self.dialer: Dialer | None = None
        self.lease: Lease | None = None
        """Where the policy has limits."""
        self.span: RequestSpan | None = None
        """Where requests are traced."""
        self._counted: list[tuple[Target, Usage, str]] = []
        """With what the answer was: `first`, `escalation` or `classifier`."""
        self._first_byte_s: float | None = None
        self.policy: Policy | None = None
        self.features: Features | None = None
        self.decision: Decision | None = None
        self.refusal: Refusal | None = None
        self.outcome = "failed"
        self.detail = ""
        self.usd: Decimal = ZERO
        self.total_tokens = 0

    def first_byte(self, at_s: float) -> None:
        """When an attempt's answer began; NaN where it did not."""
        if self._first_byte_s is None and at_s == at_s:
            self._first_byte_s = at_s

    def count(self, target: Target, usage: Usage | None, answer: str) -> None:
        """The tokens of one answer. All are paid, those too that were asked again."""
        if usage is None:
            return
        self._counted.append((target, usage, answer))
        self.total_tokens += usage.prompt_tokens + usage.completion_tokens
        self.usd += spent(target, usage) or ZERO

    def close(self, shared: Shared) -> None:
        """The request has ended."""
        upstream_s = self.dialer.upstream_s if self.dialer is not None else 0.0
        given = next((attempt for attempt in reversed(self.ledger) if attempt.failure is None), None)
        target = given.target if given is not None else ""
        policy, now = self.policy, shared.loop.time()
        duration_s = now - self.request.arrived_s
        name = policy.name if policy is not None else OTHER
        decision = self.decision
        rule = decision.rule if decision is not None else self.refusal.rule if self.refusal is not None else ""
        data_class = decision.data_class if decision is not None else self.refusal.data_class if self.refusal else ""
        metrics = shared.metrics
        metrics.requests.add((name, rule, target, data_class, self.outcome))
        if decision is not None:
            metrics.duration.observe((name, target), duration_s)
            metrics.overhead.observe((name,), max(duration_s - upstream_s, 0.0))
            if self._first_byte_s is not None:
                metrics.ttft.observe((name, target), self._first_byte_s - self.request.arrived_s)
        if self.refusal is not None:
            self._refused(shared, name, self.refusal)
        if policy is not None:
            self._tokens(shared.metrics, policy, given)
        shared.access_log.write(self._entry(name, rule, target, data_class, duration_s, upstream_s))
        if self.span is not None:
            self.span.end(self)

    def _tokens(self, metrics: Metrics, policy: Policy, given: Attempt | None) -> None:
        """What each answer used: the classifier's, the rule's own, one that a better one replaced, and that one."""
        name, team, served = policy.name, self._team(policy), None
        replaced = given is not None and given.escalated
        for target, usage, kind in self._counted:
            answer = REPLACED if replaced and kind == FIRST else kind
            for token_type, tokens in (
                ("input", usage.prompt_tokens - usage.cached_tokens),
                ("cached_input", usage.cached_tokens),
                ("output", usage.completion_tokens),
            ):
                metrics.tokens.add((name, target.name, answer, token_type), tokens)
                metrics.team_tokens.add((name, target.name, team, token_type), tokens)
            usd = spent(target, usage)
            if target.hosted is not None and usd is not None:
                metrics.cost.add((name, target.name, answer), usd)
                metrics.team_cost.add((name, target.name, team), usd)
            if given is not None and target.name == given.target and kind == (ESCALATION if replaced else FIRST):
                served = usage
        if served is not None:
            # One model for all would have answered once, whatever was asked again.
            for comparator in policy.comparators:
                price = policy.target[comparator].price
                if price is not None:
                    metrics.counterfactual.add((name, comparator), cost(served, price))

    def _team(self, policy: Policy) -> str:
        """Who is billed, among those that the policy names: the team of the header, else the client."""
        features = self.features
        if features is None:
            return OTHER
        return features.team if features.team in policy.team_names else features.client or OTHER

    def _refused(self, shared: Shared, name: str, refusal: Refusal) -> None:
        if refusal.code == "sovereignty_no_target":
            shared.metrics.denied.add((name, refusal.data_class))
        elif refusal.code in ("rate_limit_exceeded", "budget_exceeded"):
            shared.metrics.limited.add((name, refusal.code))

    def _entry(
        self,
        name: str,
        rule: str,
        target: str,
        data_class: str,
        duration_s: float,
        upstream_s: float,
    ) -> dict[str, Any]:
        features, answer = self.features, self.request.answer
        entry: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": self.id,
            "peer": self.request.peer,
            "path": self.request.path[:100],
            "status": answer.status,
            "outcome": self.outcome,
            "policy": name,
            "rule": rule,
            "target": target,
            "class": data_class,
            "attempts": len(self.ledger),
            "ms": round(duration_s * 1000, 2),
            "upstream_ms": round(upstream_s * 1000, 2),
        }
        if self._first_byte_s is not None:
            entry["first_byte_ms"] = round((self._first_byte_s - self.request.arrived_s) * 1000, 2)
        if features is not None:
            entry["stream"] = features.stream
            named = (("client", features.client), ("team", features.team), ("task", features.task))
            entry |= {key: value for key, value in named if value is not None}
        if self._counted:
            entry["tokens"] = self.total_tokens
            if self.usd:
                entry["usd"] = str(self.usd)
        if self.refusal is not None:
            entry["code"] = self.refusal.code
        if self.detail:
            entry["detail"] = self.detail
        return entry
