"""`flotilla route calibrate`: judged answers in, what a policy takes out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.hosted_answers import chat
from typer.testing import CliRunner

from flotilla.api.routing_policy import CalibrationPoint, Confidence
from flotilla.cli import app
from flotilla.routing.classify import Judged, held_out_error, tradeoffs

RUN = CliRunner()


def lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return path


def answer(first: float, second: float) -> dict[str, Any]:
    tops = [{"token": "a", "logprob": math.log(first)}, {"token": "b", "logprob": math.log(second)}]
    return chat("a", logprobs={"content": [{"token": "a", "logprob": math.log(first), "top_logprobs": tops}]})


def judged(path: Path) -> Path:
    """300 answers: a margin of 0.1 was wrong every second time, one of 0.9 once in twenty times."""
    doubtful = [{"answer": answer(0.5, 0.4), "wrong": number % 2 == 0} for number in range(100)]
    sure = [{"margin": 0.9, "wrong": number % 20 == 0} for number in range(200)]
    return lines(path, doubtful + sure)


def test_judged_answers_become_points_that_a_policy_takes(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["route", "calibrate", str(judged(tmp_path / "a.jsonl"))])

    assert done.exit_code == 0, done.stderr
    confidence = Confidence.model_validate({"escalateAboveErrorPermille": 150, **yaml.safe_load(done.stdout)})
    assert [(p.margin_permille, p.error_permille) for p in confidence.calibration] == [(100, 500), (900, 50)]
    assert "300 answers, 60 of them wrong." in done.stderr
    # Above 15 % the hundred doubtful ones are escalated.
    assert ["150", "33.3%", "5.0%"] in [line.split() for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"margin": 0.5}, '"wrong": true or false'),
        ({"margin": 1.5, "wrong": True}, '"margin" from 0 to 1'),
        ({"answer": chat("a"), "wrong": True}, "logprobs: true and top_logprobs: 2"),
        ([], '"wrong": true or false'),
    ],
)
def test_a_line_that_does_not_help_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    done = RUN.invoke(
        app, ["route", "calibrate", str(lines(tmp_path / "a.jsonl", [{"margin": 1, "wrong": False}, entry]))]
    )
    assert done.exit_code == 2
    assert "a.jsonl:2" in done.stderr
    assert said in done.stderr


def test_no_json_no_file_and_too_few_answers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    assert "No such file" in RUN.invoke(app, ["route", "calibrate", str(file)]).stderr
    file.write_text("{")
    assert "is not JSON" in RUN.invoke(app, ["route", "calibrate", str(file)]).stderr
    done = RUN.invoke(app, ["route", "calibrate", str(lines(file, [{"margin": 1, "wrong": False}]))])
    assert (done.exit_code, "too few" in done.stderr) == (2, True)


def test_answers_that_the_curve_has_not_seen_show_what_it_is_worth() -> None:
    useless = [Judged(number % 97 / 97, number % 3 == 0) for number in range(970)]
    assert held_out_error(useless) < 0.05


def test_what_is_escalated_and_what_is_kept() -> None:
    points = [CalibrationPoint(margin_permille=m, error_permille=e) for m, e in ((0, 1000), (1000, 0))]
    samples = [Judged(0.2, True), Judged(0.4, False), Judged(0.6, True), Judged(0.9, False)]
    rows = tradeoffs(points, samples, [50, 500, 999])
    assert [(row.escalated, row.wrong_before, row.wrong_after) for row in rows] == [
        (1.0, 0.5, 0.0),
        (0.5, 0.5, 0.5),
        (0.0, 0.5, 0.5),
    ]
