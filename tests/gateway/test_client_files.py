"""Clients of a file in a Secret, and clients with a token: who may call, what for, until when, and at whose cost."""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from tests.support.gateway import Running, document_of, running_gateway
from tests.support.hosted import HostedApi, Whole
from tests.support.hosted_answers import chat, hosted_api
from tests.support.routing import HOSTED, SOUND

from flotilla.api.types import SecretKeyRef
from flotilla.errors import InvalidSpec
from flotilla.gateway.limits.accounts import StoreAccounts
from flotilla.gateway.limits.local import LocalLimitStore
from flotilla.routing.clients import read_clients
from flotilla.routing.document import key_file

FILE = SecretKeyRef(name="people", key="clients.yaml")
JWKS = SecretKeyRef(name="login", key="jwks.json")
ANN, BOB = "key-of-ann-0123456789", "key-of-bob-0123456789"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
LOGIN = {"issuer": "https://login.example", "audience": "flotilla", "jwksFrom": {"name": "login", "key": "jwks.json"}}


def client(name: str, *keys: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "keys": list(keys), **more}


def shown(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "x-data-class": "public", **more}


@asynccontextmanager
async def serving(directory: Path, clients: Any, **policy: Any) -> AsyncIterator[tuple[Running, HostedApi]]:
    async with hosted_api() as hosted:
        frontier = {"name": "frontier", "external": {**HOSTED, "baseURL": f"{hosted.url}/v1"}}
        spec: dict[str, Any] = {
            **SOUND,
            "hostModels": ["support", "drafts"],
            "targets": [*SOUND["targets"][:2], frontier],
            "rules": [],
            "defaultRoute": {"split": [{"target": "frontier"}]},
            "clientsFrom": {"name": "people", "key": "clients.yaml"},
            **policy,
        }
        accounts = StoreAccounts(LocalLimitStore())
        async with running_gateway(directory, document_of(spec), accounts=accounts) as gw:
            write(gw, clients)
            yield gw, hosted


def write(gw: Running, clients: Any, secret: SecretKeyRef = FILE) -> None:
    """As the kubelet does when the Secret changes."""
    text = clients if isinstance(clients, str) else yaml.safe_dump(clients)
    (gw.directory / "keys" / key_file(secret)).write_text(text)
    gw.gateway.config.load()


async def status_of(gw: Running, key: str, **fields: Any) -> tuple[int, str]:
    status, body, _ = await gw.chat(headers=shown(key), **fields)
    return status, body.get("error", {}).get("code") or ""


async def test_a_key_is_known_as_it_is_or_by_its_digest_and_expires(tmp_path: Path) -> None:
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    old = {"key": "old-key-of-ann-01234", "expires": PAST}
    people = [client("ann", {"key": ANN, "expires": FUTURE}, old), client("bob", {"sha256": digest})]
    async with serving(tmp_path, people) as (gw, _):
        assert await status_of(gw, ANN) == (200, "")
        assert await status_of(gw, BOB) == (200, "")
        assert await status_of(gw, old["key"]) == (401, "invalid_api_key")
        assert await status_of(gw, "stranger") == (401, "invalid_api_key")


async def test_a_key_is_rotated_and_a_client_is_added_without_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, [client("ann", {"key": ANN})]) as (gw, _):
        write(gw, [client("ann", {"key": ANN}, {"key": "new-key-of-ann-01234"}), client("bob", {"key": BOB})])
        for key in (ANN, BOB, "new-key-of-ann-01234"):
            assert await status_of(gw, key) == (200, "")
        write(gw, [client("ann", {"key": "new-key-of-ann-01234"})])
        assert await status_of(gw, ANN) == (401, "invalid_api_key")
        # A file that cannot be read may have withdrawn a key.
        write(gw, "- name: [")
        assert await status_of(gw, "new-key-of-ann-01234") == (401, "invalid_api_key")


async def test_a_thousand_clients_are_known(tmp_path: Path) -> None:
    people = [client(f"client-{n}", {"key": f"key-of-client-{n:08}"}) for n in range(1000)]
    async with serving(tmp_path, people) as (gw, _):
        assert await status_of(gw, "key-of-client-00000999") == (200, "")


async def test_a_client_may_ask_for_its_models_only(tmp_path: Path) -> None:
    async with serving(tmp_path, [client("ann", {"key": ANN}, models=["drafts"])]) as (gw, _):
        assert await status_of(gw, ANN, model="drafts") == (200, "")
        assert await status_of(gw, ANN) == (404, "model_not_found")
        async with gw.session.get(gw.url + "/v1/models", headers=shown(ANN)) as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["drafts"]


