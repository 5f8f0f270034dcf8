"""`flotilla evaluate`: is a model good enough at a task? From a laptop, in CI, and as the Job of an Evaluation."""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flotilla import addresses
from flotilla.api.evaluation import ScoringMethod
from flotilla.cli.common import EXIT_NO, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, Json, command_app, fail, plain
from flotilla.errors import FlotillaError, InvalidSpec, Transient
from flotilla.evaluation.job_runner import run_job
from flotilla.evaluation.outcome import hosted_usd, target_result
from flotilla.evaluation.plan import PlannedTarget, RunPlan
from flotilla.evaluation.results_store import CaseResult
from flotilla.evaluation.runner import EvaluationRun, execute
from flotilla.evaluation.summary import RunSummary

app = command_app()
EXIT_INCONCLUSIVE = 4
"""More cases are needed."""
_METHODS = {re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JSON)(?=[A-Z])", "-", str(m)).lower(): m for m in ScoringMethod}


class OutputFormat(StrEnum):
    """What is printed."""

    TEXT = "text"
    JSON = "json"


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


@app.command()
def evaluate(
    spec: Annotated[Path | None, _option("Document of a run, as the Job of an Evaluation gets it.", "--spec")] = None,
    dataset: Annotated[str, _option("Cases: a JSONL file, s3://BUCKET/KEY or gs://BUCKET/KEY.")] = "",
    target: Annotated[
        list[str] | None,
        _option(
            "NAME=URL of an OpenAI-compatible API, with commas and options: model=NAME, key=VARIABLE, price=IN/OUT in "
            "dollars per million tokens, gpu-hour=DOLLARS. Repeat it."
        ),
    ] = None,
    scorer: Annotated[str, _option(f"One of {', '.join(_METHODS)}.")] = "label",
    label: Annotated[list[str] | None, _option("Label that answers may name. Default: those of the cases.")] = None,
    field: Annotated[list[str] | None, _option("Field that json-fields compares. Default: all.")] = None,
    schema: Annotated[Path | None, _option("File with the schema of json-schema.")] = None,
    tolerance: Annotated[str | None, _option("Largest difference of numeric.")] = None,
    judge: Annotated[str | None, _option("Target that judges.")] = None,
    rubric: Annotated[str | None, _option("What makes an answer good; @FILE reads it from a file.")] = None,
    instructions: Annotated[str | None, _option("System message of each case; @FILE reads it from a file.")] = None,
    max_tokens: Annotated[int, _option("Tokens of an answer.")] = 256,
    timeout: Annotated[int, _option("Seconds of a request.")] = 60,
    min_quality: Annotated[float | None, _option("Least share of right answers, such as 0.95.")] = None,
    within: Annotated[
        str | None, _option("TARGET:SHARE, such as frontier:0.02: how much worse than it is allowed.")
    ] = None,
    confidence: Annotated[float, _option("With which each requirement must be shown.")] = 0.95,
    first_token_p99: Annotated[int | None, _option("Milliseconds until the answer begins.")] = None,
    total_p99: Annotated[int | None, _option("Milliseconds of a whole answer.")] = None,
    max_malformed: Annotated[float | None, _option("Largest share of malformed answers.")] = None,
    max_cost: Annotated[str | None, _option("Dollars that a thousand cases may cost.")] = None,
    max_usd: Annotated[str, _option("Dollars that hosted targets may cost in this run.")] = "5",
    sample: Annotated[int | None, _option("How many cases to ask. Default: all.")] = None,
    seed: Annotated[int, _option("Of the choice of cases.")] = 0,
    concurrency: Annotated[int, _option("Requests that a target has at one time.")] = 4,
    weird_inputs: Annotated[bool, _option("Send inputs that no dataset holds too.")] = True,
    results: Annotated[
        Path | None, _option("File for the result of each case; a run that was killed continues there.")
    ] = None,
    output: Annotated[OutputFormat, _option("text or json.", "--output", "-o")] = OutputFormat.TEXT,
    as_json: Json = False,
    keys: Annotated[Path | None, _option("Folder of API keys, of a Job.")] = None,
    termination_log: Annotated[Path | None, _option("File for the summary, of a Job.")] = None,
    listen: Annotated[str, _option("HOST:PORT that answers with the progress, of a Job.")] = "",
) -> None:
    """Ask models the cases of a task, score the answers, and say which ones are good enough.

    Exit codes: 0 all are qualified, 1 one is disqualified, 2 a wrong option or dataset, 3 a target does not answer, 4
    more cases are needed.
    """
    if spec is not None:
        code = run_job(
            spec, dataset=dataset, keys=keys, results=results, termination_log=termination_log, listen=listen
        )
        raise typer.Exit(code)
    hourly: dict[str, Decimal] = {}
    output = OutputFormat.JSON if as_json else output
    try:
        planned = [_target(text, hourly) for text in target or ()]
        if not planned or not dataset:
            raise InvalidSpec("Name a dataset and at least one target.", field="--dataset, --target")
        plan = _plan(
            {
                "task": "task",
                "dataset": dataset,
                "sampleSize": sample,
                "seed": seed,
                "targets": [one.model_dump(by_alias=True) for one in planned],
                "request": {"instructions": _text(instructions), "maxTokens": max_tokens, "timeoutSeconds": timeout},
                "scorer": _scorer(scorer, label, field, schema, tolerance, judge, _text(rubric)),
                "requirements": {
                    "quality": _quality(min_quality, within),
                    "confidencePermille": _permille(confidence, "--confidence"),
                    "firstTokenP99Milliseconds": first_token_p99,
                    "totalP99Milliseconds": total_p99,
                    "malformedPermille": _permille(max_malformed, "--max-malformed"),
                    "costPerThousandTasksUSD": max_cost,
                },
                "weirdInputs": "Included" if weird_inputs else "Excluded",
                "concurrency": concurrency,
                "maxHostedUSD": max_usd,
            }
        )
        began = time.monotonic()
        with _progress(output) as show:
            run, store = asyncio.run(execute(plan, results, show))
        found = _results(plan, run, hourly, time.monotonic() - began)
    except Transient as error:
        fail(error, EXIT_UNREACHABLE)
    except FlotillaError as error:
        fail(error, EXIT_USAGE)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({"datasetDigest": run.dataset_digest, "ended": run.ended, "results": found}, indent=2))
    else:
        _print(plan, run, found, store)
    raise typer.Exit(_exit_code(found))


