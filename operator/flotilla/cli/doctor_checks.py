"""The checks of `flotilla doctor`: what a cluster lacks for models to run, each with its remedy. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from flotilla.catalog.accelerators import Accelerator
from flotilla.cli.status import conditions, state

Object = Mapping[str, Any]
_OLDEST_KUBELET = (1, 30)
"""preStop hooks that sleep are on by default from there."""
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.full", "amd.com/gpu.driver-version")
_SHOWN = 5


class Result(StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One answer. `remedy` is empty where nothing is to be done."""

    name: str
    result: Result
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was asked of the cluster; None where it refused to say."""

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
    """All checks, in the order in which to mend."""
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
    return Check(name, Result.UNKNOWN, f"You may not list {what}.", "Ask as somebody who may, for this check.")


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
        return Check("CRDs", Result.WARN, f"Of another release than this command: {_few(stale)}.", remedy)
    return Check("CRDs", Result.OK, "Both are those of this release.")


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
        return Check("Operator", Result.FAIL, "No operator has ever led here.", install)
    spec = facts.lease["spec"]
    holder, duration_s = spec.get("holderIdentity") or "", float(spec.get("leaseDurationSeconds") or 60)
    renewed = datetime.fromisoformat(spec["renewTime"]) if spec.get("renewTime") else None
    silent_s = (facts.now - renewed).total_seconds() if renewed else float("inf")
    if not holder or silent_s > duration_s:
        since = f"for {silent_s:.0f} s" if renewed else "ever"
        return Check("Operator", Result.FAIL, f"No operator has renewed the Lease {since}: none acts.", install)
    replicas = sum(int((o.get("status") or {}).get("readyReplicas") or 0) for o in facts.operators or ())
    beside = f", {replicas} ready" if facts.operators else ", outside of the cluster"
    return Check("Operator", Result.OK, f"{holder} leads{beside}.")


def _rights(facts: Facts) -> Check:
    if facts.missing_rights is None:
        return _hidden("RBAC", "what the operator's ServiceAccount may do")
    if facts.missing_rights:
        message = f"The operator {_few(facts.missing_rights)}."
        return Check("RBAC", Result.FAIL, message, "Apply the roles of this release: helm upgrade, or manifests/base.")
    return Check("RBAC", Result.OK, "The operator may do all that it needs.")


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
    message = "No node has an accelerator of a known class now."
    remedy = "Fine where an autoscaler buys GPU nodes; else add one, or use the class cpu."
    return Check("Accelerators", Result.WARN, message, remedy)


def _unusable(facts: Facts, nodes: Sequence[Object]) -> Iterator[Check]:
    deaf = [_name(n) for n in nodes if (rows := _classes(n, facts.accelerators)) and not _gpus(n) and rows]
    if deaf:
        yield Check(
            "Device plugin",
            Result.FAIL,
            f"Labelled as GPU nodes, but without a GPU to allocate: {_few(deaf)}.",
            "Install the vendor's GPU operator or device plugin, and look at its pods on these nodes.",
        )
    strange = [_name(node) for node in nodes if _gpus(node) and not _classes(node, facts.accelerators)]
    if strange:
        yield Check(
            "GPU labels",
            Result.FAIL,
            f"GPUs of no known class: {_few(strange)}.",
            "Install GPU feature discovery, or describe them in a class of your own (docs/guides/accelerators.md).",
        )
    taints = sorted({taint for node in nodes if _gpus(node) for taint in _foreign_taints(facts, node)})
    if taints:
        yield Check(
            "Taints",
            Result.WARN,
            f"GPU nodes have taints that models do not tolerate by themselves: {_few(taints)}.",
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
            "No node says its driver's version.",
            "GPU feature discovery would; an engine's image needs a driver of its CUDA version or newer.",
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
        "A claim for spec.model.cache has to name its class.",
    )


def _prometheus(facts: Facts) -> Check:
    if facts.pod_monitors is None:
        return _hidden("Prometheus", "CustomResourceDefinitions")
    if facts.pod_monitors:
        return Check(
            "Prometheus", Result.OK, "A Prometheus operator is there: the chart's monitoring values can be used."
        )
    return Check(
        "Prometheus",
        Result.WARN,
        "The cluster knows no PodMonitor.",
        "Install a Prometheus operator, or scrape /metrics by its annotations; scaling does not need it.",
    )


def _resources(facts: Facts) -> Iterator[Check]:
    if facts.models is None or facts.policies is None:
        yield _hidden("Models", "ModelDeployments and RoutingPolicies")
        return
    things = [*facts.models, *facts.policies]
    # Items of a list do not say their kind.
    kinds = [*("modeldeployment" for _ in facts.models), *("routingpolicy" for _ in facts.policies)]
    judged = [(kind, obj, state(obj)) for kind, obj in zip(kinds, things, strict=True)]
    stuck = [found for found in judged if found[2][0] == "Stuck"]
    for kind, obj, (_, reason, message) in stuck[:_SHOWN]:
        meta = obj["metadata"]
        remedy = f"kubectl describe {kind} {meta['name']} --namespace {meta['namespace']}"
        yield Check(f"{meta['namespace']}/{meta['name']}", Result.FAIL, f"{reason}: {message}", remedy)
    unpriced = [_name(obj) for obj in facts.models if conditions(obj).get("CostKnown", {}).get("status") == "False"]
    if unpriced:
        yield Check(
            "Prices",
            Result.WARN,
            f"A price is missing for {_few(unpriced)}.",
            "CostKnown of each says which; spec.cost.gpuHourlyPrice or a price in the accelerator's class helps.",
        )
    elif facts.models:
        yield Check("Prices", Result.OK, "Every model has its prices.")
    ready = sum(state(obj)[0] == "Ready" for obj in things)
    if things:
        said = f"{ready} of {len(things)} resources are ready."
        if ready == len(things):
            yield Check("Models", Result.OK, said)
        else:
            yield Check("Models", Result.WARN, said, "flotilla status --all-namespaces says what each waits for.")
