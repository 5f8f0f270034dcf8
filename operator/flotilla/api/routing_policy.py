"""RoutingPolicy: which tasks go to which model, which data may leave the cluster, and what it may cost."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.meta import Condition, ObjectMeta
from flotilla.api.routes import WEIGHTS, HeaderName, Route, Rule, TaskName
from flotilla.api.secrets import SecretKeyRef
from flotilla.api.targets import ONE_PLACE, Boundary, ModelName, Region, Target
from flotilla.api.types import Cel, DnsLabel, ListMap, ListSet, Model, Usd


class Scope(StrEnum):
    """What a limit is counted by."""

    POLICY = "Policy"
    CLIENT = "Client"
    """The client whose key was shown; requests without one count together."""
    TEAM = "Team"
    """The header x-flotilla-team, which is the caller's own word; requests without one count together."""


class OnExceeded(StrEnum):
    """What a spent budget does."""

    REJECT = "Reject"
    CLUSTER_ONLY = "ClusterOnly"


class DataClass(Model):
    """Where data of one class may go."""

    name: DnsLabel
    """name of the class, as the header carries it."""
    allow_boundaries: Annotated[list[Boundary], ListSet(2)] = Field(min_length=1)
    """allowBoundaries are Cluster, External or both."""
    allow_regions: Annotated[list[Region], ListSet(32)] = Field(default_factory=list)
    """allowRegions restricts to targets in these regions; without it every region is allowed."""


class DataPolicy(Model):
    """Sovereignty: computed once per request, and nothing later can widen it."""

    class_header: HeaderName = "x-data-class"
    """classHeader is the request header that names the data class."""
    unknown_class: DnsLabel
    """unknownClass is taken when the header is missing or names no class. Choose the strictest."""
    classes: Annotated[list[DataClass], ListMap(("name",), 16)] = Field(min_length=1)
    """classes of data."""


_UNKNOWN_CLASS = Cel(
    "self.classes.exists(c, c.name == self.unknownClass)",
    "spec.dataPolicy.unknownClass must be the name of one of spec.dataPolicy.classes",
    field_path=".unknownClass",
)


class Client(Model):
    """Somebody who may send requests, known by an API key."""

    name: DnsLabel
    """name of the client, for limits and the access log."""
    secret_ref: SecretKeyRef
    """secretRef names the key of a Secret that holds the client's API key."""
    data_class: DnsLabel | None = None
    """dataClass of everything that the client sends. The header can only narrow further where it may go."""


class ClassifierTask(Model):
    """A task that the classifier may choose."""

    name: TaskName
    """name of the task, as rules match it."""
    description: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """description that tells the model which requests the task is made of."""


class Classifier(Model):
    """A small model that names the task of a request without the header x-flotilla-task."""

    target: DnsLabel
    """target that is asked. Data that may not go there is not classified."""
    tasks: Annotated[list[ClassifierTask], ListMap(("name",), 32)] = Field(min_length=2)
    """tasks to choose from."""
    max_prompt_bytes: Annotated[int, Field(ge=100, le=100_000)] = 4000
    """maxPromptBytes of the last user message that the classifier reads."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """timeoutSeconds after which the request goes on without a task."""


class RateLimit(Model):
    """How much may come in a minute."""

    name: DnsLabel
    """name of the limit, in errors."""
    per: Scope = Scope.POLICY
    """per Policy, Client or Team."""
    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """requestsPerMinute that are let through."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=2_000_000_000)] | None = None
    """tokensPerMinute of prompts and answers that are let through."""


_SOME_RATE = Cel(
    "has(self.requestsPerMinute) || has(self.tokensPerMinute)",
    "each item of spec.limits.rates needs requestsPerMinute or tokensPerMinute",
)


class Budget(Model):
    """How much hosted models may cost."""

    name: DnsLabel
    """name of the budget, in errors and metrics."""
    per: Scope = Scope.POLICY
    """per Policy, Client or Team."""
    window_hours: Annotated[int, Field(ge=1, le=8784)] = 720
    """windowHours after which the budget is whole again."""
    amount_usd: Annotated[Usd, Field(alias="amountUSD")]
    """amountUSD that may be spent in a window."""
    on_exceeded: OnExceeded = OnExceeded.REJECT
    """onExceeded is Reject, or ClusterOnly to go on without hosted models."""


class Limits(Model):
    """Bounds on traffic and spending."""

    rates: Annotated[list[Annotated[RateLimit, _SOME_RATE]], ListMap(("name",), 16)] = Field(default_factory=list)
    """rates that all must allow a request."""
    budgets: Annotated[list[Budget], ListMap(("name",), 16)] = Field(default_factory=list)
    """budgets that all must have room for a request."""


class Hold(Model):
    """How requests wait for a model that has no replica yet."""

    max_wait_seconds: Annotated[int, Field(ge=0, le=1800)] = 120
    """maxWaitSeconds of a request; 0 lets none wait."""
    max_requests: Annotated[int, Field(ge=1, le=100_000)] = 200
    """maxRequests that wait at one time in one replica of the gateway."""
    max_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 64 * 2**20
    """maxBytes that waiting requests hold at one time in one replica of the gateway."""


class RoutingPolicySpec(Model):
    """What is wanted."""

    host_models: Annotated[list[ModelName], ListSet(64)] = Field(min_length=1)
    """hostModels are the model names that clients may ask this policy for."""
    targets: Annotated[list[Annotated[Target, ONE_PLACE]], ListMap(("name",), 64)] = Field(min_length=1)
    """targets are the only places that traffic can go to."""
    data_policy: Annotated[DataPolicy, _UNKNOWN_CLASS]
    """dataPolicy says which data may go where; it fails closed."""
    clients: Annotated[list[Client], ListMap(("name",), 64)] = Field(default_factory=list)
    """clients that may send requests; without any, everybody who reaches the gateway may."""
    teams: Annotated[list[DnsLabel], ListSet(64)] = Field(default_factory=list)
    """teams that metrics tell apart by the header x-flotilla-team; others count as their client, or as other."""
    classifier: Classifier | None = None
    """classifier names the task of requests that do not name it themselves."""
    rules: Annotated[list[Rule], ListMap(("name",), 64)] = Field(default_factory=list)
    """rules in order; the first that matches decides."""
    default_route: Annotated[Route, WEIGHTS]
    """defaultRoute takes what no rule matches: there is no implicit one."""
    limits: Limits = Limits()
    """limits on traffic and spending."""
    hold: Hold = Hold()
    """hold bounds the waiting for a model that has no replica yet."""


class RoutingPolicyStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Accepted, ResolvedRefs, SovereigntyEnforceable, Programmed; Ready, Reconciling and Stalled sum up."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    endpoint: Annotated[str, StringConstraints(max_length=253)] | None = None
    """endpoint is the base URL for OpenAI clients inside the cluster."""
    config_hash: Annotated[str, StringConstraints(max_length=64)] | None = None
    """configHash of the document that every replica of the gateway is to serve, and reports at /config."""
    programmed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """programmedGeneration is the generation of this policy that the document holds: the last sound one."""


class RoutingPolicy(Model):
    """RoutingPolicy routes OpenAI requests over self-hosted and hosted models."""

    metadata: ObjectMeta
    spec: RoutingPolicySpec
