"""From a spec to what will run: profile, version, image, argument vector, GPUs, memory fit; or the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flotilla.api.model_deployment import ModelDeploymentSpec, ResourcesSpec
from flotilla.api.types import amount
from flotilla.catalog import accelerators
from flotilla.catalog.accelerators import Accelerator
from flotilla.catalog.engines import LATEST, Profile, at_least, load_profiles
from flotilla.catalog.models import Architecture, KnownModel, ModelCatalogue, load_models
from flotilla.errors import InvalidSpec
from flotilla.planning import quantization
from flotilla.planning.adapters import AdapterPlan, plan_adapters
from flotilla.planning.additions import LoraSlots
from flotilla.planning.memory_fit import GIB, Fit, Settings, fitted, startup_seconds
from flotilla.planning.quantization import Quantization

MODEL_PATH = "/models"
"""Where a volume with weights is mounted."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed spec.model.source; the CRD's rule has accepted its form."""

    scheme: str
    rest: str

    @property
    def hub_id(self) -> str:
        """OWNER/NAME for the catalogue; empty for what is not the hub's."""
        return self.rest if self.scheme == "hf" else ""

    @property
    def claim(self) -> str:
        """The PersistentVolumeClaim."""
        return self.rest.partition("/")[0]

    @property
    def path(self) -> str:
        """The path or name that the engine loads."""
        if self.scheme == "hf":
            return self.rest
        if self.scheme == "oci":
            return MODEL_PATH
        if self.scheme == "pvc":
            inner = self.rest.partition("/")[2]
            return f"{MODEL_PATH}/{inner}" if inner else MODEL_PATH
        return f"{self.scheme}://{self.rest}"

    @property
    def object_store(self) -> bool:
        """Whether the engine streams the weights from a bucket."""
        return self.scheme in ("s3", "gs")

    @property
    def local(self) -> bool:
        """Whether the weights lie in a volume of the pod."""
        return self.scheme in ("oci", "pvc")


def parse_source(source: str) -> Source:
    """Split at `://`."""
    scheme, _, rest = source.partition("://")
    return Source(scheme, rest)


_UNKNOWN_CACHE_GIB = 4
"""Of a CPU, for an unknown model: a quarter of the memory that its pod gets."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the operator knows about engines, GPUs and models."""

    profiles: Mapping[str, Profile]
    accelerators: Mapping[str, Accelerator]
    models: ModelCatalogue


