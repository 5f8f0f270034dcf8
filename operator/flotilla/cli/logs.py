"""`flotilla logs`: the logs of all pods of a model or of a gateway, with credentials redacted."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.cli.common import Context, Json, Kubeconfig, Namespace, command_app, duration_s, exit_on_error, plain
from flotilla.cli.describe import pods_of, resource_of, selector_of
from flotilla.cli.kubeconfig import Cluster
from flotilla.errors import FlotillaError, InvalidSpec, NotReady, Transient
from flotilla.logs import redact

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

app = command_app()
Object = Mapping[str, Any]
_LOOK_S = 2.0
"""With --follow, seconds between two searches for new pods and containers."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which logs, and how much of them."""

    namespace: str
    name: str | None
    """Of a ModelDeployment; None: the gateway of the namespace."""
    follow: bool = False
    previous: bool = False
    since_s: int | None = None
    tail_lines: int | None = None

    def __post_init__(self) -> None:
        if self.follow and self.previous:
            raise InvalidSpec("A container that has ended writes nothing more. Leave --follow out.", field="--previous")


@dataclass(frozen=True, slots=True)
class Out:
    """Where the lines of a pod go, and remarks about it."""

    line: Callable[[str, str], None]
    note: Callable[[str], None]


def text_of(line: str) -> str:
    """For a terminal, which would execute the control characters in a program's output."""
    return plain(redact(_COLOUR.sub("", line)).expandtabs())


def json_of(pod: str, line: str) -> str:
    """One object."""
    return json.dumps({"pod": pod, "line": redact(line)}, ensure_ascii=False)


async def show(client: "KubeClient", question: LogQuery, out: Out) -> None:
    """Every pod's log, one after the other, or with `follow` all at the same time without an end.

    Raises NotReady where there is no such model, no pod, or no log in any.
    """
    if question.name is not None:
        await resource_of(client, question.namespace, question.name)
    if question.follow:
        await _Following(client, question, out).run()
        return
    pods = await _pods(client, question)
    if not pods:
        raise NotReady(f"{_whose(question)} has no pod now. --follow waits for one.")
    read = 0
    for pod in pods:
        name = pod["metadata"]["name"]
        try:
            async for line in _read(client, pod, question):
                out.line(name, line)
            read += 1
        except InvalidSpec as nothing:
            out.note(f"{name}: {nothing}")
    if not read:
        raise NotReady(f"No pod of {_whose(question)} has such a log.")


def _whose(question: LogQuery) -> str:
    what = "The gateway" if question.name is None else f"ModelDeployment {question.name!r}"
    return f"{what} of namespace {question.namespace}"


async def _pods(client: "KubeClient", question: LogQuery) -> list[Object]:
    from flotilla.render.gateway import selector

    labels = selector() if question.name is None else selector_of(question.name)
    return await pods_of(client, question.namespace, labels)


def _read(client: "KubeClient", pod: Object, question: LogQuery) -> Any:
    return client.pod_log(
        question.namespace,
        pod["metadata"]["name"],
        # The engine's container is the first one; injected containers come after it.
        container=pod["spec"]["containers"][0]["name"],
        follow=question.follow,
        previous=question.previous,
        since_s=question.since_s,
        tail_lines=question.tail_lines,
    )


Start = tuple[str, int]
"""UID of a pod, and the restart count of its container."""


class _Following:
    """Follows the pods of a model, and those that it starts later; each start of a container is read once."""

    def __init__(self, client: "KubeClient", question: LogQuery, out: Out) -> None:
        self._client = client
        self._question = question
        self._out = out
        self._reading: dict[Start, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        question = self._question
        try:
            while True:
                for pod in await self._pods():
                    start = _running(pod)
                    if start is not None and start not in self._reading:
                        self._reading[start] = asyncio.create_task(self._one(start, pod, question))
                # Containers that start from now on are read from their first line.
                question = LogQuery(question.namespace, question.name, follow=True)
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._reading.values():
                task.cancel()

    async def _pods(self) -> list[Object]:
        try:
            return await _pods(self._client, self._question)
        except Transient as broken:
            self._out.note(str(broken))
            return []

    async def _one(self, start: Start, pod: Object, question: LogQuery) -> None:
        name = pod["metadata"]["name"]
        loop = asyncio.get_running_loop()
        while True:
            try:
                async for line in _read(self._client, pod, question):
                    self._out.line(name, line)
            except Transient as broken:
                self._out.note(f"{name}: {broken}")
            except FlotillaError as ended:
                self._out.note(f"{name}: {ended}")
                return
            else:
                return
            broken_at = loop.time()
            await asyncio.sleep(_LOOK_S)
            since_s = math.ceil(loop.time() - broken_at)
            question = LogQuery(question.namespace, question.name, follow=True, since_s=since_s)


def _running(pod: Object) -> Start | None:
    status: Object = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
    if "running" not in (status.get("state") or {}):
        return None
    return pod["metadata"]["uid"], int(status.get("restartCount") or 0)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="Name of a ModelDeployment.")] = None,
    gateway: Annotated[bool, typer.Option("--gateway", help="Logs of the namespace's gateway instead.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until Ctrl-C, with pods that start later too.")
    ] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Logs before the last restart.")] = False,
    since: Annotated[str | None, typer.Option(help="Only lines of the last 90s, 10m, 2h.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Number of last lines of each pod. Default: all.")] = None,
    prefix: Annotated[bool, typer.Option(help="Begin each line with the name of its pod.")] = True,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Print the logs of all pods of a model, with credentials redacted.

    Exit code 1: there is no such model, pod or log; 3: the cluster does not
    answer.
    """

    def line(pod: str, text: str) -> None:
        shown = text_of(text)
        typer.echo(json_of(pod, text) if as_json else f"{pod} | {shown}" if prefix else shown)

    with exit_on_error():
        since_s = None if since is None else duration_s(since, field="--since", shortest="1s")
        if (name is None) != gateway:
            raise InvalidSpec("Give the NAME of a ModelDeployment, or --gateway.", field="NAME")
        question = LogQuery("", name, follow=follow, previous=previous, since_s=since_s, tail_lines=tail)
        cluster = Cluster.find(kubeconfig, context)
        question = replace(question, namespace=namespace or cluster.namespace())
        out = Out(line, lambda text: typer.echo(text, err=True))
        with suppress(KeyboardInterrupt):
            cluster.ask(lambda client: show(client, question, out))
