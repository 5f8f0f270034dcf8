"""Argo CD's health of our resources: its script, from argocd-cm, in a real Lua over every state that we can write."""

from collections.abc import Iterator, Mapping
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.luajit21 import LuaRuntime
from tests.support.whole import MODEL_DEPLOYMENT, ROUTING_POLICY

from flotilla.api.types import Verdict, set_conditions
from flotilla.controller import model_status
from flotilla.controller.model_status import fits_memory, model_loaded, scheduled, spec_valid, summary
from flotilla.controller.policy_status import GatewayReport, GatewayView, judge
from flotilla.errors import InvalidSpec, NameTaken
from flotilla.kube import observed
from flotilla.routing.budgets import Admission
from flotilla.routing.check import PolicyFinding, Problem

CONFIG = Path(__file__).parents[2] / "manifests/argocd/argocd-cm.yaml"
Object = dict[str, Any]
GENERATION = 3


def script(kind: str) -> str:
    data: dict[str, str] = yaml.safe_load(CONFIG.read_text())["data"]
    return data[f"resource.customizations.health.{kind}"]


class Lua:
    """As Argo CD runs a script of argocd-cm: without the libraries that it does not load there."""

    def __init__(self, kind: str) -> None:
        self._runtime = LuaRuntime(unpack_returned_tuples=True)
        self._runtime.execute("string, math, io, debug, jit, ffi, bit, os, require, load, dofile = nil")
        self._check = self._runtime.eval(f"function(obj)\n{script(kind)}\nend")

    def health(self, obj: Mapping[str, Any]) -> tuple[str, str]:
        """Status and message."""
        found = self._check(self._runtime.table_from(obj, recursive=True))
        return found["status"], found["message"]


@pytest.fixture(scope="module")
def deployment() -> Lua:
    return Lua("flotilla.dev_ModelDeployment")


@pytest.fixture(scope="module")
def policy() -> Lua:
    return Lua("flotilla.dev_RoutingPolicy")


def kstatus(obj: Mapping[str, Any]) -> str:
    """What kstatus, and with it Flux and `kubectl wait`, makes of an object, in Argo CD's words."""
    found = obj.get("status") or {}
    conditions = {c["type"]: c["status"] for c in found.get("conditions", ())}
    if found.get("observedGeneration") != obj["metadata"]["generation"] or conditions.get("Reconciling") == "True":
        return "Progressing"
    if conditions.get("Stalled") == "True":
        return "Degraded"
    return "Healthy" if conditions.get("Ready") == "True" else "Progressing"


def pod(name: str, *, ready: bool = False, scheduled: bool = True, **container: Any) -> Object:
    conditions = [
        {"type": "Ready", "status": str(ready)},
        {"type": "PodScheduled", "status": str(scheduled), "message": "" if scheduled else "0/3 nodes are available."},
    ]
    return {
        "metadata": {"name": name, "uid": name},
        "status": {"conditions": conditions, "containerStatuses": [container] if container else []},
    }


CRASHED: dict[str, Any] = {
    "restartCount": 3,
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no kernel"}},
}
PODS: dict[str, Object] = {
    "serving": pod("serving", ready=True),
    "loading": pod("loading"),
    "unplaced": pod("unplaced", scheduled=False),
    "crashing": pod("crashing", state={"waiting": {"reason": "CrashLoopBackOff"}}, **CRASHED),
    "imageless": pod("imageless", state={"waiting": {"reason": "ImagePullBackOff"}}),
}


def workload(wanted: int, *, updated: int | None = None, seen: bool = True, **conditions: str) -> Object:
    shown = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
    failed = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": wanted},
        "status": {
            "observedGeneration": 2 if seen else 1,
            "replicas": wanted,
            "updatedReplicas": wanted if updated is None else updated,
            "conditions": [*(shown if "overdue" in conditions else ()), *(failed if "failed" in conditions else ())],
        },
    }


WORKLOADS: dict[str, Object | None] = {
    "absent": None,
    "zero": workload(0),
    "settled": workload(1),
    "unseen": workload(1, seen=False),
    "rolling": workload(2, updated=1),
    "overdue": workload(2, updated=1, overdue="yes"),
    "refused": workload(1, failed="yes"),
}
ERRORS: dict[str, InvalidSpec | NameTaken | None] = {
    "sound": None,
    "invalid": InvalidSpec("No.", field="spec.x", reason="Wrong"),
    "taken": NameTaken("The Service belongs to somebody else."),
}


def written(error: str, load: str, *pods: str) -> Object:
    """A ModelDeployment with the status that the operator writes in that state."""
    live: Object = {**MODEL_DEPLOYMENT, "metadata": {"name": "m", "namespace": "n", "generation": GENERATION}}
    of = observed.workload(WORKLOADS[load], [PODS[name] for name in pods])
    fault = ERRORS[error]
    answers = [spec_valid(fault), fits_memory(fault, None), scheduled(of), model_loaded(of)]
    verdicts = [*summary(answers, of), *answers]
    return {**live, "status": model_status.build(live, verdicts, of, now="2026-01-01T00:00:00Z", desired=of.wanted)}


