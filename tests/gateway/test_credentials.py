"""How hosted providers are shown who asks: keys, AWS signatures, access tokens of Google and Microsoft Entra."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.gateway import document_of, eventually, running_gateway
from tests.support.gateway_process import Fakes
from tests.support.hosted import HostedApi, Received, Reply, Whole, fault
from tests.support.hosted_answers import answered, hosted_api
from tests.support.routing import HOSTED, SOUND

from flotilla.api.types import SecretKeyRef
from flotilla.gateway.credentials import ApiKey, Missing, TokenStore, credential_of
from flotilla.gateway.token_loop import renew
from flotilla.routing.document import key_file

PUBLIC = {"x-data-class": "public"}
AWS = {"accessKeyId": "AKIDEXAMPLE", "secretAccessKey": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
BEDROCK = "https://bedrock-runtime.eu-central-1.amazonaws.com/openai/v1"
ENTRA = {"tenantId": "tenant", "clientId": "client", "clientSecret": "secret"}


def lines(provider: str, url: str, text: str | None) -> dict[str, str]:
    found = credential_of(provider, url, text, TokenStore()).lines("host.example", "/v1/chat/completions", b"{}")
    pairs = (line.partition(": ") for line in (found or b"").decode().split("\r\n") if line)
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize(
    ("provider", "header"),
    [
        ("OpenAI", {"authorization": "Bearer key"}),
        ("Mistral", {"authorization": "Bearer key"}),
        ("Gemini", {"authorization": "Bearer key"}),
        ("Bedrock", {"authorization": "Bearer key"}),
        ("AzureOpenAI", {"api-key": "key"}),
    ],
)
def test_a_text_is_an_api_key(provider: str, header: Mapping[str, str]) -> None:
    assert lines(provider, BEDROCK, "key") == header


def signature(date: str, host: str, path: str, body: bytes) -> str:
    """Signature Version 4 by its definition: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html"""
    digest = hashlib.sha256(body).hexdigest()
    headers = f"host:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{date}\n"
    signed = "host;x-amz-content-sha256;x-amz-date"
    canonical = f"POST\n{path}\n\n{headers}\n{signed}\n{digest}"
    scope = f"{date[:8]}/eu-central-1/bedrock/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{AWS['secretAccessKey']}".encode()
    for part in (date[:8], "eu-central-1", "bedrock", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def test_a_request_to_bedrock_is_signed_as_aws_defines_it() -> None:
    body = b'{"model":"openai.gpt-oss-120b-1:0"}'
    credential = credential_of("Bedrock", BEDROCK, json.dumps({**AWS, "sessionToken": "t"}), TokenStore())
    host, path = "bedrock-runtime.eu-central-1.amazonaws.com", "/openai/v1/chat/completions"
    plain = credential_of("Bedrock", BEDROCK, json.dumps(AWS), TokenStore())
    found = (plain.lines(host, path, body) or b"").decode()
    date = re.search(r"x-amz-date: (\S+)", found)
    assert date is not None
    assert f"Signature={signature(date[1], host, path, body)}" in found
    assert "Credential=AKIDEXAMPLE/" in found
    assert "x-amz-security-token: t" in (credential.lines(host, path, body) or b"").decode()


@pytest.mark.parametrize("provider", ["OpenAI", "Bedrock", "VertexAI", "AzureOpenAI"])
def test_json_that_is_no_credential_of_the_provider_is_said_to_be_none(provider: str) -> None:
    found = credential_of(provider, BEDROCK, '{"a": 1}', TokenStore())
    assert isinstance(found, Missing)
    assert provider in found.problem
    assert credential_of(provider, BEDROCK, None, TokenStore()).problem == "the Secret with its key is missing"
    assert isinstance(credential_of(provider, BEDROCK, "{not json", TokenStore()), ApiKey)


def test_a_token_is_kept_over_a_change_of_the_document() -> None:
    store = TokenStore()
    first, second = (credential_of("AzureOpenAI", BEDROCK, json.dumps(ENTRA), store) for _ in range(2))
    assert first is second


@pytest.fixture(scope="module")
def service_account() -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {"type": "service_account", "client_email": "gw@p.iam.gserviceaccount.com", "private_key": pem}


@pytest.fixture
def authority() -> Iterator[HostedApi]:
    fakes = Fakes()
    try:
        yield fakes.start(lambda _: Whole({"access_token": "fresh", "expires_in": 3600, "token_type": "Bearer"}))
    finally:
        fakes.stop()


async def test_a_token_of_a_service_account(authority: HostedApi, service_account: Mapping[str, str]) -> None:
    fields = {**service_account, "token_uri": f"{authority.url}/token"}
    token = TokenStore().token("Google", json.dumps(fields), fields)
    assert token.lines("h", "/", b"") is None
    assert await renew(token, 100.0)
    assert token.lines("h", "/", b"") == b"authorization: Bearer fresh\r\n"
    assert 3500 < token.expires_s - 100.0 <= 3600
    sent = dict(pair.split("=", 1) for pair in authority.received[0].body.decode().split("&"))
    claims = jwt.decode(sent["assertion"], options={"verify_signature": False})
    assert (claims["iss"], claims["scope"]) == (
        "gw@p.iam.gserviceaccount.com",
        "https://www.googleapis.com/auth/cloud-platform",
    )


async def test_a_token_of_entra_is_renewed_and_an_old_one_used_until_it_expires(authority: HostedApi) -> None:
    fields = {**ENTRA, "authority": authority.url}
    token = TokenStore().token("Entra", json.dumps(fields), fields)
    assert await renew(token, 0.0)
    (asked,) = authority.received
    assert asked.path == "/tenant/oauth2/v2.0/token"
    assert b"scope=https%3A%2F%2Fcognitiveservices.azure.com%2F.default" in asked.body
    authority.script(fault(500), fault(500))
    assert not await renew(token, 3000.0)
    assert token.lines("h", "/", b"") is not None
    assert not await renew(token, 3700.0)
    assert token.lines("h", "/", b"") is None
    assert "Entra" in token.problem


async def test_a_target_behind_a_token_fails_until_it_is_there(tmp_path: Path, authority: HostedApi) -> None:
    def checked(request: Received) -> Reply:
        return answered(request) if request.headers["authorization"] == "Bearer fresh" else fault(401)

    async with hosted_api(checked) as azure:
        external = {**HOSTED, "provider": "AzureOpenAI", "baseURL": f"{azure.url}/openai/v1"}
        spec: dict[str, Any] = {
            **SOUND,
            "targets": [*SOUND["targets"][:2], {"name": "frontier", "external": external}],
            "rules": [],
            "defaultRoute": {"split": [{"target": "frontier"}]},
        }
        async with running_gateway(tmp_path, document_of(spec)) as gw:
            file = tmp_path / "keys" / key_file(SecretKeyRef(name="provider", key="api-key"))
            file.write_text(json.dumps({**ENTRA, "authority": "http://127.0.0.1:9"}, indent=1))
            gw.gateway.config.load()
            status, body, _ = await gw.chat(headers=PUBLIC)
            assert (status, body["error"]["code"]) == (502, "upstream_unauthorized")
            file.write_text(json.dumps({**ENTRA, "authority": authority.url}, indent=1))
            gw.gateway.config.load()
            await eventually(lambda: any(token.value for token in gw.gateway.config.tokens.tokens.values()))
            status, _, _ = await gw.chat(headers=PUBLIC)
            assert status == 200
