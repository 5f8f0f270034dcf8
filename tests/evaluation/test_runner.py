"""A run against real HTTP servers: what it asks, measures, spends, survives and sums up."""

import asyncio
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.labelled import Labelled

from flotilla.errors import InvalidSpec, Transient
from flotilla.evaluation.dataset import WEIRD_INPUTS
from flotilla.evaluation.plan import RunPlan
from flotilla.evaluation.runner import EvaluationRun, execute
from flotilla.evaluation.summary import MESSAGE_BYTES, RunSummary, load_summary, message

ANSWERS = {f"ticket {n}": "ab"[n % 2] for n in range(60)}
WRONG = {f"ticket {n}" for n in range(0, 60, 10)}


def dataset(folder: Path, *, shuffle: int | None = None) -> str:
    cases = [{"input": text, "expected": label, "slice": label} for text, label in ANSWERS.items()]
    if shuffle is not None:
        random.Random(shuffle).shuffle(cases)
    path = folder / f"cases-{shuffle}.jsonl"
    path.write_text("\n".join(map(json.dumps, cases)))
    return str(path)


def plan(source: str, **more: Any) -> RunPlan:
    values = {
        "task": "triage",
        "dataset": source,
        "scorer": {"method": "Label", "labels": ["a", "b"]},
        "weirdInputs": "Excluded",
        "maxHostedUSD": "1000",
        **more,
    }
    return RunPlan.model_validate(values)


