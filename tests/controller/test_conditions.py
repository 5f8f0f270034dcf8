"""What conditions say, and that they do not flap."""

from dataclasses import replace
from typing import Any

import pytest

from flotilla.api.types import Verdict, set_conditions
from flotilla.controller.model_status import fits_memory, model_loaded, scaling_active, scheduled, spec_valid, summary
from flotilla.errors import InvalidSpec, NameTaken
from flotilla.kube import observed
from flotilla.kube.observed import Workload
from flotilla.scaling.autoscaler import (
    METRICS_MISSING,
    METRICS_PARTIAL,
    ScalingDecision,
    ScalingParameters,
    State,
    decide,
)


def pod(**changes: Any) -> observed.Pod:
    fresh = observed.Pod("p", "u", "10.0.0.1", True, True, False, 0, "", "", "", "", "", "2026-01-01T00:00:00Z")
    return replace(fresh, **changes)


def load(*pods: observed.Pod, **changes: Any) -> Workload:
    ready = sum(p.ready for p in pods)
    count = len(pods)
    return replace(Workload(True, 1, 1, count, count, count, ready, "", overdue=False, pods=pods), **changes)


def judged(of: Workload, error: InvalidSpec | NameTaken | None = None) -> dict[str, Verdict]:
    chain = [spec_valid(error), fits_memory(error, None), scheduled(of), model_loaded(of)]
    return {verdict.type: verdict for verdict in (*summary(chain, of), *chain)}


def active(mode: str, decision: ScalingDecision | None, desired: int, **changes: Any) -> Verdict:
    return scaling_active(mode, decision, desired, **{"replicas": desired, "paused": False, "now": "t", **changes})


def states(of: dict[str, Verdict]) -> tuple[str, str, str]:
    return of["Ready"].status, of["Reconciling"].status, of["Stalled"].status


def test_a_serving_model_is_ready_and_settled() -> None:
    assert states(judged(load(pod()))) == ("True", "False", "False")


def test_scaling_out_does_not_make_ready_flap() -> None:
    growing = load(pod(), pod(name="q", ready=False), pod(name="r", ready=False, scheduled=False))
    assert judged(growing)["Ready"].status == "True"


def test_a_loading_model_is_reconciling_and_not_stalled() -> None:
    found = judged(load(pod(ready=False)))
    assert states(found) == ("False", "True", "False")
    assert found["Ready"].reason == "Loading"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"waiting_reason": "CrashLoopBackOff", "last_exit": "exit code 1"}, "CrashLoopBackOff"),
        ({"restarts": 3, "last_exit": "OOMKilled"}, "CrashLoopBackOff"),
        ({"waiting_reason": "ErrImagePull"}, "ImagePullBackOff"),
        ({"waiting_reason": "ImagePullBackOff"}, "ImagePullBackOff"),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": "no secret"},
            "CreateContainerConfigError",
        ),
    ],
)
def test_a_pod_that_cannot_start_stalls_with_one_reason(changes: dict[str, Any], reason: str) -> None:
    found = judged(load(pod(ready=False, **changes)))
    assert states(found) == ("False", "False", "True")
    assert found["Stalled"].reason == reason


@pytest.mark.parametrize(
    ("words", "help_"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "Add a node with free GPUs"),
        ("0/3 nodes are available: 3 had untolerated taint {a: b}.", "spec.scheduling.tolerations"),
        ("0/3 nodes are available: 3 didn't match Pod's node affinity/selector.", "No node carries the labels"),
    ],
)
def test_the_schedulers_words_come_with_what_would_help(words: str, help_: str) -> None:
    verdict = scheduled(load(pod(scheduled=False, ready=False, scheduling_message=words)))
    assert (verdict.status, verdict.reason) == ("False", "Unschedulable")
    assert verdict.message.startswith(words.rstrip("."))
    assert help_ in verdict.message


def test_a_quota_that_forbids_pods_is_told() -> None:
    found = judged(load(wanted=1, failure="exceeded quota"))
    assert states(found) == ("False", "False", "True")
    assert "exceeded quota" in found["Scheduled"].message


def test_zero_replicas_as_asked_are_ready() -> None:
    assert states(judged(load())) == ("True", "False", "False")


def test_an_invalid_spec_stalls_though_old_pods_serve() -> None:
    found = judged(load(pod()), InvalidSpec("No.", field="spec.x", reason="Wrong"))
    assert states(found) == ("False", "False", "True")
    assert found["SpecValid"].message == "spec.x: No."


def test_a_rollout_behind_a_serving_model_is_reconciling() -> None:
    found = judged(load(pod(), pod(name="q", ready=False), updated=1))
    assert states(found) == ("True", "True", "False")
    assert found["Reconciling"].reason == "RollingOut"


def test_other_modes_say_who_scales() -> None:
    assert active("External", None, 3).reason == "ExternalScaler"
    assert active("None", None, 3).message == "spec.scaling.mode is None: spec.replicas is 3."


def test_a_number_that_nobody_sets_is_said_to_be_kept() -> None:
    kept = active("None", None, 3, replicas=None)
    assert (kept.status, kept.reason) == ("False", "Disabled")
    assert "spec.replicas is not set: the number is kept as it is, 3" in kept.message


