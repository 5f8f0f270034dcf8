"""The RoutingPolicy resource: targets, rules and limits of a namespace's gateway, and its status."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.preference import RISING_STEPS, PreferredTarget, Promotion, RouteStatus, ShadowSpec
from flotilla.api.types import Atomic, Cel, Condition, DnsLabel, ListMap, ListSet, Model, ObjectMeta, SecretKeyRef, Usd

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._:/A-Za-z0-9]*$", min_length=1, max_length=200)]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9]*$", min_length=1, max_length=63)]


class Boundary(StrEnum):
    """Whether a request stays in the cluster."""

    CLUSTER = "Cluster"
    EXTERNAL = "External"


class Provider(StrEnum):
    """Whose API a hosted model has: its paths, its form of credentials, and the fields that it accepts."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"
    AZURE_OPENAI = "AzureOpenAI"
    BEDROCK = "Bedrock"
    GEMINI = "Gemini"
    VERTEX_AI = "VertexAI"
    MISTRAL = "Mistral"
    GROQ = "Groq"
    TOGETHER = "Together"


class SupportLevel(StrEnum):
    """Whether a target can do something; left out where it is unknown, and then it is tried."""

    SUPPORTED = "Supported"
    UNSUPPORTED = "Unsupported"


class ModelDeploymentRef(Model):
    """A ModelDeployment of the same namespace."""

    name: DnsLabel
    """name of the ModelDeployment."""
    adapter: ModelName | None = None
    """adapter of the ModelDeployment that is asked instead of the model itself."""


class ServiceTierPrice(Model):
    """A service tier and its price."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", min_length=1, max_length=40)]
    """name as the provider has it, such as priority or flex."""
    percent: Annotated[int, Field(ge=1, le=10_000)]
    """percent of the standard prices."""


class Price(Model):
    """What a hosted model costs, in US dollars per million tokens."""

    input_per_m_tok: Annotated[Usd, Field(alias="inputPerMTok")]
    """inputPerMTok is the price of a million prompt tokens."""
    output_per_m_tok: Annotated[Usd, Field(alias="outputPerMTok")]
    """outputPerMTok is the price of a million answer tokens."""
    cached_input_per_m_tok: Annotated[Usd | None, Field(alias="cachedInputPerMTok")] = None
    """cachedInputPerMTok is the price of a million prompt tokens from the provider's cache. Default: inputPerMTok."""
    cache_write_input_per_m_tok: Annotated[Usd | None, Field(alias="cacheWriteInputPerMTok")] = None
    """cacheWriteInputPerMTok is the price of a million prompt tokens that are written to the provider's cache. Default:
    inputPerMTok, and 1.25 times of it for Anthropic."""
    audio_input_per_m_tok: Annotated[Usd | None, Field(alias="audioInputPerMTok")] = None
    """audioInputPerMTok is the price of a million prompt tokens of sound. Default: inputPerMTok."""
    audio_output_per_m_tok: Annotated[Usd | None, Field(alias="audioOutputPerMTok")] = None
    """audioOutputPerMTok is the price of a million answer tokens of sound. Default: outputPerMTok."""
    service_tiers: Annotated[list[ServiceTierPrice], ListMap(("name",), 8)] = Field(default_factory=list)
    """serviceTiers that requests may ask for by service_tier. Others are left out of the request, which then has the
    standard tier."""


class ExternalTarget(Model):
    """A hosted model."""

    provider: Provider = Provider.OPENAI
    """provider is OpenAI for every OpenAI-compatible API, or the provider whose own API or credentials are needed."""
    base_url: Annotated[
        str,
        StringConstraints(
            pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[-A-Za-z0-9._~/]*)?$", min_length=10, max_length=500
        ),
        Field(alias="baseURL"),
    ]
    """baseURL of the API, https and a public host without credentials, such as https://api.openai.com/v1."""
    model: ModelName
    """model as the provider names it."""
    base_model: ModelName | None = None
    """baseModel is the model behind model, where model is the name of a deployment, such as gpt-5-mini on Azure."""
    api_version: Annotated[str, StringConstraints(pattern=r"^[-a-z0-9]+$", min_length=1, max_length=40)] | None = None
    """apiVersion of Azure's API by deployments. Without it Azure's v1 API is used, which has no versions."""
    secret_ref: SecretKeyRef
    """secretRef names the key of a Secret that holds the API key, or the provider's credentials as JSON."""
    price: Price | None = None
    """price of the model. Budgets need it."""


