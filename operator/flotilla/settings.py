"""The operator's settings from three places: options win over environment variables, and these over the settings file.

`SETTINGS` is derived from OperatorConfig: one entry per value, with the names that it has in each place. `load` merges
the places with pydantic-settings, and explains what is wrong by the name under which the value was given. Only the
process of the operator and the generated documentation import this module: pydantic-settings takes time to load.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from flotilla import validation
from flotilla.config import HostedModel, OperatorConfig
from flotilla.errors import InvalidSpec

Form = Literal["text", "flag", "list", "mapping", "hosted model"]
PREFIX = "FLOTILLA_"
CONFIG_VARIABLE = "FLOTILLA_CONFIG"
_OPTIONS = {"namespaces": ("--namespace", "-n")}
"""Options that are not named like their setting: this one is repeated for several values."""
_MORE_VARIABLES = {"kubeconfig": ("KUBECONFIG",)}
"""Names that others have given to an environment variable; the FLOTILLA_ one wins."""
_NONE = "none"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of OperatorConfig, nested ones included."""

    path: tuple[str, ...]
    """Keys in the settings file, from the outside in."""
    form: Form
    default: Any
    description: str

    @property
    def key(self) -> str:
        """The path as one text, such as `leader_election.duration_s`."""
        return ".".join(self.path)

    @property
    def name(self) -> str:
        """The path as an identifier. `leader_election.enabled` is `leader_election`."""
        parts = self.path[:-1] if len(self.path) > 1 and self.path[-1] == "enabled" else self.path
        return "_".join(parts)

    @property
    def options(self) -> tuple[str, ...]:
        """Names on the command line."""
        return _OPTIONS.get(self.name, (f"--{self.name.replace('_', '-')}",))

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of environment variables; the first one that is set counts."""
        return (PREFIX + self.name.upper(), *_MORE_VARIABLES.get(self.name, ()))

    @property
    def default_text(self) -> str:
        """The default as one would write it in an environment variable; empty where there is none."""
        if self.form == "hosted model":
            return f"{self.default.provider}/{self.default.model}" if self.default else _NONE
        if self.form == "flag":
            return str(self.default).lower()
        return "" if self.default in (None, (), {}) else str(self.default)

    @property
    def syntax(self) -> str:
        """What an option's value looks like."""
        return {"list": "NAME", "mapping": "NAME=VALUE", "hosted model": "PROVIDER/MODEL"}.get(self.form, "VALUE")


@dataclass(frozen=True, slots=True)
class _Given:
    """A value, and the name under which it was given."""

    path: tuple[str, ...]
    label: str
    value: Any


