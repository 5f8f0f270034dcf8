"""The run of an Evaluation's Job: a plan from a file, the summary as the container's termination message.

The Job has no right to the API. It answers GET /progress, which the operator asks. Its results are in a file, from
which a run that was killed continues.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from flotilla import logs
from flotilla.errors import InvalidSpec, Transient
from flotilla.evaluation.plan import RunPlan, load_plan
from flotilla.evaluation.runner import EvaluationRun, execute
from flotilla.evaluation.summary import RunSummary, message

log = logging.getLogger(__name__)

EXIT_OK, EXIT_AGAIN = 0, 3
_REPORT_S = 10.0


def run_job(
    spec: Path, *, dataset: str, keys: Path | None, results: Path | None, termination_log: Path | None, listen: str
) -> int:
    """Returns the exit code: EXIT_AGAIN where another attempt may succeed.

    `dataset` and `keys` say where the container finds what the plan names. EXIT_OK also where only a change of the spec
    helps: the Job would start the run again and again otherwise.
    """
    logs.configure("INFO", "json")
    try:
        try:
            plan = _here(load_plan(spec.read_bytes()), dataset, keys)
        except OSError as error:
            raise InvalidSpec(f"{spec} cannot be read: {error.strerror}.", field="--spec") from error
        summary = asyncio.run(_run(plan, results, listen))
    except Transient as error:
        log.error("the run is interrupted", extra={"cause": str(error)})
        _end(termination_log, RunSummary(error=str(error), reason="TargetUnreachable"))
        return EXIT_AGAIN
    except InvalidSpec as error:
        log.error("the run cannot succeed", extra={"cause": str(error)})
        _end(termination_log, RunSummary(error=str(error), reason=error.reason))
        return EXIT_OK
    log.info("the run has ended", extra={"cases": summary.cases_done, "early_end": summary.ended})
    _end(termination_log, summary)
    return EXIT_OK


def _here(plan: RunPlan, dataset: str, keys: Path | None) -> RunPlan:
    targets = [
        target.model_copy(update={"key_file": str(keys / target.key_file)}) if keys and target.key_file else target
        for target in plan.targets
    ]
    return plan.model_copy(update={"targets": targets, "dataset": dataset or plan.dataset})


def _end(termination_log: Path | None, summary: RunSummary) -> None:
    if termination_log is not None:
        termination_log.write_text(message(summary))


async def _run(plan: RunPlan, results: Path | None, listen: str) -> RunSummary:
    task = asyncio.current_task()
    assert task is not None
    # Without a handler, process 1 of a container ignores SIGTERM.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with contextlib.AsyncExitStack() as stack:
        shown: list[EvaluationRun] = []
        if listen:
            await stack.enter_async_context(_served(shown, listen))
        reporter = asyncio.create_task(_report(shown))
        stack.callback(reporter.cancel)
        summary, _ = await execute(plan, results, lambda run: shown.__setitem__(slice(None), [run]))
        return summary


async def _report(shown: list[EvaluationRun]) -> None:
    while True:
        await asyncio.sleep(_REPORT_S)
        if shown:
            log.info("progress", extra={"done": shown[0].cases_done, "total": shown[0].cases_total})


@contextlib.asynccontextmanager
async def _served(shown: list[EvaluationRun], listen: str) -> AsyncIterator[None]:
    """GET /progress."""

    async def progress(_: web.Request) -> web.Response:
        done, total = (shown[0].cases_done, shown[0].cases_total) if shown else (0, 0)
        return web.json_response({"casesDone": done, "casesTotal": total})

    server = web.Application()
    server.router.add_get("/progress", progress)
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        await web.TCPSite(runner, host, int(port)).start()
        yield
    finally:
        await runner.cleanup()
