"""Accounts kept in the cluster: a ConfigMap per ModelDeployment, all in the operator's own namespace.

In the resources' namespaces the operator would need a right to every ConfigMap of every tenant. Written when the set
of its pods changed, at a slow cadence while it has any, and at the operator's end; never for one at rest. A successor
reads them once, before it charges anything. A record is a snapshot, so that one which was written late by a predecessor
only makes the gap longer. No owner reference reaches over namespaces: the operator deletes what resources leave behind.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.background import isolated
from flotilla.constants import GROUP, LABEL_MODEL, LABEL_PART_OF, MANAGER
from flotilla.cost.ledger import Account, Ledger, dump_account, load_account
from flotilla.errors import Conflict, FlotillaError, Forbidden, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import CONFIG_MAP, MODEL_DEPLOYMENT
from flotilla.kube.store import Store

log = logging.getLogger(__name__)

LEDGER_MANAGER = "flotilla-ledger"
LABEL_LEDGER = f"{GROUP}/ledger"
"""The ModelDeployment's uid. Without the children's managed-by: a record is nothing to reconcile."""
LABEL_NAMESPACE = f"{GROUP}/namespace"
"""Of the ModelDeployment."""
KEY = "account.json"
_LOOK_S = 5.0
_END_S = 10.0
"""At the operator's end, for all records together."""
_RETRY_S = 1.0
_LONGEST_NAME = 63
_DIGEST = 10
"""Hexadecimal digits of a name's hash."""


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
        namespace: str,
        watched: Sequence[str],
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        """`namespace` is the operator's; `watched` are those of the resources, empty for all."""
        self._client = client
        self._store = store
        self._ledger = ledger
        self._namespace = namespace
        self._watched = watched
        self._interval_s = interval_s
        self._clock = clock
        self._written: dict[str, _Written] = {}
        self._recorded_pods: set[str] = set()
        """Uids of the resources whose record has pods."""
        self._records: dict[str, str] = {}
        """Names of the records that were seen or made by us, by the resource's uid."""
        self._taken: set[str] = set()
        self._failing: set[str] = set()
        self._hurry = asyncio.Event()

    async def load(self) -> None:
        """Take up every account whose resource is in the store, which is complete; delete those of resources that went.

        Tries until the apiserver answers.
        """
        while True:
            try:
                pages = self._client.pages(CONFIG_MAP, namespace=self._namespace, label_selector=LABEL_LEDGER)
                async for page in pages:
                    for record in page.items:
                        with isolated("cost record", record["metadata"]["name"]):
                            self._take_up(record)
            except Forbidden as refused:
                log.warning("previous cost records are not readable", extra={"cause": str(refused)})
            except Transient as failure:
                await asyncio.sleep(failure.retry_after_s or _RETRY_S)
                continue
            break
        await self.remove_gone()

    def _take_up(self, record: dict[str, Any]) -> None:
        labels, name = record["metadata"]["labels"], record["metadata"]["name"]
        uid, namespace = labels[LABEL_LEDGER], labels.get(LABEL_NAMESPACE, "")
        if self._watched and namespace not in self._watched:
            # Another operator's, which lives here too.
            return
        self._records[uid] = name
        owner = self._store.get(MODEL_DEPLOYMENT, namespace, labels.get(LABEL_MODEL, ""))
        if owner is None or owner["metadata"]["uid"] != uid:
            return
        try:
            account = load_account((record.get("data") or {}).get(KEY, ""))
        except ValueError as error:
            log.warning(
                "a cost record is not readable, so the account starts at 0", extra={"cause": str(error), "record": name}
            )
            return
        self._ledger.restore(uid, account)
        self._note(uid, _Written(self._clock(), frozenset(account.pods)))

    def trigger(self) -> None:
        """Look now: a resource went."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            await self.remove_gone()
            await self.write_due()

    async def remove_gone(self) -> None:
        """Delete the records of resources that are no more; what fails is tried at the next look."""
        if not self._records:
            return
        alive = {obj["metadata"]["uid"] for obj in self._store.all(MODEL_DEPLOYMENT)}
        for uid in [uid for uid in self._records if uid not in alive]:
            await self._remove(uid, self._records[uid])

    async def _remove(self, uid: str, name: str) -> None:
        try:
            found = await self._client.get(CONFIG_MAP, name, namespace=self._namespace)
            if found is not None and (found["metadata"].get("labels") or {}).get(LABEL_LEDGER) == uid:
                await self._client.delete(CONFIG_MAP, name, namespace=self._namespace, uid=found["metadata"]["uid"])
        except Conflict:
            log.info("a ConfigMap was recreated by another owner and is not deleted", extra={"record": name})
        except FlotillaError as error:
            self._failed(uid, "a cost record is deleted later", name, error)
            return
        for table in (self._records, self._written):
            table.pop(uid, None)
        self._recorded_pods.discard(uid)
        self._failing.discard(uid)

    async def write_due(self) -> None:
        """Write each account whose pods changed or whose record is older than the interval, one after the other."""
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
        """Accounts with pods, and those whose record still has pods."""
        candidates = self._ledger.with_pods | self._recorded_pods
        if not candidates:
            return
        now = self._clock()
        for obj in self._store.all(MODEL_DEPLOYMENT):
            uid = obj["metadata"]["uid"]
            account = self._ledger.accounts.get(uid) if uid in candidates else None
            if account is None or account.at is None or uid in self._taken:
                continue
            last = self._written.get(uid, _Written(float("-inf"), frozenset()))
            pods = frozenset(account.pods)
            if pods != last.pods or (pods and now - last.at >= interval_s):
                yield obj, account

    def _note(self, uid: str, written: "_Written") -> None:
        """A record with these pods exists."""
        self._written[uid] = written
        (self._recorded_pods.add if written.pods else self._recorded_pods.discard)(uid)

    async def _write(self, obj: dict[str, Any], account: Account) -> None:
        meta = obj["metadata"]
        uid, name = meta["uid"], record_name(meta["namespace"], meta["name"])
        try:
            if uid not in self._records:
                if await self._is_taken(name):
                    self._taken.add(uid)
                    return
                # Before the call, whose answer may be lost.
                self._records[uid] = name
            written = _Written(self._clock(), frozenset(account.pods))
            body = record(obj, dump_account(account), namespace=self._namespace)
            await self._client.apply(CONFIG_MAP, body, manager=LEDGER_MANAGER)
        except FlotillaError as error:
            self._failed(uid, "a cost record is written later", name, error)
            return
        self._failing.discard(uid)
        self._note(uid, written)

    def _failed(self, uid: str, message: str, name: str, error: FlotillaError) -> None:
        """Said once, not at each look."""
        if uid not in self._failing:
            log.warning(message, extra={"cause": str(error), "record": f"{self._namespace}/{name}"})
        self._failing.add(uid)

    async def _is_taken(self, name: str) -> bool:
        """A ConfigMap that another owner created is never adopted; this is read once per resource."""
        found = await self._client.get(CONFIG_MAP, name, namespace=self._namespace)
        if found is None or LABEL_LEDGER in (found["metadata"].get("labels") or {}):
            return False
        log.warning(
            "cannot store a cost record: the ConfigMap's name is in use", extra={"record": f"{self._namespace}/{name}"}
        )
        return True


def record_name(namespace: str, deployment: str) -> str:
    """Of the ConfigMap, in at most 63 characters; no two resources share one."""
    digest = hashlib.sha256(f"{namespace}/{deployment}".encode()).hexdigest()[:_DIGEST]
    head = f"ledger-{namespace}-{deployment}"[: _LONGEST_NAME - _DIGEST - 1].rstrip("-.")
    return f"{head}-{digest}"


def record(obj: dict[str, Any], text: str, *, namespace: str) -> dict[str, Any]:
    """The manifest; `namespace` is the operator's."""
    meta = obj["metadata"]
    labels = {
        LABEL_PART_OF: MANAGER,
        LABEL_LEDGER: meta["uid"],
        LABEL_NAMESPACE: meta["namespace"],
        LABEL_MODEL: meta["name"],
    }
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": {"name": record_name(meta["namespace"], meta["name"]), "namespace": namespace, "labels": labels},
        "data": {KEY: text},
    }
