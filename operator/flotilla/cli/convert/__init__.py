"""`flotilla convert`: manifests of KubeAI, KServe and LLMKube become ModelDeployments, and what is lost is named."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from flotilla.api.model_deployment import ModelDeployment
from flotilla.cli import manifests
from flotilla.cli.convert import kserve, kubeai, llmkube
from flotilla.cli.convert.draft import Draft, NoCounterpart
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Catalog, resolve

Object = dict[str, Any]
_NAMELESS = "?"
_PEERS = ("kubeai.org", "serving.kserve.io", "inference.llmkube.dev")
_BY_HAND = {
    "ModelRouter": "Write its rules as a RoutingPolicy.",
    "InferenceGraph": "Write its routes as a RoutingPolicy.",
    "LoRAAdapter": "Name the adapter in spec.model.adapters of its model.",
}


@dataclass(slots=True)
class Conversion:
    """What became of one manifest."""

    origin: str
    manifest: Object | None = None
    losses: list[str] = field(default_factory=list)
    refusal: str = ""
    """Why there is no manifest, or why the operator would refuse the one that there is."""


def convert(documents: Sequence[Object], catalog: Catalog, *, accelerator: str | None) -> list[Conversion]:
    """One for each resource of a peer's; other documents are passed over. A LLMKube Model goes into its service."""
    models = {_key(document): document for document in documents if _is_part(document)}
    used: set[tuple[str, str]] = set()
    found: list[Conversion] = []
    for document in documents:
        if _group(document) in _PEERS and not _is_part(document):
            found += _one(document, catalog, accelerator, models, used)
    for key, document in models.items():
        if key not in used:
            found.append(Conversion(_origin(document), refusal="No InferenceService among the files serves it."))
    return found


def _is_part(document: Mapping[str, Any]) -> bool:
    """A Model of LLMKube's, which is served by what names it."""
    return _group(document) == "inference.llmkube.dev" and document.get("kind") == "Model"


def _group(document: Mapping[str, Any]) -> str:
    return str(document.get("apiVersion", "")).partition("/")[0]


def _key(document: Mapping[str, Any]) -> tuple[str, str]:
    """Namespace and name."""
    meta = document.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    return str(meta.get("namespace", "")), str(meta.get("name") or _NAMELESS)


def _origin(document: Mapping[str, Any]) -> str:
    return f"{document.get('kind')} {_key(document)[1]} of {_group(document)}"


def _one(
    document: Object,
    catalog: Catalog,
    accelerator: str | None,
    models: Mapping[tuple[str, str], Object],
    used: set[tuple[str, str]],
) -> Iterator[Conversion]:
    kind, group = document.get("kind"), _group(document)
    if _key(document)[1] == _NAMELESS:
        yield Conversion(_origin(document), refusal="metadata.name: it has none, so it is a part of a manifest.")
        return
    try:
        if (kind, group) == ("Model", "kubeai.org"):
            drafts = list(kubeai.convert(document, catalog, accelerator))
        elif group == "serving.kserve.io" and kind in ("InferenceService", "LLMInferenceService"):
            drafts = list(kserve.convert(document, catalog, accelerator))
        elif (kind, group) == ("InferenceService", "inference.llmkube.dev"):
            used.add((_key(document)[0], str((document.get("spec") or {}).get("modelRef", ""))))
            drafts = list(llmkube.convert(document, catalog, accelerator, models))
        else:
            raise NoCounterpart(_BY_HAND.get(str(kind), "Nothing of Flotilla's is like it."))
    except NoCounterpart as error:
        yield Conversion(_origin(document), refusal=str(error))
        return
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Conversion(_origin(document), refusal=f"It is not what its CRD describes: {error!r}.")
        return
    for draft in drafts:
        yield _checked(draft, catalog)


def _checked(draft: Draft, catalog: Catalog) -> Conversion:
    """Judged as the operator would judge it."""
    done = Conversion(draft.origin, draft.manifest(), draft.losses)
    try:
        model = manifests.parse(done.manifest or {}, namespace=draft.namespace or "default")
        assert isinstance(model, ModelDeployment)
        resolve(draft.name, model.spec, catalog)
    except InvalidSpec as error:
        done.refusal = f"{error.field}: {error}".lstrip(": ")
    return done


def as_yaml(found: Sequence[Conversion]) -> str:
    """A stream with a comment per manifest: where it is from, and what it lost."""
    parts = []
    for one in found:
        notes = [f"# from {one.origin}", *(f"# lost: {loss}" for loss in one.losses)]
        if one.refusal:
            notes.append(f"# {'to correct' if one.manifest else 'not converted'}: {one.refusal}")
        parts.append(
            "\n".join(notes) + "\n" + (yaml.safe_dump(one.manifest, sort_keys=False, width=110) if one.manifest else "")
        )
    return "---\n".join(parts)


def as_json(found: Sequence[Conversion]) -> str:
    """A list with origin, manifest, losses and refusal of each."""
    return json.dumps(
        [{"origin": o.origin, "manifest": o.manifest, "losses": o.losses, "refusal": o.refusal} for o in found],
        indent=2,
    )
