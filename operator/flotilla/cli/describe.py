"""`flotilla describe`: one model, from its resource, its pods and its events."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.cli import status
from flotilla.cli.common import Context, Json, Kubeconfig, Namespace, command_app, exit_on_error
from flotilla.cli.kubeconfig import Cluster
from flotilla.constants import LABEL_MANAGED_BY, LABEL_MODEL, MANAGER
from flotilla.errors import NotReady
from flotilla.kube.kinds import EVENT, MODEL_DEPLOYMENT, POD

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

app = command_app()
Object = Mapping[str, Any]
_EVENTS = 10


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What the apiserver knows about it."""

    resource: Object
    pods: Sequence[Object]
    events: Sequence[Object]
    """The newest last."""


async def model(client: "KubeClient", namespace: str, name: str) -> ModelDescription:
    """Raises NotReady with the models that there are."""
    resource = await resource_of(client, namespace, name)
    pods = await pods_of(client, namespace, selector_of(name))
    events = await client.list(EVENT, namespace=namespace, field_selector=f"regarding.name={name}")
    return ModelDescription(resource, pods, sorted(events.items, key=_time))


async def resource_of(client: "KubeClient", namespace: str, name: str) -> Object:
    """Raises NotReady with the models that there are."""
    resource = await client.get(MODEL_DEPLOYMENT, name, namespace=namespace)
    if resource is None:
        there = [obj["metadata"]["name"] for obj in (await client.list(MODEL_DEPLOYMENT, namespace=namespace)).items]
        known = f"There are {', '.join(sorted(there))}." if there else "There is none."
        raise NotReady(f"No ModelDeployment {name!r} in namespace {namespace}. {known}")
    return resource


def selector_of(name: str) -> dict[str, str]:
    """The labels of the pods of a ModelDeployment."""
    return {LABEL_MANAGED_BY: MANAGER, LABEL_MODEL: name}


async def pods_of(client: "KubeClient", namespace: str, labels: Mapping[str, str]) -> list[Object]:
    """By name."""
    selector = ",".join(f"{label}={value}" for label, value in labels.items())
    pods = [pod async for page in client.pages(POD, namespace=namespace, label_selector=selector) for pod in page.items]
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))


