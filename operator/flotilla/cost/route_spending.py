"""What routes and teams cost in a period: hosted charges, and own models by the work that they did for them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from flotilla.cost.comparison import IdleRule, attribute, idle_shares
from flotilla.cost.hosted_prices import MEASURED, TokenUsage, TokenWeights
from flotilla.cost.spending import Samples, Spent, spent

DIRECT = "__direct__"
"""Stands for a policy where requests came past the gateways."""
OTHER = "other"
"""The gateway's word for a request of no team that its policy names."""
_ZERO, _ONE = Decimal(0), Decimal(1)
_SERVING = "serving"
"""The state that is no idle time; start-up and draining count as that."""
_INFO = "flotilla_gateway_target_info"
_WEIGHT = "flotilla_deployment_token_weight_ratio"

ROUTES: Mapping[str, tuple[str, ...]] = {
    "flotilla_gateway_requests_total": ("target",),
    "flotilla_gateway_tokens_total": ("target", "answer", "token_type"),
    "flotilla_gateway_cost_usd_total": ("target", "answer"),
}
"""Counters of the gateways for `routes`, beside namespace and policy."""
TEAMS: Mapping[str, tuple[str, ...]] = {
    "flotilla_gateway_team_tokens_total": ("target", "team", "token_type"),
    "flotilla_gateway_team_cost_usd_total": ("target", "team"),
}
"""The same for `teams`."""
TARGETS: Mapping[str, tuple[str, ...]] = {_INFO: ("target", "modeldeployment")}
"""Gauges of the gateways that both need."""
WEIGHTS: Mapping[str, tuple[str, ...]] = {_WEIGHT: ("token_type",)}
"""Gauges of the operator, beside namespace and modeldeployment."""

_Key = tuple[str, str]
_Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class RouteSpending:
    """A target of a policy in a period. None is unknown."""

    namespace: str
    policy: str
    target: str
    """Of DIRECT: the ModelDeployment."""
    requests: Decimal | None
    tokens: Decimal | None
    usd: Decimal | None
    """What a hosted target charged, or the part of its deployment's cost."""
    escalation_usd: Decimal | None = None
    """Of it, for better answers."""
    wasted_usd: Decimal | None = None
    """Of it, for answers that a better one replaced."""


def routes(samples: Samples, idle: IdleRule = IdleRule.PROPORTIONAL) -> tuple[RouteSpending, ...]:
    """One value per target of a policy, and one for the rest of each deployment that has a target, its owner."""
    places = sorted({_place(labels) for name in ROUTES for labels, _ in samples.get(name, ())})
    usages = _usages(samples, "flotilla_gateway_tokens_total", "answer")
    charged = _charges(samples, "flotilla_gateway_cost_usd_total", "answer")
    found, deployments = [], _deployments(samples)
    for key, shares in _divided(samples, usages).items():
        of = deployments.get(key)
        mine = _charged(of, shares, idle) if of is not None and of.usd is not None else {}
        rest = mine.pop(DIRECT, None)
        charged |= mine
        if shares[DIRECT] > 0 or rest:
            found.append(RouteSpending(key[0], DIRECT, key[1], requests=None, tokens=None, usd=rest))
    requests = _sums(samples, "flotilla_gateway_requests_total")
    tokens = _sums(samples, "flotilla_gateway_tokens_total")
    for place in places:
        mine = {name.rpartition("\n")[2]: usd for name, usd in charged.items() if _route(name) == "\n".join(place)}
        found.append(
            RouteSpending(
                *place,
                requests=requests.get(place),
                tokens=tokens.get(place),
                usd=sum(mine.values(), _ZERO) if mine else None,
                escalation_usd=mine.get("escalation"),
                wasted_usd=mine.get("replaced"),
            )
        )
    return tuple(sorted(found, key=lambda route: (-(route.usd or _ZERO), route.namespace, route.policy, route.target)))


def _charged(of: Spent, shares: Mapping[str, Decimal], rule: IdleRule) -> dict[str, Decimal]:
    """Dollars by name; the answers of one route are one when idle time is divided."""
    work: dict[str, Decimal] = {}
    for name, share in shares.items():
        work[_route(name)] = work.get(_route(name), _ZERO) + share
    idle = idle_shares(work, rule, owner=DIRECT)
    busy_usd = of.usd_by_state.get(_SERVING, _ZERO)
    idle_usd = (of.usd or _ZERO) - busy_usd
    return {
        name: busy_usd * share
        + idle_usd * idle.get(_route(name), _ZERO) * (share / work[_route(name)] if work[_route(name)] else _ONE)
        for name, share in shares.items()
    }


def _route(name: str) -> str:
    return name.rpartition("\n")[0] or name


