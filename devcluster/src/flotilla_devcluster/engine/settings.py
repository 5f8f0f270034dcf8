"""What stands for hardware and model: `FLOTILLA_SIM_*` variables of the simulated container; and any engine's
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from flotilla.simulation.engine import Limits, Speed

DATA: Final = Path(__file__).with_name("data")
"""Flag and metric tables, one file per engine and version."""
PREFIX = "FLOTILLA_SIM_"


class Refused(Exception):
    """The engine ends before it serves, with this exit code and this text on stderr."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSettings:
    """Each field is read from FLOTILLA_SIM_<FIELD IN CAPITALS>.

    tokens_per_second: all sequences together, when many run. step_seconds: one decode step of an empty batch,
    so that a lone sequence gets a little less than 1/step_seconds tokens a second.
    context_length: the model's own, tokens. kv_tokens: room of the KV cache. max_num_seqs: where the command
    line has none. output_tokens: mean length of an answer that ends by itself; 0: 64 where the request has no
    max_tokens, else exactly max_tokens. tick_seconds: a stream gets a chunk at most so often.
    teardown_seconds: from the last answer of a drain to the exit. drain_poll_seconds: how often SGLang looks for
    the signal, and then for requests that are left (in the real one a constant).
    """

    load_seconds: float = 1.0
    tokens_per_second: float = 2000.0
    prefill_tokens_per_second: float = 20000.0
    step_seconds: float = 0.01
    max_num_seqs: int = 256
    context_length: int = 8192
    kv_tokens: int = 262144
    output_tokens: int = 0
    tick_seconds: float = 0.05
    teardown_seconds: float = 0.0
    drain_poll_seconds: float = 5.0

    @property
    def speed(self) -> Speed:
        return Speed(
            decode_tokens_per_s=self.tokens_per_second,
            prefill_tokens_per_s=self.prefill_tokens_per_second,
            overhead_s=self.step_seconds,
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> SimSettings:
        """Raises Refused (exit code 2) with the variable, its value and what it must be."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            name = PREFIX + item.name.upper()
            if name in env:
                values[item.name] = _number(name, env[name], whole=isinstance(item.default, int))
        settings = cls(**values)
        for name in (
            "tokens_per_second",
            "prefill_tokens_per_second",
            "step_seconds",
            "tick_seconds",
            "drain_poll_seconds",
        ):
            if getattr(settings, name) <= 0:
                raise Refused(2, f"{PREFIX}{name.upper()} must be more than 0.")
        return settings


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise Refused(2, f"{name}={text!r} is not {kind}; correct it in the container's env.") from None
    if value < 0:
        raise Refused(2, f"{name}={text!r} must not be negative; correct it in the container's env.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What every engine's configuration has; an engine makes its own from arguments and environment."""

    model: str
    host: str
    port: int
    limits: Limits
    speed: Speed
    settings: SimSettings
    load_failure: str | None
    """The process ends with exit code 1 and this text instead of serving."""
