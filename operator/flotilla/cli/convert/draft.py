"""What the converters build, and the parts that several formats share.

A Draft is the spec of a ModelDeployment with a list of what was lost. The `put_` functions write to it: source and
scaling, then accelerator, resources and placement of a pod, then engine arguments and environment variables.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from flotilla.api import crd
from flotilla.api.model_deployment import KvCacheType, QuantizationMethod
from flotilla.catalog.accelerators import Accelerator
from flotilla.catalog.engines import Profile
from flotilla.constants import API_VERSION
from flotilla.errors import InvalidSpec

Object = dict[str, Any]
NO_LIMIT = 8
"""maxReplicas for manifests without one, because the cost of a fleet without a limit has none either."""
_CLASSES = (
    (re.compile(r"(^|[-_])gh200"), ""),
    (re.compile(r"rtx-?4070"), ""),
    (re.compile(r"h100"), "nvidia-h100-80gb"),
    (re.compile(r"a100-80gb"), "nvidia-a100-80gb"),
    (re.compile(r"a100-40gb"), "nvidia-a100-40gb"),
    (re.compile(r"mi300x"), "amd-mi300x"),
    (re.compile(r"^cpu"), "cpu-amd64"),
)
"""Other operators' names of cards that differ from Flotilla's class; an empty class means that it has none."""
_GPUS = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}
_METHODS = frozenset(str(method) for method in QuantizationMethod)
_CACHES = frozenset(str(kind) for kind in KvCacheType)
_SPELLINGS = {"--model-name": "--served-model-name", "--model-id": "--model", "-tp": "--tensor-parallel-size"}
_RENAMED = {"--max-num-batched-token": "--max-num-batched-tokens"}
_SET_HERE = {
    "--model-dir": "spec.model.source names the weights",
    "--backend": "the engine is chosen by spec.engine.name",
    "--gpu-memory-utilization": "the memory fit sets it",
}


class NoCounterpart(Exception):
    """The manifest needs something that Flotilla does not have. The message names it, with what to do instead."""


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
        """List every field that was not read."""
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
    """A fixed number of replicas, without an autoscaler."""
    draft.put("replicas", replicas)
    draft.put("scaling.mode", "None")


def put_source(draft: Draft, url: str, field_: str) -> None:
    """spec.model.source and revision; raises NoCounterpart for a scheme that no engine reads."""
    scheme, _, rest = url.partition("://")
    rest = rest.partition("?")[0].rstrip("/")
    if scheme == "hf":
        owner_and_name, _, revision = rest.partition(":")
        if owner_and_name.count("/") != 1:
            raise NoCounterpart(f"{field_}: {url!r} is not OWNER/NAME on the Hugging Face hub.")
        draft.put("model.source", f"hf://{owner_and_name}")
        draft.put("model.revision", revision or None)
    elif scheme in ("pvc", "s3", "gs", "oci") and rest:
        draft.put("model.source", f"{scheme}://{rest}")
    else:
        raise NoCounterpart(
            f"{field_}: no engine of Flotilla reads {scheme}:// sources. Name the same weights as hf://OWNER/NAME, or "
            "copy them to a claim (pvc://CLAIM/PATH)."
        )


def accelerator_class(name: str, known: Iterable[str]) -> str | None:
    """Flotilla's class for another operator's name of a card, such as nvidia-gpu-l4, or None."""
    lowered = name.lower()
    for pattern, found in _CLASSES:
        if pattern.search(lowered):
            return found or None
    plain = lowered.replace("nvidia-gpu-", "nvidia-").replace("amd-gpu-", "amd-")
    return plain if plain in set(known) else None


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
            f"{field_}: it names the vendor {vendor}, but no card. Name one, such as --accelerator {example}."
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
    """CPU and memory as requested; other resources are listed as lost."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu, memory = requests.get("cpu") or limits.get("cpu"), limits.get("memory") or requests.get("memory")
    draft.put("resources.cpu", None if cpu is None else str(cpu))
    draft.put("resources.memory", None if memory is None else str(memory))
    for name in sorted({*limits, *requests} - {"cpu", "memory", *_GPUS}):
        draft.lose(f"{field_}.{name}", "is not a resource of any accelerator class.")


