"""What each provider's chat API accepts (data/providers.yaml), and how a chat is made to conform to it. Pure.

Clients write requests for the model that they asked for, often a self-hosted one. When such a request goes to a hosted
model, by escalation, fallback or a rule, fields that the provider would refuse are renamed or left out, and those that
were left out are named to the client. `rules_for` finds the rules of one target, and `FieldRules.conform` applies them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from flotilla import yaml_text

COMPATIBLE: Final = "Compatible"
"""The entry for an API of OpenAI's form that the table does not know."""
STRUCTURED: Final = ("guided_json", "structured_outputs")
"""Fields of self-hosted engines that ask for an answer of a JSON schema, as `response_format` does."""
_SCHEMA_NAME: Final = "answer"
STANDARD_TIERS: Final = frozenset({"auto", "default", "standard", "standard_only", "on_demand"})
"""Values of `service_tier` that cost the base price."""


ENGINE_FIELDS: Final = frozenset(
    {
        *("add_generation_prompt", "bad_words", "chat_template_kwargs", "documents", "echo", "ignore_eos", "best_of"),
        *("include_reasoning", "include_stop_str_in_output", "length_penalty", "min_p", "min_tokens", "priority"),
        *("prompt_logprobs", "repetition_penalty", "return_token_ids", "skip_special_tokens", "stop_token_ids"),
        *("top_k", "truncate_prompt_tokens", "use_beam_search", "guided_choice", "guided_grammar", "guided_json"),
        *("guided_regex", "structured_outputs", "cache_salt", "ebnf", "regex", "json_schema", "lora_path", "n_predict"),
        *("cache_prompt", "grammar", "mirostat", "typical_p", "separate_reasoning", "reasoning_format", "samplers"),
    }
)
"""Fields of vLLM, SGLang and llama.cpp that OpenAI's API does not have: those that a metric names when dropped."""


class StreamOptions(StrEnum):
    """Whether an API accepts `stream_options`."""

    SUPPORTED = "Supported"
    UNSUPPORTED = "Unsupported"