def _settings(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        where, annotation = (*path, name), _without_none(field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not HostedModel:
            yield from _settings(annotation, where)
        else:
            default = None if field.default is PydanticUndefined else field.default
            yield Setting(where, _form(annotation), default, field.description or "")


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _form(annotation: Any) -> Form:
    forms: dict[Any, Form] = {bool: "flag", tuple: "list", dict: "mapping", HostedModel: "hosted model"}
    return forms.get(get_origin(annotation) or annotation, "text")


SETTINGS: tuple[Setting, ...] = tuple(_settings(OperatorConfig))


def load(options: Mapping[str, Any], *, environ: Mapping[str, str], file: Path | None) -> OperatorConfig:
    """The configuration of a process.

    `options` are texts, booleans and lists of texts by `Setting.name`; `file` is YAML. Raises InvalidSpec with one line
    for each value that is wrong: the name under which it was given, what is wrong, and the value.
    """
    if file is None and environ.get(CONFIG_VARIABLE):
        file = Path(environ[CONFIG_VARIABLE])
    places = (list(_from_options(options)), list(_from_environment(environ)), list(_from_file(file)))
    try:
        return _merged(*(_nested(place) for place in places))
    except ValidationError as error:
        given = [one for place in places for one in place]
        lines = [_explained(one, given) for one in error.errors(include_url=False)]
        raise InvalidSpec("\n".join(lines), field=lines[0].partition(": ")[0]) from error


def _merged(*places: dict[str, Any]) -> OperatorConfig:
    # Both bases derive from BaseModel and BaseSettings adds keys to its configuration, which mypy takes for a conflict.
    class Loaded(OperatorConfig, BaseSettings):  # type: ignore[misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """The places in the order of their precedence."""
            return tuple(InitSettingsSource(settings_cls, place) for place in places)

    loaded = Loaded()
    return OperatorConfig(**{name: getattr(loaded, name) for name in OperatorConfig.model_fields})


def _from_options(options: Mapping[str, Any]) -> Iterator[_Given]:
    for setting in SETTINGS:
        value = options.get(setting.name)
        if value is None or value == []:
            continue
        label = setting.options[0]
        if setting.form == "mapping":
            value = dict(_pair(text, label) for text in value)
        elif setting.form == "hosted model":
            value = _hosted_model(value, label)
        yield _Given(setting.path, label, value)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for setting in SETTINGS:
        label = next((name for name in setting.variables if environ.get(name)), None)
        if label is None:
            continue
        value: Any = environ[label]
        if setting.form == "list":
            value = re.split(r"[\s,]+", value.strip())
        elif setting.form == "mapping":
            value = _json_object(value, label)
        elif setting.form == "hosted model":
            value = _hosted_model(value, label)
        yield _Given(setting.path, label, value)


def _from_file(file: Path | None) -> Iterator[_Given]:
    if file is None:
        return
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{file} cannot be read: {error}. Name a YAML file of settings.", field="--config") from error
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{file} is not YAML: {error}", field="--config") from error
    if not isinstance(content, dict | None):
        kind = type(content).__name__
        raise InvalidSpec(f"{file}: a mapping of settings is expected, not {kind}.", field="--config")
    groups = {setting.path[0] for setting in SETTINGS if len(setting.path) > 1}
    for key, value in (content or {}).items():
        if key in groups and isinstance(value, dict):
            for inner, part in value.items():
                yield _Given((str(key), str(inner)), f"{file}: {key}.{inner}", part)
        else:
            yield _Given((str(key),), f"{file}: {key}", value)


def _pair(text: str, label: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidSpec(f"{label}: it must be NAME=VALUE, not {validation.shown(text)}.", field=label)
    return name, value


def _json_object(text: str, label: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        example = '{"NAME": "VALUE"}'
        raise InvalidSpec(f"{label}: it must be a JSON object such as {example}.", field=label)
    return content


def _hosted_model(text: str, label: str) -> dict[str, str] | None:
    if text.lower() == _NONE:
        return None
    provider, slash, model = text.partition("/")
    if not (provider and slash and model):
        raise InvalidSpec(
            f"{label}: it must be PROVIDER/MODEL, such as openai/gpt-5-mini, or {_NONE}, not {validation.shown(text)}.",
            field=label,
        )
    return {"provider": provider, "model": model}


def _nested(place: Sequence[_Given]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for given in place:
        *groups, last = given.path
        here = found
        for group in groups:
            here = here.setdefault(group, {})
        here[last] = given.value
    return found


def _explained(error: ErrorDetails, given: Sequence[_Given]) -> str:
    """A sentence that begins with the name under which the value was given."""
    where = tuple(str(part) for part in error["loc"])
    # The places are in the order of precedence: the first one with the value is the one that counts.
    found = next((one for one in given if where[: len(one.path)] == one.path), None)
    if error["type"] == "extra_forbidden" and found is not None:
        beside = {setting.path[len(where) - 1] for setting in SETTINGS if setting.path[: len(where) - 1] == where[:-1]}
        if where == found.path and beside:
            return f"{found.label}: there is no such setting. {validation.nearest(where[-1], beside)}"
    if found is None:
        return _explained_together(error, where, given)
    inner = ".".join(where[len(found.path) :])
    label = f"{found.label}.{inner}" if inner else found.label
    if error["type"] == "value_error":
        return f"{label}: {validation.reason(error).rstrip('.')}."
    if error["type"] in ("missing", "extra_forbidden"):
        return f"{label}: it is {'required' if error['type'] == 'missing' else 'unknown'}."
    return f"{label}: {validation.reason(error)}, not {validation.shown(error['input'])}."


def _explained_together(error: ErrorDetails, where: tuple[str, ...], given: Sequence[_Given]) -> str:
    """A rule about several settings: name those of them that were given."""
    text = validation.reason(error)
    labels = [one.label for one in given if one.path[: len(where)] == where and re.search(rf"\b{one.path[-1]}\b", text)]
    return f"{', '.join(labels) or '.'.join(where) or 'settings'}: {text.rstrip('.')}."


def markdown() -> str:
    """The table of docs/reference/settings.md."""
    rows = ["| key of the file | option, environment variable | default | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        option = ", ".join(f"`{name}`" for name in setting.options)
        if setting.form == "flag":
            option += f", `--no-{setting.name.replace('_', '-')}`"
        variables = ", ".join(f"`{name}`" for name in setting.variables)
        default = f"`{setting.default_text}`" if setting.default_text else ""
        rows.append(f"| `{setting.key}` | {option}<br>{variables} | {default} | {setting.description} |")
    return "\n".join(rows)
