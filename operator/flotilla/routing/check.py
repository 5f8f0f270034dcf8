"""Checks of a RoutingPolicy that need no traffic, and the gateway's document from the policies of a namespace."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from flotilla.api.routing_policy import CapturePermission, Confidence, RouteSpec, RoutingPolicySpec, Scope
from flotilla.routing.decide import DEFAULT_RULE, covers
from flotilla.routing.document import DeploymentFacts, allowed_targets, key_file
from flotilla.routing.escalation import Choice, ToolCall

_CLUSTER_SUFFIXES = (".svc", ".cluster.local", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa")
"""Names that resolve inside of a cluster, a cloud's own network (metadata.google.internal) or a site."""
_NUMERIC = re.compile(r"^(0[xX][0-9a-fA-F]*|[0-9]+)$")
_LABEL = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$")


def base_url_problem(url: str, *, allow_private: bool = False) -> str | None:
    """What is wrong, None where nothing is. `allow_private` is for tests whose providers are on the same machine.

    Names are judged by their spelling; where a public name resolves to is judged when it is connected to
    (`address_problem`).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{url!r} is not a URL. Write it as https://HOST/PATH."
    if any(ord(character) <= 32 or ord(character) >= 127 for character in url):
        return f"{url!r} holds blanks, control characters or letters beyond ASCII. Write the host in its ASCII form."
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return f"{url!r} holds credentials. Put the key into a Secret and name it by secretRef."
    if parts.query or parts.fragment:
        return f"{url!r} has a query or a fragment. Only scheme, host, port and path are allowed."
    if not host or port == 0:
        return f"{url!r} names no host or port. Write it as https://HOST/PATH."
    if allow_private and parts.scheme in ("http", "https"):
        return None
    if parts.scheme != "https":
        return f"{url!r} is not https: the key and the prompts would travel in the clear."
    return _host_problem(host.rstrip("."))


def address_problem(address: str) -> str | None:
    """What is wrong with connecting to an IP address, None where it is public. For the gateway, after resolving."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address!r} is not an IP address."
    inner = _embedded(ip)
    if not ip.is_global or ip.is_multicast or (inner is not None and not inner.is_global):
        return f"{address} is not a public address."
    return None


