"""`flotilla logs`: whose logs are read, and what of them is shown."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from flotilla.cli import app, logs
from flotilla.cli.logs import LogQuery, Out
from flotilla.errors import InvalidSpec, NotReady, Transient
from flotilla.kube.client import KubeClient, ObjectList
from flotilla.kube.kinds import MODEL_DEPLOYMENT, POD, Kind


def pod(name: str, *, restarts: int = 0, state: str = "running") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"containers": [{"name": "engine"}, {"name": "injected"}]},
        "status": {"containerStatuses": [{"state": {state: {}}, "restartCount": restarts}]},
    }


class Cluster:
    """A client that knows pods by label selector and answers with their logs, some of them with an error."""

    def __init__(self, pods: Mapping[str, Sequence[dict[str, Any]]], logs: Mapping[str, Any]) -> None:
        self.pods = pods
        self.logs = logs
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def get(self, kind: Kind, name: str, *, namespace: str) -> dict[str, Any] | None:
        assert (kind, namespace) == (MODEL_DEPLOYMENT, "n")
        return {"metadata": {"name": name}} if name == "m" else None

    async def list(self, kind: Kind, *, namespace: str) -> ObjectList:
        return ObjectList([{"metadata": {"name": "m"}}], "1")

    async def pages(self, kind: Kind, *, namespace: str, label_selector: str) -> AsyncIterator[ObjectList]:
        assert (kind, namespace) == (POD, "n")
        yield ObjectList(list(self.pods.get(label_selector, ())), "1")

    async def pod_log(self, namespace: str, name: str, **options: Any) -> AsyncIterator[str]:
        self.asked.append((name, options))
        said = self.logs[name]
        for line in said if isinstance(said, list) else ():
            yield line
        if isinstance(said, Exception):
            raise said


MODEL = "app.kubernetes.io/managed-by=flotilla,flotilla.dev/model=m"
GATEWAY = "app.kubernetes.io/managed-by=flotilla,app.kubernetes.io/component=gateway"


def shown(cluster: Cluster, question: LogQuery) -> tuple[list[tuple[str, str]], list[str]]:
    lines: list[tuple[str, str]] = []
    notes: list[str] = []
    out = Out(lambda name, line: lines.append((name, line)), notes.append)
    asyncio.run(logs.show(cast("KubeClient", cluster), question, out))
    return lines, notes


def test_every_pod_of_a_model_is_read_in_the_order_of_names() -> None:
    cluster = Cluster({MODEL: [pod("m-2"), pod("m-1")]}, {"m-1": ["a", "b"], "m-2": ["c"]})
    lines, notes = shown(cluster, LogQuery("n", "m", since_s=60, tail_lines=5))
    assert lines == [("m-1", "a"), ("m-1", "b"), ("m-2", "c")]
    assert notes == []
    wanted = {"container": "engine", "follow": False, "previous": False, "since_s": 60, "tail_lines": 5}
    assert cluster.asked == [("m-1", wanted), ("m-2", wanted)]


def test_the_gateway_of_a_namespace_is_no_model() -> None:
    lines, _ = shown(Cluster({GATEWAY: [pod("g")]}, {"g": ["x"]}), LogQuery("n", None))
    assert lines == [("g", "x")]


def test_a_pod_without_a_log_is_a_note_and_no_pod_with_one_an_error() -> None:
    refused = InvalidSpec('container "engine" in pod "m-1": previous terminated container not found')
    one = Cluster({MODEL: [pod("m-1"), pod("m-2")]}, {"m-1": refused, "m-2": ["c"]})
    lines, notes = shown(one, LogQuery("n", "m", previous=True))
    assert lines == [("m-2", "c")]
    assert notes == [f"m-1: {refused}"]
    with pytest.raises(NotReady, match="No pod of ModelDeployment 'm' of namespace n has such a log"):
        shown(Cluster({MODEL: [pod("m-1")]}, {"m-1": refused}), LogQuery("n", "m", previous=True))


def test_an_unknown_model_and_one_without_pods_say_what_there_is() -> None:
    with pytest.raises(NotReady, match="There are m"):
        shown(Cluster({}, {}), LogQuery("n", "x"))
    with pytest.raises(NotReady, match=r"has no pod now\. --follow waits"):
        shown(Cluster({}, {}), LogQuery("n", "m"))


def test_following_reads_each_start_once_and_goes_on_with_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LOOK_S", 0)
    waiting = pod("m-2", state="waiting")
    turns = [[pod("m-1"), waiting], [pod("m-1"), pod("m-2")], [pod("m-1", restarts=1), pod("m-2")]]
    cluster = Cluster({}, {"m-1": ["a"], "m-2": ["c"]})
    lines: list[tuple[str, str]] = []

    async def pages(*_: Any, **__: Any) -> AsyncIterator[ObjectList]:
        yield ObjectList(turns.pop(0) if len(turns) > 1 else turns[0], "1")

    monkeypatch.setattr(cluster, "pages", pages)

    async def run() -> None:
        out = Out(lambda name, line: lines.append((name, line)), lambda _: None)
        task = asyncio.create_task(
            logs.show(cast("KubeClient", cluster), LogQuery("n", "m", follow=True, tail_lines=1), out)
        )
        while len(lines) < 3:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert lines == [("m-1", "a"), ("m-2", "c"), ("m-1", "a")]
    assert [options["tail_lines"] for _, options in cluster.asked] == [1, None, None]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LOOK_S", 0)
    cluster = Cluster({MODEL: [pod("m-1")]}, {"m-1": Transient("gone")})
    notes: list[str] = []

    async def run() -> None:
        out = Out(lambda *_: None, notes.append)
        task = asyncio.create_task(logs.show(cast("KubeClient", cluster), LogQuery("n", "m", follow=True), out))
        while len(cluster.asked) < 2:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert notes[0] == "m-1: gone"
    assert [options["since_s"] is None for _, options in cluster.asked[:2]] == [True, False]


def test_a_line_is_shown_without_tokens_colours_and_control_characters() -> None:
    assert (
        logs.text_of("\x1b[32mINFO\x1b[0m\tAuthorization: Bearer abc.def") == "INFO    Authorization: Bearer [redacted]"
    )
    assert logs.text_of("a\x1b]0;title\x07b") == r"a\x1b]0;title\x07b"
    assert json.loads(logs.json_of("m-1", "hf_aaaaaaaaaaaa é")) == {"pod": "m-1", "line": "hf_[redacted] é"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "NAME"),
        (("m", "--gateway"), "NAME"),
        (("m", "--since", "soon"), "--since 'soon' is not a length of time"),
        (("m", "--follow", "--previous"), "Leave --follow out"),
        (("m", "--tail", "-1"), "--tail"),
    ],
)
def test_a_wrong_question_about_logs_ends_with_2(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("{}")
    result = CliRunner().invoke(app, ["logs", *arguments, "--kubeconfig", str(config)])
    assert result.exit_code == 2
    assert said in result.stderr
