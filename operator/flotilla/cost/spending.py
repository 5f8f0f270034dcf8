"""What models cost and served in a period, from Flotilla's metrics, by model, team or namespace."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from flotilla.cost.hosted_prices import MILLION

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], Decimal]]]
"""Labels and values by metric name. A counter's value is its growth in the period."""
By = Literal["model", "namespace", "team"]
_ZERO = Decimal(0)

COUNTERS: Mapping[str, tuple[str, ...]] = {
    "flotilla_deployment_cost_usd_total": ("state",),
    "flotilla_deployment_estimated_cost_usd_total": (),
    "flotilla_deployment_gpu_hours_total": (),
    "flotilla_deployment_tokens_total": ("token_type",),
    "flotilla_deployment_requests_total": ("outcome",),
    "flotilla_hosted_equivalent_cost_usd_total": ("comparator",),
}
"""What is read for `spent`, with the labels that matter beside namespace and modeldeployment."""
GAUGES: Mapping[str, tuple[str, ...]] = {
    "flotilla_deployment_info": ("model", "engine", "gpu_type", "team"),
    "flotilla_deployment_cost_usd_per_hour": (),
    "flotilla_deployment_budget_usd_per_month": (),
    "flotilla_deployment_saturation_ratio": ("window",),
    "flotilla_break_even_tasks_per_day": ("comparator",),
    "flotilla_min_replicas": (),
    "flotilla_max_replicas": (),
}


@dataclass(frozen=True, slots=True)
class Spent:
    """One deployment in a period. None, and what is not in a mapping, is unknown."""

    namespace: str
    name: str
    model: str = ""
    engine: str = ""
    gpu_type: str = ""
    team: str = ""
    usd_by_state: Mapping[str, Decimal] = field(default_factory=dict)
    """Empty: the accelerator has no price."""
    estimated_usd: Decimal | None = None
    gpu_hours: Decimal | None = None
    tokens: Mapping[str, Decimal] = field(default_factory=dict)
    """input, cached_input, output; input is without the cached."""
    requests: Decimal | None = None
    hosted_usd: Mapping[str, Decimal] = field(default_factory=dict)
    """By comparator."""
    usd_per_hour: Decimal | None = None
    """At the end of the period."""
    budget_usd_per_month: Decimal | None = None
    saturation: Decimal | None = None
    """Of its capacity, over a day."""
    break_even_tasks_per_day: Mapping[str, Decimal] = field(default_factory=dict)
    """By comparator; infinite: never."""
    min_replicas: int | None = None
    max_replicas: int | None = None
    external: bool = False
    """No deployment, but what a hosted target of a policy charged."""

    @property
    def usd(self) -> Decimal | None:
        return sum(self.usd_by_state.values(), _ZERO) if self.usd_by_state else None


