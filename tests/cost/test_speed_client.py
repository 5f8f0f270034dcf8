"""What estimate reads of the operator's own comparison of observed and computed speed."""

from typing import Any, cast

from rich.console import Console

from flotilla.cli.estimate import show
from flotilla.cost.speed_client import MeasuredSpeed, measured_speeds
from flotilla.prometheus.client import PrometheusClient, Series

WHERE = {"namespace": "models", "modeldeployment": "small"}
ANSWERS = {
    "increase(flotilla_deployment_tokens_total": [
        ({**WHERE, "token_type": "input"}, 90_000.0),
        ({**WHERE, "token_type": "cached_input"}, 10_000.0),
        ({**WHERE, "token_type": "output"}, 20_000.0),
    ],
    "increase(flotilla_deployment_requests_total": [(WHERE, 200.0)],
    "max_over_time": [(WHERE, 400.0)],
    "flotilla_deployment_info": [({**WHERE, "model": "hf://m/x", "engine": "vllm", "gpu_type": "nvidia-l4"}, 1.0)],
    "flotilla_deployment_speed_ratio": [(WHERE, 0.8)],
    "flotilla_deployment_speed_observations": [(WHERE, 20_000.0)],
    "flotilla_deployment_speed_age_seconds": [(WHERE, 12.0)],
    "flotilla_deployment_token_interval_seconds": [(WHERE, 0.04)],
}


class Recorded:
    """A Prometheus with these answers; what it is not asked for has none."""

    async def query(self, promql: str) -> list[Series]:
        for part, series in ANSWERS.items():
            if part in promql and "quantile" not in promql:
                return [Series(labels, value, 0.0) for labels, value in series]
        return []


async def test_the_operators_comparison_comes_with_its_number_and_age() -> None:
    found = await measured_speeds(cast("PrometheusClient", Recorded()), period_s=3600)
    assert found == (
        MeasuredSpeed(
            "models", "small", "hf://m/x", "vllm", "nvidia-l4", input_tokens=500, output_tokens=100, cached_share=0.1,
            tokens_per_s=400, saturated=False, ratio=0.8, observations=20_000, age_s=12, token_interval_s=0.04,
            first_token_s=None,
        ),
    )  # fmt: skip


def test_estimate_says_what_was_observed_and_what_becomes_of_the_computed_speed() -> None:
    speeds = {"low": 700.0, "expected": 1000.0, "high": 1400.0}
    hour: dict[str, Any] = {
        "observed_over_computed": 0.8, "observations": 20_000, "age_seconds": 12, "token_interval_milliseconds": 40.0,
        "corrected_output_tokens_per_second": {"low": 670.0, "expected": 800.0, "high": 960.0},
    }  # fmt: skip
    row = {
        "deployment": "models/small", "input_tokens": 500, "cached_percent": 10, "output_tokens": 100,
        "output_tokens_per_second": 400.0, "saturated": False, "computed_output_tokens_per_second": speeds,
        "last_hour": hour,
    }  # fmt: skip
    answer = {
        "accelerator": "nvidia-l4", "verdict": "Fits",
        "speed": {
            "input_tokens": 1000, "output_tokens": 150, "compared_with_measurements": True,
            "tasks_per_second": speeds, "single_request_tokens_per_second": speeds, "measured": [row],
        },
    }  # fmt: skip
    console = Console(record=True, width=400)
    show(console, "m", [answer])
    said = console.export_text()
    assert "40 ms between tokens; 0.8 times the speed that is computed for the same load, by 20,000 intervals" in said
    assert "the last 12 s ago. Corrected so, it makes 800 (670 to 960) at saturation." in said
    hour["first_token_milliseconds"] = 210
    show(console, "m", [answer])
    assert "40 ms between tokens and 210 ms to the first;" in console.export_text()
