"""The decision for one request: matching rule, targets inside the sovereignty set, order, or the refusal."""

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from flotilla.api.routing_policy import Failure, MatchSpec, RouteSpec, Signal, Streaming
from flotilla.catalog.providers import provider_of
from flotilla.routing.document import DEFAULT_RULE as DEFAULT_RULE
from flotilla.routing.document import Policy, Target
from flotilla.routing.request import Features, Operation


def split(shares: Sequence[tuple[str, int]], seed: str) -> str:
    """The target of a seed, of one or more with their weights."""
    if len(shares) == 1:
        return shares[0][0]
    return min(shares, key=lambda share: (_distance(seed, share[0]) / share[1], share[0]))[0]


def _distance(seed: str, target: str) -> float:
    """An exponentially distributed number that depends on nothing but its arguments."""
    number = int.from_bytes(blake2b(f"{seed}/{target}".encode(), digest_size=8).digest())
    return -math.log((number + 1) / 2**64)


def matches(match: MatchSpec, features: Features) -> bool:
    """Whether a rule is for this request."""
    if match.models and features.model not in match.models:
        return False
    if match.tasks and features.task not in match.tasks:
        return False
    if any(features.headers.get(header.name) != header.value for header in match.headers):
        return False
    for limits, value in ((match.prompt_tokens, features.prompt_tokens), (match.tools, features.tools)):
        if limits is None:
            continue
        if (limits.min is not None and value < limits.min) or (limits.max is not None and value > limits.max):
            return False
    return match.streaming is None or (match.streaming is Streaming.STREAMED) == features.stream


def lacks(target: Target, features: Features) -> str | None:
    """What a request needs and the target is known not to have; lengths aside, which are estimates."""
    able = target.capabilities
    if features.tools and able.tools == "Unsupported":
        return "tools"
    if features.json_schema and able.json_schema == "Unsupported":
        return "JSON schema"
    if features.images and able.vision == "Unsupported":
        return "images"
    hosted = target.hosted
    if hosted is not None and features.operation is not Operation.CHAT:
        chats_only = hosted.provider == "Anthropic"
        if chats_only or features.operation.value not in provider_of(hosted.provider, hosted.base_url).operations:
            return features.operation.value
    return None


def fits(target: Target, features: Features) -> bool:
    """Whether prompt and answer fit by the estimate; true where the context length is unknown."""
    length = target.capabilities.context_length
    return length is None or features.prompt_tokens + (features.max_tokens or 1) <= length


def covers(wide: MatchSpec, narrow: MatchSpec) -> bool:
    """Whether every request that `narrow` matches is matched by `wide` too."""
    headers = {(h.name, h.value) for h in narrow.headers}
    return (
        _list_covers(wide.models, narrow.models)
        and _list_covers(wide.tasks, narrow.tasks)
        and all((h.name, h.value) in headers for h in wide.headers)
        and _range_covers(_ends(wide.prompt_tokens), _ends(narrow.prompt_tokens))
        and _range_covers(_ends(wide.tools), _ends(narrow.tools))
        and wide.streaming in (None, narrow.streaming)
    )


def _list_covers(wide: list[str], narrow: list[str]) -> bool:
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _ends(limits: object) -> tuple[float, float]:
    low, high = getattr(limits, "min", None), getattr(limits, "max", None)
    return (0 if low is None else low, float("inf") if high is None else high)


def _range_covers(wide: tuple[float, float], narrow: tuple[float, float]) -> bool:
    return wide[0] <= narrow[0] and narrow[1] <= wide[1]


INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_BREAKER_WAIT_S = 5
_EVIDENCE_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer in OpenAI's error shape: {"error": {message, type, param, code}}."""

    status: int
    code: str
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    retry_after_s: int | None = None
    """Header Retry-After, in seconds."""
    retryable: bool = True
    """False adds `x-should-retry: false`, which OpenAI's clients obey: they would retry a 429 by themselves."""
    policy: str = ""
    rule: str = ""
    data_class: str = ""
    why: tuple[str, ...] = ()


