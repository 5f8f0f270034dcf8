"""`flotilla top`: rows of the operator's metrics."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flotilla.cli import app, top
from flotilla.cli.sources import Place
from flotilla.cli.top import Reading
from flotilla.cost.spending import Samples
from flotilla.cost.spending_client import totals
from flotilla.errors import Transient

HEAD = 'flotilla_build_info{version="1"} 1\nflotilla_leader 1\n'


def samples(tokens: int | None = None, *, namespace: str = "n", known: bool = True) -> Samples:
    """One model; `tokens` is what it has read and half of what it has written."""
    labels = f'namespace="{namespace}",modeldeployment="m"'
    lines = [f"flotilla_ready_replicas{{{labels}}} 1", f"flotilla_desired_replicas{{{labels}}} 2"]
    if known:
        lines += [
            f"flotilla_requests_waiting{{{labels}}} 3",
            f"flotilla_requests_running{{{labels}}} 8",
            f"flotilla_kv_cache_usage_ratio{{{labels}}} 0.93",
            f'flotilla_deployment_cost_usd_per_hour{{{labels},gpu_type="a",capacity_type="b",price_source="c"}} 0.5',
            f'flotilla_deployment_cost_usd_per_hour{{{labels},gpu_type="d",capacity_type="b",price_source="c"}} 0.25',
        ]
    if tokens is not None:
        for kind, count in (("input", tokens), ("cached_input", 0), ("output", 2 * tokens)):
            lines.append(f'flotilla_deployment_tokens_total{{{labels},token_type="{kind}"}} {count}')
    return totals(HEAD + "\n".join(lines) + "\n")


def text(value: Any) -> str:
    console = Console(width=160, record=True)
    console.print(value)
    return console.export_text()


def test_a_row_sums_over_labels_and_counts_tokens_since_the_first_reading() -> None:
    (row,) = top.rows([Reading(0, samples(100)), Reading(4, samples(200))], None)
    assert row.numbers == {
        "ready_replicas": 1,
        "desired_replicas": 2,
        "waiting": 3,
        "running": 8,
        "kv_cache_ratio": Decimal("0.93"),
        "usd_per_hour": Decimal("0.75"),
        "input_tokens_per_second": 25,
        "output_tokens_per_second": 50,
    }


def test_what_is_unknown_is_absent_and_never_0() -> None:
    (row,) = top.rows([Reading(0, samples(known=False)), Reading(4, samples(known=False))], None)
    assert set(row.numbers) == {"ready_replicas", "desired_replicas"}
    assert json.loads(top.json_text([row])) == [
        {"namespace": "n", "name": "m", "ready_replicas": 1, "desired_replicas": 2}
    ]
    assert "0 " not in text(top.view([row])).splitlines()[1]


@pytest.mark.parametrize(
    "readings",
    [
        [Reading(0, samples(100))],
        [Reading(0, samples(100)), Reading(0.1, samples(200))],
        [Reading(0, samples(200)), Reading(4, samples(100))],
        [Reading(0, samples()), Reading(4, samples(100))],
    ],
    ids=["one look", "too soon", "counted anew", "not counted before"],
)
def test_a_rate_needs_two_readings_of_one_counter(readings: list[Reading]) -> None:
    (row,) = top.rows(readings, None)
    assert not {"input_tokens_per_second", "output_tokens_per_second"} & set(row.numbers)


def test_one_namespace_can_be_asked_for() -> None:
    assert top.rows([Reading(0, samples())], "other") == []
    assert [row.name for row in top.rows([Reading(0, samples())], "n")] == [("n", "m")]


def test_rates_are_over_the_last_ten_seconds_or_a_little_more() -> None:
    readings = [Reading(at, {}) for at in range(0, 30, 3)]
    assert [look.at for look in top.window(readings)] == [15, 18, 21, 24, 27]
    assert top.window(readings[:2]) == readings[:2]


def test_the_table_shows_each_number_and_the_total() -> None:
    shown = text(top.view(top.rows([Reading(0, samples(1000)), Reading(2, samples(4000))], None), "It is gone."))
    row = shown.splitlines()[1].split()
    assert row == ["n", "m", "1/2", "3", "8", "-", "93%", "1,500", "3,000", "0.75"]
    assert "1 models, 0.75 $/h" in shown
    assert "It is gone." in shown


def test_a_look_that_fails_leaves_the_last_table(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [samples(100), Transient("no answer")]

    async def current(_: Place) -> Samples:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: Samples = answer
        return found

    monkeypatch.setattr(top, "current", current)
    watched = top.Watched(Place(), None)
    watched.read()
    shown = text(watched.view())
    assert "no answer" in shown
    assert "1/2" in shown


def invoke(monkeypatch: pytest.MonkeyPatch, found: Samples | Exception, *arguments: str) -> Any:
    async def current(_: Place) -> Samples:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(top, "current", current)
    monkeypatch.setattr("flotilla.cli.common.time.sleep", lambda _: None)
    return CliRunner().invoke(app, ["top", "--metrics", "http://127.0.0.1:1", *arguments])


def test_one_table_and_json_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, samples(1), "--json")
    assert result.exit_code == 0, result.output
    (model,) = json.loads(result.stdout)
    assert (model["waiting"], model["kv_cache_ratio"], model["usd_per_hour"]) == (3, 0.93, "0.7500")
    assert "1/2" in invoke(monkeypatch, samples(1), "--once").stdout


def test_an_empty_fleet_ends_with_1_and_an_operator_that_is_silent_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(monkeypatch, samples(1), "--once", "--namespace", "other").exit_code == 1
    result = invoke(monkeypatch, Transient("It does not answer."), "--once")
    assert (result.exit_code, result.stderr) == (3, "It does not answer.\n")


def test_the_live_table_goes_on_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    async def current(_: Place) -> Samples:
        return samples(1)

    monkeypatch.setattr(top, "current", current)
    monkeypatch.setattr("flotilla.cli.common.time.sleep", interrupted)
    result = CliRunner().invoke(app, ["top", "--metrics", "http://127.0.0.1:1"])
    assert result.exit_code == 0
    assert "1/2" in result.stdout