class Capabilities(Model):
    """What a target can do. A request goes to no target that is known to lack what it needs."""

    context_length: Annotated[int, Field(ge=256, le=100_000_000)] | None = None
    """contextLength is the most tokens of prompt and answer together. Default: that of the ModelDeployment."""
    max_output_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """maxOutputTokens is the longest answer. Under a budget it is reserved and sent as the bound of a request without
    one. Default: 4096."""
    tools: SupportLevel | None = None
    """tools is whether the model can call tools."""
    json_schema: SupportLevel | None = None
    """jsonSchema is whether answers can be constrained to a JSON schema."""
    vision: SupportLevel | None = None
    """vision is whether the model reads images."""


class TargetSpec(Model):
    """A place that requests can go to."""

    name: DnsLabel
    """name by which routes refer to the target."""
    model_deployment_ref: ModelDeploymentRef | None = None
    """modelDeploymentRef is a ModelDeployment of this namespace."""
    external: ExternalTarget | None = None
    """external is a hosted model."""
    region: Region | None = None
    """region where the target processes data, for data classes that allow only some."""
    capabilities: Capabilities = Capabilities()
    """capabilities of the target."""


ONE_PLACE = Cel(
    "has(self.modelDeploymentRef) != has(self.external)",
    "each item of spec.targets needs exactly one of modelDeploymentRef and external",
)


HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9]*$", min_length=1, max_length=63)]
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-_a-z0-9]*$", min_length=1, max_length=63)]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
Count = Annotated[int, Field(ge=0, le=10_000)]
Permille = Annotated[int, Field(ge=0, le=1000)]


class Streaming(StrEnum):
    """Whether the client asked for a stream."""

    STREAMED = "Streamed"
    WHOLE = "Whole"


class Failure(StrEnum):
    """How an attempt can fail before its first byte reached the client."""

    CONNECT = "Connect"
    """Refused, reset, or an answer that is not HTTP."""
    TIMEOUT = "Timeout"
    SERVER_ERROR = "ServerError"
    RATE_LIMITED = "RateLimited"
    UNAUTHORIZED = "Unauthorized"
    """401 or 403: the key that we hold is missing or wrong, which is no fault of the client."""
    NO_ENDPOINTS = "NoEndpoints"
    CONTEXT_LENGTH = "ContextLength"
    """The target refused the request because prompt and answer exceed its context length."""
    CONTENT_FILTER = "ContentFilter"
    """The target's content filter refused the request, or left the answer empty."""


class Signal(StrEnum):
    """What makes an answer not good enough."""

    SCHEMA_INVALID = "SchemaInvalid"
    FINISH_REASON_LENGTH = "FinishReasonLength"
    EMPTY_ANSWER = "EmptyAnswer"
    REPETITION = "Repetition"
    INVALID_TOOL_CALL = "InvalidToolCall"
    REFUSAL = "Refusal"
    LOW_CONFIDENCE = "LowConfidence"
    """By `confidence`, never by `signals`."""


class DeterministicSignal(StrEnum):
    """The signals that need no calibration."""

    SCHEMA_INVALID = "SchemaInvalid"
    FINISH_REASON_LENGTH = "FinishReasonLength"
    EMPTY_ANSWER = "EmptyAnswer"
    REPETITION = "Repetition"
    INVALID_TOOL_CALL = "InvalidToolCall"
    REFUSAL = "Refusal"


class ConfidenceMethod(StrEnum):
    """How confidence is measured."""

    MARGIN_P10 = "MarginP10"
    """The tenth percentile over the answer's tokens of p(first choice) - p(second choice)."""


class OnExhausted(StrEnum):
    """What the client gets when the escalated answer fails or is no better."""

    RETURN_BEST = "ReturnBest"
    FAIL = "Fail"


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


class MatchSpec(Model):
    """What a request must be for the rule to apply; all that is given must hold. Empty matches everything."""

    models: Annotated[list[ModelName], ListSet(32)] = Field(default_factory=list)
    """models that the client may have asked for; one must match."""
    tasks: Annotated[list[TaskName], ListSet(32)] = Field(default_factory=list)
    """tasks of the header x-flotilla-task, or of spec.classifier where the header is missing; one must match."""
    headers: Annotated[list[HeaderMatch], ListMap(("name",), 8)] = Field(default_factory=list)
    """headers that must all match."""
    prompt_tokens: Annotated[TokenRange, _RANGE] | None = None
    """promptTokens is the range of the prompt's length, estimated as a quarter of its bytes."""
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


