"""KServe: serving.kserve.io InferenceService (language models only) and LLMInferenceService."""

from collections.abc import Iterator, Mapping
from typing import Any

from flotilla.cli.convert.draft import (
    Draft,
    Fields,
    NoCounterpart,
    gpus,
    put_accelerator,
    put_arguments,
    put_environment,
    put_fixed,
    put_resources,
    put_scaling,
    put_scheduling,
    put_source,
    split,
)
from flotilla.planning.resolve import Catalog

_FORMATS = frozenset({"huggingface", "vllm"})
_OLD_FORMATS = ("sklearn", "xgboost", "lightgbm", "tensorflow", "pytorch", "onnx", "pmml", "paddle", "triton")
"""Fields of the predictor that name a format, from before `model` had one."""
_DEFAULT_MAX = 1
_PREDICTOR = {
    "serviceAccountName": "gave access to the weights. Use spec.model.credentialsSecret.",
    "canaryTrafficPercent": "splits traffic. Make a second ModelDeployment and a RoutingPolicy with weights.",
    "timeout": "belongs to the gateway. Use a RoutingPolicy.",
}
_LLM = {
    "router": "belongs to the gateway. Use a RoutingPolicy.",
    "baseRefs": "takes settings from another object. Write them into the resource.",
    "kvCacheOffloading": "has no counterpart.",
}
_BESIDE = frozenset({"livenessProbe", "readinessProbe", "startupProbe", "securityContext", "ports", "name"})
"""Fields of a container that the operator sets by the engine."""


def convert(document: Mapping[str, Any], catalog: Catalog, given: str | None) -> Iterator[Draft]:
    """One service of either kind."""
    if document["kind"] == "LLMInferenceService":
        yield _language(document, catalog, given)
    else:
        yield _predictor(document, catalog, given)


def _draft(document: Mapping[str, Any]) -> Draft:
    meta = document["metadata"]
    draft = Draft(f"KServe {document['kind']} {meta['name']}", meta["name"], meta.get("namespace", ""))
    draft.put("engine.name", "vllm")
    return draft


def _predictor(document: Mapping[str, Any], catalog: Catalog, given: str | None) -> Draft:
    draft, spec = _draft(document), Fields(document.get("spec"), "spec")
    predictor = spec.inside("predictor")
    model = predictor.inside("model")
    kind = (model.take("modelFormat") or {}).get("name")
    if kind not in _FORMATS:
        raise NoCounterpart(_no_language_model(predictor, kind))
    arguments = model.take("args") or []
    uri = model.take("storageUri")
    if uri is None:
        named = next((value for flag, value, _ in split(arguments) if flag == "--model" and value), None)
        if named is None:
            raise NoCounterpart("spec.predictor.model: neither storageUri nor --model_id names the weights.")
        uri = f"hf://{named}"
    put_source(draft, uri, "spec.predictor.model.storageUri")
    profile = catalog.profiles["vllm"]
    _place(draft, catalog, given, predictor, model.take("resources") or {}, "spec.predictor.model.resources")
    put_arguments(draft, arguments, profile, "spec.predictor.model.args")
    put_environment(draft, model.take("env") or [], profile, "spec.predictor.model.env")
    least, most = predictor.take("minReplicas"), predictor.take("maxReplicas")
    queue = predictor.take("scaleTarget") if predictor.take("scaleMetric") in (None, "concurrency") else None
    least = 1 if least is None else int(least)
    # The default of maxReplicas, 0, means no limit only with the autoscaler of Knative.
    put_scaling(draft, least, max(int(most or _DEFAULT_MAX), least), queue=queue, field_="spec.predictor")
    model.ignore("protocolVersion")
    model.lose_rest(draft)
    predictor.lose_rest(draft, _PREDICTOR)
    spec.lose_rest(draft)
    return draft


