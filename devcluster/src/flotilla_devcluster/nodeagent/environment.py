"""A container's environment and arguments, as the kubelet makes them."""

import base64
import re
from collections.abc import Mapping
from typing import Any

from flotilla.errors import NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import SECRET, Kind

_CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


async def environment(
    client: KubeClient, pod: Mapping[str, Any], container: Mapping[str, Any], address: str
) -> dict[str, str]:
    """All variables by name; raises NotReady with the kubelet's words when a Secret or ConfigMap is missing."""
    values: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        values |= await _all_of(client, pod, source)
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if source is None:
            values[variable["name"]] = expand(variable.get("value", ""), values)
        else:
            value = await _resolve(client, pod, source, address)
            if value is not None:
                values[variable["name"]] = value
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) of known names; $$ escapes."""
    return _REFERENCE.sub(
        lambda match: "$" if match.group(0) == "$$" else values.get(match.group(1), match.group(0)), text
    )


async def _all_of(client: KubeClient, pod: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a Secret, as variables."""
    reference = source.get("secretRef") or {}
    obj = await client.get(SECRET, reference.get("name", ""), namespace=pod["metadata"]["namespace"])
    if obj is None:
        raise NotReady(f'secret "{reference.get("name", "")}" not found')
    return {name: base64.b64decode(value).decode() for name, value in (obj.get("data") or {}).items()}


async def _resolve(client: KubeClient, pod: Mapping[str, Any], source: Mapping[str, Any], address: str) -> str | None:
    meta = pod["metadata"]
    if field := source.get("fieldRef"):
        known = {
            "metadata.name": meta["name"],
            "metadata.namespace": meta["namespace"],
            "metadata.uid": meta["uid"],
            "spec.nodeName": pod["spec"]["nodeName"],
            "status.podIP": address,
        }
        return str(known.get(field["fieldPath"], ""))
    for name, kind, what in (("secretKeyRef", SECRET, "secret"), ("configMapKeyRef", _CONFIG_MAP, "configmap")):
        if reference := source.get(name):
            obj = await client.get(kind, reference["name"], namespace=meta["namespace"])
            value = None if obj is None else (obj.get("data") or {}).get(reference["key"])
            if value is not None:
                return base64.b64decode(value).decode() if kind is SECRET else str(value)
            if reference.get("optional"):
                return None
            if obj is None:
                raise NotReady(f'{what} "{reference["name"]}" not found')
            raise NotReady(
                f"couldn't find key {reference['key']} in {kind.kind} {meta['namespace']}/{reference['name']}"
            )
    return None
