"""Dollars and rates of a request: reservation, price of an answer, admission to limits."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from flotilla.api.routing_policy import Price, RoutingPolicy, RoutingPolicySpec
from flotilla.errors import InvalidSpec
from flotilla.routing.check import RESOLUTION, PolicyFinding, absent_keys, check
from flotilla.routing.document import DeploymentFacts, GatewayDocument, Policy, Target, compile_policy
from flotilla.routing.request import Features, Operation

DEFAULT_MAX_TOKENS: Final = 4096
"""Tokens of an answer that the client did not bound: reserved, and sent to APIs that require a bound."""
_IMAGE_TOKENS: Final = 1600
"""Anthropic's most for one image; OpenAI's high detail is below it for all but the largest."""
_MOST_TOKENS: Final = 1_000_000_000
"""Of one answer: more than any model can make, and few enough for every store to count."""
_MILLION: Final = Decimal(1_000_000)
_CACHE_WRITE: Final = Decimal("1.25")
"""Anthropic's price of a prompt token that is written to the cache, in prices of one that is not."""
_PAY_FOR_WRITES: Final = frozenset({"Anthropic", "Bedrock"})
_HUNDRED: Final = Decimal(100)
_HOUR_EXTRA: Final = Decimal("0.75")
"""Anthropic's price of keeping a token in the cache for an hour is twice that of one that is not written."""
_NANODOLLARS: Final = Decimal(1_000_000_000)
ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as OpenAI counts: cached, written and sound tokens are among the prompt's, and those of
    reasoning and speech among the completion's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    cache_creation_1h_tokens: int = 0
    """Of `cache_creation_tokens`, those that are kept for an hour, which costs more."""
    audio_tokens: int = 0
    """Of the prompt, those that are not cached."""
    audio_output_tokens: int = 0
    service_tier: str = ""
    """The tier in which the answer was made, if the provider says so."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_creation_tokens + other.cache_creation_tokens,
            self.cache_creation_1h_tokens + other.cache_creation_1h_tokens,
            self.audio_tokens + other.audio_tokens,
            self.audio_output_tokens + other.audio_output_tokens,
            self.service_tier or other.service_tier,
        )


def usage_of(counted: Any, service_tier: Any = None) -> Usage | None:
    """Read the `usage` of an answer or chunk; None where it is missing or makes no sense.

    Reads what every provider reports (docs/reference/providers.md). `service_tier` is the field of that name of the
    answer; some providers have it in the usage.
    """
    if not isinstance(counted, dict):
        return None
    # A rerank counts its texts in the total only.
    prompt = _count(
        counted.get("prompt_tokens", None if "completion_tokens" in counted else counted.get("total_tokens"))
    )
    output = _count(counted.get("completion_tokens", 0))
    if prompt is None or output is None:
        return None
    total = _count(counted.get("total_tokens"))
    if total is not None and total > prompt + output:
        # xAI and Gemini count reasoning beside the completion, OpenAI within it. All of it is paid as output.
        output = total - prompt
    details = counted.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    # DeepSeek has the cached tokens beside the prompt's.
    cached = _count(details.get("cached_tokens")) or _count(counted.get("prompt_cache_hit_tokens")) or 0
    cached = min(cached, prompt)
    written = _count(details.get("cache_creation_tokens")) or _count(details.get("cache_write_tokens")) or 0
    written = min(written, prompt - cached)
    hour = min(_count(details.get("cache_creation_1h_tokens")) or 0, written)
    sound = min(_count(details.get("audio_tokens")) or 0, prompt - cached - written)
    made = counted.get("completion_tokens_details")
    spoken = min(_count(made.get("audio_tokens")) or 0, output) if isinstance(made, dict) else 0
    tier = counted.get("service_tier") or service_tier
    return Usage(prompt, output, cached, written, hour, sound, spoken, tier[:40] if isinstance(tier, str) else "")


def cost(usage: Usage, price: Price, cache_write: Decimal = _CACHE_WRITE) -> Decimal:
    """What a hosted model charges for one answer.

    `cache_write` is the price of a token that is written to the cache, in prices of one that is not; it holds where the
    price itself has none.
    """
    fresh = Decimal(price.input_per_m_tok)
    output = Decimal(price.output_per_m_tok)
    plain_tokens = usage.prompt_tokens - usage.cached_tokens - usage.cache_creation_tokens - usage.audio_tokens
    total = (
        plain_tokens * fresh
        + usage.cached_tokens * _or(price.cached_input_per_m_tok, fresh)
        + usage.cache_creation_tokens * _or(price.cache_write_input_per_m_tok, fresh * cache_write)
        + usage.cache_creation_1h_tokens * fresh * _HOUR_EXTRA * (cache_write > 1)
        + usage.audio_tokens * _or(price.audio_input_per_m_tok, fresh)
        + (usage.completion_tokens - usage.audio_output_tokens) * output
        + usage.audio_output_tokens * _or(price.audio_output_per_m_tok, output)
    )
    return total * _percent(price, usage.service_tier) / _HUNDRED / _MILLION


def _or(usd: str | None, default: Decimal) -> Decimal:
    return default if usd is None else Decimal(usd)


def _percent(price: Price, service_tier: str) -> int:
    return next((tier.percent for tier in price.service_tiers if tier.name == service_tier), 100)


def spent(target: Target, usage: Usage) -> Decimal | None:
    """What one answer of a target cost: nothing in the cluster, None where a hosted target's price is unknown."""
    if target.hosted is None:
        return ZERO
    return None if target.price is None else cost(usage, target.price, _cache_write(target))


