"""An account as text, and back: what a successor needs to go on without a gap and without counting anything twice.

Its size is bounded: totals, and some 200 bytes for each pod that exists.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from flotilla.telemetry.account import STATES, Account, PodRecord

VERSION = 1
_SUMS = ("usd", "gpu_hours", "pod_seconds", "tokens", "hosted")


def dump(account: Account) -> str:
    """As JSON; decimals are strings. `at` must be known."""
    assert account.at is not None
    return orjson.dumps(
        {
            "version": VERSION,
            "at": account.at,
            **{name: {key: str(value) for key, value in getattr(account, name).items()} for name in _SUMS},
            "estimated_usd": str(account.estimated_usd),
            "requests": str(account.requests),
            "failed": str(account.failed),
            "cached_ahead": str(account.cached_ahead),
            "peak_tokens_per_second": str(account.peak_tokens_per_second),
            "priced": account.priced,
            "known": sorted(account.known),
            "pods": {uid: _pod(pod) for uid, pod in account.pods.items()},
        },
        option=orjson.OPT_SORT_KEYS,
    ).decode()


def _pod(pod: PodRecord) -> list[Any]:
    return [
        pod.incarnation,
        pod.state,
        str(pod.gpus),
        None if pod.usd_per_hour is None else str(pod.usd_per_hour),
        pod.capacity_type,
        dict(pod.counters),
        pod.fell,
    ]


def load(text: str) -> Account:
    """Raises ValueError for what `dump` did not write."""
    try:
        record = orjson.loads(text)
        if record["version"] != VERSION:
            raise ValueError(f"it has version {record['version']!r}, and this operator reads {VERSION}")
        account = Account(
            usd=_amounts(record["usd"]),
            estimated_usd=_decimal(record["estimated_usd"]),
            gpu_hours=_amounts(record["gpu_hours"]),
            pod_seconds=_amounts(record["pod_seconds"]),
            tokens=_amounts(record["tokens"]),
            requests=_decimal(record["requests"]),
            failed=_decimal(record["failed"]),
            known=set(record["known"]),
            cached_ahead=_decimal(record["cached_ahead"]),
            hosted=_amounts(record["hosted"]),
            peak_tokens_per_second=_decimal(record["peak_tokens_per_second"]),
            priced=bool(record["priced"]),
            pods={uid: _read_pod(*fields) for uid, fields in record["pods"].items()},
            at=float(record["at"]),
        )
    except (KeyError, TypeError, AttributeError, InvalidOperation) as error:
        raise ValueError(f"it is not what the operator writes: {error!r}") from error
    if set(account.usd) != set(STATES) or set(account.pod_seconds) != set(STATES):
        raise ValueError("its states are not those of this operator")
    if set(account.tokens) != {"prompt", "generated", "cached"}:
        raise ValueError("its tokens are not those of this operator")
    return account


def _read_pod(
    incarnation: int, state: Any, gpus: str, usd: str | None, capacity: str, counters: dict[str, float], fell: bool
) -> PodRecord:
    if state not in STATES:
        raise ValueError(f"{state!r} is no state of a pod")
    rate = None if usd is None else _decimal(usd)
    return PodRecord(int(incarnation), state, _decimal(gpus), rate, str(capacity), dict(counters), bool(fell))


def _amounts(record: dict[str, Any]) -> dict[str, Decimal]:
    return {str(key): _decimal(value) for key, value in record.items()}


def _decimal(text: Any) -> Decimal:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a decimal number")
    value = Decimal(text)
    if not value.is_finite() or value < 0:
        raise ValueError(f"{text!r} is not an amount")
    return value