async def test_each_client_has_a_budget_and_a_rate_of_its_own(tmp_path: Path) -> None:
    people = [
        client("ann", {"key": ANN}, budgetUSD="0.001", budgetHours=24),
        client("bob", {"key": BOB}, requestsPerMinute=2),
    ]
    async with serving(tmp_path, people) as (gw, hosted):
        hosted.script(Whole(chat(usage=(100, 30))))  # 0.00075 dollars at 3 and 15 per million
        assert await status_of(gw, ANN, max_tokens=50) == (200, "")
        assert await status_of(gw, ANN, max_tokens=50) == (429, "budget_exceeded")
        assert [(await status_of(gw, BOB, max_tokens=50))[0] for _ in range(3)] == [200, 200, 429]
        # Without a bound of the client, the reserved one is sent along.
        hosted.received.clear()
        write(gw, [client("eve", {"key": ANN}, budgetUSD="9")])
        assert await status_of(gw, ANN) == (200, "")
        assert hosted.received[0].json["max_tokens"] == 4096


async def test_the_file_says_the_team_and_the_class_and_a_header_cannot(tmp_path: Path) -> None:
    people = [client("ann", {"key": ANN}, team="billing"), client("bob", {"key": BOB}, dataClass="sovereign")]
    async with serving(tmp_path, people) as (gw, _):
        await gw.chat(headers=shown(ANN, **{"x-flotilla-team": "others"}))
        cost = await gw.counted("team_cost_usd_total")
        assert set(cost) == {("frontier", "billing")}
        assert await status_of(gw, BOB) == (403, "sovereignty_no_target")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "must be a list"),
        ("- name: [", "not YAML"),
        (yaml.safe_dump([client("ann", {"key": "short"})]), "0.keys.0.key"),
        (yaml.safe_dump([client("ann", {"key": ANN, "sha256": "0" * 64})]), "one of key and sha256"),
        (yaml.safe_dump([client("ann", {"key": ANN}), client("bob", {"key": ANN})]), "given twice"),
        (yaml.safe_dump([client("ann", {"key": ANN}), client("ann", {"key": BOB})]), "given twice"),
        (yaml.safe_dump([client("ann", {"key": ANN}, admin=True)]), "0.admin"),
        (yaml.safe_dump([client("ann")]), "0.keys"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_a_key(text: str, why: str) -> None:
    with pytest.raises(InvalidSpec) as found:
        read_clients(text)
    assert why in str(found.value)
    assert ANN not in str(found.value)


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(key: rsa.RSAPrivateKey) -> str:
    public = json.loads(RSAAlgorithm.to_jwk(key.public_key()))
    return json.dumps({"keys": [{**public, "kid": "k1", "alg": "RS256", "use": "sig"}]})


def token(key: Any, *, algorithm: str = "RS256", kid: str = "k1", **claims: Any) -> str:
    given = {"sub": "ann", "iss": LOGIN["issuer"], "aud": "flotilla", "exp": time.time() + 600, **claims}
    return jwt.encode(given, key, algorithm=algorithm, headers={"kid": kid})


async def test_a_token_of_the_login_admits_a_client_with_its_team_and_models(
    tmp_path: Path, private_key: rsa.RSAPrivateKey
) -> None:
    login = {**LOGIN, "teamClaim": "team", "modelsClaim": "models"}
    async with serving(tmp_path, [], tokenLogin=login, teams=["billing"]) as (gw, _):
        write(gw, jwks(private_key), JWKS)
        good = token(private_key, team="billing", models=["support"])
        for _ in range(2):
            assert await status_of(gw, good) == (200, "")
        assert await status_of(gw, good, model="drafts") == (404, "model_not_found")
        assert await status_of(gw, token(private_key)) == (404, "model_not_found")
        assert set(await gw.counted("team_cost_usd_total")) == {("frontier", "billing")}


async def test_no_other_token_is_accepted(tmp_path: Path, private_key: rsa.RSAPrivateKey) -> None:
    async with serving(tmp_path, [], tokenLogin=LOGIN) as (gw, _):
        write(gw, jwks(private_key), JWKS)
        assert await status_of(gw, token(private_key)) == (200, "")
        other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for wrong in (
            token(other),
            token(private_key, exp=time.time() - 10),
            token(private_key, aud="others"),
            token(private_key, iss="https://others.example"),
            token(private_key, kid="k2"),
            token("a secret that both sides share, and not", algorithm="HS256"),
            token(None, algorithm="none"),
            token(private_key)[:-4] + "AAAA",
            "a.b.c",
        ):
            assert await status_of(gw, wrong) == (401, "invalid_api_key")
