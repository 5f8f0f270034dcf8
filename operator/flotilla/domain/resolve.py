"""From a spec to the one command line, image and GPU that it means, or to the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.domain import accelerators, quantization
from flotilla.domain.accelerators import Accelerator
from flotilla.domain.quantization import Quantization
from flotilla.engines.profile import Profile, load_profiles
from flotilla.errors import InvalidSpec

HF = "hf://"


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the operator knows about engines and GPUs."""

    profiles: Mapping[str, Profile]
    accelerators: Mapping[str, Accelerator]


def load_catalog() -> Catalog:
    """The packaged profiles and table; read once at start."""
    return Catalog(load_profiles(), accelerators.load_accelerators())


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything that the manifests need beside the spec."""

    profile: Profile
    engine_version: str
    image: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    port: int
    quantization: Quantization
    accelerator: Accelerator
    gpus: int
    served_name: str
    warnings: tuple[str, ...]


def resolve(name: str, spec: ModelDeploymentSpec, catalog: Catalog) -> Resolved:
    """Decide for the ModelDeployment `name`; raises InvalidSpec with the field, the value and the remedy."""
    engine = str(spec.engine.name)
    profile = catalog.profiles.get(engine)
    if profile is None:
        raise InvalidSpec(
            f"{engine!r} has no profile. Known engines are {', '.join(sorted(catalog.profiles))}.",
            field="spec.engine.name",
            reason="UnknownEngine",
        )
    version = spec.engine.version or profile.default_version
    _check_version(profile, version)
    accelerator = accelerators.find(catalog.accelerators, spec.accelerator.class_)
    _check_gpu(profile, version, accelerator)
    chosen = quantization.choose(
        method=str(spec.quantization.method),
        kv_cache=str(spec.quantization.kv_cache),
        source=spec.model.source,
        profile=profile,
        version=version,
        accelerator=accelerator,
    )
    profile.check_args(spec.engine.args)
    profile.check_env([variable.name for variable in spec.engine.env])
    served_name = spec.model.served_name or name
    argv = profile.command(
        {
            "model": spec.model.source.removeprefix(HF),
            "port": profile.port,
            "served_name": served_name,
            "revision": spec.model.revision or "",
            "gpus": spec.accelerator.count,
            "bf16": accelerator.bf16,
            "quantization": chosen.engine_value,
            "kv_cache": chosen.kv_engine_value,
            "context_length": spec.model.context_length or "",
            "drain_seconds": profile.drain.seconds,
        }
    )
    return Resolved(
        profile=profile,
        engine_version=version,
        image=spec.engine.image or profile.image(accelerator.vendor, version),
        argv=(*argv, *spec.engine.args),
        env=tuple(sorted(profile.env.items())),
        port=profile.port,
        quantization=chosen,
        accelerator=accelerator,
        gpus=spec.accelerator.count,
        served_name=served_name,
        warnings=(profile.legacy,) if profile.legacy else (),
    )


def _check_version(profile: Profile, version: str) -> None:
    if _numbers(version) < _numbers(profile.minimum_version):
        raise InvalidSpec(
            f"{profile.name} {version} is older than {profile.minimum_version}, the oldest whose flags this release "
            f"knows. Use {profile.default_version}, or leave spec.engine.version out.",
            field="spec.engine.version",
            reason="UnsupportedVersion",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _check_gpu(profile: Profile, version: str, accelerator: Accelerator) -> None:
    capability = accelerator.compute_capability
    if accelerator.vendor == "nvidia" and capability < profile.minimum_compute_capability:
        raise InvalidSpec(
            f"{profile.name} {version} holds no kernels for {accelerator.class_name} (compute capability "
            f"{capability}, needed {profile.minimum_compute_capability}). Choose another spec.accelerator.class.",
            field="spec.accelerator.class",
            reason="UnsupportedAccelerator",
        )
