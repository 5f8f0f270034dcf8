"""Is a RoutingPolicy sound? Findings as data, each with the path, the value and the remedy."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from urllib.parse import urlsplit

from flotilla.api.routes import Confidence, Route
from flotilla.api.routing_policy import RoutingPolicySpec, Scope
from flotilla.domain.routing.address import base_url_problem
from flotilla.domain.routing.decide import DEFAULT_RULE
from flotilla.domain.routing.document import DeploymentFacts, allowed_targets, key_file
from flotilla.domain.routing.match import covers


class Problem(StrEnum):
    """Kinds of findings; each is a condition reason."""

    UNKNOWN_TARGET = "UnknownTarget"
    UNKNOWN_HOST_MODEL = "UnknownHostModel"
    UNREACHABLE_RULE = "UnreachableRule"
    RESERVED_NAME = "ReservedName"
    UNKNOWN_DATA_CLASS = "UnknownDataClass"
    UNKNOWN_TASK = "UnknownTask"
    SHARED_KEY = "KeySharedBetweenHosts"
    FORBIDDEN_ADDRESS = "ForbiddenAddress"
    BUDGET_WITHOUT_PRICE = "BudgetWithoutPrice"
    LIMIT_WITHOUT_CLIENTS = "LimitWithoutClients"
    BAD_CALIBRATION = "BadCalibration"
    ESCALATES_TO_ITSELF = "EscalatesToItself"
    HOST_MODEL_TAKEN = "HostModelTaken"
    MODEL_DEPLOYMENT_NOT_FOUND = "ModelDeploymentNotFound"
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    SECRET_KEY_NOT_FOUND = "SecretKeyNotFound"  # noqa: S105 - a reason
    CLASS_WITHOUT_TARGET = "ClassWithoutTarget"
    OUTSIDE_EVERY_CLASS = "TargetOutsideEveryClass"
    ROUTE_CLOSED = "RouteClosedForClass"


RESOLUTION = frozenset({Problem.MODEL_DEPLOYMENT_NOT_FOUND, Problem.ADAPTER_NOT_FOUND, Problem.SECRET_KEY_NOT_FOUND})
"""Of references, which may resolve later by themselves."""
SOVEREIGNTY = frozenset({Problem.CLASS_WITHOUT_TARGET, Problem.OUTSIDE_EVERY_CLASS, Problem.ROUTE_CLOSED})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    problem: Problem
    path: str
    message: str


def check(
    spec: RoutingPolicySpec,
    deployments: Mapping[str, DeploymentFacts],
    *,
    taken: Mapping[str, str] | None = None,
    allow_private_hosted_addresses: bool = False,
) -> list[Finding]:
    """All findings, in the order of the spec.

    `deployments` are the ModelDeployments of the namespace, `taken` the host models of older policies by model name.
    """
    return [
        *_hosts(spec, taken or {}),
        *_references(spec, deployments),
        *_hosted(spec, allow_private=allow_private_hosted_addresses),
        *_classes(spec),
        *_rules(spec),
        *_escalations(spec),
        *_limits(spec),
        *_sovereignty(spec),
    ]


def absent_keys(spec: RoutingPolicySpec, missing: Collection[str]) -> Iterator[Finding]:
    """Keys of Secrets that the gateway did not find, by `key_file`: the operator itself may read no Secret."""
    secrets = [(f"spec.clients[{index}].secretRef", client.secret_ref) for index, client in enumerate(spec.clients)]
    for index, target in enumerate(spec.targets):
        if target.external is not None:
            secrets.append((f"spec.targets[{index}].external.secretRef", target.external.secret_ref))
    for path, secret in secrets:
        if key_file(secret) in missing:
            yield Finding(
                Problem.SECRET_KEY_NOT_FOUND,
                path,
                f"The gateway finds no key {secret.key!r} in a Secret {secret.name!r}. Create it or correct the name.",
            )


def _hosts(spec: RoutingPolicySpec, taken: Mapping[str, str]) -> Iterator[Finding]:
    for index, model in enumerate(spec.host_models):
        if model in taken:
            yield Finding(
                Problem.HOST_MODEL_TAKEN,
                f"spec.hostModels[{index}]",
                f"The older RoutingPolicy {taken[model]!r} serves {model!r} already. Choose another name, or remove it "
                "there.",
            )


def _references(spec: RoutingPolicySpec, deployments: Mapping[str, DeploymentFacts]) -> Iterator[Finding]:
    for index, target in enumerate(spec.targets):
        reference = target.model_deployment_ref
        if reference is None:
            continue
        facts = deployments.get(reference.name)
        if facts is None:
            yield Finding(
                Problem.MODEL_DEPLOYMENT_NOT_FOUND,
                f"spec.targets[{index}].modelDeploymentRef.name",
                f"There is no ModelDeployment {reference.name!r} in this namespace. Create it or correct the name.",
            )
        elif reference.adapter is not None and reference.adapter not in facts.adapters:
            yield Finding(
                Problem.ADAPTER_NOT_FOUND,
                f"spec.targets[{index}].modelDeploymentRef.adapter",
                f"ModelDeployment {reference.name!r} has no adapter {reference.adapter!r}"
                f"{_known(facts.adapters)}. Add it to its spec.model.adapters or correct the name.",
            )
    known = {target.name for target in spec.targets}
    for path, name in _uses(spec):
        if name not in known:
            yield Finding(
                Problem.UNKNOWN_TARGET,
                path,
                f"{name!r} is not one of spec.targets{_known(known)}. Add it or correct the name.",
            )


def _hosted(spec: RoutingPolicySpec, *, allow_private: bool) -> Iterator[Finding]:
    hosts: dict[tuple[str, str], str] = {(client.secret_ref.name, client.secret_ref.key): "" for client in spec.clients}
    for index, target in enumerate(spec.targets):
        if target.external is None:
            continue
        path = f"spec.targets[{index}].external"
        wrong = base_url_problem(target.external.base_url, allow_private=allow_private)
        if wrong is not None:
            yield Finding(Problem.FORBIDDEN_ADDRESS, f"{path}.baseURL", wrong)
        secret, host = target.external.secret_ref, urlsplit(target.external.base_url).netloc
        first = hosts.setdefault((secret.name, secret.key), host)
        if first != host:
            whose = f"goes to {first} already" if first else "is a client's own"
            yield Finding(
                Problem.SHARED_KEY,
                f"{path}.secretRef",
                f"Key {secret.key!r} of Secret {secret.name!r} {whose}, and would be shown to {host} too. Give each "
                "provider a key of its own.",
            )


def _uses(spec: RoutingPolicySpec) -> Iterator[tuple[str, str]]:
    """Every mention of a target: path and name."""
    if spec.classifier is not None:
        yield "spec.classifier.target", spec.classifier.target
    for root, _, route in _routes(spec):
        for index, share in enumerate(route.split):
            yield f"{root}.split[{index}].target", share.target
        for index, name in enumerate(route.fallback.targets if route.fallback else ()):
            yield f"{root}.fallback.targets[{index}]", name
        if route.escalation is not None:
            yield f"{root}.escalation.target", route.escalation.target


def _routes(spec: RoutingPolicySpec) -> Iterator[tuple[str, str, Route]]:
    """Path, name and route of each rule, the default's last."""
    for index, rule in enumerate(spec.rules):
        yield f"spec.rules[{index}].route", rule.name, rule.route
    yield "spec.defaultRoute", DEFAULT_RULE, spec.default_route


