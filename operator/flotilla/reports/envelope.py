"""The production envelope of a RoutingPolicy: latency, cost, quality, sovereignty and tail, with their evidence. Pure.

`envelope` makes it of what gateways counted (`Samples`, by Prometheus' label names) and of live objects: the policy,
the ModelDeployments with their Deployments, and the Evaluations of the namespace. `text`, `document` and `page` show
it, and `breaches` compares it with bounds such as `firstTokenP99>1.5`. What is unknown is left out, never 0.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, StrictUndefined

from flotilla.api.routing_policy import RoutingPolicy
from flotilla.cost.route_spending import routes
from flotilla.cost.spending import Samples
from flotilla.errors import InvalidSpec
from flotilla.evaluation.qualification import present_revision
from flotilla.routing.document import Policy, compile_policy, facts_of

Object = Mapping[str, Any]
COUNTERS: Mapping[str, tuple[str, ...]] = {
    "flotilla_gateway_requests_total": ("rule", "target", "class", "outcome"),
    "flotilla_gateway_ttft_seconds_bucket": ("target", "le"),
    "flotilla_gateway_duration_seconds_bucket": ("target", "le"),
    "flotilla_gateway_upstream_attempts_total": ("target", "outcome"),
    "flotilla_gateway_escalations_total": ("rule", "signal"),
    "flotilla_gateway_sovereignty_denied_total": ("class",),
}
"""Counters of the gateways beside those that spending needs, with their labels beside namespace and policy."""
ALL = "all"
"""The name of the whole policy among targets."""
_Z = 1.96
"""Of a two-sided interval of 95 %."""
_LATENCIES = (
    ("firstToken", "flotilla_gateway_ttft_seconds_bucket"),
    ("total", "flotilla_gateway_duration_seconds_bucket"),
)
NAMES: Mapping[str, str] = {
    "firstTokenP50": "s",
    "firstTokenP99": "s",
    "totalP50": "s",
    "totalP99": "s",
    "costPerThousandTasks": "USD",
    "quality": "",
    "malformed": "",
    "errorRate": "",
    "escalationRate": "",
    "outsideClass": "requests",
}
"""Figures that bounds can name, with their units; those without are shares from 0 to 1."""
_BOUND = re.compile(r"^(?:([a-z0-9-]+)\.)?([A-Za-z0-9]+)\s*(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]+)?)$")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with what it stands on."""

    value: float
    n: int
    """Requests or cases that it is computed from."""
    low: float | None = None
    """Ends of the interval of 95 %; None for a sum, which no sample stands for."""
    high: float | None = None
    at: datetime | None = None
    """When it was measured; None for the end of the report's period."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class TargetEnvelope:
    """The figures of one target, or of the whole policy, by the names of `NAMES`."""

    name: str
    model: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class ClassProof:
    """Where the requests of one data class went."""

    name: str
    requests: int
    outside: int
    """Requests that a target answered which the class does not allow."""
    refused: int

    @property
    def most_outside(self) -> float:
        """The highest share of requests outside that these numbers leave possible, at 95 %."""
        return (
            wilson(self.outside, self.requests)[1]
            if self.outside
            else min(3 / self.requests, 1)
            if self.requests
            else 1
        )


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What an Evaluation measured of a target."""

    task: str
    evaluation: str
    target: str
    verdict: str
    quality: Figure | None
    first_token_p99_s: float | None
    usd_per_thousand: Decimal | None
    present: bool
    """Whether it is about what the target serves now."""
    malformed: Figure | None = None


@dataclass(frozen=True, slots=True)
class TaskWinner:
    """Which target wins a task, and why; or why none does."""

    task: str
    target: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """All of it."""

    namespace: str
    policy: str
    start: datetime | None
    """None: everything since the gateways started."""
    end: datetime
    source: str
    targets: tuple[TargetEnvelope, ...]
    """The whole policy, named `all`, comes last."""
    classes: tuple[ClassProof, ...]
    tasks: tuple[TaskResult, ...]
    winners: tuple[TaskWinner, ...] = field(default=())


