"""All that the gateway of one namespace needs to serve, as one document that is compiled from its RoutingPolicies.

The document is the record of what was accepted: a policy that turns bad stays in it in its last sound form.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import orjson
from pydantic import ConfigDict, ValidationError

from flotilla.api.preference import RouteStatus
from flotilla.api.routing_policy import (
    Boundary,
    Capabilities,
    CaptureSpec,
    Classifier,
    Client,
    DataPolicy,
    ExternalTarget,
    Hold,
    LimitsSpec,
    Price,
    RouteSpec,
    RoutingPolicy,
    RuleSpec,
    TokenLogin,
)
from flotilla.api.routing_policy import TargetSpec as TargetSpec
from flotilla.api.types import Model, SecretKeyRef
from flotilla.errors import InvalidSpec
from flotilla.routing.promotion import advance, served

MOUNT_PATH = "/etc/flotilla"
"""One projected volume: the document and the keys change together, each in one step."""
DOCUMENT_FILE = "document.json"
DEFAULT_RULE = "default"
"""The name under which `defaultRoute` is reported."""
KEYS_FOLDER = "keys"
"""Under it each Secret's key is a file of `key_file`."""


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """What routing must know of a ModelDeployment; the Service of its pods has its name."""

    name: str
    served_name: str
    engine: str
    adapters: tuple[str, ...] = ()
    context_length: int | None = None
    """Tokens of prompt and answer together; None where the engine decides."""


def facts_of(deployment: Mapping[str, Any]) -> DeploymentFacts:
    """Read a ModelDeployment's manifest or live object. Its context length is known once the model was fitted."""
    spec, fit = deployment.get("spec") or {}, (deployment.get("status") or {}).get("fit") or {}
    name, model = deployment["metadata"]["name"], spec.get("model") or {}
    return DeploymentFacts(
        name=name,
        served_name=model.get("servedName") or name,
        engine=(spec.get("engine") or {}).get("name") or "",
        adapters=tuple(adapter["name"] for adapter in model.get("adapters") or ()),
        context_length=model.get("contextLength") or fit.get("contextLength"),
    )


class _Part(Model):
    """The writer and the reader may be of different releases: what the reader does not know, it must not ignore."""

    model_config = ConfigDict(extra="forbid")


class ClusterEndpoint(_Part):
    """Pods of a ModelDeployment: the ready endpoints of its Service, by EndpointSlices with that Service's name."""

    model_deployment: str
    served_model: str
    """What the pods call the model; replaces `model` in requests."""
    engine: str
    adapter: str | None = None
    """The adapter that is asked instead of the model itself."""
    lora_scales: tuple[int, ...] | None = None
    """For an engine that knows adapters by number: 1 for the one that requests shall get, 0 for each other.

    All are named: after an answer with an adapter, llama.cpp's cache is wrong for a request that names none."""


class HostedEndpoint(_Part):
    """A hosted API."""

    provider: str
    """A value of `Provider`."""
    base_url: str
    served_model: str
    base_model: str | None = None
    """The model whose rules apply, where `served_model` is the name of a deployment."""
    api_version: str | None = None
    secret_ref: SecretKeyRef
    """The API key; the gateway finds it under `key_file`."""

    @property
    def key_file(self) -> str:
        """Path of the API key below the folder of keys."""
        return key_file(self.secret_ref)


class Target(_Part):
    """A place that a request can go to: exactly one of `cluster` and `hosted`."""

    name: str
    region: str | None = None
    capabilities: Capabilities = Capabilities()
    cluster: ClusterEndpoint | None = None
    hosted: HostedEndpoint | None = None
    price: Price | None = None
    """Of hosted targets; absent where unknown."""

    @property
    def served_model(self) -> str:
        """The model name at the target."""
        endpoint = self.cluster or self.hosted
        assert endpoint is not None
        return endpoint.served_model

    @property
    def boundary(self) -> Boundary:
        """Derived, because a declaration could contradict it."""
        return Boundary.CLUSTER if self.hosted is None else Boundary.EXTERNAL


