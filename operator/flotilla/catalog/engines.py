"""Engine profiles: everything that the operator knows about an inference server, as validated data.

A profile is one YAML file under `data/engines/`: images, argument templates, ports, probes, drain, metric names and the
rules of versions. Adding an engine adds a file and changes no code. `load_profiles` reads the packaged profiles and an
administrator's folder.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import orjson
import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from flotilla import yaml_text
from flotilla.errors import InvalidSpec

LATEST = "latest"


def numbers(version: str) -> tuple[int, ...]:
    """`0.33.0` as (0, 33, 0), `b7000` as (7000,), `latest` above all; raises ValueError for what holds no number."""
    if version == LATEST:
        return (sys.maxsize,)
    found = tuple(int(part) for part in re.findall(r"\d+", version))
    if not found:
        raise ValueError(f"{version!r} holds no number; versions look like 0.33.0 or b7000")
    return found


def at_least(version: str, other: str) -> bool:
    """Whether `version` is `other` or newer."""
    return numbers(version) >= numbers(other)


_FORM = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([a-zA-Z_]\w*)(=~|!~)"(\w+(?:\|\w+)*)"\}|\[(\w+)\])?')


@dataclass(frozen=True, slots=True)
class MetricName:
    """Which samples are meant."""

    family: str
    label: str = ""
    """Empty: all samples of the family."""
    values: frozenset[str] = frozenset()
    without: bool = False
    """All values but these."""
    number_label: str = ""
    """The label that holds the value, where a metric of the constant 1 tells facts in its labels."""

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether a sample of the family is meant."""
        return not self.label or (labels.get(self.label, "") in self.values) is not self.without

    def value(self, labels: Mapping[str, str], value: float) -> float | None:
        """Of a sample; None for one that is not meant, or whose label holds no number."""
        if not self.number_label:
            return value if self.accepts(labels) else None
        try:
            return float(labels.get(self.number_label, ""))
        except ValueError:
            return None


@cache
def metric_name(text: str) -> MetricName:
    """Raises ValueError for another form."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f'{text!r} is neither a metric nor metric{{label=~"value|value"}}, or !~ for all but them, '
            "nor metric[label]"
        )
    family, label, operator, values, told = found.groups()
    return MetricName(family, label or "", frozenset(values.split("|") if values else ()), operator == "!~", told or "")


_TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_TEMPLATES.tests["at_least"] = at_least
_REFUSED_ENV = re.compile(
    r"LD_\w+|DYLD_\w+|GLIBC_TUNABLES|GCONV_PATH|BASH_ENV|ENV|PATH"
    r"|PYTHON(PATH|STARTUP|HOME|BREAKPOINT|USERBASE|EXECUTABLE|PLATLIBDIR|PYCACHEPREFIX|INSPECT|CASEOK)"
    r"|HF_ENDPOINT|NVIDIA_VISIBLE_DEVICES"
)
"""Whatever the engine is: they replace code or its origin, or show the engine GPUs that its pod did not ask for."""


def _checked_version(value: str) -> str:
    numbers(value)
    return value


def _checked_metric(value: str) -> str:
    metric_name(value)
    return value


Version = Annotated[str, AfterValidator(_checked_version)]
Vendor = Literal["nvidia", "amd", "cpu"]


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
    told: bool = False
    """Whether the flag is also given for a checkpoint that was quantized before."""
    minimum: float = 0.0
    native: float = 0.0
    """From this compute capability on it is as fast as it should be; below it only saves memory."""
    warn_from: float = 0.0
    """From this compute capability on it is admitted with `warning`, if not 0."""
    warning: str = ""
    since: Version | None = None
    """The first version of the engine that has it."""
    until: Version | None = None
    """The first version that lacks it again, for the reason in `refused`."""
    not_on: frozenset[Vendor] = frozenset()
    """Vendors whose build of the engine lacks it."""
    refused: str = ""
    """Why it does not work (from `until` on, where that is set); completes `METHOD ...`."""


class Drain(_Data):
    """How a pod leaves: forgotten by the Service, then SIGTERM, then its requests finish."""

    pre_stop_seconds: Annotated[int, Field(ge=0)]
    seconds: Annotated[int, Field(ge=1)]


class MetricsProfile(_Data):
    """Where the engine's metrics are; each uniform name has candidates, the newest first."""

    path: str
    names: dict[str, tuple[Annotated[str, AfterValidator(_checked_metric)], ...]]


