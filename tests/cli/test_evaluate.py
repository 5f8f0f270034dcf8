"""`flotilla evaluate` as a person and as a Job run it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.labelled import Labelled
from typer.testing import CliRunner, Result

from flotilla.cli import app
from flotilla.evaluation.plan import RunPlan, dumped
from flotilla.evaluation.summary import load_summary

ANSWERS = {f"ticket {n}": ("billing", "shipping")[n % 2] for n in range(200)}


@pytest.fixture
def cases(tmp_path: Path) -> str:
    path = tmp_path / "cases.jsonl"
    lines = [{"input": text, "expected": label, "slice": label} for text, label in ANSWERS.items()]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


async def invoke(*arguments: str, **env: str) -> Result:
    runner = CliRunner(env={"COLUMNS": "80", **env})
    return await asyncio.to_thread(lambda: runner.invoke(app, ["evaluate", *arguments]))


def careless(messages: list[dict[str, Any]]) -> str:
    """Says billing to everything."""
    return "billing"


async def test_a_table_fits_a_terminal_and_says_why(cases: str) -> None:
    async with Labelled.of(ANSWERS).serving() as good, Labelled(careless).serving() as bad:
        done = await invoke(
            "--dataset", cases, "--target", f"frontier={good.url},price=0.25/2", "--target", f"small={bad.url}",
            "--min-quality", "0.9", "--no-weird-inputs",
        )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    assert "frontier: Quality 100.0 % over 200 cases" in done.stdout
    assert "Disqualified" in done.stdout
    assert "wrong answers: billing (100)" in done.stdout
    assert "shipping: 0.0 % of 100 cases" in done.stdout


async def test_json_has_the_fields_of_the_status_and_the_exit_code_follows_the_verdict(cases: str) -> None:
    async with Labelled.of(ANSWERS).serving() as good:
        target = f"small={good.url},gpu-hour=2.50"
        qualified = await invoke(
            "--dataset", cases, "--target", target, "--min-quality", "0.9", "-o", "json", "--no-weird-inputs"
        )
        unsettled = await invoke(
            "--dataset", cases, "--target", target, "--min-quality", "0.99", "-o", "json", "--no-weird-inputs"
        )
    assert (qualified.exit_code, unsettled.exit_code) == (0, 4)
    (result,) = json.loads(qualified.stdout)["results"]
    assert (result["verdict"], result["cases"], result["qualityPermille"]) == ("Qualified", 200, 1000)
    assert float(result["costPerThousandTasksUSD"]) > 0
    (result,) = json.loads(unsettled.stdout)["results"]
    assert result["verdict"] == "Inconclusive"
    assert 100 < result["casesNeeded"] < 400


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a dataset and at least one target"),
        (["--dataset", "{cases}", "--target", "small"], "is not NAME=URL"),
        (["--dataset", "{cases}", "--target", "small=http://h/v1,color=red"], "none of model="),
        (["--dataset", "{cases}", "--target", "small=http://h/v1", "--scorer", "taste"], "'taste' is none of label"),
        (
            ["--dataset", "{cases}", "--target", "small=http://h/v1", "--min-quality", "95"],
            "not a share between 0 and 1",
        ),
        (
            ["--dataset", "{cases}", "--target", "small=http://h/v1", "--within", "big:0.1"],
            "'big' is none of the targets",
        ),
        (["--dataset", "nowhere", "--target", "small=http://h/v1"], "nowhere cannot be read"),
        (["--dataset", "{cases}", "--target", "small=http://h/v1,key=NOTHING_HERE"], "NOTHING_HERE holds no key"),
        (
            ["--dataset", "{cases}", "--target", "s=http://h/v1", "--scorer", "numeric"],
            "line 1: expected must be a number",
        ),
    ],
)
async def test_a_wrong_option_is_told(cases: str, arguments: list[str], said: str) -> None:
    done = await invoke(*(argument.format(cases=cases) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert said in done.stderr


async def test_a_target_that_does_not_answer_ends_with_3(cases: str) -> None:
    done = await invoke("--dataset", cases, "--target", "small=http://127.0.0.1:9/v1")
    assert done.exit_code == 3
    assert "Target 'small' does not answer at http://127.0.0.1:9/v1/models" in done.stderr


def job(folder: Path, source: str, url: str) -> list[str]:
    plan = RunPlan.model_validate(
        {
            "task": "triage",
            "dataset": source,
            "targets": [{"name": "small", "url": url, "revision": "r1"}],
            "scorer": {"method": "Label"},
        }
    )
    (folder / "plan.json").write_text(dumped(plan))
    (folder / "log").write_text("")
    return ["--spec", str(folder / "plan.json"), "--termination-log", str(folder / "log")]


async def test_a_job_leaves_its_summary_and_an_error_that_only_a_change_of_the_spec_ends(
    cases: str, tmp_path: Path
) -> None:
    async with Labelled.of(ANSWERS).serving() as good:
        done = await in_a_process(*job(tmp_path, cases, good.url))
        assert done == 0
        summary = load_summary((tmp_path / "log").read_text())
        assert (summary.targets[0].revision, summary.targets[0].scores) == ("r1", {1000: 200})
        assert await in_a_process(*job(tmp_path, f"{tmp_path}/missing", good.url)) == 0
    assert load_summary((tmp_path / "log").read_text()).reason == "DatasetInvalid"
    assert await in_a_process(*job(tmp_path, cases, "http://127.0.0.1:9/v1")) == 3
    assert load_summary((tmp_path / "log").read_text()).reason == "TargetUnreachable"


async def in_a_process(*arguments: str) -> int:
    """As the container runs it: the Job's command sets a handler of signals, which only a main thread can."""
    import sys

    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "flotilla", "evaluate", *arguments)
    return await process.wait()