def answer_bound(features: Features, target: Target) -> int:
    """The most tokens of one answer: the client's bound, or else the longest answer that the target is known to give.

    Under a budget the latter is sent along with the request, so that no answer costs more than what was reserved.
    """
    if features.max_tokens is not None:
        return features.max_tokens
    able = target.capabilities
    bound = able.max_output_tokens or DEFAULT_MAX_TOKENS
    if able.context_length is not None:
        bound = min(bound, max(able.context_length - prompt_estimate(features), 1))
    return bound


def pays(features: Features) -> bool:
    """Whether the client has a budget of its own."""
    return features.client_limits is not None and features.client_limits.budget_usd is not None


def must_bound(policy: Policy, target: Target, features: Features) -> bool:
    """Whether a request needs a bound that the client did not give, because a budget pays for the answer."""
    return (
        features.max_tokens is None
        and target.price is not None
        and (bool(policy.limits.budgets) or pays(features))
        and features.operation in (Operation.CHAT, Operation.COMPLETIONS)
    )


def most(features: Features, target: Target) -> Usage:
    """The most tokens that a target can count for a request, by the estimate of its prompt."""
    prompt = prompt_estimate(features)
    if features.operation not in (Operation.CHAT, Operation.COMPLETIONS):
        return Usage(prompt, 0)
    answers = answer_bound(features, target) * features.answers
    return Usage(prompt, answers, audio_tokens=features.sound_tokens, service_tier=features.service_tier)


def prompt_estimate(features: Features) -> int:
    """Tokens of the whole prompt, with images, sound and documents."""
    return features.prompt_tokens + features.images * _IMAGE_TOKENS + features.sound_tokens


def reservation(features: Features, candidates: Iterable[Target], escalation: Target | None = None) -> Decimal:
    """The most that a request can cost: one answer of its dearest candidate, and one of the target it escalates to.

    Candidates that fail before their first byte cost nothing, so that only one of them is paid. A hosted target
    without a price counts as nothing: a policy with budgets and such a target is not accepted.
    """
    dearest = max((_worst(features, target) for target in candidates), default=ZERO)
    return dearest + (ZERO if escalation is None else _worst(features, escalation))


def nanodollars(usd: Decimal) -> int:
    """Whole billionths of a dollar, rounded up: what stores count in, exact in a double up to 9 million dollars."""
    return int((usd * _NANODOLLARS).to_integral_value(rounding=ROUND_CEILING))


def dollars(nano: int) -> Decimal:
    """The amount again."""
    return Decimal(nano) / _NANODOLLARS


def _worst(features: Features, target: Target) -> Decimal:
    """A provider may write the whole prompt to its cache, which costs more than reading it."""
    if target.hosted is None or target.price is None:
        return ZERO
    usage = most(features, target)
    factor = _cache_write(target)
    if factor > 1 or target.price.cache_write_input_per_m_tok is not None:
        usage = replace(usage, cache_creation_tokens=usage.prompt_tokens - usage.audio_tokens)
    return cost(usage, target.price, factor)


def _cache_write(target: Target) -> Decimal:
    """Anthropic's models charge for writing to the cache; the others that count such tokens do not, unless priced."""
    return _CACHE_WRITE if target.hosted is not None and target.hosted.provider in _PAY_FOR_WRITES else Decimal(1)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