def states() -> Iterator[tuple[str, ...]]:
    groups = chain.from_iterable(combinations(PODS, count) for count in range(4))
    for error, load, pods in product(ERRORS, WORKLOADS, groups):
        yield error, load, *pods


GATEWAYS = {
    "serving": GatewayView("new", (observed.pod(PODS["serving"]),), {"serving": GatewayReport("new")}),
    "behind": GatewayView("new", (observed.pod(PODS["serving"]),), {"serving": GatewayReport("old")}),
    "starting": GatewayView("new", (observed.pod(PODS["loading"]),)),
    "crashing": GatewayView("new", (observed.pod(PODS["crashing"]),)),
    "absent": GatewayView("new"),
    "taken": GatewayView("new", error=NameTaken("The Service belongs to somebody else.")),
}


def policies() -> Iterator[list[Verdict]]:
    """Every finding, alone and with any other, under each gateway and with each generation served."""
    found = [problems for count in range(3) for problems in combinations(Problem, count)]
    for problems, gateway, served in product(found, GATEWAYS.values(), (None, GENERATION - 1, GENERATION)):
        findings = tuple(PolicyFinding(problem, "spec.x", "Something is wrong.") for problem in problems)
        yield judge(Admission(findings, served_generation=served), generation=GENERATION, gateway=gateway)
    yield judge(
        Admission(unreadable=InvalidSpec("odd", field="spec.x")), generation=GENERATION, gateway=GATEWAYS["absent"]
    )


def with_verdicts(verdicts: list[Verdict]) -> Object:
    conditions = set_conditions((), verdicts, generation=GENERATION, now="2026-01-01T00:00:00Z")
    meta = {"name": "p", "namespace": "n", "generation": GENERATION}
    return {
        **ROUTING_POLICY,
        "metadata": meta,
        "status": {"observedGeneration": GENERATION, "conditions": conditions},
    }


def test_every_state_of_a_model_is_what_kstatus_says(deployment: Lua) -> None:
    seen = set()
    for state in states():
        obj = written(*state)
        health, message = deployment.health(obj)
        assert health == kstatus(obj), state
        assert message, state
        seen.add(health)
    assert seen == {"Healthy", "Progressing", "Degraded"}


def test_every_state_of_a_policy_is_what_kstatus_says(policy: Lua) -> None:
    seen = set()
    for verdicts in policies():
        obj = with_verdicts(verdicts)
        health, message = policy.health(obj)
        assert health == kstatus(obj)
        assert message
        seen.add(health)
    assert seen == {"Healthy", "Progressing", "Degraded"}


@pytest.mark.parametrize(
    ("state", "health"),
    [
        (("sound", "settled", "serving"), "Healthy"),
        (("sound", "zero"), "Healthy"),
        (("sound", "absent"), "Progressing"),
        (("sound", "settled", "loading"), "Progressing"),
        (("sound", "settled", "unplaced"), "Progressing"),
        (("sound", "settled", "crashing"), "Degraded"),
        (("sound", "settled", "imageless"), "Degraded"),
        (("sound", "refused"), "Degraded"),
        (("sound", "rolling", "serving", "loading"), "Progressing"),
        (("sound", "overdue", "serving", "crashing"), "Degraded"),
        (("invalid", "settled", "serving"), "Degraded"),
        (("taken", "absent"), "Degraded"),
    ],
)
def test_health_is_what_an_operator_of_a_fleet_expects(deployment: Lua, state: tuple[str, ...], health: str) -> None:
    assert deployment.health(written(*state))[0] == health


def test_what_the_operator_has_not_seen_yet_is_progressing(deployment: Lua) -> None:
    obj = written("sound", "settled", "serving")
    newer = {**obj, "metadata": {**obj["metadata"], "generation": GENERATION + 1}}
    assert deployment.health(newer) == ("Progressing", "Waiting for Flotilla's operator to see the latest change")
    for fresh in ({**obj, "status": None}, {**obj, "status": {}}, {**obj, "status": {"conditions": []}}):
        assert deployment.health({k: v for k, v in fresh.items() if v is not None})[0] == "Progressing"


def test_a_broken_model_says_what_the_operator_says(deployment: Lua) -> None:
    assert deployment.health(written("invalid", "settled", "serving"))[1] == "spec.x: No."
    assert "no kernel" in deployment.health(written("sound", "settled", "crashing"))[1]


def test_an_application_shows_its_own_health() -> None:
    check = Lua("argoproj.io_Application")
    assert check.health({"status": {"health": {"status": "Degraded"}}}) == ("Degraded", "")
    assert check.health({})[0] == "Progressing"