def _host_problem(host: str) -> str | None:
    remedy = "Hosted models are public; reach models of this cluster by modelDeploymentRef."
    if ":" in host:
        wrong = address_problem(host)
        return f"{wrong} {remedy}" if wrong else None
    labels = host.split(".")
    if _NUMERIC.match(labels[-1]):
        # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1; only the plain form means one thing.
        if not re.fullmatch(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}", host):
            return f"{host!r} is a number in a form that programs read differently. Write a host name."
        wrong = address_problem(host)
        return f"{wrong} {remedy}" if wrong else None
    if not all(_LABEL.match(label) for label in labels):
        return f"{host!r} is not a host name."
    if len(labels) == 1:
        return f"{host!r} has no domain, so it is a name of this cluster or machine. {remedy}"
    if f".{host.lower()}".endswith(_CLUSTER_SUFFIXES) or labels[-1].lower() == "localhost":
        return f"{host!r} is a name of a cluster or a private network. {remedy}"
    return None


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, NAT64 or Teredo."""
    if isinstance(ip, IPv4Address):
        return None
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if int(ip) >> 32 in (0x64FF9B << 64, 0):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


class Problem(StrEnum):
    """Kinds of findings; each is a condition reason."""

    UNKNOWN_TARGET = "UnknownTarget"
    BAD_PREFERENCE = "BadPreference"
    SHADOW_WITHOUT_PRICE = "ShadowWithoutPrice"
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
    CAPTURE_FORBIDDEN = "CaptureForbidden"
    UNKNOWN_RULE = "UnknownRule"
    CLASS_WITHOUT_TARGET = "ClassWithoutTarget"
    OUTSIDE_EVERY_CLASS = "TargetOutsideEveryClass"
    ROUTE_CLOSED = "RouteClosedForClass"


RESOLUTION = frozenset({Problem.MODEL_DEPLOYMENT_NOT_FOUND, Problem.ADAPTER_NOT_FOUND, Problem.SECRET_KEY_NOT_FOUND})
"""Of references, which may resolve later by themselves."""
SOVEREIGNTY = frozenset({Problem.CLASS_WITHOUT_TARGET, Problem.OUTSIDE_EVERY_CLASS, Problem.ROUTE_CLOSED})


@dataclass(frozen=True, slots=True)
class PolicyFinding:
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
) -> list[PolicyFinding]:
    """All findings, in the order of the spec.

    `deployments` are the ModelDeployments of the namespace, `taken` the host models of older policies by model name.
    """
    return [
        *_hosts(spec, taken or {}),
        *_references(spec, deployments),
        *_hosted(spec, allow_private=allow_private_hosted_addresses),
        *_classes(spec),
        *_capture(spec),
        *_rules(spec),
        *_preferences(spec),
        *_shadows(spec),
        *_escalations(spec),
        *_limits(spec),
        *_sovereignty(spec),
    ]


def absent_keys(spec: RoutingPolicySpec, missing: Collection[str]) -> Iterator[PolicyFinding]:
    """Keys of Secrets that the gateway did not find, by `key_file`: the operator itself may read no Secret."""
    secrets = [(f"spec.clients[{index}].secretRef", client.secret_ref) for index, client in enumerate(spec.clients)]
    if spec.clients_from is not None:
        secrets.append(("spec.clientsFrom", spec.clients_from))
    if spec.token_login is not None:
        secrets.append(("spec.tokenLogin.jwksFrom", spec.token_login.jwks_from))
    for index, target in enumerate(spec.targets):
        if target.external is not None:
            secrets.append((f"spec.targets[{index}].external.secretRef", target.external.secret_ref))
    for path, secret in secrets:
        if key_file(secret) in missing:
            yield PolicyFinding(
                Problem.SECRET_KEY_NOT_FOUND,
                path,
                f"The gateway finds no key {secret.key!r} in a Secret {secret.name!r}. Create it or correct the name.",
            )


def _hosts(spec: RoutingPolicySpec, taken: Mapping[str, str]) -> Iterator[PolicyFinding]:
    for index, model in enumerate(spec.host_models):
        if model in taken:
            yield PolicyFinding(
                Problem.HOST_MODEL_TAKEN,
                f"spec.hostModels[{index}]",
                f"The older RoutingPolicy {taken[model]!r} serves {model!r} already. Choose another name, or remove it "
                "there.",
            )


def _references(spec: RoutingPolicySpec, deployments: Mapping[str, DeploymentFacts]) -> Iterator[PolicyFinding]:
    for index, target in enumerate(spec.targets):
        reference = target.model_deployment_ref
        if reference is None:
            continue
        facts = deployments.get(reference.name)
        if facts is None:
            yield PolicyFinding(
                Problem.MODEL_DEPLOYMENT_NOT_FOUND,
                f"spec.targets[{index}].modelDeploymentRef.name",
                f"There is no ModelDeployment {reference.name!r} in this namespace. Create it or correct the name.",
            )
        elif reference.adapter is not None and reference.adapter not in facts.adapters:
            yield PolicyFinding(
                Problem.ADAPTER_NOT_FOUND,
                f"spec.targets[{index}].modelDeploymentRef.adapter",
                f"ModelDeployment {reference.name!r} has no adapter {reference.adapter!r}"
                f"{_known(facts.adapters)}. Add it to its spec.model.adapters or correct the name.",
            )
    known = {target.name for target in spec.targets}
    for path, name in _uses(spec):
        if name not in known:
            yield PolicyFinding(
                Problem.UNKNOWN_TARGET,
                path,
                f"{name!r} is not one of spec.targets{_known(known)}. Add it or correct the name.",
            )


def _hosted(spec: RoutingPolicySpec, *, allow_private: bool) -> Iterator[PolicyFinding]:
    hosts: dict[tuple[str, str], str] = {(client.secret_ref.name, client.secret_ref.key): "" for client in spec.clients}
    for file in (spec.clients_from, None if spec.token_login is None else spec.token_login.jwks_from):
        if file is not None:
            hosts[file.name, file.key] = ""
    for index, target in enumerate(spec.targets):
        if target.external is None:
            continue
        path = f"spec.targets[{index}].external"
        wrong = base_url_problem(target.external.base_url, allow_private=allow_private)
        if wrong is not None:
            yield PolicyFinding(Problem.FORBIDDEN_ADDRESS, f"{path}.baseURL", wrong)
        secret, host = target.external.secret_ref, urlsplit(target.external.base_url).netloc
        first = hosts.setdefault((secret.name, secret.key), host)
        if first != host:
            whose = f"goes to {first} already" if first else "is a client's own"
            yield PolicyFinding(
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
        for index, item in enumerate(route.preference):
            yield f"{root}.preference[{index}].target", item.target
        for index, name in enumerate(route.fallback.targets if route.fallback else ()):
            yield f"{root}.fallback.targets[{index}]", name
        if route.escalation is not None:
            yield f"{root}.escalation.target", route.escalation.target
        if route.shadow is not None:
            yield f"{root}.shadow.target", route.shadow.target


def _routes(spec: RoutingPolicySpec) -> Iterator[tuple[str, str, RouteSpec]]:
    """Path, name and route of each rule, the default's last."""
    for index, rule in enumerate(spec.rules):
        yield f"spec.rules[{index}].route", rule.name, rule.route
    yield "spec.defaultRoute", DEFAULT_RULE, spec.default_route


