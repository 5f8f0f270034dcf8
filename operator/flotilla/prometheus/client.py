"""Queries of the installation's Prometheus, and the PromQL text that they are made of."""

import asyncio
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from flotilla.config import OperatorConfig
from flotilla.errors import InvalidSpec, Transient

if TYPE_CHECKING:
    from flotilla.prometheus.http_client import Answer, PrometheusConnection

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
"""Characters with a meaning in RE2. `re.escape` escapes more, and RE2 refuses escapes that it does not know."""


def quoted(value: str) -> str:
    """A string literal. Raises ValueError for what UTF-8 cannot hold."""
    value.encode()
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def one_of(values: Iterable[str]) -> str:
    """A literal of a regular expression that matches the values and nothing else."""
    return quoted("|".join(_SPECIAL.sub(r"\\\g<0>", value) for value in values))


def selector(names: Iterable[str], labels: Mapping[str, Iterable[str]]) -> str:
    """The series that have one of the names and, for each label, one of its values.

    Raises ValueError for what is not a metric name, and for a label without values: the empty expression would match
    series without the label.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no metric name.")
    matchers = [("__name__", chosen), *((label, list(dict.fromkeys(values))) for label, values in labels.items())]
    parts = []
    for label, values in matchers:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label name.")
        if not values or "" in values:
            raise ValueError(f"Label {label} needs values that are not empty.")
        parts.append(f"{label}={quoted(values[0])}" if len(values) == 1 else f"{label}=~{one_of(values)}")
    return "{" + ",".join(parts) + "}"


def window(seconds: float) -> str:
    """A range of whole milliseconds; at least one."""
    return f"[{max(1, round(seconds * 1000))}ms]"


_THREADS = 4


class Point(NamedTuple):
    """`at` in Unix seconds by the server's clock; a value that is no finite number is None."""

    at: float
    value: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """One value of an instant query. `at` is when the query was evaluated, however old the sample behind it is."""

    labels: Mapping[str, str]
    value: float | None
    """None: NaN or infinite, such as a mean of nothing."""
    at: float


@dataclass(frozen=True, slots=True)
class RangeSeries:
    """The points of one series, the oldest first."""

    labels: Mapping[str, str]
    points: tuple[Point, ...]


class PrometheusClient:
    """Asks one server; `close` it. Nothing is loaded or connected before the first query.

    All calls raise Transient (no answer, 5xx), Forbidden, Incomplete (warnings: a part of the data is missing) or
    InvalidSpec (the query or the settings are wrong). No series is an empty tuple: unknown, and not 0.
    """

    def __init__(
        self, url: str, *, ca_file: Path | None = None, bearer_token_file: Path | None = None, timeout_s: float = 5.0
    ) -> None:
        self._url, self._ca_file, self._token_file = url, ca_file, bearer_token_file
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="prometheus")
        self._turn = asyncio.Semaphore(_THREADS)
        self._mine = threading.local()
        self._connections: list[PrometheusConnection] = []

    @classmethod
    def from_config(cls, config: OperatorConfig) -> Self | None:
        """None where no Prometheus is named."""
        if config.prometheus_url is None:
            return None
        return cls(
            config.prometheus_url,
            ca_file=config.prometheus_ca_file,
            bearer_token_file=config.prometheus_bearer_token_file,
        )

    async def close(self) -> None:
        """Close the connections; a query that is under way ends within its time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for connection in self._connections:
            connection.close()

    async def query(self, promql: str) -> tuple[Series, ...]:
        """An instant query that gives a vector or a scalar."""
        kind, result = await self._ask(lambda connection, deadline: connection.query(promql, deadline))
        with _reading():
            if kind == "scalar":
                return (_series({}, result),)
            if kind == "vector":
                return tuple(_series(entry["metric"], entry["value"]) for entry in result)
        raise InvalidSpec(f"The query gives a {kind} and not a vector or scalar: {promql}", field="query")

    async def query_samples(self, promql: str) -> tuple[RangeSeries, ...]:
        """An instant query of a range such as `up[1m]`: the samples themselves, with the times of their scrapes."""
        return await self._matrix(promql, lambda connection, deadline: connection.query(promql, deadline))

    async def query_range(self, promql: str, *, start: float, end: float, step_s: float) -> tuple[RangeSeries, ...]:
        """The query at each step from `start` to `end`, Unix seconds; a step without data has no point."""
        if not (0 < step_s < math.inf and start <= end):
            raise InvalidSpec(f"A range from {start:g} to {end:g} in steps of {step_s:g} s is empty.", field="query")
        return await self._matrix(
            promql, lambda connection, deadline: connection.query_range(promql, start, end, step_s, deadline)
        )

    async def _matrix(
        self, promql: str, call: "Callable[[PrometheusConnection, float], Answer]"
    ) -> tuple[RangeSeries, ...]:
        kind, result = await self._ask(call)
        if kind != "matrix":
            raise InvalidSpec(f"The query gives a {kind} and not a matrix: {promql}", field="query")
        with _reading():
            return tuple(RangeSeries(entry["metric"], tuple(map(_point, entry["values"]))) for entry in result)

    async def _ask(self, call: "Callable[[PrometheusConnection, float], Answer]") -> "Answer":
        """In a thread, when it is its turn; the time counts from now."""
        deadline = time.monotonic() + self._timeout_s
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, call, deadline)
        except TimeoutError as error:
            raise Transient(f"Prometheus does not answer in {self._timeout_s:g} s.") from error

    def _call(self, call: "Callable[[PrometheusConnection, float], Answer]", deadline: float) -> "Answer":
        """Runs in a thread of the pool, each of which has a connection of its own."""
        connection: PrometheusConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            from flotilla.prometheus import http_client

            connection = http_client.PrometheusConnection(self._url, ca_file=self._ca_file, token_file=self._token_file)
            self._mine.connection = connection
            self._connections.append(connection)
        return call(connection, deadline)


@contextmanager
def _reading() -> Iterator[None]:
    """An answer of another shape than the API's is somebody else's answer."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise Transient("prometheus_url answers, but not as Prometheus does.") from error


def _series(labels: Mapping[str, str], pair: Any) -> Series:
    at, value = _point(pair)
    return Series(labels, value, at)


def _point(pair: Any) -> Point:
    at, text = pair
    value = float(text)
    return Point(float(at), value if math.isfinite(value) else None)