def _exit_code(found: Sequence[Mapping[str, Any]]) -> int:
    verdicts = {result["verdict"] for result in found}
    if "Disqualified" in verdicts:
        return EXIT_NO
    return EXIT_INCONCLUSIVE if "Inconclusive" in verdicts else EXIT_OK


def _text(given: str | None) -> str | None:
    """The text, or the content of the file that `@FILE` names."""
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{given[1:]} cannot be read: {error}", field="FILE") from error


def _target(text: str, hourly: dict[str, Decimal]) -> PlannedTarget:
    name, _, rest = text.partition("=")
    url, *options = rest.split(",")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) or not rest:
        raise InvalidSpec(
            f"--target {text!r} is not NAME=URL, such as small=http://localhost:8000/v1.", field="--target"
        )
    values: dict[str, Any] = {"name": name, "url": addresses.base_url(url, field="--target")}
    for option in options:
        key, _, value = option.partition("=")
        if key == "model":
            values["model"] = value
        elif key == "key":
            values["key_variable"] = value
        elif key == "price":
            price = re.fullmatch(r"([0-9.]+)/([0-9.]+)", value)
            if price is None:
                raise InvalidSpec(f"price {value!r} is not IN/OUT, such as 0.25/2.", field="--target")
            values["price"] = {"inputPerMTok": price[1], "outputPerMTok": price[2]}
        elif key == "gpu-hour":
            hourly[name] = _decimal(value, "gpu-hour")
        else:
            raise InvalidSpec(f"{option!r} is none of model=, key=, price= and gpu-hour=.", field="--target")
    try:
        return PlannedTarget.model_validate(values)
    except ValidationError as error:
        raise InvalidSpec(f"{text!r}: {error.errors()[0]['msg']}.", field="--target") from error


