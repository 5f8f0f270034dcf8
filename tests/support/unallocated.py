"""Nodes with GPUs, and pods that hold some."""

from typing import Any


def node(
    name: str, capacity: dict[str, str], *, product: str, price: str | None = None, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """With a price for each GPU by annotation."""
    annotations = {} if price is None else {"flotilla.dev/gpu-hourly-price": price}
    meta = {"name": name, "labels": {"nvidia.com/gpu.product": product, **(labels or {})}, "annotations": annotations}
    return {"metadata": meta, "status": {"capacity": capacity}}


def pod(
    name: str,
    node_name: str,
    gpus: int,
    labels: dict[str, str] | None = None,
    *,
    resource: str = "nvidia.com/gpu",
    phase: str = "",
) -> dict[str, Any]:
    """With its GPUs in one container."""
    quantities = {resource: str(gpus)}
    container = {"name": "c", "image": "x", "resources": {"requests": quantities, "limits": quantities}}
    made: dict[str, Any] = {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"nodeName": node_name, "containers": [container]},
    }
    return {**made, "status": {"phase": phase}} if phase else made