def outside_class(policy: str, data_class: str, rule: str, why: Sequence[str]) -> Refusal:
    """Sovereignty fails closed."""
    return Refusal(
        403,
        "sovereignty_no_target",
        f"Data of class {data_class!r} may go to none of the targets that serve this request.",
        retryable=False,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def unsupported(policy: str, data_class: str, rule: str, lacking: Iterable[str], why: Sequence[str]) -> Refusal:
    """The request needs what no target has."""
    return Refusal(
        400,
        "unsupported_by_targets",
        f"No target that may serve this request supports {' or '.join(lacking)}.",
        retryable=False,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def none_qualified(policy: str, data_class: str, rule: str, why: Sequence[str]) -> Refusal:
    """The only targets that the data may go to have lost their verdict, or wait for one."""
    return Refusal(
        503,
        "no_qualified_target",
        f"No target that data of class {data_class!r} may go to has qualified for this request. Try again later.",
        type=SERVER_ERROR,
        retry_after_s=_EVIDENCE_WAIT_S,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def no_capacity(policy: str, data_class: str, rule: str, why: Sequence[str]) -> Refusal:
    """Every target that may serve the request is failing or left out."""
    return Refusal(
        503,
        "no_capacity",
        "No target that may serve this request is available. Try again later.",
        type=SERVER_ERROR,
        retry_after_s=_BREAKER_WAIT_S,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def model_not_found(model: str) -> Refusal:
    """No policy of the namespace serves the model; the name is the client's own and is not repeated beyond 100."""
    return Refusal(
        404,
        "model_not_found",
        f"The model {model[:100]!r} does not exist or you do not have access to it.",
        param="model",
        retryable=False,
    )


def invalid_api_key(policy: str) -> Refusal:
    """The policy has clients, and this request shows the key of none."""
    return Refusal(401, "invalid_api_key", "Incorrect API key provided.", retryable=False, policy=policy)


def rate_limited(policy: str, limit: str, retry_after_s: int) -> Refusal:
    """A rate limit is reached."""
    return Refusal(
        429,
        "rate_limit_exceeded",
        f"The rate limit {limit!r} is reached. Try again in {retry_after_s} s.",
        type="requests",
        retry_after_s=retry_after_s,
        policy=policy,
    )


def budget_exceeded(policy: str, budget: str, retry_after_s: int | None = None) -> Refusal:
    """A budget is spent. 429 as OpenAI answers it; clients are asked not to retry, as it takes hours to renew."""
    return Refusal(
        429,
        "budget_exceeded",
        f"The budget {budget!r} is spent.",
        type="insufficient_quota",
        retry_after_s=retry_after_s,
        retryable=False,
        policy=policy,
    )


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


@dataclass(slots=True)
class Attempt:
    """One attempt of a request, for any reason but the classifier's own call."""

    target: str
    failure: Failure | None = None
    """None: it answered, or has not ended."""
    escalated: bool = False
    refused: bool = False
    """Whether the target refused the request itself, so that the answer before it was given."""


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
    route: RouteSpec
    escalation: str | None
    """The target to escalate to, where the request may."""
    why: tuple[str, ...]
    shares: tuple[tuple[str, int], ...] = ()
    """The targets that the split was over, with their weights; the seed chose one of them."""

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

    The client's own class bounds what the header can ask for: both must allow a target. A header that names no class
    counts as `unknownClass`, and so does a missing one, unless the client has a class.
    """
    mine = features.client_class or next(
        (client.data_class for client in policy.clients if client.name == features.client), None
    )
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

    `seed` distinguishes requests in a split (a request id); a session takes its place. `unavailable` are targets that
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
    if not inside and any(item.target in allowed for item in route.preference):
        why.append(f"Rule {rule!r} has no target inside of the class that has qualified.")
        return none_qualified(policy.name, name, rule, why)
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
    if route.preference:
        why.append(_evidence(policy, rule, route))
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
        shares=tuple(shares),
    )


class Decider:
    """`decide` for the requests of one policy, with a memory.

    Requests that rules, classes and targets cannot tell apart share one decision, so that most requests cost one look
    into a dictionary. Everything that `decide` looks at must be in the key. The reasons (`why`) of a decision name the
    prompt tokens of the first request that it was made for.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        matches = [rule.match for rule in policy.rules]
        self._tasks = frozenset(task for match in matches for task in match.tasks)
        self._headers = tuple({(header.name, header.value) for match in matches for header in match.headers})
        self._prompts = _steps([match.prompt_tokens for match in matches])
        self._tools = sorted({1, *_steps([match.tools for match in matches])})
        lengths = {target.capabilities.context_length for target in policy.targets}
        self._lengths = sorted(length + 1 for length in lengths if length is not None)
        self._known: dict[object, dict[str, Decision | Refusal]] = {}

    def decide(self, features: Features, seed: str, unavailable: frozenset[str] = frozenset()) -> Decision | Refusal:
        """The same as `decide` with the policy."""
        said, prompt_tokens = features.data_class, features.prompt_tokens
        headers = features.headers
        key = (
            features.operation,
            features.model,
            features.task if features.task in self._tasks else None,
            said if said is None or said in self._policy.allowed else _UNKNOWN,
            features.client,
            features.client_class,
            tuple([headers.get(name) == value for name, value in self._headers]) if headers else None,
            bisect_right(self._prompts, prompt_tokens),
            bisect_right(self._lengths, prompt_tokens + (features.max_tokens or 1)),
            bisect_right(self._tools, features.tools),
            features.json_schema,
            features.images > 0,
            features.stream,
            unavailable,
        )
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MAX_DECISIONS:
                self._known.clear()
            first = decide(self._policy, features, seed, unavailable)
            chosen = first.candidates[0] if isinstance(first, Decision) and len(first.shares) > 1 else ""
            self._known[key] = {chosen: first}
            return first
        found = known.get("")
        if found is None:
            some = next(iter(known.values()))
            assert isinstance(some, Decision)
            chosen = split(some.shares, f"{self._policy.uid}/{some.rule}/{features.session or seed}")
            found = known.get(chosen)
            if found is None:
                found = known[chosen] = decide(self._policy, features, seed, unavailable)
        return found


_MAX_DECISIONS: Final = 4096
_UNKNOWN: Final = object()


def _steps(ranges: Iterable[object]) -> list[float]:
    """The numbers at which a value begins to be inside of a range, or begins to be beyond it."""
    found = {end for limits in ranges if limits is not None for end in (_ends(limits)[0], _ends(limits)[1] + 1)}
    return sorted(found)


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
    if failure is Failure.CONTEXT_LENGTH and ledger:
        tried |= _no_longer_than(decision, ledger[-1].target)
    follower = next((t for t in decision.candidates if t not in tried and t not in unavailable), None)
    return None if follower is None else decision.permit(follower)


def _no_longer_than(decision: Decision, failed: str) -> set[str]:
    """Candidates whose context is known to be no longer than that of the target for which the request was too long."""
    targets = decision.policy.target
    length = targets[failed].capabilities.context_length
    if length is None:
        return set()
    lengths = {name: targets[name].capabilities.context_length for name in decision.candidates}
    return {name for name, other in lengths.items() if other is not None and other <= length}


def wanted_signals(route: RouteSpec) -> frozenset[Signal]:
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
    escalated = next((attempt for attempt in ledger if attempt.escalated), None)
    parts = {
        "rule": decision.rule,
        "target": answered.target if answered else "",
        "attempts": str(len(ledger)),
        "escalated": escalated.target if escalated is not None else "",
        "refused": escalated.target if escalated is not None and escalated.refused else "",
        "reason": signal,
        "class": decision.data_class,
        "policy": f"{decision.policy.name}@{decision.policy.revision}",
    }
    return ";".join(f"{key}={value}" for key, value in parts.items() if value)


def _rule(policy: Policy, features: Features, why: list[str]) -> tuple[str, RouteSpec]:
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
    policy: Policy, route: RouteSpec, features: Features, allowed: frozenset[str], why: list[str]
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


def _evidence(policy: Policy, rule: str, route: RouteSpec) -> str:
    shares = ", ".join(f"{share.target} {share.weight} %" for share in route.split)
    status = policy.route_status.get(rule)
    return f"By evidence the traffic is shared as {shares}.{f' {status.message}' if status is not None else ''}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