def _decimal(text: str, what: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or value < 0:
        raise InvalidSpec(f"{what} {text!r} is no number of dollars.", field="--target")
    return value


def _plan(values: dict[str, Any]) -> RunPlan:
    try:
        plan = RunPlan.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{path} {first['input']!r}: {first['msg']}.", field=path) from error
    names = [target.name for target in plan.targets]
    quality = plan.requirements.quality
    wanted = [quality.within_permille_of.target] if quality and quality.within_permille_of else []
    wanted += [plan.scorer.judge.target] if plan.scorer.judge else []
    for name in wanted:
        if name not in names:
            raise InvalidSpec(f"{name!r} is none of the targets: {', '.join(names)}.", field="--within, --judge")
    if len(set(names)) < len(names):
        raise InvalidSpec("Two targets have the same name.", field="--target")
    return plan


def _scorer(
    scorer: str,
    labels: Sequence[str] | None,
    fields: Sequence[str] | None,
    schema: Path | None,
    tolerance: str | None,
    judge: str | None,
    rubric: str | None,
) -> dict[str, Any]:
    method = _METHODS.get(scorer)
    if method is None:
        raise InvalidSpec(f"{scorer!r} is none of {', '.join(_METHODS)}.", field="--scorer")
    if (method is ScoringMethod.JUDGE) != (judge is not None and rubric is not None):
        raise InvalidSpec("--judge and --rubric belong to --scorer judge: set all three or none.", field="--scorer")
    read = None if schema is None else json.loads(_text(f"@{schema}") or "")
    return {
        "method": method,
        "labels": list(labels or ()),
        "fields": list(fields or ()),
        "jsonSchema": read,
        "tolerance": tolerance,
        "judge": None if judge is None else {"target": judge, "rubric": rubric},
    }


def _quality(least: float | None, within: str | None) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if least is not None:
        found["minPermille"] = _permille(least, "--min-quality")
    if within is not None:
        name, _, share = within.partition(":")
        try:
            found["withinPermilleOf"] = {"target": name, "permille": _permille(float(share), "--within")}
        except ValueError as error:
            raise InvalidSpec(f"{within!r} is not TARGET:SHARE, such as frontier:0.02.", field="--within") from error
    return found or None


def _permille(share: float | None, field: str) -> int | None:
    if share is None:
        return None
    if not 0 <= share <= 1:
        raise InvalidSpec(f"{field} {share} is not a share between 0 and 1, such as 0.95.", field=field)
    return round(1000 * share)


@contextmanager
def _progress(output: OutputFormat) -> Iterator[Callable[[EvaluationRun], None]]:
    """A bar on standard error; nothing where that is no terminal, or JSON is wanted."""
    if output is OutputFormat.JSON or not sys.stderr.isatty():
        yield lambda run: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("asking", total=None)
        yield lambda run: progress.update(bar, completed=run.cases_done, total=run.cases_total)


def _results(plan: RunPlan, run: RunSummary, hourly: Mapping[str, Decimal], seconds: float) -> list[dict[str, Any]]:
    """Of each target. The GPU of one that is named with its price counts for the whole run."""
    usd = hosted_usd(run) | {name: rate * Decimal(seconds) / 3600 for name, rate in hourly.items()}
    return [target_result(target, plan.requirements, usd.get(target.target), ended=run.ended) for target in run.targets]


def _print(plan: RunPlan, run: RunSummary, found: Sequence[Mapping[str, Any]], store: Sequence[CaseResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False)
    confidence = plan.requirements.confidence_permille / 10
    heading = f"{plan.dataset}, {plan.scorer.method}, {confidence:g} % confidence; times are 99th percentiles"
    console.print(f"{plain(heading)}\n", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("target", "verdict"):
        table.add_column(name, no_wrap=name == "verdict", overflow="fold")
    for name in ("quality %", "cases", "first ms", "total ms", "$/1000"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in found:
        table.add_row(*_row(result))
    console.print(table, "")
    for result in found:
        console.print(f"{result['target']}: {plain(result['message'])}", markup=False)
        for one in result.get("slices", ())[:5]:
            share = one["qualityPermille"] / 10
            console.print(f"  {plain(one['name'])}: {share:.1f} % of {one['cases']} cases", markup=False)
        for line in _mistakes(result["target"], store):
            console.print(f"  {line}", markup=False)


def _row(result: Mapping[str, Any]) -> list[str]:
    interval = f"({result['lowPermille'] / 10:.1f}-{result['highPermille'] / 10:.1f})"
    quality = f"{result['qualityPermille'] / 10:.1f} {interval}" if "qualityPermille" in result else "-"
    cost = f"{Decimal(result['costPerThousandTasksUSD']):.3f}" if "costPerThousandTasksUSD" in result else "-"
    return [
        result["target"],
        result["verdict"],
        quality,
        str(result["cases"]),
        str(result.get("firstTokenP99Milliseconds", "-")),
        str(result.get("totalP99Milliseconds", "-")),
        cost,
    ]


def _mistakes(target: str, store: Sequence[CaseResult]) -> Iterator[str]:
    """The most frequent wrong labels, and failures."""
    mine = [result for result in store if result.target == target]
    wrong = Counter(result.said for result in mine if result.permille == 0 and result.said)
    if wrong:
        said = ", ".join(f"{plain(label)} ({count})" for label, count in wrong.most_common(5))
        yield f"wrong answers: {said}"
    failures = Counter(result.error for result in mine if result.error)
    for error, count in failures.most_common(2):
        yield f"{count} failed: {plain(error)[:150]}"
