"""`flotilla doctor`: check a cluster for what models need, each finding with its remedy.

`read` asks the cluster, `examine` decides on what was found, without I/O.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.api import crd
from flotilla.catalog.accelerators import Accelerator, load_accelerators
from flotilla.cli.common import (
    EXIT_NO,
    EXIT_OK,
    Context,
    Json,
    Kubeconfig,
    OperatorNamespace,
    command_app,
    exit_on_error,
)
from flotilla.cli.kubeconfig import Cluster
from flotilla.cli.status import conditions, state
from flotilla.errors import Forbidden
from flotilla.kube.kinds import DEPLOYMENT, LEASE, MODEL_DEPLOYMENT, NODE, ROUTING_POLICY, Kind

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

app = command_app()
Object = Mapping[str, Any]
Answer = TypeVar("Answer")
_CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
_STORAGE_CLASS = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
_ACCESS = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
_CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
_POD_MONITORS = "podmonitors.monitoring.coreos.com"
_OPERATOR = "flotilla-operator"
_OLDEST_KUBELET = (1, 30)
"""From this version on, sleeping preStop hooks are enabled by default."""
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.full", "amd.com/gpu.driver-version")
_SHOWN = 5


class Result(StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


_COLOURS = {Result.OK: "green", Result.WARN: "yellow", Result.FAIL: "red", Result.UNKNOWN: "dim"}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `remedy` is empty where nothing is to be done."""

    name: str
    result: Result
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the cluster answered; None where access was denied."""

    crds: Mapping[str, Object | None]
    """Live CRDs by name; None for one that is not there."""
    wanted_crds: Mapping[str, Object]
    operators: Sequence[Object] | None
    """Deployments of the operator."""
    lease: Object | None
    now: datetime
    missing_rights: Sequence[str] | None
    """Verbs that the operator's ServiceAccount lacks."""
    nodes: Sequence[Object] | None
    storage_classes: Sequence[Object] | None
    pod_monitors: bool | None
    """Whether the cluster knows PodMonitors."""
    models: Sequence[Object] | None
    policies: Sequence[Object] | None
    accelerators: Mapping[str, Accelerator] = field(default_factory=dict)


def examine(facts: Facts) -> list[Check]:
    """All checks, in the order in which to repair."""
    found = [_crds(facts), _operator(facts), _rights(facts)]
    found += _nodes(facts)
    found += [_storage(facts), _prometheus(facts)]
    found += _resources(facts)
    return found


def _few(items: Iterable[str]) -> str:
    names = list(items)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _hidden(name: str, what: str) -> Check:
    return Check(name, Result.UNKNOWN, f"You may not list {what}.", "Run this check as a user who may.")


def _crds(facts: Facts) -> Check:
    remedy = "helm upgrade --install flotilla charts/flotilla, or flotilla crds | kubectl apply --server-side -f -"
    if missing := [name for name, live in facts.crds.items() if live is None]:
        return Check("CRDs", Result.FAIL, f"Missing: {_few(missing)}.", remedy)

    def schema(crd: Object) -> Any:
        return crd["spec"]["versions"]

    stale = [
        name
        for name, live in facts.crds.items()
        if live is not None and schema(live) != schema(facts.wanted_crds[name])
    ]
    if stale:
        return Check("CRDs", Result.WARN, f"From another release than this command: {_few(stale)}.", remedy)
    return Check("CRDs", Result.OK, "Both CRDs are of this release.")


def _operator(facts: Facts) -> Check:
    install = "helm upgrade --install flotilla charts/flotilla --namespace flotilla-system --create-namespace"
    if facts.lease is None:
        if facts.operators:
            where = facts.operators[0]["metadata"]
            return Check(
                "Operator",
                Result.FAIL,
                f"Deployment {where['namespace']}/{where['name']} has never taken its Lease.",
                f"kubectl --namespace {where['namespace']} logs deployment/{where['name']}",
            )
        return Check("Operator", Result.FAIL, "No operator has ever taken the Lease.", install)
    spec = facts.lease["spec"]
    holder, duration_s = spec.get("holderIdentity") or "", float(spec.get("leaseDurationSeconds") or 60)
    renewed = datetime.fromisoformat(spec["renewTime"]) if spec.get("renewTime") else None
    silent_s = (facts.now - renewed).total_seconds() if renewed else float("inf")
    if not holder or silent_s > duration_s:
        since = f"for {silent_s:.0f} s" if renewed else "ever"
        return Check("Operator", Result.FAIL, f"No operator has renewed the Lease {since}, so none acts.", install)
    replicas = sum(int((o.get("status") or {}).get("readyReplicas") or 0) for o in facts.operators or ())
    beside = f", {replicas} ready" if facts.operators else ", outside the cluster"
    return Check("Operator", Result.OK, f"{holder} holds the Lease{beside}.")


