"""Breakers, the budget of retries and the bound on escalations, without sockets."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flotilla.api.routing_policy import Failure
from flotilla.gateway.endpoints import (
    Breaker,
    BreakerSettings,
    BreakerState,
    EscalationRate,
    RetryBudget,
    TargetBreakers,
)

SETTINGS = BreakerSettings(failures=3, open_s=1, open_limit_s=4, trial_s=10)


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens: few requests reach what fails, and what has healed is found out in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.in_a_row, self.trial = Breaker(SETTINGS), 0.0, 0, False

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule(good=st.booleans())
    def request(self, good: bool) -> None:
        half_open = self.breaker.state(self.now) is BreakerState.HALF_OPEN
        self.breaker.started(self.now)
        if half_open:
            assert not self.breaker.allows(self.now)
        if good:
            self.breaker.succeeded()
            self.in_a_row = 0
            assert self.breaker.state(self.now) is BreakerState.CLOSED
        else:
            self.breaker.failed(self.now)
            self.in_a_row += 1
            if half_open or self.in_a_row >= SETTINGS.failures:
                assert self.breaker.state(self.now) is BreakerState.OPEN

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule()
    def client_leaves(self) -> None:
        self.breaker.started(self.now)
        self.breaker.release()
        assert self.breaker.allows(self.now)

    @invariant()
    def never_shut_for_longer_than_the_limit(self) -> None:
        assert self.breaker.allows(self.now + max(SETTINGS.open_limit_s, SETTINGS.trial_s))


TestBreaker = BreakerMachine.TestCase


def test_retries_are_earned() -> None:
    budget = RetryBudget()
    spent = sum(budget.spend() for _ in range(100))
    for _ in range(50):
        budget.earn()
    assert spent + sum(budget.spend() for _ in range(100)) <= 10 + 10


def test_the_share_of_escalations_forgets() -> None:
    rate = EscalationRate()
    for _ in range(200):
        rate.count(escalated=True)
    assert rate.percent == 100
    for _ in range(2000):
        rate.count(escalated=False)
    assert rate.percent < 5


def test_what_one_client_causes_never_closes_a_target_to_the_others() -> None:
    breakers = TargetBreakers()
    for _ in range(100):
        breakers.record("uid", "medium", Failure.SERVER_ERROR, 0, suspect="one")
        breakers.record("uid", "medium", Failure.SERVER_ERROR, 0, suspect="two")
    assert breakers.unavailable("uid", 0) == frozenset()


def test_what_several_clients_meet_closes_a_target_unless_one_got_an_answer() -> None:
    breakers = TargetBreakers()
    for number in range(20):
        breakers.record("uid", "answers", Failure.SERVER_ERROR, 0, suspect=str(number))
        if number % 2:
            breakers.record("uid", "answers", None, 0)
        breakers.record("uid", "fails", Failure.SERVER_ERROR, 0, suspect=str(number))
    assert breakers.unavailable("uid", 0) == {"fails"}


def test_a_target_rests_for_as_long_as_it_asks_within_five_minutes() -> None:
    breakers = TargetBreakers()
    breakers.rest("uid", "hosted", 37, 100)
    breakers.rest("uid", "absurd", 1e9, 100)
    assert breakers.unavailable("uid", 136) == {"hosted", "absurd"}
    assert breakers.unavailable("other", 136) == frozenset()
    assert breakers.unavailable("uid", 138) == {"absurd"}
    assert breakers.unavailable("uid", 401) == frozenset()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_open_times_double_up_to_a_limit(failures: int) -> None:
    breaker = Breaker(SETTINGS)
    now = 0.0
    breaker.failed(now, at_once=True)
    for _ in range(failures):
        wait = next(s / 10 for s in range(1000) if breaker.state(now + s / 10) is BreakerState.HALF_OPEN)
        now += wait
        breaker.started(now)
        breaker.failed(now)
    assert breaker.state(now + min(2**failures, 4) - 0.01) is BreakerState.OPEN
    assert breaker.state(now + min(2**failures, 4)) is BreakerState.HALF_OPEN