class _ProviderRow(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ModelFamily(_ProviderRow):
    """Rules for some models of a provider, by their names."""

    models: str
    """A regular expression for the last part of the model's name."""
    except_: str = Field("", alias="except")
    """A regular expression for names that are not meant."""
    rename: Mapping[str, str] = {}
    only: Mapping[str, Any] = {}
    refuses: tuple[str, ...] = ()
    keep_when: Mapping[str, Any] = {}
    least_effort: str | None = None
    """The least `reasoning_effort` of models that reason unless told otherwise."""

    def has(self, model: str) -> bool:
        """Whether a model is of this family."""
        name = model.rpartition("/")[2]
        return bool(re.search(self.models, name)) and not (self.except_ and re.search(self.except_, name))


class ProviderFacts(_ProviderRow):
    """One provider's chat API."""

    name: str
    hosts: tuple[str, ...]
    """Host names, or their ends, by which the provider is known when a policy says `provider: OpenAI`."""
    source: str
    operations: frozenset[str] = frozenset({"chat/completions", "completions", "embeddings"})
    """Paths below the base URL that the API has."""
    accepts: tuple[str, ...] | None = None
    message_fields: tuple[str, ...] | None = None
    rename: Mapping[str, str] = {}
    stream_options: StreamOptions = StreamOptions.SUPPORTED
    families: tuple[ModelFamily, ...] = ()


@dataclass(frozen=True, slots=True)
class Conformed:
    """A chat as the provider accepts it."""

    fields: dict[str, Any]
    dropped: tuple[str, ...] = ()
    """Names of fields that were left out, sorted."""
    changed: bool = False


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What one hosted model accepts."""

    provider: str
    accepts: frozenset[str] | None
    message_fields: frozenset[str] | None
    rename: Mapping[str, str]
    family: ModelFamily | None
    stream_options: bool
    service_tiers: frozenset[str] = frozenset()
    """Service tiers beyond the standard ones that the policy permits."""

    @property
    def bound_field(self) -> str:
        """The field that bounds the answer."""
        renamed = {**self.rename, **({} if self.family is None else self.family.rename)}
        return renamed.get("max_tokens", "max_tokens")

    def conform(self, fields: Mapping[str, Any]) -> Conformed:
        """The chat for this model. Values are never invented: a field is renamed, or left out and named."""
        out = dict(fields)
        dropped: set[str] = set()
        self._structured(out)
        for ours, theirs in self.rename.items():
            value = out.pop(ours, None)
            if value is not None and out.get(theirs) is None:
                out[theirs] = value
        family = self.family
        if family is not None and not _holds(family.keep_when, out):
            for ours, theirs in family.rename.items():
                value = out.pop(ours, None)
                if value is not None and out.get(theirs) is None:
                    out[theirs] = value
            self._drop(out, dropped, (name for name in family.refuses if name in out))
            self._drop(out, dropped, (name for name, value in family.only.items() if out.get(name, value) != value))
        tier = out.get("service_tier")
        if tier is not None and not (isinstance(tier, str) and tier in STANDARD_TIERS | self.service_tiers):
            self._drop(out, dropped, ("service_tier",))
        if not self.stream_options:
            out.pop("stream_options", None)  # the usage comes without it
        if self.accepts is not None:
            self._drop(out, dropped, [name for name in out if name not in self.accepts])
        if self.message_fields is not None:
            self._messages(out, dropped)
        return Conformed(out, tuple(sorted(dropped)), out != fields)

    @staticmethod
    def _drop(out: dict[str, Any], dropped: set[str], names: Any) -> None:
        for name in list(names):
            if not _asks_nothing(out.pop(name)):
                dropped.add(name)

    @staticmethod
    def _structured(out: dict[str, Any]) -> None:
        """An engine's field for a JSON schema becomes the one that every API has."""
        for name in STRUCTURED:
            asked = out.get(name)
            schema = asked.get("json") if name == "structured_outputs" and isinstance(asked, Mapping) else asked
            if isinstance(schema, Mapping) and out.get("response_format") is None:
                described = {"name": _SCHEMA_NAME, "schema": schema}
                out["response_format"] = {"type": "json_schema", "json_schema": described}
                del out[name]

    def _messages(self, out: dict[str, Any], dropped: set[str]) -> None:
        messages = out.get("messages")
        known = self.message_fields
        if not isinstance(messages, list) or known is None:
            return
        if all(not isinstance(message, dict) or known.issuperset(message) for message in messages):
            return
        kept = []
        for message in messages:
            if isinstance(message, dict) and not known.issuperset(message):
                lost = [name for name in message if name not in known and not _asks_nothing(message[name])]
                dropped.update(f"messages.{name}" for name in lost)
                message = {name: value for name, value in message.items() if name in known}
            kept.append(message)
        out["messages"] = kept


def _asks_nothing(value: Any) -> bool:
    """Whether the loss of a value is not worth a word."""
    return value is None or value is False or value == [] or value == {}


def _holds(wanted: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return bool(wanted) and all(fields.get(name) == value for name, value in wanted.items())


@cache
def load_providers() -> Mapping[str, ProviderFacts]:
    """The packaged table by name; read once."""
    rows = yaml_text.load(files(__package__).joinpath("data/providers.yaml").read_text())
    return {facts.name: facts for facts in map(ProviderFacts.model_validate, rows)}


def provider_of(provider: str, base_url: str) -> ProviderFacts:
    """The table's entry for a target: by its provider, and for OpenAI, which means any compatible API, by its host."""
    table = load_providers()
    if provider != "OpenAI":
        return table.get(provider) or table[COMPATIBLE]
    host = urlsplit(base_url).hostname or ""
    found = (
        facts for facts in table.values() if any(f".{host}".endswith((f".{end}", f"-{end}")) for end in facts.hosts)
    )
    return next(found, table[COMPATIBLE])


def least_effort(provider: str, base_url: str, model: str) -> str | None:
    """The least `reasoning_effort` of a model that reasons by itself; None for one that does not."""
    family = _family(provider_of(provider, base_url), model)
    return None if family is None else family.least_effort


def _family(facts: ProviderFacts, model: str) -> ModelFamily | None:
    return next((family for family in facts.families if family.has(model)), None)


def rules_for(provider: str, base_url: str, model: str, service_tiers: frozenset[str] = frozenset()) -> FieldRules:
    """The rules for one model of a provider."""
    facts = provider_of(provider, base_url)
    return FieldRules(
        facts.name,
        None if facts.accepts is None else frozenset(facts.accepts),
        None if facts.message_fields is None else frozenset(facts.message_fields),
        facts.rename,
        _family(facts, model),
        facts.stream_options is StreamOptions.SUPPORTED,
        service_tiers,
    )


def _known_fields() -> frozenset[str]:
    """Names of fields that the table or an engine knows: what a client invents becomes no value of a metric's label."""
    found = set(ENGINE_FIELDS)
    for facts in load_providers().values():
        found |= {*(facts.accepts or ()), *facts.rename}
        found |= {f"messages.{name}" for name in facts.message_fields or ()}
    return frozenset(found)


KNOWN_FIELDS: Final = _known_fields()