def _classes(spec: RoutingPolicySpec) -> Iterator[Finding]:
    classes = {c.name for c in spec.data_policy.classes}
    for index, client in enumerate(spec.clients):
        if client.data_class is not None and client.data_class not in classes:
            yield Finding(
                Problem.UNKNOWN_DATA_CLASS,
                f"spec.clients[{index}].dataClass",
                f"{client.data_class!r} is not one of spec.dataPolicy.classes{_known(classes)}. Add it or correct it.",
            )


def _rules(spec: RoutingPolicySpec) -> Iterator[Finding]:
    hosts, classes = set(spec.host_models), {c.name for c in spec.data_policy.classes}
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}].match"
        if rule.name == DEFAULT_RULE:
            yield Finding(
                Problem.RESERVED_NAME,
                f"spec.rules[{index}].name",
                f"{DEFAULT_RULE!r} is the name of spec.defaultRoute in metrics and headers. Choose another.",
            )
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
                    f"{header.value!r} is not one of spec.dataPolicy.classes{_known(classes)}: requests that carry it "
                    f"count as {spec.data_policy.unknown_class!r}. Add the class or correct the value.",
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
    if spec.classifier is not None:
        wanted = {task for rule in spec.rules for task in rule.match.tasks}
        for index, task in enumerate(spec.classifier.tasks):
            if task.name not in wanted:
                yield Finding(
                    Problem.UNKNOWN_TASK,
                    f"spec.classifier.tasks[{index}].name",
                    f"No rule matches the task {task.name!r}. Add it to a rule's match.tasks or remove it here.",
                )