def _classes(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    classes = {c.name for c in spec.data_policy.classes}
    for index, client in enumerate(spec.clients):
        if client.data_class is not None and client.data_class not in classes:
            yield PolicyFinding(
                Problem.UNKNOWN_DATA_CLASS,
                f"spec.clients[{index}].dataClass",
                f"{client.data_class!r} is not one of spec.dataPolicy.classes{_known(classes)}. Add it or correct it.",
            )


def _capture(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    """A class is captured only if the class itself allows it, so that two places must agree."""
    if spec.capture is None:
        return
    classes = {c.name: c for c in spec.data_policy.classes}
    for index, name in enumerate(spec.capture.classes):
        path = f"spec.capture.classes[{index}]"
        if name not in classes:
            yield PolicyFinding(
                Problem.UNKNOWN_DATA_CLASS,
                path,
                f"{name!r} is not one of spec.dataPolicy.classes{_known(set(classes))}. Add it or correct it.",
            )
        elif classes[name].capture is not CapturePermission.ALLOWED:
            yield PolicyFinding(
                Problem.CAPTURE_FORBIDDEN,
                path,
                f"The data class {name!r} does not allow capture. Remove it from spec.capture.classes, or set its "
                "capture to Allowed in spec.dataPolicy.classes.",
            )
    rules = {rule.name for rule in spec.rules} | {DEFAULT_RULE}
    for index, name in enumerate(spec.capture.rules):
        if name not in rules:
            yield PolicyFinding(
                Problem.UNKNOWN_RULE,
                f"spec.capture.rules[{index}]",
                f"{name!r} is not one of spec.rules{_known(rules)}. Correct it.",
            )


def _rules(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    hosts, classes = set(spec.host_models), {c.name for c in spec.data_policy.classes}
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}].match"
        if rule.name == DEFAULT_RULE:
            yield PolicyFinding(
                Problem.RESERVED_NAME,
                f"spec.rules[{index}].name",
                f"{DEFAULT_RULE!r} is the name of spec.defaultRoute in metrics and headers. Choose another.",
            )
        strangers = sorted(set(rule.match.models) - hosts)
        if strangers:
            yield PolicyFinding(
                Problem.UNKNOWN_HOST_MODEL,
                f"{path}.models",
                f"Clients cannot ask for {', '.join(map(repr, strangers))}: add it to spec.hostModels or remove it.",
            )
        for number, header in enumerate(rule.match.headers):
            if header.name == spec.data_policy.class_header and header.value not in classes:
                yield PolicyFinding(
                    Problem.UNKNOWN_DATA_CLASS,
                    f"{path}.headers[{number}].value",
                    f"{header.value!r} is not one of spec.dataPolicy.classes{_known(classes)}: requests that carry it "
                    f"count as {spec.data_policy.unknown_class!r}. Add the class or correct the value.",
                )
        for earlier in spec.rules[:index]:
            if covers(earlier.match, rule.match):
                yield PolicyFinding(
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
                yield PolicyFinding(
                    Problem.UNKNOWN_TASK,
                    f"spec.classifier.tasks[{index}].name",
                    f"No rule matches the task {task.name!r}. Add it to a rule's match.tasks or remove it here.",
                )


def _first_targets(route: RouteSpec) -> set[str]:
    """The targets that a route may ask first."""
    return {share.target for share in route.split if share.weight > 0} | {item.target for item in route.preference}


def _preferences(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    for path, name, route in _routes(spec):
        for index, item in enumerate(route.preference):
            last = index == len(route.preference) - 1
            if not last and not item.evaluations:
                yield PolicyFinding(
                    Problem.BAD_PREFERENCE,
                    f"{path}.preference[{index}].evaluations",
                    f"Route {name!r} requires no evaluation of {item.target!r}, so that the targets after it would "
                    "never be asked. Name evaluations, or make it the last.",
                )
            if last and item.evaluations:
                yield PolicyFinding(
                    Problem.BAD_PREFERENCE,
                    f"{path}.preference[{index}].evaluations",
                    f"{item.target!r} is the last target of route {name!r}, which takes the traffic when no other "
                    "may: remove its evaluations, or add a target after it.",
                )
        percents = [step.percent for step in route.promotion.steps] if route.promotion is not None else []
        if percents != sorted(percents):
            yield PolicyFinding(
                Problem.BAD_PREFERENCE,
                f"{path}.promotion.steps",
                f"The steps of route {name!r} take {', '.join(map(str, percents))} %. List them by rising percent.",
            )


def _shadows(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    priceless = {target.name for target in spec.targets if target.external and target.external.price is None}
    for path, name, route in _routes(spec):
        if route.shadow is not None and route.shadow.target in priceless:
            yield PolicyFinding(
                Problem.SHADOW_WITHOUT_PRICE,
                f"{path}.shadow.target",
                f"What copies of route {name!r} cost cannot be counted for maxUSDPerDay: set external.price of target "
                f"{route.shadow.target!r}.",
            )


def _escalations(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    for path, name, route in _routes(spec):
        escalation = route.escalation
        if escalation is None:
            continue
        if _first_targets(route) == {escalation.target}:
            yield PolicyFinding(
                Problem.ESCALATES_TO_ITSELF,
                f"{path}.escalation.target",
                f"Route {name!r} asks {escalation.target!r} first, so a bad answer would be asked of it again. "
                "Escalate to another target.",
            )
        if escalation.confidence is not None and not sound(escalation.confidence):
            yield PolicyFinding(
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


def _limits(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    priceless = [target.name for target in spec.targets if target.external and target.external.price is None]
    for index, budget in enumerate(spec.limits.budgets):
        if priceless:
            yield PolicyFinding(
                Problem.BUDGET_WITHOUT_PRICE,
                f"spec.limits.budgets[{index}]",
                f"Budget {budget.name!r} cannot count what {_listed(priceless)} costs: set external.price there.",
            )
    scopes = [(f"rates[{index}]", limit.name, limit.per) for index, limit in enumerate(spec.limits.rates)]
    scopes += [(f"budgets[{index}]", limit.name, limit.per) for index, limit in enumerate(spec.limits.budgets)]
    for path, name, per in scopes:
        if per is Scope.CLIENT and not (spec.clients or spec.clients_from or spec.token_login):
            yield PolicyFinding(
                Problem.LIMIT_WITHOUT_CLIENTS,
                f"spec.limits.{path}.per",
                f"{name!r} counts by client, and spec.clients is empty, so that all count as one. Add clients, or "
                "count per Policy or Team.",
            )


def _sovereignty(spec: RoutingPolicySpec) -> Iterator[PolicyFinding]:
    allowed = {c.name: allowed_targets(spec.targets, spec.data_policy, c.name) for c in spec.data_policy.classes}
    for index, data_class in enumerate(spec.data_policy.classes):
        if not allowed[data_class.name]:
            yield PolicyFinding(
                Problem.CLASS_WITHOUT_TARGET,
                f"spec.dataPolicy.classes[{index}]",
                f"No target may take data of class {data_class.name!r}, so each such request would be refused. "
                "Allow another boundary or region, or add a target.",
            )
    anywhere = frozenset().union(*allowed.values())
    known = {target.name for target in spec.targets}
    for path, name in _uses(spec):
        if name in known and name not in anywhere:
            yield PolicyFinding(
                Problem.OUTSIDE_EVERY_CLASS,
                path,
                f"Target {name!r} lies outside every data class, so it can never be used. "
                "Allow its boundary or region in a class, or remove it here.",
            )
    default = spec.default_route
    targets = _first_targets(default)
    targets.update(default.fallback.targets if default.fallback else ())
    for index, data_class in enumerate(spec.data_policy.classes):
        if allowed[data_class.name] and not targets & allowed[data_class.name]:
            yield PolicyFinding(
                Problem.ROUTE_CLOSED,
                f"spec.dataPolicy.classes[{index}]",
                f"spec.defaultRoute has no target that may take data of class {data_class.name!r}. "
                f"Add one of {_listed(allowed[data_class.name])} to its fallback.targets.",
            )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _known(names: Collection[str]) -> str:
    return f" ({_listed(names)})" if names else ""


def choices_of(body: Mapping[str, Any]) -> tuple[Choice, ...]:
    """The answers of a whole body of chat/completions or completions. What is odd in it is left out."""
    return tuple([_whole(choice) for choice in _maps(body.get("choices"))])


def _whole(choice: Mapping[str, Any]) -> Choice:
    said = choice.get("message")
    if not isinstance(said, dict):
        said = {"content": choice.get("text")}
    text, refusal, reason = said.get("content"), said.get("refusal"), choice.get("finish_reason")
    calls, probabilities = said.get("tool_calls"), choice.get("logprobs")
    return Choice(
        text if isinstance(text, str) else "",
        tuple(_call(call.get("function")) for call in _maps(calls)) if calls else (),
        reason if isinstance(reason, str) else None,
        isinstance(refusal, str) and bool(refusal),
        tuple(_maps(probabilities.get("content"))) if isinstance(probabilities, dict) else (),
    )


def _call(function: Any) -> ToolCall:
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    return ToolCall(name if isinstance(name, str) else "", arguments if isinstance(arguments, str) else "")


@dataclass(slots=True)
class _Open:
    """One answer as far as it has come."""

    text: list[str] = field(default_factory=list)
    names: dict[Any, str] = field(default_factory=dict)
    arguments: dict[Any, list[str]] = field(default_factory=dict)
    finish_reason: str | None = None
    refusal: bool = False
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)


class Collector:
    """Puts the chunks of a stream together; `pieces` counts those that brought something."""

    def __init__(self) -> None:
        self._open: dict[Any, _Open] = {}
        self.pieces = 0

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk."""
        for choice in _maps(chunk.get("choices")):
            answer = self._open.setdefault(_key(choice.get("index")), _Open())
            said = choice.get("delta") or {"content": choice.get("text")}
            if isinstance(said, dict):
                self._say(answer, said)
            if isinstance(choice.get("finish_reason"), str):
                answer.finish_reason = choice["finish_reason"]
            probabilities = choice.get("logprobs")
            if isinstance(probabilities, dict):
                answer.logprobs += _maps(probabilities.get("content"))

    def choices(self) -> tuple[Choice, ...]:
        """The answers so far."""
        return tuple(
            Choice(
                text="".join(answer.text),
                tool_calls=tuple(
                    ToolCall(answer.names.get(key, ""), "".join(parts)) for key, parts in answer.arguments.items()
                ),
                finish_reason=answer.finish_reason,
                refusal=answer.refusal,
                logprobs=tuple(answer.logprobs),
            )
            for answer in self._open.values()
        )

    def _say(self, answer: _Open, said: Mapping[str, Any]) -> None:
        text, refusal = said.get("content"), said.get("refusal")
        if said.get("reasoning_content") or said.get("reasoning"):
            # What a model thinks is no part of its answer, but the client waits while it thinks.
            self.pieces += 1
        if isinstance(text, str) and text:
            answer.text.append(text)
            self.pieces += 1
        if isinstance(refusal, str) and refusal:
            answer.refusal = True
            self.pieces += 1
        for place, call in enumerate(_maps(said.get("tool_calls"))):
            key = _key(call.get("index", place))
            parts = answer.arguments.setdefault(key, [])
            function = call.get("function")
            if not isinstance(function, dict):
                continue
            if isinstance(function.get("name"), str):
                answer.names[key] = function["name"]
            if isinstance(function.get("arguments"), str):
                parts.append(function["arguments"])
                self.pieces += 1


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _key(value: Any) -> int:
    return value if isinstance(value, int) else 0
