"""Parts of a RoutingPolicy that let evidence decide: the preferred targets of a route, its promotion, its status."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.types import Atomic, Cel, DnsLabel, ListMap, ListSet, Model, Usd

Percent = Annotated[int, Field(ge=1, le=100)]
GuardPermille = Annotated[int, Field(ge=0, le=1000)]
Revision = Annotated[str, StringConstraints(max_length=80)]
Time = Annotated[str, StringConstraints(max_length=40), Field(json_schema_extra={"format": "date-time"})]


class PreferredTarget(Model):
    """A target that takes the traffic of a route when evidence says that it is good enough."""

    target: DnsLabel
    """target by name."""
    evaluations: Annotated[list[DnsLabel], ListSet(8)] = Field(default_factory=list)
    """evaluations are Evaluations of this namespace that must all say Qualified about what the target serves now. Each
    target but the last needs some; the last takes the traffic when no other may, and has none."""


class PromotionStep(Model):
    """A share of the traffic, and how long it lasts at least."""

    percent: Percent
    """percent of the route's requests that go to the target under promotion."""
    minutes: Annotated[int, Field(ge=0, le=43_200)]
    """minutes that the step lasts at least. It lasts longer until guard.minRequests of the target were counted."""


class Guard(Model):
    """Bounds on what a target with a share of the traffic does. A breach takes its share back at once."""

    error_permille: GuardPermille | None = None
    """errorPermille is the highest share of failed attempts, in thousandths, those that a fallback saved included."""
    escalation_permille: GuardPermille | None = None
    """escalationPermille is the highest share of answers that were escalated, in thousandths."""
    first_token_p99_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """firstTokenP99Milliseconds is the longest time to the first token that one request in a hundred may exceed."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """minRequests of the target before a step may end. Shares of fewer requests are computed as of this number."""


class OnInconclusive(StrEnum):
    """What happens to a target with a share of the traffic whose newest verdict is Inconclusive."""

    HOLD = "Hold"
    """It keeps its share and gets no larger one."""
    WITHDRAW = "Withdraw"
    """It loses its share."""


class Promotion(Model):
    """How traffic moves to a target that qualified."""

    steps: Annotated[list[PromotionStep], Atomic(10)] = Field(
        default=[PromotionStep(percent=5, minutes=10), PromotionStep(percent=25, minutes=30)]
    )
    """steps in order, with a rising percent; after the last one the target takes all. Empty: it takes all at once."""
    guard: Guard = Guard()
    """guard bounds what the target may do; it also holds after the last step."""
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    """onInconclusive is Hold, or Withdraw to take the traffic back when a newer verdict is Inconclusive."""


RISING_STEPS = Cel(
    "self.steps.all(s, self.steps.exists_one(t, t.percent == s.percent))",
    "no two steps of a promotion may have the same percent",
)


class AgreementMethod(StrEnum):
    """When the answer of a shadow copy counts as the same as the client's."""

    EXACT = "Exact"
    """The same text, but for white space at its ends."""
    LABEL = "Label"
    """The same words, whatever their case and punctuation."""
    JSON = "JSON"
    """The same JSON value, whatever the order of its fields."""


class ShadowSpec(Model):
    """Copies of requests that another target answers too, after the client has its answer."""

    target: DnsLabel
    """target that gets the copies. Data that may not go there is not copied."""
    percent: Percent
    """percent of the answered requests that are copied."""
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 4
    """maxConcurrent copies of this route in one replica of the gateway; further ones are dropped."""
    max_usd_per_day: Annotated[Usd, Field(alias="maxUSDPerDay")] = "1"
    """maxUSDPerDay that a hosted target may charge for copies, from midnight UTC; counted like a budget."""
    compare: AgreementMethod = AgreementMethod.EXACT
    """compare says when both answers agree."""


class RouteReason(StrEnum):
    """Why a route's traffic is where it is: what moved it last."""

    PILOT = "Pilot"
    """No preferred target has qualified yet."""
    PROMOTING = "Promoting"
    PROMOTED = "Promoted"
    INCONCLUSIVE = "Inconclusive"
    GUARD_BREACHED = "GuardBreached"
    VERDICT_LOST = "VerdictLost"
    POLICY_CHANGED = "PolicyChanged"


class RouteShare(Model):
    """A target's share of a route's traffic."""

    target: DnsLabel
    """target by name."""
    percent: Percent
    """percent of the route's requests."""
    revision: Revision = ""
    """revision of what the target serves that the verdicts are about; empty for a target without evaluations."""


class Withdrawal(Model):
    """A target that lost its share by a breach of the guard. A newer verdict or another revision lets it try again."""

    target: DnsLabel
    """target by name."""
    revision: Revision = ""
    """revision that breached the guard."""
    since: Time
    """since is when it lost its share."""
    verdict_time: Time | None = None
    """verdictTime is when the verdict was made that had let it take traffic; a newer one lets it try again."""
    message: Annotated[str, StringConstraints(max_length=500)] = ""
    """message names the bound and the figure."""


class RouteStatus(Model):
    """Where the traffic of a rule with a preference goes, and why."""

    name: DnsLabel
    """name of the rule; default for spec.defaultRoute."""
    holder: DnsLabel
    """holder is the target that takes what is not under promotion."""
    candidate: DnsLabel | None = None
    """candidate is the target under promotion."""
    step: Annotated[int, Field(ge=0, le=10)] = 0
    """step of the promotion, counted from 0."""
    since: Time
    """since is when the step began, or when the traffic moved last."""
    shares: Annotated[list[RouteShare], ListMap(("target",), 8)] = Field(default_factory=list)
    """shares of the traffic; they add up to 100."""
    qualified: Annotated[list[DnsLabel], Atomic(8)] = Field(default_factory=list)
    """qualified are the targets that may take traffic, in the order of the preference."""
    reason: RouteReason
    """reason is what moved the traffic last."""
    message: Annotated[str, StringConstraints(max_length=1000)] = ""
    """message explains the reason."""
    withdrawn: Annotated[list[Withdrawal], ListMap(("target",), 8)] = Field(default_factory=list)
    """withdrawn are targets that breached the guard."""
