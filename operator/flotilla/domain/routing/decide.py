"""The decision: from a policy and a request's features to the targets that may be dialled, in order, and why.

Sovereignty is one set, computed first. Every later step (rule, split, fallback, escalation, classifier) chooses inside
of it, and nothing can be dialled without a `Permit`, which cannot be made for a target outside of the set.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flotilla.api.routes import Failure, Route, Signal
from flotilla.domain.routing.document import Policy, Target
from flotilla.domain.routing.match import fits, lacks, matches
from flotilla.domain.routing.refusal import Refusal, no_capacity, outside_class, unsupported
from flotilla.domain.routing.request import Features
from flotilla.domain.routing.split import split

DEFAULT_RULE = "default"
"""The name under which `defaultRoute` is reported."""


class SovereigntyBreach(AssertionError):
    """A target outside of the allowed set was about to be dialled: a defect of ours, never a request's fault."""


@dataclass(frozen=True, slots=True)
class Permit:
    """A target that this request may go to. What dials takes a Permit and nothing else."""

    target: Target
    allowed: frozenset[str]

    def __post_init__(self) -> None:
        if self.target.name not in self.allowed:
            raise SovereigntyBreach(f"Target {self.target.name!r} is outside of {sorted(self.allowed)}.")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One dial of a request, whatever it was for; the classifier's own is none."""

    target: str
    failure: Failure | None = None
    """None: it answered, or has not ended."""
    escalated: bool = False


Ledger = Sequence[Attempt]
"""All attempts of one request, in order. There is one per request, so that nothing multiplies attempts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes."""

    policy: Policy
    rule: str
    data_class: str
    """For labels and the decision header; two names joined by + where header and client were combined."""
    allowed: frozenset[str]
    """The targets that the data may go to; every dial of this request is inside of it."""
    candidates: tuple[str, ...]
    """The chosen target, then the fallbacks; never empty."""
    route: Route
    escalation: str | None
    """The target to escalate to, where the request may."""
    why: tuple[str, ...]

    def permit(self, target: str) -> Permit:
        """Leave to dial one target; raises SovereigntyBreach outside of the allowed set."""
        return Permit(self.policy.target[target], self.allowed)

    @property
    def first(self) -> Permit:
        """The first target to dial."""
        return self.permit(self.candidates[0])


@dataclass(frozen=True, slots=True)
class Escalated:
    """Whether an answer is asked of the better model, and why or why not."""

    permit: Permit | None
    reason: str
    """The signal that decided; or MaxRate, MaxAttempts, AlreadyEscalated, NotAllowed, Unavailable, NoSignal."""


_NO_SIGNAL: Final = Escalated(None, "NoSignal")


def data_class(policy: Policy, features: Features) -> tuple[str, frozenset[str]]:
    """Name of the data class and the targets that it allows.

    The client's own class bounds what the header can say: both must allow a target. A header that names no class
    counts as `unknownClass`, and so does a missing one, unless the client has a class.
    """
    mine = next((client.data_class for client in policy.clients if client.name == features.client), None)
    said = features.data_class
    if said is None and mine is not None:
        names = [mine]
    else:
        names = [policy.unknown_class if said is None else said, *([mine] if mine is not None else ())]
    known = {name if name in policy.allowed else policy.unknown_class for name in names}
    if len(known) == 1:
        (only,) = known
        return only, policy.allowed.get(only, frozenset())
    both = frozenset.intersection(*(policy.allowed.get(name, frozenset()) for name in known))
    alone = sorted(name for name in known if policy.allowed.get(name, frozenset()) == both)
    return alone[0] if alone else "+".join(sorted(known)), both


def decide(
    policy: Policy, features: Features, seed: str, unavailable: Collection[str] = frozenset()
) -> Decision | Refusal:
    """Decide where a request goes.

    `seed` tells requests apart in a split (a request id); a session takes its place. `unavailable` are targets that
    are known to fail just now (open breakers), not those that merely have no replica yet.
    """
    name, allowed = data_class(policy, features)
    why = [f"Data class {name!r} allows {_listed(allowed)}."]
    if not allowed:
        return outside_class(policy.name, name, "", why)
    rule, route = _rule(policy, features, why)
    wanted = [share.target for share in route.split if share.weight > 0]
    spare = list(route.fallback.targets) if route.fallback else []
    inside = [target for target in (*wanted, *spare) if target in allowed]
    if not inside:
        why.append(f"Rule {rule!r} has no target inside of the class.")
        return outside_class(policy.name, name, rule, why)
    able, lacking = _able(policy, inside, features, why)
    if not able:
        return unsupported(policy.name, name, rule, lacking, why)
    usable = [target for target in able if target not in unavailable]
    why += [f"Target {target!r} is failing just now and is left out." for target in able if target not in usable]
    if not usable:
        return no_capacity(policy.name, name, rule, why)
    shares = [(share.target, share.weight) for share in route.split if share.weight > 0 and share.target in usable]
    chosen = [split(shares, f"{policy.uid}/{rule}/{features.session or seed}")] if shares else []
    if len(shares) > 1:
        why.append(f"The split over {_listed(target for target, _ in shares)} chose {chosen[0]!r}.")
    candidates = tuple(dict.fromkeys([*chosen, *(target for target in spare if target in usable)]))
    why.append(f"Dialled in this order: {', '.join(candidates)}; at most {route.max_attempts} attempts.")
    return Decision(
        policy=policy,
        rule=rule,
        data_class=name,
        allowed=allowed,
        candidates=candidates,
        route=route,
        escalation=_escalation(policy, route, features, allowed, why),
        why=tuple(why),
    )


