"""Logs as the node agent keeps them for `kubectl logs`."""

import asyncio
from pathlib import Path

import pytest

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster.nodeagent import kubelet_api
from flotilla_devcluster.nodeagent.kubelet_api import ContainerLogs, LogQuery


def read(logs: ContainerLogs, query: LogQuery) -> list[str]:
    async def lines() -> list[str]:
        return [line.decode() async for line in logs.read(query)]

    return asyncio.run(lines())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("flotilla_devcluster.nodeagent.kubelet_api.time.time", lambda: now[0])
    return now


def test_lines_are_known_by_the_time_when_they_were_found(tmp_path: Path, clock: list[float]) -> None:
    logs = ContainerLogs(tmp_path)
    path = logs.start(0)
    write(path, "a\nb\n")
    logs.mark()
    clock[0] = 1010
    write(path, "c\n")
    logs.mark()
    clock[0] = 1020
    assert read(logs, LogQuery()) == ["a\n", "b\n", "c\n"]
    assert read(logs, LogQuery(since=1005)) == ["c\n"]
    assert read(logs, LogQuery(tail=2)) == ["b\n", "c\n"]
    assert read(logs, LogQuery(tail=0)) == []
    assert read(logs, LogQuery(timestamps=True, tail=1)) == ["1970-01-01T00:16:50Z c\n"]


def test_the_previous_log_is_of_the_start_before_and_of_the_last_one_while_it_waits(tmp_path: Path) -> None:
    logs = ContainerLogs(tmp_path)
    with pytest.raises(NotReady, match="waiting to start"):
        read(logs, LogQuery())
    write(logs.start(0), "first\n")
    with pytest.raises(NotReady, match="previous terminated container not found"):
        read(logs, LogQuery(previous=True))
    logs.end()
    assert read(logs, LogQuery()) == read(logs, LogQuery(previous=True)) == ["first\n"]
    write(logs.start(1), "second\n")
    assert read(logs, LogQuery()) == ["second\n"]
    assert read(logs, LogQuery(previous=True)) == ["first\n"]


def test_a_container_that_is_only_played_has_an_empty_log(tmp_path: Path) -> None:
    logs = ContainerLogs(tmp_path)
    logs.start(0)
    assert read(logs, LogQuery()) == []


def test_half_a_line_is_shown_when_nothing_more_can_come(tmp_path: Path) -> None:
    logs = ContainerLogs(tmp_path)
    write(logs.start(0), "whole\nhalf")
    assert read(logs, LogQuery()) == ["whole\n"]
    logs.end()
    assert read(logs, LogQuery()) == ["whole\n", "half"]


def test_following_ends_with_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet_api, "_POLL_S", 0)
    logs = ContainerLogs(tmp_path)
    path = logs.start(0)
    write(path, "a\nb\n")

    async def run() -> list[bytes]:
        found = []
        async for line in logs.read(LogQuery(follow=True, tail=1)):
            found.append(line)
            if line == b"b\n":
                write(path, "c\nd")
                logs.end()
        return found

    assert asyncio.run(run()) == [b"b\n", b"c\n", b"d"]


def test_a_query_is_read_as_the_apiserver_writes_it() -> None:
    query = {"follow": "true", "previous": "true", "timestamps": "true", "sinceSeconds": "60", "tailLines": "5"}
    assert LogQuery.parse(query, now=1000) == LogQuery(
        follow=True, previous=True, timestamps=True, since=940, tail=5, limit_bytes=None
    )
    assert LogQuery.parse({"sinceTime": "1970-01-01T00:01:00Z", "limitBytes": "9"}, now=0) == LogQuery(
        since=60, limit_bytes=9
    )
    with pytest.raises(InvalidSpec, match="soon"):
        LogQuery.parse({"tailLines": "soon"}, now=0)
