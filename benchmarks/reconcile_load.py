"""Creates ModelDeployments at once, and one more while they are worked on; notes when each has a status."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from flotilla.constants import API_VERSION
from flotilla.errors import Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import MODEL_DEPLOYMENT

SUBMITTERS = 16
NEWCOMER = "newcomer"
NAMESPACE = "default"


def model(name: str) -> dict[str, Any]:
    """A typical ModelDeployment."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen2.5-7B-Instruct"},
            "engine": {"name": "vllm"},
            "accelerator": {"class": "nvidia-l4"},
            "scaling": {"maxReplicas": 4},
            "cost": {"compareWith": [{"provider": "openai", "model": "gpt-5-mini"}]},
        },
    }


class Load:
    """`count` new objects; `created` and `answered` hold monotonic times by name, in seconds."""

    def __init__(self, client: KubeClient, count: int) -> None:
        self._client = client
        self._count = count
        self.created: dict[str, float] = {}
        """When the apiserver had answered the create."""
        self.answered: dict[str, float] = {}
        """When a watch showed a status of the object's generation."""
        self.newcomer_s = 0.0
        """From the create of one more object, when half of the others had a status, to its own status."""
        self._half_answered = asyncio.Event()
        self._all_answered = asyncio.Event()
        self._newcomer_answered = asyncio.Event()

    async def run(self, *, timeout_s: float) -> None:
        """Create all with 16 submitters and wait until every one has a status; TimeoutError when some have none."""
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            names = iter([f"model-{number:05d}" for number in range(self._count)])
            await asyncio.gather(self._newcomer(), *(self._submit(names) for _ in range(SUBMITTERS)))
            await self._all_answered.wait()
            watch.cancel()

    async def _submit(self, names: Iterator[str]) -> None:
        for name in names:
            await self._client.create(MODEL_DEPLOYMENT, model(name))
            self.created[name] = time.monotonic()

    async def _newcomer(self) -> None:
        await self._half_answered.wait()
        await self._client.create(MODEL_DEPLOYMENT, model(NEWCOMER))
        created = time.monotonic()
        await self._newcomer_answered.wait()
        self.newcomer_s = time.monotonic() - created

    async def _watch(self) -> None:
        while True:
            page = await self._client.list(MODEL_DEPLOYMENT, namespace=NAMESPACE)
            for obj in page.items:
                self._note(obj)
            try:
                async for events in self._client.watch(
                    MODEL_DEPLOYMENT,
                    resource_version=page.resource_version,
                    namespace=NAMESPACE,
                    lasts_s=600,
                    silence_s=90,
                ):
                    for type_, obj in events:
                        if type_ != "BOOKMARK":
                            self._note(obj)
            except Transient:
                continue

    def _note(self, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        if obj.get("status", {}).get("observedGeneration") != meta["generation"]:
            return
        if meta["name"] == NEWCOMER:
            self._newcomer_answered.set()
            return
        self.answered.setdefault(meta["name"], time.monotonic())
        if len(self.answered) == (self._count + 1) // 2:
            self._half_answered.set()
        if len(self.answered) == self._count:
            self._all_answered.set()