class Fallback(Model):
    """Where a request goes when an attempt failed before its first byte."""

    targets: Annotated[list[DnsLabel], Atomic(8)] = Field(min_length=1)
    """targets are tried in order."""
    on: Annotated[list[Failure], ListSet(8)] = Field(
        default=[
            Failure.CONNECT,
            Failure.TIMEOUT,
            Failure.SERVER_ERROR,
            Failure.RATE_LIMITED,
            Failure.UNAUTHORIZED,
            Failure.NO_ENDPOINTS,
        ],
        min_length=1,
    )
    """on these failures. Without NoEndpoints a request waits for a model at zero by spec.hold. ContextLength and
    ContentFilter are refusals of the request itself; without them the client gets the refusal."""


class CalibrationPoint(Model):
    """One step of a calibration: of the answers with about this margin, so many were wrong."""

    margin_permille: Permille
    """marginPermille is the margin, in thousandths."""
    error_permille: Permille
    """errorPermille is the share of wrong answers, in thousandths."""


class Confidence(Model):
    """Escalate answers that are probably wrong, by a calibration on this model's own traffic."""

    method: ConfidenceMethod = ConfidenceMethod.MARGIN_P10
    """method of measuring."""
    escalate_above_error_permille: Annotated[int, Field(ge=1, le=999)]
    """escalateAboveErrorPermille is the probability of a wrong answer, in thousandths, above which to escalate."""
    calibration: Annotated[list[CalibrationPoint], ListMap(("marginPermille",), 64)] = Field(min_length=2)
    """calibration by rising margin, the error never rising. Make a new one when the model, its quantization, its engine
    or its chat template changes."""


class Escalation(Model):
    """Ask a better model when the answer is not good enough."""

    target: DnsLabel
    """target that is asked."""
    signals: Annotated[list[DeterministicSignal], ListSet(6)] = Field(default_factory=list)
    """signals of which one is enough."""
    confidence: Confidence | None = None
    """confidence escalates answers that a calibration calls doubtful; for short structured answers only."""
    on_exhausted: OnExhausted = OnExhausted.RETURN_BEST
    """onExhausted is what the client gets when the escalated attempt fails too."""
    max_rate_percent: Annotated[int, Field(ge=1, le=100)] = 20
    """maxRatePercent of the rule's requests that may escalate; above it answers are returned as they are."""
    max_added_latency_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """maxAddedLatencySeconds that the escalated attempt may take until its end."""
    max_buffered_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """maxBufferedTokens of a streamed answer are held back for judging; a longer one is passed on and not escalated."""


_SOME_SIGNAL = Cel(
    "(has(self.signals) && size(self.signals) > 0) || has(self.confidence)", "an escalation needs signals or confidence"
)


class Timeouts(Model):
    """How long one attempt may take."""

    first_token_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """firstTokenSeconds until the answer begins."""
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """idleSeconds between two pieces of an answer."""
    total_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """totalSeconds of the request, over all its attempts."""


