"""What must hold for every model and every card."""

from decimal import Decimal

from hypothesis import assume, given
from hypothesis import strategies as st

from flotilla.catalog.models import Architecture, load_models
from flotilla.planning import memory_fit
from flotilla.planning.kv_cache import layout
from flotilla.planning.memory_fit import GIB, Fit, Settings, Weights

_MODELS = load_models()
_KNOWN = [found.architecture for name in _MODELS.rows if (found := _MODELS.find(name)) is not None]

architectures = st.sampled_from(_KNOWN)
weights = st.builds(Weights, st.sampled_from([Decimal(16), Decimal("8.1"), Decimal("4.25")]), st.sampled_from([1, 2]))
settings = st.builds(
    Settings,
    st.sampled_from([Decimal("0.5"), Decimal("0.92"), Decimal("0.97")]),
    st.sampled_from([512, 2048, 8192, 16384]),
    st.sampled_from([4, 64, 256, 1024]),
    st.just(Decimal("1.1")),
    st.booleans(),
    st.sampled_from([1, 4]),
)
memories_gib = st.integers(4, 300).map(Decimal)
contexts = st.none() | st.integers(256, 200_000)
_ORDER = (memory_fit.DOES_NOT_FIT, memory_fit.TIGHT, memory_fit.FITS)


def judge(
    of: Architecture, how: Weights, engine: Settings, memory_gib: Decimal, gpus: int | None, context: int | None
) -> Fit:
    return memory_fit.fit_memory(of, how, engine, memory_gib=memory_gib, gpus=gpus, context_length=context)


@given(architectures, weights, settings, memories_gib, st.integers(1, 100), contexts)
def test_more_memory_never_fits_less(
    of: Architecture, how: Weights, engine: Settings, memory_gib: Decimal, more: int, context: int | None
) -> None:
    assume(of.kv_known)
    small = judge(of, how, engine, memory_gib, 1, context)
    large = judge(of, how, engine, memory_gib + more, 1, context)
    assert _ORDER.index(large.verdict) >= _ORDER.index(small.verdict)
    assert large.longest_context >= small.longest_context


@given(architectures, weights, settings, memories_gib, st.data())
def test_more_gpus_never_shorten_the_context(
    of: Architecture, how: Weights, engine: Settings, memory_gib: Decimal, data: st.DataObject
) -> None:
    assume(of.kv_known)
    legal = memory_fit.legal_counts(of, engine, how)
    few, many = sorted((data.draw(st.sampled_from(legal)), data.draw(st.sampled_from(legal))))
    shorter = judge(of, how, engine, memory_gib, few, None)
    longer = judge(of, how, engine, memory_gib, many, None)
    assert longer.longest_context >= shorter.longest_context
    assert longer.context_length >= shorter.context_length


@given(architectures, weights, settings, memories_gib, contexts)
def test_a_plan_that_says_it_fits_is_within_the_budget(
    of: Architecture, how: Weights, engine: Settings, memory_gib: Decimal, context: int | None
) -> None:
    plan = judge(of, how, engine, memory_gib, None, context)
    assume(plan.verdict == memory_fit.FITS)
    split = plan.gpus if not engine.tensor_parallel else 1
    cache = 0.0
    if not of.encoder:
        parts = layout(of, gpus=plan.gpus if engine.tensor_parallel else 1, element_bytes=how.kv_element_bytes)
        blocks = parts.blocks_per_request(plan.context_length, batched_tokens=engine.batched_tokens)
        cache = blocks * parts.block_bytes * engine.slots / split
    budget = float(memory_gib * engine.utilization) * GIB
    assert plan.weights_bytes + plan.working_bytes + cache <= budget
    assert plan.concurrency >= 1
    assert plan.gpus in memory_fit.legal_counts(of, engine, how)
    assert context is None or plan.context_length == context


@given(architectures, weights, settings, memories_gib, contexts)
def test_no_smaller_count_fits_than_the_one_chosen(
    of: Architecture, how: Weights, engine: Settings, memory_gib: Decimal, context: int | None
) -> None:
    plan = judge(of, how, engine, memory_gib, None, context)
    assume(plan.verdict == memory_fit.FITS)
    for fewer in memory_fit.legal_counts(of, engine, how):
        if fewer < plan.gpus:
            assert judge(of, how, engine, memory_gib, fewer, context).verdict != memory_fit.FITS
