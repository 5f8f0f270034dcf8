"""Anthropic's SDK, loaded when the first test asks for it.

Every worker reads every test, and importing it is a fifth of that: 0.9 of 4.3 s of CPU. `tests.support.lanes` gives
the tests that ask to one worker.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter


class _Lazily:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks at all that a module holds
            raise AttributeError(name)
        return getattr(importlib.import_module(self._module), name)


if TYPE_CHECKING:
    import anthropic as anthropic
else:
    anthropic = _Lazily("anthropic")


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(getattr(anthropic.types, name))


def check_request(body: Any) -> None:
    """Raises pydantic's ValidationError where the body is none of a Messages request."""
    _adapter("MessageCreateParams").validate_python(body)


def check_event(event: Any) -> None:
    """The same of an event of its stream."""
    _adapter("RawMessageStreamEvent").validate_python(event)


def check_message(message: Any) -> None:
    """The same of a whole answer."""
    _adapter("Message").validate_python(message)