def teams(samples: Samples, idle: IdleRule = IdleRule.PROPORTIONAL) -> tuple[Spent, ...]:
    """Deployments divided over the teams that gateways saw, the rest being that of the resource's own team; and what
    hosted targets charged for each."""
    usages = _usages(samples, "flotilla_gateway_team_tokens_total", "team")
    divided = _divided(samples, usages)
    found: list[Spent] = []
    for key, of in _deployments(samples).items():
        shares: dict[str, Decimal] = {}
        served: dict[str, TokenUsage] = {}
        for name, share in divided.get(key, {}).items():
            team = _team(name.rpartition("\n")[2], of.team)
            shares[team] = shares.get(team, _ZERO) + share
            if name != DIRECT and team != of.team:
                served[team] = served.get(team, TokenUsage()) + usages[key][name]
        if set(shares) <= {of.team}:
            found.append(of)
        else:
            spare = idle_shares(shares, idle, owner=of.team)
            parts = {team: (shares.get(team, _ZERO), spare.get(team, _ZERO)) for team in {**shares, **spare}}
            found += [_part(of, team, *part, served) for team, part in parts.items() if any(part)]
    for name, usd in _charges(samples, "flotilla_gateway_team_cost_usd_total", "team").items():
        namespace, policy, target, team = name.split("\n")
        found.append(Spent(namespace, f"{policy}/{target}", team=team, usd_by_state={"hosted": usd}, external=True))
    return tuple(found)


def _team(name: str, owner: str) -> str:
    return owner if name in (DIRECT, OTHER) else name


def _part(of: Spent, team: str, share: Decimal, idle_share: Decimal, served: Mapping[str, TokenUsage]) -> Spent:
    """What is counted by tokens is exact, what is held for all is shared; requests are not counted by team."""
    usd = {state: usd * (share if state == _SERVING else idle_share) for state, usd in of.usd_by_state.items()}
    held = sum(usd.values(), _ZERO) / of.usd if of.usd else share

    def some(value: Decimal | None) -> Decimal | None:
        return None if value is None else value * held

    if team == of.team:
        others = sum(served.values(), TokenUsage())
        gone = {"input": others.uncached, "cached_input": others.cached, "output": others.generated}
        tokens = {kind: max(count - gone.get(kind, _ZERO), _ZERO) for kind, count in of.tokens.items()}
    else:
        mine = served[team]
        tokens = {"input": mine.uncached, "cached_input": mine.cached, "output": mine.generated}
    return replace(
        of,
        team=team,
        usd_by_state=usd,
        estimated_usd=some(of.estimated_usd),
        gpu_hours=some(of.gpu_hours),
        tokens=tokens,
        requests=None,
        hosted_usd={name: usd * share for name, usd in of.hosted_usd.items()},
        usd_per_hour=some(of.usd_per_hour),
    )


def _divided(samples: Samples, usages: Mapping[_Key, Mapping[str, TokenUsage]]) -> dict[_Key, dict[str, Decimal]]:
    """Shares of each deployment that add up to 1, with that of DIRECT, by weighted work."""
    deployments, found = _deployments(samples), {}
    for key, mine in usages.items():
        weights = _weights(samples, key)
        whole = deployments[key].tokens if key in deployments else {}
        routed = sum(mine.values(), TokenUsage())
        cached = max(whole.get("cached_input", _ZERO) - routed.cached, _ZERO)
        fresh = max(whole.get("input", _ZERO) - routed.uncached, _ZERO)
        rest = TokenUsage(fresh + cached, max(whole.get("output", _ZERO) - routed.generated, _ZERO), cached)
        found[key] = {DIRECT: _ZERO, **attribute(Decimal(1), {**mine, DIRECT: rest}, weights, owner=DIRECT)}
    return found


def _usages(samples: Samples, metric: str, label: str) -> dict[_Key, dict[str, TokenUsage]]:
    """Of targets that are deployments: by deployment, then by place and label."""
    targets = {
        _place(labels): labels["modeldeployment"]
        for labels, _ in samples.get(_INFO, ())
        if labels.get("modeldeployment")
    }
    found: dict[_Key, dict[str, TokenUsage]] = {}
    for labels, count in samples.get(metric, ()):
        place, kind = _place(labels), labels.get("token_type", "")
        if place not in targets:
            continue
        mine = found.setdefault((place[0], targets[place]), {})
        name = "\n".join((*place, labels.get(label, "")))
        prompt, cached = count if kind != "output" else _ZERO, count if kind == "cached_input" else _ZERO
        mine[name] = mine.get(name, TokenUsage()) + TokenUsage(prompt, count - prompt, cached)
    return found


def _charges(samples: Samples, metric: str, label: str) -> dict[str, Decimal]:
    return {"\n".join((*_place(labels), labels.get(label, ""))): usd for labels, usd in samples.get(metric, ())}


def _sums(samples: Samples, metric: str) -> dict[_Place, Decimal]:
    found: dict[_Place, Decimal] = {}
    for labels, value in samples.get(metric, ()):
        found[_place(labels)] = found.get(_place(labels), _ZERO) + value
    return found


def _deployments(samples: Samples) -> dict[_Key, Spent]:
    return {(of.namespace, of.name): of for of in spent(samples)}


def _weights(samples: Samples, key: _Key) -> TokenWeights:
    """The measured ones have no series."""
    found = dict(_weighed(samples.get(_WEIGHT, ()), key))
    return TokenWeights(found.get("output", MEASURED.output), found.get("cached_input", MEASURED.cached))


def _weighed(rows: Iterable[tuple[Mapping[str, str], Decimal]], key: _Key) -> Iterator[tuple[str, Decimal]]:
    for labels, value in rows:
        if (labels.get("namespace", ""), labels.get("modeldeployment", "")) == key:
            yield labels.get("token_type", ""), value


def _place(labels: Mapping[str, str]) -> _Place:
    return labels.get("namespace", ""), labels.get("policy", ""), labels.get("target", "")
