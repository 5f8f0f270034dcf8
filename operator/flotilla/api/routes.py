"""Which requests a rule of a RoutingPolicy is for, and what happens to them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.targets import ModelName
from flotilla.api.types import Atomic, Cel, DnsLabel, ListMap, ListSet, Model

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


class Match(Model):
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
    on: Annotated[list[Failure], ListSet(6)] = Field(
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
    """on these failures. Without NoEndpoints a request waits for a model at zero as spec.hold says."""


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
    """onExhausted says what the client gets when the escalated attempt fails too."""
    max_rate_percent: Annotated[int, Field(ge=1, le=100)] = 20
    """maxRatePercent of the rule's requests that may escalate; above it answers are returned as they are."""
    max_added_latency_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """maxAddedLatencySeconds that the escalated attempt may take until its end."""
    max_buffered_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """maxBufferedTokens of a streamed answer are held back for judging; a longer one is passed on and not escalated."""


_SOME_SIGNAL = Cel("size(self.signals) > 0 || has(self.confidence)", "an escalation needs signals or confidence")


class Timeouts(Model):
    """How long one attempt may take."""

    first_token_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """firstTokenSeconds until the answer begins."""
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """idleSeconds between two pieces of an answer."""
    total_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """totalSeconds of the request, over all its attempts."""


class Route(Model):
    """Where matching requests go."""

    split: Annotated[list[WeightedTarget], ListMap(("target",), 16)] = Field(min_length=1)
    """split the requests over targets by weight. Those of a session (x-session-id) stay on one target."""
    fallback: Fallback | None = None
    """fallback says where requests go when the chosen target fails."""
    escalation: Annotated[Escalation, _SOME_SIGNAL] | None = None
    """escalation asks another target when the answer is not good enough."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """maxAttempts of one request, fallbacks and escalation included."""
    timeouts: Timeouts = Timeouts()
    """timeouts of an attempt."""


WEIGHTS = Cel("self.split.exists(s, s.weight > 0)", "at least one weight of a split must be greater than 0")


class Rule(Model):
    """The first rule that matches decides."""

    name: DnsLabel
    """name of the rule, in metrics and the decision header."""
    match: Match = Match()
    """match says which requests the rule is for."""
    route: Annotated[Route, WEIGHTS]
    """route says where they go."""
