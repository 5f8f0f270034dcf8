"""How fast a model is on a GPU: one roofline model for advise, estimate and simulate. Pure.

An engine with continuous batching works in steps. In each step every request in flight gets one token, and new prompts
are computed beside it. With B requests in flight, each of which has a prompt and an answer of mean length, B answers
are made in

    answer tokens x decode step(B)  +  B x prefill(prompt)

decode step: the weights are read once (of a mixture of experts those that B tokens reach), the KV cache of all B
requests (and the state of recurrent layers) is read, and B tokens are multiplied with the weights; reading and
multiplying overlap. Towers for images are left out: speeds are of text. Prefill: the uncached
part of the prompt is multiplied with the weights, and attends to the whole prompt. With tensor parallelism all of that
is divided, and two sums over all GPUs are added per layer. To each step, layer, token and request a fixed time of the
engine is added, which is what bounds tiny requests. B is limited by the KV cache and by the engine's own maximum.

FACTORS is the share of the published bandwidth and FLOPs engines reach. It is fitted by hack/fit_speed.py on public
measurements (benchmarks/speed_points.yaml); docs/reference/truth.md has each of them beside the prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property

from flotilla.catalog.chips import WIDE_TYPES, Chip, chip_of
from flotilla.catalog.model_config import ATTENTION
from flotilla.catalog.models import Architecture
from flotilla.errors import InvalidSpec
from flotilla.planning.memory_fit import Fit, Settings, Weights, fit_memory
from flotilla.planning.resolve import Resolved

_GIGA, _TERA = 1e9, 1e12
_WIDE = "bf16"
_LAYER_PARTS = frozenset({"attention", "mlp", "recurrent"})
"""Parts of a model (fields of Parts) that every token is multiplied with; routed experts are counted apart."""
_TAIL = 0.01
"""Of the requests, what is beyond the 99th percentile."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What engines reach of the published figures, and what they add. Times are in seconds."""

    weights_bandwidth: float
    """Share of the memory bandwidth at which weights are read."""
    kv_bandwidth: float
    """The same of the KV cache, which lies in blocks."""
    compute: Mapping[str, float]
    """Share of the dense FLOPs that large multiplications reach, by type."""
    family: Mapping[str, float]
    """Correction of it by family of cards; 1 by default."""
    experts: float
    """Of that share, what the multiplications of routed experts reach, which are many and small."""
    attention: float
    """Share of the dense 16-bit FLOPs that the attention of a prompt reaches."""
    step_s: float
    """Per step: scheduling, sampling, and the answer's way to the client."""
    layer_s: float
    """Per layer of a step: what lies between the multiplications."""
    token_s: float
    """Per request and step."""
    request_s: float
    """Per request: HTTP, tokenizing, admission."""
    reduce_s: float
    """Per sum over all GPUs of a node, of which a layer needs two."""
    way_s: float
    """From the client to the engine's queue and back, in the time to the first token."""


FACTORS = Factors(
    weights_bandwidth=0.88,
    kv_bandwidth=0.81,
    compute={"bf16": 0.6, "fp8": 0.5, "int8": 0.5, "fp4": 0.3},
    family={
        "turing": 0.45,
        "volta": 0.56,
        "ampere": 0.96,
        "ada": 0.83,
        "ada-low-power": 0.35,
        "blackwell": 0.89,
        "blackwell-rtx": 1.5,
        "cdna3": 0.35,
        "cdna4": 0.35,
    },
    experts=0.32,
    attention=0.88,
    step_s=0.00073,
    layer_s=0.000027,
    token_s=0.0000046,
    request_s=0.001,
    reduce_s=0.000019,
    way_s=0.015,
)
"""Fitted, but for: int8, which is taken to be as fp8; request_s and way_s, which are assumed; turing and ada-low-power,
which lie between two measurements of theirs that differ (70 W cards lower their clock under load); cdna3, by one point
and by the ratio to an H200 that alpharomercoma/MI300X-vs-H200 reports; cdna4, of which there is no measurement."""


