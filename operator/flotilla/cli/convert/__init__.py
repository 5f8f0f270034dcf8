"""`flotilla convert`: manifests of KubeAI, KServe and LLMKube become ModelDeployments, and what is lost is listed.

One module per source format (`kserve`, `kubeai`, `llmkube`) fills a `draft.Draft`; `draft` also holds what the formats
have in common: parts of a pod's spec, engine arguments and environment variables.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import yaml

from flotilla.api.model_deployment import ModelDeployment
from flotilla.catalog.accelerators import find_loosely
from flotilla.cli import manifests
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_USAGE, Json, command_app, fail
from flotilla.cli.convert import kserve, kubeai, llmkube
from flotilla.cli.convert.draft import Draft, NoCounterpart
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Catalog, load_catalog, resolve

app = command_app()
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
    """The result for one manifest."""

    origin: str
    manifest: Object | None = None
    losses: list[str] = field(default_factory=list)
    refusal: str = ""
    """Why there is no manifest, or why the operator would refuse the one that there is."""


def conversions(documents: Sequence[Object], catalog: Catalog, *, accelerator: str | None) -> list[Conversion]:
    """One for each resource of another operator; other documents are ignored. A LLMKube Model goes into its service."""
    models = {_key(document): document for document in documents if _is_part(document)}
    used: set[tuple[str, str]] = set()
    found: list[Conversion] = []
    for document in documents:
        if _group(document) in _PEERS and not _is_part(document):
            found += _one(document, catalog, accelerator, models, used)
    for key, document in models.items():
        if key not in used:
            found.append(
                Conversion(_origin(document), refusal="None of the files has an InferenceService that uses it.")
            )
    return found


def _is_part(document: Mapping[str, Any]) -> bool:
    """A Model of LLMKube, which the InferenceService that names it serves."""
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
        yield Conversion(
            _origin(document), refusal="metadata.name: it is missing, so this is only a part of a manifest."
        )
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
            raise NoCounterpart(_BY_HAND.get(str(kind), "Flotilla has no counterpart."))
    except NoCounterpart as error:
        yield Conversion(_origin(document), refusal=str(error))
        return
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Conversion(_origin(document), refusal=f"It does not match its CRD: {error!r}.")
        return
    for draft in drafts:
        yield _checked(draft, catalog)


def _checked(draft: Draft, catalog: Catalog) -> Conversion:
    """Checked as the operator would check it."""
    done = Conversion(draft.origin, draft.manifest(), draft.losses)
    try:
        model = manifests.parse(done.manifest or {}, namespace=draft.namespace or "default")
        assert isinstance(model, ModelDeployment)
        resolve(draft.name, model.spec, catalog)
    except InvalidSpec as error:
        done.refusal = f"{error.field}: {error}".lstrip(": ")
    return done


def as_yaml(found: Sequence[Conversion]) -> str:
    """A stream with a comment per manifest: its origin, and what was lost."""
    parts = []
    for one in found:
        notes = [f"# from {one.origin}", *(f"# lost: {loss}" for loss in one.losses)]
        if one.refusal:
            notes.append(f"# {'to correct' if one.manifest else 'not converted'}: {one.refusal}")
        parts.append(
            "\n".join(notes) + "\n" + (yaml.safe_dump(one.manifest, sort_keys=False, width=110) if one.manifest else "")
        )
    return "---\n".join(parts)


def json_text(found: Sequence[Conversion]) -> str:
    """A list with origin, manifest, losses and refusal of each."""
    return json.dumps(
        [{"origin": o.origin, "manifest": o.manifest, "losses": o.losses, "refusal": o.refusal} for o in found],
        indent=2,
    )


@app.command()
def convert(
    files: manifests.Files,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", "-a", help="Class for manifests that only ask for nvidia.com/gpu.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert manifests of KubeAI, KServe and LLMKube to ModelDeployments.

    Exit code 1: not all of them could be converted.
    """
    try:
        documents = manifests.read(files)
        catalog = load_catalog()
        if accelerator is not None:
            accelerator = find_loosely(catalog.accelerators, accelerator).class_name
        found = conversions(documents, catalog, accelerator=accelerator)
        if not found:
            raise InvalidSpec("The files contain no resource of KubeAI, KServe or LLMKube.", field="FILE")
    except InvalidSpec as error:
        fail(error, EXIT_USAGE)
    typer.echo(json_text(found) if as_json else as_yaml(found), nl=as_json)
    open_ends = [one for one in found if one.refusal]
    for one in open_ends:
        typer.echo(f"{one.origin}: {one.refusal}", err=True)
    raise typer.Exit(EXIT_NO if open_ends else EXIT_OK)
