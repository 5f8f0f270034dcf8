"""Which policies of a namespace are served, in which form: the sound ones as they are, others as they last were."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flotilla.api.routing_policy import RoutingPolicy, RoutingPolicySpec
from flotilla.domain.routing.check import RESOLUTION, Finding, absent_keys, check
from flotilla.domain.routing.document import DeploymentFacts, GatewayDocument, Policy, compile_policy
from flotilla.errors import InvalidSpec

MAX_BYTES = 900_000
"""Of a document: a ConfigMap holds a MiB."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A RoutingPolicy as the apiserver has it; `policy` is None where `unreadable` says why."""

    name: str
    uid: str
    created: str
    """RFC 3339."""
    policy: RoutingPolicy | None
    unreadable: InvalidSpec | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of one policy."""

    findings: tuple[Finding, ...] = ()
    unreadable: InvalidSpec | None = None
    served_generation: int | None = None
    """The generation that the document holds; None where it holds none."""
    spec: RoutingPolicySpec | None = None
    """None where it cannot be read."""

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
    endpoints until they do.
    """
    served = {} if previous is None else previous.by_name
    mine = {c.name: served[c.name] for c in candidates if c.name in served and served[c.name].uid == c.uid}
    holders = dict(_holders(candidates, mine))
    compiled: list[Policy] = []
    admissions: dict[str, Admission] = {}
    for candidate in sorted(candidates, key=lambda c: (c.name not in mine, c.created, c.name)):
        policy, kept = candidate.policy, mine.get(candidate.name)
        findings: list[Finding] = []
        if policy is not None:
            findings = check(
                policy.spec,
                deployments,
                taken={model: name for model, name in holders.items() if name != candidate.name},
                allow_private_hosted_addresses=allow_private_hosted_addresses,
            )
        sound = policy is not None and all(finding.problem in RESOLUTION for finding in findings)
        form = compile_policy(policy, deployments) if sound and policy is not None else _without(kept, holders)
        if form is not None:
            compiled.append(form)
            holders |= dict.fromkeys(form.host_models, candidate.name)
        generation = None if form is None else form.generation
        spec = None if policy is None else policy.spec
        admissions[candidate.name] = Admission(tuple(findings), candidate.unreadable, generation, spec)
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