class DataClass(_Part):
    """Where data of a class may go; computed once, by the compiler."""

    name: str
    allowed: tuple[str, ...]


class Policy(_Part):
    """One RoutingPolicy in a sound form, with its targets resolved."""

    name: str
    uid: str
    generation: int
    host_models: tuple[str, ...]
    targets: tuple[Target, ...]
    classes: tuple[DataClass, ...]
    class_header: str
    unknown_class: str
    clients: tuple[Client, ...] = ()
    clients_from: SecretKeyRef | None = None
    token_login: TokenLogin | None = None
    teams: tuple[str, ...] = ()
    classifier: Classifier | None = None
    rules: tuple[RuleSpec, ...] = ()
    default_route: RouteSpec
    limits: LimitsSpec = LimitsSpec()
    hold: Hold = Hold()
    capture: CaptureSpec | None = None
    routes: tuple[RouteStatus, ...] = ()
    """State of the promotion of each rule with a preference; `rules` and `default_route` hold its shares as splits."""

    @cached_property
    def revision(self) -> str:
        """Eight hex digits for the decision header, of what the policy means and not of its generation."""
        meaning = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"uid", "generation", "routes"}
        )
        return hashlib.sha256(_canonical(meaning)).hexdigest()[:8]

    @cached_property
    def size(self) -> int:
        """Bytes that it takes in the document."""
        return len(_canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))) + 1

    @cached_property
    def target(self) -> Mapping[str, Target]:
        """Targets by name."""
        return {target.name: target for target in self.targets}

    @cached_property
    def allowed(self) -> Mapping[str, frozenset[str]]:
        """Names of the targets that data of a class may go to, by class."""
        return {data_class.name: frozenset(data_class.allowed) for data_class in self.classes}

    @cached_property
    def hosted(self) -> frozenset[str]:
        """Names of the targets outside of the cluster."""
        return frozenset(target.name for target in self.targets if target.hosted is not None)

    @cached_property
    def client_files(self) -> tuple[SecretKeyRef, ...]:
        """The Secrets that say who may call: files, and not single keys."""
        files = (self.clients_from, None if self.token_login is None else self.token_login.jwks_from)
        return tuple(file for file in files if file is not None)

    @cached_property
    def guarded(self) -> bool:
        """Whether a request must show a key or a token."""
        return bool(self.clients or self.client_files)

    @cached_property
    def team_names(self) -> frozenset[str]:
        """Values of the header x-flotilla-team that metrics know."""
        return frozenset(self.teams)

    @cached_property
    def comparators(self) -> tuple[str, ...]:
        """Targets that the traffic's cost is compared with: hosted ones with a price."""
        return tuple(target.name for target in self.targets if target.price is not None)

    @cached_property
    def headers(self) -> frozenset[str]:
        """Names of the headers that rules look at, in lower case."""
        return frozenset(header.name for rule in self.rules for header in rule.match.headers)

    @cached_property
    def route_status(self) -> Mapping[str, RouteStatus]:
        """Where the traffic of a rule with a preference goes, by the rule's name."""
        return {status.name: status for status in self.routes}

    def named_routes(self) -> Iterator[tuple[str, RouteSpec]]:
        """Name and route of each rule, the default's last."""
        yield from ((rule.name, rule.route) for rule in self.rules)
        yield DEFAULT_RULE, self.default_route

    def with_routes(self, routes: Mapping[str, RouteStatus]) -> "Policy":
        """The same policy with its traffic as these states say, by rule; routes that are not named stay."""
        if not routes:
            return self
        rules = tuple(
            rule.model_copy(update={"route": served(rule.route, routes[rule.name])}) if rule.name in routes else rule
            for rule in self.rules
        )
        default = self.default_route
        fields = {name: getattr(self, name) for name in Policy.model_fields}
        changed = {
            "rules": rules,
            "default_route": served(default, routes[DEFAULT_RULE]) if DEFAULT_RULE in routes else default,
            "routes": tuple(routes[name] for name in sorted(routes)),
        }
        return Policy(**{**fields, **changed})

    @cached_property
    def matches_tasks(self) -> bool:
        """Whether any rule looks at the task."""
        return any(rule.match.tasks for rule in self.rules)


