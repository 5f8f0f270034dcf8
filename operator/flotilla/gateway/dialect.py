"""How requests to a target are written and its answers are read, in the API that the target speaks. Pure.

A `Dialect` belongs to one target: path, headers and key are made once for each of its origins. Targets speak OpenAI's
API, or Anthropic's, which is translated by `anthropic.outbound_requests` and `anthropic.outbound_responses`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from flotilla.catalog.providers import rules_for
from flotilla.gateway.anthropic.outbound_requests import (
    TARGET_PATH,
    message_from_chat,
    message_unchanged,
    request_headers,
)
from flotilla.gateway.anthropic.outbound_responses import (
    StreamTranslator,
    completion_from_message,
    error_from_anthropic,
)
from flotilla.gateway.credentials import Credential, Missing, TokenStore, credential_of
from flotilla.gateway.http.client import Origin
from flotilla.gateway.openai import requests
from flotilla.gateway.openai.requests import Body, TranslatedBody
from flotilla.routing.document import Target
from flotilla.routing.request import BOUNDS, Operation

DROPPED_HEADER: Final = "x-flotilla-dropped"
"""Response header with the names of request fields that had no effect."""
_NAMES: Final = 20
_NAME_LENGTH: Final = 60


@dataclass(frozen=True, slots=True)
class Extras:
    """What the gateway asks of a target beyond what the client asked for, and removes from the answer."""

    usage: bool = False
    logprobs: bool = False
    bound: int | None = None
    """Tokens of the answer that a budget has reserved, of a request that has no bound of its own."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The body of one request to a target."""

    content: bytes
    dropped: tuple[str, ...] = ()
    """Fields of the client's request that the target's API does not have, and that were left out."""


class Dialect:
    """Writes the requests to one target and reads its answers."""

    def __init__(self, target: Target, key: str | None, tokens: TokenStore | None = None) -> None:
        self._target = target
        self._key = key
        self._credential: Credential | None = None
        self._heads: dict[tuple[Origin, Operation], bytes] = {}
        hosted = target.hosted
        if hosted is not None and hosted.provider != "Anthropic":
            self._credential = credential_of(hosted.provider, hosted.base_url, key, tokens or TokenStore())
        tiers = frozenset(tier.name for tier in target.price.service_tiers) if target.price is not None else frozenset()
        self._rules = (
            None
            if hosted is None
            else rules_for(hosted.provider, hosted.base_url, hosted.base_model or hosted.served_model, tiers)
        )
        self._bound_field = "max_tokens" if self._rules is None else self._rules.bound_field
        self.speaks_anthropic = target.hosted is not None and target.hosted.provider == "Anthropic"

    @property
    def key_problem(self) -> str:
        """Why a hosted target cannot be called: its Secret is missing, or its access token; empty if it can."""
        if self._credential is not None:
            return self._credential.problem
        return Missing().problem if self._target.hosted is not None and self._key is None else ""

    def payload(self, body: Body, extras: Extras, operation: Operation = Operation.CHAT) -> Payload:
        """The body for the target. Raises UntranslatableRequest."""
        model = self._target.served_model
        own = body if type(body) is TranslatedBody else None
        if extras.bound is not None:
            kept = {name: value for name, value in body.fields.items() if name not in BOUNDS}
            body = Body(b"", {**kept, self._bound_field: extras.bound})
        if self.speaks_anthropic:
            sent = message_from_chat(body.fields, model) if own is None else message_unchanged(own.message, model)
            return Payload(sent.content, _listed(sent.dropped))
        translated = () if own is None else own.dropped
        if self._rules is None or operation is not Operation.CHAT:
            content = requests.rewrite_body(body, model, usage=extras.usage, logprobs=extras.logprobs)
            cluster = self._target.cluster
            if cluster is not None and cluster.lora_scales is not None:
                content = content[: content.rindex(b"}")] + _lora(cluster.lora_scales)
            return Payload(content, translated)
        conformed = self._rules.conform(body.fields)
        if conformed.changed:
            body = Body(b"", conformed.fields)
        usage = extras.usage and self._rules.stream_options
        content = requests.rewrite_body(body, model, usage=usage, logprobs=extras.logprobs)
        return Payload(content, _listed({*translated, *conformed.dropped}))

    def request_bytes(self, origin: Origin, operation: Operation, content: bytes, extra: bytes = b"") -> bytes:
        """The complete request. `extra` are header lines that only targets in the cluster get."""
        key = (origin, operation)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 256:
                # Origins come and go with pods, and old ones are not needed any more.
                self._heads.clear()
            head = self._heads[key] = self._head(origin, operation)
        if self._credential is not None:
            path = head[5 : head.index(b" HTTP/1.1")].decode("latin-1")
            # Checked by `key_problem`; a token that expires in between is refused by the provider.
            extra = self._credential.lines(origin.authority, path, content) or b""
        elif origin.hosted:
            extra = b""
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, extra, len(content), content)

    def stream_translator(self, created: int, *, include_usage: bool) -> Callable[[bytes], bytes] | None:
        """A function that translates the target's stream to OpenAI's; None if it is OpenAI's already."""
        if not self.speaks_anthropic:
            return None
        return StreamTranslator(created=created, include_usage=include_usage).feed

    def to_openai(self, status: int, content: bytes, created: int) -> tuple[int, bytes]:
        """Status and body of a complete answer in OpenAI's format. Raises ValueError if it is not an answer."""
        if not self.speaks_anthropic:
            return status, content
        return (
            (status, completion_from_message(content, created=created))
            if status < 300
            else error_from_anthropic(status, content)
        )

    def _head(self, origin: Origin, operation: Operation) -> bytes:
        hosted = self._target.hosted
        lines: dict[str, Any] = {"content-type": "application/json"}
        path = f"/v1/{operation.value}"
        if hosted is not None:
            base = "/" + hosted.base_url.partition("://")[2].partition("/")[2]
            path = base.rstrip("/") + (TARGET_PATH if self.speaks_anthropic else f"/{operation.value}")
            if hosted.provider == "AzureOpenAI" and hosted.api_version is not None:
                deployment = f"/deployments/{quote(hosted.served_model, safe='')}/{operation.value}"
                path = f"{base.rstrip('/')}{deployment}?api-version={hosted.api_version}"
            if self.speaks_anthropic:
                lines |= request_headers(self._key or "")
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return (
            f"POST {path} HTTP/1.1\r\nhost: {origin.authority}\r\nuser-agent: flotilla-gateway\r\n"
            f"accept-encoding: identity\r\n{head}"
        ).encode("latin-1")


def _listed(dropped: Iterable[str]) -> tuple[str, ...]:
    """Names of dropped fields, which clients choose, in a number and length that a header can hold."""
    names = sorted({name[:_NAME_LENGTH] for name in dropped})
    return (*names[:_NAMES], f"and {len(names) - _NAMES} more") if len(names) > _NAMES else tuple(names)


def _lora(scales: Iterable[int]) -> bytes:
    """The end of a body that gives llama.cpp's adapters these scales."""
    return b',"lora":[%b]}' % b",".join(b'{"id":%d,"scale":%d}' % numbered for numbered in enumerate(scales))
