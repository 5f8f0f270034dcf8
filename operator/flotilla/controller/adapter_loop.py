"""Loads LoRA adapters into running engines and unloads them, through the engines' own endpoints.

For each pod of a ModelDeployment whose engine can do it (`planning.adapters`): read what the engine has, ask for the
changes, and set the pod's condition `flotilla.dev/adapters`, which is a readiness gate. So a new pod is Ready only
with all adapters, and a pod that serves stays Ready while one is added. `track` is called by the reconciler;
`statuses` gives status.adapters. A pod that is complete is read again every half minute, and at once when its
container has restarted.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from flotilla.addresses import AddressMap
from flotilla.background import isolated
from flotilla.constants import CONDITION_ADAPTERS
from flotilla.errors import FlotillaError
from flotilla.kube import observed
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import POD, Key
from flotilla.kube.observed import Pod, Workload
from flotilla.kube.store import Store
from flotilla.planning.adapters import WantedAdapter, changes
from flotilla.planning.resolve import Resolved

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_VERIFY_S = 30.0
_RETRY_S = 5.0
_READ_S, _LOAD_S = 5.0, 300.0
"""Loading an adapter from the hub downloads it first."""
_AT_ONCE = 32
_ANSWER_BYTES = 1 << 20
_REASON_LENGTH = 300


class AdapterRefused(FlotillaError):
    """An engine did not do what it was asked; the message is its own."""


@dataclass(slots=True)
class _PodState:
    """What is known of one pod's engine."""

    restarts: int
    loaded: dict[str, str] = field(default_factory=dict)
    wanted: tuple[WantedAdapter, ...] = ()
    due_s: float = 0.0
    """When it is looked at again, by the clock."""


