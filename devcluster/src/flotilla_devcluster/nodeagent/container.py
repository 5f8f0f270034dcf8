"""One container of a simulated pod: its local program, its probes, its restarts, and the status that it reports."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiohttp

from flotilla.kube.client import KubeClient
from flotilla_devcluster import llama_server
from flotilla_devcluster.engine.forkserver import Engine, Engines
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.network import POD_ADDRESS_MAP
from flotilla_devcluster.nodeagent.kubelet_api import ContainerLogs
from flotilla_devcluster.nodeagent.nodes import AgentConfig, rfc3339
from flotilla_devcluster.nodeagent.volumes import Mounts
from flotilla_devcluster.process import Process

_ENGINES = (
    ("vllm", re.compile(r"(^|/)vllm-openai(-[a-z]+)?(:|@|$)")),
    ("tgi", re.compile(r"(^|/)text-generation-inference(:|@|$)")),
    # The image has no entrypoint: the container's command names the program, and the simulated engine requires it.
    ("sglang", re.compile(r"(^|/)sglang(:|@|$)")),
    # the tags full and light are other programs
    ("llamacpp", re.compile(r"(^|/)llama\.cpp(:(?!full|light)|@|$)")),
)
REAL_IMAGE, _SIMULATED_IMAGE = "process://", "simulated://"
"""Beginnings of the IDs of containers and images, by which people see what runs."""
_OWN = re.compile(r"(^|/)flotilla(:|@|$)")


def real_program(image: str, arguments: list[str], programs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The local command for an image: one of `programs`, whose keys are beginnings of names, or our own."""
    given = next((list(command) for start, command in programs.items() if image.startswith(start)), None)
    own = _OWN.search(image) and arguments[:1] in (["gateway"], ["operator"], ["evaluate"])
    return given or ([sys.executable, "-m", "flotilla"] if own else None)


def real_engine(image: str, address: str, arguments: list[str], environment: Mapping[str, str]) -> list[str] | None:
    """The local command for llama.cpp on a CPU whose weights are on this machine; None: the engine is simulated."""
    if not llama_server.IMAGE.search(image) or llama_server.weights(arguments, environment) is None:
        return None
    return [sys.executable, "-m", "flotilla_devcluster.llama_server", address, "--"]


def network_environment(address: str) -> dict[str, str]:
    """Variables with which our own programs listen on their pod's address: all pods share the machine's network."""
    return {"FLOTILLA_LISTEN_HOST": address, "FLOTILLA_POD_ADDRESS_MAP": POD_ADDRESS_MAP}


def simulated_engine(image: str, address: str, arguments: list[str]) -> list[str] | None:
    """Arguments of `python -m flotilla_devcluster.engine` for a container; None for the image of another program.

    `arguments` are the container's, as its image's entrypoint would get them.
    """
    for name, pattern in _ENGINES:
        if pattern.search(image):
            return [name, address, "--", *arguments]
    return None


async def succeeds(
    session: aiohttp.ClientSession, probe: Mapping[str, Any], address: str, ports: Mapping[str, int]
) -> bool:
    """One attempt; exec counts as successful, because there is no container to run it in."""
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout_s):
            if get := probe.get("httpGet"):
                url = f"http://{address}:{port_number(get['port'], ports)}{get.get('path') or '/'}"
                async with session.get(url, allow_redirects=False) as answer:
                    return 200 <= answer.status < 400
            if tcp := probe.get("tcpSocket"):
                _, writer = await asyncio.open_connection(address, port_number(tcp["port"], ports))
                writer.close()
            return True
    except (TimeoutError, OSError, aiohttp.ClientError):
        return False


