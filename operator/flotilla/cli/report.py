"""`flotilla report`: what the fleet cost, as one HTML page."""

import asyncio
import time
from datetime import UTC, datetime

from flotilla.cli import periods
from flotilla.cli.sources import Place, client_of, current
from flotilla.cost import spending
from flotilla.cost.spending_client import History
from flotilla.errors import InvalidSpec
from flotilla.prometheus.client import RangeSeries
from flotilla.reports.cost_report import Report, Step, page

_HOUR_S, _DAY_S = 3600, 86_400
_STEPS = ((6 * _HOUR_S, 900), (3 * _DAY_S, _HOUR_S), (14 * _DAY_S, 6 * _HOUR_S), (92 * _DAY_S, _DAY_S))
"""Up to a length of the period, a column stands for so many seconds."""
_LONGEST_STEP_S = 7 * _DAY_S


def ask(place: Place, since: str | None) -> Report:
    """Raises InvalidSpec for a wrong question, other FlotillaErrors where the source does not answer."""
    return asyncio.run(_ask(place, since))


def html(report: Report) -> str:
    """The page."""
    return page(report)


async def _ask(place: Place, since: str | None) -> Report:
    end = time.time()
    moment = datetime.fromtimestamp(end, UTC)
    if place.prometheus is None:
        if since is not None:
            raise InvalidSpec("--since needs a history: name a Prometheus with --prometheus.", field="--since")
        found = spending.spent(await current(place))
        return Report(found, (), None, moment, "the operator's own metrics")
    start = end - periods.seconds(since or "7d", field="--since")
    step_s = next((step for longest, step in _STEPS if end - start <= longest), _LONGEST_STEP_S)
    client = client_of(place)
    try:
        history = History(client)
        found = spending.spent(await history.period(start, end))
        series = await history.steps(start, end, step_s=step_s)
    finally:
        await client.close()
    return Report(found, steps(series, step_s), datetime.fromtimestamp(start, UTC), moment, "Prometheus")


def steps(series: tuple[RangeSeries, ...], step_s: int) -> tuple[Step, ...]:
    """One column for each step that has any state, named by its beginning."""
    by_time: dict[float, dict[str, float]] = {}
    for one in series:
        for at, value in one.points:
            if value is not None:
                by_time.setdefault(at, {})[one.labels.get("state", "")] = value
    return tuple(Step(_label(at - step_s, step_s), by_time[at]) for at in sorted(by_time))


def _label(at: float, step_s: int) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    if step_s >= _DAY_S:
        return f"{moment:%b} {moment.day}"
    return f"{moment:%H:%M}" if step_s < _HOUR_S else f"{moment:%b} {moment.day} {moment:%H}h"