MEASURED = frozenset(
    {
        "amd-mi300x",
        "nvidia-a10g",
        "nvidia-a100-40gb",
        "nvidia-a100-80gb",
        "nvidia-a40",
        "nvidia-b200",
        "nvidia-gb200",
        "nvidia-h100-80gb",
        "nvidia-h200",
        "nvidia-l4",
        "nvidia-l40s",
        "nvidia-rtx-4090",
        "nvidia-rtx-5090",
        "nvidia-rtx-pro-6000",
        "nvidia-t4",
        "nvidia-v100-32gb",
    }
)
"""Classes of which a public measurement was compared."""
SPREAD_MEASURED, SPREAD_UNMEASURED = 1.4, 1.8
"""Published over predicted lies within this factor both ways for 19 of 20 measurements of classes with some; the other
is a guess for classes, and kinds of models, without any."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a figure is expected to be, and what it will hardly be outside of."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, expected: float, spread: float) -> "Range":
        """`spread` is a factor both ways."""
        return cls(expected / spread, expected, expected * spread)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one replica with requests of one shape, at saturation."""

    tasks_per_s: Range
    output_tokens_per_s: Range
    in_flight: int
    """Requests at one time."""
    single_tokens_per_s: Range
    """What one request alone gets."""
    bound: str
    """What takes the most time."""
    measured: bool
    """Whether measurements of this class of GPU were compared with the model."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """Of the mean request."""

    input_tokens: int
    output_tokens: int
    cached_share: float = 0.0
    """Of the prompt, what the engine's prefix cache has; the last token is always computed."""

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSpec(f"{getattr(self, name)} is less than 1.", field=f"--{name.replace('_', '-')}")
        if not 0 <= self.cached_share <= 1:
            raise InvalidSpec(f"{self.cached_share} is not a share from 0 to 1.", field="--cached")

    @property
    def computed_tokens(self) -> float:
        """Of the prompt, what has to be computed."""
        return max(1.0, self.input_tokens * (1 - self.cached_share))

    @property
    def mean_context(self) -> float:
        """Tokens that a request has in the KV cache half way through its answer."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class SpeedLimits:
    """What bounds the requests in flight on one replica."""

    kv_tokens: float
    """Tokens of context that fit into the KV cache."""
    sequences: int
    """The engine's own maximum."""
    step_tokens: int = 8192
    """Of prompts, what one step computes at most."""

    def batch(self, shape: RequestShape) -> float:
        """Requests of that shape in flight at saturation; below 1 not even one fits."""
        return min(float(self.sequences), self.kv_tokens / shape.mean_context)


