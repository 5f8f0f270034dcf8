"""Reconcile one ModelDeployment: parse, resolve, render, converge, write the status."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flotilla.api.model_deployment import ModelDeployment
from flotilla.controller import model_status
from flotilla.controller.adapter_loop import AdapterLoader
from flotilla.controller.apply import (
    RIVAL_S,
    Executor,
    PodDeletionCosts,
    Rollouts,
    StatusWriter,
    record_transition_events,
)
from flotilla.controller.promotions import Promotions
from flotilla.cost.price_loop import Pricing, PricingPlan
from flotilla.errors import InvalidSpec, NameTaken
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import DEPLOYMENT, Key
from flotilla.kube.store import Store
from flotilla.planning.resolve import Catalog, Resolved, resolve
from flotilla.render.workload import PodTemplate, children, foreign_risks, pod_template
from flotilla.scaling.scaling_loop import Scaler

log = logging.getLogger(__name__)

_COMPILED_LIMIT = 256
"""Those that just moved are looked at again within seconds; a compiled spec takes 20 KB and half a millisecond."""
_CONFLICT_RETRY_S = 30.0
"""Objects of other owners are not watched, so their deletion does not trigger a pass."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a generation of the spec means; made once, used by each pass over it."""

    model: ModelDeployment
    resolved: Resolved
    pricing: PricingPlan
    template: PodTemplate