class GatewayDocument(_Part):
    """What one gateway serves."""

    format: Literal[1] = 1
    namespace: str
    allow_private_hosted_addresses: bool = False
    """Whether hosted targets may resolve to addresses that are not public: for tests on one machine only."""
    policies: tuple[Policy, ...] = ()

    @cached_property
    def text(self) -> bytes:
        """Canonical JSON, the content of the file."""
        return _canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file, as each replica reports it at /config."""
        return hashlib.sha256(self.text).hexdigest()

    @cached_property
    def by_model(self) -> Mapping[str, Policy]:
        """The policy of each model name that clients may ask for."""
        return {model: policy for policy in self.policies for model in policy.host_models}

    @cached_property
    def by_name(self) -> Mapping[str, Policy]:
        """Policies by name."""
        return {policy.name: policy for policy in self.policies}

    @cached_property
    def model_deployments(self) -> frozenset[str]:
        """Names of the ModelDeployments that any policy can reach."""
        return frozenset(
            target.cluster.model_deployment for policy in self.policies for target in policy.targets if target.cluster
        )

    @cached_property
    def secrets(self) -> tuple[SecretKeyRef, ...]:
        """The keys of Secrets to mount, those of clients and of hosted targets, each once and in order."""
        found = {
            (secret.name, secret.key): secret
            for policy in self.policies
            for secret in (
                *(client.secret_ref for client in policy.clients),
                *policy.client_files,
                *(target.hosted.secret_ref for target in policy.targets if target.hosted),
            )
        }
        return tuple(found[pair] for pair in sorted(found))


def load_document(text: bytes) -> GatewayDocument:
    """Read a file, with the defaults for what an older release did not write; its hash is that of the file.

    Raises InvalidSpec for what is not a document, and for fields that this release does not know: to ignore a bound on
    where data may go would be worse than to go on with the document before.
    """
    try:
        document = GatewayDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _unknown(where or "its start", first["msg"]) from error
    if (strange := _unread(orjson.loads(text), orjson.loads(document.text))) is not None:
        raise _unknown(strange, "it is not known")
    document.__dict__["text"] = text
    return document


def _unread(given: Any, read: Any, path: str = "") -> str | None:
    """The path of something in `given` that is not in `read`, None where all of it is."""
    if isinstance(given, dict) and isinstance(read, dict):
        pairs = ((f"{path}.{key}".lstrip("."), value, read.get(key)) for key, value in given.items())
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = ((f"{path}.{n}", value, read[n]) for n, value in enumerate(given))
    else:
        return None if given == read else path
    return next((found for where, one, other in pairs if (found := _unread(one, other, where)) is not None), None)


def _unknown(where: str, why: str) -> InvalidSpec:
    return InvalidSpec(
        f"The routing document cannot be served because of {where}: {why}. Upgrade the gateway and the operator "
        "together; the operator writes the ConfigMap anew when it is deleted.",
        field=where,
    )


def compile_policy(policy: RoutingPolicy, deployments: Mapping[str, DeploymentFacts]) -> Policy:
    """Resolve targets and data classes. A ModelDeployment that does not exist yet is a target without endpoints."""
    spec = policy.spec
    compiled = Policy(
        name=policy.metadata.name,
        uid=policy.metadata.uid,
        generation=policy.metadata.generation,
        host_models=tuple(spec.host_models),
        targets=tuple(_target(target, deployments) for target in spec.targets),
        classes=tuple(
            DataClass(name=c.name, allowed=tuple(sorted(allowed_targets(spec.targets, spec.data_policy, c.name))))
            for c in spec.data_policy.classes
        ),
        class_header=spec.data_policy.class_header,
        unknown_class=spec.data_policy.unknown_class,
        clients=tuple(spec.clients),
        clients_from=spec.clients_from,
        token_login=spec.token_login,
        teams=tuple(spec.teams),
        classifier=spec.classifier,
        rules=tuple(spec.rules),
        default_route=spec.default_route,
        limits=spec.limits,
        hold=spec.hold,
        capture=spec.capture,
    )
    if not any(route.preference for _, route in compiled.named_routes()):
        return compiled
    # Nothing is known of any target yet, so that all traffic goes to the pilots; the state itself begins later.
    pilots = {
        name: advance(name, route.preference, route.promotion, None, {}, {}, 0).status
        for name, route in compiled.named_routes()
        if route.preference
    }
    started = compiled.with_routes(pilots)
    return Policy(**{**{name: getattr(started, name) for name in Policy.model_fields}, "routes": ()})


def boundary(target: TargetSpec) -> Boundary:
    """A ModelDeployment is in the cluster, a hosted model is not; a declaration could contradict that."""
    return Boundary.CLUSTER if target.external is None else Boundary.EXTERNAL


def allowed_targets(targets: Iterable[TargetSpec], policy: DataPolicy, data_class: str) -> frozenset[str]:
    """Names of the targets that data of a class may go to; an unknown class gets those of `unknownClass`."""
    classes = {c.name: c for c in policy.classes}
    chosen = classes.get(data_class) or classes.get(policy.unknown_class)
    if chosen is None:
        return frozenset()
    return frozenset(
        target.name
        for target in targets
        if boundary(target) in chosen.allow_boundaries
        and (not chosen.allow_regions or target.region in chosen.allow_regions)
    )


def key_file(secret: SecretKeyRef) -> str:
    """Path of a Secret's key below the folder of keys: short enough for a file name, and no other key's path."""
    return f"{secret.name[:40]}-{hashlib.sha256(f'{secret.name}/{secret.key}'.encode()).hexdigest()[:12]}/key"


def _target(target: TargetSpec, deployments: Mapping[str, DeploymentFacts]) -> Target:
    if target.external is not None:
        return Target(
            name=target.name,
            region=target.region,
            capabilities=target.capabilities,
            hosted=_hosted(target.external),
            price=target.external.price,
        )
    reference = target.model_deployment_ref
    assert reference is not None
    facts = deployments.get(reference.name) or DeploymentFacts(reference.name, reference.name, "")
    served, lora_scales = _model_of(facts, reference.adapter)
    capabilities = target.capabilities
    if capabilities.context_length is None and facts.context_length is not None:
        capabilities = capabilities.model_copy(update={"context_length": facts.context_length})
    return Target(
        name=target.name,
        region=target.region,
        capabilities=capabilities,
        cluster=ClusterEndpoint(
            model_deployment=reference.name,
            served_model=served,
            engine=facts.engine,
            adapter=reference.adapter,
            lora_scales=lora_scales,
        ),
    )


def _model_of(facts: DeploymentFacts, adapter: str | None) -> tuple[str, tuple[int, ...] | None]:
    """The model that requests name, and the adapters' scales where these say which one is meant."""
    if facts.engine == "llamacpp" and facts.adapters:
        return facts.served_name, tuple(int(name == adapter) for name in facts.adapters)
    if adapter is None:
        return facts.served_name, None
    return (f"{facts.served_name}:{adapter}" if facts.engine == "sglang" else adapter), None


def _hosted(external: ExternalTarget) -> HostedEndpoint:
    return HostedEndpoint(
        provider=str(external.provider),
        base_url=external.base_url.rstrip("/"),
        served_model=external.model,
        base_model=external.base_model,
        api_version=external.api_version,
        secret_ref=external.secret_ref,
    )


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