def test_a_refused_spec_pauses_scaling_and_says_so() -> None:
    decision = decide(State.initial(2, METRICS_MISSING), None, ScalingParameters(min_replicas=1, max_replicas=4), 0.0)
    paused = active("Internal", decision, 2, paused=True)
    assert (paused.status, paused.reason) == ("False", "SpecInvalid")
    assert "scaling is paused and 2 replicas are kept" in paused.message


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        (
            {"scheduling_message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."},
            "Unschedulable",
            "Add a node",
        ),
        ({"gates": ("kueue.x-k8s.io/admission",)}, "SchedulingGated", "spec.scheduling.queueName"),
        ({"gates": ("example.com/approval",)}, "SchedulingGated", "example.com/approval. Whoever set a gate"),
        ({}, "WaitingForScheduler", "has not placed"),
    ],
)
def test_an_engine_without_a_node_is_not_called_loading(changes: dict[str, Any], reason: str, says: str) -> None:
    found = judged(load(pod(ready=False, scheduled=False, **changes)))
    assert found["ModelLoaded"].reason == found["Ready"].reason == reason
    assert says in found["ModelLoaded"].message


def test_the_engines_container_is_found_beside_injected_ones() -> None:
    sidecar = {"name": "daprd", "ready": True, "restartCount": 0, "state": {"running": {}}}
    engine = {"name": "engine", "restartCount": 5, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    found = observed.pod(
        {"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": [sidecar, engine]}, "spec": {}}
    )
    assert (found.restarts, found.waiting_reason) == (5, "CrashLoopBackOff")


def test_stale_data_keep_the_time_since_which_they_are_stale() -> None:
    spec = ScalingParameters(min_replicas=1, max_replicas=4)
    decision = decide(State.initial(2, METRICS_MISSING), None, spec, 0.0)
    first = active("Internal", decision, 2, now="2026-11-25T09:00:00Z")
    assert (first.status, first.reason) == ("False", METRICS_MISSING)
    assert first.message.endswith(" Stale since 2026-11-25T09:00:00Z.")
    before = {"reason": first.reason, "message": first.message}
    assert active("Internal", decision, 2, before=before, now="2026-11-25T09:05:00Z") == first
    before = {"reason": METRICS_PARTIAL, "message": first.message}
    later = active("Internal", decision, 2, before=before, now="2026-11-25T09:05:00Z")
    assert later.message.endswith(" Stale since 2026-11-25T09:05:00Z.")


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    def after(existing: list[dict[str, Any]], status: str, now: str) -> list[dict[str, Any]]:
        return set_conditions(existing, [Verdict("Ready", status, "R", now)], generation=2, now=now)

    first = after([], "False", "t1")
    assert after(first, "False", "t2")[0]["lastTransitionTime"] == "t1"
    assert after(first, "True", "t2")[0]["lastTransitionTime"] == "t2"
    other = {"type": "Accepted", "status": "True", "lastTransitionTime": "t0"}
    assert [c["type"] for c in after([*first, other], "True", "t3")] == ["Accepted", "Ready"]


def test_pods_are_reduced_to_what_decides() -> None:
    obj = {
        "metadata": {"name": "p", "uid": "u", "deletionTimestamp": "now"},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {"restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"reason": "OOMKilled"}}}
            ],
        },
    }
    found = observed.pod(obj)
    assert (found.ready, found.scheduled, found.terminating) == (True, True, True)
    assert (found.restarts, found.last_exit) == (2, "OOMKilled")
    assert observed.workload(None, [obj]).exists is False


def test_a_rollout_that_takes_too_long_is_told_while_the_old_replicas_serve() -> None:
    new = pod(name="new", ready=False, waiting_reason="CrashLoopBackOff", last_exit="exit code 2")
    found = judged(load(pod(), new, overdue=True, updated=1, replicas=2))
    assert states(found) == ("True", "False", "True")
    assert found["Stalled"].reason == "RolloutTimedOut"
    assert "CrashLoopBackOff" in found["Stalled"].message
    assert "The replicas of the old revision keep serving." in found["Stalled"].message


def test_what_a_crashed_engine_said_last_is_told_without_what_changes_from_run_to_run() -> None:
    message = "INFO starting\n(APIServer pid=4711) 2026-11-25 10:00:01.123 ERROR no kernel image at 0xdeadbeef\n\n"
    ended = {"exitCode": 1, "reason": "Error", "message": message}
    status = {"containerStatuses": [{"restartCount": 2, "lastState": {"terminated": ended}}]}
    found = observed.pod({"metadata": {"name": "p", "uid": "u"}, "status": status})
    assert "ERROR no kernel image at" in found.last_log_line
    assert not {"4711", "10:00:01", "deadbeef"} & set(found.last_log_line.replace("(", " ").split())
    stuck = pod(ready=False, restarts=2, last_exit="exit code 1", last_log_line=found.last_log_line)
    assert "no kernel image" in judged(load(stuck))["ModelLoaded"].message


def test_a_paused_deployment_is_stalled_with_how_to_resume_it() -> None:
    found = judged(load(pod(), paused=True))
    assert states(found) == ("True", "False", "True")
    assert (found["Stalled"].reason, "kubectl rollout resume" in found["Stalled"].message) == ("DeploymentPaused", True)


def test_additions_that_take_away_protection_are_named() -> None:
    chain = [spec_valid(None), fits_memory(None, None), scheduled(load(pod())), model_loaded(load(pod()))]
    stalled = summary(chain, load(pod()), ["hostNetwork", "variable LD_PRELOAD of the engine"])[2]
    assert (stalled.status, stalled.reason) == ("True", "ForeignChanges")
    assert "hostNetwork, variable LD_PRELOAD of the engine" in stalled.message


def test_another_controller_of_the_replica_count_is_named() -> None:
    found = scaling_active(
        "External", None, 3, replicas=3, paused=False, now="2026-01-01T00:00:00Z", rival="kube-controller-manager"
    )
    assert (found.status, found.reason) == ("False", "ReplicasContested")
    assert "kube-controller-manager" in found.message