@dataclass(frozen=True)
class SpeedModel:
    """A model with its weights on one or several GPUs of a kind.

    `compute` is the type that is multiplied (compute_type). Raises InvalidSpec for what has no speed to be computed.
    """

    architecture: Architecture
    weights: Weights
    compute: str
    chip: Chip
    gpus: int = 1
    factors: Factors = field(default=FACTORS, compare=False)

    def __post_init__(self) -> None:
        if self.gpus < 1 or (self.gpus > 1 and self.chip.slice_of):
            raise InvalidSpec(f"{self.gpus} x {self.chip.class_name} cannot share a model.", field="--gpus")
        if self.architecture.experts and not self.architecture.expert_parameters:
            raise InvalidSpec(
                "no speed is known for this mixture of experts, as its config.json does not say which layers have "
                "them: give --tasks-per-second",
                field="--model",
            )

    @cached_property
    def _head_parameters(self) -> int:
        return self.architecture.vocab_size * self.architecture.hidden_size

    @cached_property
    def _inner_parameters(self) -> int:
        """Those of the layers, without routed experts. Towers for images and draft layers do nothing for a token."""
        a = self.architecture
        idle = a.parts.vision + a.parts.draft if a.parts else 0
        return max(0, a.parameters - min(a.embedding_parameters, a.parameters) - a.expert_parameters - idle)

    @cached_property
    def _read_once(self) -> tuple[float, float]:
        """Bytes of the weights that every step reads, and of all routed experts. The input table is only looked up."""
        a, per_parameter = self.architecture, float(self.weights.bits) / 8
        kept = {name for name in self.weights.keeps if name in _LAYER_PARTS} if a.parts else set()
        wide = min(self._inner_parameters, sum(getattr(a.parts, name) for name in kept))
        inner = (self._inner_parameters - wide) * per_parameter + 2.0 * wide
        experts = a.expert_parameters * (2.0 if "experts" in self.weights.keeps else per_parameter)
        return inner + 2.0 * self._head_parameters, experts

    @cached_property
    def _flops_per_token(self) -> float:
        """As if all were one large multiplication: those of the routed experts count for as long as they take."""
        a = self.architecture
        dense = self._inner_parameters + self._head_parameters
        routed = a.expert_parameters * a.experts_per_token / a.experts if a.experts else 0.0
        return 2.0 * (dense + routed / self.factors.experts)

    @cached_property
    def _flops_per_s(self) -> float:
        """Of large multiplications on all GPUs."""
        f, family = self.factors, self.factors.family.get(self.chip.family, 1.0)
        wide = self.chip.wide_tflops * f.compute[_WIDE]
        narrow = self.chip.tflops.get(self.compute, 0.0) * f.compute.get(self.compute, 0.0)
        return max(wide, narrow) * family * _TERA * self.gpus

    @cached_property
    def _bytes_per_s(self) -> float:
        return self.chip.bandwidth_gb_per_s * _GIGA * self.gpus

    @cached_property
    def _layers(self) -> int:
        a, state = self.architecture, self.architecture.recurrent
        # Attention and a recurrent block beside each other are one layer.
        recurrent = state.layers if state and state.kind not in ATTENTION else 0
        return a.full_layers + a.sliding_layers + a.shared_kv_layers + recurrent

    def _row_bytes(self, kv_heads: int, head_dim: int) -> float:
        """Of one token in the KV cache of one layer, on all GPUs: a latent row is on each, and so are KV heads that are
        fewer than the GPUs."""
        a, size = self.architecture, self.weights.kv_element_bytes
        if a.latent_width:
            return float(a.latent_width * size * self.gpus)
        return 2.0 * max(kv_heads, self.gpus) * head_dim * size

    def _cache_bytes(self, context: float) -> float:
        """What one token reads of its request: the whole context in full layers, the window in others, and the state of
        recurrent ones, which it also writes."""
        a = self.architecture
        full = self._row_bytes(a.full_kv_heads or a.kv_heads, a.full_head_dim or a.head_dim) * context
        near = self._row_bytes(a.kv_heads, a.head_dim) * min(context, float(a.sliding_window or context))
        state = 2.0 * self.gpus * a.recurrent.layers * a.recurrent.bytes_per_layer(self.gpus) if a.recurrent else 0.0
        # Layers that share another's cache read it too; which kind it is of is not known, so it counts as the mean.
        reads = 1 + a.shared_kv_layers / max(1, a.full_layers + a.sliding_layers)
        return reads * (a.full_layers * full + a.sliding_layers * near) + state

    def _sums_s(self, tokens: float) -> float:
        """The sums over all GPUs that a step with so many tokens needs."""
        if self.gpus == 1:
            return 0.0
        moved = 2 * (self.gpus - 1) / self.gpus * tokens * self.architecture.hidden_size * 2
        return 2 * self._layers * moved / (self.chip.link_gb_per_s * _GIGA)

    def _touched(self, tokens: float) -> float:
        """Share of the experts that so many tokens reach, each going through its own at random."""
        a = self.architecture
        return 1 - (1 - a.experts_per_token / a.experts) ** tokens if a.experts else 0.0

    def decode_step_s(self, batch: float, context: float) -> float:
        """One token for each of `batch` requests with `context` tokens each."""
        f = self.factors
        always, experts = self._read_once
        read = (always + self._touched(batch) * experts) / (self._bytes_per_s * f.weights_bandwidth)
        multiply = batch * self._flops_per_token / self._flops_per_s
        cache = batch * self._cache_bytes(context) / (self._bytes_per_s * f.kv_bandwidth)
        fixed = f.step_s + self._layers * (f.layer_s + (2 * f.reduce_s if self.gpus > 1 else 0.0))
        return math.hypot(read, multiply) + cache + fixed + batch * f.token_s + self._sums_s(batch)

    def prefill_s(self, shape: RequestShape) -> float:
        """What the prompt of one request adds to the steps of the others."""
        a, new = self.architecture, shape.computed_tokens
        seen = new * (shape.input_tokens - new / 2)
        window = float(a.sliding_window or shape.input_tokens)
        attended = a.full_layers * seen + a.sliding_layers * min(seen, new * window)
        scores = 4.0 * a.heads * a.head_dim * attended
        wide = self.chip.wide_tflops * _TERA * self.gpus * self.factors.attention
        return new * self._flops_per_token / self._flops_per_s + scores / wide + self._sums_s(new)

    def tasks_per_s(self, shape: RequestShape, batch: float) -> float:
        """With `batch` requests in flight all the time."""
        step = self.decode_step_s(batch, shape.mean_context)
        whole = shape.output_tokens * step + batch * (self.prefill_s(shape) + self.factors.request_s)
        return batch / whole

    def token_interval_s(self, shape: RequestShape, batch: float) -> float:
        """Mean time from one token of an answer to the next, the prompts of others between them included."""
        return batch / (self.tasks_per_s(shape, batch) * shape.output_tokens)

    def estimate(self, shape: RequestShape, limits: SpeedLimits) -> Estimate:
        """At saturation, as a range. Raises InvalidSpec where not one request of the shape fits."""
        batch = limits.batch(shape)
        if batch < 1:
            raise InvalidSpec(
                f"Not one request of {shape.input_tokens} and {shape.output_tokens} tokens fits into the KV cache of "
                f"{limits.kv_tokens:.0f} tokens.",
                field="--input-tokens",
                reason="DoesNotFit",
            )
        tasks = self.tasks_per_s(shape, batch)
        measured = self.chip.class_name in MEASURED and not self.chip.slice_of
        a = self.architecture
        plain = a.kv_known and a.recurrent is None and not a.full_head_dim and not a.chunked
        spread = SPREAD_MEASURED if measured and plain else SPREAD_UNMEASURED
        return Estimate(
            tasks_per_s=Range.around(tasks, spread),
            output_tokens_per_s=Range.around(tasks * shape.output_tokens, spread),
            in_flight=int(batch),
            single_tokens_per_s=Range.around(self.tasks_per_s(shape, 1) * shape.output_tokens, spread),
            bound=self.bound(shape, batch),
            measured=measured,
        )

    def bound(self, shape: RequestShape, batch: float) -> str:
        """What takes the most time with so many requests in flight."""
        f, out, context = self.factors, shape.output_tokens, shape.mean_context
        always, experts = self._read_once
        parts = {
            "reading the weights": out
            * (always + self._touched(batch) * experts)
            / (self._bytes_per_s * f.weights_bandwidth),
            "reading the KV cache": out * batch * self._cache_bytes(context) / (self._bytes_per_s * f.kv_bandwidth),
            "computing the answers": out * batch * self._flops_per_token / self._flops_per_s,
            "computing the prompts": batch * self.prefill_s(shape),
            "the overhead per request": batch * f.request_s,
            "the overhead per step": out * (f.step_s + self._layers * f.layer_s + batch * f.token_s),
            "the links between the GPUs": out
            * (self._sums_s(batch) + (2 * f.reduce_s * self._layers if self.gpus > 1 else 0.0)),
        }
        return max(parts, key=lambda name: parts[name])

    def first_token_p99_s(self, shape: RequestShape, tasks_per_s: float, limits: SpeedLimits) -> float | None:
        """The 99th percentile of the time to the first token at a rate; None above saturation.

        Prompts arrive at random and are computed one after the other between the steps (the tail of an M/D/1 queue as
        full as the replica is); a request also waits for the step that is under way, and its prompt takes part in as
        many steps as it has chunks.
        """
        most = limits.batch(shape)
        batch = self.batch_at(shape, tasks_per_s, most=most)
        if batch is None:
            return None
        step = self.decode_step_s(batch, shape.mean_context)
        service = self.prefill_s(shape) + self.factors.request_s
        busy = min(tasks_per_s / self.tasks_per_s(shape, most), 0.999)
        waits = max(0.0, math.log(busy / _TAIL)) * service / (2 * (1 - busy))
        chunks = math.ceil(shape.computed_tokens / limits.step_tokens)
        return self.factors.way_s + (1 + chunks) * step + service + waits

    def tasks_per_s_within(self, shape: RequestShape, limits: SpeedLimits, first_token_s: float) -> float | None:
        """The highest rate at which the 99th percentile of the time to the first token keeps to `first_token_s`.

        None where a request that is alone takes longer.
        """
        low, high = 0.0, self.tasks_per_s(shape, limits.batch(shape))
        for _ in range(40):
            middle = (low + high) / 2
            first = self.first_token_p99_s(shape, middle, limits)
            if first is not None and first <= first_token_s:
                low = middle
            else:
                high = middle
        return low if low > high / 1e6 and low > 1e-6 else None

    def batch_at(self, shape: RequestShape, tasks_per_s: float, *, most: float) -> float | None:
        """Requests in flight at a rate; None where even `most` of them make less."""
        if self.tasks_per_s(shape, most) < tasks_per_s:
            return None
        low, high = 0.0, most
        for _ in range(50):
            middle = (low + high) / 2
            if self.tasks_per_s(shape, middle) < tasks_per_s:
                low = middle
            else:
                high = middle
        return high