def _time(event: Object) -> str:
    return str(event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def pod_row(pod: Object) -> dict[str, Any]:
    """Name, node, readiness, restarts, and the reason of a wait."""
    container: Object = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("lastState") or {}).get("terminated") or {}
    values = {
        "name": pod["metadata"]["name"],
        "node": pod["spec"].get("nodeName"),
        "ready": bool(container.get("ready")),
        "restarts": container.get("restartCount", 0),
        "waiting": waiting.get("reason"),
        "last_exit": ended.get("reason") if ended else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def json_text(found: ModelDescription) -> str:
    """The row of `status`, the whole status, pods and events."""
    events = [_event(event) for event in found.events[-_EVENTS:]]
    return json.dumps(
        {
            **status.row(found.resource),
            "status": found.resource.get("status") or {},
            "pods": [pod_row(pod) for pod in found.pods],
            "events": events,
        },
        indent=2,
    )


def _event(event: Object) -> dict[str, str]:
    return {
        "time": _time(event),
        "type": event.get("type", ""),
        "reason": event.get("reason", ""),
        "note": event.get("note", ""),
    }


def facts(found: ModelDescription) -> dict[str, str]:
    """The decisions and the basis of each, in reading order; what is unknown is left out."""
    resource = found.resource
    current, values = resource.get("status") or {}, status.row(resource)
    weights, fit, cost = (current.get(key) or {} for key in ("quantization", "fit", "cost"))
    scaling, spec = current.get("scaling") or {}, resource["spec"].get("scaling") or {}
    rows = {
        "State": f"{values['state']} ({values['reason']})",
        "Source": values["source"],
        "Engine": values.get("engine"),
        "Image": (current.get("engine") or {}).get("image"),
        "Weights": " ".join(filter(None, (weights.get("method"), weights.get("note") and f"({weights['note']})"))),
        "Accelerator": f"{values.get('gpus_per_replica', '?')} x {values['accelerator']} per replica",
        "Memory": _memory(fit),
        "Context": _context(fit),
        "Replicas": f"{values.get('ready_replicas', '?')} ready of {scaling.get('desiredReplicas', '?')} wanted",
        "Scaling": _scaling(scaling, spec),
        "Price": _price(cost, values.get("usd_per_hour")),
        "Compared with": ", ".join(f"{c['provider']}/{c['model']}" for c in cost.get("comparators") or ()),
        "Endpoint": current.get("endpoint"),
    }
    return {name: text for name, text in rows.items() if text}


def _scaling(scaling: Object, spec: Object) -> str:
    mode = scaling.get("mode", "?")
    if mode != "Internal":
        return str(mode)
    parts = (
        f"{mode}, {spec.get('minReplicas', 1)} to {spec.get('maxReplicas', 1)}",
        scaling.get("source") and f"from the queues of {scaling['source']}",
        scaling.get("panicSince") and f"in panic since {scaling['panicSince']}",
    )
    return ", ".join(filter(None, parts))


def _memory(fit: Object) -> str:
    if not fit:
        return ""
    parts = (("weights", "weightsMib"), ("working", "workingMib"), ("KV cache", "kvCacheMib"))
    sizes = ", ".join(f"{name} {fit[key] / 1024:.1f} GiB" for name, key in parts if key in fit)
    return f"{fit.get('verdict', '?')}: {sizes}"


def _context(fit: Object) -> str:
    if "contextLength" not in fit:
        return ""
    longest = fit.get("longestContextLength", 0)
    more = f"; {longest:,} would fit" if longest > fit["contextLength"] else ""
    requests = fit.get("concurrentRequests", "?")
    return f"{fit['contextLength']:,} tokens, {requests} concurrent requests of full context length{more}"


def _price(cost: Object, total: str | None) -> str:
    if "gpuHourlyPrice" not in cost:
        return ""
    basis = ", ".join(filter(None, (cost.get("priceSource"), cost.get("priceAsOf"))))
    return f"{cost['gpuHourlyPrice']} $ per GPU-hour ({basis})" + (f"; now {total} $/h" if total else "")


def show(console: Console, found: ModelDescription) -> None:
    """Facts, conditions, pods, events."""
    meta = found.resource["metadata"]
    console.print(Text(f"{meta['namespace']}/{meta['name']}", style="bold"))
    console.print(_grid([(Text(name, style="dim"), text) for name, text in facts(found).items()]))
    good = {"Reconciling": "False", "Stalled": "False"}
    rows = []
    for type_, condition in sorted(status.conditions(found.resource).items()):
        fine = condition["status"] == good.get(type_, "True")
        mark = Text(condition["status"], style="green" if fine else "yellow")
        rows.append((type_, mark, condition["reason"], "" if fine else condition["message"]))
    _section(console, "Conditions", rows)
    _section(console, "Pods", [_pod_cells(pod_row(pod)) for pod in found.pods])
    events = map(_event, found.events[-_EVENTS:])
    _section(
        console, "Events", [(event["time"][:19], event["type"], event["reason"], event["note"]) for event in events]
    )


def _pod_cells(pod: Mapping[str, Any]) -> tuple[str, ...]:
    state = "ready" if pod["ready"] else pod.get("waiting", "starting")
    return pod["name"], pod.get("node", "no node"), state, f"{pod['restarts']} restarts"


def _section(console: Console, title: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        console.print(Text(f"\n{title}", style="bold"))
        console.print(_grid(rows))


def _grid(rows: Sequence[tuple[Any, ...]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for values in rows:
        grid.add_row(*values)
    return grid


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Name of a ModelDeployment.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Show one model: what was decided and why, its conditions, pods and events.

    Exit code 1: there is no model of that name; 3: the cluster does not answer.
    """
    with exit_on_error():
        cluster = Cluster.find(kubeconfig, context)
        where = namespace or cluster.namespace()
        found = cluster.ask(lambda client: model(client, where, name))
    if as_json:
        typer.echo(json_text(found))
    else:
        show(Console(), found)
