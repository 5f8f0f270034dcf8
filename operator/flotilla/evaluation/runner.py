"""Ask the targets of a plan its cases, at the stated concurrency, and score what comes.

Targets of one host are asked one after the other, so that none is measured under the load of another; those of
different hosts at the same time. Each result is kept as it comes. When a limit or a signal ends the run early, what is
there counts.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from flotilla.api.evaluation import WeirdInputs
from flotilla.errors import InvalidSpec, Transient
from flotilla.evaluation.dataset import Case, CaseSet, parse_dataset, request_messages, sampled, weird_cases
from flotilla.evaluation.dataset_client import read_dataset
from flotilla.evaluation.plan import PlannedTarget, RunPlan, most_usd, usage_usd
from flotilla.evaluation.results_store import CaseResult, ResultsStore
from flotilla.evaluation.scorers import Score, Scorer, judge_messages, judged, read_judgement
from flotilla.evaluation.summary import RunSummary, summarize
from flotilla.evaluation.target_client import CaseAnswer, TargetClient, open_session

_UNREACHABLE_AFTER = 8
"""Requests in a row without any answer of the server: the target is down, and its cases are not asked in vain."""
_UNDECIDED = "the judge did not decide"
_JUDGE_TOKENS = 64
_JUDGES_AT_ONCE = 8
_UNJUDGED = 64
"""Answers that wait for the judge; more hold up the target's next cases."""
SPENDING_LIMIT = "SpendingLimit"


@dataclass(slots=True)
class _Budget:
    """Dollars for hosted requests. What a request can cost at most is reserved before it is sent."""

    limit: Decimal
    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    exceeded: bool = False

    def reserve(self, usd: Decimal) -> bool:
        """Whether there is room."""
        if self.spent + self.reserved + usd > self.limit:
            self.exceeded = True
            return False
        self.reserved += usd
        return True

    def settle(self, reserved: Decimal, usd: Decimal) -> None:
        """The request has cost `usd`."""
        self.reserved -= reserved
        self.spent += usd


class EvaluationRun:
    """One run of a plan; `run` it once. `summary` can be asked at any time."""

    def __init__(
        self,
        plan: RunPlan,
        dataset: CaseSet,
        store: ResultsStore,
        clients: Mapping[str, TargetClient],
        *,
        on_result: Callable[["EvaluationRun"], None] = lambda _: None,
    ) -> None:
        """`clients` by the name of their target. Raises DatasetInvalid where the scorer cannot use a case."""
        self.plan = plan
        self.store = store
        self.clients = clients
        self.on_result = on_result
        self._digest = dataset.digest
        self.cases = sampled(dataset.cases, plan.sample_size, plan.seed)
        self.weird = weird_cases() if plan.weird_inputs is WeirdInputs.INCLUDED else []
        self.scorer = Scorer(plan.scorer, self.cases)
        self.budget = _Budget(
            Decimal(plan.max_hosted_usd), sum((Decimal(result.charged_usd) for result in store.results), Decimal(0))
        )
        self.judging = asyncio.Semaphore(_JUDGES_AT_ONCE)
        asked = (*self.cases, *self.weird)
        self.cases_done = sum(store.has(target.name, case.id) for target in plan.scored for case in asked)
        """How many of `cases_total` have a result."""

    @property
    def summary(self) -> RunSummary:
        """Of the results so far."""
        ended = SPENDING_LIMIT if self.budget.exceeded else ""
        return summarize(self.plan, self.cases, self.weird, self.store.results, self._digest, ended)

    @property
    def cases_total(self) -> int:
        """Cases and weird inputs of all targets."""
        return (len(self.cases) + len(self.weird)) * len(self.plan.scored)

    async def run(self) -> RunSummary:
        """Ask what has no result yet. Raises Transient when a target does not answer at all: run it again later."""
        hosts: dict[str, list[PlannedTarget]] = defaultdict(list)
        for target in self.plan.scored:
            hosts[target.host or target.url].append(target)
        if self.plan.judge is not None:
            await self.clients[self.plan.judge.name].find_model()
        try:
            async with asyncio.TaskGroup() as group:
                for targets in hosts.values():
                    group.create_task(self._one_after_the_other(targets))
        except BaseExceptionGroup as failures:
            # All are of one cause as a rule, and the first names its target.
            raise _first(failures) from failures
        return self.summary

    async def _one_after_the_other(self, targets: Sequence[PlannedTarget]) -> None:
        for target in targets:
            await _Turn(self, target).run()