LEAST_INTERVALS = 1000
"""Between tokens, before a comparison is shown."""


@dataclass(frozen=True, slots=True)
class ObservedSpeed:
    """What the pods of a deployment did in some time, by their own histograms. Means over requests or tokens."""

    requests: int
    input_tokens: float
    """Of the prompt, cached ones included."""
    output_tokens: float
    cached_share: float
    in_flight: float
    """Requests that ran on one replica while it was busy."""
    token_intervals: int
    token_interval_s: float
    first_tokens: int
    first_token_s: float | None
    """From a request's arrival, with its time in the queue; None where the engine does not measure it."""
    age_s: float
    """Since the last token that is counted."""


@dataclass(frozen=True, slots=True)
class SpeedCorrection:
    """What was observed over what is computed for the same load: above 1 the deployment is faster."""

    factor: float
    """Of tokens per second."""
    computed_interval_s: float
    computed_first_token_s: float
    observed: ObservedSpeed


_SPREAD_OBSERVED = 1.2
"""Both ways, for another load than the one that was observed."""


def observed_range(computed: Range, factor: float) -> Range:
    """A computed speed of a deployment, corrected by the factor by which its own engines differ."""
    return Range.around(computed.expected * factor, _SPREAD_OBSERVED)


def correction(resolved: Resolved, observed: ObservedSpeed) -> SpeedCorrection | None:
    """Compare with what is computed for the same load; None for too few tokens, or where no speed is known."""
    if observed.token_intervals < LEAST_INTERVALS or observed.token_interval_s <= 0:
        return None
    shape = RequestShape(
        max(1, round(observed.input_tokens)), max(1, round(observed.output_tokens)), observed.cached_share
    )
    try:
        model = planned_model(resolved)
    except InvalidSpec:
        return None
    batch = max(1.0, observed.in_flight)
    interval = model.token_interval_s(shape, batch)
    first = model.factors.way_s + model.decode_step_s(batch, shape.mean_context) + model.prefill_s(shape)
    return SpeedCorrection(interval / observed.token_interval_s, interval, first, observed)


