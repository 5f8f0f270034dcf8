"""Reconcile one Evaluation: check it, keep the results that hold, and write the status."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from flotilla.api.evaluation import Evaluation
from flotilla.api.types import Verdict
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.controller.apply import StatusWriter, record_transition_events
from flotilla.controller.evaluation_status import build_evaluation_status, evaluation_conditions
from flotilla.errors import InvalidSpec
from flotilla.evaluation.check import check_evaluation
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import EVALUATION, MODEL_DEPLOYMENT, Key, Kind
from flotilla.kube.store import Store
from flotilla.routing.document import facts_of

Object = Mapping[str, Any]


def target_facts(kind: Kind, obj: Object | None) -> tuple[Any, ...] | None:
    """What evaluations depend on, of a ModelDeployment or its Deployment: they look again when this changes."""
    if obj is None or "deletionTimestamp" in obj["metadata"]:
        return None
    status = obj.get("status") or {}
    if kind == MODEL_DEPLOYMENT:
        return (facts_of(obj), [(a.get("name"), a.get("digest")) for a in status.get("adapters") or ()])
    template = (obj["metadata"].get("annotations") or {}).get(ANNOTATION_TEMPLATE_HASH)
    return (template, status.get("updatedReplicas") == status.get("replicas"), bool(status.get("readyReplicas")))


class EvaluationReconciler:
    """See `Reconciler`. Results live in the status, so that a restart of the operator loses none."""

    def __init__(
        self,
        *,
        store: Store,
        status: StatusWriter,
        events: EventRecorder,
        allow_private_hosted_addresses: bool,
        now: Callable[[], str],
    ) -> None:
        self._store = store
        self._status = status
        self._events = events
        self._allow_private = allow_private_hosted_addresses
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """See `Reconciler`."""
        live = self._store.get(key.kind, key.namespace, key.name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self._status.forget(key)
            return None
        unreadable: InvalidSpec | None = None
        findings = []
        try:
            evaluation = _read(live)
        except InvalidSpec as error:
            unreadable = error
        else:
            models = self._store.in_namespace(MODEL_DEPLOYMENT, key.namespace)
            facts = [facts_of(model) for model in models if "deletionTimestamp" not in model["metadata"]]
            findings = check_evaluation(
                evaluation.spec,
                {fact.name: fact for fact in facts},
                allow_private_hosted_addresses=self._allow_private,
            )
        complete = Verdict("Complete", "False", "NotRun", "The evaluation has not run yet.")
        verdicts = evaluation_conditions(unreadable, findings, complete)
        return await self._update_status(key, live, verdicts)

    async def _update_status(self, key: Key, live: Object, verdicts: list[Verdict]) -> float | None:
        before: Object = live.get("status") or {}
        kept = {name: before.get(name) for name in ("datasetDigest", "summary", "measuredSpec", "run", "results")}
        wanted = build_evaluation_status(live, verdicts, now=self._now(), parts=kept)
        again_s = await self._status.write(key, live, wanted)
        if again_s is None:
            record_transition_events(self._events, EVALUATION, live, wanted["conditions"])
        return again_s


def _read(live: Object) -> Evaluation:
    try:
        return Evaluation.model_validate(live)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(
            f"The value {first['input']!r} is not understood: {first['msg']}. Correct it, or upgrade the operator and "
            "its CRDs together.",
            field=".".join(str(part) for part in first["loc"]),
        ) from error