class AdapterLoader:
    """Holds no truth: after a restart it reads the engines again, and asks for nothing that they have."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        addresses: AddressMap,
        *,
        enqueue: Callable[[Key], None],
        clock: Callable[[], float],
        now: Callable[[], str],
    ) -> None:
        self._client = client
        self._store = store
        self._addresses = addresses
        self._enqueue = enqueue
        self._clock = clock
        self._now = now
        self._tracked: dict[Key, Resolved] = {}
        self._pods: dict[str, _PodState] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)

    def track(self, key: Key, resolved: Resolved) -> None:
        """Load what `resolved` wants from now on."""
        if resolved.adapters.runtime is not None and resolved.adapters.slots:
            self._tracked[key] = resolved
        else:
            self._tracked.pop(key, None)

    def forget(self, key: Key) -> None:
        """The deployment was deleted."""
        self._tracked.pop(key, None)

    def statuses(self, resolved: Resolved, load: Workload) -> list[dict[str, Any]]:
        """status.adapters. Engines that read adapters at their start have them when the rollout is over."""
        plan = resolved.adapters
        if plan.runtime is None:
            loaded = dict.fromkeys((adapter.name for adapter in plan.wanted), load.ready if load.rolled_out else 0)
        else:
            alive = [self._pods[pod.uid].loaded for pod in load.pods if pod.uid in self._pods and not pod.terminating]
            loaded = {a.name: sum(have.get(a.name) == a.path for have in alive) for a in plan.wanted}
        return [{"name": a.name, "digest": a.digest, "loadedReplicas": loaded[a.name]} for a in plan.wanted]

    async def run(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                await self.tick(session)
                await asyncio.sleep(_INTERVAL_S)

    async def tick(self, session: aiohttp.ClientSession) -> None:
        """Bring every pod that is due to what is wanted."""
        alive: set[str] = set()
        due: list[tuple[Key, Resolved, Pod]] = []
        for key, resolved in self._tracked.items():
            for pod in map(observed.pod, self._store.owned_by(POD, key)):
                alive.add(pod.uid)
                if self._is_due(pod, resolved):
                    due.append((key, resolved, pod))
        self._pods = {uid: state for uid, state in self._pods.items() if uid in alive}
        await asyncio.gather(*(self._bring(session, key, resolved, pod) for key, resolved, pod in due))

    def _is_due(self, pod: Pod, resolved: Resolved) -> bool:
        if pod.terminating or not pod.ip or not pod.answers:
            return False
        state = self._pods.get(pod.uid)
        if state is None or state.restarts != pod.restarts or state.wanted != resolved.adapters.wanted:
            return True
        return self._clock() >= state.due_s

    async def _bring(self, session: aiohttp.ClientSession, key: Key, resolved: Resolved, pod: Pod) -> None:
        async with self._turn:
            with isolated("adapters of a pod", pod.name):
                await self._converge(
                    _EngineApi(session, self._addresses.translate(pod.ip), resolved), key, resolved, pod
                )

    async def _converge(self, engine: "_EngineApi", key: Key, resolved: Resolved, pod: Pod) -> None:
        wanted = resolved.adapters.wanted
        state = self._pods.setdefault(pod.uid, _PodState(pod.restarts))
        before, failure = dict(state.loaded), ""
        try:
            state.loaded = await engine.loaded()
            todo = changes(state.loaded, wanted)
            for name in todo.unload:
                await engine.unload(name)
                del state.loaded[name]
            for adapter in todo.load:
                await engine.load(adapter)
                state.loaded[adapter.name] = adapter.path
                log.info("adapter loaded", extra={"pod": pod.name, "adapter": adapter.name, "path": adapter.path})
        except (AdapterRefused, aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = (str(error) or type(error).__name__)[:_REASON_LENGTH]
            log.warning("an adapter is not as wanted", extra={"pod": pod.name, "cause": failure})
        state.restarts, state.wanted = pod.restarts, wanted
        state.due_s = self._clock() + (_RETRY_S if failure else _VERIFY_S)
        complete = not changes(state.loaded, wanted)
        # A pod that serves goes on with the adapters that it has, while another is loaded or fails to.
        if complete or not pod.ready:
            await self._report(key, pod, complete, failure)
        if state.loaded != before or failure:
            self._enqueue(key)

    async def _report(self, key: Key, pod: Pod, complete: bool, failure: str) -> None:
        status = "True" if complete else "False"
        if (pod.adapters, pod.adapters_message) == (status, failure):
            return
        condition = {
            "type": CONDITION_ADAPTERS,
            "status": status,
            "reason": "AdaptersLoaded" if complete else "AdapterMissing",
            "message": failure,
            "lastTransitionTime": self._now(),
        }
        body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        try:
            patched = await self._client.patch(
                POD, pod.name, body, namespace=key.namespace, subresource="status", patch_type="strategic"
            )
        except FlotillaError as error:
            self._pods[pod.uid].due_s = 0.0
            log.info("a pod's condition is written again", extra={"pod": pod.name, "cause": str(error)})
        else:
            self._store.put(POD, patched)


class _EngineApi:
    """The endpoints of one engine."""

    def __init__(self, session: aiohttp.ClientSession, host: str, resolved: Resolved) -> None:
        assert resolved.adapters.runtime is not None
        self._session = session
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{resolved.port}"
        self._paths = resolved.adapters.runtime

    async def loaded(self) -> dict[str, str]:
        """Path of each adapter by its name."""
        async with self._session.get(
            self._url + self._paths.models, timeout=aiohttp.ClientTimeout(total=_READ_S), allow_redirects=False
        ) as answer:
            document = await answer.json(content_type=None) if answer.status == 200 else None
        if not isinstance(document, Mapping) or not isinstance(document.get("data"), Sequence):
            raise AdapterRefused(
                f"GET {self._paths.models} was answered with HTTP {answer.status} and no list of models."
            )
        return dict(_adapters(document["data"]))

    async def load(self, adapter: WantedAdapter) -> None:
        await self._post(self._paths.load, {"lora_name": adapter.name, "lora_path": adapter.path})

    async def unload(self, name: str) -> None:
        await self._post(self._paths.unload, {"lora_name": name})

    async def _post(self, path: str, body: Mapping[str, str]) -> None:
        async with self._session.post(
            self._url + path, json=body, timeout=aiohttp.ClientTimeout(total=_LOAD_S), allow_redirects=False
        ) as answer:
            text = (await answer.content.read(_ANSWER_BYTES)).decode(errors="replace")
        if answer.status != 200:
            said = " ".join(text.split())[:_REASON_LENGTH]
            raise AdapterRefused(f"Adapter {body['lora_name']!r}: the engine answered HTTP {answer.status}: {said}")


def _adapters(models: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Of OpenAI's list of models those that belong to another."""
    for model in models:
        if isinstance(model, Mapping) and model.get("parent") and isinstance(model.get("id"), str):
            yield model["id"], str(model.get("root") or "")