class ProbeSchedule:
    """When the attempts of one probe are due: as the kubelet's ticker has it, `periodSeconds` apart from the first one.

    The kubelet starts its ticker when it admits the pod and passes over ticks at which the container does not run yet;
    here the first attempt comes right after the container's start, or after `initialDelaySeconds`.
    """

    def __init__(self, probe: Mapping[str, Any]) -> None:
        self._initial_s = float(probe.get("initialDelaySeconds") or 0)
        self._period_s = float(probe.get("periodSeconds") or 10)
        self._due_s: float | None = None

    def delay_s(self, now_s: float) -> float:
        """Seconds until the next attempt; called once before each. `now_s` is of any steady clock."""
        due_s = now_s + self._initial_s if self._due_s is None else self._due_s
        start_s = max(now_s, due_s)
        # An attempt that lasts several periods is followed by one more at once, and not by all that were missed.
        self._due_s = due_s + self._period_s * (1 + (start_s - due_s) // self._period_s)
        return start_s - now_s

    async def wait(self) -> None:
        """Sleep until the next attempt."""
        await asyncio.sleep(self.delay_s(time.monotonic()))


def port_number(port: int | str, ports: Mapping[str, int]) -> int:
    """A port by number or by the container's name for it."""
    return port if isinstance(port, int) else ports.get(port, 0)


_POLL_S = 0.05
_ANYWHERE = re.compile(r"^0\.0\.0\.0(?=:|$)|^(?=:\d+$)")
"""All addresses, with a port or alone: a pod has only its own here."""
_KILLED = 137
_BACKOFF_CAP_S = 300.0
_BACKOFF_RESET_S = 600.0

_MESSAGE_LIMIT = 4096
_MESSAGE_LINES, _MESSAGE_BYTES = 80, 2048
"""The part of a log that the kubelet keeps as the message of a container's end."""


@dataclass(frozen=True, slots=True)
class Host:
    """What all pods of a node agent share."""

    client: KubeClient
    session: aiohttp.ClientSession
    config: AgentConfig
    access: Access
    """The administrator's way to the apiserver, of which pods get its address and authority."""
    directory: Path
    engines: Engines


class Container:
    """Runs until its pod calls `stop`; calls `changed` whenever the status that it would report has changed."""

    def __init__(
        self,
        host: Host,
        spec: Mapping[str, Any],
        *,
        address: str,
        directory: Path,
        mounts: Mounts,
        restart: str,
        changed: Callable[[], None],
    ) -> None:
        """`restart`: the pod's policy, Always, OnFailure or Never."""
        self.spec = spec
        self.ready = False
        self.logs = ContainerLogs(directory)
        self._started = False
        self._restarts = 0
        self._state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self._last: dict[str, Any] = {}
        self._address = address
        self._host = host
        self._config = host.config
        self._changed = changed
        self._restart = restart
        self._mounts = mounts
        self._message_path = spec.get("terminationMessagePath") or "/dev/termination-log"
        self._message_file = directory / "termination-log"
        self._ports = {p["name"]: p["containerPort"] for p in spec.get("ports") or () if "name" in p}
        self._process: Process | Engine | None = None
        self._real = False
        """Whether the container's own program runs, or one that is simulated or played."""

    def status(self) -> dict[str, Any]:
        """One entry of `status.containerStatuses`; its IDs say whether the program is real."""
        kind = REAL_IMAGE if self._real else _SIMULATED_IMAGE
        return {
            "name": self.spec["name"],
            "image": self.spec["image"],
            "imageID": f"{kind}{self.spec['image']}",
            "containerID": f"{kind}{self.spec['name']}-{self._restarts}",
            "ready": self.ready,
            "started": self._started,
            "restartCount": self._restarts,
            "state": self._state,
            "lastState": self._last,
        }

    def waits(self, reason: str, message: str = "") -> None:
        """Show why the container does not run."""
        waiting = {"reason": reason, **({"message": message} if message else {})}
        if self._state != {"waiting": waiting}:
            self._state = {"waiting": waiting}
            self._changed()

    async def run(self, environment: Mapping[str, str], simulate: str = "") -> None:
        """Start, restart with back-off, until cancelled; returns when the pod's policy allows no restart."""
        failures = 0
        while True:
            began = time.monotonic()
            code, reason = await self._once(environment, simulate)
            self.logs.end()
            ended = {"exitCode": code, "reason": reason, "startedAt": self._since, "finishedAt": rfc3339()}
            if message := self._termination_message():
                ended["message"] = message
            elif code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError" and self._process:
                ended["message"] = self._process.log_tail(_MESSAGE_LINES)[-_MESSAGE_BYTES:]
            self.ready = self._started = False
            if self._restart == "Never" or (self._restart == "OnFailure" and code == 0):
                self._state = {"terminated": ended}
                self._changed()
                return
            failures = 0 if time.monotonic() - began > _BACKOFF_RESET_S else failures
            delay_s = min(self._config.crash_backoff_s * 2**failures, _BACKOFF_CAP_S)
            failures += 1
            self._last = {"terminated": ended}
            name = self.spec["name"]
            self.waits("CrashLoopBackOff", f"back-off {delay_s:g}s restarting failed container={name}")
            await asyncio.sleep(delay_s)
            self._restarts += 1

    def _termination_message(self) -> str:
        """What the program wrote into its terminationMessagePath."""
        try:
            return self._message_file.read_text(errors="replace")[:_MESSAGE_LIMIT]
        except OSError:
            return ""

    def _local_path(self, argument: str) -> str:
        """A path of the container as one of this machine."""
        return str(self._message_file) if argument == self._message_path else self._mounts.local(argument)

    async def stop(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace is over; the preStop hook counts against it."""
        deadline = time.monotonic() + grace_s
        hook = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        if self._process is not None and self._process.running and grace_s > 0:
            await self._pre_stop(hook, grace_s)
            self._process.terminate()
            while self._process.running and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
        self.logs.end()

    async def _pre_stop(self, hook: Mapping[str, Any], grace_s: float) -> None:
        if sleep := hook.get("sleep"):
            await asyncio.sleep(min(float(sleep["seconds"]), grace_s))
        elif get := hook.get("httpGet"):
            await succeeds(self._host.session, {"httpGet": get, "timeoutSeconds": grace_s}, self._address, self._ports)

    async def _once(self, environment: Mapping[str, str], simulate: str) -> tuple[int, str]:
        self._since = rfc3339()
        arguments = [*(self.spec.get("command") or ()), *(self.spec.get("args") or ())]
        engine = simulated_engine(self.spec["image"], self._address, arguments)
        local = self._local(arguments, environment)
        self._real = local is not None
        log = self.logs.start(self._restarts)
        self._state = {"running": {"startedAt": self._since}}
        self._changed()
        if simulate:
            await asyncio.sleep(self._config.fake_seconds)
            return (_KILLED, "OOMKilled") if simulate == "OOMKilled" else (1, "Error")
        process: Process | Engine
        if local is not None:
            command, own = local
            process = Process.start(self.spec["name"], command, log=log, env={**_inherited(), **own})
        elif engine is not None:
            process = await self._host.engines.run(engine, env={**_inherited(), **environment}, log=log)
        else:
            await self._play()
        self._process = process
        prober = asyncio.create_task(self._probe(process))
        try:
            while process.running:
                self.logs.mark()
                await asyncio.sleep(_POLL_S)
        finally:
            prober.cancel()
        code = process.exit_code or 0
        return (128 - code if code < 0 else code), ("Completed" if code == 0 else "Error")

    def _local(self, arguments: list[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]] | None:
        """Command and environment of a program that runs here for real, with local addresses and folders."""
        image, local = self.spec["image"], self._local_path
        heard = [local(_ANYWHERE.sub(self._address, argument)) for argument in arguments]
        values = {name: local(value) for name, value in environment.items()}
        if (program := real_program(image, arguments, self._config.programs)) is not None:
            values = {**network_environment(self._address), **values}
        elif (program := real_engine(image, self._address, heard, values)) is not None:
            values = {**llama_server.local_environment(), **values}
        else:
            return None
        self._mounts.make()
        self._message_file.unlink(missing_ok=True)
        return [*program, *heard], values

    async def _play(self) -> NoReturn:
        """A container of an unknown image becomes ready after a while, and stays so."""
        await asyncio.sleep(self._config.fake_seconds)
        self._ready(True)
        while True:
            await asyncio.Event().wait()

    async def _probe(self, process: Process | Engine) -> None:
        startup = self.spec.get("startupProbe")
        if startup is not None and not await self._until_success(startup):
            process.terminate()
            return
        if not self._started:
            self._started = True
            self._changed()
        await asyncio.gather(self._readiness(), self._liveness(process))

    async def _until_success(self, probe: Mapping[str, Any]) -> bool:
        schedule = ProbeSchedule(probe)
        for _ in range(int(probe.get("failureThreshold") or 3)):
            await schedule.wait()
            if await succeeds(self._host.session, probe, self._address, self._ports):
                return True
        return False

    async def _readiness(self) -> None:
        probe = self.spec.get("readinessProbe")
        if probe is None:
            self._ready(True)
            return
        schedule, good, bad = ProbeSchedule(probe), 0, 0
        while True:
            await schedule.wait()
            if await succeeds(self._host.session, probe, self._address, self._ports):
                good, bad = good + 1, 0
            else:
                good, bad = 0, bad + 1
            if good >= int(probe.get("successThreshold") or 1):
                self._ready(True)
            if bad >= int(probe.get("failureThreshold") or 3):
                self._ready(False)

    async def _liveness(self, process: Process | Engine) -> None:
        probe = self.spec.get("livenessProbe")
        if probe is None:
            return
        schedule, bad = ProbeSchedule(probe), 0
        while bad < int(probe.get("failureThreshold") or 3):
            await schedule.wait()
            good = await succeeds(self._host.session, probe, self._address, self._ports)
            bad = 0 if good else bad + 1
        process.terminate()

    def _ready(self, ready: bool) -> None:
        if self.ready != ready or not self._started:
            self.ready, self._started = ready, True
            self._changed()


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
