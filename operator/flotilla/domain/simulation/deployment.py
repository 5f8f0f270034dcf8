"""From a ModelDeployment to what is simulated."""

from dataclasses import dataclass
from decimal import Decimal

from flotilla.api.model_deployment import ModelDeploymentSpec
from flotilla.domain.fitting import settings
from flotilla.domain.resolve import Resolved
from flotilla.domain.scaling import ScalingSpec
from flotilla.domain.simulation.replica import Engine
from flotilla.domain.simulation.sequences import Limits, Speed
from flotilla.errors import InvalidSpec

_BLOCK_TOKENS = 16
L4_SPEED = Speed(decode_tokens_per_s=1200.0, prefill_tokens_per_s=4000.0, overhead_s=0.028)
"""About a 7B model in FP8 on one L4. A step reads the weights once: 7.6 GB at 300 GB/s. The plateaus are assumed."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts of a ModelDeployment that a simulation needs."""

    name: str
    engine: Engine
    scaling: ScalingSpec
    gpus: int
    gpu_usd_per_hour: Decimal | None
    """None: unknown."""


def deployment(
    name: str,
    spec: ModelDeploymentSpec,
    resolved: Resolved,
    *,
    speed: Speed,
    startup_s: float,
    kv_tokens: int | None,
    max_sequences: int | None,
    stale_after_s: float,
) -> Deployment:
    """Limits come from the memory fit and the engine's flags where nobody gives them. Raises InvalidSpec."""
    fit = resolved.fit
    if kv_tokens is None:
        if fit is None or not fit.concurrency:
            raise InvalidSpec(
                "How many tokens the KV cache holds is not known for this model; give --kv-tokens.", field="--kv-tokens"
            )
        kv_tokens = int(fit.concurrency * fit.context_length)
    engine_settings = settings(resolved.profile.memory, resolved.accelerator, spec.engine.args)
    price = resolved.accelerator.price
    own = spec.cost.gpu_hourly_price
    return Deployment(
        name=name,
        engine=Engine(
            limits=Limits(
                max_running=max_sequences or engine_settings.sequences,
                kv_blocks=max(1, kv_tokens // _BLOCK_TOKENS),
                block_size=_BLOCK_TOKENS,
                max_batched_tokens=engine_settings.batched_tokens,
            ),
            speed=speed,
            context_tokens=fit.context_length if fit and fit.context_length else kv_tokens,
            startup_s=startup_s,
            drain_s=float(resolved.profile.drain.seconds),
        ),
        scaling=ScalingSpec.of(spec.scaling, stale_after_s=stale_after_s),
        gpus=resolved.gpus,
        gpu_usd_per_hour=Decimal(own) if own is not None else price.usd if price else None,
    )
