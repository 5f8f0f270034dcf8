"""Metrics of the simulated engines, driven by one table per engine.

A row of `data/ENGINE-VERSION.metrics` is `type name labels [option ...] :: help`. Its options:

- `buckets=NAME`: the list of bounds that a line `buckets NAME ...` gives, or the engine (those that follow its
  arguments)
- `from=EVENT` or `from=EVENT@label=value`: what fills it, see `EVENTS`; a counter adds it, a histogram observes it,
  and a gauge takes it or, for what moves up and down, adds it; other labels come with the event
- `is=NUMBER` or `is=NUMBER@label=value`: what it shows from the start
- `absent`: the family shows nothing before its first event, although its labels are known

A family without `from` stays at zero, as in a real engine that never uses what it counts. `EngineMetrics` reads a
table and the batcher; `Metrics` is the registry below it; `python_text`, `multiprocess_text`, `stream_text` and
`rust_text` write the registry in the dialects of the engines. (Own code instead of `prometheus_client`: a histogram
takes a thousand equal observations in one call, and families can stay absent until they are touched, as in TGI's Rust
exporter.)
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flotilla.simulation.engine import Batcher, Event, EventKind, SimulatedSequence, Steps
from flotilla_devcluster.engine.settings import DATA

EVENTS: Final[Mapping[str, str]] = {
    # read from the batcher at a scrape
    "running": "sequences in the batch",
    "waiting": "sequences in the queue",
    "kv_usage": "share of the KV cache in use, 0 to 1",
    "kv_used_tokens": "tokens of the KV cache in use",
    "kv_free_tokens": "tokens of the KV cache that are free",
    "held_tokens": "tokens of all running sequences",
    "prefilled_tokens": "prompt tokens since the start",
    "generated_tokens": "output tokens since the start",
    "decode_tokens_per_s": "of the last decoding step, 0 when nothing runs",
    # facts of the configuration
    "kv_tokens": "size of the KV cache in tokens",
    "kv_blocks": "the same in blocks",
    "kv_block_tokens": "tokens of a block",
    "context_tokens": "the longest sequence",
    "lora_slots": "adapters that can be in use at once",
    # requests, from the HTTP server
    "requested": "a request came",
    "failed": "a request failed; label err",
    "rejected": "a request met a limit of the queue; label reason",
    "submitted.choices": "answers to each of its prompts",
    "submitted.max_tokens": "limit of its answer",
    "submitted.prompt_tokens": "of one prompt",
    "http.asked": "an HTTP request came; the labels are the engine's",
    "http.active": "+1 when one comes, -1 when it is answered",
    "http.answered": "one was answered",
    "http.seconds": "how long it took",
    "http.request_bytes": "size of its body",
    "http.response_bytes": "size of its answer",
    # what happens to a sequence
    "admitted.prompt_tokens": "it entered the batch",
    "admitted.queue_s": "time in the queue until then",
    "first_token.after_s": "time from its arrival to its first token; label is_streaming",
    "first_token.prompt_tokens": "its prompt, when it is prefilled",
    "preempted": "it lost its place in the batch",
    "resumed.stall_s": "time without a token after that",
    "aborted": "its client left",
    "finished": "it ended; labels finished_reason and is_streaming, as for all below",
    "finished.prompt_tokens": "",
    "finished.output_tokens": "",
    "finished.preemptions": "",
    "finished.total_s": "from its arrival to its end",
    "finished.validation_s": "always 0",
    "finished.queue_s": "from its arrival into the batch",
    "finished.inference_s": "in the batch",
    "finished.prefill_s": "in the batch until its first token",
    "finished.decode_s": "from its first token to its end",
    "finished.per_token_s": "decode time for each token after the first",
    "finished.per_later_token_s": "the same, only for answers of several tokens",
    "finished.mean_token_s": "inference time for each token",
    # steps of the engine, several equal ones at once
    "steps.count": "number of steps",
    "steps.admitted": "sequences that entered the batch before them",
    "steps.tokens": "tokens of each step, prompt and output",
    "steps.inter_token_s": "time of a step, once for each decoding sequence",
    "steps.prefill_tokens": "prompt tokens",
    "steps.prefill_s": "time of each step with prompt tokens",
    "steps.prefills": "number of those steps",
    "steps.decode_tokens": "output tokens",
    "steps.decode_s": "time of each step with output tokens",
    "steps.decodes": "number of those steps",
    # kept by one engine alone
    "slots.busy_per_decode": "llama.cpp: mean sequences of a step",
    "slots.longest_tokens": "llama.cpp: the longest sequence that left its slot",
    "slots.output_tokens": "llama.cpp: output tokens of a sequence that leaves its slot",
    "slots.output_s": "llama.cpp: the time that they took",
    "slots.prompt_tokens_per_s": "llama.cpp: since the last scrape",
    "slots.output_tokens_per_s": "llama.cpp: since the last scrape",
}
"""All that a table can name after `from=`."""


class Value:
    """A counter or a gauge."""

    __slots__ = ("created_s", "value")

    def __init__(self, created_s: float) -> None:
        self.value = 0.0
        self.created_s = created_s


class Distribution:
    """A histogram, or without bounds a summary of sum and count."""

    __slots__ = ("bounds", "counts", "created_s", "total")

    def __init__(self, created_s: float, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.created_s = created_s

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(slots=True)
class Family:
    """One metric name. `labels` maps a label to the values it has from the start; empty: any, later."""

    kind: str
    name: str
    labels: dict[str, tuple[str, ...]]
    bounds: tuple[float, ...]
    help: str
    readers: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """Events that fill it, with the labels that they set."""
    initial: tuple[tuple[float, Mapping[str, str]], ...] = ()
    absent: bool = False
    values: dict[tuple[str, ...], Value] = field(default_factory=dict)
    distributions: dict[tuple[str, ...], Distribution] = field(default_factory=dict)


class Metrics:
    """All families of one engine; `constants` gives values to labels that do not change."""

    def __init__(self, families: Iterable[Family], *, constants: Mapping[str, str], lazy: bool = False) -> None:
        self.families = {family.name: family for family in families}
        self.created_s = time.time()
        for family in self.families.values():
            for label in family.labels.keys() & constants.keys():
                family.labels[label] = (constants[label],)
            if not (lazy or family.absent) and all(family.labels.values()):
                for labels in _combinations(family.labels):
                    self._child(family, labels)

    def value(self, name: str, **labels: str) -> Value:
        """The counter or gauge of these labels; asking for it makes it appear."""
        family = self.families[name]
        key = _key(family, labels)
        self._child(family, key)
        return family.values[key]

    def distribution(self, name: str, **labels: str) -> Distribution:
        """The histogram or summary of these labels; asking for it makes it appear."""
        family = self.families[name]
        key = _key(family, labels)
        self._child(family, key)
        return family.distributions[key]

    def _child(self, family: Family, key: tuple[str, ...]) -> None:
        if family.kind in ("histogram", "summary"):
            if key not in family.distributions:
                family.distributions[key] = Distribution(time.time(), family.bounds)
        elif key not in family.values:
            family.values[key] = Value(time.time())


def load_families(table: str, *, buckets: Mapping[str, tuple[float, ...]]) -> list[Family]:
    """The families of `data/TABLE`; `buckets` adds the bucket lists that depend on the engine's arguments.

    Raises ValueError for an option or an event that does not exist.
    """
    known = dict(buckets)
    families = []
    for line in (DATA / table).read_text().splitlines():
        if line.startswith("buckets "):
            _, key, *bounds = line.split()
            known[key] = tuple(float(bound) for bound in bounds)
        elif line and not line.startswith("#"):
            families.append(_family(line, known))
    return families


def _family(line: str, buckets: Mapping[str, tuple[float, ...]]) -> Family:
    head, _, help_text = line.partition("::")
    kind, name, labels, *rest = head.split()
    bounds: tuple[float, ...] = ()
    readers: list[tuple[str, Mapping[str, str]]] = []
    initial: list[tuple[float, Mapping[str, str]]] = []
    for option in rest:
        key, _, value = option.partition("=")
        value, _, label = value.partition("@")
        fixed = dict([label.split("=", 1)]) if label else {}
        if key == "buckets":
            bounds = buckets[value]
        elif key == "from" and value in EVENTS:
            readers.append((value, fixed))
        elif key == "is":
            initial.append((float(value), fixed))
        elif option != "absent":
            raise ValueError(
                f"{name}: {option!r} is no option of a metric table; see flotilla_devcluster.engine.metrics."
            )
    parsed: dict[str, tuple[str, ...]] = {}
    for label in [] if labels == "-" else labels.split(","):
        key, equals, values = label.partition("=")
        parsed[key] = tuple(values.split("|")) if equals else ()
    return Family(
        kind=kind,
        name=name,
        labels=parsed,
        bounds=bounds,
        help=help_text.strip(),
        readers=tuple(readers),
        initial=tuple(initial),
        absent="absent" in rest,
    )


def _combinations(labels: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [()]
    for values in labels.values():
        keys = [(*key, value) for key in keys for value in values]
    return keys


def _key(family: Family, labels: Mapping[str, str]) -> tuple[str, ...]:
    unknown = labels.keys() - family.labels.keys()
    if unknown:
        raise KeyError(f"{family.name} has no label {sorted(unknown)}")
    return tuple(labels[label] if label in labels else values[0] for label, values in family.labels.items())


class EngineMetrics:
    """The numbers of one engine: what happens to its batcher and its requests, in the families whose rows ask for it.

    Gauges are read from the batcher at a scrape; everything else is recorded as it happens. `lazy`: a family appears
    when something touches it, so that a fresh server shows neither a queue nor a batch.
    """

    def __init__(
        self,
        table: str,
        batcher: Batcher,
        *,
        write: Callable[[Metrics], str],
        constants: Mapping[str, str],
        facts: Mapping[str, float],
        buckets: Mapping[str, tuple[float, ...]] | None = None,
        hidden: str | None = None,
        lazy: bool = False,
    ) -> None:
        """`write`: the dialect; `constants`: values of labels; `facts`: by event; `hidden`: families that begin so."""
        families = [
            family
            for family in load_families(table, buckets=buckets or {})
            if hidden is None or not family.name.startswith(hidden)
        ]
        self.registry = Metrics(families, constants=constants, lazy=lazy)
        self.batcher = batcher
        self._write = write
        self._lazy = lazy
        self._readers: dict[str, list[tuple[Family, Mapping[str, str]]]] = {}
        for family in families:
            for event, fixed in family.readers:
                self._readers.setdefault(event, []).append((family, fixed))
            for value, fixed in family.initial:
                self.registry.value(family.name, **fixed).value = value
        self._children: dict[tuple[str, ...], list[Value | Distribution]] = {}
        self._streams: set[SimulatedSequence] = set()
        self._submitted = self._stepped = False
        self._admitted = 0
        self._throughput = 0.0
        pool = batcher.pool
        sizes = {"kv_tokens": pool.total * pool.block_size, "kv_blocks": pool.total, "kv_block_tokens": pool.block_size}
        for event, value in (*sizes.items(), *facts.items()):
            self.set(event, value)

    def set(self, event: str, value: float) -> None:
        """Give the families that read the event this value."""
        for child in self._find(event, {}):
            if isinstance(child, Value):
                child.value = value

    def record(
        self, event: str, value: float = 1, times: int = 1, labels: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Add or observe the value `times` times; a family takes those of the labels that it has."""
        for child in self._find(event, labels):
            if isinstance(child, Distribution):
                child.observe(value, times)
            else:
                child.value += value * times

    def submitted(self, sequences: Iterable[SimulatedSequence], *, streaming: bool) -> None:
        """Sequences that go into the queue."""
        self._submitted = True
        for sequence in sequences:
            self.record("submitted.prompt_tokens", sequence.prompt_tokens)
            if streaming:
                self._streams.add(sequence)

    def on_event(self, event: Event | Steps) -> None:
        """Of the batcher."""
        if isinstance(event, Steps):
            self._steps(event)
            return
        sequence, waited_s = event.sequence, event.at_s - event.sequence.arrived_s
        if event.kind is EventKind.ADMITTED:
            self._admitted += 1
            self.record("admitted.prompt_tokens", sequence.prompt_tokens)
            self.record("admitted.queue_s", waited_s)
        elif event.kind is EventKind.FIRST_TOKEN:
            self.record("first_token.after_s", waited_s, labels={"is_streaming": self._streaming(sequence)})
            self.record("first_token.prompt_tokens", sequence.prompt_tokens)
        elif event.kind is EventKind.RESUMED:
            self.record("resumed.stall_s", event.stall_s)
        elif event.kind is EventKind.PREEMPTED:
            self.record("preempted")
        elif event.kind is EventKind.FINISHED:
            self._finished(sequence, event.at_s)
            self._streams.discard(sequence)
        elif event.kind is EventKind.ABORTED:
            self.record("aborted")
            self._streams.discard(sequence)

    def text(self) -> str:
        """The answer to a scrape."""
        for event, value in self._scraped():
            self.set(event, value)
        return self._write(self.registry)

    def _scraped(self) -> Iterator[tuple[str, float]]:
        batcher, pool = self.batcher, self.batcher.pool
        if self._submitted or not self._lazy:
            yield "waiting", len(batcher.waiting)
        if self._stepped or not self._lazy:
            yield "running", len(batcher.running)
            yield "kv_used_tokens", pool.used * pool.block_size
            yield "kv_free_tokens", pool.free * pool.block_size
            yield "kv_usage", batcher.kv_usage
            yield "prefilled_tokens", batcher.prefilled_tokens
            yield "generated_tokens", batcher.generated_tokens
            yield "decode_tokens_per_s", self._throughput if batcher.running else 0
            if "held_tokens" in self._readers:
                yield "held_tokens", sum(each.prompt_tokens + batcher.tokens(each) for each in batcher.running)

    def _steps(self, steps: Steps) -> None:
        self._stepped = True
        count, decoding, prefill, step_s = steps.count, steps.decoding, steps.prefill_tokens, steps.duration_s
        self.record("steps.count", count)
        if self._admitted:
            self.record("steps.admitted", self._admitted)
            self._admitted = 0
        if decoding or prefill:
            self.record("steps.tokens", decoding + prefill, count)
        if prefill:
            self.record("steps.prefill_tokens", prefill)
            self.record("steps.prefill_s", step_s, count)
            self.record("steps.prefills", count)
        if decoding:
            self._throughput = decoding / step_s
            self.record("steps.inter_token_s", step_s, count * decoding)
            self.record("steps.decode_tokens", decoding * count)
            self.record("steps.decode_s", step_s, count)
            self.record("steps.decodes", count)

    def _finished(self, sequence: SimulatedSequence, now_s: float) -> None:
        labels = {"finished_reason": sequence.finish_reason, "is_streaming": self._streaming(sequence)}
        arrived_s, tokens = sequence.arrived_s, sequence.output_tokens
        admitted_s = arrived_s if sequence.admitted_s is None else sequence.admitted_s
        first_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        per_token_s = (now_s - first_s) / max(1, tokens - 1)
        self.record("finished", labels=labels)
        for name, value in (
            ("prompt_tokens", sequence.prompt_tokens),
            ("output_tokens", tokens),
            ("preemptions", sequence.preemptions),
            ("total_s", now_s - arrived_s),
            ("validation_s", 0.0),
            ("queue_s", admitted_s - arrived_s),
            ("inference_s", now_s - admitted_s),
            ("prefill_s", first_s - admitted_s),
            ("decode_s", now_s - first_s),
            ("per_token_s", per_token_s),
            ("mean_token_s", (now_s - admitted_s) / tokens),
        ):
            self.record(f"finished.{name}", value, labels=labels)
        if tokens > 1:
            self.record("finished.per_later_token_s", per_token_s, labels=labels)

    def _streaming(self, sequence: SimulatedSequence) -> str:
        return "true" if sequence in self._streams else "false"

    def _find(self, event: str, labels: Mapping[str, str]) -> list[Value | Distribution]:
        """The children that the event fills. One event always comes with the same names of labels."""
        key = (event, *labels.values())
        children = self._children.get(key)
        if children is None:
            children = []
            for family, fixed in self._readers.get(event, ()):
                own = {label: value for label, value in labels.items() if label in family.labels} | dict(fixed)
                find = self.registry.distribution if family.kind in ("histogram", "summary") else self.registry.value
                children.append(find(family.name, **own))
            self._children[key] = children
        return children