def target(name: str, server: Labelled, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": server.url, **more}


PRICE = {"inputPerMTok": "1000", "outputPerMTok": "5000"}


def careless() -> Labelled:
    return Labelled(lambda m: "b" if m[-1]["content"] in WRONG else ANSWERS.get(m[-1]["content"], "?"))


def stable(summary: RunSummary) -> RunSummary:
    """Without times, which differ in each run."""
    untimed = {"first_token_ms": None, "total_ms": None}
    return summary.model_copy(update={"targets": [one.model_copy(update=untimed) for one in summary.targets]})


def nothing(_: EvaluationRun) -> None:
    pass


async def test_targets_are_asked_compared_and_priced(tmp_path: Path) -> None:
    async with careless().serving() as small, Labelled.of(ANSWERS).serving() as frontier:
        wanted = plan(
            dataset(tmp_path),
            targets=[target("small", small), target("frontier", frontier, price=PRICE)],
            request={"instructions": "a or b?", "maxTokens": 5},
            requirements={"quality": {"withinPermilleOf": {"target": "frontier", "permille": 20}}},
            weirdInputs="Included",
        )
        summary, results = await execute(wanted, None, nothing)
    one, other = summary.targets
    assert one.scores == {1000: 54, 0: 6}
    assert one.differences == {0: 54, -1000: 6}
    assert other.scores == {1000: 60}
    assert one.macro_f1_permille == 899
    assert [(part.name, part.cases, part.quality_permille) for part in one.slices] == [("a", 30, 800), ("b", 30, 1000)]
    # The stand-in answers "?" to weird inputs, which is no label.
    assert (one.malformed, one.asked, one.timed) == (len(WEIRD_INPUTS), 60 + len(WEIRD_INPUTS), 60)
    assert one.first_token_ms is not None
    assert one.usd is None
    # 60 prompts of five words and 60 answers of one
    assert Decimal(other.usd or 0) == (60 * 5 * Decimal(1000) + 60 * Decimal(5000)) / 10**6
    assert small.bodies[0]["temperature"] == 0
    assert small.bodies[0]["model"] == "labelled"
    assert small.bodies[0]["messages"][0] == {"role": "system", "content": "a or b?"}
    assert len(results) == 2 * (60 + len(WEIRD_INPUTS))


async def test_targets_of_one_host_take_turns_and_keep_to_the_concurrency(tmp_path: Path) -> None:
    async with Labelled.of(ANSWERS).serving() as server:
        server.pause_s = 0.002
        wanted = plan(
            dataset(tmp_path), targets=[target("base", server), target("tuned", server, model="t")], concurrency=3
        )
        await execute(wanted, None, nothing)
    assert server.most_at_once == 3
    assert [body["model"] for body in server.bodies] == ["labelled"] * 60 + ["t"] * 60


async def test_a_killed_run_continues_and_comes_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    async with careless().serving() as server:
        wanted = plan(dataset(tmp_path), targets=[target("small", server, price=PRICE)])
        whole, _ = await execute(wanted, None, nothing)
        server.asked.clear()
        server.pause_s = 0.001

        def kill(run: EvaluationRun) -> None:
            if run.cases_done >= 20:
                running.cancel()

        running = asyncio.create_task(execute(wanted, file, kill))
        await asyncio.wait({running})
        assert 20 <= len(file.read_text().splitlines()) < 40
        with file.open("a") as cut_off:
            cut_off.write('{"target": "small", "case": "bro')
        again, _ = await execute(wanted, file, nothing)
        # Those under way at the kill are asked twice, all others once.
        assert sum(server.asked.values()) <= 60 + wanted.concurrency
    assert stable(again) == stable(whole)


async def test_results_of_another_plan_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    async with Labelled.of(ANSWERS).serving() as server:
        await execute(plan(dataset(tmp_path), targets=[target("small", server)]), file, nothing)
        server.asked.clear()
        changed = plan(dataset(tmp_path), targets=[target("small", server)], request={"instructions": "other"})
        await execute(changed, file, nothing)
    assert sum(server.asked.values()) == 60


async def test_the_result_does_not_depend_on_the_order_of_cases(tmp_path: Path) -> None:
    async with careless().serving() as server:
        found = []
        for seed in (None, 1, 2):
            wanted = plan(dataset(tmp_path, shuffle=seed), targets=[target("small", server)], sampleSize=40)
            summary, _ = await execute(wanted, None, nothing)
            found.append(stable(summary).model_copy(update={"dataset_digest": ""}))
    assert found[0] == found[1] == found[2]
    assert found[0].targets[0].cases == 40


@pytest.mark.parametrize("usage", [True, False])
async def test_no_more_dollars_are_spent_than_are_allowed(tmp_path: Path, usage: bool) -> None:
    limit = Decimal("1")
    async with Labelled.of(ANSWERS, usage=usage).serving() as server:
        wanted = plan(
            dataset(tmp_path),
            targets=[target("frontier", server, price=PRICE)],
            request={"maxTokens": 5},
            maxHostedUSD=str(limit),
            concurrency=8,
        )
        file = tmp_path / "results.jsonl"
        summary, results = await execute(wanted, file, nothing)
        assert summary.ended == "SpendingLimit"
        asked = sum(server.asked.values())
        # Without a report of its usage, a request counts with the most that it can cost.
        cost = Decimal("0.007") if usage else Decimal("0.13")
        assert asked * cost <= limit
        assert 0 < len(results) < 60
        # What a run before spent counts, so that restarts do not multiply the limit.
        await execute(wanted, file, nothing)
        assert sum(server.asked.values()) * cost <= limit + cost


async def test_failures_are_retried_and_what_still_fails_is_malformed(tmp_path: Path) -> None:
    async with Labelled.of(ANSWERS).serving() as server:
        broken = {"ticket 1", "ticket 2"}
        server.fail = lambda text: 429 if server.asked[text] == 1 and text == "ticket 3" else (
            400 if text in broken else None
        )  # fmt: skip
        summary, results = await execute(
            plan(dataset(tmp_path), targets=[target("small", server)], requirements={"totalP99Milliseconds": 60000}),
            None,
            nothing,
        )
    (found,) = summary.targets
    assert found.scores == {1000: 58, 0: 2}
    assert found.malformed == 2
    assert found.late_total == 2
    assert server.asked["ticket 3"] == 2
    assert server.asked["ticket 1"] == 1
    assert sum("HTTP 400" in result.error for result in results) == 2


async def test_a_target_that_is_down_ends_the_run_to_be_continued(tmp_path: Path) -> None:
    wanted = plan(dataset(tmp_path), targets=[{"name": "small", "url": "http://127.0.0.1:9/v1"}])
    with pytest.raises(Transient, match="Target 'small' does not answer"):
        await execute(wanted, None, nothing)


async def test_a_judge_compares_both_ways_and_its_dollars_count(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"input": "hello", "expected": "good day"}\n{"input": "bye", "expected": "farewell"}\n')

    def judgement(messages: list[dict[str, Any]]) -> str:
        # Prefers "good day" wherever it stands, and the first answer otherwise.
        text = messages[-1]["content"]
        a, b = text.index("<answer_a>"), text.index("<answer_b>")
        at = text.rfind("good day")
        return (
            "tie"
            if text.count("good day") == 2
            else '{"verdict": "B"}'
            if at > b
            else '{"verdict": "A"}'
            if at > a
            else "A"
        )

    async with (
        Labelled(judgement).serving() as judge,
        Labelled.of({"hello": "good day", "bye": "tschuess"}).serving() as small,
    ):
        wanted = plan(
            str(path),
            targets=[target("small", small), target("judge", judge, price=PRICE)],
            scorer={"method": "Judge", "judge": {"target": "judge", "rubric": "Be polite."}},
        )
        summary, results = await execute(wanted, None, nothing)
    assert [one.target for one in summary.targets] == ["small"]
    # hello: the same text, a tie both ways; bye: the judge takes the first one both ways.
    assert summary.targets[0].scores == {1000: 1, 500: 1}
    assert sum(judge.asked.values()) == 4
    assert all(Decimal(result.charged_usd) > 0 for result in results)


async def test_a_missing_key_names_the_target(tmp_path: Path) -> None:
    wanted = plan(dataset(tmp_path), targets=[{"name": "f", "url": "http://127.0.0.1:9/v1", "keyFile": "/nowhere"}])
    with pytest.raises(InvalidSpec, match="API key of target 'f'"):
        await execute(wanted, None, nothing)


def test_the_summary_of_eight_targets_fits_into_a_termination_message() -> None:
    one = {
        "t": "t" * 63, "r": "f" * 16, "s": {0: 99999, 500: 99999, 1000: 99999},
        "d": dict.fromkeys((-1000, -500, 0, 500, 1000), 99999), "n": 99999, "m": 9999, "f": [99999, 99999],
        "e": [99999, 99999], "y": 99999, "lf": 9999, "lt": 9999, "i": 10**9, "k": 10**9, "o": 10**9,
        "u": "1234.123456789", "f1": 999, "l": [{"s": f"{n}-" + "s" * 60, "n": 9999, "q": n} for n in range(16)],
    }  # fmt: skip
    summary = RunSummary.model_validate(
        {"digest": f"sha256:{'0' * 64}", "total": 10**6, "targets": [{**one, "t": f"{n}{'t' * 62}"} for n in range(8)]}
    )
    text = message(summary)
    assert len(text.encode()) <= MESSAGE_BYTES
    read = load_summary(text)
    assert [target.scores for target in read.targets] == [target.scores for target in summary.targets]
