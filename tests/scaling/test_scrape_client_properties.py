"""The scan for a few metrics reads what the full parser of prometheus_client reads."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flotilla.catalog.engines import metric_name
from flotilla.scaling.scrape_client import find

NAMES = ("a", "a_total", "a:b", "ab", "b")
LABEL_NAMES = ("x", "le", "engine", "_y")


def fully(body: bytes, names: tuple[str, ...]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name in names:
                found.setdefault(sample.name, []).append(sample.value)
    return found


def alike(one: float, other: float) -> bool:
    """As the format's 64-bit floats: the full parser keeps integers that are none exactly."""
    return float(one) == float(other) or (math.isnan(one) and math.isnan(other))


def same(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    return one.keys() == other.keys() and all(
        len(one[key]) == len(other[key])
        and all(
            float(a) == float(b) or (math.isnan(a) and math.isnan(b)) for a, b in zip(one[key], other[key], strict=True)
        )
        for key in one
    )


VALUES = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e3", "0x1", "1_0", "", "x", "\u0661", "5 .", "- 1"]),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8)
LABEL_VALUES = (TEXTS | st.sampled_from(["0", "1"])).map(lambda text: text.replace("\\", "\\\\").replace('"', '\\"'))


@st.composite
def sample_lines(draw: st.DrawFn, name: str) -> str:
    labels: dict[str, str] = draw(st.dictionaries(st.sampled_from(LABEL_NAMES), LABEL_VALUES, max_size=3))
    block = ",".join(f'{key}="{value}"' for key, value in labels.items())
    tail = draw(st.sampled_from(["", ","])) if labels else ""
    empty_braces = draw(st.booleans())
    braces = f"{{{block}{tail}}}" if labels or empty_braces else ""
    space = draw(st.sampled_from([" ", "  ", "\t"]))
    time = draw(st.sampled_from(["", "", " 1700000000000", " x"]))
    return f"{name}{braces}{space}{draw(VALUES)}{time}"


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    lines: list[str] = []
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=7)):
        if draw(st.booleans()):
            lines += [f"# HELP {name} {draw(TEXTS)}", f"# TYPE {name} gauge"]
        lines += draw(st.lists(sample_lines(name), max_size=3))
        lines += draw(st.sampled_from([[], [], [""], ["# a comment"]]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return (end.join(lines) + draw(st.sampled_from(["", end]))).encode()


@given(texts())
def test_random_texts_are_read_as_the_full_parser_reads_them(body: bytes) -> None:
    wanted = {name: (name,) for name in NAMES}
    try:
        expected = fully(body, NAMES)
    except ValueError:
        with pytest.raises(ValueError, match="is no sample"):
            find(body, wanted)
        return
    assert same(find(body, wanted), expected)


@given(st.binary(max_size=60), st.sampled_from([b"", b"a 1\n", b"a{", b"a "]))
def test_garbage_is_an_error_or_nothing_and_never_a_crash(junk: bytes, before: bytes) -> None:
    with contextlib.suppress(ValueError):
        find(before + junk, {"a": ("a",), "b": ("b",)})


@given(texts(), st.sampled_from(LABEL_NAMES), st.sampled_from(["=~", "!~"]))
def test_the_samples_of_a_label_are_those_that_the_full_parser_finds(body: bytes, label: str, operator: str) -> None:
    asked = f'a{{{label}{operator}"0|1"}}'
    try:
        samples = [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]
    except ValueError:
        return
    meant = metric_name(asked)
    wanted = [each.value for each in samples if each.name == "a" and meant.accepts(each.labels)]
    assert same(find(body, {"field": (asked,)}), {"field": wanted} if wanted else {})


@given(texts(), st.permutations(NAMES))
def test_the_first_name_that_is_there_is_taken(body: bytes, order: list[str]) -> None:
    try:
        every = find(body, {name: (name,) for name in NAMES})
    except ValueError:
        return
    first = next((every[name] for name in order if name in every), None)
    found = find(body, {"field": order})
    assert same(found, {} if first is None else {"field": first})
