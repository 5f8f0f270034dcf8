"""The demo, as a newcomer runs it: it ends well, and its table holds together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

MODELS = ("llama-3-1-8b-awq", "qwen2-5-1-5b", "qwen2-5-7b")


def test_the_demo_shows_a_real_answer_scales_and_prices_models_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "flotilla_devcluster.demo"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"smollm2-135m serves for real, .*\n.*\n.*Paris", done.stdout)
    assert re.search(r"without a failure; qwen2-5-7b went from 1 to [2-4] replicas", done.stdout)
    table = done.stdout.partition("What the fleet costs")[2]
    for model in MODELS:
        row = re.search(
            rf"^ +{model} .*\) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+) +([+-][\d.]+) \$", table, re.MULTILINE
        )
        assert row is not None, table
        tokens, own, hosted, savings = (float(row[group].replace(",", "")) for group in (1, 3, 4, 5))
        assert savings == pytest.approx((hosted - own) * tokens / 1e6, rel=0.1, abs=2e-4), table
    assert list(tmp_path.iterdir()) == []