def _no_language_model(predictor: Fields, kind: str | None) -> str:
    """KServe has three ways to say what is served: a format, a field of the format's name, containers of one's own."""
    if kind:
        return f"spec.predictor.model.modelFormat: {kind} is not a language model, and Flotilla serves only those."
    if predictor.take("containers"):
        return "spec.predictor.containers: the content of a custom image is unknown. Write the ModelDeployment by hand."
    if predictor.take("workerSpec"):
        return "spec.predictor.workerSpec: Flotilla runs a model in one pod, not over several."
    named = next((name for name in _OLD_FORMATS if predictor.take(name)), None)
    if named:
        return f"spec.predictor.{named}: {named} is not a language model, and Flotilla serves only those."
    return "spec.predictor: it has neither a format nor containers."


def _language(document: Mapping[str, Any], catalog: Catalog, given: str | None) -> Draft:
    draft, spec = _draft(document), Fields(document.get("spec"), "spec")
    for field in ("prefill", "worker"):
        if spec.take(field):
            raise NoCounterpart(
                f"spec.{field}: Flotilla runs a model in one pod, not over several with roles of their own."
            )
    model = spec.inside("model")
    put_source(draft, str(model.take("uri", "")), "spec.model.uri")
    draft.put("model.servedName", model.take("name"))
    _lora(draft, model.inside("lora"))
    model.lose_rest(draft)
    template = spec.inside("template")
    containers = template.take("containers") or [{}]
    main = Fields(
        next((c for c in containers if c.get("name") == "main"), containers[0]), "spec.template.containers[main]"
    )
    profile = catalog.profiles["vllm"]
    _place(draft, catalog, given, template, main.take("resources") or {}, "spec.template.containers[main].resources")
    _parallelism(draft, spec.inside("parallelism"))
    arguments = [*(main.take("args") or ())]
    put_environment(draft, main.take("env") or [], profile, "spec.template.containers[main].env")
    put_arguments(draft, arguments, profile, "spec.template.containers[main].args")
    if image := main.take("image"):
        draft.lose(
            "spec.template.containers[main].image", f"{image}: the engine's own image of a tested version is used."
        )
    main.ignore(*_BESIDE)
    main.lose_rest(draft)
    scaling, replicas = spec.inside("scaling"), spec.take("replicas")
    if (most := scaling.take("maxReplicas")) is not None:
        put_scaling(draft, int(scaling.take("minReplicas") or 1), int(most), field_="spec.scaling")
    else:
        put_fixed(draft, 1 if replicas is None else int(replicas))
    scaling.lose_rest(
        draft, dict.fromkeys(("keda", "wva"), "the operator scales on waiting and running requests itself.")
    )
    template.lose_rest(draft)
    spec.ignore("storageInitializer", "labels", "annotations")
    spec.lose_rest(draft, _LLM)
    return draft


def _place(
    draft: Draft, catalog: Catalog, given: str | None, pod: Fields, resources: Mapping[str, Any], field: str
) -> None:
    put_scheduling(draft, pod)
    vendor, count = gpus(resources)
    put_accelerator(
        draft,
        catalog.accelerators,
        vendor=vendor,
        count=count,
        node_selector=draft.get("scheduling.nodeSelector") or {},
        given=given,
        field_=field,
    )
    put_resources(draft, resources, field)


def _parallelism(draft: Draft, parallelism: Fields) -> None:
    if (tensor := parallelism.take("tensor")) is not None:
        draft.put("accelerator.count", int(tensor))
    parallelism.lose_rest(draft)


def _lora(draft: Draft, lora: Fields) -> None:
    rank = lora.take("maxRank")
    kept = []
    for adapter in lora.take("adapters") or []:
        uri = str(adapter.get("uri", ""))
        if uri.startswith(("hf://", "pvc://")):
            kept.append({"name": adapter["name"], "source": uri, **({"rank": int(rank)} if rank else {})})
        else:
            draft.lose(f"spec.model.lora: {adapter.get('name')}", "adapters come from hf:// or pvc:// only.")
    draft.put("model.adapters", kept or None)
    lora.ignore("maxAdapters", "maxCpuAdapters")
    lora.lose_rest(draft)
