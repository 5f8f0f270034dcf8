"""A checked request of an OpenAI endpoint, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from flotilla.simulation.engine import SimulatedSequence
from flotilla_devcluster.engine.generation import Answer, Prompt, answers, text_prompt, token_prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer per choice, in the order of their index; `choices_per_prompt` of them for each prompt."""

    chat: bool
    prompts: tuple[Prompt, ...]
    answers: tuple[Answer, ...]
    choices_per_prompt: int
    max_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def prompt_of(self, index: int) -> Prompt:
        return self.prompts[index // self.choices_per_prompt]

    def sequences(self) -> list[SimulatedSequence]:
        """What the batcher has to make."""
        return [
            SimulatedSequence(
                prompt_tokens=self.prompt_of(index).tokens,
                output_tokens=answer.tokens,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(self.answers)
        ]


def ask(
    document: Mapping[str, Any],
    prompts: list[Prompt],
    *,
    chat: bool,
    count: int,
    limit: int | None,
    context: int,
    mean_tokens: int,
    force_usage: bool = False,
) -> Asked:
    """Plan `count` answers to each prompt of at most `limit` tokens, which fit with it into `context` tokens."""
    given = document.get("stream_options")
    stream_options = given if isinstance(given, dict) else {}
    planned = (
        answers(
            prompt,
            count=count,
            max_tokens=limit,
            room=context - prompt.tokens,
            mean_tokens=mean_tokens,
            ignore_eos=bool(document.get("ignore_eos")),
        )
        for prompt in prompts
    )
    return Asked(
        chat=chat,
        prompts=tuple(prompts),
        answers=tuple(chain.from_iterable(planned)),
        choices_per_prompt=count,
        max_tokens=context - prompts[0].tokens if limit is None else limit,
        stream=bool(document.get("stream")),
        include_usage=bool(stream_options.get("include_usage")) or force_usage,
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
    )


def prompts_of(given: Any) -> list[Prompt] | None:
    """Of a `prompt`: a text, a list of texts, token ids or a list of those. None: nothing of that."""
    if isinstance(given, str):
        return [text_prompt(given)]
    if not isinstance(given, list) or not given:
        return None
    if all(isinstance(item, int) for item in given):
        return [token_prompt(given)]
    if all(isinstance(item, str) for item in given):
        return [text_prompt(item) for item in given]
    if all(isinstance(item, list) for item in given):
        return [token_prompt(item) for item in given]
    return None
