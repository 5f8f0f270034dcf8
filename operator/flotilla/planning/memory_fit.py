"""Whether a model fits in GPU memory, on how many GPUs and with which context length.

The KV cache is vLLM's own planner as a closed form (kv_cache) and is exact in tokens; weights are within 2 % of what
servers print; working memory is an estimate, which makes the band between `Fits` and `DoesNotFit`.
Source: docs/reference/memory-fit.md.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from flotilla.api.model_deployment import ArchitectureSpec, Embeddings, ModelDeploymentSpec
from flotilla.api.types import amount
from flotilla.catalog.accelerators import Accelerator
from flotilla.catalog.engines import MemoryProfile, Profile
from flotilla.catalog.model_config import LayerKind
from flotilla.catalog.models import Architecture, KnownModel, RecurrentState
from flotilla.errors import InvalidSpec
from flotilla.planning.additions import NO_DRAFT, NO_SLOTS, DraftModel, LoraSlots, draft, flag_text, lora_bytes
from flotilla.planning.kv_cache import layout

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
    """The engine's settings or defaults about the memory of a GPU."""

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
    images: bool = True
    """Whether the engine tries its memory with the largest images that the model takes."""
    videos: bool = True
    """Likewise with the longest video."""
    lora: LoraSlots = NO_SLOTS
    draft: DraftModel = NO_DRAFT
    """What is loaded beside the model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How weights and cache are stored."""

    bits: Decimal
    """Per quantized parameter, scales included."""
    kv_element_bytes: int
    keeps: frozenset[str] = frozenset()
    """Parts of the model (fields of Parts) that stay in 16 bits beside those that always do."""
    group_size: int = 0
    """Inputs of a layer that share a scale, and must lie on one GPU; 0 where nothing forbids to divide them."""
    block_size: int = 0
    """Side of the squares of inputs and outputs that share a scale; 0 likewise."""
    expert_units: tuple[int, int] = (1, 1)
    """The kernel fills the hidden size and the width of an expert up to multiples of these."""


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
    most_sequences: int = 0
    """Requests for which recurrent layers have a state; 0 for models without such layers."""
    safe_context: int = 0
    """Like `longest_context`, with a tenth of the cache to spare for the estimate's error."""
    why_unknown: str = ""
    """With the verdict UNKNOWN: why the cache is not known, as a clause."""
    beside_bytes: int = 0
    """Of `weights_bytes`, what LoRA slots and a draft model take."""

    @property
    def headroom_bytes(self) -> int:
        """Cache beyond one request of the whole context; negative where that does not fit."""
        if not self.concurrency:
            return self.kv_bytes
        return int(self.kv_bytes - self.kv_bytes / self.concurrency)


_ALWAYS_WIDE = frozenset({"embeddings", "head", "vision", "other"})
"""Parts that quantization leaves in 16 bits: vLLM's online methods do, and so do the usual recipes of publishers."""
_NOT_LOADED = "draft"
"""Layers for multi-token prediction are loaded for speculative decoding only."""


def weights_bytes(architecture: Architecture, weights: Weights, *, gpus: int) -> int:
    """Weights on each of `gpus` GPUs."""
    parts = architecture.parts
    if parts is None:
        wide = min(architecture.embedding_parameters, architecture.parameters)
        narrow = architecture.parameters - wide
    else:
        sizes = {name: size for name, size in asdict(parts).items() if name != _NOT_LOADED}
        wide = sum(size for name, size in sizes.items() if name in _ALWAYS_WIDE | weights.keeps)
        narrow = sum(sizes.values()) - wide
        narrow += _filled_up(architecture, weights, gpus)
        # A checkpoint may hold more than its shapes account for, such as heads for a task.
        wide += max(0, architecture.parameters - parts.total)
    whole = Fraction(_WHOLE_BITS, 8)
    # vLLM divides the towers of Qwen's models over the GPUs, and gives each GPU a copy of others'.
    copied = parts.vision if parts is not None and not architecture.multimodal.startswith("qwen") else 0
    return int((narrow * Fraction(weights.bits) / 8 + (wide - copied) * whole) / gpus + copied * whole)