def _escalations(spec: RoutingPolicySpec) -> Iterator[Finding]:
    for path, name, route in _routes(spec):
        escalation = route.escalation
        if escalation is None:
            continue
        if {share.target for share in route.split} == {escalation.target}:
            yield Finding(
                Problem.ESCALATES_TO_ITSELF,
                f"{path}.escalation.target",
                f"Route {name!r} asks {escalation.target!r} first, so a bad answer would be asked of it again. "
                "Escalate to another target.",
            )
        if escalation.confidence is not None and not sound(escalation.confidence):
            yield Finding(
                Problem.BAD_CALIBRATION,
                f"{path}.escalation.confidence.calibration",
                "The calibration must be in order of marginPermille, and errorPermille must never rise with it: fit it "
                "again by isotonic regression.",
            )


def sound(confidence: Confidence) -> bool:
    """Whether a calibration is one: margins rise, errors never do."""
    points = confidence.calibration
    return all(
        left.margin_permille < right.margin_permille and left.error_permille >= right.error_permille
        for left, right in pairwise(points)
    )


def _limits(spec: RoutingPolicySpec) -> Iterator[Finding]:
    priceless = [target.name for target in spec.targets if target.external and target.external.price is None]
    for index, budget in enumerate(spec.limits.budgets):
        if priceless:
            yield Finding(
                Problem.BUDGET_WITHOUT_PRICE,
                f"spec.limits.budgets[{index}]",
                f"Budget {budget.name!r} cannot count what {_listed(priceless)} costs: set external.price there.",
            )
    scopes = [(f"rates[{index}]", limit.name, limit.per) for index, limit in enumerate(spec.limits.rates)]
    scopes += [(f"budgets[{index}]", limit.name, limit.per) for index, limit in enumerate(spec.limits.budgets)]
    for path, name, per in scopes:
        if per is Scope.CLIENT and not spec.clients:
            yield Finding(
                Problem.LIMIT_WITHOUT_CLIENTS,
                f"spec.limits.{path}.per",
                f"{name!r} counts by client, and spec.clients is empty, so that all count as one. Add clients, or "
                "count per Policy or Team.",
            )


def _sovereignty(spec: RoutingPolicySpec) -> Iterator[Finding]:
    allowed = {c.name: allowed_targets(spec.targets, spec.data_policy, c.name) for c in spec.data_policy.classes}
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
    default = spec.default_route
    targets = {share.target for share in default.split if share.weight > 0}
    targets.update(default.fallback.targets if default.fallback else ())
    for index, data_class in enumerate(spec.data_policy.classes):
        if allowed[data_class.name] and not targets & allowed[data_class.name]:
            yield Finding(
                Problem.ROUTE_CLOSED,
                f"spec.dataPolicy.classes[{index}]",
                f"spec.defaultRoute has no target that may take data of class {data_class.name!r}. "
                f"Add one of {_listed(allowed[data_class.name])} to its fallback.targets.",
            )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _known(names: Collection[str]) -> str:
    return f" ({_listed(names)})" if names else ""
