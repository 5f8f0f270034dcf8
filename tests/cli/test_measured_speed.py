"""`flotilla estimate --prometheus`: what deployments of the model do, beside what is computed for their requests."""

import json
import time
from collections.abc import Iterator

import pytest
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.speed_history import PER_S, history
from typer.testing import CliRunner, Result

from flotilla.cli import app


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    now = time.time()
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(folder, history=history(now - 4 * 3600, now - 1)) as running:
        yield running


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "200", "FLOTILLA_PROMETHEUS_URL": ""})


def test_a_deployment_that_was_saturated_is_compared_with_the_model(prometheus: Prometheus) -> None:
    arguments = ("Qwen/Qwen2.5-7B-Instruct", "-a", "L4", "--prometheus", prometheus.url, "--since", "3h")
    rows = {row["deployment"]: row for row in json.loads(run(*arguments, "--json").stdout)[0]["speed"]["measured"]}

    assert set(rows) == {"shop/full", "shop/half"}
    full = rows["shop/full"]
    assert full["saturated"]
    assert full["output_tokens_per_second"] == pytest.approx(PER_S["output"] / 2, rel=0.1)
    assert (full["input_tokens"], full["cached_percent"], full["output_tokens"]) == (1000, 10, 300)
    computed = full["computed_output_tokens_per_second"]["expected"]
    assert full["measured_over_computed"] == pytest.approx(full["output_tokens_per_second"] / computed, rel=0.1)


def test_a_deployment_that_was_never_saturated_says_at_most(prometheus: Prometheus) -> None:
    said = " ".join(
        run("Qwen2.5-7B-Instruct", "-a", "L4", "--prometheus", prometheus.url, "--since", "3h").stdout.split()
    )

    assert "shop/half was never saturated and made at most 60 output tokens/s per replica" in said
    assert "shop/full makes 300 output tokens/s per replica with 1000 tokens in (10 % cached) and 300 out." in said


def test_another_model_or_class_has_nothing_measured(prometheus: Prometheus) -> None:
    for model, accelerator in (("Qwen/Qwen3-8B", "L4"), ("Qwen/Qwen2.5-7B-Instruct", "H100")):
        found = json.loads(run(model, "-a", accelerator, "--prometheus", prometheus.url, "--json").stdout)
        assert "measured" not in found[0]["speed"]


def test_a_prometheus_that_does_not_answer_is_an_error() -> None:
    result = run("Qwen/Qwen3-8B", "-a", "L4", "--prometheus", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "Prometheus" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--since", "tomorrow"), ("--prometheus", "ftp://x")])
def test_a_wrong_option_is_refused(option: str, value: str) -> None:
    arguments = {"--prometheus": "http://127.0.0.1:9", option: value}
    result = run("Qwen/Qwen3-8B", "-a", "L4", *(part for pair in arguments.items() for part in pair))
    assert result.exit_code == 2
    assert option in result.stderr
