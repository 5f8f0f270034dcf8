"""Read the metrics of one engine over HTTP: a dozen samples out of the text, with a bound on size and time."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from flotilla.addresses import AddressMap
from flotilla.catalog.engines import MetricName, metric_name

_LABEL = rb'(?!__)[a-zA-Z_][a-zA-Z0-9_]*="[^"\\]*"'
_HEAD = re.compile(rb"(?:\{(?:" + _LABEL + rb"(?:," + _LABEL + rb")*,?)?\})?[ \t]")
"""What follows a name in a line of the usual form; all others are left to the full parser."""

_UNUSUAL_LINES = 200
"""Lines of one metric that the full parser reads, 50 us each; a text with more of them is refused."""
_SERIES = 20_000
"""Series of one metric; a text with more of them is refused."""
_PAIR = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)"')
_AFTER_NAME = (b"{", b" ", b"\t")


def find(body: bytes, names: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """The values of the first of each key's metrics that is there, in the order of their lines.

    Names are as in profiles (`engines.metric_name`).
    Raises ValueError where one of those lines is not to be read.
    """
    text = b"\n" + body
    found: dict[str, list[float]] = {}
    for key, candidates in names.items():
        for name in candidates:
            if values := _values(text, metric_name(name)):
                found[key] = values
                break
    return found


def _values(text: bytes, name: MetricName) -> list[float]:
    values: list[float] = []
    unusual = lines = 0
    start = b"\n" + name.family.encode()
    after, at = len(start), text.find(start)
    while at >= 0:
        end = text.find(b"\n", at + 1)
        end = len(text) if end < 0 else end
        # A longer name begins with the same letters.
        if text[at + after : at + after + 1] in _AFTER_NAME:
            line = text[at + 1 : end]
            usual, value = _usual(line, after - 1, name)
            lines, unusual = lines + 1, unusual + (not usual)
            if unusual > _UNUSUAL_LINES or lines > _SERIES:
                raise ValueError(f"{name.family} has too many series, or too many in an unusual form")
            value = value if usual else _parsed(line, name)
            if value is not None:
                values.append(value)
        at = end if text.startswith(start, end) else text.find(start, end)
    return values


def _usual(line: bytes, after_name: int, name: MetricName) -> tuple[bool, float | None]:
    """Whether the line is of the usual form, and then its value; None for a sample with other labels."""
    head = _HEAD.match(line, after_name)
    if head is not None:
        rest = line[head.end() :]
        if b"_" not in rest:
            try:
                # Two numbers are a value and a time, which float refuses.
                value = float(rest)
            except ValueError:
                pass
            else:
                plain = not name.label and not name.number_label
                return True, value if plain else name.value(_labels(head[0]), value)
    return False, None


def _parsed(line: bytes, name: MetricName) -> float | None:
    """The value by the full parser; None for a sample with other labels."""
    try:
        (family,) = text_string_to_metric_families(line.decode(errors="replace") + "\n")
        (sample,) = family.samples
    except ValueError as error:
        raise ValueError(f"{line[:100]!r} is no sample") from error
    return name.value(sample.labels, sample.value)


def _labels(head: bytes) -> dict[str, str]:
    return {label.decode(): value.decode(errors="replace") for label, value in _PAIR.findall(head)}


Answer = TypeVar("Answer")
_LIMIT_BYTES = 4 * 2**20
_AT_ONCE = 64
_URLS = 16_384
MOST = 1e15
"""The largest count that is believed: a million tokens per second for thirty years. What is more, infinite or NaN would
end in sums of dollars."""
_HIGHEST = frozenset({"kv_usage", "kv_block_tokens"})
"""Names that are combined over data-parallel ranks by maximum; the others add up."""
_QUEUE = ("running", "waiting")
_ALIVE = "alive"
"""Not a value: metrics that show the engine to be there while it has yet to make its queue's. TGI exports a metric
from its first use on, so that the queue of a fresh replica is empty rather than unknown."""
_HEADERS = {
    # Compressing 50 KB every two seconds would be the engine's work, between its tokens.
    "Accept-Encoding": "identity",
    "Accept": "text/plain;version=0.0.4",
}


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """One pod's endpoint. `names` maps the names of EngineSample's fields to the engine's own, the newest first."""

    uid: str
    address: str
    port: int
    path: str
    names: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One reading of an engine. Counters are since its start; None is a metric that the engine does not have."""

    running: float
    waiting: float
    kv_usage: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    cached_tokens: float | None = None
    requests_success: float | None = None
    requests_failed: float | None = None
    """That ended without a whole answer, those included whose clients left."""
    rejected: float | None = None
    first_token_seconds: float | None = None
    first_tokens: float | None = None
    """Sum and number of the times from a request's arrival to its first token."""
    token_interval_seconds: float | None = None
    token_intervals: float | None = None
    """The same of the times between two tokens of an answer."""
    kv_tokens: float | None = None
    kv_requests: float | None = None
    """What the engine found room for at its start: tokens of the KV cache, and requests of its whole context."""
    kv_blocks: float | None = None
    kv_block_tokens: float | None = None
    """Or blocks, and the tokens of one."""

    @property
    def room(self) -> "CacheRoom | None":
        """None where the engine does not say."""
        if self.kv_tokens:
            requests = self.kv_requests or 0.0
            context = round(self.kv_tokens / requests) if requests else 0
            return CacheRoom(int(self.kv_tokens), context, int(requests))
        if self.kv_blocks and self.kv_block_tokens:
            return CacheRoom(int(self.kv_blocks * self.kv_block_tokens), 0, 0)
        return None


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """The KV cache of a running engine, as it says itself; 0 is not known."""

    tokens: int
    context_length: int
    requests: int
    """Of the whole context, at one time."""


