"""KubeAI: kubeai.org/v1 Model."""

from collections.abc import Iterator, Mapping
from typing import Any

from flotilla.cli.convert.draft import (
    Draft,
    Fields,
    NoCounterpart,
    accelerator_class,
    put_arguments,
    put_environment,
    put_fixed,
    put_scaling,
    put_source,
)
from flotilla.planning.resolve import Catalog

_TARGET_REQUESTS, _SCALE_DOWN_DELAY_S = 100, 30
"""Defaults of its CRD."""
_REASONS = {
    "cacheProfile": "is configured in KubeAI. Create a claim and name it in spec.model.cache.claimName.",
    "envFrom": "takes all keys of an object. Name each variable in spec.engine.env.",
    "files": "cannot be mounted. Put them next to the weights, or into an image of your own.",
    "jsonPatches": "patches pods freely. Use the fields of spec.scheduling, spec.resources and spec.engine.",
    "loadBalancing": "belongs to the gateway. Use a RoutingPolicy.",
}


def convert(document: Mapping[str, Any], catalog: Catalog, given: str | None) -> Iterator[Draft]:
    """One Model."""
    meta, spec = document["metadata"], Fields(document.get("spec"), "spec")
    draft = Draft(f"KubeAI Model {meta['name']}", meta["name"].replace(".", "-"), meta.get("namespace", ""))
    if draft.name != meta["name"]:
        draft.lose(
            "metadata.name", f"{meta['name']} becomes {draft.name}: a Service has no dots. Clients keep the name."
        )
        draft.put("model.servedName", meta["name"])
    engine = spec.take("engine")
    if engine is None:
        raise NoCounterpart("spec.engine: it is missing. Only VLLM can be converted.")
    if engine != "VLLM":
        raise NoCounterpart(
            f"spec.engine: Flotilla has no engine {engine}. For chat models use vllm, or llamacpp for GGUF."
        )
    draft.put("engine.name", "vllm")
    put_source(draft, str(spec.take("url", "")), "spec.url")
    _profile(draft, str(spec.take("resourceProfile", "")), catalog, given)
    profile = catalog.profiles["vllm"]
    put_arguments(draft, spec.take("args") or [], profile, "spec.args")
    env = [{"name": name, "value": value} for name, value in (spec.take("env") or {}).items()]
    put_environment(draft, env, profile, "spec.env")
    _adapters(draft, spec.take("adapters") or [])
    draft.put("engine.image", spec.take("image") or None)
    draft.put("scheduling.priorityClassName", spec.take("priorityClassName") or None)
    _scaling(draft, spec)
    spec.ignore("features", "owner", "replicas")
    spec.lose_rest(draft, _REASONS)
    yield draft


def _profile(draft: Draft, named: str, catalog: Catalog, given: str | None) -> None:
    name, _, count = named.partition(":")
    if "tpu" in name:
        raise NoCounterpart(f"spec.resourceProfile: {name!r} is a TPU, which no engine of Flotilla supports.")
    found = accelerator_class(name, catalog.accelerators)
    if found is None and given is not None:
        draft.lose("spec.resourceProfile", f"{name} has no class; {given} is used, as given with --accelerator.")
        found = given
    if found is None:
        raise NoCounterpart(
            f"spec.resourceProfile: {name!r} is not a class of Flotilla. Name one with --accelerator, or describe it "
            "(docs/guides/accelerators.md)."
        )
    draft.put("accelerator.class", found)
    units = int(count or 1)
    if catalog.accelerators[found].vendor == "cpu":
        draft.put("resources.cpu", str(units))
    else:
        draft.put("accelerator.count", units)


def _adapters(draft: Draft, adapters: list[Mapping[str, Any]]) -> None:
    kept = []
    for adapter in adapters:
        if str(adapter.get("url", "")).startswith("hf://"):
            kept.append({"name": adapter["name"], "source": adapter["url"]})
        else:
            draft.lose(f"spec.adapters: {adapter.get('name')}", "adapters come from hf:// or pvc:// only.")
    draft.put("model.adapters", kept or None)


def _scaling(draft: Draft, spec: Fields) -> None:
    least, most = int(spec.take("minReplicas") or 0), spec.take("maxReplicas")
    queue, delay = spec.take("targetRequests"), spec.take("scaleDownDelaySeconds")
    if spec.take("autoscalingDisabled"):
        put_fixed(draft, int(spec.take("replicas") or 0))
        return
    put_scaling(draft, least, most, queue=_TARGET_REQUESTS if queue is None else int(queue))
    draft.put("scaling.scaleDownDelaySeconds", _SCALE_DOWN_DELAY_S if delay is None else int(delay))
    draft.put("scaling.scaleDownPercentPerMinute", 100)