@dataclass(frozen=True, slots=True)
class SpendingGroup:
    """Deployments that are shown as one line."""

    title: str
    members: tuple[Spent, ...]

    @property
    def usd(self) -> Decimal | None:
        """Of those that have a price; None where none has."""
        known = [member.usd for member in self.members if member.usd is not None]
        return sum(known, _ZERO) if known else None

    def usd_in(self, state: str) -> Decimal | None:
        """What went to pods in that state."""
        known = [member.usd_by_state.get(state, _ZERO) for member in self.members if member.usd_by_state]
        return sum(known, _ZERO) if known else None

    @property
    def unpriced(self) -> int:
        """Members whose dollars are in no sum."""
        return sum(member.usd is None for member in self.members)

    def tokens(self, token_type: str = "") -> Decimal | None:
        """All tokens, or those of one type."""
        found = [n for m in self.members for kind, n in m.tokens.items() if token_type in ("", kind)]
        return sum(found, _ZERO) if found else None

    def total(self, read: Callable[[Spent], Decimal | None]) -> Decimal | None:
        """The sum of a member's field; None where no member has it."""
        found = [value for member in self.members if (value := read(member)) is not None]
        return sum(found, _ZERO) if found else None

    @property
    def idle_share(self) -> Decimal | None:
        """Of the cost; None without one."""
        idle, usd = self.usd_in("idle"), self.usd
        return idle / usd if idle is not None and usd else None

    @property
    def usd_per_million(self) -> Decimal | None:
        """Over the members that have dollars and tokens."""
        pairs = [(m.usd, sum(m.tokens.values(), _ZERO)) for m in self.members if m.usd is not None and m.tokens]
        tokens = sum((tokens for _, tokens in pairs), _ZERO)
        return sum((usd for usd, _ in pairs), _ZERO) / tokens * MILLION if tokens > 0 else None

    @property
    def usd_per_request(self) -> Decimal | None:
        """Over the members that have dollars and requests."""
        pairs = [(m.usd, m.requests) for m in self.members if m.usd is not None and m.requests is not None]
        requests = sum((requests for _, requests in pairs), _ZERO)
        return sum((usd for usd, _ in pairs), _ZERO) / requests if requests > 0 else None

    def comparisons(self) -> "tuple[Comparison, ...]":
        """With each hosted model, the cheapest first."""
        names = sorted({name for member in self.members for name in member.hosted_usd})
        own_members = sum(not member.external for member in self.members)
        found = []
        for name in names:
            compared = [member for member in self.members if name in member.hosted_usd and member.usd is not None]
            if compared:
                hosted = sum((member.hosted_usd[name] for member in compared), _ZERO)
                own = sum((member.usd or _ZERO for member in compared), _ZERO)
                found.append(Comparison(name, hosted, own, complete=len(compared) == own_members))
        return tuple(sorted(found, key=lambda c: (c.hosted_usd, c.comparator)))

    @property
    def cheapest(self) -> "Comparison | None":
        """Of the hosted models that all members are compared with, where there was traffic."""
        return next((c for c in self.comparisons() if c.complete and c.hosted_usd > 0), None)

    @property
    def widest(self) -> "Comparison | None":
        """With the hosted model that most of the cost is compared with; the cheaper one of two. The report's page."""
        found = [one for one in self.comparisons() if one.hosted_usd > 0]
        return max(found, key=lambda one: (one.own_usd, -one.hosted_usd), default=None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A hosted model against those members of a group that are compared with it and have a price."""

    comparator: str
    hosted_usd: Decimal
    own_usd: Decimal
    complete: bool
    """Whether these are all members."""

    @property
    def savings_usd(self) -> Decimal:
        """Negative where hosted is cheaper."""
        return self.hosted_usd - self.own_usd


def spent(samples: Samples) -> tuple[Spent, ...]:
    """One value per deployment that has any sample, by namespace and name."""
    keys = {
        (labels.get("namespace", ""), labels["modeldeployment"])
        for name in (*COUNTERS, *GAUGES)
        for labels, _ in samples.get(name, ())
        if "modeldeployment" in labels
    }
    by_key = {key: _Of(samples, {"namespace": key[0], "modeldeployment": key[1]}) for key in sorted(keys)}
    return tuple(_spent(namespace, name, of) for (namespace, name), of in by_key.items())


def _spent(namespace: str, name: str, of: "_Of") -> Spent:
    info = of.labels("flotilla_deployment_info")
    saturation = of.by("flotilla_deployment_saturation_ratio", "window")
    least, most = of.one("flotilla_min_replicas"), of.one("flotilla_max_replicas")
    return Spent(
        namespace=namespace,
        name=name,
        model=info.get("model", ""),
        engine=info.get("engine", ""),
        gpu_type=info.get("gpu_type", ""),
        team=info.get("team", ""),
        usd_by_state=of.by("flotilla_deployment_cost_usd_total", "state"),
        estimated_usd=of.one("flotilla_deployment_estimated_cost_usd_total"),
        gpu_hours=of.one("flotilla_deployment_gpu_hours_total"),
        tokens=of.by("flotilla_deployment_tokens_total", "token_type"),
        requests=of.by("flotilla_deployment_requests_total", "outcome").get("success"),
        hosted_usd=of.by("flotilla_hosted_equivalent_cost_usd_total", "comparator"),
        usd_per_hour=of.one("flotilla_deployment_cost_usd_per_hour"),
        budget_usd_per_month=of.one("flotilla_deployment_budget_usd_per_month"),
        saturation=saturation.get("24h"),
        break_even_tasks_per_day=of.by("flotilla_break_even_tasks_per_day", "comparator"),
        min_replicas=None if least is None else int(least),
        max_replicas=None if most is None else int(most),
    )


class _Of:
    """The samples of one owner."""

    def __init__(self, samples: Samples, owner: Mapping[str, str]) -> None:
        self._samples = samples
        self._owner = owner.items()

    def _mine(self, name: str) -> Iterable[tuple[Mapping[str, str], Decimal]]:
        return (pair for pair in self._samples.get(name, ()) if self._owner <= pair[0].items())

    def labels(self, name: str) -> Mapping[str, str]:
        """Of the last sample: sources put what is current at the end."""
        return next((labels for labels, _ in reversed(list(self._mine(name)))), {})

    def by(self, name: str, label: str) -> dict[str, Decimal]:
        found: dict[str, Decimal] = {}
        for labels, value in self._mine(name):
            found[labels.get(label, "")] = found.get(labels.get(label, ""), _ZERO) + value
        return found

    def one(self, name: str) -> Decimal | None:
        values = [value for _, value in self._mine(name)]
        return sum(values, _ZERO) if values else None


def grouped(deployments: Iterable[Spent], by: By) -> tuple[SpendingGroup, ...]:
    """The most expensive first; what has no price comes last."""

    def title(of: Spent) -> str:
        return {"model": f"{of.namespace}/{of.name}", "namespace": of.namespace, "team": of.team}[by]

    found: dict[str, list[Spent]] = {}
    for deployment in deployments:
        found.setdefault(title(deployment), []).append(deployment)
    groups = [SpendingGroup(title, tuple(members)) for title, members in found.items()]
    return tuple(sorted(groups, key=lambda g: (-(g.usd if g.usd is not None else Decimal(-1)), g.title)))