def restrict(decision: Decision, without: Collection[str], reason: str) -> Decision | None:
    """The same decision without some targets, such as the hosted ones when a budget is spent. It can only narrow.

    None where no candidate is left.
    """
    allowed = decision.allowed - frozenset(without)
    candidates = tuple(target for target in decision.candidates if target in allowed)
    if not candidates:
        return None
    escalation = decision.escalation if decision.escalation in allowed else None
    why = (*decision.why, f"{reason}: {_listed(without)} left out.")
    return replace(decision, allowed=allowed, candidates=candidates, escalation=escalation, why=why)


def next_step(
    decision: Decision, ledger: Ledger, failure: Failure, unavailable: Collection[str] = frozenset()
) -> Permit | None:
    """The next target after a failure before the first byte, None where the request has failed.

    `ledger` holds every attempt so far, the failed one included.
    """
    fallback = decision.route.fallback
    if fallback is None or failure not in fallback.on or len(ledger) >= decision.route.max_attempts:
        return None
    tried = {attempt.target for attempt in ledger}
    follower = next((t for t in decision.candidates if t not in tried and t not in unavailable), None)
    return None if follower is None else decision.permit(follower)


def wanted_signals(route: Route) -> frozenset[Signal]:
    """The signals that may escalate an answer of this route."""
    if route.escalation is None:
        return frozenset()
    found = {Signal(str(signal)) for signal in route.escalation.signals}
    return frozenset(found | ({Signal.LOW_CONFIDENCE} if route.escalation.confidence else set()))


def escalate(
    decision: Decision,
    ledger: Ledger,
    signals: Collection[Signal],
    *,
    escalated_percent: float,
    unavailable: Collection[str] = frozenset(),
) -> Escalated:
    """Whether to ask the better model; `escalated_percent` of the rule's recent requests did, this one not counted."""
    wanted = decision.route.escalation
    if wanted is None or not signals:
        return _NO_SIGNAL
    asked = wanted_signals(decision.route)
    found = [signal for signal in Signal if signal in signals and signal in asked]
    if not found:
        return _NO_SIGNAL
    if decision.escalation is None:
        return Escalated(None, "NotAllowed")
    if any(attempt.target == decision.escalation for attempt in ledger):
        return Escalated(None, "AlreadyEscalated")
    if len(ledger) >= decision.route.max_attempts:
        return Escalated(None, "MaxAttempts")
    if escalated_percent >= wanted.max_rate_percent:
        return Escalated(None, "MaxRate")
    if decision.escalation in unavailable:
        return Escalated(None, "Unavailable")
    return Escalated(decision.permit(decision.escalation), str(found[0]))


def decision_header(decision: Decision, ledger: Ledger, signal: str = "") -> str:
    """The value of x-flotilla-route: where the answer is from, and why it is not from elsewhere."""
    answered = next((attempt for attempt in reversed(ledger) if attempt.failure is None), None)
    escalated = next((attempt.target for attempt in ledger if attempt.escalated), "")
    parts = {
        "rule": decision.rule,
        "target": answered.target if answered else "",
        "attempts": str(len(ledger)),
        "escalated": escalated,
        "reason": signal,
        "class": decision.data_class,
        "policy": f"{decision.policy.name}@{decision.policy.revision}",
    }
    return ";".join(f"{key}={value}" for key, value in parts.items() if value)


def _rule(policy: Policy, features: Features, why: list[str]) -> tuple[str, Route]:
    for rule in policy.rules:
        if matches(rule.match, features):
            why.append(f"Rule {rule.name!r} is the first that matches.")
            return rule.name, rule.route
    why.append("No rule matches: the default route is taken.")
    return DEFAULT_RULE, policy.default_route


def _able(
    policy: Policy, targets: Sequence[str], features: Features, why: list[str]
) -> tuple[list[str], tuple[str, ...]]:
    """The targets that can serve the request, and what the others lack.

    A context length never refuses: the prompt's tokens are an estimate, and the engine counts them exactly. Where none
    is long enough, the longest are left.
    """
    able: list[str] = []
    lacking: dict[str, None] = {}
    for target in dict.fromkeys(targets):
        lack = lacks(policy.target[target], features)
        if lack is None:
            able.append(target)
        else:
            lacking[lack] = None
            why.append(f"Target {target!r} does not support {lack}.")
    long_enough = [target for target in able if fits(policy.target[target], features)]
    if able and not long_enough:
        lengths = {target: policy.target[target].capabilities.context_length or 0 for target in able}
        long_enough = [target for target in able if lengths[target] == max(lengths.values())]
        why.append(f"About {features.prompt_tokens} prompt tokens fit no target; the longest is tried.")
    short = (target for target in able if target not in long_enough)
    why += [f"Target {target!r} is too short for about {features.prompt_tokens} prompt tokens." for target in short]
    return long_enough, tuple(lacking)


def _escalation(
    policy: Policy, route: Route, features: Features, allowed: frozenset[str], why: list[str]
) -> str | None:
    if route.escalation is None:
        return None
    target = route.escalation.target
    if target not in allowed:
        why.append(f"Escalation to {target!r} is outside of the data class, so the answer stays as it is.")
        return None
    lack = lacks(policy.target[target], features)
    if lack is not None or not fits(policy.target[target], features):
        why.append(f"Escalation to {target!r} is off: it {f'does not support {lack}' if lack else 'is too short'}.")
        return None
    why.append(f"A bad answer is asked again of {target!r}.")
    return target


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
