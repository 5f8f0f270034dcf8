"""Counts what guards of promotions bound: attempts, failures, escalations and slow answers of each target. Pure.

Only requests of routes with a preference are counted, by the revision that the target's share is about. The operator
reads the counters at `GET /guard` of the admin server; they start at 0 with the process.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from flotilla.api.routing_policy import Failure
from flotilla.routing.decide import Attempt, Decision
from flotilla.routing.document import Policy
from flotilla.routing.guard_window import FIELDS, GuardKey

_NOT_THE_TARGETS = frozenset({Failure.NO_ENDPOINTS, Failure.CONTEXT_LENGTH, Failure.CONTENT_FILTER})
"""Failures that say nothing of how well a target works: it is scaled to zero, or refuses a request for what it is."""
_REQUESTS, _ERRORS, _ANSWERS, _ESCALATIONS, _TIMED, _SLOW = range(len(FIELDS))


class GuardCounts:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self._rows: dict[GuardKey, list[int]] = {}

    def serve(self, policies: Iterable[Policy]) -> None:
        """Keep the rows of the shares in these policies, and start those that are new at 0."""
        wanted = {
            GuardKey(policy.name, status.name, share.target, share.revision)
            for policy in policies
            for status in policy.routes
            for share in status.shares
        }
        self._rows = {key: self._rows.get(key) or [0] * len(FIELDS) for key in wanted}

    def count(self, decision: Decision, attempts: Sequence[Attempt], *, first_token_s: float | None) -> None:
        """Count a request that has ended and was not cancelled by its client.

        `first_token_s` is the time from the request to the first token. Scaling to zero breaches no guard.
        """
        policy = decision.policy
        status = policy.route_status.get(decision.rule)
        if status is None:
            return
        revisions = {share.target: share.revision for share in status.shares}
        escalated = any(attempt.escalated for attempt in attempts)
        for number, attempt in enumerate(attempts):
            if attempt.target not in revisions or attempt.escalated or attempt.failure in _NOT_THE_TARGETS:
                continue
            row = self._rows.get(GuardKey(policy.name, decision.rule, attempt.target, revisions[attempt.target]))
            if row is None:
                continue
            row[_REQUESTS] += 1
            if attempt.failure is not None:
                row[_ERRORS] += 1
                continue
            row[_ANSWERS] += 1
            row[_ESCALATIONS] += escalated
            if number == 0 and first_token_s is not None:
                row[_TIMED] += 1
                row[_SLOW] += _is_slow(decision, first_token_s)

    def report(self) -> dict[str, Any]:
        """The rows as JSON has them; see `read_report` of the operator."""
        return {"rows": [[*key, *counts] for key, counts in list(self._rows.items())]}


def _is_slow(decision: Decision, first_token_s: float) -> bool:
    promotion = decision.route.promotion
    bound = promotion.guard.first_token_p99_milliseconds if promotion is not None else None
    return bound is not None and first_token_s * 1000 > bound
