"""What a RoutingPolicy's conditions say of its gateway."""

from dataclasses import replace
from typing import Any

import pytest

from flotilla.api.types import Verdict
from flotilla.controller.policy_status import GatewayReport, GatewayView, build, judge
from flotilla.errors import Forbidden, InvalidSpec, NameTaken, NotReady
from flotilla.kube.observed import Pod
from flotilla.routing.budgets import Admission
from flotilla.routing.check import PolicyFinding, Problem

POD = Pod("gw-1", "u1", "10.0.0.1", True, True, False, 0, "", "", "", "", "", "2026-01-01T00:00:00Z")
OTHER = replace(POD, name="gw-2", uid="u2")
SERVED = Admission(served_generation=3)
PROGRAMMED = GatewayView("h", (POD, OTHER), {"u1": GatewayReport("h"), "u2": GatewayReport("h")})
BAD = PolicyFinding(Problem.UNKNOWN_TARGET, "spec.x", "No.")
UNRESOLVED = PolicyFinding(Problem.MODEL_DEPLOYMENT_NOT_FOUND, "spec.y", "Not there.")


def judged(admission: Admission = SERVED, gateway: GatewayView = PROGRAMMED, generation: int = 3) -> dict[str, Verdict]:
    return {verdict.type: verdict for verdict in judge(admission, generation=generation, gateway=gateway)}


def summary(found: dict[str, Verdict]) -> tuple[str, str, str]:
    return found["Ready"].status, found["Reconciling"].status, found["Stalled"].status


def test_a_policy_is_programmed_once_every_ready_replica_reports_its_document() -> None:
    found = judged()
    assert {verdict.status for verdict in found.values() if verdict.type not in ("Reconciling", "Stalled")} == {"True"}
    assert summary(found) == ("True", "False", "False")


@pytest.mark.parametrize(
    ("gateway", "reason"),
    [
        (GatewayView("h", (POD, OTHER), {"u1": GatewayReport("h"), "u2": GatewayReport("old")}), "GatewayUpdating"),
        (GatewayView("h", (POD, OTHER), {"u1": GatewayReport("h")}), "GatewayUpdating"),
        (GatewayView("h", (), {}), "GatewayStarting"),
        (GatewayView("h", (replace(POD, ready=False),), {}), "GatewayStarting"),
        (GatewayView("h", (replace(POD, terminating=True),), {"u1": GatewayReport("h")}), "GatewayStarting"),
    ],
)
def test_a_replica_that_is_behind_or_not_there_is_waited_for(gateway: GatewayView, reason: str) -> None:
    found = judged(gateway=gateway)
    assert found["Programmed"].reason == reason
    assert summary(found) == ("False", "True", "False")


def test_a_replica_that_cannot_read_the_newest_document_says_why() -> None:
    stuck = GatewayReport("old", "The routing document cannot be served because of policies.0.x: it is not known.")
    found = judged(gateway=GatewayView("h", (POD, OTHER), {"u1": GatewayReport("h"), "u2": stuck}))
    assert found["Programmed"].reason == "GatewayUpdating"
    assert "because of policies.0.x" in found["Programmed"].message


def test_replicas_that_get_no_requests_are_not_waited_for() -> None:
    leaving = replace(OTHER, terminating=True)
    assert judged(gateway=GatewayView("h", (POD, leaving), {"u1": GatewayReport("h")}))["Programmed"].status == "True"


def test_a_gateway_that_does_not_start_says_why() -> None:
    stuck = replace(POD, ready=False, waiting_reason="CrashLoopBackOff", last_log_line="no such option: --state")
    found = judged(gateway=GatewayView("h", (stuck,), {}))
    assert found["Programmed"].reason == "GatewayNotStarting"
    assert "no such option: --state" in found["Programmed"].message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NameTaken("A Service named 'flotilla-gateway' exists."), "NameConflict"),
        (InvalidSpec("Too much.", reason="DocumentTooLarge"), "DocumentTooLarge"),
    ],
)
def test_objects_that_cannot_be_made_stall_the_policy(error: Any, reason: str) -> None:
    found = judged(gateway=GatewayView("h", (POD,), {"u1": GatewayReport("h")}, error))
    assert found["Programmed"].reason == reason
    assert summary(found) == ("False", "False", "True")


@pytest.mark.parametrize("error", [NotReady("Still being collected."), Forbidden("exceeded quota: pods")])
def test_objects_that_cannot_be_made_yet_are_waited_for_and_told(error: Any) -> None:
    found = judged(gateway=GatewayView("h", (), {}, error))
    assert found["Programmed"].reason == "GatewayWaiting"
    assert str(error) in found["Programmed"].message
    assert summary(found) == ("False", "True", "False")


def test_an_unsound_generation_says_which_one_is_served_instead() -> None:
    found = judged(Admission((BAD,), served_generation=2))
    assert (found["Accepted"].status, found["Accepted"].reason) == ("False", "UnknownTarget")
    assert found["Programmed"].reason == "OlderGenerationServed"
    assert "generation 2" in found["Programmed"].message
    assert summary(found) == ("False", "False", "True")
    assert judged(Admission((BAD,)))["Programmed"].reason == "NotAccepted"


def test_a_reference_that_does_not_resolve_is_waited_for_while_the_rest_is_served() -> None:
    found = judged(Admission((UNRESOLVED,), served_generation=3))
    assert (found["ResolvedRefs"].status, found["Programmed"].status) == ("False", "True")
    assert summary(found) == ("False", "True", "False")


def test_a_policy_that_cannot_be_read_is_not_accepted() -> None:
    found = judged(Admission(unreadable=InvalidSpec("odd", field="spec.x")))
    assert (found["Accepted"].status, found["Stalled"].status) == ("False", "True")
    assert "spec.x" in found["Accepted"].message


def test_the_status_tells_endpoint_hash_and_generation_only_of_what_is_served() -> None:
    live = {"metadata": {"generation": 3}}
    whole = build(live, SERVED, PROGRAMMED, now="2026-01-01T00:00:00Z", endpoint="http://gw/v1")
    assert (whole["endpoint"], whole["configHash"], whole["programmedGeneration"]) == ("http://gw/v1", "h", 3)
    bare = build(live, Admission((BAD,)), PROGRAMMED, now="2026-01-01T00:00:00Z", endpoint="http://gw/v1")
    assert set(bare) == {"conditions", "observedGeneration"}
    again = build({**live, "status": whole}, SERVED, PROGRAMMED, now="2027-01-01T00:00:00Z", endpoint="http://gw/v1")
    assert again == whole
