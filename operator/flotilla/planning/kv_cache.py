"""The KV cache of one GPU by vLLM's own rules: blocks, groups of layers, and what a request holds. Pure.

It is exact in tokens for the vectors of vLLM's planner (tests/planning/data/kv_vectors.yaml) and within the rounding of
start-up logs. Other engines divide memory in other ways, but keep the same bytes for each token.
"""

from dataclasses import dataclass
from fractions import Fraction

from flotilla.catalog.models import Architecture
from flotilla.planning.additions import NO_DRAFT, DraftModel

BLOCK_TOKENS = 16
_LATENT_BLOCK_TOKENS = 64
"""What the kernels of latent attention divide longer blocks into (vllm/model_executor/models/config.py)."""

_STATES_PER_REQUEST = 2
"""With prefix caching, which is vLLM's default: the state at the end, and the one at the last whole block."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The cache of one GPU. Layers share blocks in groups of equal size; each kind of layer has groups of its own."""

    block_bytes: int
    """One block of every layer of a group."""
    full_groups: int
    sliding_groups: int
    window: int
    block_tokens: int = BLOCK_TOKENS
    """vLLM makes blocks so long that the state of a recurrent layer has room in one."""
    near_block_tokens: int = BLOCK_TOKENS
    """Of layers with a window. Layers with narrower rows get longer blocks, so that all blocks have one size."""
    partial_blocks: int = 1
    """Blocks at the ends of a window that are used in part; 0 where windows are chunks that begin with a block."""
    state_groups: int = 0
    """Groups of recurrent layers, which take the same number of blocks for every request."""
    states: int = 0
    """Blocks that a request takes in each of them."""

    def blocks(self, budget_bytes: int) -> int:
        """How many blocks fit."""
        return max(budget_bytes, 0) // self.block_bytes

    def blocks_per_request(self, tokens: int, *, batched_tokens: int) -> int:
        """What a request of `tokens` holds at its end.

        A layer with a window also needs room for what one step adds to it: `batched_tokens`.
        """
        whole = _ceil(tokens, self.block_tokens)
        seen = _ceil(min(self.window - 1 + batched_tokens, tokens), self.near_block_tokens) + self.partial_blocks
        return self.full_groups * whole + self.sliding_groups * seen + self.states * self.state_groups

    def concurrency(self, budget_bytes: int, tokens: int, *, batched_tokens: int) -> Fraction:
        """How many requests of `tokens` fit at one time; below 1 the engine refuses to start."""
        return Fraction(self.blocks(budget_bytes), self.blocks_per_request(tokens, batched_tokens=batched_tokens))

    def longest(self, budget_bytes: int, *, batched_tokens: int, at_most: int) -> int:
        """The longest request that fits, a multiple of the block size unless it is `at_most`; 0 for none.

        One block is the engine's own.
        """
        blocks = self.blocks(budget_bytes) - 1
        low, high = 0, _ceil(at_most, self.block_tokens)
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_per_request(middle * self.block_tokens, batched_tokens=batched_tokens) <= blocks:
                low = middle
            else:
                high = middle - 1
        return min(low * self.block_tokens, at_most)


def layout(architecture: Architecture, *, gpus: int, element_bytes: int, draft: DraftModel = NO_DRAFT) -> KvLayout:
    """Of `architecture` split over `gpus`: KV heads are divided, and replicated where there are too few.

    The layers of a `draft` keep a cache of the whole context beside those of the model.
    """
    near_bytes = _row_elements(architecture, architecture.kv_heads, architecture.head_dim, gpus) * element_bytes
    full_heads, full_dim = architecture.full_kv_heads, architecture.full_head_dim
    full_bytes = (
        _row_elements(architecture, full_heads or architecture.kv_heads, full_dim or architecture.head_dim, gpus)
        * element_bytes
    )
    full, near, state = architecture.full_layers, architecture.sliding_layers, architecture.recurrent
    drafted = draft.layers * draft.row_elements(gpus) * element_bytes
    if state is None and not near:
        # Layers that all keep the whole context are one group, whatever the widths of their rows.
        return KvLayout(
            block_bytes=BLOCK_TOKENS * (full_bytes * full + drafted), full_groups=1, sliding_groups=0, window=0
        )
    # Exact where the draft's rows are as wide as the model's own, which vLLM groups like layers of the model.
    full += -(-drafted // full_bytes)
    if state is not None:
        unit = _LATENT_BLOCK_TOKENS if architecture.latent_width else BLOCK_TOKENS
        block_tokens = unit * max(1, _ceil(state.bytes_per_layer(gpus), unit * full_bytes))
        size = _group_size(full, state.layers)
        return KvLayout(
            block_bytes=block_tokens * full_bytes * size,
            full_groups=_ceil(full, size),
            sliding_groups=0,
            window=0,
            block_tokens=block_tokens,
            state_groups=_ceil(state.layers, size),
            # A state for each drafted token, which may have to be given up.
            states=_STATES_PER_REQUEST + draft.tokens,
        )
    size = _group_size(full, near)
    wide = max(full_bytes, near_bytes) if full and near else full_bytes if full else near_bytes
    return KvLayout(
        block_bytes=BLOCK_TOKENS * wide * size,
        full_groups=_ceil(full, size),
        sliding_groups=_ceil(near, size),
        window=architecture.sliding_window + (1 if architecture.chunked else 0),
        block_tokens=BLOCK_TOKENS * (wide // full_bytes),
        near_block_tokens=BLOCK_TOKENS * (wide // near_bytes),
        partial_blocks=0 if architecture.chunked else 1,
    )


def _row_elements(architecture: Architecture, kv_heads: int, head_dim: int, gpus: int) -> int:
    """Elements of one token in the cache of one layer on each GPU."""
    if architecture.latent_width:
        # One latent row for keys and values together; every GPU holds all of it.
        return architecture.latent_width
    return 2 * _ceil(kv_heads, gpus) * head_dim


def _group_size(full: int, sliding: int) -> int:
    """Layers per group: as many as the rarer kind has, unless that would only pad (vllm/v1/core/kv_cache_utils.py)."""
    few, many = sorted((full, sliding))
    return many if few == 0 or 2 * many < 3 * few else few


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)
