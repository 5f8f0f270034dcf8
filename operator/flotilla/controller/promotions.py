"""Promotion by evidence: what the operator knows of each namespace's routes, and the shares that follow from it.

`Promotions.apply` puts the present shares into a gateway's document; the decision itself is `routing.promotion`. The
state of each promotion is in the document, so that a restart of the operator continues with it. What gateways count
(`routing.guard_window`) is in memory only: after a restart a step waits until enough requests were counted again.

A Deployment gets another pod template only after the gateways have stopped sending it traffic for the sake of a verdict
about the old one: `release` announces the change, and lets it through when `served` has reported that they have.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flotilla.api.preference import RouteStatus
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.evaluation.qualification import present_revision, target_evidence
from flotilla.kube.kinds import DEPLOYMENT, EVALUATION, MODEL_DEPLOYMENT, Key, gateway_key
from flotilla.kube.store import Store
from flotilla.routing.document import GatewayDocument, Policy
from flotilla.routing.guard_window import Counts, GuardKey, GuardWindow
from flotilla.routing.promotion import (
    EvidenceState,
    GuardFigures,
    TargetEvidence,
    advance,
    unix_s,
)

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_PATIENCE_S = 60.0
"""How long a change of a Deployment waits for gateways that do not report that they have adapted."""

States = Mapping[tuple[str, str], RouteStatus]
"""By names of policy and rule."""


@dataclass(frozen=True, slots=True)
class PromotedDocument:
    """The document with its shares, and when a step may end."""

    document: GatewayDocument
    again_s: float | None = None


@dataclass(slots=True)
class _Announced:
    """A pod template that a ModelDeployment is to get."""

    template: str
    since_s: float
    released: bool = False


@dataclass(slots=True)
class _Namespace:
    """What is known of one gateway."""

    document: GatewayDocument
    window: GuardWindow = field(default_factory=GuardWindow)


class Promotions:
    """For all namespaces. `clock` gives Unix seconds; `enqueue` has a key reconciled."""

    def __init__(self, store: Store, *, clock: Callable[[], float], enqueue: Callable[[Key], None]) -> None:
        self._store = store
        self._clock = clock
        self._enqueue = enqueue
        self._known: dict[str, _Namespace] = {}
        """By namespace, those whose document has a route with a preference."""
        self._announced: dict[Key, _Announced] = {}
        """By ModelDeployment."""

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces whose gateways count for a guard."""
        return tuple(self._known)

    def apply(self, key: Key, document: GatewayDocument, previous: GatewayDocument | None) -> PromotedDocument:
        """The document with the shares that evidence gives its routes now.

        `previous` is the one that the gateway has, which keeps the state of each promotion.
        """
        if not any(route.preference for policy in document.policies for _, route in policy.named_routes()):
            self.forget(key)
            return PromotedDocument(document)
        known = self._known.setdefault(key.namespace, _Namespace(document))
        served = {policy.uid: policy for policy in previous.policies} if previous is not None else {}
        policies: list[Policy] = []
        waits: list[float] = []
        for policy in document.policies:
            before = served[policy.uid].route_status if policy.uid in served else {}
            states, again_s = self._advance(key.namespace, policy, before)
            policies.append(policy.with_routes(states))
            waits += [] if again_s is None else [again_s]
        known.document = document.model_copy(update={"policies": tuple(policies)})
        return PromotedDocument(GatewayDocument(**_fields(known.document)), min(waits, default=None))

    def observe(self, namespace: str, reports: Mapping[str, Mapping[GuardKey, Counts] | None]) -> None:
        """Take what the namespace's gateways count, by pod uid, and have its routes looked at if that moves traffic."""
        known = self._known.get(namespace)
        if known is None:
            return
        known.window.observe(reports, self._clock())
        for policy in known.document.policies:
            states, _ = self._advance(namespace, policy, policy.route_status)
            if any(states[name] != policy.route_status.get(name) for name in states):
                self._enqueue(gateway_key(namespace))
                return

    def served(self, key: Key, document: GatewayDocument) -> None:
        """Every gateway pod of the namespace serves this document: changes that waited for it may go on."""
        for model, announced in self._announced.items():
            if model.namespace == key.namespace and not announced.released and not _relies_on(document, model.name):
                announced.released = True
                self._enqueue(model)

    def release(self, key: Key, template: str) -> float | None:
        """Whether the Deployment of a ModelDeployment may get this pod template; the seconds to wait otherwise."""
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        known = self._known.get(key.namespace)
        same = live is None or _template(live) == template
        if same or known is None:
            self._announced.pop(key, None)
            return None
        announced = self._announced.get(key)
        if announced is None or announced.template != template:
            if not _relies_on(known.document, key.name):
                return None
            announced = self._announced[key] = _Announced(template, self._clock())
            self._enqueue(gateway_key(key.namespace))
        if announced.released:
            return None
        if self._clock() - announced.since_s > _PATIENCE_S:
            log.warning("a rollout no longer waits for gateways that still route to it", extra={"key": str(key)})
            announced.released = True
            return None
        return _RETRY_S

    def forget(self, key: Key) -> None:
        """The namespace has no route with a preference any more."""
        self._known.pop(key.namespace, None)

    def _advance(
        self, namespace: str, policy: Policy, before: Mapping[str, RouteStatus]
    ) -> tuple[dict[str, RouteStatus], float | None]:
        """The next state of each route of a policy by rule, and after how many seconds a step may end."""
        states: dict[str, RouteStatus] = {}
        waits: list[float] = []
        evaluations = {one["metadata"]["name"]: one for one in self._store.in_namespace(EVALUATION, namespace)}
        for name, route in policy.named_routes():
            if not route.preference:
                continue
            evidence = {
                item.target: self._evidence(namespace, policy, item.target, item.evaluations, evaluations)
                for item in route.preference
                if item.evaluations
            }
            figures = self._figures(namespace, policy.name, before.get(name))
            step = advance(name, route.preference, route.promotion, before.get(name), evidence, figures, self._clock())
            states[name] = step.status
            waits += [] if step.again_s is None else [step.again_s]
        return states, min(waits, default=None)

    def _evidence(
        self,
        namespace: str,
        policy: Policy,
        name: str,
        required: list[str],
        evaluations: Mapping[str, Mapping[str, Any]],
    ) -> TargetEvidence:
        target = policy.target[name]
        if target.cluster is None:
            return target_evidence(target, required, evaluations)
        owner = target.cluster.model_deployment
        model = self._store.get(MODEL_DEPLOYMENT, namespace, owner)
        deployment = self._store.get(DEPLOYMENT, namespace, owner)
        announced = self._announced.get(Key(MODEL_DEPLOYMENT, namespace, owner))
        if announced is not None and (deployment is None or _template(deployment) != announced.template):
            revision = present_revision(target, model, deployment) or ""
            message = f"ModelDeployment {owner!r} was changed, and no evaluation has judged its new revision."
            return TargetEvidence(EvidenceState.UNKNOWN, revision, message)
        return target_evidence(target, required, evaluations, model, deployment)

    def _figures(self, namespace: str, policy: str, status: RouteStatus | None) -> dict[str, GuardFigures]:
        known = self._known.get(namespace)
        if known is None or status is None:
            return {}
        since_s, found = unix_s(status.since), {}
        for share in status.shares:
            key = GuardKey(policy, status.name, share.target, share.revision)
            figures = known.window.read(key, self._clock(), since_s)
            if figures is not None:
                found[share.target] = figures
        return found


def _relies_on(document: GatewayDocument, model: str) -> bool:
    """Whether any route may send requests to a ModelDeployment because evaluations have qualified it."""
    for policy in document.policies:
        required = {item.target for _, route in policy.named_routes() for item in route.preference if item.evaluations}
        for status in policy.routes:
            for name in status.qualified:
                cluster = policy.target[name].cluster if name in policy.target else None
                if name in required and cluster is not None and cluster.model_deployment == model:
                    return True
    return False


def _template(deployment: Mapping[str, Any]) -> str | None:
    annotations: Mapping[str, str] = deployment["metadata"].get("annotations") or {}
    return annotations.get(ANNOTATION_TEMPLATE_HASH)


def _fields(document: GatewayDocument) -> dict[str, Any]:
    """The fields of a document, to make one of them without what the other has computed."""
    return {name: getattr(document, name) for name in GatewayDocument.model_fields}
