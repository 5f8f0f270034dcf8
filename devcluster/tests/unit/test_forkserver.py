"""Engines that are forked are processes as good as those that are started."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flotilla.errors import NotReady
from flotilla_devcluster.engine import forkserver
from flotilla_devcluster.engine.forkserver import Engine, Engines
from flotilla_devcluster.process import until

ADDRESS = "127.244.251.9"
VLLM = ["vllm", ADDRESS, "--", "m/x", "--port", "0"]
UP = "Application startup complete."


class Fleet:
    """Engines of one server, all of which have ended when the test has."""

    def __init__(self, server: Engines) -> None:
        self.server = server
        self._started: list[Engine] = []

    async def run(self, log: Path, *arguments: str, **env: str) -> Engine:
        engine = await self.server.run(arguments, env={"PATH": os.environ["PATH"], **env}, log=log)
        self._started.append(engine)
        return engine

    async def stop(self) -> None:
        self.server.stop()
        for engine in self._started:
            await ended(engine)


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(Engines.start(tmp_path))
    yield fleet
    await fleet.stop()


async def ended(engine: Engine) -> int | None:
    async with asyncio.timeout(20):
        while engine.running:
            await asyncio.sleep(0.01)
    return engine.exit_code


async def up(engine: Engine) -> None:
    async with asyncio.timeout(20):
        while UP not in engine.log_tail():
            assert engine.running, engine.log_tail()
            await asyncio.sleep(0.01)


async def test_an_engine_has_a_session_an_environment_and_a_log_of_its_own_and_ends_at_sigterm(
    engines: Fleet, tmp_path: Path
) -> None:
    one = await engines.run(tmp_path / "a" / "0.log", *VLLM, FLOTILLA_SIM_LOAD_SECONDS="0")
    two = await engines.run(tmp_path / "b" / "0.log", *VLLM, FLOTILLA_SIM_LOAD_SECONDS="600")
    await up(one)
    while not (tmp_path / "b" / "0.log").exists():  # the last step of a child before it is an engine
        await asyncio.sleep(0.01)
    assert UP not in two.log_tail()
    assert [os.getsid(engine.pid) for engine in (one, two)] == [one.pid, two.pid]
    files = {file.fd for file in psutil.Process(one.pid).open_files()}
    assert files == {1, 2}
    one.terminate()
    assert await ended(one) == 0
    assert two.running
    two.kill()
    assert await ended(two) == -signal.SIGKILL
    two.kill()
    two.terminate()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["vllm", ADDRESS, "--", "m", "--swap-space", "4"], 2, "unrecognized arguments: --swap-space 4"),
        (["triton", ADDRESS, "--"], 2, "usage: python -m flotilla_devcluster.engine"),
        (["vllm", "nowhere.invalid", "--", "m", "--port", "0"], 1, "Name or service not known"),
    ],
)
async def test_a_refusal_has_the_exit_code_and_the_text_of_a_process(
    engines: Fleet, tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    engine = await engines.run(tmp_path / "0.log", *arguments)
    assert await ended(engine) == code
    assert text in engine.log_tail(100)


async def test_engines_end_with_their_server(engines: Fleet, tmp_path: Path) -> None:
    engine = await engines.run(tmp_path / "0.log", *VLLM)
    await up(engine)
    engines.server.stop()
    assert await ended(engine) == -signal.SIGKILL
    until(lambda: not alive(engine.pid), what="the engine's end", timeout_s=5)
    with pytest.raises(NotReady, match="engines ended with exit status -9"):
        await engines.run(tmp_path / "1.log", *VLLM)


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_client_that_sends_nothing_disturbs_no_other(engines: Fleet, tmp_path: Path) -> None:
    first = await engines.run(tmp_path / "0.log", *VLLM)
    for _ in range(3):
        _, writer = await asyncio.open_unix_connection(f"\0{engines.server.name}")
        writer.close()
        await writer.wait_closed()
    second = await engines.run(tmp_path / "1.log", *VLLM)
    await up(first)
    await up(second)
    assert first.running
    assert second.running


async def test_an_engine_whose_caller_gives_up_does_not_stay(engines: Fleet, tmp_path: Path) -> None:
    await engines.run(tmp_path / "first.log", *VLLM)
    reader, writer = await asyncio.open_unix_connection(f"\0{engines.server.name}")
    wanted = {"arguments": VLLM, "env": {"PATH": os.environ["PATH"]}, "log": str(tmp_path / "left.log")}
    writer.write(json.dumps(wanted).encode() + b"\n")
    pid = json.loads(await reader.readline())["pid"]
    assert alive(pid)
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while alive(pid):
            await asyncio.sleep(0.01)


def test_another_user_of_the_machine_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = socket.socketpair()
    with one, two:
        assert forkserver.is_ours(one)
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert not forkserver.is_ours(one)