class ModelDeploymentReconciler:
    """See `Reconciler`. Holds no truth: a cache of compiled specs and nothing else."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        rollouts: Rollouts,
        deletion_costs: PodDeletionCosts,
        status: StatusWriter,
        scaler: Scaler,
        adapters: AdapterLoader,
        events: EventRecorder,
        catalog: Catalog,
        pricing: Pricing,
        now: Callable[[], str],
        promotions: Promotions,
    ) -> None:
        self._store = store
        self._executor = executor
        self._rollouts = rollouts
        self._deletion_costs = deletion_costs
        self._status = status
        self._scaler = scaler
        self._adapters = adapters
        self._events = events
        self._catalog = catalog
        self._pricing = pricing
        self._now = now
        self._promotions = promotions
        self._compiled: OrderedDict[Key, tuple[tuple[str, int, str], Compiled]] = OrderedDict()

    async def reconcile(self, key: Key) -> float | None:
        """See `Reconciler`."""
        live = self._store.get(key.kind, key.namespace, key.name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self._forget(key)
            return None
        error: InvalidSpec | NameTaken | None = None
        compiled: Compiled | None = None
        held_s: float | None = None
        try:
            compiled = await self._compile(key, live)
            self._pricing.adopt(key, compiled.pricing)
            desired = self._scaler.track(key, live, compiled.model, compiled.resolved)
            self._adapters.track(key, compiled.resolved)
            held_s = self._promotions.release(key, compiled.template.hash)
            if held_s is None and await self._converge(key, live, compiled, desired):
                self._status.defer(key)
        except (InvalidSpec, NameTaken) as failure:
            error = failure
            if compiled is None:
                self._scaler.pause(key)
        again_s = await self._update_status(key, live, compiled, error)
        return again_s if held_s is None else held_s

    async def _converge(self, key: Key, live: Mapping[str, Any], compiled: Compiled, desired: int) -> int:
        meta = live["metadata"]
        surge = await self._rollouts.surges(
            key,
            self._store.get(DEPLOYMENT, key.namespace, key.name),
            strategy=compiled.model.spec.rollout.strategy,
            resolved=compiled.resolved,
            template_hash=compiled.template.hash,
        )
        tracked = self._scaler.tracked.get(key)
        await self._deletion_costs.annotate(key, desired, tracked.load if tracked else {})
        return await self._executor.converge(
            key,
            (meta["uid"],),
            lambda: children(compiled.model, compiled.resolved, compiled.template, replicas=desired, surge=surge),
            revision=(*_revision(meta), surge),
            replicas=desired,
        )

    async def _update_status(
        self,
        key: Key,
        live: Mapping[str, Any],
        compiled: Compiled | None,
        error: InvalidSpec | NameTaken | None,
    ) -> float | None:
        """Write the status and an event per transition; returns when to look again."""
        load = self._scaler.workloads.of(key)
        tracked = self._scaler.tracked.get(key)
        desired = tracked.state.desired if tracked else load.wanted
        warnings = compiled.resolved.warnings if compiled else ()
        # A new command line may leave another room, and without a replica there is none to speak of.
        room = model_status.known_room(live, tracked.room if tracked else None) if load.ready else None
        chain = [
            model_status.spec_valid(error, warnings),
            model_status.fits_memory(
                error,
                compiled.resolved.fit if compiled else None,
                compiled.resolved.near if compiled else "",
                room,
            ),
            model_status.scheduled(load),
            model_status.model_loaded(load),
        ]
        rival = self._executor.rival(key)
        if tracked is not None:
            before = _condition(live, "ScalingActive")
            chain.append(
                model_status.scaling_active(
                    tracked.mode,
                    tracked.decision,
                    desired,
                    replicas=live["spec"].get("replicas"),
                    paused=tracked.paused,
                    before=before,
                    now=self._now(),
                    rival=rival,
                )
            )
        priced = None
        if compiled is not None:
            priced, cost_known = self._pricing.verdict(compiled.pricing, (pod.node for pod in load.pods if pod.node))
            chain.append(cost_known)
        verdicts = [*model_status.summary(chain, load, self._risks(key, compiled)), *chain]
        wanted = model_status.build(
            live,
            verdicts,
            load,
            now=self._now(),
            desired=desired,
            state=tracked.state if tracked else None,
            spec=compiled.model.spec if compiled else None,
            resolved=compiled.resolved if compiled else None,
            adapters=self._adapters.statuses(compiled.resolved, load) if compiled else (),
            cost=priced,
            room=room,
        )
        again_s = await self._status.write(key, live, wanted, urgent=error is not None)
        if again_s is None:
            self._announce(key, live, wanted["conditions"], desired)
        if isinstance(error, NameTaken):
            return _CONFLICT_RETRY_S
        return RIVAL_S / 2 if rival and again_s is None else again_s

    def _risks(self, key: Key, compiled: Compiled | None) -> list[str]:
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        if compiled is None or live is None:
            return []
        return foreign_risks(compiled.template.manifest, live, compiled.resolved.profile.is_dangerous)

    def _announce(self, key: Key, live: Mapping[str, Any], conditions: list[dict[str, Any]], desired: int) -> None:
        """Events for what this status changed."""
        record_transition_events(self._events, key.kind, live, conditions)
        before: Mapping[str, Any] = live.get("status") or {}
        replicas = (before.get("scaling") or {}).get("desiredReplicas")
        if replicas is not None and replicas != desired:
            self._events.record(
                key.kind,
                live,
                topic="scaling",
                reason="ScaledOut" if desired > replicas else "ScaledIn",
                note=f"Scaled from {replicas} to {desired} replicas.",
                action="Scale",
            )

    async def _compile(self, key: Key, live: Mapping[str, Any]) -> Compiled:
        meta = live["metadata"]
        revision = (*_revision(meta), self._pricing.version)
        cached = self._compiled.get(key)
        if cached is not None and cached[0] == revision:
            return cached[1]
        try:
            model = ModelDeployment.model_validate(live)
        except ValidationError as error:
            raise _invalid(error) from error
        resolved = resolve(key.name, model.spec, self._catalog)
        pricing = await self._pricing.basis(model.spec, resolved)
        compiled = Compiled(model, resolved, pricing, pod_template(model, resolved))
        self._compiled[key] = (revision, compiled)
        if len(self._compiled) > _COMPILED_LIMIT:
            self._compiled.popitem(last=False)
        return compiled

    def _forget(self, key: Key) -> None:
        self._compiled.pop(key, None)
        self._executor.forget(key)
        self._scaler.forget(key)
        self._adapters.forget(key)
        self._pricing.forget(key)
        self._status.forget(key)


def _condition(live: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    conditions = (live.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == type_), None)


def _revision(meta: Mapping[str, Any]) -> tuple[str, int]:
    return meta["uid"], int(meta["generation"])


def _invalid(error: ValidationError) -> InvalidSpec:
    """A spec that passed an older or newer schema than ours: name the first field that we cannot read."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return InvalidSpec(
        f"The value {first['input']!r} is not understood: {first['msg']}. "
        "Correct it, or upgrade the operator and its CRDs together.",
        field=field,
    )
