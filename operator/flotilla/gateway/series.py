"""The series that a document's policies can have, so that each begins with 0: `increase` never sees the first value of
one that begins with 1, which may be the only failure or the only charge there is."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from flotilla.api.routing_policy import Failure, OnExhausted, Route
from flotilla.gateway.metrics import Labels, Metrics
from flotilla.gateway.record import CLASSIFIER, ESCALATION, FIRST, OTHER, REPLACED
from flotilla.routing.decide import DEFAULT_RULE, wanted_signals
from flotilla.routing.document import Policy, Target

MOST: Final = 2000
"""Of one policy: 64 rules with 64 targets could have 200,000. Those beyond begin when they first count."""
_TOKEN_TYPES: Final = ("input", "cached_input", "output")
_Series = tuple[str, Labels]


def declare(metrics: Metrics, policies: Iterable[Policy]) -> None:
    """Begin with 0 what has not begun."""
    for policy in policies:
        for counter, labels in islice(series(policy), MOST):
            getattr(metrics, counter).declare(labels)


def series(policy: Policy) -> Iterator[_Series]:
    """Counter of `Metrics` and label values, money and failures first."""
    answers = [(target, answer) for target in policy.targets for answer in _answers(policy, target)]
    teams = sorted(policy.team_names | {client.name for client in policy.clients} | {OTHER})
    priced = [(target, answer) for target, answer in answers if target.hosted is not None and target.price is not None]
    yield from (("cost", (policy.name, target.name, answer)) for target, answer in priced)
    yield from (("counterfactual", (policy.name, comparator)) for comparator in policy.comparators)
    for target in policy.targets:
        yield from (("attempts", (policy.name, target.name, outcome)) for outcome in ("ok", *map(str, Failure)))
        if target.cluster is not None:
            yield "retries", (policy.name, target.name)
    yield from (("denied", (policy.name, name)) for name in policy.allowed)
    if policy.limits.rates:
        yield "limited", (policy.name, "rate_limit_exceeded")
    if policy.limits.budgets:
        yield "limited", (policy.name, "budget_exceeded")
    yield from _of_rules(policy)
    for target, answer in answers:
        yield from (("tokens", (policy.name, target.name, answer, kind)) for kind in _TOKEN_TYPES)
    for name in dict.fromkeys(target.name for target, _ in priced):
        yield from (("team_cost", (policy.name, name, team)) for team in teams)
    for name in dict.fromkeys(target.name for target, _ in answers):
        yield from (("team_tokens", (policy.name, name, team, kind)) for team in teams for kind in _TOKEN_TYPES)


def _of_rules(policy: Policy) -> Iterator[_Series]:
    yield "requests", (policy.name, "", "", "", "refused")
    followed = {
        (target, str(failure))
        for _, route in _routes(policy)
        if route.fallback is not None
        for target in _first(route) | _spare(route)
        for failure in route.fallback.on
    }
    yield from (("fallbacks", (policy.name, *pair)) for pair in sorted(followed))
    for rule, route in _routes(policy):
        if route.escalation is not None:
            yield from (("escalations", (policy.name, rule, str(signal))) for signal in wanted_signals(route))
        rejects = route.escalation is not None and route.escalation.on_exhausted is OnExhausted.FAIL
        ends = ("ok", "client_error", "cancelled", *(("failed",) if rejects else ()))
        for data_class, allowed in policy.allowed.items():
            for target in _reach(route) & allowed:
                yield from (("requests", (policy.name, rule, target, data_class, end)) for end in ends)
            for end in ("failed", "refused", "interrupted", "cancelled"):
                yield "requests", (policy.name, rule, "", data_class, end)


def _routes(policy: Policy) -> Iterator[tuple[str, Route]]:
    yield DEFAULT_RULE, policy.default_route
    yield from ((rule.name, rule.route) for rule in policy.rules)


def _answers(policy: Policy, target: Target) -> Iterator[str]:
    """What an answer of the target can be to a request."""
    routes = [route for _, route in _routes(policy)]
    before = [route for route in routes if target.name in _first(route) | _spare(route)]
    if before:
        yield FIRST
    if any(route.escalation is not None for route in before):
        yield REPLACED
    if any(route.escalation is not None and route.escalation.target == target.name for route in routes):
        yield ESCALATION
    if policy.classifier is not None and policy.classifier.target == target.name:
        yield CLASSIFIER


def _reach(route: Route) -> frozenset[str]:
    better = frozenset() if route.escalation is None else frozenset({route.escalation.target})
    return _first(route) | _spare(route) | better


def _first(route: Route) -> frozenset[str]:
    return frozenset(share.target for share in route.split if share.weight > 0)


def _spare(route: Route) -> frozenset[str]:
    return frozenset(route.fallback.targets) if route.fallback is not None else frozenset()