def _rights(facts: Facts) -> Check:
    if facts.missing_rights is None:
        return _hidden("RBAC", "what the operator's ServiceAccount may do")
    if facts.missing_rights:
        message = f"The operator {_few(facts.missing_rights)}."
        return Check("RBAC", Result.FAIL, message, "Apply the roles of this release: helm upgrade, or manifests/base.")
    return Check("RBAC", Result.OK, "The operator has all permissions it needs.")


def _nodes(facts: Facts) -> Iterator[Check]:
    if facts.nodes is None:
        yield _hidden("Nodes", "nodes")
        return
    old = [_name(node) for node in facts.nodes if _kubelet(node) < _OLDEST_KUBELET]
    if old:
        version = ".".join(map(str, _OLDEST_KUBELET))
        yield Check("Kubelets", Result.FAIL, f"Older than {version}: {_few(old)}.", "Upgrade these nodes.")
    yield _accelerators(facts, facts.nodes)
    yield from _unusable(facts, facts.nodes)
    yield from _drivers(facts.nodes)


def _name(node: Object) -> str:
    return str(node["metadata"]["name"])


def _kubelet(node: Object) -> tuple[int, int]:
    version = str(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion") or "v0.0")
    major, _, rest = version.removeprefix("v").partition(".")
    return int(major), int("".join(filter(str.isdigit, rest.partition(".")[0])) or 0)


def _labels(node: Object) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def _amount(node: Object, resource: str) -> int:
    return int(((node.get("status") or {}).get("allocatable") or {}).get(resource) or 0)


def _classes(node: Object, table: Mapping[str, Accelerator]) -> list[Accelerator]:
    """GPU classes whose labels the node carries."""
    labels = _labels(node)
    return [
        row
        for row in table.values()
        if row.resource and any(labels.get(key) in values for key, values in row.node_labels)
    ]


def _gpus(node: Object) -> dict[str, int]:
    """Extended resources of accelerators, by name."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return {
        name: int(count)
        for name, count in allocatable.items()
        if name.startswith(("nvidia.com/gpu", "nvidia.com/mig", "amd.com/gpu")) and int(count)
    }


def _accelerators(facts: Facts, nodes: Sequence[Object]) -> Check:
    counted: Counter[str] = Counter()
    for node in nodes:
        for row in _classes(node, facts.accelerators):
            counted[row.class_name] += _amount(node, row.resource)
    there = {name: count for name, count in sorted(counted.items()) if count}
    if there:
        return Check("Accelerators", Result.OK, _few(f"{count} x {name}" for name, count in there.items()) + ".")
    message = "No node has an accelerator of a known class at present."
    remedy = "This is fine where an autoscaler adds GPU nodes. Otherwise add one, or use the class cpu."
    return Check("Accelerators", Result.WARN, message, remedy)


def _unusable(facts: Facts, nodes: Sequence[Object]) -> Iterator[Check]:
    unallocatable = [_name(n) for n in nodes if (rows := _classes(n, facts.accelerators)) and not _gpus(n) and rows]
    if unallocatable:
        yield Check(
            "Device plugin",
            Result.FAIL,
            f"Labelled as GPU nodes, but without allocatable GPUs: {_few(unallocatable)}.",
            "Install the vendor's GPU operator or device plugin, and check its pods on these nodes.",
        )
    unknown = [_name(node) for node in nodes if _gpus(node) and not _classes(node, facts.accelerators)]
    if unknown:
        yield Check(
            "GPU labels",
            Result.FAIL,
            f"GPUs of an unknown class: {_few(unknown)}.",
            "Install GPU feature discovery, or describe them in your own class (docs/guides/accelerators.md).",
        )
    taints = sorted({taint for node in nodes if _gpus(node) for taint in _foreign_taints(facts, node)})
    if taints:
        yield Check(
            "Taints",
            Result.WARN,
            f"GPU nodes have taints that models do not tolerate by default: {_few(taints)}.",
            "Add them to spec.scheduling.tolerations of the models that may run there.",
        )


def _foreign_taints(facts: Facts, node: Object) -> Iterator[str]:
    own = {row.taint for row in _classes(node, facts.accelerators)}
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and taint["key"] not in own and "kubernetes.io/" not in taint["key"]:
            yield f"{taint['key']}:{taint['effect']}"


def _drivers(nodes: Sequence[Object]) -> Iterator[Check]:
    gpu_nodes = [node for node in nodes if _gpus(node)]
    versions = Counter(next((_labels(node)[k] for k in _DRIVER_LABELS if k in _labels(node)), "") for node in gpu_nodes)
    if known := {version: count for version, count in sorted(versions.items()) if version}:
        yield Check("Drivers", Result.OK, _few(f"{version} on {count} nodes" for version, count in known.items()) + ".")
    elif gpu_nodes:
        yield Check(
            "Drivers",
            Result.UNKNOWN,
            "No node reports the version of its driver.",
            "Install GPU feature discovery. An engine's image needs a driver of its CUDA version or newer.",
        )


def _storage(facts: Facts) -> Check:
    if facts.storage_classes is None:
        return _hidden("Storage", "storage classes")
    default = [
        _name(one)
        for one in facts.storage_classes
        if (one["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    if default:
        return Check("Storage", Result.OK, f"{_few(default)} is the default class.")
    return Check(
        "Storage",
        Result.WARN,
        "No storage class is the default.",
        "A claim for spec.model.cache has to name its storage class.",
    )


def _prometheus(facts: Facts) -> Check:
    if facts.pod_monitors is None:
        return _hidden("Prometheus", "CustomResourceDefinitions")
    if facts.pod_monitors:
        return Check(
            "Prometheus", Result.OK, "A Prometheus operator is installed: the chart's monitoring values can be used."
        )
    return Check(
        "Prometheus",
        Result.WARN,
        "The cluster has no PodMonitor CRD.",
        "Install a Prometheus operator, or scrape /metrics by its annotations. Scaling does not need Prometheus.",
    )


def _resources(facts: Facts) -> Iterator[Check]:
    if facts.models is None or facts.policies is None:
        yield _hidden("Models", "ModelDeployments and RoutingPolicies")
        return
    things = [*facts.models, *facts.policies]
    # The items of a list have no kind.
    kinds = [*("modeldeployment" for _ in facts.models), *("routingpolicy" for _ in facts.policies)]
    judged = [(kind, obj, state(obj)) for kind, obj in zip(kinds, things, strict=True)]
    stalled = [found for found in judged if found[2][0] == "Stalled"]
    for kind, obj, (_, reason, message) in stalled[:_SHOWN]:
        meta = obj["metadata"]
        remedy = f"kubectl describe {kind} {meta['name']} --namespace {meta['namespace']}"
        yield Check(f"{meta['namespace']}/{meta['name']}", Result.FAIL, f"{reason}: {message}", remedy)
    unpriced = [_name(obj) for obj in facts.models if conditions(obj).get("CostKnown", {}).get("status") == "False"]
    if unpriced:
        yield Check(
            "Prices",
            Result.WARN,
            f"A price is missing for {_few(unpriced)}.",
            "See the condition CostKnown of each. Set spec.cost.gpuHourlyPrice or a price in the accelerator's class.",
        )
    elif facts.models:
        yield Check("Prices", Result.OK, "Every model has a price.")
    ready = sum(state(obj)[0] == "Ready" for obj in things)
    if things:
        summary = f"{ready} of {len(things)} resources are ready."
        if ready == len(things):
            yield Check("Models", Result.OK, summary)
        else:
            yield Check("Models", Result.WARN, summary, "flotilla status --all-namespaces shows the reason of each.")


async def read(client: "KubeClient", operator_namespace: str) -> Facts:
    """All facts; what is forbidden becomes None."""
    wanted = {definition["metadata"]["name"]: definition for definition in map(crd.crd, crd.DEFINITIONS)}
    operators = await _allowed(lambda: _operators(client))
    where = operators[0] if operators else None
    namespace = where["metadata"]["namespace"] if where else operator_namespace
    name = where["metadata"]["name"] if where else _OPERATOR
    account = where["spec"]["template"]["spec"].get("serviceAccountName", "default") if where else _OPERATOR
    watched = await _allowed(lambda: _watched(client, where)) or []
    monitors = await _allowed(lambda: client.get(_CRD, _POD_MONITORS))
    crds_seen = await _allowed(lambda: _live(client, wanted))
    return Facts(
        crds=wanted if crds_seen is None else crds_seen,
        wanted_crds=wanted,
        operators=operators,
        lease=await _allowed(lambda: client.get(LEASE, name, namespace=namespace)),
        now=datetime.now(UTC),
        missing_rights=await _allowed(lambda: _missing(client, namespace, account, watched)),
        nodes=await _allowed(lambda: _items(client, NODE)),
        storage_classes=await _allowed(lambda: _items(client, _STORAGE_CLASS)),
        pod_monitors=None if crds_seen is None else monitors is not None,
        models=await _allowed(lambda: _items(client, MODEL_DEPLOYMENT)),
        policies=await _allowed(lambda: _items(client, ROUTING_POLICY)),
        accelerators=load_accelerators(),
    )


async def _allowed(question: Callable[[], Awaitable[Answer]]) -> Answer | None:
    try:
        return await question()
    except Forbidden:
        return None


async def _items(client: "KubeClient", kind: Kind) -> Sequence[Object]:
    """None of a kind that is not installed."""
    from flotilla.kube.client import NotFound

    try:
        return (await client.list(kind)).items
    except NotFound:
        return []


async def _live(client: "KubeClient", names: Mapping[str, Object]) -> dict[str, Object | None]:
    return {name: await client.get(_CRD, name) for name in names}


async def _operators(client: "KubeClient") -> list[Object]:
    selector = f"app.kubernetes.io/name={_OPERATOR}"
    return [obj async for page in client.pages(DEPLOYMENT, label_selector=selector) for obj in page.items]


async def _watched(client: "KubeClient", operator: Object | None) -> list[str]:
    """The namespaces that the operator's settings name; empty for the whole cluster."""
    volumes = operator["spec"]["template"]["spec"].get("volumes") or () if operator else ()
    name = next((volume["configMap"]["name"] for volume in volumes if "configMap" in volume), None)
    if operator is None or name is None:
        return []
    found = await client.get(_CONFIG_MAP, name, namespace=operator["metadata"]["namespace"]) or {}
    settings = yaml.safe_load((found.get("data") or {}).get("config.yaml") or "") or {}
    return list(settings.get("namespaces") or ())


async def _missing(client: "KubeClient", namespace: str, account: str, watched: Sequence[str]) -> list[str]:
    """The permissions of the table that the ServiceAccount lacks."""
    from flotilla.render.rbac import attributes, needed

    user = f"system:serviceaccount:{namespace}:{account}"
    lacking = []
    for rule, resource, verb, where in needed(namespaces=watched, own_namespace=namespace):
        review = {
            "apiVersion": _ACCESS.api_version,
            "kind": _ACCESS.kind,
            "metadata": {},
            "spec": {"user": user, "resourceAttributes": attributes(rule, resource, verb, where)},
        }
        answer = await client.create(_ACCESS, review)
        if not answer["status"].get("allowed"):
            lacking.append(f"cannot {verb} {resource}" + (f" in {where}" if where else ""))
    return lacking


def healthy(found: list[Check]) -> bool:
    """Whether no check failed."""
    return all(check.result is not Result.FAIL for check in found)


def json_text(found: list[Check]) -> str:
    """A list of name, result, message and remedy."""
    return json.dumps(
        [
            {
                "name": check.name,
                "result": str(check.result),
                "message": check.message,
                **({"remedy": check.remedy} if check.remedy else {}),
            }
            for check in found
        ],
        indent=2,
    )


def show(console: Console, found: list[Check]) -> None:
    """A line per check, and below it the remedy."""
    grid = Table.grid(padding=(0, 2))
    for check in found:
        grid.add_row(Text(str(check.result), style=_COLOURS[check.result]), check.name, check.message)
        if check.remedy:
            grid.add_row("", "", Text(f"→ {check.remedy}", style="dim"))
    console.print(grid)


@app.command()
def doctor(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    operator_namespace: OperatorNamespace = "flotilla-system",
    as_json: Json = False,
) -> None:
    """Check what a cluster lacks for models to run, with a remedy for each finding.

    Exit code 1: a check failed; 3: the cluster does not answer.
    """
    with exit_on_error():
        facts = Cluster.find(kubeconfig, context).ask(lambda client: read(client, operator_namespace))
    found = examine(facts)
    if as_json:
        typer.echo(json_text(found))
    else:
        show(Console(), found)
    raise typer.Exit(EXIT_OK if healthy(found) else EXIT_NO)
