"""Accounts kept in the cluster: a ConfigMap per ModelDeployment, which goes with it.

Written when the set of its pods changed, at a slow cadence while it has any, and at the operator's end; never for one
at rest. A successor reads them once, before it charges anything. A record is a snapshot, so that one which was written
late by a predecessor only makes the gap longer.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.constants import API_VERSION, GROUP, LABEL_PART_OF, MANAGER
from flotilla.errors import FlotillaError, Forbidden, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import CONFIG_MAP, MODEL_DEPLOYMENT
from flotilla.kube.store import Store
from flotilla.telemetry import ledger_record
from flotilla.telemetry.ledger import Account, Ledger

log = logging.getLogger(__name__)

LEDGER_MANAGER = "flotilla-ledger"
LABEL_LEDGER = f"{GROUP}/ledger"
"""Name of the ModelDeployment. Without the children's managed-by: a record is nothing to reconcile."""
KEY = "account.json"
_LOOK_S = 5.0
_END_S = 10.0
"""At the operator's end, for all records together."""
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Written:
    at: float
    pods: frozenset[str]


class LedgerStore:
    """Reads and writes the records of one Ledger, whose accounts are known by the resource's uid."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        ledger: Ledger,
        *,
        namespaces: Sequence[str],
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._store = store
        self._ledger = ledger
        self._namespaces: Sequence[str | None] = tuple(namespaces) or (None,)
        self._interval_s = interval_s
        self._clock = clock
        self._written: dict[str, _Written] = {}
        self._ours: set[str] = set()
        """Resources whose record was seen or made by us."""
        self._taken: set[str] = set()

    async def load(self) -> None:
        """Take up every account whose resource is in the store; tries until the apiserver answers."""
        while True:
            try:
                for namespace in self._namespaces:
                    async for page in self._client.pages(CONFIG_MAP, namespace=namespace, label_selector=LABEL_LEDGER):
                        for record in page.items:
                            self._take_up(record)
            except Forbidden as refused:
                log.warning("accounts of before are not readable", extra={"cause": str(refused)})
            except Transient as failure:
                await asyncio.sleep(failure.retry_after_s or _RETRY_S)
                continue
            return

    def _take_up(self, record: dict[str, Any]) -> None:
        meta = record["metadata"]
        owner = self._store.get(MODEL_DEPLOYMENT, meta["namespace"], meta["labels"][LABEL_LEDGER])
        uids = {reference.get("uid") for reference in meta.get("ownerReferences") or ()}
        if owner is None or owner["metadata"]["uid"] not in uids:
            return
        uid = owner["metadata"]["uid"]
        self._ours.add(uid)
        try:
            account = ledger_record.load((record.get("data") or {}).get(KEY, ""))
        except ValueError as error:
            log.warning(
                "an account is not readable and begins anew",
                extra={"cause": str(error), "record": f"{meta['namespace']}/{meta['name']}"},
            )
            return
        self._ledger.restore(uid, account)
        self._written[uid] = _Written(self._clock(), frozenset(account.pods))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.write_due()

    async def write_due(self) -> None:
        """What changed its pods, or is older than the interval; one after the other, for nobody waits."""
        for obj, account in list(self._due(self._interval_s)):
            await self._write(obj, account)

    async def save(self) -> None:
        """Write what has pods, at once: the operator ends."""
        due = list(self._due(0.0))
        try:
            async with asyncio.timeout(_END_S):
                await asyncio.gather(*(self._write(obj, account) for obj, account in due))
        except TimeoutError:
            log.warning("not all accounts were written", extra={"accounts": len(due)})

    def _due(self, interval_s: float) -> Iterator[tuple[dict[str, Any], Account]]:
        now = self._clock()
        for obj in self._store.all(MODEL_DEPLOYMENT):
            uid = obj["metadata"]["uid"]
            account = self._ledger.accounts.get(uid)
            if account is None or account.at is None or uid in self._taken:
                continue
            last = self._written.get(uid, _Written(float("-inf"), frozenset()))
            pods = frozenset(account.pods)
            if pods != last.pods or (pods and now - last.at >= interval_s):
                yield obj, account

    async def _write(self, obj: dict[str, Any], account: Account) -> None:
        meta = obj["metadata"]
        uid, namespace, name = meta["uid"], meta["namespace"], record_name(meta["name"])
        try:
            if uid not in self._ours and await self._is_taken(namespace, name, uid):
                self._taken.add(uid)
                return
            written = _Written(self._clock(), frozenset(account.pods))
            body = record(obj, ledger_record.dump(account))
            await self._client.apply(CONFIG_MAP, body, manager=LEDGER_MANAGER)
        except FlotillaError as error:
            log.warning("an account is written later", extra={"cause": str(error), "record": f"{namespace}/{name}"})
            return
        self._ours.add(uid)
        self._written[uid] = written

    async def _is_taken(self, namespace: str, name: str, uid: str) -> bool:
        """A stranger's ConfigMap is never adopted; asked once per resource."""
        found = await self._client.get(CONFIG_MAP, name, namespace=namespace)
        if found is None or LABEL_LEDGER in (found["metadata"].get("labels") or {}):
            return False
        log.warning("the account has no place: rename the ConfigMap", extra={"record": f"{namespace}/{name}"})
        return True


def record_name(deployment: str) -> str:
    """Of the ConfigMap."""
    return f"{deployment}-flotilla-ledger"


def record(obj: dict[str, Any], text: str) -> dict[str, Any]:
    """The manifest, owned by the resource."""
    meta = obj["metadata"]
    owner = {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENT.kind, "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": {
            "name": record_name(meta["name"]),
            "namespace": meta["namespace"],
            "labels": {LABEL_PART_OF: MANAGER, LABEL_LEDGER: meta["name"]},
            "ownerReferences": [owner],
        },
        "data": {KEY: text},
    }
