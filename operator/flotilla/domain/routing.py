"""Is a RoutingPolicy sound? Findings as data, each with the path, the value and the remedy."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from flotilla.api.routing_policy import Boundary, Match, RoutingPolicySpec, Target


class Problem(StrEnum):
    """Kinds of findings; each is a condition reason."""

    UNKNOWN_TARGET = "UnknownTarget"
    UNKNOWN_HOST_MODEL = "UnknownHostModel"
    UNREACHABLE_RULE = "UnreachableRule"
    UNKNOWN_DATA_CLASS = "UnknownDataClass"
    SHARED_KEY = "KeySharedBetweenHosts"
    MODEL_DEPLOYMENT_NOT_FOUND = "ModelDeploymentNotFound"
    CLASS_WITHOUT_TARGET = "ClassWithoutTarget"
    OUTSIDE_EVERY_CLASS = "TargetOutsideEveryClass"
    ROUTE_CLOSED = "RouteClosedForClass"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    problem: Problem
    path: str
    message: str


def boundary(target: Target) -> Boundary:
    """A ModelDeployment is in the cluster, a hosted model is not: nobody can declare otherwise."""
    return Boundary.CLUSTER if target.external is None else Boundary.EXTERNAL


def allowed_targets(spec: RoutingPolicySpec, data_class: str) -> frozenset[str]:
    """Names of the targets that data of a class may go to; an unknown class gets those of `unknownClass`."""
    classes = {c.name: c for c in spec.data_policy.classes}
    chosen = classes.get(data_class) or classes.get(spec.data_policy.unknown_class)
    if chosen is None:
        return frozenset()
    return frozenset(
        target.name
        for target in spec.targets
        if boundary(target) in chosen.allow_boundaries
        and (not chosen.allow_regions or target.region in chosen.allow_regions)
    )


def check(spec: RoutingPolicySpec, deployments: Collection[str]) -> list[Finding]:
    """All findings, in the order of the spec. `deployments` are the ModelDeployments of the namespace."""
    return [*_references(spec, deployments), *_keys(spec), *_rules(spec), *_sovereignty(spec)]


def _references(spec: RoutingPolicySpec, deployments: Collection[str]) -> Iterator[Finding]:
    for index, target in enumerate(spec.targets):
        reference = target.model_deployment_ref
        if reference is not None and reference.name not in deployments:
            yield Finding(
                Problem.MODEL_DEPLOYMENT_NOT_FOUND,
                f"spec.targets[{index}].modelDeploymentRef.name",
                f"There is no ModelDeployment {reference.name!r} in this namespace. Create it or correct the name.",
            )
    known = {target.name for target in spec.targets}
    for path, name in _uses(spec):
        if name not in known:
            yield Finding(
                Problem.UNKNOWN_TARGET,
                path,
                f"{name!r} is not one of spec.targets ({', '.join(sorted(known))}). Add it or correct the name.",
            )


def _keys(spec: RoutingPolicySpec) -> Iterator[Finding]:
    hosts: dict[tuple[str, str], str] = {}
    for index, target in enumerate(spec.targets):
        if target.external is None:
            continue
        secret, host = target.external.secret_ref, urlsplit(target.external.base_url).netloc
        first = hosts.setdefault((secret.name, secret.key), host)
        if first != host:
            yield Finding(
                Problem.SHARED_KEY,
                f"spec.targets[{index}].external.secretRef",
                f"Key {secret.key!r} of Secret {secret.name!r} goes to {first} already, and would be shown to {host} "
                "too. Give each provider a key of its own.",
            )


def _uses(spec: RoutingPolicySpec) -> Iterator[tuple[str, str]]:
    """Every mention of a target: path and name."""
    for r, rule in enumerate(spec.rules):
        root = f"spec.rules[{r}].route"
        for s, share in enumerate(rule.route.split):
            yield f"{root}.split[{s}].target", share.target
        for f, name in enumerate(rule.route.fallback_targets):
            yield f"{root}.fallbackTargets[{f}]", name
        if rule.route.escalation_target is not None:
            yield f"{root}.escalationTarget", rule.route.escalation_target
    yield "spec.defaultRoute.target", spec.default_route.target
    for f, name in enumerate(spec.default_route.fallback_targets):
        yield f"spec.defaultRoute.fallbackTargets[{f}]", name


def _rules(spec: RoutingPolicySpec) -> Iterator[Finding]:
    hosts, classes = set(spec.host_models), {c.name for c in spec.data_policy.classes}
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}].match"
        strangers = sorted(set(rule.match.models) - hosts)
        if strangers:
            yield Finding(
                Problem.UNKNOWN_HOST_MODEL,
                f"{path}.models",
                f"Clients cannot ask for {', '.join(map(repr, strangers))}: add it to spec.hostModels or remove it.",
            )
        for number, header in enumerate(rule.match.headers):
            if header.name == spec.data_policy.class_header and header.value not in classes:
                yield Finding(
                    Problem.UNKNOWN_DATA_CLASS,
                    f"{path}.headers[{number}].value",
                    f"{header.value!r} is not one of spec.dataPolicy.classes ({', '.join(sorted(classes))}): requests "
                    f"that carry it count as {spec.data_policy.unknown_class!r}. Add the class or correct the value.",
                )
        for earlier in spec.rules[:index]:
            if covers(earlier.match, rule.match):
                yield Finding(
                    Problem.UNREACHABLE_RULE,
                    path,
                    f"Rule {rule.name!r} can never apply: rule {earlier.name!r} before it matches all that it "
                    "matches. Move it up, narrow the earlier one, or remove it.",
                )
                break


def covers(wide: Match, narrow: Match) -> bool:
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


def _sovereignty(spec: RoutingPolicySpec) -> Iterator[Finding]:
    allowed = {c.name: allowed_targets(spec, c.name) for c in spec.data_policy.classes}
    for index, data_class in enumerate(spec.data_policy.classes):
        if not allowed[data_class.name]:
            yield Finding(
                Problem.CLASS_WITHOUT_TARGET,
                f"spec.dataPolicy.classes[{index}]",
                f"No target may take data of class {data_class.name!r}, so each such request would be refused. "
                "Allow another boundary or region, or add a target.",
            )
    anywhere = frozenset().union(*allowed.values())
    known = {target.name for target in spec.targets}
    for path, name in _uses(spec):
        if name in known and name not in anywhere:
            yield Finding(
                Problem.OUTSIDE_EVERY_CLASS,
                path,
                f"Target {name!r} lies outside every data class, so it can never be used. "
                "Allow its boundary or region in a class, or remove it here.",
            )
    default = {spec.default_route.target, *spec.default_route.fallback_targets}
    for index, data_class in enumerate(spec.data_policy.classes):
        if allowed[data_class.name] and not default & allowed[data_class.name]:
            yield Finding(
                Problem.ROUTE_CLOSED,
                f"spec.dataPolicy.classes[{index}]",
                f"spec.defaultRoute has no target that may take data of class {data_class.name!r}. "
                f"Add one of {', '.join(sorted(allowed[data_class.name]))} to its fallbackTargets.",
            )
