"""Reconcile the gateway of one namespace: its objects, its configuration document, the status of its policies."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError

from flotilla.addresses import AddressMap
from flotilla.api.preference import RouteReason, RouteStatus
from flotilla.api.routing_policy import RoutingPolicy
from flotilla.constants import ANNOTATION_DOCUMENT, GATEWAY
from flotilla.controller.apply import Executor, StatusWriter, record_transition_events
from flotilla.controller.policy_status import GatewayReport, GatewayView, build
from flotilla.controller.promotions import Promotions
from flotilla.errors import Conflict, FlotillaError, Forbidden, InvalidSpec, NameTaken, NotReady
from flotilla.kube import observed
from flotilla.kube.client import KubeClient
from flotilla.kube.events import EventRecorder
from flotilla.kube.kinds import CONFIG_MAP, MODEL_DEPLOYMENT, POD, ROUTING_POLICY, Key
from flotilla.kube.store import Store
from flotilla.render.gateway import MAX_OWNERS, GatewaySettings, Owner, children, endpoint
from flotilla.routing.budgets import Admitted, Candidate, admit
from flotilla.routing.document import DOCUMENT_FILE, GatewayDocument, facts_of, load_document
from flotilla.scaling.scrape_client import ScrapeError, Scraper, ScrapeTarget

_PROBLEM = 500


class GatewayReader:
    """One session for all gateways; `close` it."""

    def __init__(self, addresses: AddressMap, *, port: int, timeout_s: float = 2.0) -> None:
        self._scraper = Scraper(addresses, timeout_s=timeout_s)
        self._port = port

    async def close(self) -> None:
        """Close the connections."""
        await self._scraper.close()

    async def ask(self, pods: Mapping[str, str]) -> dict[str, GatewayReport]:
        """What each pod serves, by uid; without those that do not answer. Never raises.

        `pods` are addresses by uid.
        """
        targets = [ScrapeTarget(uid, address, self._port, "/config", {}) for uid, address in pods.items()]
        answers = await self._scraper.read(targets, lambda body, _: _read(body))
        return {uid: answer for uid, answer in answers.items() if isinstance(answer, GatewayReport)}


def _read(body: bytes) -> GatewayReport | ScrapeError:
    try:
        return report(orjson.loads(body))
    except ValueError as error:
        return ScrapeError(f"unreadable answer: {error}")


def report(answer: Any) -> GatewayReport:
    """Read an answer; raises ValueError for anything else."""
    if not isinstance(answer, dict) or not isinstance(answer.get("hash"), str):
        raise ValueError("no hash")
    problem, missing = answer.get("problem"), answer.get("missingKeys")
    return GatewayReport(
        answer["hash"],
        problem[:_PROBLEM] if isinstance(problem, str) else "",
        tuple(key for key in missing if isinstance(key, str)) if isinstance(missing, list) else (),
    )


class PodNudge:
    """Has kubelets bring a changed document into the pods of a gateway at once, instead of within a minute.

    A kubelet renews the mounted ConfigMap of a pod whenever the pod changes, so an annotation is enough.
    """

    def __init__(self, client: KubeClient, store: Store) -> None:
        self._client = client
        self._store = store
        self._done: dict[Key, tuple[str, frozenset[str]]] = {}

    async def sync(self, key: Key, document_hash: str, pods: Sequence[observed.Pod]) -> None:
        """Annotate these pods with the hash of the document that they are to serve, once for each hash."""
        known, done = self._done.get(key, ("", frozenset[str]()))
        done = done if known == document_hash else frozenset()
        for pod in pods:
            if pod.uid in done:
                continue
            # The uid makes the patch fail where another pod of that name has taken the pod's place.
            body = {"metadata": {"uid": pod.uid, "annotations": {ANNOTATION_DOCUMENT: document_hash}}}
            try:
                patched = await self._client.patch(POD, pod.name, body, namespace=key.namespace)
                self._store.put(POD, patched, writer=key)
            except (Conflict, NotReady) as gone:
                log.info("a gateway pod was deleted meanwhile", extra={"pod": pod.name, "cause": str(gone)})
            done |= {pod.uid}
        self._done[key] = (document_hash, done)

    def forget(self, key: Key) -> None:
        """Drop a gateway that was deleted."""
        self._done.pop(key, None)


log = logging.getLogger(__name__)

_ASK_AGAIN_S = 2.0
"""The kubelet takes up to a minute to bring a changed ConfigMap into the pods, and no event reports it."""
_ASK_FOR_KEYS_S = 5.0
"""Of a gateway that lacks the key of some Secret, which only it can see."""
_CONFLICT_RETRY_S = 30.0
_MAX_BYTES = 1_000_000
"""Of the document. `admit` leaves out policies before, so that only states of routes can make it larger."""
_SETBACKS = (RouteReason.GUARD_BREACHED, RouteReason.VERDICT_LOST)

Object = Mapping[str, Any]


class GatewayReconciler:
    """See `Reconciler`. What was accepted is in the ConfigMap; here are only answers of pods, to not ask twice."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        status: StatusWriter,
        events: EventRecorder,
        reader: GatewayReader,
        settings: GatewaySettings,
        allow_private_hosted_addresses: bool,
        now: Callable[[], str],
        promotions: Promotions,
        nudge: PodNudge,
        moved: Callable[[str, str, str, str, int], None],
    ) -> None:
        """`moved` counts moves of traffic by namespace, policy, rule and reason."""
        self._store = store
        self._executor = executor
        self._status = status
        self._events = events
        self._reader = reader
        self._settings = settings
        self._allow_private = allow_private_hosted_addresses
        self._now = now
        self._promotions = promotions
        self._nudge = nudge
        self._moved = moved
        self._reports: dict[Key, dict[tuple[str, int], GatewayReport]] = {}
        """By pod and restart: a container that starts again reads its document again."""
        self._judged: dict[Key, tuple[Hashable, Admitted, GatewayDocument | None]] = {}
        """With the document that the gateway had then."""

    async def reconcile(self, key: Key) -> float | None:
        """See `Reconciler`."""
        policies = [p for p in self._store.owned_by(ROUTING_POLICY, key) if "deletionTimestamp" not in p["metadata"]]
        if not policies:
            self._forget(key)
            return None
        judged, previous = self._admit(key, policies)
        promoted = self._promotions.apply(key, judged.document, previous)
        admitted = replace(judged, document=promoted.document)
        error: FlotillaError | None = None
        if len(admitted.document.text) > _MAX_BYTES:
            error = _too_large(admitted.document)
        elif admitted.document.policies:
            try:
                await self._converge(key, policies, admitted.document)
            except (InvalidSpec, NameTaken, NotReady, Forbidden) as failure:
                error = failure
        view = await self._view(key, admitted.document, error)
        if not view.behind and error is None:
            self._promotions.served(key, admitted.document)
        elif error is None and any(policy.routes for policy in admitted.document.policies):
            await self._nudge.sync(key, admitted.document.hash, view.lagging)
        again_s = await self._update_status(key, policies, admitted, view)
        if isinstance(error, NotReady | Forbidden):
            # Told, for it may last: quotas and admission webhooks answer 403 too. The queue backs off.
            raise error
        if isinstance(error, NameTaken):
            return _CONFLICT_RETRY_S
        if again_s is None and view.behind:
            again_s = _ASK_AGAIN_S
        elif again_s is None and view.missing_keys:
            again_s = _ASK_FOR_KEYS_S
        return min((wait_s for wait_s in (again_s, promoted.again_s) if wait_s is not None), default=None)

    def _admit(self, key: Key, policies: Sequence[Object]) -> tuple[Admitted, GatewayDocument | None]:
        """Judge, unless nothing that counts has changed: ModelDeployments beside the policies write often.

        Returns also the document that the gateway has.
        """
        models = self._store.in_namespace(MODEL_DEPLOYMENT, key.namespace)
        facts = tuple(facts_of(model) for model in models if "deletionTimestamp" not in model["metadata"])
        live = self._store.get(CONFIG_MAP, key.namespace, GATEWAY) or {}
        # The ConfigMap holds it, so that a restarted operator knows what was accepted.
        text = (live.get("data") or {}).get(DOCUMENT_FILE)
        versions = tuple((policy["metadata"]["uid"], policy["metadata"]["generation"]) for policy in policies)
        judged = self._judged.get(key)
        if judged is not None and judged[0] == (versions, facts, text):
            return judged[1], judged[2]
        previous = _document(key, text)
        admitted = admit(
            key.namespace,
            [_candidate(policy) for policy in policies],
            {fact.name: fact for fact in facts},
            previous,
            allow_private_hosted_addresses=self._allow_private,
        )
        for name in (judged[1].admissions.keys() - admitted.admissions.keys()) if judged else ():
            self._status.forget(Key(ROUTING_POLICY, key.namespace, name))
        self._judged[key] = ((versions, facts, text), admitted, previous)
        return admitted, previous

    async def _converge(self, key: Key, policies: Sequence[Object], document: GatewayDocument) -> None:
        # A policy that was never sound owns nothing: when the last served policy is deleted, so is the gateway.
        served = document.by_name
        metas = [policy["metadata"] for policy in policies if policy["metadata"]["name"] in served]
        oldest = sorted(metas, key=lambda meta: (meta.get("creationTimestamp") or "", meta["uid"]))[:MAX_OWNERS]
        owners = tuple(Owner(meta["name"], meta["uid"]) for meta in oldest)
        await self._executor.converge(
            key,
            {meta["uid"] for meta in metas},
            lambda: children(document, owners, self._settings),
            revision=(document.hash, frozenset(owners)),
        )

    async def _view(self, key: Key, document: GatewayDocument, error: FlotillaError | None) -> GatewayView:
        pods = tuple(sorted((observed.pod(obj) for obj in self._store.owned_by(POD, key)), key=lambda pod: pod.name))
        known = self._reports.get(key, {})
        view = GatewayView(document.hash, pods, error=error)
        settled = {mark for mark, report in known.items() if view.serves(report) and not report.missing_keys}
        marks = {pod.uid: (pod.uid, pod.restarts) for pod in view.ready}
        asked = {pod.uid: pod.ip for pod in view.ready if marks[pod.uid] not in settled}
        answers = await self._reader.ask(asked) if asked and error is None else {}
        reports = {uid: known[mark] for uid, mark in marks.items() if mark in known} | answers
        self._reports[key] = {marks[uid]: report for uid, report in reports.items()}
        return replace(view, reports=reports)

    async def _update_status(
        self, key: Key, policies: Sequence[Object], admitted: Admitted, view: GatewayView
    ) -> float | None:
        """Write each policy's status; returns when to look again."""
        waits: list[float] = []
        address = endpoint(key.namespace, tls=bool(self._settings.tls_secret))
        for live in policies:
            name = live["metadata"]["name"]
            admission = admitted.admissions[name].with_missing(view.missing_keys)
            served = admitted.document.by_name.get(name)
            routes = served.routes if served is not None else ()
            wanted = build(live, admission, view, now=self._now(), endpoint=address, routes=routes)
            again_s = await self._status.write(Key(ROUTING_POLICY, key.namespace, name), live, wanted, writer=key)
            if again_s is None:
                record_transition_events(self._events, ROUTING_POLICY, live, wanted["conditions"])
                self._record_moves(live, routes)
            else:
                waits.append(again_s)
        return min(waits, default=None)

    def _record_moves(self, live: Object, routes: Sequence[RouteStatus]) -> None:
        """An event for each route whose traffic moved since the status before."""
        before = {one["name"]: one for one in (live.get("status") or {}).get("rules") or ()}
        place = live["metadata"]["namespace"], live["metadata"]["name"]
        for status in routes:
            for reason in _SETBACKS:
                self._moved(*place, status.name, str(reason), 0)
            shares = [(share.target, share.percent) for share in status.shares]
            old = [(one["target"], one["percent"]) for one in before.get(status.name, {}).get("shares") or ()]
            if shares == old:
                continue
            self._moved(*place, status.name, str(status.reason), 1)
            listed = ", ".join(f"{target} {percent} %" for target, percent in shares)
            self._events.record(
                ROUTING_POLICY,
                live,
                topic=f"route/{status.name}",
                reason=str(status.reason),
                note=f"The traffic of rule {status.name!r} is shared as {listed}. {status.message}",
                type_="Warning" if status.reason in _SETBACKS else "Normal",
            )

    def _forget(self, key: Key) -> None:
        self._promotions.forget(key)
        self._nudge.forget(key)
        self._executor.forget(key)
        self._reports.pop(key, None)
        judged = self._judged.pop(key, None)
        for name in judged[1].admissions if judged else ():
            self._status.forget(Key(ROUTING_POLICY, key.namespace, name))


def _document(key: Key, text: str | None) -> GatewayDocument | None:
    if text is None:
        return None
    try:
        return load_document(text.encode())
    except InvalidSpec as unreadable:
        log.warning("a gateway's document is written anew", extra={"key": str(key), "cause": str(unreadable)})
        return None


def _candidate(live: Object) -> Candidate:
    meta = live["metadata"]
    identity = (meta["name"], meta["uid"], meta.get("creationTimestamp") or "")
    try:
        return Candidate(*identity, policy=RoutingPolicy.model_validate(live))
    except ValidationError as error:
        first = error.errors()[0]
        unreadable = InvalidSpec(
            f"The value {first['input']!r} is not understood: {first['msg']}. Correct it, or upgrade the operator and "
            "its CRDs together.",
            field=".".join(str(part) for part in first["loc"]),
        )
        return Candidate(*identity, policy=None, unreadable=unreadable)


def _too_large(document: GatewayDocument) -> InvalidSpec:
    return InvalidSpec(
        f"The policies of this namespace make a document of {len(document.text)} bytes, more than the {_MAX_BYTES} "
        "that a ConfigMap holds. The gateway keeps its last configuration. Move some policies to another namespace.",
        reason="DocumentTooLarge",
    )
