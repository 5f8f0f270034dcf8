"""What a run does: the document that the operator gives to its Job, and that `flotilla evaluate` makes itself. Pure.

Everything is resolved in it: addresses instead of references, prices, files of keys. The run needs nothing else.
"""

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field, ValidationError

from flotilla.api.evaluation import RequestSpec, Requirements, ScorerSpec, WeirdInputs
from flotilla.api.routing_policy import Price
from flotilla.api.types import Model
from flotilla.errors import InvalidSpec

_MILLION = Decimal(10**6)


class _PlanPart(Model):
    """Writer and reader may be of different releases: what the reader does not know, it must not ignore."""

    model_config = ConfigDict(extra="forbid")


class PlannedTarget(_PlanPart):
    """A model that is asked, or that judges."""

    name: str
    url: str
    """Base URL of an OpenAI-compatible API, ending in /v1 or the like."""
    model: str = ""
    """As the API names it; empty for the first that the API lists."""
    provider: str = "OpenAI"
    """Of a hosted model; decides which fields it accepts."""
    revision: str = ""
    key_file: str = ""
    """File that holds the API key, below the folder of keys of a Job; empty without one."""
    key_variable: str = ""
    """Environment variable that holds it, for a run without files."""
    price: Price | None = None
    """Of a hosted model: its requests count against the limit on dollars."""
    host: str = ""
    """Targets of the same host share its capacity and are asked one after the other. Default: the target's own."""

    @property
    def hosted(self) -> bool:
        """Whether its requests cost dollars."""
        return self.price is not None


class RunPlan(_PlanPart):
    """One run."""

    task: str
    dataset: str
    """Path of a file, or s3:// or gs://."""
    sample_size: int | None = None
    seed: int = 0
    targets: Annotated[list[PlannedTarget], Field(min_length=1)]
    request: RequestSpec = RequestSpec()
    scorer: ScorerSpec
    requirements: Requirements = Requirements()
    weird_inputs: WeirdInputs = WeirdInputs.INCLUDED
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    max_hosted_usd: Annotated[str, Field(alias="maxHostedUSD")] = "5"

    @property
    def scored(self) -> Sequence[PlannedTarget]:
        """The targets that answer cases: all but the judge."""
        judge = self.scorer.judge
        return [target for target in self.targets if judge is None or target.name != judge.target]

    @property
    def judge(self) -> PlannedTarget | None:
        """The target that judges."""
        judge = self.scorer.judge
        return None if judge is None else next(target for target in self.targets if target.name == judge.target)

    def digest(self, dataset_digest: str) -> str:
        """Of all that the results of cases depend on: a run continues the results of another with the same digest."""
        parts = self.model_dump(mode="json", by_alias=True, exclude={"max_hosted_usd"})
        for target in parts["targets"]:
            del target["keyFile"], target["keyVariable"]
        return hashlib.sha256(orjson.dumps([dataset_digest, parts], option=orjson.OPT_SORT_KEYS)).hexdigest()


def load_plan(text: str | bytes) -> RunPlan:
    """Read a document; raises InvalidSpec with the field."""
    try:
        return RunPlan.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"The plan is not one of this release: {first['msg']}.", field=field or "--spec") from error


def usage_usd(price: Price, *, prompt: int, cached: int, generated: int) -> Decimal:
    """What a request has cost by its usage; `cached` are among `prompt`."""
    cached_price = price.cached_input_per_m_tok or price.input_per_m_tok
    usd = (prompt - cached) * Decimal(price.input_per_m_tok) + cached * Decimal(cached_price)
    return (usd + generated * Decimal(price.output_per_m_tok)) / _MILLION


def most_usd(price: Price, *, prompt_bytes: int, max_tokens: int, calls: int = 1) -> Decimal:
    """More than a request can cost: a token has at least two bytes as a rule, and templates add some."""
    prompt = Decimal(prompt_bytes) / 2 + 100
    each = prompt * Decimal(price.input_per_m_tok) + Decimal(max_tokens) * Decimal(price.output_per_m_tok)
    return calls * each / _MILLION


def dumped(plan: RunPlan) -> str:
    """The document."""
    parts: dict[str, Any] = plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    return orjson.dumps(parts).decode()
