"""Traffic as an application would send it: through the `openai` client, to a model's Service."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAI

PROMPT = (
    "Classify the support ticket into one of: billing, outage, feature request, other. "
    "Ticket {number}: the invoice of last month lists a cluster that we deleted in spring, "
    "and the dashboard still shows its nodes. Answer with the label and one sentence why."
)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients of one model that send a request as soon as the last one is answered."""

    url: str
    model: str
    clients: int
    max_tokens: int = 160


@dataclass(slots=True)
class Tally:
    """What a burst did."""

    requests: int = 0
    failed: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one streamed answer took."""

    first_token_s: float
    total_s: float
    tokens: int


def stream(base_url: str, model: str, on_text: Callable[[str], None], *, prompt: str, max_tokens: int) -> Streamed:
    """Stream one chat completion, greedily; `on_text` gets each piece of the answer."""
    client = OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    started, first_s, tokens = time.monotonic(), 0.0, 0
    with client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as chunks:
        for chunk in chunks:
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
            if chunk.choices and chunk.choices[0].delta.content:
                first_s = first_s or time.monotonic() - started
                on_text(chunk.choices[0].delta.content)
    return Streamed(first_s, time.monotonic() - started, tokens)


async def burst(crowds: Iterable[Crowd], *, until: Callable[[], bool], tally: Tally) -> None:
    """Keep every client of every crowd busy until `until()` says stop, then let the requests in flight finish."""

    async def worker(client: AsyncOpenAI, crowd: Crowd, number: int) -> None:
        while not until():
            try:
                answer = await client.chat.completions.create(
                    model=crowd.model,
                    messages=[{"role": "user", "content": PROMPT.format(number=number)}],
                    max_tokens=crowd.max_tokens,
                )
            except (APIConnectionError, APIStatusError):
                tally.failed += 1
                await asyncio.sleep(0.5)
            else:
                tally.requests += 1
                tally.output_tokens += answer.usage.completion_tokens if answer.usage else 0

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for crowd in crowds:
            client = AsyncOpenAI(base_url=crowd.url, api_key="unused", max_retries=0, timeout=60)
            await stack.enter_async_context(client)
            for number in range(crowd.clients):
                group.create_task(worker(client, crowd, number))
