"""The task of a request by a classifier model, and the calibration of its confidence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from flotilla.api.routing_policy import CalibrationPoint, Classifier
from flotilla.catalog.providers import least_effort
from flotilla.errors import InvalidSpec
from flotilla.routing.decide import Permit, data_class
from flotilla.routing.document import Policy, Target
from flotilla.routing.request import Features, Operation, features_of

ANSWER_TOKENS = 16
REASONED_ANSWER_TOKENS: Final = 512
"""Of a model that cannot answer without reasoning, at its least effort."""
_INSTRUCTION = """Which task is the request of the user? Answer with one of these names and nothing else.
{tasks}
other: none of these"""


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the classifier. It takes none of the request's attempts; its tokens count as those of any target."""

    permit: Permit
    body: dict[str, Any]
    """Of a chat completion, whole and not streamed; its model name is the target's own."""
    features: Features
    """What it may cost is reserved by these."""
    timeout_s: int


def question(policy: Policy, features: Features, body: Mapping[str, Any]) -> Question | None:
    """What to ask, None where there is nothing to ask: no classifier, no rule that looks at the task, a task that is
    known, or data that may not go to the classifier's target."""
    classifier = policy.classifier
    if classifier is None or features.task is not None or not policy.matches_tasks:
        return None
    _, allowed = data_class(policy, features)
    text = _last_user_text(body) if features.operation is Operation.CHAT else ""
    if classifier.target not in allowed or not text:
        return None
    target = policy.target[classifier.target]
    asked = _body(classifier, target, text)
    return Question(Permit(target, allowed), asked, features_of(asked, {}, policy), classifier.timeout_seconds)


def task_of(answer: Mapping[str, Any], policy: Policy) -> str | None:
    """The task that an answer names, None where it names none of the policy's. Never the text of the model."""
    classifier = policy.classifier
    if classifier is None:
        return None
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(content, str):
        return None
    named = content.strip().strip("\"'`.*").casefold()
    return next((task.name for task in classifier.tasks if task.name == named), None)


def _body(classifier: Classifier, target: Target, text: str) -> dict[str, Any]:
    tasks = "\n".join(f"{task.name}: {task.description}" for task in classifier.tasks)
    excerpt = text.encode(errors="replace")[: classifier.max_prompt_bytes].decode(errors="ignore")
    effort = None
    if target.hosted is not None:
        hosted = target.hosted
        effort = least_effort(hosted.provider, hosted.base_url, hosted.base_model or hosted.served_model)
    # A model that reasons needs tokens before its first word.
    thinking = {} if effort is None else {"reasoning_effort": effort}
    return {
        "model": target.served_model,
        "messages": [
            {"role": "system", "content": _INSTRUCTION.format(tasks=tasks)},
            {"role": "user", "content": excerpt},
        ],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS if effort is None else REASONED_ANSWER_TOKENS,
        **thinking,
    }