class CardDefaults(_Data):
    """What the engine sets by itself on cards from a size on."""

    from_gib: Decimal
    batched_tokens: Annotated[int, Field(ge=1)]
    sequences: Annotated[int, Field(ge=1)]
    except_classes: tuple[str, ...] = ()
    """Beginnings of accelerator classes to which the next smaller row applies."""


class SpeculationFlags(_Data):
    """How users' args ask for speculative decoding: with one flag that takes JSON, or with one for each value."""

    config: str = ""
    method: str = ""
    model: str = ""
    tokens: str = ""


class MemoryProfile(_Data):
    """How the engine divides the memory of a GPU, for the fit."""

    utilization: Annotated[Decimal, Field(gt=0, le=1)]
    base_gib: Annotated[Decimal, Field(ge=0)]
    graphs_gib: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """What of it CUDA graphs and compiled code take, which `eager_flag` saves."""
    tensor_parallel: bool = True
    slots: Annotated[int, Field(ge=1)] = 1
    cards: Annotated[tuple[CardDefaults, ...], Field(min_length=1)]
    """The largest first; the last must begin at 0."""
    utilization_flag: str = ""
    batched_tokens_flag: str = ""
    sequences_flag: str = ""
    eager_flag: str = ""
    text_only_flags: tuple[str, ...] = ()
    speculation: SpeculationFlags | None = None
    media_limit_flag: str = ""
    """Flags by which users' args change the figures. With one of `text_only_flags` no image is tried at the start; the
    last one says how many images and videos a prompt may have."""


class RuntimeAdapters(_Data):
    """Endpoints of the engine that load and unload adapters while it serves.

    `load` and `unload` take a POST of {lora_name, lora_path}; `models` is OpenAI's list, where an adapter has a
    `parent` and its path as `root`."""

    load: str
    unload: str
    models: str


class AdapterProfile(_Data):
    """How the engine gets LoRA adapters: by `runtime`, or on its command line by `each` and what stands around it."""

    argv: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = {}
    """Variables of an engine that starts with LoRA."""
    runtime: RuntimeAdapters | None = None
    flag: str = ""
    each: str = ""
    """One adapter, of `name` and `path`."""
    separator: str = ""
    """Joins all of them into one argument; empty: each is an argument of its own."""
    repeat: bool = False
    """Whether `flag` stands before each argument, and not once before all."""
    ranks: tuple[int, ...]
    """The ranks that the engine can reserve; an adapter takes the next larger one."""
    sources: frozenset[str] = frozenset({"hf", "pvc", "oci"})