def envelope(
    policy: Object,
    samples: Samples,
    *,
    evaluations: Sequence[Object] = (),
    models: Sequence[Object] = (),
    deployments: Sequence[Object] = (),
    start: datetime | None,
    end: datetime,
    source: str,
) -> Envelope:
    """Make the envelope. `samples` are the growth of counters in the period, of all gateways of the namespace."""
    resource = RoutingPolicy.model_validate(policy)
    by_name = {model["metadata"]["name"]: model for model in models}
    compiled = compile_policy(resource, {name: facts_of(model) for name, model in by_name.items()})
    served = {deployment["metadata"]["name"]: deployment for deployment in deployments}
    mine = _of_policy(samples, resource.metadata.namespace, compiled.name)
    results = tuple(_results(compiled, evaluations, by_name, served))
    spent = {
        route.target: route.usd
        for route in routes(samples)
        if (route.namespace, route.policy) == (resource.metadata.namespace, compiled.name) and route.usd is not None
    }
    targets = [_target(compiled, name, mine, spent, results) for name in compiled.target]
    return Envelope(
        namespace=resource.metadata.namespace,
        policy=compiled.name,
        start=start,
        end=end,
        source=source,
        targets=(*targets, _whole(compiled, mine, spent)),
        classes=tuple(_classes(compiled, mine)),
        tasks=results,
        winners=tuple(_winners(compiled, results)),
    )


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The interval of 95 % of a share; the whole range without any case."""
    if n <= 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z * _Z
    middle, width = (share + z2 / (2 * n)) / (1 + z2 / n), _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(middle - width / (1 + z2 / n), 0.0), min(middle + width / (1 + z2 / n), 1.0)


def quantile(buckets: Sequence[tuple[float, float]], q: float) -> Figure | None:
    """A quantile of a histogram's cumulative buckets (upper bound, count), None where the buckets do not bound it.

    The interval has the edges of the buckets in which the quantile's order statistics lie.
    """
    n = buckets[-1][1] if buckets else 0
    if n < 1:
        return None
    spread = _Z * math.sqrt(n * q * (1 - q))
    value = _at_rank(buckets, q * n)
    low, high = _edges(buckets, max(q * n - spread, 0))[0], _edges(buckets, min(q * n + spread, n))[1]
    if not math.isfinite(value):
        return None
    return Figure(value, round(n), low, high if math.isfinite(high) else None)


def _at_rank(buckets: Sequence[tuple[float, float]], rank: float) -> float:
    below, bound = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank and count > below:
            return upper if not math.isfinite(upper) else bound + (upper - bound) * (rank - below) / (count - below)
        below, bound = count, upper
    return math.inf


def _edges(buckets: Sequence[tuple[float, float]], rank: float) -> tuple[float, float]:
    bound = 0.0
    for upper, count in buckets:
        if count >= rank:
            return bound, upper
        bound = upper
    return bound, math.inf


_Rows = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]


def _of_policy(samples: Samples, namespace: str, policy: str) -> _Rows:
    return {
        name: [
            (labels, float(value))
            for labels, value in rows
            if labels.get("policy") == policy and labels.get("namespace", namespace) == namespace
        ]
        for name, rows in samples.items()
    }


def _sum(rows: _Rows, name: str, **wanted: str) -> float:
    return sum(
        value
        for labels, value in rows.get(name, ())
        if all(labels.get(label) == value_ for label, value_ in wanted.items())
    )


def _buckets(rows: _Rows, name: str, target: str | None) -> list[tuple[float, float]]:
    found: dict[float, float] = {}
    for labels, value in rows.get(name, ()):
        if target is None or labels.get("target") == target:
            bound = float(labels.get("le", "inf"))
            found[bound] = found.get(bound, 0.0) + value
    return sorted(found.items())


def _latencies(rows: _Rows, target: str | None) -> Iterator[tuple[str, Figure]]:
    for name, metric in _LATENCIES:
        for label, q in (("P50", 0.5), ("P99", 0.99)):
            figure = quantile(_buckets(rows, metric, target), q)
            if figure is not None:
                yield f"{name}{label}", figure


def _share(hits: float, n: float) -> Figure | None:
    return Figure(hits / n, round(n), *wilson(hits, n)) if n >= 1 else None


def _target(
    policy: Policy, name: str, rows: _Rows, spent: Mapping[str, Decimal], results: Sequence[TaskResult]
) -> TargetEnvelope:
    figures = dict(_latencies(rows, name))
    answered = _sum(rows, "flotilla_gateway_requests_total", target=name, outcome="ok")
    if name in spent and answered >= 1:
        figures["costPerThousandTasks"] = Figure(1000 * float(spent[name]) / answered, round(answered))
    attempts = _sum(rows, "flotilla_gateway_upstream_attempts_total", target=name)
    good = _sum(rows, "flotilla_gateway_upstream_attempts_total", target=name, outcome="ok")
    errors = _share(attempts - good, attempts)
    if errors is not None:
        figures["errorRate"] = errors
    measured = [one for one in results if one.target == name and one.present and one.quality is not None]
    if measured:
        worst = min(measured, key=lambda one: one.quality.value if one.quality is not None else 1.0)
        assert worst.quality is not None
        figures["quality"] = worst.quality
    unreadable = [one.malformed for one in results if one.target == name and one.present and one.malformed is not None]
    if unreadable:
        figures["malformed"] = max(unreadable, key=lambda one: one.value)
    target = policy.target[name]
    place = target.cluster.model_deployment if target.cluster is not None else "hosted"
    return TargetEnvelope(name, f"{target.served_model} ({place})", figures)


def _whole(policy: Policy, rows: _Rows, spent: Mapping[str, Decimal]) -> TargetEnvelope:
    figures = dict(_latencies(rows, None))
    answered = _sum(rows, "flotilla_gateway_requests_total", outcome="ok")
    used = {
        labels["target"]
        for labels, value in rows.get("flotilla_gateway_tokens_total", ())
        if value > 0 and "target" in labels
    }
    # A target that worked and whose cost is unknown makes the sum unknown.
    if answered >= 1 and used <= set(spent) and spent:
        figures["costPerThousandTasks"] = Figure(
            1000 * float(sum(spent.values())) / answered,
            round(answered),
            note="retries, escalations, classifier and shadow copies included",
        )
    failed = sum(_sum(rows, "flotilla_gateway_requests_total", outcome=end) for end in ("failed", "interrupted"))
    errors = _share(failed, answered + failed)
    if errors is not None:
        figures["errorRate"] = errors
    if any(route.escalation is not None for _, route in policy.named_routes()):
        escalated = _share(min(_sum(rows, "flotilla_gateway_escalations_total"), answered), answered)
        if escalated is not None:
            figures["escalationRate"] = escalated
    outside = sum(one.outside for one in _classes(policy, rows))
    seen = sum(one.requests for one in _classes(policy, rows))
    if seen:
        figures["outsideClass"] = Figure(outside, seen, note="requests answered outside of what their class allows")
    return TargetEnvelope(ALL, "the whole policy", figures)


def _classes(policy: Policy, rows: _Rows) -> Iterator[ClassProof]:
    for name, allowed in policy.allowed.items():
        answered = [
            (labels.get("target", ""), value)
            for labels, value in rows.get("flotilla_gateway_requests_total", ())
            if labels.get("class") == name and labels.get("target")
        ]
        outside = sum(value for target, value in answered if target not in allowed)
        refused = _sum(rows, "flotilla_gateway_sovereignty_denied_total", **{"class": name})
        yield ClassProof(name, round(sum(value for _, value in answered)), round(outside), round(refused))


def _results(
    policy: Policy, evaluations: Sequence[Object], models: Mapping[str, Object], deployments: Mapping[str, Object]
) -> Iterator[TaskResult]:
    for evaluation in evaluations:
        spec, status = evaluation.get("spec") or {}, evaluation.get("status") or {}
        asked = {one["name"]: one for one in spec.get("targets") or ()}
        for result in status.get("results") or ():
            name = _name_in(policy, asked.get(result.get("target"), {}))
            if name is None:
                continue
            target = policy.target[name]
            owner = target.cluster.model_deployment if target.cluster is not None else ""
            revision = present_revision(target, models.get(owner), deployments.get(owner))
            usd = result.get("costPerThousandTasksUSD")
            slow = result.get("firstTokenP99Milliseconds")
            yield TaskResult(
                task=spec.get("task", ""),
                evaluation=evaluation["metadata"]["name"],
                target=name,
                verdict=result.get("verdict") or "Unknown",
                quality=_quality(result, evaluation["metadata"]["name"]),
                first_token_p99_s=None if slow is None else slow / 1000,
                usd_per_thousand=None if usd is None else Decimal(usd),
                present=target.hosted is not None or (revision is not None and revision == result.get("revision")),
                malformed=_malformed(result),
            )


def _name_in(policy: Policy, asked: Object) -> str | None:
    """The name that a policy gives to a target of an Evaluation, None where it has no such target."""
    reference, external = asked.get("modelDeploymentRef") or {}, asked.get("external") or {}
    for name, target in policy.target.items():
        if target.cluster is not None and reference:
            if (target.cluster.model_deployment, target.cluster.adapter) == (
                reference.get("name"),
                reference.get("adapter"),
            ):
                return name
        elif target.hosted is not None and external:
            same = (target.hosted.base_url, target.hosted.served_model)
            if same == (external.get("baseURL", "").rstrip("/"), external.get("model")):
                return name
    return None


def _quality(result: Object, evaluation: str) -> Figure | None:
    value, cases = result.get("qualityPermille"), result.get("cases")
    if value is None or not cases:
        return None
    low, high = (None if result.get(end) is None else result[end] / 1000 for end in ("lowPermille", "highPermille"))
    finished = result.get("finishedTime")
    at = datetime.fromisoformat(finished) if finished else None
    return Figure(value / 1000, cases, low, high, at, f"Evaluation {evaluation}: {result.get('verdict') or 'Unknown'}")


def _malformed(result: Object) -> Figure | None:
    value, cases, finished = result.get("malformedPermille"), result.get("cases"), result.get("finishedTime")
    if value is None or not cases:
        return None
    at = datetime.fromisoformat(finished) if finished else None
    return Figure(value / 1000, cases, *wilson(value * cases / 1000, cases), at)


def _winners(policy: Policy, results: Sequence[TaskResult]) -> Iterator[TaskWinner]:
    """The cheapest qualified target of each task; between those of unknown cost, the order of spec.targets counts."""
    order = list(policy.target)
    for task in dict.fromkeys(one.task for one in results):
        mine = [one for one in results if one.task == task]
        good = [one for one in mine if one.present and one.verdict == "Qualified"]
        if not good:
            states = ", ".join(
                f"{one.target} {one.verdict}{'' if one.present else ' (older revision)'}" for one in mine
            )
            yield TaskWinner(task, None, f"no target is qualified: {states}")
            continue
        priced = [one for one in good if one.usd_per_thousand is not None]
        if len(priced) == len(good):
            best = min(priced, key=lambda one: one.usd_per_thousand or Decimal(0))
            dearer = [one for one in priced if one is not best]
            against = f", {dearer[0].target} costs ${dearer[0].usd_per_thousand}" if dearer else ""
            why = f"the cheapest that qualified: ${best.usd_per_thousand} for 1000 tasks{against}"
        else:
            best = min(good, key=lambda one: order.index(one.target))
            why = "qualified, and the first in spec.targets; the cost of some is unknown"
        yield TaskWinner(task, best.target, why)


def breaches(found: Envelope, bounds: Iterable[str]) -> list[str]:
    """A line for each bound that holds or that nothing is known of, so that a CI run fails; raises InvalidSpec.

    A bound is `[TARGET.]NAME OPERATOR NUMBER`, such as `firstTokenP99>1.5` or `small.quality<0.95`.
    """
    lines = []
    for bound in bounds:
        match = _BOUND.match(bound.strip())
        if match is None or match[2] not in NAMES:
            known = ", ".join(NAMES)
            raise InvalidSpec(
                f"{bound!r} is not [TARGET.]NAME>NUMBER, with a NAME of {known}.",
                field="--fail-if",
            )
        targets = {one.name: one for one in found.targets}
        name, limit = match[1] or ALL, float(match[4])
        if name not in targets:
            raise InvalidSpec(f"{name!r} is none of the targets {', '.join(targets)}.", field="--fail-if")
        figure = targets[name].figures.get(match[2])
        if figure is None:
            lines.append(f"{bound}: nothing is known of {match[2]} of {name}")
        elif _holds(figure.value, match[3], limit):
            lines.append(f"{bound}: {match[2]} of {name} is {_plain(figure.value)} (n {figure.n})")
    return lines


def _holds(value: float, operator: str, limit: float) -> bool:
    if operator == ">":
        return value > limit
    if operator == "<":
        return value < limit
    return value >= limit if operator == ">=" else value <= limit


def document(found: Envelope) -> dict[str, Any]:
    """As JSON; docs/reference/envelope.schema.json describes it."""
    return {
        "schemaVersion": 1,
        "namespace": found.namespace,
        "policy": found.policy,
        **({"start": found.start.isoformat()} if found.start is not None else {}),
        "end": found.end.isoformat(),
        "source": found.source,
        "targets": [
            {"name": one.name, "model": one.model, "figures": {k: _figure(v) for k, v in one.figures.items()}}
            for one in found.targets
        ],
        "classes": [
            {
                "name": one.name,
                "requests": one.requests,
                "outside": one.outside,
                "refused": one.refused,
                **({"mostOutside": one.most_outside} if one.requests else {}),
            }
            for one in found.classes
        ],
        "tasks": [_task(one) for one in found.tasks],
        "winners": [
            {"task": one.task, **({"target": one.target} if one.target is not None else {}), "why": one.why}
            for one in found.winners
        ],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    values = {
        "value": figure.value,
        "n": figure.n,
        "low": figure.low,
        "high": figure.high,
        "at": figure.at.isoformat() if figure.at is not None else None,
        "note": figure.note or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _task(one: TaskResult) -> dict[str, Any]:
    values = {
        "task": one.task,
        "evaluation": one.evaluation,
        "target": one.target,
        "verdict": one.verdict,
        "present": one.present,
        "quality": _figure(one.quality) if one.quality is not None else None,
        "firstTokenP99Seconds": one.first_token_p99_s,
        "usdPerThousandTasks": str(one.usd_per_thousand) if one.usd_per_thousand is not None else None,
    }
    return {name: value for name, value in values.items() if value is not None}


ROWS: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    (
        "Latency",
        (
            ("firstTokenP50", "first token p50"),
            ("firstTokenP99", "first token p99"),
            ("totalP50", "whole answer p50"),
            ("totalP99", "whole answer p99"),
        ),
    ),
    ("Cost", (("costPerThousandTasks", "for 1000 tasks"),)),
    ("Quality", (("quality", "right answers"),)),
    ("Tail", (("errorRate", "failed"), ("escalationRate", "escalated"), ("malformed", "malformed"))),
)
"""The rows with figures; sovereignty has a table of its own."""


def text(found: Envelope) -> list[str]:
    """The lines for a terminal of 80 columns."""
    period = (
        f"{found.start:%Y-%m-%d %H:%M} to {found.end:%Y-%m-%d %H:%M} UTC"
        if found.start
        else "since the start of the gateways"
    )
    lines = [f"RoutingPolicy {found.namespace}/{found.policy}", f"{period}, from {found.source}"]
    width = min(max([len(one.name) for one in found.targets], default=3), 20)
    for title, names in ROWS:
        rows = [
            f"  {one.name[:width]:<{width}}  {label:<16}  {shown(name, one.figures[name], found.end)}"
            for one in found.targets
            for name, label in names
            if name in one.figures
        ]
        lines += ["", title, *(rows or ["  nothing is known"])]
    lines += ["", "Sovereignty"]
    width = min(max([len(one.name) for one in found.classes], default=3), 20)
    for one in found.classes:
        where = (
            f"{one.outside:,} outside its class" if one.outside else f"none outside (at most {one.most_outside:.2%})"
        )
        seen = f"{one.requests:,} requests, {where}" if one.requests else "no request"
        lines.append(f"  {one.name[:width]:<{width}}  {seen}; {one.refused:,} refused")
    lines += ["", "Which model wins for which task"]
    for winner in found.winners:
        lines.append(f"  {winner.task}: {winner.target or 'none'}")
        lines.append(f"    {winner.why}"[:80])
    return lines if found.winners else [*lines, "  no evaluation has a result about these targets"]


def shown(name: str, figure: Figure, end: datetime) -> str:
    """A figure with its interval, its n and its age, for a terminal."""
    unit = NAMES[name]
    value = _unit(figure.value, unit)
    if figure.low is not None and figure.high is not None:
        value += f" [{_unit(figure.low, unit)} to {_unit(figure.high, unit)}]"
    age = f", {_age(end - figure.at)} old" if figure.at is not None else ""
    return f"{value}, n {figure.n:,}{age}"


def _unit(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "USD":
        return f"${value:.4f}" if value < 0.1 else f"${value:.2f}"
    return f"{100 * value:.1f} %" if not unit else _plain(value)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _age(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours / 24:.0f} d" if hours >= 48 else f"{hours:.0f} h"


def page(found: Envelope) -> str:
    """The HTML, without scripts and without requests to other hosts."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    style = (folder / "page.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals.update(shown=shown, rows=ROWS)
    template = environment.from_string((folder / "envelope.html.j2").read_text())
    return template.render(
        style=style,
        style_hash=f"sha256-{digest}",
        found=found,
        quality_chart=_chart(found, "quality", "Right answers, with the interval of 95 %"),
        latency_chart=_chart(found, "firstTokenP99", "First token, 99th percentile, with its interval"),
    )


