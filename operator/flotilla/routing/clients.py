"""Who may call: the clients of a file in a Secret, and clients that show a token of a company's login. Pure.

A `Grant` is what one key or token permits. `read_clients` makes the grants of a file; `TokenVerifier` makes one of a
JSON Web Token. Both are made anew when their Secret changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, StringConstraints, ValidationError

from flotilla import yaml_text
from flotilla.api.routing_policy import ModelName, TokenLogin
from flotilla.api.types import DnsLabel, Model, Usd
from flotilla.errors import InvalidSpec

MAX_CLIENTS: Final = 10_000
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Of public keys only: with a shared secret, whoever checks tokens could make them."""
_REMEMBERED: Final = 4096
_LABEL: Final = 63


class ClientKey(Model, extra="forbid"):
    """One key of a client, as it is or as its digest."""

    key: Annotated[str, StringConstraints(min_length=16, max_length=500)] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The digest in hexadecimal digits, so that the Secret does not hold the key."""
    expires: datetime | None = None


class FileClient(Model, extra="forbid"):
    """One client of the file."""

    name: DnsLabel
    keys: Annotated[list[ClientKey], Field(min_length=1, max_length=8)]
    """Several keys are valid at once, so that a client can change over before the old one is removed."""
    team: DnsLabel | None = None
    models: Annotated[list[ModelName], Field(max_length=64)] = Field(default_factory=list)
    """Empty for all models of the policy."""
    data_class: DnsLabel | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=2_000_000_000)] | None = None
    budget_usd: Annotated[Usd | None, Field(alias="budgetUSD")] = None
    budget_hours: Annotated[int, Field(ge=1, le=8784)] = 720


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits of one client, beside those of the policy."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_usd: Decimal | None = None
    budget_s: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key or token permits."""

    name: str
    """Of the client, for limits and the access log."""
    team: str | None = None
    models: frozenset[str] = frozenset()
    """Empty for all models of the policy."""
    data_class: str | None = None
    expires_s: float | None = None
    """In Unix seconds."""
    limits: ClientLimits | None = None


def read_clients(text: str) -> dict[bytes, Grant]:
    """The grants of a file by the SHA-256 of their keys. Raises InvalidSpec, which never repeats a key."""
    try:
        rows = yaml_text.load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec("The file of clients is not YAML.", field="clientsFrom") from error
    rows = [] if rows is None else rows
    if not isinstance(rows, list) or len(rows) > MAX_CLIENTS:
        raise InvalidSpec(f"The file of clients must be a list of at most {MAX_CLIENTS} clients.", field="clientsFrom")
    grants: dict[bytes, Grant] = {}
    names: set[str] = set()
    for index, row in enumerate(rows):
        try:
            client = FileClient.model_validate(row)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in (index, *first["loc"]))
            raise InvalidSpec(f"{where}: {first['msg']}.", field="clientsFrom") from error
        if client.name in names:
            raise InvalidSpec(f"{index}: the name {client.name!r} is given twice.", field="clientsFrom")
        names.add(client.name)
        for number, key in enumerate(client.keys):
            if (key.key is None) == (key.sha256 is None):
                raise InvalidSpec(f"{index}.keys.{number}: it needs one of key and sha256.", field="clientsFrom")
            digest = bytes.fromhex(key.sha256) if key.sha256 is not None else sha256((key.key or "").encode()).digest()
            if digest in grants:
                raise InvalidSpec(f"{index}.keys.{number}: the key is given twice.", field="clientsFrom")
            grants[digest] = _grant(client, key)
    return grants


def _grant(client: FileClient, key: ClientKey) -> Grant:
    limits = ClientLimits(
        client.requests_per_minute,
        client.tokens_per_minute,
        None if client.budget_usd is None else Decimal(client.budget_usd),
        client.budget_hours * 3600,
    )
    limited = (limits.requests_per_minute, limits.tokens_per_minute, limits.budget_usd) != (None, None, None)
    return Grant(
        client.name,
        client.team,
        frozenset(client.models),
        client.data_class,
        None if key.expires is None else key.expires.timestamp(),
        limits if limited else None,
    )


class TokenVerifier:
    """Makes grants of JSON Web Tokens that a company's login has signed. Verified tokens are remembered."""

    def __init__(self, login: TokenLogin, jwks: str) -> None:
        try:
            import jwt
        except ImportError as error:
            raise InvalidSpec("Tokens need the extra: flotilla-operator[jwt].", field="tokenLogin") from error
        try:
            keys = jwt.PyJWKSet.from_json(jwks).keys
        except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
            raise InvalidSpec("The Secret holds no JSON Web Key Set.", field="tokenLogin.jwksFrom") from error
        self._login = login
        self._keys = {key.key_id: key for key in keys}
        self._known: dict[bytes, Grant] = {}

    def grant(self, token: str) -> Grant | None:
        """The grant of a token; None if it is not valid. The caller checks its time, as it may be a remembered one."""
        digest = sha256(token.encode("latin-1", "replace")).digest()
        found = self._known.get(digest)
        if found is None:
            claims = self._claims(token)
            if claims is None:
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[digest] = self._of(claims)
        return found

    def _claims(self, token: str) -> Mapping[str, Any] | None:
        import jwt

        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
            if key is None or key.algorithm_name not in _ALGORITHMS:
                return None
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._login.audience,
                issuer=self._login.issuer,
                options={"require": ["exp", self._login.client_claim]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return claims if isinstance(claims.get(self._login.client_claim), str) else None

    def _of(self, claims: Mapping[str, Any]) -> Grant:
        login = self._login
        team = claims.get(login.team_claim) if login.team_claim is not None else None
        models = claims.get(login.models_claim) if login.models_claim is not None else None
        named = [model for model in models if isinstance(model, str)] if isinstance(models, list) else []
        return Grant(
            str(claims[login.client_claim])[:_LABEL],
            team[:_LABEL] if isinstance(team, str) else None,
            # A claim that was asked for and is missing permits nothing.
            frozenset(named or ([""] if login.models_claim is not None else [])),
            login.data_class,
            float(claims["exp"]),
        )