def put_scheduling(draft: Draft, source: Any) -> None:
    """Placement; `source` gives nodeSelector, tolerations and so on by `take`."""
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "runtimeClassName", "schedulerName"):
        if value := source.take(name):
            draft.put(f"scheduling.{name}", value)


def split(arguments: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Flag in its usual spelling, its value, and the arguments that were given; the flag of a lone value is empty."""
    index = 0
    while index < len(arguments):
        word = str(arguments[index])
        index += 1
        if not word.startswith("-"):
            yield "", word, [word]
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        flag = _RENAMED.get(_SPELLINGS.get(flag, flag), _SPELLINGS.get(flag, flag))
        if equals:
            yield flag, value, [f"{flag}={value}"]
        elif index < len(arguments) and not str(arguments[index]).startswith("-"):
            yield flag, str(arguments[index]), [flag, str(arguments[index])]
            index += 1
        else:
            yield flag, None, [flag]


def put_arguments(draft: Draft, arguments: Sequence[str], profile: Profile, field_: str) -> None:
    """Arguments with a field in the spec go there, those that the engine may have are kept, the rest is lost."""
    kept: list[str] = []
    for flag, value, given in split(arguments):
        if _is_field(draft, flag, value):
            continue
        if reason := _SET_HERE.get(flag):
            draft.lose(f"{field_}: {flag}", f"{reason}.")
        elif flag in profile.removed_flags:
            draft.lose(f"{field_}: {flag}", f"{profile.name} no longer has it. {profile.removed_flags[flag]}")
        elif not flag:
            draft.lose(f"{field_}: {value}", "is not a flag. spec.model.source names the model.")
        else:
            try:
                profile.check_args(given)
            except InvalidSpec as error:
                draft.lose(f"{field_}: {flag}", str(error).partition(": remove it")[0] + ".")
            else:
                kept += given
    if kept:
        draft.put("engine.args", [*(draft.get("engine.args") or ()), *kept])


def _is_field(draft: Draft, flag: str, value: str | None) -> bool:
    if value is None:
        return False
    if flag == "--max-model-len" and value.isdigit():
        draft.put("model.contextLength", int(value))
    elif flag == "--served-model-name":
        draft.put("model.servedName", value)
    elif flag == "--model" and "/" in value and not value.startswith("/"):
        draft.put("model.source", draft.get("model.source") or f"hf://{value}")
    elif flag == "--revision":
        draft.put("model.revision", value)
    elif flag == "--tensor-parallel-size" and value.isdigit():
        draft.put("accelerator.count", int(value))
    elif flag == "--quantization" and value in _METHODS:
        draft.put("quantization.method", value)
    elif flag == "--kv-cache-dtype" and value in _CACHES:
        draft.put("quantization.kvCache", value)
    else:
        return False
    return True


def put_environment(draft: Draft, env: Sequence[Mapping[str, Any]], profile: Profile, field_: str) -> None:
    """Variables in the shape of a pod's; a token of the hub becomes the credentials."""
    kept = []
    for variable in env:
        name, source = str(variable.get("name", "")), variable.get("valueFrom") or {}
        secret = source.get("secretKeyRef")
        if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN") and secret:
            put_token(draft, secret)
            continue
        if source and not secret:
            draft.lose(f"{field_}: {name}", "only plain values and keys of Secrets can be converted.")
            continue
        try:
            profile.check_env([name])
        except InvalidSpec as error:
            draft.lose(f"{field_}: {name}", str(error).partition(": remove it")[0] + ".")
            continue
        plain: dict[str, Any] = {"value": str(variable.get("value", ""))}
        if secret:
            plain = {"valueFrom": {"secretKeyRef": {"name": secret["name"], "key": secret["key"]}}}
        kept.append({"name": name, **plain})
    if kept:
        draft.put("engine.env", kept)


def put_token(draft: Draft, secret: Mapping[str, Any]) -> None:
    """Access to the Hugging Face hub."""
    draft.put("model.credentialsSecret", {"name": secret["name"], "key": secret.get("key", "token")})