class Profile(_Data):
    """One engine."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    default_version: Version
    minimum_version: Version
    legacy: str = ""
    latest_tag: bool = False
    """Whether the images have a tag that follows the newest version, which `version: latest` names."""
    images: dict[Vendor, str]
    command: tuple[str, ...] = ()
    """Where the image's entrypoint does not start the server."""
    sources: frozenset[str] = frozenset({"hf", "oci", "pvc"})
    """Schemes of spec.model.source that the engine can read; oci and pvc are folders to it."""
    memory: MemoryProfile
    adapters: AdapterProfile | None = None
    port: Annotated[int, Field(ge=1024, le=65535)]
    uid: Annotated[int, Field(ge=1)]
    argv: tuple[tuple[str, ...], ...]
    env: dict[str, str] = {}
    token_env: str
    health: str
    readiness: str = ""
    """Path of the readiness probe, where it is not that of `health`."""
    drain: Drain
    metrics: MetricsProfile
    parser: Literal["argparse", "exact"] = "argparse"
    """How the engine reads its command line: argparse also takes any unambiguous beginning of a flag, and --no-FLAG."""
    owned_flags: tuple[tuple[str, ...], ...]
    """Each flag that the operator sets, with its other spellings."""
    fields: dict[str, str] = {}
    """The field of the spec that sets an owned flag, by its first spelling."""
    refused_flags: tuple[tuple[str, ...], ...]
    refused_keys: frozenset[str] = frozenset()
    """Keys that do the same within a flag's JSON value, or after its dot (`--flag.key=value`)."""
    exact_flags: frozenset[str] = frozenset()
    """Flags of the engine with which an owned or refused flag begins: the exact name wins over the beginning."""
    removed_flags: dict[str, str] = {}
    """Flags that the engine no longer has, with what to use instead: it would not start with them."""
    refused_env: frozenset[str] = frozenset()
    quantization: dict[str, Support]
    kv_cache: dict[str, Support]
    minimum_compute_capability: float
    float16_refused: frozenset[str] = frozenset()
    """Model types that the engine does not run in float16."""
    last_served: dict[str, str] = {}
    """Model types that the engine has stopped to serve, and the last version that did."""

    @cached_property
    def _compiled(self) -> list[list[str | Template]]:
        return _compiled(self.argv)

    def arguments(
        self, values: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]] = (), *, slots: int = 0, rank: int = 0
    ) -> list[str]:
        """The engine's arguments. Each element is rendered alone, so that no value can become two.

        `slots` and `rank` are what it reserves for adapters (0 slots: none); `adapters` those it reads at start.
        """
        argv = self._render(self._compiled, values)
        if slots and self.adapters is not None:
            lora = self.adapters
            argv += self._render(_compiled(lora.argv), {**values, "count": slots, "rank": rank})
            named = [_compile(lora.each).render(adapter) for adapter in adapters]
            if lora.separator and named:
                named = [lora.separator.join(named)]
            if lora.repeat:
                argv += [part for one in named for part in (lora.flag, one)]
            elif named:
                argv += [lora.flag, *named]
        return argv

    def environment(self, values: Mapping[str, Any], *, lora: bool = False) -> tuple[tuple[str, str], ...]:
        """The engine's variables, by name; one that renders empty is left out. `lora`: it starts with adapters."""
        env = {**self.env, **(self.adapters.env if lora and self.adapters is not None else {})}
        names = sorted(env)
        found = self._render(_compiled([env[name]] for name in names), values, keep_empty=True)
        return tuple((name, value) for name, value in zip(names, found, strict=True) if value)

    def _render(
        self, items: Iterable[Sequence[str | Template]], values: Mapping[str, Any], *, keep_empty: bool = False
    ) -> list[str]:
        result: list[str] = []
        # Made once: `Template.render` would copy it for each element, which takes most of its time.
        variables = {**_TEMPLATES.globals, **values}
        try:
            for item in items:
                rendered = [part if isinstance(part, str) else _rendered(part, variables) for part in item]
                if rendered[0] or keep_empty:
                    result += rendered
        except TemplateError as error:
            raise InvalidSpec(
                f"The profile of engine {self.name} is broken: {error}", reason="BrokenProfile"
            ) from error
        return result

    def image(self, vendor: Vendor, version: str) -> str:
        """The engine's image for a vendor of accelerators; raises InvalidSpec when there is none."""
        template = self.images.get(vendor)
        if template is None:
            raise InvalidSpec(
                f"{self.name} has no image for accelerators of vendor {vendor}. Set spec.engine.image, or choose "
                f"another spec.accelerator.class; known vendors are {', '.join(sorted(self.images))}.",
                field="spec.engine.image",
                reason="NoImage",
            )
        return _compile(template).render(version=version)

    def templates(self) -> Iterable[str]:
        """Every Jinja2 template of the profile."""
        items = (*self.argv, *(self.adapters.argv if self.adapters else ()))
        yield from (element for item in items for element in item)
        yield from (*self.env.values(), *self.images.values(), *([self.adapters.each] if self.adapters else ()))

    def check_args(self, args: Sequence[str]) -> None:
        """Refuse arguments that override what the operator sets, that are dangerous, or that the engine does not read.

        Raises InvalidSpec with the item and the remedy.
        """
        for index, argument in enumerate(args):
            if why := self._refusal(argument):
                raise InvalidSpec(why, field=f"spec.engine.args[{index}]", reason="ArgumentRefused")

    def _refusal(self, argument: str) -> str:
        given, equals, value = argument.partition("=")
        if not _FLAG.match(argument):
            # The value of the flag before it.
            return self._refused_key(argument, _json_keys(argument))
        if len(given.split()) > 1:
            flag = given.split()[0]
            return (
                f"{argument!r} holds a flag and its value in one item, which the engine takes for one unknown flag. "
                f"Write two items, or one as {flag}=VALUE."
            )
        flag, *path = given.split(".")
        plain = _normal(flag)
        if plain in self.removed_flags:
            return f"{self.name} no longer has {plain}: remove it. {self.removed_flags[plain]}"
        for groups, owned in ((self.owned_flags, True), (self.refused_flags, False)):
            group = next((group for group in groups if any(self._means(flag, known) for known in group)), None)
            if group is None:
                continue
            named = f"{argument!r} means {group[0]}, which" if plain not in group else f"{argument!r}"
            if not owned:
                return f"{named} is refused: remove it. {_WHY_REFUSED}"
            field = self.fields.get(group[0])
            return f"{named} is set by the operator: remove it" + (f", and set {field} instead." if field else ".")
        return self._refused_key(argument, {*(_normal(key) for key in path), *(_json_keys(value) if equals else ())})

    def _refused_key(self, argument: str, keys: Iterable[str]) -> str:
        key = next((key for key in keys if key.replace("-", "_") in self.refused_keys), None)
        return f"{key!r} in {argument!r} is refused: remove it. {_WHY_REFUSED}" if key else ""

    def _means(self, given: str, flag: str) -> bool:
        """Whether the engine's parser takes `given` for `flag`."""
        given = _normal(given)
        if given == flag or self.parser == "exact" or given in self.exact_flags:
            return given == flag
        if not given.startswith("--"):
            return given.startswith(flag) if len(flag) == 2 else flag.startswith(given)
        return len(given) > 3 and (flag.startswith(given) or given == f"--no-{flag[2:]}")

    def is_dangerous(self, variable: str) -> bool:
        """Whether an environment variable can replace the engine's code, its checks or its GPUs."""
        return variable in self.refused_env or _REFUSED_ENV.fullmatch(variable) is not None

    def check_env(self, names: Sequence[str]) -> None:
        """Refuse variables that the operator sets, or that are dangerous."""
        for index, name in enumerate(names):
            if name in self.env or name == self.token_env or (self.adapters and name in self.adapters.env):
                why = "is set by the operator" + (
                    "; use spec.model.credentialsSecret" if name == self.token_env else ""
                )
            elif self.is_dangerous(name):
                why = "can replace the engine's code, its checks or its GPUs"
            else:
                continue
            raise InvalidSpec(
                f"The variable {name} {why}: remove it.",
                field=f"spec.engine.env[{index}].name",
                reason="EnvironmentRefused",
            )


