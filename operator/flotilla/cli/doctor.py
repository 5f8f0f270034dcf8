"""`flotilla doctor`: look at a cluster, say what is missing and what helps."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flotilla.api import crd
from flotilla.catalog.accelerators import load_accelerators
from flotilla.cli.doctor_checks import Check, Facts, Result
from flotilla.controller.access import attributes, needed
from flotilla.errors import Forbidden
from flotilla.kube.client import KubeClient, NotFound
from flotilla.kube.kinds import DEPLOYMENT, LEASE, MODEL_DEPLOYMENT, NODE, ROUTING_POLICY, Kind

Object = dict[str, Any]
Answer = TypeVar("Answer")
_CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
_STORAGE_CLASS = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
_ACCESS = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
_CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
_POD_MONITORS = "podmonitors.monitoring.coreos.com"
_OPERATOR = "flotilla-operator"
_COLOURS = {Result.OK: "green", Result.WARN: "yellow", Result.FAIL: "red", Result.UNKNOWN: "dim"}


async def facts(client: KubeClient, operator_namespace: str) -> Facts:
    """Ask everything; what is forbidden becomes None."""
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


async def _items(client: KubeClient, kind: Kind) -> list[Object]:
    """None of a kind that is not installed."""
    try:
        return (await client.list(kind)).items
    except NotFound:
        return []


async def _live(client: KubeClient, names: Mapping[str, Object]) -> dict[str, Object | None]:
    return {name: await client.get(_CRD, name) for name in names}


async def _operators(client: KubeClient) -> list[Object]:
    selector = f"app.kubernetes.io/name={_OPERATOR}"
    return [obj async for page in client.pages(DEPLOYMENT, label_selector=selector) for obj in page.items]


async def _watched(client: KubeClient, operator: Object | None) -> list[str]:
    """The namespaces that the operator's settings name; empty for the whole cluster."""
    volumes = operator["spec"]["template"]["spec"].get("volumes") or () if operator else ()
    name = next((volume["configMap"]["name"] for volume in volumes if "configMap" in volume), None)
    if operator is None or name is None:
        return []
    found = await client.get(_CONFIG_MAP, name, namespace=operator["metadata"]["namespace"]) or {}
    settings = yaml.safe_load((found.get("data") or {}).get("config.yaml") or "") or {}
    return list(settings.get("namespaces") or ())


async def _missing(client: KubeClient, namespace: str, account: str, watched: Sequence[str]) -> list[str]:
    """What the ServiceAccount lacks of the table, where it needs it."""
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


def as_json(found: list[Check]) -> str:
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
    """A line per check, and below it what to do."""
    grid = Table.grid(padding=(0, 2))
    for check in found:
        grid.add_row(Text(str(check.result), style=_COLOURS[check.result]), check.name, check.message)
        if check.remedy:
            grid.add_row("", "", Text(f"→ {check.remedy}", style="dim"))
    console.print(grid)
