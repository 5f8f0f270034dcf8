"""Why a request is not served, in the words and codes that clients see."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_BREAKER_WAIT_S = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer in OpenAI's error shape: {"error": {message, type, param, code}}."""

    status: int
    code: str
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    retry_after_s: int | None = None
    """Header Retry-After, in seconds."""
    retryable: bool = True
    """False adds `x-should-retry: false`, which OpenAI's clients obey: they would retry a 429 by themselves."""
    policy: str = ""
    rule: str = ""
    data_class: str = ""
    why: tuple[str, ...] = ()


def outside_class(policy: str, data_class: str, rule: str, why: Sequence[str]) -> Refusal:
    """Sovereignty fails closed."""
    return Refusal(
        403,
        "sovereignty_no_target",
        f"Data of class {data_class!r} may go to none of the targets that serve this request.",
        retryable=False,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def unsupported(policy: str, data_class: str, rule: str, lacking: Iterable[str], why: Sequence[str]) -> Refusal:
    """The request needs what no target has."""
    return Refusal(
        400,
        "unsupported_by_targets",
        f"No target that may serve this request supports {' or '.join(lacking)}.",
        retryable=False,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def no_capacity(policy: str, data_class: str, rule: str, why: Sequence[str]) -> Refusal:
    """Every target that may serve the request is failing or left out."""
    return Refusal(
        503,
        "no_capacity",
        "No target that may serve this request is available. Try again later.",
        type=SERVER_ERROR,
        retry_after_s=_BREAKER_WAIT_S,
        policy=policy,
        rule=rule,
        data_class=data_class,
        why=tuple(why),
    )


def model_not_found(model: str) -> Refusal:
    """No policy of the namespace serves the model; the name is the client's own and is not repeated beyond 100."""
    return Refusal(
        404,
        "model_not_found",
        f"The model {model[:100]!r} does not exist or you do not have access to it.",
        param="model",
        retryable=False,
    )


def invalid_api_key(policy: str) -> Refusal:
    """The policy has clients, and this request shows the key of none."""
    return Refusal(401, "invalid_api_key", "Incorrect API key provided.", retryable=False, policy=policy)


def rate_limited(policy: str, limit: str, retry_after_s: int) -> Refusal:
    """A rate limit is reached."""
    return Refusal(
        429,
        "rate_limit_exceeded",
        f"The rate limit {limit!r} is reached. Try again in {retry_after_s} s.",
        type="requests",
        retry_after_s=retry_after_s,
        policy=policy,
    )


def budget_exceeded(policy: str, budget: str, retry_after_s: int | None = None) -> Refusal:
    """A budget is spent. 429 as OpenAI answers it; clients are told not to retry, for hours would not help."""
    return Refusal(
        429,
        "budget_exceeded",
        f"The budget {budget!r} is spent.",
        type="insufficient_quota",
        retry_after_s=retry_after_s,
        retryable=False,
        policy=policy,
    )