def load_catalog(*, engines: Path | None = None, accelerator_table: Path | None = None) -> Catalog:
    """The packaged data, and an administrator's profiles and accelerators; read at start.

    Raises InvalidSpec that names file, field and reason.
    """
    return Catalog(
        load_profiles(engines),
        accelerators.load_accelerators(accelerator_table),
        load_models(),
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything that the manifests need beside the spec."""

    profile: Profile
    engine_version: str
    image: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    port: int
    source: Source
    quantization: Quantization
    accelerator: Accelerator
    gpus: int
    fit: Fit | None
    startup_seconds: int
    """What the engine may take to load the model: spec.rollout.timeoutSeconds, or by the size of the weights."""
    served_name: str
    adapters: AdapterPlan
    warnings: tuple[str, ...]
    near: str = ""
    """Which models of the catalogue may have been meant, as a sentence, where it does not know the source."""
    architecture: Architecture | None = None
    """None for an unknown model."""
    settings: Settings | None = None
    """What the engine assumes about the memory of a GPU, after the users' own flags."""


def resolve(name: str, spec: ModelDeploymentSpec, catalog: Catalog) -> Resolved:
    """Decide for the ModelDeployment `name`; raises InvalidSpec with the field, the value and the remedy."""
    profile = _profile(spec, catalog)
    version = spec.engine.version or profile.default_version
    _check_version(profile, version)
    accelerator = accelerators.find(catalog.accelerators, spec.accelerator.class_)
    _check_gpu(profile, version, accelerator)
    source = parse_source(spec.model.source)
    _check_source(profile, source)
    known = catalog.models.find(source.hub_id) if source.hub_id else None
    chosen = quantization.choose(
        method=str(spec.quantization.method),
        kv_cache=str(spec.quantization.kv_cache),
        source=spec.model.source,
        known=known,
        profile=profile,
        version=version,
        accelerator=accelerator,
        alternatives=catalog.models.checkpoints(known, str(spec.quantization.method)) if known else (),
    )
    _check_dtype(profile, version, accelerator, known)
    _check_model(profile, version, known)
    _check_resources(spec.resources)
    profile.check_args(spec.engine.args)
    profile.check_env([variable.name for variable in spec.engine.env])
    adapters = plan_adapters(profile, spec.model)
    memory = fitted(
        spec,
        known=known,
        weights=chosen.weights,
        profile=profile,
        accelerator=accelerator,
        lora=LoraSlots(adapters.slots, adapters.rank),
        find=catalog.models.find,
    )
    served_name = spec.model.served_name or name
    startup = spec.rollout.timeout_seconds or startup_seconds(memory.fit)
    values = {
        "model": source.path,
        "local": source.local,
        "object_store": source.object_store,
        "port": profile.port,
        "served_name": served_name,
        "revision": spec.model.revision or "",
        "vendor": accelerator.vendor,
        "version": version,
        "gpus": memory.gpus,
        "bf16": accelerator.bf16,
        "quantization": chosen.engine_value,
        "kv_cache": chosen.kv_engine_value,
        "context_length": memory.context_length or "",
        "slots": profile.memory.slots,
        "utilization": str(memory.settings.utilization),
        "kv_cache_gib": max(1, memory.fit.kv_bytes // GIB) if memory.fit else _UNKNOWN_CACHE_GIB,
        "drain_seconds": profile.drain.seconds,
        "startup_seconds": startup,
    }
    at_start = [{"name": adapter.name, "path": adapter.path} for adapter in adapters.in_arguments]
    return Resolved(
        profile=profile,
        engine_version=version,
        image=spec.engine.image or profile.image(accelerator.vendor, version),
        argv=(
            *profile.arguments(values, at_start, slots=adapters.slots, rank=adapters.rank),
            *spec.engine.args,
        ),
        env=profile.environment(values, lora=adapters.slots > 0),
        adapters=adapters,
        port=profile.port,
        source=source,
        quantization=chosen,
        accelerator=accelerator,
        gpus=memory.gpus,
        fit=memory.fit,
        startup_seconds=startup,
        served_name=served_name,
        warnings=_warnings(profile, spec, version),
        near=catalog.models.match(source.hub_id).hint if source.hub_id and memory.fit is None else "",
        architecture=memory.architecture,
        settings=memory.settings,
    )


def _profile(spec: ModelDeploymentSpec, catalog: Catalog) -> Profile:
    profile = catalog.profiles.get(spec.engine.name)
    if profile is None:
        raise InvalidSpec(
            f"{spec.engine.name!r} has no profile. Known engines are {', '.join(sorted(catalog.profiles))}; the "
            "operator can be given more (docs/guides/adding-an-engine.md).",
            field="spec.engine.name",
            reason="UnknownEngine",
        )
    return profile


def _check_version(profile: Profile, version: str) -> None:
    if version == LATEST and not profile.latest_tag:
        raise InvalidSpec(
            f"{profile.name} has no version called latest. Use {profile.default_version}, or leave spec.engine.version "
            "out.",
            field="spec.engine.version",
            reason="UnsupportedVersion",
        )
    if not at_least(version, profile.minimum_version):
        raise InvalidSpec(
            f"{profile.name} {version} is older than {profile.minimum_version}, the oldest whose flags this release "
            f"knows. Use {profile.default_version}, or leave spec.engine.version out.",
            field="spec.engine.version",
            reason="UnsupportedVersion",
        )


def _check_gpu(profile: Profile, version: str, accelerator: Accelerator) -> None:
    capability = accelerator.compute_capability
    if accelerator.vendor == "nvidia" and capability < profile.minimum_compute_capability:
        raise InvalidSpec(
            f"{profile.name} {version} holds no kernels for {accelerator.class_name} (compute capability "
            f"{capability}, needed {profile.minimum_compute_capability}). Choose another spec.accelerator.class.",
            field="spec.accelerator.class",
            reason="UnsupportedAccelerator",
        )


_LIMITS: Mapping[str, tuple[str, str]] = {
    "cpu": ("10m", "1k"),
    "memory": ("64Mi", "64Ti"),
    "sharedMemory": ("1Mi", "16Ti"),
}
"""What a container of an engine can have: the apiserver would accept any quantity, and no node would ever have it."""


def _check_resources(resources: ResourcesSpec) -> None:
    for field, given in (
        ("cpu", resources.cpu),
        ("memory", resources.memory),
        ("sharedMemory", resources.shared_memory),
    ):
        least, most = _LIMITS[field]
        value = amount(given) if given is not None else None
        if value is not None and not (amount(least) or 0) <= value <= (amount(most) or 0):
            raise InvalidSpec(
                f"{given} is outside of {least} to {most}. Correct it, or leave it out for the default.",
                field=f"spec.resources.{field}",
                reason="InvalidSpec",
            )


def _warnings(profile: Profile, spec: ModelDeploymentSpec, version: str) -> tuple[str, ...]:
    found = [profile.legacy] if profile.legacy else []
    if version == LATEST and spec.engine.image is None:
        found.append(
            "spec.engine.version latest is a tag that moves, so that pods of one deployment may differ. Pin a version "
            f"such as {profile.default_version}."
        )
    return tuple(found)


def _check_dtype(profile: Profile, version: str, accelerator: Accelerator, known: KnownModel | None) -> None:
    """A card without bfloat16 is given float16, in which some models compute nonsense and engines refuse them."""
    if accelerator.bf16 or known is None:
        return
    kind = known.architecture.multimodal or known.architecture.model_type
    if kind.removesuffix("_text") in profile.float16_refused:
        raise InvalidSpec(
            f"{accelerator.class_name} has no bfloat16, and {profile.name} {version} refuses float16 for models of "
            f"type {kind}, which become unstable in it. Choose a class of compute capability 8.0 or higher, such as "
            "nvidia-l4.",
            field="spec.accelerator.class",
            reason="UnsupportedAccelerator",
        )


def _check_model(profile: Profile, version: str, known: KnownModel | None) -> None:
    if known is None:
        return
    kind = (known.architecture.multimodal or known.architecture.model_type).removesuffix("_text")
    last = profile.last_served.get(kind)
    if last is not None and not at_least(last, version):
        raise InvalidSpec(
            f"{profile.name} served models of type {kind} up to {last}, and {version} refuses them at start. Choose "
            "another model, or another spec.engine (sglang or llamacpp).",
            field="spec.model.source",
            reason="UnsupportedModel",
        )


def _check_source(profile: Profile, source: Source) -> None:
    if source.scheme not in profile.sources:
        known = ", ".join(f"{scheme}://" for scheme in sorted(profile.sources))
        raise InvalidSpec(
            f"{profile.name} cannot read {source.scheme}:// by itself. Use one of {known}: copy the weights to a "
            "volume and name it as pvc://CLAIM/PATH, or choose another spec.engine.",
            field="spec.model.source",
            reason="UnsupportedSource",
        )
