"""RoutingPolicy: which tasks go to which model, and which data may leave the cluster."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.meta import Condition, ObjectMeta
from flotilla.api.model_deployment import SecretKeyRef
from flotilla.api.types import Atomic, Cel, DnsLabel, ListMap, ListSet, Model

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._:/A-Za-z0-9]*$", min_length=1, max_length=200)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9]*$", min_length=1, max_length=63)]
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-_a-z0-9]*$", min_length=1, max_length=63)]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9]*$", min_length=1, max_length=63)]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
Count = Annotated[int, Field(ge=0, le=10_000)]


class Boundary(StrEnum):
    """Whether a request stays in the cluster."""

    CLUSTER = "Cluster"
    EXTERNAL = "External"


class Streaming(StrEnum):
    """Whether the client asked for a stream."""

    STREAMED = "Streamed"
    WHOLE = "Whole"


class ModelDeploymentRef(Model):
    """A ModelDeployment of the same namespace."""

    name: DnsLabel
    """name of the ModelDeployment."""


class ExternalTarget(Model):
    """A hosted model behind an OpenAI-compatible API."""

    base_url: Annotated[
        str,
        StringConstraints(
            pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[-A-Za-z0-9._~/]*)?$", min_length=10, max_length=500
        ),
        Field(alias="baseURL"),
    ]
    """baseURL of the API, https only and without credentials, such as https://api.openai.com/v1."""
    model: ModelName
    """model as the provider names it."""
    secret_ref: SecretKeyRef
    """secretRef names the key of a Secret that holds the API key."""


class Target(Model):
    """A place that requests can go to."""

    name: DnsLabel
    """name by which routes refer to the target."""
    model_deployment_ref: ModelDeploymentRef | None = None
    """modelDeploymentRef is a ModelDeployment of this namespace."""
    external: ExternalTarget | None = None
    """external is a hosted model."""
    region: Region | None = None
    """region where the target processes data, for data classes that allow only some."""


_TARGET = Cel(
    "has(self.modelDeploymentRef) != has(self.external)",
    "each item of spec.targets needs exactly one of modelDeploymentRef and external",
)


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


class HeaderMatch(Model):
    """A request header and the value that it must have."""

    name: HeaderName
    """name of the header, in lower case."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """value that the header must have exactly."""


class TokenRange(Model):
    """A range of prompt tokens, both ends included."""

    min: Tokens | None = None
    """min is the fewest tokens that match."""
    max: Tokens | None = None
    """max is the most tokens that match."""


class ToolRange(Model):
    """A range of the number of tools in a request, both ends included."""

    min: Count | None = None
    """min is the fewest tools that match."""
    max: Count | None = None
    """max is the most tools that match."""


_RANGE = Cel("!has(self.min) || !has(self.max) || self.min <= self.max", "min must not exceed max")


class Match(Model):
    """What a request must be for the rule to apply; all that is given must hold. Empty matches everything."""

    models: Annotated[list[ModelName], ListSet(32)] = Field(default_factory=list)
    """models that the client may have asked for; one must match."""
    tasks: Annotated[list[TaskName], ListSet(32)] = Field(default_factory=list)
    """tasks of the header x-flotilla-task; one must match."""
    headers: Annotated[list[HeaderMatch], ListMap(("name",), 8)] = Field(default_factory=list)
    """headers that must all match."""
    prompt_tokens: Annotated[TokenRange, _RANGE] | None = None
    """promptTokens is the range of the prompt's length."""
    tools: Annotated[ToolRange, _RANGE] | None = None
    """tools is the range of the number of tools offered."""
    streaming: Streaming | None = None
    """streaming matches requests that ask for a stream, or those that do not."""


class WeightedTarget(Model):
    """A share of the traffic."""

    target: DnsLabel
    """target by name."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """weight relative to the others of the split."""


class Route(Model):
    """Where matching requests go."""

    split: Annotated[list[WeightedTarget], ListMap(("target",), 16)] = Field(min_length=1)
    """split the requests over targets by weight."""
    fallback_targets: Annotated[list[DnsLabel], Atomic(8)] = Field(default_factory=list)
    """fallbackTargets are tried in order when the chosen one fails before its first byte."""
    escalation_target: DnsLabel | None = None
    """escalationTarget is asked when the answer of the chosen one is not good enough."""


_WEIGHTS = Cel("self.split.exists(s, s.weight > 0)", "at least one weight of a split must be greater than 0")


class Rule(Model):
    """The first rule that matches decides."""

    name: DnsLabel
    """name of the rule, in metrics and the decision header."""
    match: Match = Match()
    """match says which requests the rule is for."""
    route: Annotated[Route, _WEIGHTS]
    """route says where they go."""


class DefaultRoute(Model):
    """Where requests go that no rule matches."""

    target: DnsLabel
    """target by name."""
    fallback_targets: Annotated[list[DnsLabel], Atomic(8)] = Field(default_factory=list)
    """fallbackTargets are tried in order when the target fails before its first byte."""


class RoutingPolicySpec(Model):
    """What is wanted."""

    host_models: Annotated[list[ModelName], ListSet(64)] = Field(min_length=1)
    """hostModels are the model names that clients may ask this policy for."""
    targets: Annotated[list[Annotated[Target, _TARGET]], ListMap(("name",), 64)] = Field(min_length=1)
    """targets are the only places that traffic can go to."""
    data_policy: Annotated[DataPolicy, _UNKNOWN_CLASS]
    """dataPolicy says which data may go where; it fails closed."""
    rules: Annotated[list[Rule], ListMap(("name",), 64)] = Field(default_factory=list)
    """rules in order; the first that matches decides."""
    default_route: DefaultRoute
    """defaultRoute takes what no rule matches: there is no implicit one."""


class RoutingPolicyStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Accepted, ResolvedRefs, SovereigntyEnforceable, Programmed; Ready, Reconciling and Stalled sum up."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""


class RoutingPolicy(Model):
    """RoutingPolicy routes OpenAI requests over self-hosted and hosted models."""

    metadata: ObjectMeta
    spec: RoutingPolicySpec
