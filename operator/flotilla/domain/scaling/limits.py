"""How far the number may move within a minute, by what it was in it."""

from typing import Final

from flotilla.domain.scaling.state import Need, ScalingSpec, State

WINDOW_S: Final = 60.0


def ceiling(state: State, spec: ScalingSpec, now: float) -> int:
    """The most replicas now.

    Counted from the fewest of the last minute, and not by additions: what a short dip took away may come back.
    """
    return min(level.replicas for level in recent(state.levels, now)) + spec.up_limit_per_minute


def floor(state: State, spec: ScalingSpec, now: float) -> int:
    """The fewest replicas now. One may always go, or a small share of few replicas would never do."""
    most = max(level.replicas for level in recent(state.levels, now))
    return most - max(1, most * spec.down_percent_per_minute // 100)


def recent(levels: tuple[Need, ...], now: float) -> tuple[Need, ...]:
    """Without what ended more than a minute ago."""
    start = now - WINDOW_S
    old = sum(level.at <= start for level in levels)
    return levels[old - 1 :] if old > 1 else levels