class RouteSpec(Model):
    """Where matching requests go."""

    split: Annotated[list[WeightedTarget], ListMap(("target",), 16)] = Field(default_factory=list)
    """split the requests over targets by weight. Those of a session (x-session-id) stay on one target."""
    preference: Annotated[list[PreferredTarget], ListMap(("target",), 8)] = Field(default_factory=list)
    """preference lists targets from the cheapest to the pilot, instead of split: the first whose evaluations say
    Qualified about what it serves takes the traffic by the steps of the promotion; the others are its fallbacks."""
    promotion: Annotated[Promotion, RISING_STEPS] | None = None
    """promotion specifies how traffic moves to a preferred target that qualified. Default: 5 % for 10 minutes, 25 % for
    30, then all."""
    fallback: Fallback | None = None
    """fallback specifies where requests go when the chosen target fails; with a preference, after its own targets."""
    escalation: Annotated[Escalation, _SOME_SIGNAL] | None = None
    """escalation asks another target when the answer is not good enough."""
    shadow: ShadowSpec | None = None
    """shadow copies some of the requests to another target, to compare its answers."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """maxAttempts of one request, fallbacks and escalation included."""
    timeouts: Timeouts = Timeouts()
    """timeouts of an attempt."""


SPLIT_OR_PREFERENCE = Cel(
    "(has(self.split) && size(self.split) > 0) != (has(self.preference) && size(self.preference) > 0)",
    "a route needs exactly one of split and preference",
)
WEIGHTS = Cel(
    "!has(self.split) || size(self.split) == 0 || self.split.exists(s, s.weight > 0)",
    "at least one weight of a split must be greater than 0",
)
PROMOTION_OF_PREFERENCE = Cel(
    "!has(self.promotion) || (has(self.preference) && size(self.preference) > 0)", "a promotion needs a preference"
)


class RuleSpec(Model):
    """The first rule that matches decides."""

    name: DnsLabel
    """name of the rule, in metrics and the decision header."""
    match: MatchSpec = MatchSpec()
    """match specifies which requests the rule is for."""
    route: Annotated[RouteSpec, SPLIT_OR_PREFERENCE, WEIGHTS, PROMOTION_OF_PREFERENCE]
    """route specifies where they go."""


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


class CapturePermission(StrEnum):
    """Whether requests of a data class may be kept as training examples."""

    ALLOWED = "Allowed"
    FORBIDDEN = "Forbidden"


class DataClassSpec(Model):
    """Where data of one class may go."""

    name: DnsLabel
    """name of the class, as the header carries it."""
    allow_boundaries: Annotated[list[Boundary], ListSet(2)] = Field(min_length=1)
    """allowBoundaries are Cluster, External or both."""
    allow_regions: Annotated[list[Region], ListSet(32)] = Field(default_factory=list)
    """allowRegions restricts to targets in these regions; without it every region is allowed."""
    capture: CapturePermission = CapturePermission.FORBIDDEN
    """capture is whether spec.capture may keep requests of the class."""


class DataPolicy(Model):
    """Sovereignty: computed once per request, and nothing later can widen it."""

    class_header: HeaderName = "x-data-class"
    """classHeader is the request header that names the data class."""
    unknown_class: DnsLabel
    """unknownClass is taken when the header is missing or names no class. Choose the strictest."""
    classes: Annotated[list[DataClassSpec], ListMap(("name",), 16)] = Field(min_length=1)
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


ClaimName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]+$", min_length=1, max_length=200)]


class TokenLogin(Model):
    """Clients that show a JSON Web Token of a company's login instead of a key."""

    issuer: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """issuer that tokens must have."""
    audience: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """audience that tokens must have."""
    jwks_from: SecretKeyRef
    """jwksFrom names the key of a Secret with the login's public keys as a JSON Web Key Set. It is read again when it
    changes."""
    client_claim: ClaimName = "sub"
    """clientClaim holds the name of the client."""
    team_claim: ClaimName | None = None
    """teamClaim holds the team, which then cannot be set by a header."""
    models_claim: ClaimName | None = None
    """modelsClaim holds the list of models that the client may ask for. Default: all of spec.hostModels."""
    data_class: DnsLabel | None = None
    """dataClass of everything that these clients send. The header can only narrow further where it may go."""


class ClassifierTask(Model):
    """A task that the classifier may choose."""

    name: TaskName
    """name of the task, as rules match it."""
    description: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """description for the model of which requests the task is made of."""


class Classifier(Model):
    """A small model that names the task of a request without the header x-flotilla-task."""

    target: DnsLabel
    """target that is asked. Data that may not go there is not classified."""
    tasks: Annotated[list[ClassifierTask], ListMap(("name",), 32)] = Field(min_length=2)
    """tasks to choose from."""
    max_prompt_bytes: Annotated[int, Field(ge=100, le=100_000)] = 4000
    """maxPromptBytes of the last user message that the classifier reads."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """timeoutSeconds after which the request continues without a task."""


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
    """onExceeded is Reject, or ClusterOnly to continue without hosted models."""


class LimitsSpec(Model):
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
    """maxRequests is the largest number of requests that wait in one replica of the gateway."""
    max_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 64 * 2**20
    """maxBytes is the largest size of all requests together that wait in one replica of the gateway."""


class RedactionRule(StrEnum):
    """What is replaced in captured texts."""

    EMAIL = "Email"
    PHONE_NUMBER = "PhoneNumber"
    CREDIT_CARD = "CreditCard"
    IBAN = "IBAN"
    IP_ADDRESS = "IPAddress"
    SECRET = "Secret"  # noqa: S105 - a name


class EscalatedCapture(StrEnum):
    """Which escalated pairs are captured: the answer that was rejected, and the one that was sent."""

    ALL = "All"
    SAMPLED = "Sampled"
    """By percent, as other requests."""
    NONE = "None"


class CaptureDestination(Model):
    """Where captured examples are written."""

    claim_name: DnsLabel | None = None
    """claimName of a PersistentVolumeClaim of this namespace that all replicas of the gateway can write to."""
    bucket: Annotated[
        str | None,
        StringConstraints(pattern=r"^(s3|gs)://[a-z0-9][-._a-z0-9]{1,61}[a-z0-9](/[-._/A-Za-z0-9]*)?$", max_length=500),
    ] = None
    """bucket as s3://NAME/PREFIX or gs://NAME/PREFIX."""
    credentials_secret: DnsLabel | None = None
    """credentialsSecret holds the bucket's environment variables, such as AWS_ACCESS_KEY_ID. Default: the identity of
    the gateway's ServiceAccount."""


