"""What the page shows, as JSON: from the objects' own status and from the numbers that Prometheus would read.

The metrics' names are the interface, so that the page and a dashboard always agree.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

_WINDOW = "1h"
_NUMBERS = {
    "flotilla_queue_depth": "queueDepth",
    "flotilla_requests_waiting": "waiting",
    "flotilla_requests_running": "running",
    "flotilla_desired_replicas": "desiredReplicas",
    "flotilla_ready_replicas": "readyReplicas",
    "flotilla_deployment_cost_usd_per_hour": "usdPerHour",
}
"""Metrics with one value per deployment (summed over their other labels), and their names here."""


class MetricSample(NamedTuple):
    """One sample of the collector."""

    name: str
    labels: Mapping[str, str]
    value: float


def fleet(
    models: Iterable[Mapping[str, Any]],
    policies: Iterable[Mapping[str, Any]],
    samples: Iterable[MetricSample],
    decisions: Sequence[Mapping[str, Any]],
) -> Json:
    """The whole page; what is unknown is absent. `decisions` are the newest Kubernetes Events, the oldest first."""
    numbers = _by_deployment(samples)
    rows = [_model(model, numbers.get(_name(model), {})) for model in models]
    rows.sort(key=lambda row: (row["namespace"], row["name"]))
    routes = sorted((_policy(policy) for policy in policies), key=lambda row: (row["namespace"], row["name"]))
    return {
        "totals": _totals(rows),
        "models": rows,
        "policies": routes,
        "decisions": [_decision(event) for event in reversed(decisions)],
    }


def _name(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _by_deployment(samples: Iterable[MetricSample]) -> dict[tuple[str, str], Json]:
    found: dict[tuple[str, str], Json] = defaultdict(dict)
    for sample in samples:
        labels = sample.labels
        if "modeldeployment" not in labels:
            continue
        mine = found[labels["namespace"], labels["modeldeployment"]]
        if (key := _NUMBERS.get(sample.name)) is not None:
            mine[key] = mine.get(key, 0.0) + sample.value
        elif labels.get("window") != _WINDOW:
            continue
        elif sample.name == "flotilla_deployment_cost_usd_per_million_tokens":
            if labels.get("token_type") == "blended":
                mine["usdPerMillionTokens"] = sample.value
        elif sample.name == "flotilla_savings_usd":
            mine.setdefault("savingsUsd", {})[labels["comparator"]] = sample.value
    return found


def _model(live: Mapping[str, Any], numbers: Json) -> Json:
    namespace, name = _name(live)
    status = live.get("status") or {}
    accelerator = status.get("accelerator") or {}
    savings = numbers.pop("savingsUsd", {})
    known = {
        "engine": (status.get("engine") or {}).get("name"),
        "quantization": (status.get("quantization") or {}).get("method"),
        "accelerator": f"{accelerator['count']} x {accelerator['class']}" if accelerator else None,
    }
    return {
        "namespace": namespace,
        "name": name,
        "source": live["spec"]["model"]["source"],
        **{key: value for key, value in known.items() if value is not None},
        **numbers,
        "savings": [{"comparator": comparator, "usd": savings[comparator]} for comparator in sorted(savings)],
        "state": _state(status),
        "conditions": _conditions(status),
    }


def _state(status: Mapping[str, Any]) -> str:
    """One word for a glance: Stalled, Reconciling, Ready, or Pending before the first status."""
    true = {c["type"] for c in status.get("conditions") or () if c["status"] == "True"}
    return next((state for state in ("Stalled", "Reconciling", "Ready") if state in true), "Pending")


def _conditions(status: Mapping[str, Any]) -> list[Json]:
    fields = ("type", "status", "reason", "message", "lastTransitionTime")
    return [{field: c[field] for field in fields if field in c} for c in status.get("conditions") or ()]


def _policy(live: Mapping[str, Any]) -> Json:
    namespace, name = _name(live)
    spec, status = live["spec"], live.get("status") or {}
    return {
        "namespace": namespace,
        "name": name,
        "hostModels": list(spec.get("hostModels") or ()),
        "targets": [target["name"] for target in spec.get("targets") or ()],
        "rules": [rule["name"] for rule in spec.get("rules") or ()],
        "state": _state(status),
        "conditions": _conditions(status),
    }


def _decision(event: Mapping[str, Any]) -> Json:
    regarding = event["regarding"]
    return {
        "at": event["eventTime"],
        "type": event["type"],
        "reason": event["reason"],
        "note": event["note"],
        "object": f"{regarding['kind']} {regarding['namespace']}/{regarding['name']}",
    }


def _totals(rows: Sequence[Json]) -> Json:
    totals: Json = {
        "models": len(rows),
        "serving": sum(row.get("readyReplicas", 0) > 0 for row in rows),
        "stalled": sum(row["state"] == "Stalled" for row in rows),
    }
    for key in ("usdPerHour", "waiting", "running"):
        values = [row[key] for row in rows if key in row]
        if values:
            totals[key] = sum(values)
    return totals
