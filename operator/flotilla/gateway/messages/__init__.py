"""Anthropic's Messages API offered to clients: the other way round than `gateway.anthropic`.

A request becomes one of chat completions (`request`, `turns`), which is what is decided about and sent; answers, errors
(`answer`) and streams (`stream`) become Anthropic's again. What chat completions have no word for is refused where the
client would miss it, and dropped and named where it only steers. Bytes and dicts in, bytes and dicts out.
"""

from flotilla.gateway.messages.answer import answer, error
from flotilla.gateway.messages.request import PATH, read
from flotilla.gateway.messages.stream import MessageStream

__all__ = ["PATH", "MessageStream", "answer", "error", "read"]