def _last_user_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    for message in reversed(messages) if isinstance(messages, list) else ():
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else ()
        texts = (part.get("text") for part in parts if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


MIN_SAMPLES: Final = 200
MIN_OF_EACH: Final = 20
"""Right and wrong answers each: with fewer, a single one moves the curve by more than is worth deciding on."""
MAX_POINTS: Final = 64
"""As many as a policy may list."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer of the model: its margin from 0 to 1, and whether it was wrong."""

    margin: float
    wrong: bool


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring margins with one error rate."""

    low: int
    high: int
    wrong: float
    count: int

    @property
    def rate(self) -> float:
        return self.wrong / self.count

    def __add__(self, other: "_Block") -> "_Block":
        return _Block(self.low, other.high, self.wrong + other.wrong, self.count + other.count)


def fit(samples: Iterable[Judged]) -> list[CalibrationPoint]:
    """The curve that is nearest to the samples and never rises with the margin (pool adjacent violators).

    Raises InvalidSpec where there are too few answers.
    """
    judged = list(samples)
    wrong = sum(sample.wrong for sample in judged)
    if len(judged) < MIN_SAMPLES or min(wrong, len(judged) - wrong) < MIN_OF_EACH:
        raise InvalidSpec(
            f"{len(judged)} judged answers, {wrong} of them wrong, are too few for a calibration. Judge at least "
            f"{MIN_SAMPLES}, with {MIN_OF_EACH} right and {MIN_OF_EACH} wrong ones among them.",
            reason="TooFewSamples",
        )
    return _curve(judged)


def _curve(judged: Iterable[Judged]) -> list[CalibrationPoint]:
    blocks = _pooled(_by_margin(judged))
    while len(blocks) > MAX_POINTS // 2:
        nearest = min(range(len(blocks) - 1), key=lambda i: blocks[i].rate - blocks[i + 1].rate)
        blocks[nearest : nearest + 2] = [blocks[nearest] + blocks[nearest + 1]]
    points = {margin: round(1000 * block.rate) for block in blocks for margin in (block.low, block.high)}
    if len(points) == 1:
        (only,) = points.items()
        points = {0: only[1], 1000: only[1]}
    return [CalibrationPoint(margin_permille=margin, error_permille=error) for margin, error in points.items()]


def error_probability(points: Sequence[CalibrationPoint], margin: float) -> float:
    """From 0 to 1: on the line between the two nearest points, and level beyond the outer ones."""
    wanted = 1000 * margin
    before = points[0]
    for point in points:
        if wanted <= point.margin_permille:
            width = point.margin_permille - before.margin_permille
            share = (wanted - before.margin_permille) / width if width > 0 else 1.0
            return (before.error_permille + share * (point.error_permille - before.error_permille)) / 1000
        before = point
    return before.error_permille / 1000


def expected_calibration_error(points: Sequence[CalibrationPoint], samples: Sequence[Judged], bins: int = 10) -> float:
    """The mean distance from what is predicted to what happened, over bins of equal width (Naeini et al. 2015)."""
    filled: dict[int, list[tuple[float, bool]]] = {}
    for sample in samples:
        predicted = error_probability(points, sample.margin)
        filled.setdefault(min(int(predicted * bins), bins - 1), []).append((predicted, sample.wrong))
    gaps = (abs(sum(p for p, _ in bin_) - sum(wrong for _, wrong in bin_)) for bin_ in filled.values())
    return sum(gaps) / len(samples) if samples else 0.0


def held_out_error(samples: Sequence[Judged]) -> float:
    """The calibration error on answers that the curve has not seen: each half is predicted by the other."""
    # Files are often sorted in some way; the same file gives the same halves.
    mixed = Random(len(samples)).sample(list(samples), len(samples))  # noqa: S311 - not for secrets
    halves = mixed[::2], mixed[1::2]
    errors = (expected_calibration_error(_curve(a), b) * len(b) for a, b in (halves, halves[::-1]))
    return sum(errors) / len(samples)


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """What escalating above one probability of an error would have done to the judged answers; shares from 0 to 1."""

    above_permille: int
    escalated: float
    wrong_before: float
    wrong_after: float
    """Of the answers that would have been kept; None of them: 0."""


def tradeoffs(points: Sequence[CalibrationPoint], samples: Sequence[Judged], above: Iterable[int]) -> list[Tradeoff]:
    """One row for each probability, in thousandths."""
    found = []
    for permille in above:
        kept = [sample for sample in samples if error_probability(points, sample.margin) * 1000 <= permille]
        found.append(
            Tradeoff(
                permille,
                1 - len(kept) / len(samples),
                sum(sample.wrong for sample in samples) / len(samples),
                sum(sample.wrong for sample in kept) / len(kept) if kept else 0.0,
            )
        )
    return found


def _by_margin(samples: Iterable[Judged]) -> list[_Block]:
    """Samples of the same thousandth together, by rising margin."""
    found: dict[int, _Block] = {}
    for sample in samples:
        margin = min(max(round(1000 * sample.margin), 0), 1000)
        here = _Block(margin, margin, float(sample.wrong), 1)
        found[margin] = found[margin] + here if margin in found else here
    return [found[margin] for margin in sorted(found)]


def _pooled(blocks: Iterable[_Block]) -> list[_Block]:
    """Neighbours are put together until the rate falls from each to the next."""
    done: list[_Block] = []
    for block in blocks:
        while done and done[-1].rate <= block.rate:
            block = done.pop() + block
        done.append(block)
    return done
