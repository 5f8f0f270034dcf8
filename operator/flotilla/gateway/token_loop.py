"""Fetches access tokens for hosted providers, and renews them before they expire."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import requests

from flotilla.gateway.credentials import AccessToken, TokenStore

log = logging.getLogger(__name__)

_INTERVAL_S: Final = 1.0
_RENEW_BEFORE_S: Final = 300.0
_RETRY_S: Final = 10.0
_TIMEOUT_S: Final = 10.0
_GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_ENTRA_SCOPE: Final = "https://cognitiveservices.azure.com/.default"
_ENTRA_AUTHORITY: Final = "https://login.microsoftonline.com"
Fetch = Callable[[Mapping[str, Any]], tuple[str, float]]
"""From credentials to a token and the seconds that it is valid for."""


async def follow_tokens(store: TokenStore, clock: Callable[[], float] = time.monotonic) -> None:
    """Keep the tokens of a store fresh until cancelled."""
    due: dict[int, float] = {}
    while True:
        now = clock()
        for token in list(store.tokens.values()):
            if now >= due.get(id(token), token.expires_s - _RENEW_BEFORE_S):
                fetched = await renew(token, now)
                due[id(token)] = token.expires_s - _RENEW_BEFORE_S if fetched else now + _RETRY_S
        await asyncio.sleep(_INTERVAL_S)


async def renew(token: AccessToken, now_s: float) -> bool:
    """Fetch a token anew; an old one is used until it expires. Returns whether it was fetched."""
    try:
        value, valid_s = await asyncio.to_thread(_FETCH[token.kind], token.fields)
    except Exception as error:  # noqa: BLE001 - a library's, or the network's: the token is fetched again later
        token.problem = f"no access token of {token.kind} could be fetched ({type(error).__name__})"
        if token.expires_s <= now_s:
            token.value = ""
        log.warning("an access token cannot be fetched", extra={"kind": token.kind, "cause": type(error).__name__})
        return False
    token.value, token.expires_s, token.problem = value, now_s + valid_s, ""
    return True


def _google(fields: Mapping[str, Any]) -> tuple[str, float]:
    from google.auth.transport.requests import Request
    from google.oauth2.service_account import Credentials

    credentials = Credentials.from_service_account_info(dict(fields), scopes=[_GOOGLE_SCOPE])
    credentials.refresh(Request())
    expiry = credentials.expiry  # UTC, without a time zone
    valid_s = 3600.0 if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    return str(credentials.token), valid_s


def _entra(fields: Mapping[str, Any]) -> tuple[str, float]:
    authority = str(fields.get("authority") or _ENTRA_AUTHORITY).rstrip("/")
    answer = requests.post(
        f"{authority}/{fields['tenantId']}/oauth2/v2.0/token",
        data={
            "grant_type": "client_credentials",
            "client_id": fields["clientId"],
            "client_secret": fields["clientSecret"],
            "scope": fields.get("scope") or _ENTRA_SCOPE,
        },
        timeout=_TIMEOUT_S,
    )
    answer.raise_for_status()
    found = answer.json()
    return str(found["access_token"]), float(found["expires_in"])


_FETCH: Final[Mapping[str, Fetch]] = {"Google": _google, "Entra": _entra}
