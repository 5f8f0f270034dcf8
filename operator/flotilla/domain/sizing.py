"""Does a model fit, on how many GPUs, with which context, for how many requests at one time. Bytes are of one GPU.

The budget is the engine's own: memory x utilization - weights - working memory. What is left is KV cache, whose size in
tokens is exact (kv_cache). The working memory is an estimate from published start-up logs: between what is surely too
little (`tight`) and what is surely enough lies a band in which Flotilla admits a plan and says that it is tight.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from flotilla.domain.architecture import Architecture
from flotilla.domain.kv_cache import layout

GIB = 2**30
MAX_GPUS = 8
"""What one node has, as a rule; tensor parallelism does not leave it."""
LEAST_CONTEXT = 4096
"""The context that a GPU count must have room for where none was asked for."""
_WHOLE_BITS = 16
_ROUND_TOKENS = 1024

FITS, TIGHT, DOES_NOT_FIT, UNKNOWN = "Fits", "Tight", "DoesNotFit", "Unknown"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engine is told, or assumes, about the memory of a GPU."""

    utilization: Decimal
    """Share of the whole card that the engine may use."""
    batched_tokens: int
    """Most tokens of one step."""
    sequences: int
    """Most requests of one step."""
    base_gib: Decimal
    """CUDA context, communication buffers and graphs."""
    tensor_parallel: bool = True
    """False: the engine gives each GPU some layers, so that any number of GPUs will do."""
    slots: int = 1
    """Requests for which the engine sets the whole context aside at start."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How weights and cache are stored."""

    bits: Decimal
    """Per parameter, scales included; embeddings stay in 16 bits."""
    kv_element_bytes: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer. Bytes are of one GPU; what is not known is 0."""

    verdict: str
    gpus: int
    context_length: int
    weights_bytes: int
    working_bytes: int
    """What the engine needs beside weights and cache."""
    kv_bytes: int
    memory_bytes: int
    longest_context: int
    """The longest request that has room, at most the model's own length."""
    concurrency: Fraction
    """Requests of `context_length` that fit at one time."""

    @property
    def headroom_bytes(self) -> int:
        """Cache beyond one request of the whole context; negative where that does not fit."""
        if not self.concurrency:
            return self.kv_bytes
        return int(self.kv_bytes - self.kv_bytes / self.concurrency)


def weights_bytes(architecture: Architecture, bits: Decimal, *, gpus: int) -> int:
    """Weights on each of `gpus` GPUs."""
    embeddings = min(architecture.embedding_parameters, architecture.parameters)
    rest = architecture.parameters - embeddings
    total = rest * Fraction(bits) / 8 + embeddings * Fraction(_WHOLE_BITS, 8)
    return int(total / gpus)


def working_bytes(architecture: Architecture, settings: Settings, *, gpus: int) -> int:
    """Activations of the largest step, logits of every sequence, and the engine's own base.

    Within a tenth of the cache that servers of vLLM's v1 engine printed (tests/unit/test_sizing.py).
    """
    shards = gpus if settings.tensor_parallel else 1
    per_token = 2 * (8 * architecture.hidden_size + 3 * architecture.intermediate_size // shards)
    logits = 10 * architecture.vocab_size * settings.sequences
    return int(settings.base_gib * GIB) + settings.batched_tokens * per_token + logits


def legal_counts(architecture: Architecture, settings: Settings, *, at_most: int = MAX_GPUS) -> list[int]:
    """The GPU counts over which the model can be split."""
    return [
        gpus for gpus in range(1, at_most + 1) if not settings.tensor_parallel or architecture.tensor_parallel(gpus)
    ]


@lru_cache(maxsize=256)
def fit(
    architecture: Architecture,
    weights: Weights,
    settings: Settings,
    *,
    memory_gib: Decimal,
    gpus: int | None,
    context_length: int | None,
) -> Fit:
    """Judge `gpus` GPUs, or find the fewest that fit; judge `context_length` tokens, or find the most.

    Where nothing fits the answer is that of the largest legal count.
    """
    counts = [gpus] if gpus is not None else legal_counts(architecture, settings)
    answers = [
        _judge(architecture, weights, settings, memory_gib=memory_gib, gpus=count, context_length=context_length)
        for count in counts
    ]
    return _best(answers)


def _rounded(tokens: int, own: int) -> int:
    return tokens if tokens == own or tokens < _ROUND_TOKENS else tokens // _ROUND_TOKENS * _ROUND_TOKENS


def _best(answers: Iterable[Fit]) -> Fit:
    order = (FITS, UNKNOWN, TIGHT, DOES_NOT_FIT)
    ranked = list(answers)
    best = min(order.index(answer.verdict) for answer in ranked)
    found = [answer for answer in ranked if order.index(answer.verdict) == best]
    return found[-1] if order[best] == DOES_NOT_FIT else found[0]


def _judge(
    architecture: Architecture,
    weights: Weights,
    settings: Settings,
    *,
    memory_gib: Decimal,
    gpus: int,
    context_length: int | None,
) -> Fit:
    held = weights_bytes(architecture, weights.bits, gpus=gpus)
    working = working_bytes(architecture, settings, gpus=gpus)
    memory = int(memory_gib * GIB)
    usable = int(memory * settings.utilization)
    cache = usable - held - working
    # A server that starts at all has room for one block more than half of the estimate leaves.
    at_best = usable - held - working // 2
    if not architecture.kv_known:
        verdict = UNKNOWN if at_best > 0 else DOES_NOT_FIT
        return Fit(verdict, gpus, context_length or 0, held, working, max(cache, 0), memory, 0, Fraction(0))
    parts = layout(architecture, gpus=gpus if settings.tensor_parallel else 1, element_bytes=weights.kv_element_bytes)
    split = 1 if settings.tensor_parallel else gpus
    own = architecture.context_length or (context_length or LEAST_CONTEXT)

    def longest(budget: int) -> int:
        return parts.longest(budget * split // settings.slots, batched_tokens=settings.batched_tokens, at_most=own)

    room = longest(cache)
    needed = context_length or min(own, LEAST_CONTEXT)
    verdict = FITS if room >= needed else TIGHT if longest(at_best) >= needed else DOES_NOT_FIT
    # An engine refuses to start where one request of the whole context does not fit, so what nobody asked for stays a
    # tenth below the estimate.
    length = context_length or max(_rounded(longest(cache * 9 // 10), own), needed)
    concurrency = parts.concurrency(max(cache, 0) * split, length, batched_tokens=settings.batched_tokens)
    return Fit(verdict, gpus, length, held, working, max(cache, 0), memory, room, concurrency)
