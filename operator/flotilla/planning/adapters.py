"""LoRA adapters: what the engine reserves for them, where each lies, and what a pod must load and unload. Pure.

`plan_adapters` judges a spec. Engines whose profile has `runtime` load adapters through their own endpoint while they
serve: then adapters are not in the pod template, and `changes` says what to call. Other engines read them at their
start, so that a change of adapters replaces the pods.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flotilla.api.model_deployment import Adapter, LoraSpec, ModelSpec
from flotilla.catalog.engines import Profile, RuntimeAdapters
from flotilla.errors import InvalidSpec

ADAPTER_PATH = "/adapters"
"""Where volumes with adapters are mounted, each in a folder of its own."""


@dataclass(frozen=True, slots=True)
class WantedAdapter:
    """One adapter as a pod must have it."""

    name: str
    path: str
    """What the engine loads: OWNER/NAME of the hub, or a path in the container."""
    digest: str
    """Changes whenever other weights are meant."""


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Everything about the adapters of one ModelDeployment."""

    wanted: tuple[WantedAdapter, ...] = ()
    slots: int = 0
    """Adapters that can be in use at one time; 0: the engine starts without LoRA."""
    rank: int = 0
    """The largest rank that the engine reserves memory for."""
    claims: tuple[str, ...] = ()
    """PersistentVolumeClaims to mount."""
    images: tuple[tuple[str, str], ...] = ()
    """Adapter name and image of those that are mounted from one."""
    runtime: RuntimeAdapters | None = None
    """How they are loaded while the engine serves; None: they are in its arguments."""

    @property
    def in_arguments(self) -> tuple[WantedAdapter, ...]:
        """Those that the engine reads at its start."""
        return () if self.runtime else self.wanted


def plan_adapters(profile: Profile, model: ModelSpec) -> AdapterPlan:
    """Raises InvalidSpec with the field, the value and the remedy.

    Without spec.model.lora its defaults are reserved, so that the second adapter changes no pod.
    """
    if not model.adapters and model.lora is None:
        return AdapterPlan()
    known = profile.adapters
    if known is None:
        raise InvalidSpec(
            f"{profile.name} serves no LoRA adapters in Flotilla. Remove them, or choose another spec.engine.",
            field="spec.model.adapters" if model.adapters else "spec.model.lora",
            reason="UnsupportedAdapters",
        )
    given = model.lora or LoraSpec()
    # An engine that reads adapters at its start reserves nothing for others.
    slots = _slots(model, given) if known.runtime else len(model.adapters)
    rank = _rank(profile, model, given, known.ranks)
    wanted = tuple(
        WantedAdapter(adapter.name, _path(profile, adapter, index), _digest(adapter))
        for index, adapter in enumerate(model.adapters)
    )
    sources = [(adapter.name, *adapter.source.partition("://")[::2]) for adapter in model.adapters]
    claims = [rest.partition("/")[0] for _, scheme, rest in sources if scheme == "pvc"]
    return AdapterPlan(
        wanted=wanted,
        slots=slots,
        rank=rank,
        claims=tuple(dict.fromkeys((*given.claim_names, *claims))),
        images=tuple((name, rest) for name, scheme, rest in sources if scheme == "oci"),
        runtime=known.runtime,
    )


def _slots(model: ModelSpec, given: LoraSpec) -> int:
    if len(model.adapters) <= given.max_adapters:
        return given.max_adapters
    if model.lora is None:
        return len(model.adapters)
    raise InvalidSpec(
        f"{len(model.adapters)} adapters are more than the {given.max_adapters} slots of spec.model.lora.maxAdapters. "
        f"Set it to {len(model.adapters)}, which replaces the pods once, or remove adapters.",
        field="spec.model.lora.maxAdapters",
        reason="UnsupportedAdapters",
    )


def _rank(profile: Profile, model: ModelSpec, given: LoraSpec, ranks: Sequence[int]) -> int:
    largest = max((adapter.rank for adapter in model.adapters), default=0)
    if model.lora is not None and largest > given.max_rank:
        raise InvalidSpec(
            f"An adapter of rank {largest} is more than spec.model.lora.maxRank, {given.max_rank}. Raise it, which "
            "replaces the pods once, or correct the adapter's rank.",
            field="spec.model.lora.maxRank",
            reason="UnsupportedAdapters",
        )
    needed = max(largest, given.max_rank)
    reserved = next((known for known in ranks if known >= needed), None)
    if reserved is None:
        raise InvalidSpec(
            f"Rank {needed} of LoRA adapters is more than the {ranks[-1]} that {profile.name} can reserve.",
            field="spec.model.lora.maxRank" if given.max_rank > largest else "spec.model.adapters",
            reason="UnsupportedAdapters",
        )
    return reserved


def _path(profile: Profile, adapter: Adapter, index: int) -> str:
    scheme, _, rest = adapter.source.partition("://")
    assert profile.adapters is not None
    if scheme not in profile.adapters.sources:
        readable = ", ".join(f"{known}://" for known in sorted(profile.adapters.sources))
        raise InvalidSpec(
            f"{profile.name} cannot read an adapter from {scheme}://. Use one of {readable}.",
            field=f"spec.model.adapters[{index}].source",
            reason="UnsupportedSource",
        )
    if scheme == "pvc":
        return f"{ADAPTER_PATH}/{rest}"
    return image_path(adapter.name) if scheme == "oci" else rest


def claim_path(claim: str) -> str:
    """Where a claim with adapters is mounted."""
    return f"{ADAPTER_PATH}/{claim}"


def image_path(name: str) -> str:
    """Where the image of an adapter is mounted; no claim has a name with upper case letters."""
    return f"{ADAPTER_PATH}/OCI/{name}"


def _digest(adapter: Adapter) -> str:
    return f"sha256:{hashlib.sha256(adapter.source.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What to ask of one pod, unloads first: an engine refuses to load a name that it has."""

    unload: tuple[str, ...] = ()
    load: tuple[WantedAdapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.unload or self.load)


def changes(loaded: Mapping[str, str], wanted: Sequence[WantedAdapter]) -> Changes:
    """From the adapters that a pod has (path by name) to those that it must have. What is right stays loaded."""
    right = {adapter.name for adapter in wanted if loaded.get(adapter.name) == adapter.path}
    return Changes(
        unload=tuple(sorted(name for name in loaded if name not in right)),
        load=tuple(adapter for adapter in wanted if adapter.name not in right),
    )