def memory_limits(
    architecture: Architecture,
    weights: Weights,
    engine: Settings,
    shape: RequestShape,
    *,
    memory_gib: Decimal,
    gpus: int,
) -> SpeedLimits:
    """What the memory of the GPUs allows, by the memory fit for requests as long as the mean one."""
    context = max(1, round(shape.mean_context))
    longer = replace(architecture, context_length=max(architecture.context_length, context))
    fit = fit_memory(longer, weights, engine, memory_gib=memory_gib, gpus=gpus, context_length=context)
    tokens = float(fit.concurrency * context) if architecture.kv_known else _free_tokens(architecture, weights, fit)
    return SpeedLimits(tokens, engine.sequences, engine.batched_tokens)


def _free_tokens(architecture: Architecture, weights: Weights, fit: Fit) -> float:
    """For layers whose state is of another kind: the tokens that the attention layers alone could keep."""
    a = architecture
    row = a.latent_width or 2 * a.kv_heads * a.head_dim
    per_token = row * weights.kv_element_bytes * (a.full_layers + a.sliding_layers)
    return fit.kv_bytes * fit.gpus / per_token if per_token else math.inf


def planned_speed(resolved: Resolved, shape: RequestShape) -> tuple[SpeedModel, SpeedLimits]:
    """Of what a spec resolves to. Raises InvalidSpec with --tasks-per-second as the remedy where none is known."""
    model, engine = planned_model(resolved), resolved.settings
    if engine is None:
        raise InvalidSpec("no speed is known without the engine's settings", field="--engine", reason="SpeedUnknown")
    accelerator = resolved.accelerator
    limits = memory_limits(
        model.architecture, model.weights, engine, shape, memory_gib=accelerator.memory_gib, gpus=resolved.gpus
    )
    return model, limits


def planned_model(resolved: Resolved) -> SpeedModel:
    """The same without the limits of memory."""
    architecture = resolved.architecture
    if architecture is None or resolved.settings is None:
        raise InvalidSpec(
            "no speed is known for a model that is not in the catalogue: give its config.json, or --tasks-per-second. "
            f"{resolved.near}".strip(),
            field="--model",
            reason="SpeedUnknown",
        )
    if architecture.encoder:
        raise InvalidSpec(
            "no speed is known for models that embed or rank, which write no answer: give --tasks-per-second",
            field="--model",
            reason="SpeedUnknown",
        )
    chosen, chip = resolved.quantization, chip_of(resolved.accelerator)
    return SpeedModel(architecture, chosen.weights, compute_type(chosen.method, chip), chip, resolved.gpus)


def compute_type(method: str, chip: Chip) -> str:
    """The type in which a GPU multiplies weights of a quantization method: 16 bits unless both have a narrower one.

    AWQ, GPTQ, bitsandbytes, GGUF and MXFP4 weights are widened before they are multiplied.
    """
    wanted = {
        "fp8": "fp8",
        "fp8-per-channel": "fp8",
        "int8-w8a8": "int8",
        "nvfp4": "fp4",
    }.get(method, _WIDE)
    return wanted if wanted in chip.tflops or wanted in WIDE_TYPES else _WIDE
