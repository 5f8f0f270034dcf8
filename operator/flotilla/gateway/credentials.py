"""How the gateway shows a hosted provider who it is: an API key, a signature of each request, or an access token. Pure.

The text of the Secret decides: a JSON object is credentials, from which requests are signed (AWS) or access tokens are
made (Google, Microsoft Entra), anything else is an API key. Tokens are fetched by `token_loop`; until the first one is
there, and when it has expired, `lines` is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

from flotilla.errors import InvalidSpec

_KEY_HEADERS: Final[Mapping[str, str]] = {"AzureOpenAI": "api-key"}
_TOKENS: Final = 256


class Credential(Protocol):
    """Writes the header lines that authenticate a request."""

    def lines(self, host: str, path: str, body: bytes) -> bytes | None:
        """The lines for a POST; None if there is nothing to show at the moment."""

    @property
    def problem(self) -> str:
        """Why there are no lines; empty if there are."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is shown as it is."""

    line: bytes
    problem: str = ""

    def lines(self, host: str, path: str, body: bytes) -> bytes | None:
        """The same line for every request."""
        return self.line


@dataclass(frozen=True, slots=True)
class Missing:
    """A Secret that is missing or cannot be used."""

    problem: str = "the Secret with its key is missing"

    def lines(self, host: str, path: str, body: bytes) -> bytes | None:
        """Nothing."""
        return None


class AwsSignature:
    """Signs requests to Amazon Bedrock with Signature Version 4."""

    problem = ""

    def __init__(self, fields: Mapping[str, Any], region: str) -> None:
        try:
            from awscrt.auth import AwsCredentialsProvider
        except ImportError as error:
            raise InvalidSpec("Signing requests to AWS needs the extra: flotilla-operator[bedrock].") from error
        self._region = region
        self._credentials = AwsCredentialsProvider.new_static(
            fields["accessKeyId"], fields["secretAccessKey"], fields.get("sessionToken")
        )

    def lines(self, host: str, path: str, body: bytes) -> bytes | None:
        """Date, digest of the body and signature, for this moment."""
        from io import BytesIO

        from awscrt.auth import (
            AwsSignedBodyHeaderType,
            AwsSigningAlgorithm,
            AwsSigningConfig,
            aws_sign_request,
        )
        from awscrt.http import HttpHeaders, HttpRequest

        request = HttpRequest("POST", path, HttpHeaders([("host", host)]), BytesIO(body))
        config = AwsSigningConfig(
            algorithm=AwsSigningAlgorithm.V4,
            credentials_provider=self._credentials,
            region=self._region,
            service="bedrock",
            signed_body_value=sha256(body).hexdigest(),
            signed_body_header_type=AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
        )
        # Static credentials need no I/O, so that the future is done at once.
        signed = aws_sign_request(request, config).result(1).headers
        return "".join(f"{name.lower()}: {value}\r\n" for name, value in signed if name.lower() != "host").encode()


@dataclass(slots=True, eq=False)
class AccessToken:
    """A token that is fetched in advance and renewed before it expires."""

    kind: str
    """`Google` or `Entra`."""
    fields: Mapping[str, Any]
    """The credentials that it is made of."""
    value: str = ""
    expires_s: float = 0.0
    """On the clock of `token_loop`."""
    problem: str = "no access token has been received yet"

    def lines(self, host: str, path: str, body: bytes) -> bytes | None:
        """The token, if there is one."""
        return f"authorization: Bearer {self.value}\r\n".encode() if self.value else None


@dataclass(slots=True)
class TokenStore:
    """The tokens of all targets, which outlive a change of the document."""

    tokens: dict[bytes, AccessToken] = field(default_factory=dict)
    """By a digest of their credentials."""

    def token(self, kind: str, text: str, fields: Mapping[str, Any]) -> AccessToken:
        """The token that is made of these credentials."""
        key = sha256(f"{kind}\n{text}".encode()).digest()
        found = self.tokens.get(key)
        if found is None:
            if len(self.tokens) >= _TOKENS:
                self.tokens.clear()
            found = self.tokens[key] = AccessToken(kind, fields)
        return found


def credential_of(provider: str, base_url: str, text: str | None, tokens: TokenStore) -> Credential:
    """The credential that the text of a Secret is for a provider."""
    if text is None:
        return Missing()
    fields = _fields(text)
    if fields is None:
        header = _KEY_HEADERS.get(provider)
        return ApiKey((f"{header}: {text}" if header else f"authorization: Bearer {text}").encode("latin-1") + b"\r\n")
    match provider:
        case "Bedrock" if {"accessKeyId", "secretAccessKey"} <= fields.keys():
            try:
                return AwsSignature(fields, _region(base_url))
            except InvalidSpec as error:
                return Missing(str(error))
        case "VertexAI" if fields.get("type") == "service_account":
            return tokens.token("Google", text, fields)
        case "AzureOpenAI" if {"tenantId", "clientId", "clientSecret"} <= fields.keys():
            return tokens.token("Entra", text, fields)
    return Missing(f"the Secret holds JSON that is not a credential of {provider}")


def _fields(text: str) -> Mapping[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _region(base_url: str) -> str:
    """The region in the host of an AWS endpoint, such as bedrock-runtime.eu-central-1.amazonaws.com."""
    host = urlsplit(base_url).hostname or ""
    return next((label for label in host.split(".")[1:] if label.count("-") >= 2), "us-east-1")
