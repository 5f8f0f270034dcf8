"""An engine as data: how to start, probe, drain, measure and refuse it. The YAML files beside this module."""

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Annotated, Any

import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from flotilla.errors import InvalidSpec

_TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
COMMON_REFUSED_ENV = frozenset(
    {"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PATH", "HF_ENDPOINT"}
)
"""They replace code or its origin, whatever the engine is."""


class _Data(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class Support(_Data):
    """One quantization method or KV type on one engine; capabilities are those of NVIDIA's CUDA."""

    value: str = ""
    """What the engine's flag takes; empty: the checkpoint says it, and the flag is left out."""
    online: bool = False
    """Whether a 16-bit checkpoint is quantized while it is loaded."""
    minimum: float = 0.0
    native: float = 0.0
    """From this compute capability on it is as fast as it should be; below it only saves memory."""
    below: float = 0.0
    """Only below this compute capability, if not 0."""
    below_reason: str = ""
    refused: str = ""
    """Why it never works; completes `METHOD ...`."""


class Drain(_Data):
    """How a pod leaves: forgotten by the Service, then SIGTERM, then its requests finish."""

    pre_stop_seconds: Annotated[int, Field(ge=0)]
    seconds: Annotated[int, Field(ge=1)]


class MetricsProfile(_Data):
    """Where the engine's metrics are; each uniform name has candidates, the newest first."""

    path: str
    names: dict[str, tuple[str, ...]]


class Profile(_Data):
    """One engine."""

    name: str
    default_version: str
    minimum_version: str
    legacy: str = ""
    images: dict[str, str]
    port: Annotated[int, Field(ge=1024, le=65535)]
    uid: Annotated[int, Field(ge=1)]
    argv: tuple[tuple[str, ...], ...]
    env: dict[str, str] = {}
    token_env: str
    health: str
    startup_seconds: Annotated[int, Field(ge=10)]
    drain: Drain
    metrics: MetricsProfile
    owned_flags: tuple[tuple[str, ...], ...]
    refused_flags: tuple[tuple[str, ...], ...]
    refused_env: frozenset[str] = frozenset()
    quantization: dict[str, Support]
    kv_cache: dict[str, Support]
    minimum_compute_capability: float

    @cached_property
    def _compiled(self) -> list[list[str | Template]]:
        return [[_compile(element) if "{{" in element else element for element in item] for item in self.argv]

    def command(self, values: Mapping[str, Any]) -> list[str]:
        """The engine's arguments. Each element is rendered alone, so that no value can become two."""
        argv: list[str] = []
        try:
            for item in self._compiled:
                rendered = [part if isinstance(part, str) else part.render(values) for part in item]
                if rendered[0]:
                    argv += rendered
        except TemplateError as error:
            raise InvalidSpec(
                f"The profile of engine {self.name} is broken: {error}", reason="BrokenProfile"
            ) from error
        return argv

    def image(self, vendor: str, version: str) -> str:
        """The engine's image for a GPU vendor; raises InvalidSpec when there is none."""
        template = self.images.get(vendor)
        if template is None:
            raise InvalidSpec(
                f"{self.name} has no image for {vendor} GPUs. Set spec.engine.image, or choose another "
                f"spec.accelerator.class; known vendors are {', '.join(sorted(self.images))}.",
                field="spec.engine.image",
                reason="NoImage",
            )
        return _compile(template).render(version=version)

    def check_args(self, args: Sequence[str]) -> None:
        """Refuse arguments that override what the operator sets, or that are dangerous.

        argparse takes `--flag=value`, `_` for `-` and any unambiguous prefix of a long flag, and so do we.
        """
        for index, argument in enumerate(args):
            if not argument.startswith("-"):
                continue
            for flags, why in (
                (self.owned_flags, "is set by the operator"),
                (self.refused_flags, "is refused"),
            ):
                hit = next((flag for group in flags for flag in group if _names(argument, flag)), None)
                if hit is not None:
                    listed = ", ".join(sorted(group[0] for group in flags))
                    raise InvalidSpec(
                        f"{argument!r} means {hit}, which {why}: remove it. The fields of the spec set what the "
                        f"operator owns; the flags in question are {listed}.",
                        field=f"spec.engine.args[{index}]",
                        reason="ArgumentRefused",
                    )

    def check_env(self, names: Sequence[str]) -> None:
        """Refuse variables that the operator sets, or that are dangerous."""
        for index, name in enumerate(names):
            if name in self.env or name == self.token_env:
                why = "is set by the operator" + (
                    "; use spec.model.credentialsSecret" if name == self.token_env else ""
                )
            elif name in self.refused_env or name in COMMON_REFUSED_ENV:
                why = "can replace the engine's code or its checks"
            else:
                continue
            raise InvalidSpec(
                f"The variable {name} {why}: remove it.",
                field=f"spec.engine.env[{index}].name",
                reason="EnvironmentRefused",
            )


@cache
def _compile(template: str) -> Template:
    return _TEMPLATES.from_string(template)


def _names(argument: str, flag: str) -> bool:
    given = argument.partition("=")[0]
    if not flag.startswith("--"):
        return given == flag
    given = given.replace("_", "-")
    negated = f"--no-{flag[2:]}"
    return len(given) > 3 and given.startswith("--") and (flag.startswith(given) or given == negated)


def load_profiles() -> dict[str, Profile]:
    """The packaged profiles by name; raises InvalidSpec with file, field and reason when one is broken."""
    found: dict[str, Profile] = {}
    for file in sorted(files(__package__).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            profile = parse(file.name, file.read_text())
            found[profile.name] = profile
    return found


def parse(name: str, text: str) -> Profile:
    """Read one profile; `name` is the file's, for the error."""
    try:
        return Profile.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{name}: {error}", reason="BrokenProfile") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{name}: {field}: {first['msg']}", field=field, reason="BrokenProfile") from error