MAX_BYTES = 900_000
"""Of the policies of a document: a ConfigMap holds a MiB, and states of routes come on top."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A RoutingPolicy of the apiserver; `policy` is None when it cannot be read, with the reason in `unreadable`."""

    name: str
    uid: str
    created: str
    """RFC 3339."""
    policy: RoutingPolicy | None
    unreadable: InvalidSpec | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of one policy."""

    findings: tuple[PolicyFinding, ...] = ()
    unreadable: InvalidSpec | None = None
    served_generation: int | None = None
    """The generation that the document holds; None where it holds none."""
    spec: RoutingPolicySpec | None = None
    """None where it cannot be read."""
    too_large: bool = False
    """It is sound, but the document has no space for it."""

    def with_missing(self, keys: Collection[str]) -> "Admission":
        """The same, and the keys of Secrets that the gateway lacks."""
        if self.spec is None or not keys:
            return self
        return replace(self, findings=(*self.findings, *absent_keys(self.spec, keys)))


@dataclass(frozen=True, slots=True)
class Admitted:
    """The document to serve, and each policy's part in it by name."""

    document: GatewayDocument
    admissions: Mapping[str, Admission]


def admit(
    namespace: str,
    candidates: Sequence[Candidate],
    deployments: Mapping[str, DeploymentFacts],
    previous: GatewayDocument | None,
    *,
    allow_private_hosted_addresses: bool = False,
) -> Admitted:
    """Judge every policy of a namespace.

    A policy that became unsound stays as `previous` has it. A model name stays with the policy that serves it: among
    policies that are new to it the older one gets it. References that do not resolve hold nothing up: the target has no
    endpoints until they do. A policy for which the document has no space stays as `previous` has it; those that are
    served keep theirs, and among the others the older one gets it.
    """
    served = {} if previous is None else previous.by_name
    mine = {c.name: served[c.name] for c in candidates if c.name in served and served[c.name].uid == c.uid}
    holders = dict(_holders(candidates, mine))
    compiled: list[Policy] = []
    size = sum(kept.size for kept in mine.values())
    admissions: dict[str, Admission] = {}
    for candidate in sorted(candidates, key=lambda c: (c.name not in mine, c.created, c.name)):
        policy, kept = candidate.policy, mine.get(candidate.name)
        findings: list[PolicyFinding] = []
        if policy is not None:
            findings = check(
                policy.spec,
                deployments,
                taken={model: name for model, name in holders.items() if name != candidate.name},
                allow_private_hosted_addresses=allow_private_hosted_addresses,
            )
        sound = policy is not None and all(finding.problem in RESOLUTION for finding in findings)
        form = compile_policy(policy, deployments) if sound and policy is not None else _without(kept, holders)
        held = 0 if kept is None else kept.size
        too_large = form is not None and form.size > held and size - held + form.size > MAX_BYTES
        if too_large:
            form = _without(kept, holders)
        size += (0 if form is None else form.size) - held
        if form is not None:
            compiled.append(form)
            holders |= dict.fromkeys(form.host_models, candidate.name)
        generation = None if form is None else form.generation
        spec = None if policy is None else policy.spec
        admissions[candidate.name] = Admission(tuple(findings), candidate.unreadable, generation, spec, too_large)
    document = GatewayDocument(
        namespace=namespace,
        allow_private_hosted_addresses=allow_private_hosted_addresses,
        policies=tuple(sorted(compiled, key=lambda policy: policy.name)),
    )
    return Admitted(document, admissions)


def _holders(candidates: Sequence[Candidate], mine: Mapping[str, Policy]) -> Iterator[tuple[str, str]]:
    """Model names that are served already and still wanted, with the policy that serves each."""
    for candidate in candidates:
        kept = mine.get(candidate.name)
        wanted = None if candidate.policy is None else set(candidate.policy.spec.host_models)
        for model in kept.host_models if kept else ():
            if wanted is None or model in wanted:
                yield model, candidate.name


def _without(kept: Policy | None, holders: Mapping[str, str]) -> Policy | None:
    """The form that was kept, without the model names that another policy has meanwhile got."""
    if kept is None:
        return None
    left = tuple(model for model in kept.host_models if holders.get(model, kept.name) == kept.name)
    if left == kept.host_models:
        return kept
    fields = {name: getattr(kept, name) for name in Policy.model_fields}
    return Policy(**{**fields, "host_models": left}) if left else None
