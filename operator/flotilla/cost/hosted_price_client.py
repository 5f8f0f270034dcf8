"""Hosted prices on request, looked up in a child process that takes the catalogue's memory with it when it ends."""

import asyncio
import pickle
import sys
from datetime import UTC, datetime

from flotilla.cost.hosted_prices import HostedPrice, find
from flotilla.errors import InvalidSpec, Transient

_TIMEOUT_S = 30.0

Answer = HostedPrice | tuple[str, str, str]
"""A price, or message, field and reason of the refusal."""


class HostedPriceLookup:
    """Each model is looked up once per process; concurrent lookups of one model share the answer."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, bool], asyncio.Task[Answer]] = {}

    async def find(self, provider: str, model: str, *, field: str, batch: bool = False) -> HostedPrice:
        """Raises InvalidSpec(field) for a model that the catalogue does not have, Transient when the child fails."""
        key = (provider, model, batch)
        if key not in self._answers:
            self._answers[key] = asyncio.create_task(_ask(*key))
        try:
            answer = await asyncio.shield(self._answers[key])
        except Transient:
            self._answers.pop(key, None)
            raise
        if isinstance(answer, HostedPrice):
            return answer
        message, part, reason = answer
        raise InvalidSpec(message, field=f"{field}{part}", reason=reason)


async def _ask(provider: str, model: str, batch: bool) -> Answer:
    argv = [sys.executable, "-m", "flotilla.cost.hosted_price_client", provider, model, *(["batch"] if batch else [])]
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, errors = await child.communicate()
    except TimeoutError as error:
        child.kill()
        raise Transient(f"The price of {provider}/{model} took longer than {_TIMEOUT_S:g} s.") from error
    if child.returncode != 0:
        raise Transient(f"The price of {provider}/{model} could not be looked up: {errors.decode()[-500:]}")
    answer: Answer = pickle.loads(output)  # noqa: S301 - written by our own child
    return answer


def main(provider: str, model: str, variant: str = "") -> None:
    """The child: print the pickled answer."""
    answer: Answer
    try:
        answer = find(provider, model, field="", at=datetime.now(UTC), batch=variant == "batch")
    except InvalidSpec as error:
        answer = (str(error), error.field, error.reason)
    sys.stdout.buffer.write(pickle.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:4])
