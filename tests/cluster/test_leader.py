"""Two operators: one leads. A leader that was paused meanwhile must not act on what it knew then."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.models import Models

from flotilla.app import EXIT_LOST_LEASE
from flotilla_devcluster.apiserver import AuditLog, select
from flotilla_devcluster.stack import USER, OperatorProcess, Stack

pytestmark = pytest.mark.cluster

_TAKE_OVER_S = 90.0
"""The Lease of these tests lasts 12 s; then another operator starts to lead."""


def test_a_leader_that_was_paused_writes_nothing_when_it_goes_on(
    stack: Stack, models: Models, spec: dict[str, Any], tmp_path: Path
) -> None:
    models.apply("robbed", spec)
    models.wait_ready("robbed")
    paused, audit = stack.operator.process, AuditLog(stack.plane.audit_log)
    paused.pause()
    try:
        # As another user, so that the audit log tells the two apart.
        other = OperatorProcess.start(
            stack.plane,
            log=tmp_path / "other.log",
            settings=stack.settings,
            kubeconfig=stack.plane.kubeconfig,
            timeout_s=_TAKE_OVER_S,
        )
        try:
            models.apply("born", spec)
            models.delete("Deployment", "robbed")
            models.wait_ready("born")
            mark = audit.mark()
            paused.resume()
            assert paused.wait(30), "it must notice that the Lease is lost"
            assert paused.exit_code == EXIT_LOST_LEASE
            written = select(audit.since(mark), user=USER, writes=True)
            # It may try to renew the Lease, which is refused by its version.
            assert [event for event in written if event.code < 400] == []
            assert {event.resource for event in written} <= {"leases"}
        finally:
            other.stop()
    finally:
        paused.resume()
        stack.restart_operator()
