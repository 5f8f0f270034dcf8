"""Whether an evaluation has to run, and what its run is: from the spec, the targets' revisions and the status. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from flotilla.api.evaluation import AfterChange, EvaluatedTarget, EvaluationSpec
from flotilla.evaluation.plan import PlannedTarget, RunPlan

_LENGTH = 10


@dataclass(frozen=True, slots=True)
class WantedRun:
    """A run that is due. The same spec and revisions give the same `id`, so that a restart starts nothing again."""

    id: str
    reason: str
    """SpecChanged, RevisionChanged or Due."""


def measured_digest(spec: EvaluationSpec) -> str:
    """Of the part of the spec that results depend on: all but when and where the run happens."""
    parts = spec.model_dump(mode="json", by_alias=True, exclude={"rerun", "job", "limits"})
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def scored_targets(spec: EvaluationSpec) -> Sequence[EvaluatedTarget]:
    """All but the judge."""
    judge = spec.scorer.judge
    return [target for target in spec.targets if judge is None or target.name != judge.target]


def wanted_run(
    spec: EvaluationSpec, revisions: Mapping[str, str], status: Mapping[str, Any], now: datetime
) -> WantedRun | None:
    """The run that is due now; None while the results hold. `revisions` are those of all targets, by name."""
    measured = measured_digest(spec)
    results = {result["target"]: result for result in status.get("results") or ()}
    parts: list[Any] = [measured, sorted(revisions.items())]
    if status.get("measuredSpec") != measured:
        return WantedRun(_id(parts), "SpecChanged")
    changed = [t.name for t in scored_targets(spec) if results.get(t.name, {}).get("revision") != revisions[t.name]]
    if changed:
        return WantedRun(_id(parts), "RevisionChanged") if spec.rerun.after_change is AfterChange.ENABLED else None
    due = due_at(spec, status)
    if due is not None and now >= due:
        return WantedRun(_id([*parts, due.isoformat()]), "Due")
    return None


def due_at(spec: EvaluationSpec, status: Mapping[str, Any]) -> datetime | None:
    """When the results are too old; None without `rerun.everyHours`, and without results."""
    finished = [result["finishedTime"] for result in status.get("results") or () if result.get("finishedTime")]
    if spec.rerun.every_hours is None or not finished:
        return None
    return datetime.fromisoformat(min(finished).replace("Z", "+00:00")) + timedelta(hours=spec.rerun.every_hours)


def _id(parts: Sequence[Any]) -> str:
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:_LENGTH]


def run_plan(
    spec: EvaluationSpec,
    revisions: Mapping[str, str],
    addresses: Mapping[str, tuple[str, str]],
    key_files: Mapping[str, str],
    dataset: str,
) -> RunPlan:
    """The document of the run. `addresses` are base URL and model of self-hosted targets by name, `key_files` those of
    hosted ones below the folder of keys; `dataset` is a path in the container, or a bucket's URL."""
    targets = []
    for target in spec.targets:
        if target.external is not None:
            targets.append(
                PlannedTarget(
                    name=target.name,
                    url=target.external.base_url,
                    model=target.external.model,
                    provider=str(target.external.provider),
                    revision=revisions[target.name],
                    key_file=key_files[target.name],
                    price=target.external.price,
                )
            )
        elif target.model_deployment_ref is not None:
            url, model = addresses[target.name]
            targets.append(
                PlannedTarget(name=target.name, url=url, model=model, revision=revisions[target.name], host=url)
            )
    return RunPlan(
        task=spec.task,
        dataset=dataset,
        sample_size=spec.dataset.sample_size,
        seed=spec.dataset.seed,
        targets=targets,
        request=spec.request,
        scorer=spec.scorer,
        requirements=spec.requirements,
        weird_inputs=spec.tail.weird_inputs,
        concurrency=spec.load.concurrency,
        max_hosted_usd=spec.limits.max_hosted_usd,
    )