def _chart(found: Envelope, name: str, title: str) -> str:
    """A line for each target: its interval, and its value as a point; empty where nothing is known."""
    known = [(one.name, one.figures[name]) for one in found.targets if name in one.figures]
    if not known:
        return ""
    top = max(figure.high or figure.value for _, figure in known) or 1.0
    width, left, row = 760, 150, 34
    root = ElementTree.Element(
        "svg", {"viewBox": f"0 0 {width} {len(known) * row + 8}", "role": "img", "aria-label": title}
    )

    def x(value: float) -> str:
        return f"{left + (width - left - 170) * value / top:.1f}"

    for index, (label, figure) in enumerate(known):
        y = index * row + 18
        ElementTree.SubElement(root, "text", {"x": "0", "y": str(y + 4)}).text = label[:20]
        low, high = figure.low if figure.low is not None else 0.0, figure.high or figure.value
        ends = {"class": "axis", "x1": x(low), "x2": x(high), "y1": str(y), "y2": str(y)}
        ElementTree.SubElement(root, "line", ends)
        ElementTree.SubElement(root, "circle", {"class": "serving", "cx": x(figure.value), "cy": str(y), "r": "5"})
        shown_at = {"x": f"{width - 160}", "y": str(y + 4)}
        ElementTree.SubElement(root, "text", shown_at).text = f"{_unit(figure.value, NAMES[name])}, n {figure.n:,}"
    return ElementTree.tostring(root, encoding="unicode")
