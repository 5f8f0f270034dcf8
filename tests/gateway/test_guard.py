"""A route by evidence in the gateway: shares are followed, guards are counted, moves are logged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Whole, fault
from tests.support.hosted_answers import chat, hosted_api
from tests.support.routing import HOSTED, SOUND

from flotilla.api.preference import RouteStatus
from flotilla.controller.guard_loop import read_report
from flotilla.gateway.guard import GuardCounts
from flotilla.routing.document import GatewayDocument
from flotilla.routing.guard_window import GuardKey
from flotilla.routing.promotion import EvidenceState, TargetEvidence, advance

PUBLIC = {"x-data-class": "public"}
QUALIFIED = TargetEvidence(EvidenceState.QUALIFIED, "r1", "triage says so.", 1.0)
SMALL = GuardKey("policy-0", "default", "small", "r1")


def by_evidence(frontier: HostedApi, **evidence: TargetEvidence) -> GatewayDocument:
    """The document of an operator that knows this evidence; a target that is qualified takes all at once."""
    external = {**HOSTED, "baseURL": f"{frontier.url}/v1"}
    route = {
        "preference": [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}],
        "promotion": {"steps": [], "guard": {"firstTokenP99Milliseconds": 3_600_000}},
        "escalation": {"target": "frontier", "signals": ["EmptyAnswer"], "maxRatePercent": 100},
    }
    targets = [*SOUND["targets"][:2], {"name": "frontier", "external": external}]
    document = document_of({**SOUND, "targets": targets, "rules": [], "defaultRoute": route})
    (policy,) = document.policies
    state = advance(
        "default", policy.default_route.preference, policy.default_route.promotion, None, evidence, {}, 1_800_000_000
    )
    return document.model_copy(update={"policies": (policy.with_routes({"default": state.status}),)})


def served(gw: Running) -> str:
    """The hash of the document in use."""
    setup = gw.gateway.config.current
    return setup.document.hash if setup is not None else ""


async def counts(gw: Running) -> Mapping[str, int]:
    """What the operator reads of `small`."""
    _, text = await gw.admin("/guard")
    report = read_report(text.encode())
    assert isinstance(report, dict)
    names = ("requests", "errors", "answers", "escalations", "timed", "slow")
    return dict(zip(names, report[SMALL], strict=True))


async def test_the_guard_counts_attempts_failures_and_escalations_of_the_share(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        document = by_evidence(frontier, small=QUALIFIED)
        async with running_gateway(tmp_path, document, engines={"qwen-small": [small]}) as gw:
            small.script(Whole(chat("Yes")), Whole(chat("")), fault(500))
            for _ in range(3):
                status, _, headers = await gw.chat(headers=PUBLIC)
                assert status == 200
            # The pilot is the fallback, and its client sees no failure.
            assert "target=frontier;attempts=2" in headers["x-flotilla-route"]
            assert await counts(gw) == {
                "requests": 3,
                "errors": 1,
                "answers": 2,
                "escalations": 1,
                "timed": 2,
                "slow": 0,
            }
            assert await gw.counted("route_share_percent") == {("default", "small"): 100.0}


async def test_a_new_document_moves_the_traffic_without_a_failed_request_and_the_log_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        before, after = by_evidence(frontier), by_evidence(frontier, small=QUALIFIED)
        async with running_gateway(tmp_path, before, engines={"qwen-small": [small]}, access_log=True) as gw:
            _, _, headers = await gw.chat(headers=PUBLIC)
            assert "target=frontier" in headers["x-flotilla-route"]
            gw.replace_document(after)
            await eventually(lambda: served(gw) == after.hash)
            status, _, headers = await gw.chat(headers=PUBLIC)
            assert status == 200
            assert "target=small" in headers["x-flotilla-route"]
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    moves = [entry for entry in entries if entry.get("event") == "traffic_moved"]
    assert [(move["before"], move["shares"]) for move in moves] == [
        ({}, {"frontier": 100}),
        ({"frontier": 100}, {"small": 100}),
    ]
    assert moves[1]["reason"] == "Promoted"


async def test_data_of_the_cluster_waits_for_a_target_that_qualified(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as frontier:
        async with running_gateway(tmp_path, by_evidence(frontier), engines={"qwen-small": [small]}) as gw:
            status, body, _ = await gw.chat()
            assert (status, body["error"]["code"]) == (503, "no_qualified_target")
        assert small.received == []
        assert frontier.received == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"rows": [["p", "r", "t", "v", 1]]}', b'{"rows": [[1, 2, 3, 4, -1, 0, 0, 0, 0, 0]]}']
)
def test_an_answer_that_is_no_report_is_an_error(body: bytes) -> None:
    assert not isinstance(read_report(body), dict)


def test_rows_of_shares_that_are_gone_are_dropped() -> None:
    guard = GuardCounts()
    status = RouteStatus.model_validate(
        {
            "name": "default",
            "holder": "small",
            "since": "2026-01-01T00:00:00Z",
            "shares": [{"target": "small", "percent": 100, "revision": "r1"}],
            "reason": "Promoted",
        }
    )
    (policy,) = document_of({**SOUND, "rules": []}).policies
    served: Any = policy.model_copy(update={"routes": (status,)})
    guard.serve([served])
    assert guard.report() == {"rows": [["policy-0", "default", "small", "r1", 0, 0, 0, 0, 0, 0]]}
    guard.serve([policy])
    assert guard.report() == {"rows": []}
