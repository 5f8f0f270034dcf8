"""From a spec to the memory fit of its model: which facts count, and what to say when they do not add up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from flotilla.api.model import ArchitectureSpec, Embeddings
from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.domain import sizing
from flotilla.domain.accelerators import Accelerator
from flotilla.domain.architecture import Architecture
from flotilla.domain.models import KnownModel
from flotilla.domain.quantity import amount
from flotilla.domain.sizing import GIB, Fit, Settings, Weights
from flotilla.engines.profile import MemoryProfile, Profile
from flotilla.errors import InvalidSpec

DEFAULT_MEMORY_GIB = 16
"""Of a pod, per GPU, where the spec asks for no other."""
_LENGTHENING_FLAGS = ("--hf-overrides", "--rope-scaling", "--json-model-override-args")
"""Users' args that make a model take more tokens than its config.json says."""
_SHORTEST_START_S, _LONGEST_START_S = 600, 1800
_SMALL_GIB, _LARGE_GIB = 16, 130


class DoesNotFit(InvalidSpec):
    """The model needs more memory than the accelerator has; said in FitsMemory, before any GPU is taken."""

    def __init__(self, message: str, fit: Fit) -> None:
        super().__init__(message, field="spec.accelerator", reason=sizing.DOES_NOT_FIT)
        self.fit = fit


@dataclass(frozen=True, slots=True)
class Fitted:
    """GPUs and context to use: `context_length` 0 is the engine's own. `fit` is None for a model nobody knows."""

    gpus: int
    context_length: int
    fit: Fit | None


def fitted(
    spec: ModelDeploymentSpec,
    *,
    known: KnownModel | None,
    weights: Weights,
    profile: Profile,
    accelerator: Accelerator,
) -> Fitted:
    """Decide; raises InvalidSpec for a wrong count or context, and DoesNotFit with the figures and what would help."""
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
        return Fitted(count or 1, asked or 0, None)
    architecture = _context_checked(architecture, asked, spec.engine.args)
    engine = settings(profile.memory, accelerator, spec.engine.args)
    _check_count(architecture, engine, count)
    memory_gib = accelerator.memory_gib or _pod_memory_gib(spec)
    fit = sizing.fit(architecture, weights, engine, memory_gib=memory_gib, gpus=count, context_length=asked)
    if fit.verdict == sizing.DOES_NOT_FIT:
        raise DoesNotFit(_refusal(spec, fit, accelerator, architecture), fit)
    return Fitted(fit.gpus, asked or (fit.context_length if fit.longest_context else 0), fit)


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
        base_gib=memory.base_gib,
        tensor_parallel=memory.tensor_parallel,
        slots=memory.slots,
    )


def startup_seconds(fit: Fit | None) -> int:
    """How long a start may take: 10 minutes for small models to 30 for those of 130 GiB, and for unknown ones."""
    if fit is None:
        return _LONGEST_START_S
    gib = fit.weights_bytes * fit.gpus / GIB
    share = min(max((gib - _SMALL_GIB) / (_LARGE_GIB - _SMALL_GIB), 0.0), 1.0)
    return 60 * round((_SHORTEST_START_S + share * (_LONGEST_START_S - _SHORTEST_START_S)) / 60)


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


def _check_count(architecture: Architecture, engine: Settings, count: int | None) -> None:
    if count is None or not engine.tensor_parallel or architecture.tensor_parallel(count):
        return
    legal = ", ".join(map(str, sizing.legal_counts(architecture, engine, at_most=16)))
    raise InvalidSpec(
        f"{architecture.heads} attention heads and {architecture.kv_heads} KV heads cannot be split over {count} GPUs. "
        f"Use one of {legal}, or leave spec.accelerator.count out.",
        field="spec.accelerator.count",
        reason="IllegalCount",
    )


def _pod_memory_gib(spec: ModelDeploymentSpec) -> Decimal:
    wanted = amount(spec.resources.memory) if spec.resources.memory else None
    return wanted / GIB if wanted is not None else Decimal(DEFAULT_MEMORY_GIB)


def _refusal(spec: ModelDeploymentSpec, fit: Fit, accelerator: Accelerator, architecture: Architecture) -> str:
    """The figures, and every remedy that would really help."""
    needed = fit.context_length
    figures = (
        f"{fit.gpus} x {accelerator.class_name} ({fit.memory_bytes / GIB:.1f} GiB each) cannot hold the model with "
        f"{needed} tokens of context: weights take {fit.weights_bytes / GIB:.1f} GiB of each GPU and the engine about "
        f"{fit.working_bytes / GIB:.1f} GiB, which leaves {fit.kv_bytes / GIB:.1f} GiB for the KV cache."
    )
    remedies = []
    if fit.longest_context >= 256:
        remedies.append(f"spec.model.contextLength of at most {fit.longest_context}")
    if spec.accelerator.count is not None and architecture.tensor_parallel(fit.gpus * 2):
        remedies.append(f"spec.accelerator.count above {fit.gpus} (or none, for the fewest that fit)")
    if str(spec.quantization.method) in ("auto", "none"):
        remedies.append("a checkpoint with fewer bits (awq, gptq, fp8) in spec.model.source")
    remedies.append("another spec.accelerator.class with more memory")
    return f"{figures} Use {', '.join(remedies[:-1])}{' or ' if remedies[:-1] else ''}{remedies[-1]}."
