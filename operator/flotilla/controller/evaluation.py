"""Reconcile one Evaluation: check it, run it when that is due, and keep its results in the status.

A run is a Job whose name is a digest of what it measures: a restarted operator finds its Job again, and a change of the
spec or of what a target serves is another Job. The Job's last message has the counts; the verdict is made here, where
the GPU dollars are known.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
from pydantic import ValidationError

from flotilla.addresses import AddressMap
from flotilla.api.evaluation import EvaluatedTarget, Evaluation
from flotilla.api.types import Verdict
from flotilla.constants import ANNOTATION_TEMPLATE_HASH, MANAGER
from flotilla.controller.apply import StatusWriter, record_transition_events
from flotilla.controller.evaluation_status import (
    RunState,
    build_evaluation_status,
    completeness,
    evaluation_conditions,
    run_state,
)
from flotilla.cost.gpu_prices import CostBasis
from flotilla.cost.hosted_prices import TokenUsage
from flotilla.cost.ledger import Ledger
from flotilla.errors import InvalidSpec, NameTaken
from flotilla.evaluation.check import EvaluationFinding, check_evaluation
from flotilla.evaluation.metering import MeterReading, own_usd
from flotilla.evaluation.outcome import hosted_usd, target_result, verdict_line
from flotilla.evaluation.plan import dumped
from flotilla.evaluation.revision import hosted_revision, self_hosted_revision
from flotilla.evaluation.schedule import WantedRun, due_at, measured_digest, run_plan, wanted_run
from flotilla.evaluation.summary import RunSummary
from flotilla.kube import observed
from flotilla.kube.client import KubeClient
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import DEPLOYMENT, EVALUATION, JOB, MODEL_DEPLOYMENT, POD, Key, Kind
from flotilla.kube.store import Store, owned_by_any
from flotilla.render.evaluation import PROGRESS_PORT, dataset_mount, job
from flotilla.render.workload import SERVICE_PORT
from flotilla.routing.document import facts_of, key_file
from flotilla.scaling.scrape_client import ScrapeError, Scraper, ScrapeTarget

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 5.0
"""At the progress of a run."""
_CONFLICT_RETRY_S = 30.0

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


class ProgressReader:
    """Asks the pods of runs how far they are; `close` it."""

    def __init__(self, addresses: AddressMap, *, timeout_s: float = 2.0) -> None:
        self._scraper = Scraper(addresses, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._scraper.close()

    async def ask(self, address: str) -> tuple[int, int] | None:
        """Cases that are done, and all; None without an answer. Never raises."""
        target = ScrapeTarget("run", address, PROGRESS_PORT, "/progress", {})
        answer = (await self._scraper.read([target], lambda body, _: _progress(body)))["run"]
        return None if isinstance(answer, ScrapeError) else answer


def _progress(body: bytes) -> tuple[int, int] | ScrapeError:
    try:
        read = orjson.loads(body)
        return int(read["casesDone"]), int(read["casesTotal"])
    except (ValueError, KeyError, TypeError) as error:
        return ScrapeError(f"unreadable answer: {error}")


class EvaluationReconciler:
    """See `Reconciler`. Results live in the status, so that a restart of the operator loses none."""

    def __init__(
        self,
        *,
        client: KubeClient,
        store: Store,
        status: StatusWriter,
        events: EventRecorder,
        progress: ProgressReader,
        ledger: Ledger,
        bases: Mapping[Key, CostBasis],
        image: str,
        allow_private_hosted_addresses: bool,
        now: Callable[[], str],
    ) -> None:
        self._client = client
        self._store = store
        self._status = status
        self._events = events
        self._progress = progress
        self._ledger = ledger
        self._bases = bases
        self._image = image
        self._allow_private = allow_private_hosted_addresses
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """See `Reconciler`."""
        live = self._store.get(key.kind, key.namespace, key.name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self._status.forget(key)
            return None
        try:
            evaluation = _read(live)
        except InvalidSpec as error:
            return await self._update_status(key, live, evaluation_conditions(error, (), _waits()), {})
        findings = self._findings(key, evaluation)
        if findings:
            return await self._update_status(key, live, evaluation_conditions(None, findings, _waits()), {})
        try:
            complete, parts, again_s = await self._run(key, live, evaluation)
        except InvalidSpec as error:
            finding = EvaluationFinding(error.field, error.reason, str(error))
            return await self._update_status(key, live, evaluation_conditions(None, [finding], _waits()), {})
        except NameTaken as taken:
            verdict = Verdict("Complete", "False", "NameConflict", str(taken))
            await self._update_status(key, live, evaluation_conditions(None, (), verdict), {})
            return _CONFLICT_RETRY_S
        write_s = await self._update_status(key, live, evaluation_conditions(None, (), complete), parts)
        waits = [wait for wait in (again_s, write_s) if wait is not None]
        return min(waits, default=None)

    def _findings(self, key: Key, evaluation: Evaluation) -> list[EvaluationFinding]:
        models = self._store.in_namespace(MODEL_DEPLOYMENT, key.namespace)
        facts = [facts_of(model) for model in models if "deletionTimestamp" not in model["metadata"]]
        return check_evaluation(
            evaluation.spec,
            {fact.name: fact for fact in facts},
            allow_private_hosted_addresses=self._allow_private,
        )

    async def _run(
        self, key: Key, live: Object, evaluation: Evaluation
    ) -> tuple[Verdict, dict[str, Any], float | None]:
        """Bring the runs in line: the condition Complete, the changed parts of the status, when to look again."""
        before: Object = live.get("status") or {}
        revisions = {target.name: self._revision(key, target) for target in evaluation.spec.targets}
        unknown = [name for name, revision in revisions.items() if revision is None]
        if unknown:
            return completeness(RunState("TargetsNotReady", targets=tuple(unknown))), {}, None
        known = {name: revision for name, revision in revisions.items() if revision is not None}
        wanted = wanted_run(evaluation.spec, known, before, _time(self._now()))
        if wanted is None:
            # The last Job stays for its logs, until Kubernetes removes it.
            due = due_at(evaluation.spec, before)
            wait_s = None if due is None else max(1.0, (due - _time(self._now())).total_seconds())
            return completeness(RunState("Complete")), {"run": None}, wait_s
        name = f"{key.name}-{wanted.id}"
        await self._prune(key, live, name)
        found: Object | None = self._store.get(JOB, key.namespace, name)
        if found is None:
            if waiting := [t.name for t in evaluation.spec.targets if not self._ready(key, t)]:
                return completeness(RunState("TargetsNotReady", targets=tuple(waiting))), {}, None
            found = await self._start(key, live, evaluation, name, known)
        return await self._follow(key, live, evaluation, wanted, found)

    def _revision(self, key: Key, target: EvaluatedTarget) -> str | None:
        if target.external is not None:
            return hosted_revision(target.external)
        reference = target.model_deployment_ref
        assert reference is not None
        model = self._store.get(MODEL_DEPLOYMENT, key.namespace, reference.name)
        return self_hosted_revision(reference, model, self._store.get(DEPLOYMENT, key.namespace, reference.name))

    def _ready(self, key: Key, target: EvaluatedTarget) -> bool:
        """Whether it serves its present revision and no older one."""
        if target.model_deployment_ref is None:
            return True
        deployment = self._store.get(DEPLOYMENT, key.namespace, target.model_deployment_ref.name)
        load = observed.workload(deployment, ())
        return load.rolled_out and load.ready > 0

    async def _start(
        self, key: Key, live: Object, evaluation: Evaluation, name: str, revisions: Mapping[str, str]
    ) -> Object:
        addresses: dict[str, tuple[str, str]] = {}
        secrets = {t.name: t.external.secret_ref for t in evaluation.spec.targets if t.external is not None}
        for target in evaluation.spec.targets:
            if (reference := target.model_deployment_ref) is not None:
                model = self._store.get(MODEL_DEPLOYMENT, key.namespace, reference.name)
                served = facts_of(model or {}).served_name
                url = f"http://{reference.name}.{key.namespace}.svc:{SERVICE_PORT}/v1"
                addresses[target.name] = (url, reference.adapter or served)
        dataset = dataset_mount(evaluation)
        files = {target: key_file(secret) for target, secret in secrets.items()}
        plan = run_plan(evaluation.spec, revisions, addresses, files, dataset.path)
        known = await self._client.get(JOB, name, namespace=key.namespace)
        if known is not None and not owned_by_any(known, {live["metadata"]["uid"]}):
            raise NameTaken(f"A Job named {name!r} exists and does not belong to this Evaluation. Delete it.")
        manifest = job(
            evaluation,
            name=name,
            plan=dumped(plan),
            dataset=dataset,
            secrets=list(dict.fromkeys(secrets.values())),
            image=self._image,
        )
        made = known or await self._client.apply(JOB, manifest, manager=MANAGER)
        log.info("evaluation starts", extra={"key": str(key), "job": name})
        self._store.put(JOB, made, writer=key)
        return made

    async def _prune(self, key: Key, live: Object, kept: str) -> None:
        """Jobs of other runs go, with their pods."""
        for stale in self._store.owned_by(JOB, key):
            meta = stale["metadata"]
            if (
                meta["name"] != kept
                and owned_by_any(stale, {live["metadata"]["uid"]})
                and "deletionTimestamp" not in meta
            ):
                await self._client.delete(JOB, meta["name"], namespace=key.namespace, uid=meta["uid"])
                self._store.drop(JOB, stale, writer=key)

    async def _follow(
        self, key: Key, live: Object, evaluation: Evaluation, wanted: WantedRun, found: Object
    ) -> tuple[Verdict, dict[str, Any], float | None]:
        """A run that exists: its state, its progress, and in the end its results."""
        before: Object = live.get("status") or {}
        pods = [
            pod
            for pod in self._store.owned_by(POD, key)
            if owned_by_any(pod, {found["metadata"]["uid"]}) and "deletionTimestamp" not in pod["metadata"]
        ]
        state = run_state(found, pods)
        run: dict[str, Any] = dict(before.get("run") or {})
        if run.get("jobName") != found["metadata"]["name"]:
            run = {"jobName": found["metadata"]["name"], "reason": wanted.reason, "startedTime": self._now()}
        if state.summary is not None:
            return self._finish(key, live, evaluation, state.summary, state.finished_time or self._now(), run)
        if state.reason == "Running":
            if "meters" not in run and (meters := self._meters(key, evaluation)):
                run["meters"] = meters
            if state.address and (progress := await self._progress.ask(state.address)) is not None:
                run |= {"casesDone": progress[0], "casesTotal": progress[1]}
        over = state.reason in ("RunFailed", "DatasetInvalid", "KeyMissing")
        return completeness(state, run), {"run": run}, None if over else _LOOK_AGAIN_S

    def _finish(
        self, key: Key, live: Object, evaluation: Evaluation, summary: RunSummary, finished: str, run: Object
    ) -> tuple[Verdict, dict[str, Any], float | None]:
        usd = hosted_usd(summary) | self._gpu_usd(key, evaluation, summary, run)
        results = [
            target_result(
                target, evaluation.spec.requirements, usd.get(target.target), ended=summary.ended, finished=finished
            )
            for target in summary.targets
        ]
        known = {result["target"]: result for result in (live.get("status") or {}).get("results") or ()}
        for result in results:
            old = known.get(result["target"], {})
            if (old.get("verdict"), old.get("revision")) != (result["verdict"], result.get("revision")):
                self._events.record(
                    EVALUATION,
                    live,
                    topic=f"verdict of {result['target']}",
                    reason=result["verdict"],
                    note=f"{result['target']}: {result['message']}",
                    type_="Warning" if result["verdict"] == "Disqualified" else "Normal",
                    action="Evaluate",
                )
        parts = {
            "datasetDigest": summary.dataset_digest,
            "measuredSpec": measured_digest(evaluation.spec),
            "summary": verdict_line(results),
            "results": results,
            "run": None,
        }
        # At once again, for the time of the next run.
        return completeness(RunState("Complete")), parts, 1.0 if evaluation.spec.rerun.every_hours else None

    def _meters(self, key: Key, evaluation: Evaluation) -> list[dict[str, Any]]:
        found = {}
        for target in evaluation.spec.targets:
            reference = target.model_deployment_ref
            reading = None if reference is None else self._reading(key, reference.name)
            if reference is not None and reading is not None:
                found[reference.name] = {
                    "modelDeployment": reference.name,
                    "usd": str(reading.usd.quantize(Decimal("0.000000001"))),
                    "promptTokens": int(reading.usage.prompt),
                    "cachedTokens": int(reading.usage.cached),
                    "generatedTokens": int(reading.usage.generated),
                }
        return list(found.values())

    def _reading(self, key: Key, deployment: str) -> MeterReading | None:
        account = self._ledger.accounts.get(Key(MODEL_DEPLOYMENT, key.namespace, deployment))
        return None if account is None or not account.priced else MeterReading(account.total_usd, account.usage)

    def _gpu_usd(self, key: Key, evaluation: Evaluation, summary: RunSummary, run: Object) -> dict[str, Decimal]:
        """The dollars of self-hosted targets, by target; without those whose deployment has no price."""
        began = {
            meter["modelDeployment"]: MeterReading(
                Decimal(meter["usd"]),
                TokenUsage(
                    Decimal(meter["promptTokens"]), Decimal(meter["generatedTokens"]), Decimal(meter["cachedTokens"])
                ),
            )
            for meter in run.get("meters") or ()
        }
        references = {t.name: t.model_deployment_ref for t in evaluation.spec.targets}
        found: dict[str, Decimal] = {}
        for target in summary.targets:
            reference = references.get(target.target)
            if reference is None or reference.name not in began:
                continue
            deployment = Key(MODEL_DEPLOYMENT, key.namespace, reference.name)
            now, basis = self._reading(key, reference.name), self._bases.get(deployment)
            own = TokenUsage(*map(Decimal, (target.prompt_tokens, target.generated_tokens, target.cached_tokens)))
            if now is not None and basis is not None:
                usd = own_usd(began[reference.name], now, own, basis.weights)
                found |= {} if usd is None else {target.target: usd}
        return found

    async def _update_status(
        self, key: Key, live: Object, verdicts: Sequence[Verdict], parts: Mapping[str, Any]
    ) -> float | None:
        before: Object = live.get("status") or {}
        kept = {name: before.get(name) for name in ("datasetDigest", "summary", "measuredSpec", "run", "results")}
        wanted = build_evaluation_status(live, verdicts, now=self._now(), parts={**kept, **parts})
        again_s = await self._status.write(key, live, wanted, urgent="results" in parts)
        if again_s is None:
            record_transition_events(self._events, EVALUATION, live, wanted["conditions"])
        return again_s


def _waits() -> Verdict:
    return Verdict("Complete", "False", "NotRun", "The evaluation has not run yet.")


def _time(rfc3339: str) -> datetime:
    return datetime.fromisoformat(rfc3339.replace("Z", "+00:00")).astimezone(UTC)


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