def python_text(metrics: Metrics) -> str:
    """As Python's prometheus_client writes it: a `_created` gauge follows each family that has one."""
    lines: list[str] = []
    for family in metrics.families.values():
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for key, value in family.values.items():
            lines.append(f"{family.name}{_braces(family, key)} {python_number(value.value)}")
        for key, distribution in family.distributions.items():
            lines += _python_distribution(family, key, distribution)
        lines += _python_created(family)
    return "\n".join(lines) + "\n"


def _python_distribution(family: Family, key: tuple[str, ...], distribution: Distribution) -> list[str]:
    lines, running = [], 0
    if family.kind == "histogram":
        for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
            running += count
            braces = _braces(family, key, le=python_number(bound))
            lines.append(f"{family.name}_bucket{braces} {python_number(running)}")
    braces = _braces(family, key)
    lines.append(f"{family.name}_count{braces} {python_number(distribution.count)}")
    lines.append(f"{family.name}_sum{braces} {python_number(distribution.total)}")
    return lines


def _python_created(family: Family) -> list[str]:
    children: dict[tuple[str, ...], Value | Distribution] = {**family.values, **family.distributions}
    if family.kind == "gauge" or not children:
        return []
    # iteration_tokens_total is a histogram: only a counter's own suffix goes away
    name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    lines = [f"# HELP {name}_created {_escape_help(family.help)}", f"# TYPE {name}_created gauge"]
    for key, child in children.items():
        lines.append(f"{name}_created{_braces(family, key)} {python_number(child.created_s)}")
    return lines