def _compiled(items: Iterable[Sequence[str]]) -> list[list[str | Template]]:
    return [[_compile(element) if "{{" in element else element for element in item] for item in items]


@cache
def _compile(template: str) -> Template:
    return _TEMPLATES.from_string(template)


def _rendered(template: Template, variables: dict[str, Any]) -> str:
    """What `template.render` gives, of variables that hold the environment's own."""
    return "".join(template.root_render_func(template.new_context(variables, shared=True)))


_FLAG = re.compile(r"--?[A-Za-z]")
"""Not a value such as -1."""
_WHY_REFUSED = "It runs foreign code, reads the node's files, or hides the engine from the operator."


def _normal(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _json_keys(text: str) -> set[str]:
    """All keys of a JSON object, those of its parts included; none of any other text."""
    if not text.lstrip().startswith(("{", "[")):
        return set()
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return set()
    keys: set[str] = set()
    parts = [found]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            keys |= part.keys()
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return keys


class _File(Protocol):
    @property
    def name(self) -> str: ...
    def read_text(self) -> str: ...


def load_profiles(extra: Path | None = None) -> dict[str, Profile]:
    """The packaged profiles by name, and those of the folder `extra`, which win.

    Raises InvalidSpec with file, field and reason when one is broken, or when the folder cannot be read.
    """
    found = _profiles(files(__package__).joinpath("data/engines").iterdir())
    if extra is not None:
        try:
            found |= _profiles(extra.iterdir())
        except OSError as error:
            raise InvalidSpec(f"{extra}: {error.strerror}", field="engines", reason="BrokenProfile") from error
    return found


def _profiles(entries: Iterable[_File]) -> dict[str, Profile]:
    yamls = sorted((entry for entry in entries if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    parsed = [parse(entry.name, entry.read_text()) for entry in yamls]
    return {profile.name: profile for profile in parsed}


def parse(name: str, text: str) -> Profile:
    """Read one profile; `name` is the file's, for the error."""
    try:
        profile = Profile.model_validate(yaml_text.load(text))
        for template in profile.templates():
            _compile(template)
        return profile
    except TemplateError as error:
        raise InvalidSpec(f"{name}: {error}", reason="BrokenProfile") from error
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{name}: {error}", reason="BrokenProfile") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{name}: {field}: {first['msg']}", field=field, reason="BrokenProfile") from error
