"""Assemble the status of a ModelDeployment: conditions, and the basis of each decision, never its moving numbers."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from flotilla.api.conditions import Verdict, set_conditions
from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.constants import LABEL_MANAGED_BY, LABEL_MODEL, MANAGER
from flotilla.domain.cost_known import Priced
from flotilla.domain.observed import Workload
from flotilla.domain.prices import Comparator
from flotilla.domain.resolve import Resolved
from flotilla.domain.scaling import State
from flotilla.domain.sizing import UNKNOWN, Fit
from flotilla.render.workload import SERVICE_PORT

_MIB = 2**20
_SMALLEST = Decimal("0.000001")


def build(
    live: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    load: Workload,
    *,
    now: str,
    desired: int,
    state: State | None = None,
    spec: ModelDeploymentSpec | None = None,
    resolved: Resolved | None = None,
    cost: Priced | None = None,
) -> dict[str, Any]:
    """The whole status; what is unknown is absent. `now` is RFC 3339 and only ends up in changed conditions."""
    meta = live["metadata"]
    generation = int(meta.get("generation") or 0)
    conditions = set_conditions(
        (live.get("status") or {}).get("conditions") or (), verdicts, generation=generation, now=now
    )
    status: dict[str, Any] = {
        "conditions": conditions,
        "observedGeneration": generation,
        "replicas": load.replicas,
        "readyReplicas": load.ready,
        "readySummary": f"{load.ready}/{desired}",
        "selector": f"{LABEL_MANAGED_BY}={MANAGER},{LABEL_MODEL}={meta['name']}",
    }
    if spec is not None:
        status["scaling"] = {"mode": str(spec.scaling.mode), "desiredReplicas": desired, **_kept(live, state, now)}
    if resolved is not None:
        status |= _resolved(meta, resolved)
    if cost is not None:
        status["cost"] = _cost(cost)
    return status


def _kept(live: Mapping[str, Any], state: State | None, now: str) -> dict[str, Any]:
    """What the autoscaler needs after a restart, beside the number: only what moves slowly."""
    if state is None:
        return {}
    before = ((live.get("status") or {}).get("scaling") or {}).get("panicSince", now)
    return {
        **({"source": state.source} if state.source else {}),
        **({"panicSince": before} if state.panicking else {}),
    }


def _resolved(meta: Mapping[str, Any], resolved: Resolved) -> dict[str, Any]:
    quantization = resolved.quantization
    return {
        "endpoint": f"http://{meta['name']}.{meta['namespace']}.svc:{SERVICE_PORT}/v1",
        "engine": {
            "name": resolved.profile.name,
            "version": resolved.engine_version,
            "image": resolved.image,
        },
        "quantization": {
            "method": quantization.method,
            "kvCache": quantization.kv_cache,
            **({"note": quantization.note} if quantization.note else {}),
        },
        "accelerator": {
            "class": resolved.accelerator.class_name,
            "count": resolved.gpus,
            **({"resource": resolved.accelerator.resource} if resolved.accelerator.resource else {}),
        },
        **({"fit": _fit(resolved.fit)} if resolved.fit else {}),
    }


def _fit(fit: Fit) -> dict[str, Any]:
    known = fit.verdict != UNKNOWN
    return {
        "verdict": fit.verdict,
        "weightsMib": fit.weights_bytes // _MIB,
        "workingMib": fit.working_bytes // _MIB,
        "kvCacheMib": fit.kv_bytes // _MIB,
        **({"contextLength": fit.context_length, "longestContextLength": fit.longest_context} if known else {}),
        **({"concurrentRequests": int(fit.concurrency)} if known else {}),
    }


def _cost(cost: Priced) -> dict[str, Any]:
    comparators = [_comparator(comparator) for comparator in cost.basis.comparators]
    if not cost.rates:
        return {"comparators": comparators}
    highest = cost.rates[0]
    return {
        "gpuHourlyPrice": f"{highest.gpu_usd_per_hour.quantize(_SMALLEST).normalize():f}",
        "priceSource": str(highest)[:253],
        **({"priceAsOf": highest.as_of.isoformat()} if highest.as_of else {}),
        "comparators": comparators,
    }


def _comparator(of: Comparator) -> dict[str, Any]:
    return {
        "provider": of.price.provider,
        "model": of.price.model,
        "mode": "Batch" if of.batch else "Standard",
        "source": of.price.source[:253],
        "inputTokensPercent": int(of.terms.input_factor * 100),
        "outputTokensPercent": int(of.terms.output_factor * 100),
    }
