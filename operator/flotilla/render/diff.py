"""Would an apply change anything? Server-side apply's own answer, without asking the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from flotilla.constants import ANNOTATION_HASH
from flotilla.domain.quantity import amount

_KEYS = ("name", "key", "topologyKey", "containerPort", "port", "mountPath", "uid")
"""What tells the items of Kubernetes' lists of objects apart, in the order in which it is tried."""
_QUANTITY_FIELDS = frozenset({"requests", "limits", "sizeLimit"})


def needs_apply(desired: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether the live object lacks something of ours, or has something that we set once and no longer want.

    The second is what the hash is for: a field that left the manifest is still ours in the cluster.
    """
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_HASH) != desired["metadata"]["annotations"][ANNOTATION_HASH]:
        return True
    # Items of a LIST carry neither apiVersion nor kind.
    return not all(within(desired[part], live.get(part)) for part in desired if part not in ("apiVersion", "kind"))


def within(desired: Any, live: Any, *, quantity: bool = False) -> bool:
    """Whether every leaf of `desired` is in `live`; what is only in `live` does not matter."""
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and all(
            (key in live or _empty(value))
            and within(value, live.get(key), quantity=quantity or key in _QUANTITY_FIELDS)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _list_within(desired, live)
    if desired == live and type(desired) is type(live):
        return True
    if _empty(desired) and live is None:
        return True
    return quantity and isinstance(live, str | int) and amount(str(desired)) == amount(str(live))


def _empty(value: Any) -> bool:
    """The apiserver drops empty strings, lists and maps of optional fields."""
    return value in ("", [], {}) and not isinstance(value, bool)


def _list_within(desired: Sequence[Any], live: Any) -> bool:
    if not isinstance(live, list):
        return live is None and not desired
    key = _merge_key(desired)
    if key is None:
        return len(desired) == len(live) and all(within(d, item) for d, item in zip(desired, live, strict=True))
    found = {item.get(key): item for item in live if isinstance(item, Mapping)}
    return all(item[key] in found and within(item, found[item[key]]) for item in desired)


def _merge_key(items: Sequence[Any]) -> str | None:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None
