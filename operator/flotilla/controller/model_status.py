"""The status of a ModelDeployment from what was planned and observed: conditions, readiness, scaling. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.api.types import Verdict, set_conditions
from flotilla.constants import LABEL_MANAGED_BY, LABEL_MODEL, MANAGER
from flotilla.cost.hosted_prices import Comparator
from flotilla.cost.price_loop import Priced
from flotilla.errors import InvalidSpec, NameTaken
from flotilla.kube.observed import STUCK_REASONS, Pod, Workload
from flotilla.planning import memory_fit
from flotilla.planning.memory_fit import UNKNOWN, DoesNotFit, Fit
from flotilla.planning.resolve import Resolved
from flotilla.render.workload import SERVICE_PORT
from flotilla.scaling.autoscaler import NOT_FOLLOWING, STALE, ScalingDecision, State
from flotilla.scaling.scrape_client import CacheRoom


def spec_valid(error: InvalidSpec | NameTaken | None, warnings: Sequence[str] = ()) -> Verdict:
    """Whether the operator can act on the spec at all, and what it advises against."""
    if isinstance(error, InvalidSpec) and not isinstance(error, DoesNotFit):
        where = f"{error.field}: " if error.field else ""
        return Verdict("SpecValid", "False", error.reason, f"{where}{error}")
    if isinstance(error, NameTaken):
        return Verdict("SpecValid", "False", "NameConflict", str(error))
    if warnings:
        return Verdict("SpecValid", "True", "ValidWithWarnings", " ".join(("The spec is accepted.", *warnings)))
    return Verdict("SpecValid", "True", "Valid", "The spec is accepted.")


def fits_memory(
    error: InvalidSpec | NameTaken | None, fit: Fit | None, near: str = "", room: CacheRoom | None = None
) -> Verdict:
    """Whether the weights and at least one request fit into the accelerator's memory, by the estimate.

    Where there is no estimate, `room` is what the running engines say. `near` is a sentence that offers the models of
    the catalogue with names like the one that it does not know.
    """
    if isinstance(error, DoesNotFit):
        return Verdict("FitsMemory", "False", memory_fit.DOES_NOT_FIT, f"{error.field}: {error}")
    if isinstance(error, InvalidSpec):
        return Verdict("FitsMemory", "Unknown", "SpecInvalid", "The spec must be corrected before it can be judged.")
    if room is not None and (fit is None or fit.verdict == memory_fit.UNKNOWN):
        context = f", {room.requests} requests of {room.context_length}" if room.context_length else ""
        message = (
            f"The running engines report a cache of {room.tokens} tokens{context}. It was not known before their start."
        )
        return Verdict("FitsMemory", "True", "Measured", message)
    if fit is None:
        message = (
            "The catalogue does not know this model's architecture. Describe it in spec.model.architecture "
            "(flotilla estimate --config config.json prints it) to have its GPUs and context chosen and checked. "
            f"{near}"
        ).rstrip()
        return Verdict("FitsMemory", "Unknown", "ArchitectureUnknown", message)
    if fit.verdict == memory_fit.UNKNOWN:
        message = (
            f"The weights fit. How much cache a request takes is not known: {fit.why_unknown}. So the context is the "
            "engine's own choice."
        )
        return Verdict("FitsMemory", "Unknown", "CacheUnknown", message)
    figures = f"{fit.context_length} tokens of context for {float(fit.concurrency):.1f} requests at one time"
    if fit.verdict == memory_fit.TIGHT:
        message = (
            f"Whether it fits is uncertain: {figures} by a cautious estimate. A shorter context or more memory is safe."
        )
        return Verdict("FitsMemory", "Unknown", memory_fit.TIGHT, message)
    return Verdict("FitsMemory", "True", memory_fit.FITS, f"There is room for {figures}.")


def _live(pods: Iterable[Pod]) -> list[Pod]:
    return [pod for pod in pods if not pod.terminating]


def scheduled(load: Workload) -> Verdict:
    """Whether the scheduler found a node for every pod, else its message."""
    pods = _live(load.pods)
    if load.failure:
        return Verdict("Scheduled", "False", "PodCreationFailed", f"Pods cannot be created: {load.failure}")
    if load.wanted == 0:
        return Verdict("Scheduled", "True", "NoReplicas", "No replica is asked for.")
    held = next((pod for pod in pods if pod.gates and not pod.scheduled), None)
    if held is not None:
        return Verdict("Scheduled", "False", "SchedulingGated", _gated(held))
    unplaced = [pod for pod in pods if not pod.scheduled and pod.scheduling_message]
    if unplaced:
        message = unplaced[0].scheduling_message
        return Verdict("Scheduled", "False", "Unschedulable", f"{message.rstrip('.')}. {_scheduling_help(message)}")
    if not pods or any(not pod.scheduled for pod in pods):
        return Verdict("Scheduled", "Unknown", "WaitingForScheduler", "The scheduler has not placed every pod yet.")
    return Verdict("Scheduled", "True", "AllScheduled", "Every pod has a node.")


def _gated(pod: Pod) -> str:
    gates = ", ".join(pod.gates)
    who = "Kueue admits the pods when the queue of spec.scheduling.queueName has room" if "kueue" in gates else ""
    return f"Scheduling gates hold the pods: {gates}. {who or 'Whoever set a gate removes it'}."


def _scheduling_help(message: str) -> str:
    if "Insufficient" in message:
        return "Add a node with free GPUs, free some, choose another spec.accelerator.class, or lower maxReplicas."
    if "untolerated taint" in message:
        return "Add the taint to spec.scheduling.tolerations, or use nodes without it."
    if "affinity" in message or "selector" in message:
        return (
            "No node carries the labels of spec.accelerator.class and spec.scheduling: "
            "label the nodes (GPU feature discovery does) or correct the two fields."
        )
    return "See the pod's events for details."


def _obstacle(pod: Pod) -> str:
    """The reason why this pod will not start by itself, or an empty string.

    A crashing container alternates between running and CrashLoopBackOff, a missing image between ErrImagePull and
    ImagePullBackOff: both are folded into one reason, or the condition would flap with them.
    """
    if pod.ready or pod.terminating:
        return ""
    if pod.waiting_reason == "ErrImagePull":
        return "ImagePullBackOff"
    if pod.waiting_reason in STUCK_REASONS:
        return pod.waiting_reason
    return "CrashLoopBackOff" if pod.restarts > 1 and pod.last_exit else ""


def model_loaded(load: Workload) -> Verdict:
    """Whether at least one replica answers its readiness probe."""
    pods = _live(load.pods)
    ready = [pod for pod in pods if pod.ready]
    stuck = next((pod for pod in pods if _obstacle(pod)), None)
    if ready:
        return Verdict("ModelLoaded", "True", "Serving", "At least one replica serves the model.")
    if load.wanted == 0:
        return Verdict("ModelLoaded", "False", "NoReplicas", "No replica is asked for, so no model is loaded.")
    if stuck is not None:
        reason = _obstacle(stuck)
        ended = f" after {stuck.last_exit}" if stuck.last_exit else ""
        # The kubelet's own text names the missing image or Secret; that of a back-off only counts seconds.
        named = reason.startswith("CreateContainer") and stuck.waiting_message
        said = stuck.waiting_message if named else stuck.last_log_line
        detail = f" {said.rstrip('.')}." if said else ""
        return Verdict(
            "ModelLoaded",
            "False",
            reason,
            f"The engine does not start: {reason}{ended}.{detail} "
            f"Read its log with kubectl logs, then correct spec.engine, spec.model or the named Secret.",
        )
    if not any(pod.scheduled for pod in pods):
        # Nothing is loaded before a pod has a node, and why it has none is the scheduler's message.
        waits = scheduled(load)
        return Verdict("ModelLoaded", "False", waits.reason, f"No engine has started. {waits.message}")
    waiting = next((pod for pod in pods if pod.answers and pod.adapters == "False"), None)
    if waiting is not None:
        why = f" {waiting.adapters_message.rstrip('.')}." if waiting.adapters_message else ""
        return Verdict(
            "ModelLoaded",
            "False",
            "AdapterMissing",
            f"The engine has loaded the model, and a LoRA adapter is missing.{why} It is tried again every few "
            "seconds; correct spec.model.adapters or the adapter's files.",
        )
    return Verdict("ModelLoaded", "False", "Loading", "The engine is starting and loads the model.")


def scaling_active(
    mode: str,
    decision: ScalingDecision | None,
    desired: int,
    *,
    replicas: int | None,
    paused: bool,
    before: Mapping[str, Any] | None = None,
    now: str,
    rival: str = "",
) -> Verdict:
    """Whether the replica count follows the load, and what it waits for if not.

    `replicas` is spec.replicas; `paused` says that the present spec is refused. `before` is the condition as it is now,
    which keeps the time since which data are stale; `now` is RFC 3339. `rival` is the field manager of another
    controller that keeps changing the number.
    """
    if paused:
        message = f"The spec is refused, as SpecValid says, so scaling is paused and {desired} replicas are kept."
        return Verdict("ScalingActive", "False", "SpecInvalid", message)
    if rival:
        message = (
            f"The field manager {rival} keeps changing spec.replicas of the Deployment, and the operator sets it back. "
            "Remove the autoscaler that targets the Deployment; with spec.scaling.mode External it may target the "
            "ModelDeployment."
        )
        return Verdict("ScalingActive", "False", "ReplicasContested", message)
    if decision is not None:
        status = "False" if decision.reason in NOT_FOLLOWING else "True"
        message = decision.message
        if decision.reason in STALE:
            known = before if before is not None and before["reason"] == decision.reason else None
            since = known["message"].rpartition(_SINCE)[2] if known and _SINCE in known["message"] else f"{now}."
            message = f"{message}{_SINCE}{since}"
        return Verdict("ScalingActive", status, decision.reason, message)
    if mode == "External":
        message = f"The /scale subresource sets the replica count; it asks for {desired}."
        return Verdict("ScalingActive", "True", "ExternalScaler", message)
    if replicas is None:
        message = (
            f"spec.scaling.mode is {mode} and spec.replicas is not set: the number is kept as it is, {desired}. Set "
            "spec.replicas to change it."
        )
    else:
        message = f"spec.scaling.mode is {mode}: spec.replicas is {desired}."
    return Verdict("ScalingActive", "False", "Disabled", message)


_SINCE = " Stale since "


def summary(chain: Sequence[Verdict], load: Workload, risks: Sequence[str] = ()) -> list[Verdict]:
    """Ready, Reconciling and Stalled as kstatus reads them, from the chain's answers.

    `risks` are additions of others to the pod template; see `foreign_risks`.
    Ready follows the model, not the replica count: scaling from one to four replicas never makes it flap.
    """
    by_type = {verdict.type: verdict for verdict in chain}
    valid, placed, loaded = by_type["SpecValid"], by_type["Scheduled"], by_type["ModelLoaded"]
    if by_type["FitsMemory"].status == "False":
        valid = by_type["FitsMemory"]
    stalled = _stalled(valid, placed, loaded, load, risks)
    idle = load.wanted == 0 and load.exists
    if valid.status == "False":
        ready = Verdict("Ready", "False", valid.reason, valid.message)
    elif idle:
        ready = Verdict("Ready", "True", "NoReplicas", "The deployment is scaled to zero as asked.")
    elif loaded.status != "True":
        cause = placed if placed.status == "False" else loaded
        ready = Verdict("Ready", "False", cause.reason, cause.message)
    else:
        ready = Verdict("Ready", "True", "Serving", loaded.message)
    working = stalled.status == "False" and (ready.status != "True" or not load.rolled_out)
    if not working:
        reconciling = Verdict("Reconciling", "False", "Settled", "Nothing is left to do.")
    elif ready.status == "True":
        reconciling = Verdict("Reconciling", "True", "RollingOut", "A new revision replaces the running replicas.")
    else:
        reconciling = Verdict("Reconciling", "True", ready.reason, ready.message)
    return [ready, reconciling, stalled]


def _stalled(valid: Verdict, placed: Verdict, loaded: Verdict, load: Workload, risks: Sequence[str]) -> Verdict:
    if valid.status == "False":
        return Verdict("Stalled", "True", valid.reason, valid.message)
    if risks:
        message = (
            f"Somebody added to the pod template of the Deployment: {', '.join(risks)}. This takes away the protection "
            "that the operator renders, and the operator cannot remove fields of others. Remove them, or delete the "
            "Deployment: the operator creates it again."
        )
        return Verdict("Stalled", "True", "ForeignChanges", message)
    if load.paused:
        message = (
            "Somebody paused the Deployment (spec.paused), so changes of its pods are not rolled out. Resume it with "
            "kubectl rollout resume."
        )
        return Verdict("Stalled", "True", "DeploymentPaused", message)
    if loaded.status == "False" and loaded.reason in STUCK_REASONS:
        return Verdict("Stalled", "True", loaded.reason, loaded.message)
    if placed.reason == "PodCreationFailed" and loaded.status != "True":
        return Verdict("Stalled", "True", placed.reason, placed.message)
    if load.overdue and not load.rolled_out:
        serving = "The replicas of the old revision keep serving." if load.ready else "No replica serves."
        obstacle = next((_obstacle(pod) for pod in load.pods if _obstacle(pod)), "")
        why = f" Its pods: {obstacle}." if obstacle else ""
        message = (
            f"The new revision did not become ready within spec.rollout.timeoutSeconds.{why} {serving} Correct the "
            "spec, or put the last one that worked back."
        )
        return Verdict("Stalled", "True", "RolloutTimedOut", message)
    return Verdict("Stalled", "False", "Progressing", "Nothing blocks the resource.")


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
    adapters: Sequence[Mapping[str, Any]] = (),
    cost: Priced | None = None,
    room: CacheRoom | None = None,
) -> dict[str, Any]:
    """The whole status; what is unknown is absent. `now` is RFC 3339 and only ends up in changed conditions."""
    meta = live["metadata"]
    generation = int(meta.get("generation") or 0)
    conditions = set_conditions(
        (live.get("status") or {}).get("conditions") or (), verdicts, generation=generation, now=now
    )
    # Of the pods, as Ready is: the Deployment's own numbers come a moment later.
    ready = sum(pod.ready for pod in _live(load.pods))
    status: dict[str, Any] = {
        "conditions": conditions,
        "observedGeneration": generation,
        "replicas": max(load.replicas, ready),
        "scheduledReplicas": sum(pod.scheduled for pod in load.pods),
        "readyReplicas": ready,
        "readySummary": f"{ready}/{desired}",
        "selector": f"{LABEL_MANAGED_BY}={MANAGER},{LABEL_MODEL}={meta['name']}",
    }
    if spec is not None:
        status["scaling"] = {
            "mode": str(spec.scaling.mode),
            "desiredReplicas": desired,
            **_persisted_scaling_state(live, state, now),
        }
    if resolved is not None:
        status |= _resolved(meta, resolved, room)
    if adapters:
        status["adapters"] = list(adapters)
    if cost is not None:
        status["cost"] = _cost(cost)
    return status


def _persisted_scaling_state(live: Mapping[str, Any], state: State | None, now: str) -> dict[str, Any]:
    """What the autoscaler needs after a restart, beside the number: only what moves slowly."""
    if state is None:
        return {}
    before = ((live.get("status") or {}).get("scaling") or {}).get("panicSince", now)
    return {
        **({"source": state.source} if state.source else {}),
        **({"panicSince": before} if state.panicking else {}),
    }


def _resolved(meta: Mapping[str, Any], resolved: Resolved, room: CacheRoom | None) -> dict[str, Any]:
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
        **({"fit": {**(_fit(resolved.fit) if resolved.fit else {}), **_room(room)}} if resolved.fit or room else {}),
    }


def known_room(live: Mapping[str, Any], room: CacheRoom | None) -> CacheRoom | None:
    """What the engines report, or what the status says that they reported before the operator started."""
    fit = (live.get("status") or {}).get("fit") or {}
    if room is not None or "measuredCacheTokens" not in fit:
        return room
    return CacheRoom(fit["measuredCacheTokens"], fit.get("measuredContextLength", 0), fit.get("measuredRequests", 0))


def _room(room: CacheRoom | None) -> dict[str, int]:
    if room is None:
        return {}
    return {
        "measuredCacheTokens": room.tokens,
        **({"measuredContextLength": room.context_length} if room.context_length else {}),
        **({"measuredRequests": room.requests} if room.requests else {}),
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
