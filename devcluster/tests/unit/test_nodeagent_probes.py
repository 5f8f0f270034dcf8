"""When a simulated container's probes are due."""

import pytest

from flotilla_devcluster.nodeagent.container import ProbeSchedule


def attempts(probe: dict[str, int], *lasting_s: float) -> list[float]:
    """The times at which attempts that last so long begin."""
    schedule, now_s, found = ProbeSchedule(probe), 100.0, list[float]()
    for duration_s in lasting_s:
        now_s += schedule.delay_s(now_s)
        found.append(now_s - 100)
        now_s += duration_s
    return found


@pytest.mark.parametrize(
    ("probe", "lasting_s", "begins_s"),
    [
        ({"periodSeconds": 1}, (0.1, 0.4, 0.9, 0), [0, 1, 2, 3]),
        ({"periodSeconds": 2, "initialDelaySeconds": 5}, (0.5, 0.5, 0), [5, 7, 9]),
        ({}, (0, 0), [0, 10]),
        # One attempt takes three and a half periods: the next follows at once, and the ones after it keep the period.
        ({"periodSeconds": 1}, (3.5, 0, 0, 0), [0, 3.5, 4, 5]),
    ],
)
def test_probes_are_a_period_apart_however_long_an_attempt_takes(
    probe: dict[str, int], lasting_s: tuple[float, ...], begins_s: list[float]
) -> None:
    assert attempts(probe, *lasting_s) == begins_s
