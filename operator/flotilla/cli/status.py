"""`flotilla status`: the fleet at a glance, from the statuses of its resources."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from flotilla.cli.common import (
    EXIT_NO,
    EXIT_OK,
    AllNamespaces,
    Context,
    Json,
    Kubeconfig,
    Namespace,
    command_app,
    exit_on_error,
    watch,
)
from flotilla.cli.kubeconfig import Cluster
from flotilla.kube.kinds import MODEL_DEPLOYMENT, ROUTING_POLICY

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

app = command_app()
Object = Mapping[str, Any]
_CENT = Decimal("0.01")
_COLOURS = {"Ready": "green", "Reconciling": "yellow", "Stalled": "red"}
_WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The resources of one namespace, or of all."""

    models: Sequence[Object]
    policies: Sequence[Object]

    @property
    def all_ready(self) -> bool:
        """Whether everything is Ready."""
        return all(state(obj)[0] == "Ready" for obj in (*self.models, *self.policies))


async def fleet(client: "KubeClient", namespace: str | None) -> Fleet:
    """Two lists; `namespace` None means every namespace."""
    models = await client.list(MODEL_DEPLOYMENT, namespace=namespace)
    policies = await client.list(ROUTING_POLICY, namespace=namespace)
    return Fleet(_sorted(models.items), _sorted(policies.items))


def _sorted(items: Sequence[Object]) -> list[Object]:
    return sorted(items, key=lambda obj: (obj["metadata"]["namespace"], obj["metadata"]["name"]))


def conditions(obj: Object) -> dict[str, Object]:
    """By type."""
    return {c["type"]: c for c in (obj.get("status") or {}).get("conditions") or ()}


def state(obj: Object) -> tuple[str, str, str]:
    """Ready, Reconciling or Stalled, with the reason and the message of the condition that decides it."""
    found = conditions(obj)
    if (obj.get("status") or {}).get("observedGeneration") != obj["metadata"].get("generation"):
        return (
            "Reconciling",
            "NotSeen",
            "The operator has not seen the latest change yet. Check that it runs: flotilla doctor.",
        )
    for name in ("Stalled", "Ready"):
        if found.get(name, {}).get("status") == "True":
            return name, found[name]["reason"], found[name]["message"]
    deciding = found.get("Reconciling", {})
    deciding = deciding if deciding.get("status") == "True" else found.get("Ready", {})
    return "Reconciling", deciding.get("reason", "Unknown"), deciding.get("message", "")


def usd_per_hour(model: Object) -> Decimal | None:
    """Of the replicas that hold a node; None where the price or the number of GPUs is not known."""
    status = model.get("status") or {}
    price = (status.get("cost") or {}).get("gpuHourlyPrice")
    gpus, replicas = (status.get("accelerator") or {}).get("count"), status.get("scheduledReplicas")
    if price is None or gpus is None or replicas is None:
        return None
    return Decimal(price) * int(gpus) * int(replicas)


def gpus(model: Object) -> int:
    """Held by the replicas that have a node."""
    status = model.get("status") or {}
    accelerator = status.get("accelerator") or {}
    if "resource" not in accelerator:
        return 0
    return int(accelerator.get("count") or 0) * int(status.get("scheduledReplicas") or 0)


