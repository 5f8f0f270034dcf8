"""Reconcile one RoutingPolicy: check it against the namespace and say what is wrong. No gateway exists yet."""

from collections.abc import Callable

from pydantic import ValidationError

from flotilla.api.conditions import set_condition
from flotilla.api.routing_policy import RoutingPolicy
from flotilla.control.keys import Key
from flotilla.control.status import StatusWriter
from flotilla.domain.policy_status import judge
from flotilla.domain.routing.check import Finding, check
from flotilla.domain.routing.document import DeploymentFacts
from flotilla.errors import InvalidSpec
from flotilla.kube.kinds import MODEL_DEPLOYMENT
from flotilla.kube.store import Store


class RoutingPolicyReconciler:
    """See `Reconciler`."""

    def __init__(self, *, store: Store, status: StatusWriter, now: Callable[[], str]) -> None:
        self._store = store
        self._status = status
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """See `Reconciler`."""
        live = self._store.get(key.kind, key.namespace, key.name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self._status.forget(key)
            return None
        findings: list[Finding] = []
        unreadable: InvalidSpec | None = None
        try:
            policy = RoutingPolicy.model_validate(live)
        except ValidationError as error:
            first = error.errors()[0]
            unreadable = InvalidSpec(
                f"The value {first['input']!r} is not understood: {first['msg']}. Correct it, or upgrade the operator "
                "and its CRDs together.",
                field=".".join(str(part) for part in first["loc"]),
            )
        else:
            models = self._store.in_namespace(MODEL_DEPLOYMENT, key.namespace)
            names = (model["metadata"]["name"] for model in models)
            findings = check(policy.spec, {name: DeploymentFacts(name, name, "") for name in names})
        generation = int(live["metadata"]["generation"])
        conditions = list((live.get("status") or {}).get("conditions") or ())
        for verdict in judge(findings, unreadable):
            conditions = set_condition(
                conditions,
                type=verdict.type,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                generation=generation,
                now=self._now(),
            )
        wanted = {"conditions": conditions, "observedGeneration": generation}
        return await self._status.write(key, live, wanted)
