"""Parts of a pod's spec that several operators' manifests hold: resources, placement."""

from collections.abc import Mapping
from typing import Any

from flotilla.catalog.accelerators import Accelerator
from flotilla.cli.convert.draft import Draft, NoCounterpart

_GPUS = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}


def put_accelerator(
    draft: Draft,
    table: Mapping[str, Accelerator],
    *,
    vendor: str,
    count: int,
    node_selector: Mapping[str, str],
    given: str | None,
    field_: str,
) -> None:
    """The class by `given`, by the node's labels, or a CPU; raises NoCounterpart where only a vendor is known."""
    if not count:
        draft.put("accelerator.class", given if given and given.startswith("cpu") else "cpu-amd64")
        return
    by_label = next(
        (
            row.class_name
            for row in table.values()
            if row.vendor == vendor and any(node_selector.get(key) in values for key, values in row.node_labels)
        ),
        None,
    )
    chosen = by_label or (given if given and given in table and table[given].vendor == vendor else None)
    if chosen is None:
        example = next((row.class_name for row in table.values() if row.vendor == vendor), "CLASS")
        raise NoCounterpart(
            f"{field_}: it says {vendor} and not which card. Name one of {vendor}'s, such as --accelerator {example}."
        )
    draft.put("accelerator.class", chosen)
    draft.put("accelerator.count", count)


def gpus(resources: Mapping[str, Any]) -> tuple[str, int]:
    """Vendor and count of a container's resources; ("", 0) for none."""
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    for name, vendor in _GPUS.items():
        if name in amounts:
            return vendor, int(amounts[name])
    return "", 0


def put_resources(draft: Draft, resources: Mapping[str, Any], field_: str) -> None:
    """CPU and memory as requested; what is no accelerator of ours is named."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu, memory = requests.get("cpu") or limits.get("cpu"), limits.get("memory") or requests.get("memory")
    draft.put("resources.cpu", None if cpu is None else str(cpu))
    draft.put("resources.memory", None if memory is None else str(memory))
    for name in sorted({*limits, *requests} - {"cpu", "memory", *_GPUS}):
        draft.lose(f"{field_}.{name}", "is no accelerator that a class of Flotilla asks for.")


def put_scheduling(draft: Draft, source: Any) -> None:
    """Placement; `source` gives nodeSelector, tolerations and so on by `take`."""
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "runtimeClassName", "schedulerName"):
        if value := source.take(name):
            draft.put(f"scheduling.{name}", value)
