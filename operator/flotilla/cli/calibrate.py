"""`flotilla route calibrate`: from judged answers of a small model to the points that a policy's `confidence` needs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.cli import exits
from flotilla.cli.endings import end
from flotilla.errors import InvalidSpec

if TYPE_CHECKING:
    from flotilla.routing.classify import Judged

_ABOVE_PERMILLE = (50, 100, 150, 200, 300, 500)


def calibrate(
    answers: Annotated[Path, typer.Argument(help="JSON lines: answer (or margin) and wrong.")],
) -> None:
    """Fit a calibration and print it as YAML; what it is worth goes to stderr.

    Each line holds `wrong` (true or false, as somebody judged) and `answer`, the body of a chat completion that was
    asked for with logprobs: true and top_logprobs: 2, or `margin` itself.
    """
    import yaml

    from flotilla.routing.classify import fit

    try:
        samples = list(_read(answers))
        points = fit(samples)
    except (InvalidSpec, OSError) as error:
        end(error, exits.WRONG_QUESTION)
    typer.echo("\n".join(_report(points, samples)), err=True)
    listed = [point.model_dump(mode="json", by_alias=True) for point in points]
    typer.echo(yaml.safe_dump({"calibration": listed}, sort_keys=False), nl=False)


def _report(points: Any, samples: "list[Judged]") -> Iterator[str]:
    from flotilla.api.routing_policy import CalibrationPoint
    from flotilla.routing.classify import expected_calibration_error, held_out_error, tradeoffs

    raw = [CalibrationPoint(margin_permille=margin, error_permille=1000 - margin) for margin in (0, 1000)]
    yield f"{len(samples)} answers, {sum(sample.wrong for sample in samples)} of them wrong."
    yield (
        f"Calibration error on answers not seen: {held_out_error(samples):.3f} "
        f"(of the margin as it is: {expected_calibration_error(raw, samples):.3f})."
    )
    yield "escalateAboveErrorPermille   escalated   wrong among the kept"
    for row in tradeoffs(points, samples, _ABOVE_PERMILLE):
        kept = f"{row.wrong_after:20.1%}" if row.escalated < 1 else f"{'-':>20}"
        yield f"{row.above_permille:26}   {row.escalated:9.1%}   {kept}"


def _read(path: Path) -> "Iterator[Judged]":
    from flotilla.routing.check import choices_of
    from flotilla.routing.classify import Judged
    from flotilla.routing.escalation import margin_p10

    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidSpec(f"{place} is no JSON: {error}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("wrong"), bool):
            raise InvalidSpec(f'{place} needs "wrong": true or false.')
        margin = entry.get("margin")
        if margin is None and isinstance(entry.get("answer"), dict):
            choice = next(iter(choices_of(entry["answer"])), None)
            margin = margin_p10(choice.text, choice.logprobs) if choice is not None else None
        if not isinstance(margin, int | float) or not 0 <= margin <= 1:
            raise InvalidSpec(
                f'{place} needs "margin" from 0 to 1, or "answer" with the probabilities of its tokens. '
                "Ask with logprobs: true, top_logprobs: 2."
            )
        yield Judged(float(margin), entry["wrong"])