_ONE_DESTINATION = Cel(
    "has(self.claimName) != has(self.bucket)", "spec.capture.to needs exactly one of claimName and bucket"
)


class CaptureSpec(Model):
    """Keeps a sample of the answered chat requests as training examples."""

    rules: Annotated[list[DnsLabel], ListSet(65)] = Field(default_factory=list)
    """rules whose requests are captured, default for spec.defaultRoute; without any, those of all rules."""
    classes: Annotated[list[DnsLabel], ListSet(16)] = Field(min_length=1)
    """classes of data that are captured. Each must have capture Allowed in spec.dataPolicy.classes."""
    percent: Annotated[int, Field(ge=1, le=100)] = 10
    """percent of the requests that are captured."""
    include_escalated: EscalatedCapture = EscalatedCapture.ALL
    """includeEscalated is All, Sampled or None: escalated pairs are the best examples."""
    to: Annotated[CaptureDestination, _ONE_DESTINATION]
    """to specifies where the examples are written."""
    redact: Annotated[list[RedactionRule], ListSet(6)] = Field(default_factory=lambda: list(RedactionRule))
    """redact names what is replaced by a placeholder before anything is written."""
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """retentionDays after which examples are deleted."""
    max_megabytes_per_day: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """maxMegabytesPerDay that each replica of the gateway writes; what is beyond is not captured, and counted."""


class RoutingPolicySpec(Model):
    """What is wanted."""

    host_models: Annotated[list[ModelName], ListSet(64)] = Field(min_length=1)
    """hostModels are the model names that clients may ask this policy for."""
    targets: Annotated[list[Annotated[TargetSpec, ONE_PLACE]], ListMap(("name",), 64)] = Field(min_length=1)
    """targets are the only places that traffic can go to."""
    data_policy: Annotated[DataPolicy, _UNKNOWN_CLASS]
    """dataPolicy specifies which data may go where; it fails closed."""
    clients: Annotated[list[Client], ListMap(("name",), 64)] = Field(default_factory=list)
    """clients that may send requests; without any, everybody who reaches the gateway may."""
    clients_from: SecretKeyRef | None = None
    """clientsFrom names the key of a Secret with a list of clients as YAML: keys, teams, models, budgets and rates of
    each. It is read again when it changes."""
    token_login: TokenLogin | None = None
    """tokenLogin admits clients with a JSON Web Token, beside those with a key."""
    teams: Annotated[list[DnsLabel], ListSet(64)] = Field(default_factory=list)
    """teams that metrics distinguish by the header x-flotilla-team; others count as their client, or as other."""
    classifier: Classifier | None = None
    """classifier names the task of requests that do not name it themselves."""
    rules: Annotated[list[RuleSpec], ListMap(("name",), 64)] = Field(default_factory=list)
    """rules in order; the first that matches decides."""
    default_route: Annotated[RouteSpec, SPLIT_OR_PREFERENCE, WEIGHTS, PROMOTION_OF_PREFERENCE]
    """defaultRoute is for requests that no rule matches."""
    limits: LimitsSpec = LimitsSpec()
    """limits on traffic and spending."""
    hold: Hold = Hold()
    """hold bounds the waiting for a model that has no replica yet."""
    capture: CaptureSpec | None = None
    """capture keeps a sample of requests as training examples. Default: nothing is kept."""


class RoutingPolicyStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Accepted, ResolvedRefs, SovereigntyEnforceable, Programmed; Ready, Reconciling and Stalled sum up.
    With a preference also Qualified and Promoting, which do not count for Ready."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    endpoint: Annotated[str, StringConstraints(max_length=253)] | None = None
    """endpoint is the base URL for OpenAI clients inside the cluster."""
    config_hash: Annotated[str, StringConstraints(max_length=64)] | None = None
    """configHash of the document that every replica of the gateway is to serve, and reports at /config."""
    programmed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """programmedGeneration is the generation of this policy that the document holds: the last sound one."""
    rules: Annotated[list[RouteStatus], ListMap(("name",), 65)] | None = None
    """rules with a preference: where their traffic goes, and why."""


class RoutingPolicy(Model):
    """RoutingPolicy routes OpenAI requests over self-hosted and hosted models."""

    metadata: ObjectMeta
    spec: RoutingPolicySpec
