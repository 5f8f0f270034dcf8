"""What the reconcile benchmark makes of its samples."""

from dataclasses import fields
from pathlib import Path

import pytest
from benchmarks.reconcile import order
from benchmarks.reconcile_operators import PEER_SOURCE, source_version
from benchmarks.reconcile_table import (
    FIGURES,
    Row,
    answered_at_half_percent,
    medians,
    tables,
    waits_s,
)


def row(operator: str, count: int = 1000, value: float = 1.0, **figures: float) -> Row:
    numbers = {field.name: value for field in fields(Row) if field.name not in ("operator", "count")}
    return Row(operator=operator, count=count, **{**numbers, **figures})


def test_the_share_at_half_of_the_time_counts_from_the_start_to_the_last_status() -> None:
    assert answered_at_half_percent(10, [11, 12, 13, 20]) == 75
    assert answered_at_half_percent(10, [20, 20, 20]) == 0
    assert answered_at_half_percent(10, [8, 9, 10, 14, 20]) == 50


def test_waits_are_in_the_order_of_creation_and_never_negative() -> None:
    assert waits_s({"b": 2.0, "a": 1.0}, {"a": 4.0, "b": 1.9}) == [3.0, 0.0]


def test_rounds_become_the_median_of_each_figure() -> None:
    rounds = [row("peer", rss_mib=mib, idle_calls=10 - mib) for mib in (1.0, 9.0, 3.0)]
    merged = medians([*rounds, row("flotilla", rss_mib=50)])
    assert [(one.operator, one.rss_mib, one.idle_calls) for one in merged] == [("peer", 3.0, 7.0), ("flotilla", 50, 1)]


def test_a_table_has_the_ratio_to_the_peer_and_every_figure() -> None:
    text = tables([row("flotilla", cpu_ms_per_object=6.6), row("peer", cpu_ms_per_object=3.3)])
    lines = text.splitlines()
    assert lines[0].split("|")[1:6] == [
        " 1000 objects                         ", " Flotilla ", "  Go peer ", " ratio ", "   goal "
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[2].split("|")[1:6]] == [
        "CPU per object (ms)",
        "6.60",
        "3.30",
        "2.0",
        "<= 2 x",
    ]
    assert len(lines) == 2 + len(FIGURES)
    assert {figure.field for figure in FIGURES} | {"operator", "count"} == {field.name for field in fields(Row)}


@pytest.mark.parametrize("value", [0, 0.00123, 9.996, 99.96, 123456.7])
def test_tables_fit_a_terminal_of_80_columns(value: float) -> None:
    text = tables([row(operator, count, value) for operator in ("flotilla", "peer") for count in (1000, 5000)])
    assert max(map(len, text.splitlines())) <= 80


def test_growth_of_the_cpu_per_object_is_that_between_the_smallest_and_the_largest_count() -> None:
    text = tables(
        [row("flotilla", count, cpu_ms_per_object=ms) for count, ms in ((5000, 11.5), (1000, 10.0), (200, 10.0))]
    )
    assert text.splitlines()[-1] == "CPU per object from 200 to 5000 objects, Flotilla: +15 % (goal <= +20 %)"
    assert "CPU per object from" not in tables([row("flotilla"), row("peer")])


def test_one_operator_alone_has_no_ratio() -> None:
    cells = [cell.strip() for cell in tables([row("flotilla")]).splitlines()[2].split("|")[1:5]]
    assert cells == ["CPU per object (ms)", "1.00", "", "<= 2 x"]


def test_operators_take_turns_and_every_second_round_is_in_the_other_order() -> None:
    assert list(order([10, 20], ["flotilla", "peer"], 2)) == [
        (10, "flotilla"), (10, "peer"), (10, "peer"), (10, "flotilla"),
        (20, "flotilla"), (20, "peer"), (20, "peer"), (20, "flotilla"),
    ]  # fmt: skip


def test_the_peer_is_built_again_when_its_source_changes(tmp_path: Path) -> None:
    for path in PEER_SOURCE.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    same = source_version(tmp_path)
    (tmp_path / "README.md").write_text("another text")
    assert source_version(tmp_path) == same == source_version(PEER_SOURCE)
    (tmp_path / "main.go").write_text("package main")
    assert source_version(tmp_path) != same
