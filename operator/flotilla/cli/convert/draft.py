"""What every converter builds: the spec of a ModelDeployment, and what was lost on the way to it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from flotilla.api import crd
from flotilla.constants import API_VERSION

Object = dict[str, Any]
NO_LIMIT = 8
"""maxReplicas for those who had none: a fleet without a limit is a bill without one."""
_CLASSES = (
    (re.compile(r"(^|[-_])gh200"), ""),
    (re.compile(r"rtx-?4070"), ""),
    (re.compile(r"h100"), "nvidia-h100-80gb"),
    (re.compile(r"a100-80gb"), "nvidia-a100-80gb"),
    (re.compile(r"a100-40gb"), "nvidia-a100-40gb"),
    (re.compile(r"mi300x"), "amd-mi300x"),
    (re.compile(r"^cpu"), "cpu-amd64"),
)
"""Names of others for cards that ours call otherwise; an empty one has no class."""


class NoCounterpart(Exception):
    """The manifest asks for what Flotilla does not have; the message says what, and what to do instead."""


@dataclass(slots=True)
class Draft:
    """The conversion of one manifest."""

    origin: str
    name: str
    namespace: str = ""
    spec: Object = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    """What the new resource does not say, each with its field in the old one."""

    def put(self, path: str, value: Any) -> None:
        """Set `a.b.c`; None sets nothing."""
        if value is None:
            return
        *parents, last = path.split(".")
        here = self.spec
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value

    def get(self, path: str) -> Any:
        """What was put there, or None."""
        here: Any = self.spec
        for part in path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return here

    def lose(self, field_: str, why: str) -> None:
        """Note what is not carried over."""
        self.losses.append(f"{field_}: {why}")

    def manifest(self) -> Object:
        """The ModelDeployment, its fields in the order of the CRD."""
        meta = {"name": self.name, **({"namespace": self.namespace} if self.namespace else {})}
        order = list(_spec_schema()["properties"])
        spec = {key: self.spec[key] for key in order if key in self.spec}
        return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": meta, "spec": spec}


class Fields:
    """A mapping that remembers what was read, so that the rest can be named."""

    def __init__(self, content: Mapping[str, Any] | None, path: str) -> None:
        self._content = content or {}
        self._path = path
        self._read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The value, which counts as read."""
        self._read.add(name)
        return self._content.get(name, default)

    def inside(self, name: str) -> "Fields":
        """A nested mapping."""
        return Fields(self.take(name), f"{self._path}.{name}")

    def ignore(self, *names: str) -> None:
        """Read and without meaning for serving."""
        self._read.update(names)

    def lose_rest(self, draft: Draft, reasons: Mapping[str, str] | None = None) -> None:
        """Name every field that nothing has read."""
        for name, value in self._content.items():
            if name not in self._read and value not in (None, {}, [], "", False):
                draft.lose(f"{self._path}.{name}", (reasons or {}).get(name, "has no counterpart."))


@cache
def _spec_schema() -> Mapping[str, Any]:
    definition = next(d for d in crd.DEFINITIONS if d.kind == "ModelDeployment")
    root = crd.crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema: Mapping[str, Any] = root["properties"]["spec"]
    return schema


def put_scaling(draft: Draft, least: int, most: int | None, *, queue: int | None = None, field_: str = "spec") -> None:
    """An autoscaler with these limits."""
    scaling = _spec_schema()["properties"]["scaling"]["properties"]
    lowest = scaling["minReplicas"]["minimum"]
    if least < lowest:
        draft.lose(f"{field_}.minReplicas", f"{least} becomes {lowest}: this release does not scale so low.")
    if most is None:
        draft.lose(f"{field_}.maxReplicas", f"no limit becomes {max(NO_LIMIT, least)}.")
    draft.put("scaling.minReplicas", max(least, lowest))
    draft.put("scaling.maxReplicas", max(most if most is not None else NO_LIMIT, least, lowest, 1))
    if queue is not None:
        limits = scaling["queueDepthPerReplica"]
        draft.put("scaling.queueDepthPerReplica", min(max(queue, limits["minimum"]), limits["maximum"]))


def put_fixed(draft: Draft, replicas: int) -> None:
    """A number of replicas that nobody changes."""
    draft.put("replicas", replicas)
    draft.put("scaling.mode", "None")


def put_source(draft: Draft, url: str, field_: str) -> None:
    """spec.model.source and revision; raises NoCounterpart for what no engine of ours reads."""
    scheme, _, rest = url.partition("://")
    rest = rest.partition("?")[0].rstrip("/")
    if scheme == "hf":
        owner_and_name, _, revision = rest.partition(":")
        if owner_and_name.count("/") != 1:
            raise NoCounterpart(f"{field_}: {url!r} names no OWNER/NAME of the Hugging Face hub.")
        draft.put("model.source", f"hf://{owner_and_name}")
        draft.put("model.revision", revision or None)
    elif scheme in ("pvc", "s3", "gs", "oci") and rest:
        draft.put("model.source", f"{scheme}://{rest}")
    else:
        raise NoCounterpart(
            f"{field_}: nothing of Flotilla's reads {scheme}:// sources. Name the same weights as hf://OWNER/NAME, or "
            "copy them to a claim (pvc://CLAIM/PATH)."
        )


def accelerator_class(name: str, known: Iterable[str]) -> str | None:
    """Our class for another's name of a card, such as nvidia-gpu-l4; None where there is none."""
    lowered = name.lower()
    for pattern, found in _CLASSES:
        if pattern.search(lowered):
            return found or None
    plain = lowered.replace("nvidia-gpu-", "nvidia-").replace("amd-gpu-", "amd-")
    return plain if plain in set(known) else None
