"""LLMKube: inference.llmkube.dev Model and InferenceService, which names a Model."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flotilla.cli.convert.draft import (
    Draft,
    Fields,
    NoCounterpart,
    put_accelerator,
    put_arguments,
    put_environment,
    put_fixed,
    put_scaling,
    put_scheduling,
    put_source,
    put_token,
)
from flotilla.planning.resolve import Catalog

_RUNTIMES = frozenset({"llamacpp", "vllm", "tgi", "sglang"})
_HUB_FILE = re.compile(r"^https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_GGUF_QUANT = re.compile(r"[-.]((?:UD-)?I?Q\d\w*|BF16|F16|F32)(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_VENDORS = {"cuda": "nvidia", "rocm": "amd", "cpu": "", "": ""}
_CONTEXT = {"vllm": "maxModelLen", "sglang": "contextLength", "tgi": "maxTotalTokens"}
_REASONS = {
    "priority": "exists only in LLMKube. Use spec.scheduling.priorityClassName.",
    "disruption": "is replaced by a PodDisruptionBudget.",
    "rolloutPolicy": "is not needed: old replicas always complete their requests.",
    "slo": "is replaced by alerts on the operator's metrics.",
    "securityContext": "is set for every engine, as Pod Security's restricted profile requires.",
    "podSecurityContext": "is set for every engine, as Pod Security's restricted profile requires.",
}


def convert(
    document: Mapping[str, Any],
    catalog: Catalog,
    given: str | None,
    models: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Iterator[Draft]:
    """One InferenceService with the Model that it names; a Model alone is not converted."""
    meta, spec = document["metadata"], Fields(document.get("spec"), "spec")
    draft = Draft(f"LLMKube InferenceService {meta['name']}", meta["name"], meta.get("namespace", ""))
    runtime = spec.take("runtime", "llamacpp")
    if runtime not in _RUNTIMES:
        raise NoCounterpart(
            f"spec.runtime: Flotilla has no engine {runtime}. Add it as a YAML file (docs/guides/adding-an-engine.md)."
        )
    reference = spec.take("modelRef")
    if not isinstance(reference, str):
        raise NoCounterpart("spec.modelRef: it must be the name of a Model.")
    model = models.get((meta.get("namespace", ""), reference))
    if model is None:
        raise NoCounterpart(f"spec.modelRef: the Model {reference!r} is not among the files. Give both.")
    draft.put("engine.name", runtime)
    if draft.name != reference:
        draft.put("model.servedName", reference)
    _model(draft, Fields(model.get("spec"), f"Model {reference}: spec"), runtime)
    put_scheduling(draft, spec)
    _resources(draft, spec.inside("resources"), model.get("spec") or {}, catalog, given)
    profile = catalog.profiles[runtime]
    settings = spec.inside(f"{runtime}Config")
    _settings(draft, settings, runtime)
    if (context := spec.take("contextSize")) is not None:
        draft.put("model.contextLength", int(context))
    arguments = [*(spec.take("args") or ()), *(spec.take("extraArgs") or ())]
    put_arguments(draft, arguments, profile, "spec.extraArgs")
    put_environment(draft, spec.take("env") or [], profile, "spec.env")
    if image := spec.take("image"):
        draft.lose("spec.image", f"{image}: the engine's own image of a tested version is used.")
    draft.put("model.cache.claimName", (spec.take("modelCache") or {}).get("claimName"))
    _scale(draft, spec)
    spec.ignore(
        "endpoint", "skipModelInit", "jinja", "revisionHistoryLimit", "containerPort", "podLabels", "podAnnotations"
    )
    spec.lose_rest(draft, _REASONS)
    yield draft


def _model(draft: Draft, model: Fields, runtime: str) -> None:
    source = str(model.take("source", ""))
    if found := _HUB_FILE.match(source):
        repository, revision, file = found.groups()
        if runtime == "llamacpp":
            quant = _GGUF_QUANT.search(file)
            draft.put("model.source", f"hf://{repository}")
            # llama.cpp chooses the file by the name of the quantization.
            draft.put("model.revision", quant[1] if quant else None)
        else:
            put_source(
                draft, f"hf://{repository}" + (f":{revision}" if revision != "main" else ""), "Model: spec.source"
            )
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        draft.put("model.source", f"hf://{source}")
    elif source.startswith(("/", "file://")):
        raise NoCounterpart(
            f"Model: spec.source: {source} is a path on nodes. Copy it to a claim and use pvc://CLAIM/PATH."
        )
    else:
        put_source(draft, source, "Model: spec.source")
    if secret := model.take("sourceSecretRef"):
        draft.put("model.credentialsSecret", {"name": secret["name"]})
    model.ignore("format", "quantization", "hardware", "resources", "refreshPolicy", "prefetch", "prefetchTolerations")
    model.lose_rest(draft)


def _resources(draft: Draft, resources: Fields, model: Mapping[str, Any], catalog: Catalog, given: str | None) -> None:
    hardware = model.get("hardware") or {}
    gpu = hardware.get("gpu") or {}
    backend = str(hardware.get("accelerator") or "")
    wanted = resources.take("gpu")
    count = int(wanted if wanted is not None else gpu.get("count", 0) if gpu.get("enabled") else 0)
    vendor = str(gpu.get("vendor") or _VENDORS.get(backend, "")) or ("nvidia" if count else "")
    if count and (backend not in _VENDORS or vendor not in ("nvidia", "amd")):
        raise NoCounterpart(f"Model: spec.hardware: Flotilla runs no engine on {backend or vendor}.")
    put_accelerator(
        draft,
        catalog.accelerators,
        vendor=vendor,
        count=count,
        node_selector=draft.get("scheduling.nodeSelector") or {},
        given=given,
        field_="spec.resources.gpu",
    )
    for name in ("cpu", "memory"):
        value = resources.take(name)
        draft.put(f"resources.{name}", None if value is None else str(value))
    resources.ignore("gpuMemory")
    resources.lose_rest(draft)


def _settings(draft: Draft, settings: Fields, runtime: str) -> None:
    """vllmConfig and the like become fields of the spec, or the engine's flags of the same names."""
    if secret := settings.take("hfTokenSecretRef"):
        put_token(draft, secret)
    context = settings.take(_CONTEXT.get(runtime, "contextLength"))
    draft.put("model.contextLength", None if context is None else int(context))
    tensor = settings.take("tensorParallelSize")
    draft.put("accelerator.count", None if tensor is None else int(tensor))
    draft.put("quantization.method", settings.take("quantization") or settings.take("quantize"))
    cache = settings.take("kvCacheDtype")
    draft.put("quantization.kvCache", cache)
    arguments = []
    for name, flag in (
        ("enablePrefixCaching", "--enable-prefix-caching"),
        ("enableChunkedPrefill", "--enable-chunked-prefill"),
        ("maxNumBatchedTokens", "--max-num-batched-tokens"),
        ("attentionBackend", "--attention-backend"),
        ("cpuOffloadGB", "--cpu-offload-gb"),
    ):
        value = settings.take(name) if runtime == "vllm" else None
        if value is True:
            arguments.append(flag)
        elif value not in (None, False):
            arguments.append(f"{flag}={value}")
    if arguments:
        draft.put("engine.args", arguments)
    settings.ignore("dtype", "gpuMemoryUtilization")  # the operator chooses both by the card
    settings.lose_rest(draft)


def _scale(draft: Draft, spec: Fields) -> None:
    autoscaling, replicas = spec.take("autoscaling"), spec.take("replicas")
    if spec.take("suspend"):
        put_fixed(draft, 0)
    elif autoscaling:
        put_scaling(
            draft, int(autoscaling.get("minReplicas") or 1), autoscaling.get("maxReplicas"), field_="spec.autoscaling"
        )
        if autoscaling.get("metrics"):
            draft.lose("spec.autoscaling.metrics", "the operator scales on waiting and running requests itself.")
    else:
        put_fixed(draft, 1 if replicas is None else int(replicas))
