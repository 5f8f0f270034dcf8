"""The watch layer outlives kopf, whatever becomes of it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import kopf
import pytest

from flotilla.kube import watch as module
from flotilla.kube.kinds import MODEL_DEPLOYMENT
from flotilla.kube.watch import Watch


async def stubborn() -> None:
    """A task that no cancellation ends."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("watched_s", [0.1, 0], ids=["it watched", "it broke off at once"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_end_of_kopf_that_hangs_is_cut_short_and_kopf_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, watched_s: float
) -> None:
    starts: list[float] = []

    async def hanging(**_: Any) -> None:
        starts.append(time.monotonic())
        root = asyncio.create_task(asyncio.sleep(watched_s), name="multidimensional multitasker")
        hung = asyncio.create_task(stubborn())
        await root
        hung.cancel()
        await hung

    monkeypatch.setattr(kopf, "operator", hanging)
    monkeypatch.setattr(module, "_ENDING_S", 0.2)
    monkeypatch.setattr(module, "_LEFTOVERS_S", 0.1)
    layer = Watch([MODEL_DEPLOYMENT], lambda *_: None, kubeconfig=tmp_path / "none")
    layer.start()
    deadline = time.monotonic() + 20
    while len(starts) < 2 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert len(starts) >= 2
    assert layer.restarts >= 1
    assert layer.alive
    await asyncio.to_thread(layer.stop)
    assert not layer.alive