def python_number(value: float) -> str:
    """As prometheus_client writes it: always a float, with an exponent from a million on."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    text = repr(float(value))
    point = text.find(".")
    if value > 0 and point > 6:
        mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{point - 1:02d}"
    return text


def multiprocess_text(metrics: Metrics) -> str:
    """As prometheus_client writes what several processes count: no `_created`, untouched: absent, the sum first."""
    lines: list[str] = []
    for family in metrics.families.values():
        if not family.values and not family.distributions:
            continue
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for key, value in family.values.items():
            lines.append(f"{family.name}{_braces(family, key)} {python_number(value.value)}")
        for key, distribution in family.distributions.items():
            *buckets, count, total = _python_distribution(family, key, distribution)
            lines += [total, *buckets, count]
    return "\n".join(lines) + "\n"


def stream_text(metrics: Metrics) -> str:
    """As a C++ stream writes doubles: six significant digits."""
    lines: list[str] = []
    for family in metrics.families.values():
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{family.name}{_braces(family, key)} {value.value:g}" for key, value in family.values.items()]
    return "\n".join(lines) + "\n"


def rust_text(metrics: Metrics) -> str:
    """As Rust's metrics-exporter-prometheus writes it: counters, gauges, histograms; untouched: absent."""
    lines: list[str] = []
    for kind in ("counter", "gauge", "histogram"):
        for family in metrics.families.values():
            if family.kind == kind and (family.values or family.distributions):
                lines += _rust_family(family)
                lines.append("")
    return "\n".join(lines) + "\n"


def _rust_family(family: Family) -> list[str]:
    lines = [f"# HELP {family.name} {family.help}"] if family.help else []
    lines.append(f"# TYPE {family.name} {family.kind}")
    for key, value in family.values.items():
        lines.append(f"{family.name}{_braces(family, key)} {rust_number(value.value)}")
    for key, distribution in family.distributions.items():
        running = 0
        for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
            running += count
            braces = _braces(family, key, le=rust_number(bound))
            lines.append(f"{family.name}_bucket{braces} {running}")
        lines.append(f"{family.name}_sum{_braces(family, key)} {rust_number(distribution.total)}")
        lines.append(f"{family.name}_count{_braces(family, key)} {running}")
    return lines


def rust_number(value: float) -> str:
    """As Rust displays an f64: no exponent, and no fraction where there is none."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _braces(family: Family, key: tuple[str, ...], **extra: str) -> str:
    labels = dict(zip(family.labels, key, strict=True)) | extra
    if not labels:
        return ""
    inner = ",".join(f'{label}="{_escape(labels[label])}"' for label in sorted(labels))
    return f"{{{inner}}}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
