"""PromQL over engines of all kinds, from the names in their profiles: a new profile needs no new query."""

from collections.abc import Iterable, Mapping
from typing import Final

from flotilla.engines.profile import Profile

BY: Final = "namespace, modeldeployment"
FIRST_TOKEN: Final = ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds")
BETWEEN_TOKENS: Final = ("vllm:inter_token_latency_seconds", "sglang:inter_token_latency_seconds")
WHOLE_REQUEST: Final = (
    "vllm:e2e_request_latency_seconds",
    "sglang:e2e_request_latency_seconds",
    "tgi_request_duration",
)
QUEUE_WAIT: Final = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds", "tgi_request_queue_duration")
"""Histograms; engines that are not here have none of the kind."""


def gauge(profiles: Mapping[str, Profile], field: str, *, operation: str = "sum", matchers: str = "") -> str:
    """An EngineSample's field over a deployment's pods."""
    return _either(f"{operation} by ({BY}) ({_select(name, matchers)})" for name in _names(profiles, field))


def rate(profiles: Mapping[str, Profile], field: str, window: str, *, matchers: str = "") -> str:
    """A counter's growth per second over a deployment's pods; resets and pods that come and go are safe."""
    return _either(f"sum by ({BY}) (rate({_select(name, matchers)}[{window}]))" for name in _names(profiles, field))


def quantile(share: float, histograms: Iterable[str], window: str, *, matchers: str = "") -> str:
    """A quantile over a deployment's pods."""
    return _either(
        f"histogram_quantile({share:g}, sum by ({BY}, le) (rate({name}_bucket{_braces(matchers)}[{window}])))"
        for name in histograms
    )


def _names(profiles: Mapping[str, Profile], field: str) -> Iterable[str]:
    names = (name for profile in profiles.values() for name in profile.metrics.names.get(field, ()))
    return dict.fromkeys(names)


def _either(parts: Iterable[str]) -> str:
    return "\nor\n".join(parts)


def _select(name: str, matchers: str) -> str:
    """A profile's name may have a matcher of its own."""
    if matchers and name.endswith("}"):
        return f"{name[:-1]},{matchers}}}"
    return f"{name}{_braces(matchers)}"


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""