class _Turn:
    """One target's turn within a run."""

    def __init__(self, run: EvaluationRun, target: PlannedTarget) -> None:
        self._run = run
        self._plan = run.plan
        self._target = target
        self._client = run.clients[target.name]
        # Weird inputs come last: one that breaks the server must not take cases along.
        self._left = [case for case in reversed((*run.cases, *run.weird)) if not run.store.has(target.name, case.id)]
        self._strange = {case.id for case in run.weird}
        self._silent = 0
        self._unjudged = asyncio.Semaphore(_UNJUDGED)

    async def run(self) -> None:
        """Until every case has a result, or no dollars are left."""
        if not self._left:
            return
        await self._client.find_model()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.concurrency):
                group.create_task(self._work(group))

    async def _work(self, group: asyncio.TaskGroup) -> None:
        while self._left:
            case = self._left.pop()
            reserved = self._most_usd(case)
            if not self._run.budget.reserve(reserved):
                self._left.clear()
                return
            answer = await self._client.ask(
                request_messages(case, self._plan.request.instructions),
                {**(self._plan.request.parameters or {}), **case.parameters},
                max_tokens=self._plan.request.max_tokens,
                timeout_s=self._plan.request.timeout_seconds,
            )
            self._silent = self._silent + 1 if answer.error and not answer.status else 0
            if self._silent >= _UNREACHABLE_AFTER:
                raise Transient(
                    f"Target {self._target.name!r} did not answer {self._silent} requests in a row; the last failure: "
                    f"{answer.error}. The run continues where it was when it is started again."
                )
            usd = self._usd(answer)
            # Without a report of its usage a request counts with what it can cost at most.
            refused = bool(answer.error) and answer.status != 408
            charged = Decimal(0) if refused else reserved if usd is None else usd
            self._run.budget.settle(reserved, charged)
            if self._plan.judge is None:
                await self._score(case, answer, usd, charged)
            else:
                # Judged beside the next cases, so that the judge's time does not lower the load on the target.
                await self._unjudged.acquire()
                group.create_task(self._score(case, answer, usd, charged)).add_done_callback(
                    lambda _: self._unjudged.release()
                )

    async def _score(self, case: Case, answer: CaseAnswer, usd: Decimal | None, charged: Decimal) -> None:
        strange = case.id in self._strange
        if answer.error:
            score = Score(0, malformed=not (strange and answer.refused))
        else:
            score = self._run.scorer.score(answer.text, case)
        error = answer.error
        if self._plan.judge is not None and not strange and not answer.error and not score.malformed:
            async with self._run.judging:
                outcome = await self._judge(self._plan.judge, case, answer.text)
            if outcome is None:
                # No dollars are left: the case stays without a result.
                return
            found, judge_usd = outcome
            charged += judge_usd
            error = "" if found is not None else _UNDECIDED
            score = found or score
        self._run.store.add(
            CaseResult(
                target=self._target.name,
                case=case.id,
                permille=None if strange or error == _UNDECIDED else score.permille,
                malformed=score.malformed,
                first_token_ms=None if answer.first_token_s is None else round(1000 * answer.first_token_s, 1),
                total_ms=None if answer.error else round(1000 * answer.total_s, 1),
                prompt_tokens=answer.prompt_tokens,
                cached_tokens=answer.cached_tokens,
                generated_tokens=answer.generated_tokens,
                usd=None if usd is None else str(usd),
                charged_usd=str(charged),
                said=score.said,
                answer=answer.text,
                error=error,
            )
        )
        self._run.cases_done += 1
        self._run.on_result(self._run)

    async def _judge(self, judge: PlannedTarget, case: Case, answer: str) -> tuple[Score | None, Decimal] | None:
        """The score, None where the judge does not decide, and its dollars; None where no dollars are left for it."""
        rubric = self._plan.scorer.judge.rubric if self._plan.scorer.judge else ""
        expected = case.expected if isinstance(case.expected, str) else None
        pairs = [(answer, expected)] if expected is None else [(answer, expected), (expected, answer)]
        words: list[str] = []
        spent = Decimal(0)
        for first, second in pairs:
            messages = judge_messages(rubric, case, first, second)
            size = sum(len(str(message.get("content"))) for message in messages)
            most = (
                Decimal(0)
                if judge.price is None
                else most_usd(judge.price, prompt_bytes=2 * size, max_tokens=_JUDGE_TOKENS)
            )
            if not self._run.budget.reserve(most):
                return None
            said = await self._run.clients[judge.name].ask(
                messages, {}, max_tokens=_JUDGE_TOKENS, timeout_s=self._plan.request.timeout_seconds
            )
            usd = _usd_of(judge, said)
            cost = most if usd is None else usd
            self._run.budget.settle(most, cost)
            spent += cost
            word = read_judgement(said.text, compared=expected is not None)
            if said.error or word is None:
                return None, spent
            words.append(word)
        return judged(words[0], words[1] if len(words) > 1 else None), spent

    def _most_usd(self, case: Case) -> Decimal:
        price = self._target.price
        if price is None:
            return Decimal(0)
        size = sum(len(str(message.get("content")).encode()) for message in case.messages)
        return most_usd(
            price,
            prompt_bytes=size + len(self._plan.request.instructions or ""),
            max_tokens=self._plan.request.max_tokens,
        )

    def _usd(self, answer: CaseAnswer) -> Decimal | None:
        return _usd_of(self._target, answer)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _usd_of(target: PlannedTarget, answer: CaseAnswer) -> Decimal | None:
    """By the usage that a hosted API reports; None without a price or a report."""
    if target.price is None or answer.prompt_tokens is None or answer.generated_tokens is None:
        return None
    return usage_usd(
        target.price, prompt=answer.prompt_tokens, cached=answer.cached_tokens, generated=answer.generated_tokens
    )


