"""Guard figures: what gateways count is added up over pods and restarts, and forgotten when it is old."""

from hypothesis import given
from hypothesis import strategies as st

from flotilla.routing.guard_window import FIELDS, STALE_AFTER_S, WINDOW_S, Counts, GuardKey, GuardWindow

KEY = GuardKey("policy", "default", "small", "r1")
INCREMENTS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 50), st.booleans()), min_size=1, max_size=20
)


def row(requests: int) -> Counts:
    return (requests, *(0,) * (len(FIELDS) - 1))


@given(increments=INCREMENTS)
def test_the_sum_over_pods_is_what_they_counted_whatever_restarts(increments: list[tuple[str, int, bool]]) -> None:
    """A restart that is seen with more than before cannot be told from none, so that restarts come with 0 here."""
    window, now_s, expected = GuardWindow(), 1000.0, 0
    counters = {"a": 7, "b": 9}
    window.observe({pod: {KEY: row(count)} for pod, count in counters.items()}, now_s)
    assert window.read(KEY, now_s, now_s) is not None
    for pod, more, restarted in increments:
        now_s += 2
        counters[pod] = 0 if restarted else counters[pod] + more
        expected += 0 if restarted else more
        window.observe({name: {KEY: row(count)} for name, count in counters.items()}, now_s)
    figures = window.read(KEY, now_s, 1000.0)
    assert figures is not None
    assert (figures.requests, figures.step_requests) == (expected, expected)


def test_what_is_older_than_the_window_or_the_step_counts_no_more() -> None:
    window = GuardWindow()
    window.observe({"a": {KEY: row(0)}}, 0)
    window.observe({"a": {KEY: row(100)}}, 2)
    window.observe({"a": {KEY: row(110)}}, WINDOW_S + 10)
    old = window.read(KEY, WINDOW_S + 10, 0)
    assert old is not None
    assert old.requests == 10
    window.observe({"a": {KEY: row(113)}}, WINDOW_S + 20)
    step = window.read(KEY, WINDOW_S + 20, WINDOW_S + 15)
    assert step is not None
    assert (step.requests, step.step_requests) == (3, 0)


def test_nothing_is_known_while_a_gateway_does_not_answer() -> None:
    window = GuardWindow()
    window.observe({"a": {KEY: row(0)}, "b": None}, 0)
    assert window.read(KEY, 0, 0) is None
    window.observe({"a": {KEY: row(5)}, "b": {KEY: row(0)}}, 2)
    assert window.read(KEY, 2, 0) is not None
    window.observe({"a": {KEY: row(5)}, "b": None}, 2 + STALE_AFTER_S + 1)
    assert window.read(KEY, 2 + STALE_AFTER_S + 1, 0) is None
    assert window.read(KEY._replace(revision="r2"), 2, 0) is None


def test_the_first_report_of_a_gateway_says_only_from_where_to_count() -> None:
    window = GuardWindow()
    window.observe({"a": {KEY: row(500)}}, 0)
    figures = window.read(KEY, 0, 0)
    assert figures is not None
    assert figures.requests == 0
