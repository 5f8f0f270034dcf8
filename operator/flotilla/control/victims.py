"""Mark the pods that shall go before a scale-in, so that idle ones go first."""

import asyncio
import logging
from collections.abc import Mapping

from flotilla.control.keys import Key
from flotilla.domain import observed, victims
from flotilla.errors import Conflict, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import DEPLOYMENT, POD
from flotilla.kube.store import Store

log = logging.getLogger(__name__)


class Victims:
    """Writes annotations of pods, and only where the number of replicas is about to fall."""

    def __init__(self, client: KubeClient, store: Store) -> None:
        self._client = client
        self._store = store

    async def mark(self, key: Key, replicas: int, load: Mapping[str, float]) -> None:
        """Before the Deployment gets fewer `replicas`; `load` are requests by pod uid."""
        live = self._store.get(DEPLOYMENT, key.namespace, key.name)
        going = 0 if live is None else live["spec"].get("replicas", 1) - replicas
        if going <= 0 or replicas == 0:
            return
        pods = [observed.pod(obj) for obj in self._store.owned_by(POD, key)]
        marks = victims.marks(pods, victims.choose(pods, load, going))
        uids = {pod.name: pod.uid for pod in pods}
        await asyncio.gather(*(self._annotate(key, name, uids[name], value) for name, value in marks.items()))

    async def _annotate(self, key: Key, name: str, uid: str, value: str | None) -> None:
        # The uid makes the patch fail where a namesake has taken the pod's place.
        body = {"metadata": {"uid": uid, "annotations": {observed.DELETION_COST: value}}}
        try:
            self._store.put(POD, await self._client.patch(POD, name, body, namespace=key.namespace))
        except (Conflict, NotReady) as gone:
            log.info("a pod went before it was marked", extra={"pod": name, "cause": str(gone)})