def _filled_up(architecture: Architecture, weights: Weights, gpus: int) -> int:
    """Parameters that a kernel adds to the routed experts so that their sides are multiples of its tiles."""
    hidden_unit, width_unit = weights.expert_units
    hidden, width = architecture.hidden_size, architecture.expert_width // gpus
    if not architecture.expert_parameters or not width or "experts" in weights.keeps:
        return 0
    grown = Fraction(-(-hidden // hidden_unit) * hidden_unit * -(-width // width_unit) * width_unit, hidden * width)
    return int(architecture.expert_parameters * (grown - 1))


def working_bytes(architecture: Architecture, settings: Settings, *, gpus: int, context: int = 0) -> int:
    """Activations of the largest step, logits of every sequence, images on their way, and the engine's own base.

    `context` is what the engine is started with, which bounds the video that some models are tried with; 0: the model's
    own. Within 0.5 GiB of what servers of vLLM's v1 engine printed (tests/planning/test_startup_logs.py).
    """
    shards = gpus if settings.tensor_parallel else 1
    per_token = 2 * (2 * architecture.hidden_size + 3 * architecture.intermediate_size // shards)
    logits = 10 * architecture.vocab_size * settings.sequences
    step = settings.batched_tokens * per_token + logits
    tower = architecture.tower
    if tower is not None and tower.largest_image_tokens and settings.images:
        # vLLM runs as many of the largest images as a step has tokens for, or one of the longest videos, keeps what
        # comes out, and then runs the step.
        images = max(1, settings.batched_tokens // tower.largest_image_tokens)
        if settings.videos:
            images = max(images, _video_images(architecture, context))
        kept = images * tower.largest_image_tokens * architecture.hidden_size * tower.levels * 2
        per_patch = (6 if tower.gated else 3) * tower.intermediate_size + 8 * tower.hidden_size
        encoding = images * tower.largest_image_patches * per_patch
        step = max(step + kept, encoding)
    return int(settings.base_gib * GIB) + step


def _video_images(architecture: Architecture, context: int) -> int:
    """The longest video with which the engine tries a model, in images of the largest size; 0 for no video."""
    tower = architecture.tower
    if tower is None or not tower.video_images:
        return 0
    tokens = context or architecture.context_length
    return max(1, min(tower.video_images, tokens // tower.largest_image_tokens))


def legal_counts(
    architecture: Architecture, settings: Settings, weights: Weights, *, at_most: int = MAX_GPUS
) -> list[int]:
    """The GPU counts over which the model can be split."""
    if not settings.tensor_parallel:
        return list(range(1, at_most + 1))
    return [gpus for gpus in range(1, at_most + 1) if not unsplittable(architecture, weights, gpus)]


def unsplittable(architecture: Architecture, weights: Weights, gpus: int) -> str:
    """Why tensor parallelism over `gpus` is impossible, as a clause; empty where it is possible.

    Heads are not divided, and neither are the groups or squares of a quantized checkpoint that share a scale: engines
    refuse them when they load (vllm/model_executor/layers/quantization).
    """
    if not architecture.tensor_parallel(gpus):
        heads = f"{architecture.heads} attention heads and {architecture.kv_heads} KV heads"
        return f"{heads} cannot be split over {gpus} GPUs"
    unit = weights.group_size or weights.block_size
    if gpus == 1 or not unit:
        return ""
    widths = {}
    if not architecture.latent_width:
        widths["of the attention's output"] = architecture.heads * architecture.head_dim
    parts = architecture.parts
    if parts is None or parts.mlp:
        widths["of the MLP"] = architecture.intermediate_size
    if architecture.experts and weights.block_size:
        widths["of an expert"] = architecture.expert_width
    if architecture.experts and parts is not None and not weights.block_size:
        # What counts as MLP beside experts is shared ones, of another width.
        widths.pop("of the MLP", None)
    for name, width in widths.items():
        if width % (unit * gpus):
            return (
                f"the width {name} ({width}) over {gpus} GPUs is no multiple of the {unit} weights that share a scale "
                "in this checkpoint"
            )
    return ""


@lru_cache(maxsize=256)
def fit_memory(
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
    counts = [gpus] if gpus is not None else legal_counts(architecture, settings, weights)
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


_UNCERTAIN = Fraction(1, 3)
"""Share of the working memory that the engine may need less of than the estimate: no published log shows more."""


def _judge(
    architecture: Architecture,
    weights: Weights,
    settings: Settings,
    *,
    memory_gib: Decimal,
    gpus: int,
    context_length: int | None,
) -> Fit:
    own = architecture.context_length or (context_length or LEAST_CONTEXT)
    limits = [own] if context_length is not None else _limits(architecture, settings, own)
    for limit, shorter in zip(limits, [*limits[1:], 0], strict=True):
        # A shorter context leaves more memory where the engine tries a video as long as the context.
        fit = _judge_up_to(
            limit, architecture, weights, settings, memory_gib=memory_gib, gpus=gpus, context_length=context_length
        )
        if fit.longest_context > shorter:
            break
    return fit


def _limits(architecture: Architecture, settings: Settings, own: int) -> list[int]:
    """The longest contexts with which the engine needs the same working memory, the longest first."""
    tower = architecture.tower
    if tower is None or not settings.videos or not settings.images:
        return [own]
    unit, most = tower.largest_image_tokens, _video_images(architecture, own)
    return [own, *(images * unit - 1 for images in range(most, 1, -1))]


def _judge_up_to(
    limit: int,
    architecture: Architecture,
    weights: Weights,
    settings: Settings,
    *,
    memory_gib: Decimal,
    gpus: int,
    context_length: int | None,
) -> Fit:
    beside = settings.draft.weights_bytes(gpus) + lora_bytes(architecture, settings.lora, gpus=gpus)
    held = weights_bytes(architecture, weights, gpus=gpus) + beside
    working = working_bytes(architecture, settings, gpus=gpus, context=context_length or limit)
    memory = int(memory_gib * GIB)
    usable = int(memory * settings.utilization)
    cache = usable - held - working
    # A server that starts at all has room for one block more than the least that it may need leaves.
    at_best = cache + int(working * _UNCERTAIN)
    figures = Fit(
        DOES_NOT_FIT, gpus, context_length or limit, held, working, max(cache, 0), memory, limit, Fraction(0),
        beside_bytes=beside,
    )  # fmt: skip
    if architecture.encoder:
        return _judge_encoder(figures, cache=cache, at_best=at_best, sequences=settings.sequences)
    if why := architecture.kv_unknown or settings.draft.unknown:
        verdict = UNKNOWN if at_best > 0 else DOES_NOT_FIT
        known = context_length or 0
        return replace(figures, verdict=verdict, context_length=known, longest_context=0, why_unknown=why)
    parts = layout(
        architecture,
        gpus=gpus if settings.tensor_parallel else 1,
        element_bytes=weights.kv_element_bytes,
        draft=settings.draft,
    )
    split = 1 if settings.tensor_parallel else gpus

    def longest(budget: int) -> int:
        return parts.longest(budget * split // settings.slots, batched_tokens=settings.batched_tokens, at_most=limit)

    room = longest(cache)
    needed = context_length or min(limit, LEAST_CONTEXT)
    verdict = FITS if room >= needed else TIGHT if longest(at_best) >= needed else DOES_NOT_FIT
    # An engine refuses to start where one request of the whole context does not fit, so a length that the user did
    # not ask for stays a tenth below the estimate.
    safe = longest(cache * 9 // 10)
    length = context_length or max(_rounded(safe, limit), needed)
    concurrency = parts.concurrency(max(cache, 0) * split, length, batched_tokens=settings.batched_tokens)
    most = parts.blocks(max(cache, 0) * split) if parts.state_groups else 0
    return replace(
        figures,
        verdict=verdict,
        context_length=length,
        longest_context=room,
        concurrency=concurrency,
        most_sequences=most,
        safe_context=safe,
    )


def _judge_encoder(figures: Fit, *, cache: int, at_best: int, sequences: int) -> Fit:
    """Without a cache, what remains after weights and working memory need only be there."""
    verdict = FITS if cache >= 0 else TIGHT if at_best >= 0 else DOES_NOT_FIT
    longest = figures.longest_context if verdict != DOES_NOT_FIT else 0
    return replace(
        figures, verdict=verdict, longest_context=longest, safe_context=longest, concurrency=Fraction(sequences)
    )


_HYBRID_PLANNER = "vllm"
"""The engine whose rules for recurrent layers `layout` follows."""
DEFAULT_MEMORY_GIB = 16
"""Of a pod, per GPU, where the spec asks for no other."""
_LENGTHENING_FLAGS = ("--hf-overrides", "--rope-scaling", "--json-model-override-args")
"""Users' args that make a model take more tokens than its config.json allows."""
_SHORTEST_START_S, _LONGEST_START_S = 600, 1800
_SMALL_GIB, _LARGE_GIB = 16, 130


class DoesNotFit(InvalidSpec):
    """The model needs more memory than the accelerator has; reported in FitsMemory, before any GPU is taken."""

    def __init__(self, message: str, fit: Fit) -> None:
        super().__init__(message, field="spec.accelerator", reason=DOES_NOT_FIT)
        self.fit = fit


@dataclass(frozen=True, slots=True)
class Fitted:
    """GPUs and context to use: `context_length` 0 is the engine's own. `fit` is None for an unknown model."""

    gpus: int
    context_length: int
    fit: Fit | None
    architecture: Architecture | None
    settings: Settings
    """What the engine assumes about the memory of a GPU, after the users' own flags."""


def fitted(
    spec: ModelDeploymentSpec,
    *,
    known: KnownModel | None,
    weights: Weights,
    profile: Profile,
    accelerator: Accelerator,
    lora: LoraSlots = NO_SLOTS,
    find: Callable[[str], KnownModel | None] = lambda _: None,
) -> Fitted:
    """Decide; raises InvalidSpec for a wrong count or context, and DoesNotFit with the figures and what would help.

    `lora` are the adapters for which the engine is started; `find` looks up a draft model by its hub id.
    """
    engine = settings(profile.memory, accelerator, spec.engine.args)
    count = spec.accelerator.count
    if accelerator.shared and (count or 1) > 1:
        raise InvalidSpec(
            f"{count} shares of {accelerator.class_name} are not one larger GPU. Use 1, or a larger class.",
            field="spec.accelerator.count",
            reason="IllegalCount",
        )
    if accelerator.shared or accelerator.vendor == "cpu":
        count = 1
    asked = spec.model.context_length
    architecture = _architecture(spec, known)
    if architecture is None:
        return Fitted(count or 1, asked or 0, None, None, engine)
    architecture = _context_checked(architecture, asked, spec.engine.args)
    if architecture.recurrent is not None and profile.name != _HYBRID_PLANNER:
        why = f"{profile.name} keeps the states of recurrent layers in a pool of its own, by rules that are not known"
        architecture = replace(architecture, kv_unknown=why)
    drafted = draft(architecture, spec.engine.args, profile.memory.speculation, find)
    engine = replace(engine, lora=lora, draft=drafted)
    _check_count(architecture, engine, weights, count)
    memory_gib = accelerator.memory_gib or _pod_memory_gib(spec)
    fit = fit_memory(architecture, weights, engine, memory_gib=memory_gib, gpus=count, context_length=asked)
    if fit.verdict == DOES_NOT_FIT:
        raise DoesNotFit(_refusal(spec, fit, accelerator, architecture, weights), fit)
    if fit.most_sequences and fit.most_sequences < engine.sequences:
        raise DoesNotFit(
            f"{fit.gpus} x {accelerator.class_name} can hold the recurrent state of {fit.most_sequences} requests, and "
            f"{profile.name} sets room aside for {engine.sequences} when it starts. Use "
            f"{profile.memory.sequences_flag}={fit.most_sequences} or less in spec.engine.args, or a class with more "
            "memory.",
            fit,
        )
    context = asked or (fit.context_length if fit.longest_context else 0)
    return Fitted(fit.gpus, context, fit, architecture, engine)


def settings(memory: MemoryProfile, accelerator: Accelerator, args: Sequence[str]) -> Settings:
    """What the engine assumes about this card, after the users' own flags."""
    name, size = accelerator.class_name, accelerator.memory_gib
    card = next(
        (row for row in memory.cards if size >= row.from_gib and not name.startswith(row.except_classes)),
        memory.cards[-1],
    )
    return Settings(
        utilization=_flag(args, memory.utilization_flag) or memory.utilization,
        batched_tokens=int(_flag(args, memory.batched_tokens_flag) or card.batched_tokens),
        sequences=int(_flag(args, memory.sequences_flag) or card.sequences),
        base_gib=memory.base_gib - (memory.graphs_gib if _is_given(args, (memory.eager_flag,)) else 0),
        tensor_parallel=memory.tensor_parallel,
        slots=memory.slots,
        images=not _is_given(args, memory.text_only_flags) and not _none_of(args, memory.media_limit_flag, "image"),
        videos=not _none_of(args, memory.media_limit_flag, "video"),
    )


def startup_seconds(fit: Fit | None) -> int:
    """How long a start may take: 10 minutes for small models to 30 for those of 130 GiB, and for unknown ones."""
    if fit is None:
        return _LONGEST_START_S
    gib = fit.weights_bytes * fit.gpus / GIB
    share = min(max((gib - _SMALL_GIB) / (_LARGE_GIB - _SMALL_GIB), 0.0), 1.0)
    return 60 * round((_SHORTEST_START_S + share * (_LONGEST_START_S - _SHORTEST_START_S)) / 60)


def _is_given(args: Sequence[str], flags: Sequence[str]) -> bool:
    return any(argument.replace("_", "-").partition("=")[0] in flags for argument in args if argument)


def _none_of(args: Sequence[str], flag: str, media: str) -> bool:
    """Whether users' args allow no image or video in a prompt: `--flag '{"video": 0}'`, or `video=0`."""
    value = flag_text(args, flag)
    return bool(value) and re.search(rf"""\b{media}["']?\s*[:=]\s*0\b""", value) is not None


def _flag(args: Sequence[str], flag: str) -> Decimal | None:
    """The value of a flag among users' args, given as `--flag value` or `--flag=value`; the last one counts."""
    found: Decimal | None = None
    for index, argument in enumerate(args):
        name, equals, value = argument.replace("_", "-").partition("=")
        if flag and name == flag:
            text = value if equals else args[index + 1] if index + 1 < len(args) else ""
            number = amount(text)
            found = number if number is not None and number > 0 else found
    return found


def _architecture(spec: ModelDeploymentSpec, known: KnownModel | None) -> Architecture | None:
    given = spec.model.architecture
    if given is not None:
        return from_spec(given)
    return known.architecture if known is not None else None


def from_spec(given: ArchitectureSpec) -> Architecture:
    """The facts of spec.model.architecture."""
    tables = 1 if given.embeddings is Embeddings.TIED else 2
    if given.experts and not (given.expert_width and 0 < given.experts_per_token <= given.experts):
        raise InvalidSpec(
            f"{given.experts} experts need expertWidth above 0 and expertsPerToken from 1 to {given.experts}: "
            "moe_intermediate_size and num_experts_per_tok of the config.json.",
            field="spec.model.architecture",
        )
    return Architecture(
        parameters=given.parameters_millions * 1_000_000,
        embedding_parameters=given.vocab_size * given.hidden_size * tables,
        hidden_size=given.hidden_size,
        intermediate_size=given.intermediate_size,
        vocab_size=given.vocab_size,
        heads=given.attention_heads,
        kv_heads=given.kv_heads,
        head_dim=given.head_dim,
        full_layers=given.layers - given.sliding_window_layers,
        sliding_layers=given.sliding_window_layers,
        sliding_window=given.sliding_window,
        latent_width=given.latent_width,
        context_length=given.max_context_length,
        experts=given.experts,
        experts_per_token=given.experts_per_token,
        expert_width=given.expert_width,
        expert_parameters=3
        * given.hidden_size
        * given.expert_width
        * given.experts
        * (given.expert_layers or given.layers + given.recurrent_layers),
        recurrent=RecurrentState(
            LayerKind.MAMBA2, given.recurrent_layers, 0, given.recurrent_state_bytes, state_bytes=1
        )
        if given.recurrent_layers
        else None,
    )


def _context_checked(architecture: Architecture, asked: int | None, args: Sequence[str]) -> Architecture:
    own = architecture.context_length
    if asked is None or not own or asked <= own:
        return architecture
    if any(argument.replace("_", "-").startswith(_LENGTHENING_FLAGS) for argument in args):
        return replace(architecture, context_length=asked)
    raise InvalidSpec(
        f"{asked} tokens are more than the {own} that the model was made for. Use at most {own}; where the model "
        f"supports it, lengthen it with one of {', '.join(_LENGTHENING_FLAGS)} in spec.engine.args.",
        field="spec.model.contextLength",
        reason="ContextTooLong",
    )


def _check_count(architecture: Architecture, engine: Settings, weights: Weights, count: int | None) -> None:
    if count is None or not engine.tensor_parallel:
        return
    why = unsplittable(architecture, weights, count)
    if not why:
        return
    legal = ", ".join(map(str, legal_counts(architecture, engine, weights, at_most=16)))
    raise InvalidSpec(
        f"{why[0].upper()}{why[1:]}. Use one of {legal}, or leave spec.accelerator.count out.",
        field="spec.accelerator.count",
        reason="IllegalCount",
    )


def _pod_memory_gib(spec: ModelDeploymentSpec) -> Decimal:
    wanted = amount(spec.resources.memory) if spec.resources.memory else None
    return wanted / GIB if wanted is not None else Decimal(DEFAULT_MEMORY_GIB)


def _refusal(
    spec: ModelDeploymentSpec, fit: Fit, accelerator: Accelerator, architecture: Architecture, weights: Weights
) -> str:
    """The figures, and every remedy that would really help."""
    needed = fit.context_length
    beside = f" ({fit.beside_bytes / GIB:.1f} of them for LoRA slots and a draft model)" if fit.beside_bytes else ""
    figures = (
        f"{fit.gpus} x {accelerator.class_name} ({fit.memory_bytes / GIB:.1f} GiB each) cannot hold the model with "
        f"{needed} tokens of context: weights take {fit.weights_bytes / GIB:.1f} GiB of each GPU{beside} and the "
        f"engine about {fit.working_bytes / GIB:.1f} GiB, which leaves {fit.kv_bytes / GIB:.1f} GiB for the KV cache."
    )
    remedies = []
    if fit.safe_context >= 256:
        remedies.append(f"spec.model.contextLength of at most {fit.safe_context}")
    if spec.accelerator.count is not None and not unsplittable(architecture, weights, fit.gpus * 2):
        remedies.append(f"spec.accelerator.count above {fit.gpus} (or none, for the fewest that fit)")
    if str(spec.quantization.method) in ("auto", "none"):
        remedies.append("a checkpoint with fewer bits (awq, gptq, fp8) in spec.model.source")
    remedies.append("another spec.accelerator.class with more memory")
    return f"{figures} Use {', '.join(remedies[:-1])}{' or ' if remedies[:-1] else ''}{remedies[-1]}."