def row(model: Object) -> dict[str, Any]:
    """One model as plain data; what is unknown is absent."""
    status, (name, reason, message) = model.get("status") or {}, state(model)
    accelerator, cost = status.get("accelerator") or {}, usd_per_hour(model)
    values = {
        "namespace": model["metadata"]["namespace"],
        "name": model["metadata"]["name"],
        "source": model["spec"]["model"]["source"],
        "engine": " ".join(filter(None, map((status.get("engine") or {}).get, ("name", "version")))) or None,
        "quantization": (status.get("quantization") or {}).get("method"),
        "accelerator": accelerator.get("class") or model["spec"]["accelerator"]["class"],
        "gpus_per_replica": accelerator.get("count"),
        "ready_replicas": status.get("readyReplicas"),
        "desired_replicas": (status.get("scaling") or {}).get("desiredReplicas"),
        "usd_per_hour": None if cost is None else str(cost.quantize(_CENT)),
        "state": name,
        "reason": reason,
        "message": message,
        "endpoint": status.get("endpoint"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _policy_row(policy: Object) -> dict[str, Any]:
    name, reason, message = state(policy)
    meta = policy["metadata"]
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "host_models": policy["spec"]["hostModels"],
        "state": name,
        "reason": reason,
        "message": message,
    }


def json_text(found: Fleet) -> str:
    """Models, policies and totals."""
    rows = [row(model) for model in found.models]
    return json.dumps(
        {"models": rows, "policies": [_policy_row(policy) for policy in found.policies], "total": _total(found)},
        indent=2,
    )


def _total(found: Fleet) -> dict[str, Any]:
    costs = [usd_per_hour(model) for model in found.models]
    known = [cost for cost in costs if cost is not None]
    total: dict[str, Any] = {"models": len(found.models), "gpus": sum(map(gpus, found.models))}
    if known:
        total["usd_per_hour"] = str(sum(known, Decimal(0)).quantize(_CENT))
    if len(known) < len(costs):
        total["models_without_price"] = len(costs) - len(known)
    return total


def view(found: Fleet, *, everywhere: bool) -> Group:
    """Tables for a terminal."""
    if not found.models and not found.policies:
        return Group(Text("There is no ModelDeployment and no RoutingPolicy here. Use -A for every namespace."))
    parts: list[Any] = []
    if found.models:
        parts.append(_models(found.models, everywhere))
        total = _total(found)
        price = f", {total['usd_per_hour']} $/h" if "usd_per_hour" in total else ""
        missing = f" ({total['models_without_price']} without a price)" if "models_without_price" in total else ""
        parts.append(Text(f"{total['models']} models, {total['gpus']} GPUs{price}{missing}", style="bold"))
    if found.policies:
        parts.append(_policies(found.policies, everywhere))
    troubles = [(obj, *state(obj)) for obj in (*found.models, *found.policies) if state(obj)[0] == "Stalled"]
    parts += [Text(f"\n{obj['metadata']['name']}: {message}", style="red") for obj, _, _, message in troubles]
    return Group(*parts)


def _table(*names: str, everywhere: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in (*(("NAMESPACE",) if everywhere else ()), *names):
        table.add_column(name, no_wrap=True, justify="right" if name in ("READY", "$/H") else "left")
    return table


def _models(models: Sequence[Object], everywhere: bool) -> Table:
    table = _table(
        "MODEL", "ENGINE", "WEIGHTS", "ACCELERATOR", "READY", "$/H", "STATE", "REASON", everywhere=everywhere
    )
    for model in models:
        values = row(model)
        count = values.get("gpus_per_replica", "?")
        table.add_row(
            *((values["namespace"],) if everywhere else ()),
            values["name"],
            values.get("engine", "-"),
            values.get("quantization", "-"),
            f"{count} x {values['accelerator']}",
            f"{values.get('ready_replicas', '-')}/{values.get('desired_replicas', '-')}",
            values.get("usd_per_hour", "-"),
            Text(values["state"], style=_COLOURS[values["state"]]),
            values["reason"],
        )
    return table


def _policies(policies: Sequence[Object], everywhere: bool) -> Table:
    table = _table("\nPOLICY", "\nHOSTS", "\nSTATE", "\nREASON", everywhere=everywhere)
    for policy in policies:
        values = _policy_row(policy)
        hosts = ", ".join(values["host_models"])
        named = (values["namespace"],) if everywhere else ()
        table.add_row(
            *named, values["name"], hosts, Text(values["state"], style=_COLOURS[values["state"]]), values["reason"]
        )
    return table


@app.command()
def status(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    watching: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show the fleet: replicas, state, dollars.

    Exit code 0: everything is ready; 1: something is not; 3: the cluster does
    not answer.
    """
    console = Console()
    with exit_on_error():
        cluster = Cluster.find(kubeconfig, context)
        where = None if all_namespaces else namespace or cluster.namespace()

        def look() -> Fleet:
            return cluster.ask(lambda client: fleet(client, where))

        found = look()
        if watching:
            watch(console, lambda: view(look(), everywhere=all_namespaces), _WATCH_S)
    if as_json:
        typer.echo(json_text(found))
    else:
        console.print(view(found, everywhere=all_namespaces))
    raise typer.Exit(EXIT_OK if found.all_ready else EXIT_NO)