async def execute(
    plan: RunPlan, results: Path | None, show: Callable[[EvaluationRun], None]
) -> tuple[RunSummary, list[CaseResult]]:
    """The whole run, from the dataset to the summary and the results of cases. `show` gets it whenever it advances.

    Raises InvalidSpec where only a change of the plan or the dataset helps, and Transient as `EvaluationRun.run` does.
    """
    dataset = parse_dataset(await read_dataset(plan.dataset))
    keys = {target.name: _key(target) for target in plan.targets}
    store = ResultsStore(results, plan.digest(dataset.digest))
    try:
        async with open_session(_hosts()) as session:
            clients = {target.name: TargetClient(session, target, keys[target.name]) for target in plan.targets}
            run = EvaluationRun(plan, dataset, store, clients, on_result=show)
            show(run)
            return await run.run(), store.results
    finally:
        store.close()


def _key(target: PlannedTarget) -> str:
    if target.key_variable:
        key = os.environ.get(target.key_variable, "")
        if not key:
            raise InvalidSpec(f"The variable {target.key_variable} holds no key.", field="--target")
        return key
    if not target.key_file:
        return ""
    try:
        return Path(target.key_file).read_text().strip()
    except OSError as error:
        raise InvalidSpec(
            f"The API key of target {target.name!r} is missing: create the Secret and key of its secretRef.",
            field="secretRef",
            reason="KeyMissing",
        ) from error


def _hosts() -> dict[str, str]:
    """Addresses of Services by name: the local cluster has no DNS and sets this variable instead."""
    pairs = (item.partition("=") for item in os.environ.get("FLOTILLA_SERVICE_HOSTS", "").split(",") if item)
    return {name: address for name, _, address in pairs}
