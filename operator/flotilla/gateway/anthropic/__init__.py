"""OpenAI's chat completions spoken to a hosted model of Anthropic's Messages API, version 2026-10-21.

Requests go one way (`request`), answers, errors (`answer`) and streams (`stream`) the other. What Anthropic has no word
for is refused where the client would miss it in the answer, and dropped and named where it only steers.
"""

from flotilla.gateway.anthropic.answer import answer, error
from flotilla.gateway.anthropic.messages import Untranslatable
from flotilla.gateway.anthropic.request import DROPPED_HEADER, PATH, Request, headers, passed_on, request
from flotilla.gateway.anthropic.stream import StreamTranslator

__all__ = [
    "DROPPED_HEADER",
    "PATH",
    "Request",
    "StreamTranslator",
    "Untranslatable",
    "answer",
    "error",
    "headers",
    "passed_on",
    "request",
]