@dataclass(frozen=True, slots=True)
class ScrapeError:
    """Why a pod's queue is unknown."""

    reason: str


class Scraper:
    """One session for all pods; `close` it."""

    def __init__(self, addresses: AddressMap, *, timeout_s: float = 1.0) -> None:
        self._addresses = addresses
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def scrape(self, targets: Sequence[ScrapeTarget]) -> dict[str, EngineSample | ScrapeError]:
        """All targets, 64 at once, by pod uid; never raises. A pod's second counts from when it is its turn."""
        return await self.read(targets, lambda body, target: parse(body, target.names))

    async def read(
        self, targets: Sequence[ScrapeTarget], parse_: Callable[[bytes, ScrapeTarget], Answer | ScrapeError]
    ) -> dict[str, Answer | ScrapeError]:
        """The same for metrics of another kind, which `parse_` makes of a body."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
            )
        session, turn = self._session, asyncio.Semaphore(_AT_ONCE)

        async def one(target: ScrapeTarget) -> Answer | ScrapeError:
            async with turn:
                body = await self._body(session, target)
            return body if isinstance(body, ScrapeError) else parse_(body, target)

        answers = await asyncio.gather(*map(one, targets))
        return {target.uid: answer for target, answer in zip(targets, answers, strict=True)}

    async def _body(self, session: aiohttp.ClientSession, target: ScrapeTarget) -> bytes | ScrapeError:
        url = _url(self._addresses, target.address, target.port, target.path)
        try:
            # Redirects could lead anywhere; an engine has no reason to send one.
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    return ScrapeError(f"HTTP {answer.status}")
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _LIMIT_BYTES:
                        return ScrapeError(f"more than {_LIMIT_BYTES} bytes")
        except TimeoutError:
            return ScrapeError(f"no answer in {self._timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return ScrapeError(str(error) or type(error).__name__)
        return bytes(body)


@lru_cache(maxsize=_URLS)
def _url(addresses: AddressMap, address: str, port: int, path: str) -> URL:
    """To read one takes as long as to find the metrics in a body."""
    host = addresses.translate(address)
    return URL(f"http://{f'[{host}]' if ':' in host else host}:{port}{path}")


def parse(body: bytes, names: Mapping[str, Sequence[str]]) -> EngineSample | ScrapeError:
    """Read a metric text. Running and waiting must be there and finite; the rest may be absent."""
    try:
        return combine(find(body, names))
    except ValueError as error:
        return ScrapeError(f"unreadable metrics: {error}")


def combine(found: Mapping[str, Sequence[float]]) -> EngineSample | ScrapeError:
    """One pod's series, by the names of EngineSample's fields, as one sample."""
    values: dict[str, float] = {}
    for name, present in found.items():
        values[name] = max(present) if name in _HIGHEST else sum(present)
        wrong = next((value for value in (*present, values[name]) if not 0 <= value <= MOST), None)
        if wrong is not None:
            return ScrapeError(f"{name} is {wrong:g}, which is no count")
    if values.pop(_ALIVE, None) is not None:
        values = dict.fromkeys(_QUEUE, 0.0) | values
    missing = [name for name in _QUEUE if name not in values]
    if missing:
        return ScrapeError(f"no {' and '.join(missing)} among the metrics")
    return EngineSample(**values)
