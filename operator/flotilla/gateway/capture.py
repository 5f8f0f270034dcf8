"""Captures answered requests as training examples, after the client has its answer.

`Capture.offer` decides on the loop, by the policy and the request's ID alone, and copies nothing that is not kept. A
thread redacts and writes, so that a slow disk delays no request. The buffer is bounded: beyond it examples are dropped
and counted. No text ever gets into a log line or a metric."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.api.routing_policy import CaptureSpec
from flotilla.errors import FlotillaError
from flotilla.finetuning.capture import CapturedExample, is_sampled, line
from flotilla.finetuning.capture_store import (
    BucketStore,
    DayQuota,
    ExampleStore,
    FolderStore,
    example_path,
    expire,
)
from flotilla.gateway.attempt import TargetAnswer
from flotilla.gateway.metrics import GatewayMetrics
from flotilla.gateway.record import Record
from flotilla.routing.check import Collector
from flotilla.routing.document import Policy
from flotilla.routing.escalation import Choice
from flotilla.routing.request import Operation

log = logging.getLogger(__name__)

_FLUSH_S = 0.2
_EXPIRE_EVERY_S = 3600.0
_MOST_WAITING = 10_000
_MOST_WAITING_BYTES = 64 * 2**20
_LARGEST_BODY = 2**20
"""Larger requests are no examples for a small model."""
_CLOSE_S = 5.0
_EMPTY: Mapping[str, Any] = {"role": "assistant", "content": ""}


@dataclass(frozen=True, slots=True)
class _Waiting:
    example: CapturedExample
    spec: CaptureSpec
    size: int


class Capture:
    """The capture of one gateway. `claims` has the folder of each mounted claim by the claim's name."""

    def __init__(
        self,
        claims: Mapping[str, Path],
        writer: str,
        metrics: GatewayMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._claims, self._writer, self._metrics, self._clock = dict(claims), writer, metrics, clock
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._stores: dict[str, ExampleStore] = {}
        self._quota = DayQuota()
        self._specs: dict[str, CaptureSpec] = {}
        self._expired_s = float("-inf")
        self._broken: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def serve(self, policies: Iterable[Policy]) -> None:
        """The document in use has these policies."""
        self._specs = {policy.name: policy.capture for policy in policies if policy.capture is not None}
        self._quota.most = {name: spec.max_megabytes_per_day * 10**6 for name, spec in self._specs.items()}
        if self._specs and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
            self._thread.start()

    def collector(self, record: Record) -> Collector | None:
        """For the stream of a request that may be kept: what puts its chunks together."""
        spec, decision = record.policy.capture if record.policy is not None else None, record.decision
        if spec is None or decision is None or record.operation is not Operation.CHAT:
            return None
        sampled = is_sampled(spec, record.id, rule=decision.rule, data_class=decision.data_class, escalated=False)
        escalates = decision.escalation is not None and is_sampled(
            spec, record.id, rule=decision.rule, data_class=decision.data_class, escalated=True
        )
        return Collector() if sampled or escalates else None

    def offer(self, record: Record) -> None:
        """The client has its answer: keep the request if the policy's sample has it."""
        policy, decision, answer, body = record.policy, record.decision, record.answer, record.body
        if policy is None or policy.capture is None or decision is None or answer is None or body is None:
            return
        if record.operation is not Operation.CHAT or record.outcome != "ok":
            return
        spec, rejected = policy.capture, record.rejected
        escalated = rejected is not None
        if not is_sampled(spec, record.id, rule=decision.rule, data_class=decision.data_class, escalated=escalated):
            return
        messages, said = body.fields.get("messages"), message_of(answer)
        size = len(body.raw)
        if said is None or not isinstance(messages, list) or size > _LARGEST_BODY:
            self._metrics.captures.add((policy.name, decision.rule, "unusable"))
            return
        if len(self._waiting) >= _MOST_WAITING or self._waiting_bytes + size > _MOST_WAITING_BYTES:
            self._metrics.captures.add((policy.name, decision.rule, "dropped"))
            return
        features = record.features
        user = body.fields.get("safety_identifier") or body.fields.get("user") or (features and features.client) or ""
        example = CapturedExample(
            request_id=record.id,
            at_s=self._clock(),
            policy=policy.name,
            rule=decision.rule,
            data_class=decision.data_class,
            task=(features.task or "") if features is not None else "",
            user=str(user),
            target=answer.target,
            messages=messages,
            answer=said,
            tools=body.fields.get("tools") or (),
            rejected=(message_of(rejected) or _EMPTY) if rejected is not None else None,
            rejected_target=rejected.target if rejected is not None else "",
            signal=", ".join(rejected.signals or ()) if rejected is not None else "",
        )
        self._waiting_bytes += size
        self._waiting.append(_Waiting(example, spec, size))

    def close(self) -> None:
        """Write what waits, for five seconds at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._stop.wait(_FLUSH_S):
            self.flush()
        self.flush()

    def flush(self) -> None:
        """Write all that waits; called by the thread. What a full or lost disk refuses is tried again."""
        now_s = self._clock()
        day = datetime.fromtimestamp(now_s, UTC).date()
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        groups: dict[tuple[str, str], list[_Waiting]] = {}
        for one in waiting:
            groups.setdefault((one.example.policy, one.example.rule), []).append(one)
        for (policy, rule), group in groups.items():
            lines = [(one, line(one.example, one.spec.redact)) for one in group]
            try:
                store = self._store(group[0].spec)
                fitting = [data for _, data in lines if self._quota.take(policy, len(data), day)]
                if fitting:
                    store.append(example_path(policy, rule, day, self._writer), b"".join(fitting))
            except (OSError, FlotillaError) as error:
                self._failed(policy, rule, group, error)
                continue
            self._broken.discard(policy)
            self._waiting_bytes -= sum(one.size for one in group)
            for result, count in (("written", len(fitting)), ("over_quota", len(group) - len(fitting))):
                if count:
                    self._metrics.captures.add((policy, rule, result), count)
        if now_s - self._expired_s >= _EXPIRE_EVERY_S:
            self._expired_s = now_s
            self._expire(now_s)

    def _failed(self, policy: str, rule: str, group: Sequence[_Waiting], error: Exception) -> None:
        """Keep the examples for the next turn. The cause is logged once; it names a file or a bucket and no text."""
        self._waiting.extendleft(reversed(group))
        if policy not in self._broken:
            self._broken.add(policy)
            log.warning("captured examples cannot be written", extra={"policy": policy, "cause": str(error)})
            self._metrics.captures.add((policy, rule, "failed"))

    def _expire(self, now_s: float) -> None:
        for policy, spec in list(self._specs.items()):
            try:
                gone = expire(self._store(spec), policy, spec.retention_days, now_s)
            except (OSError, FlotillaError) as error:
                log.warning("old examples cannot be deleted", extra={"policy": policy, "cause": str(error)})
                continue
            if gone:
                log.info("examples past retention were deleted", extra={"policy": policy, "files": gone})

    def _store(self, spec: CaptureSpec) -> ExampleStore:
        place = spec.to.bucket or spec.to.claim_name or ""
        store = self._stores.get(place)
        if store is None:
            store = BucketStore(place) if spec.to.bucket else FolderStore(self._claim(place))
            self._stores[place] = store
        return store

    def _claim(self, name: str) -> Path:
        folder = self._claims.get(name)
        if folder is None:
            raise FileNotFoundError(f"the claim {name} is not mounted")
        return folder


def message_of(answer: TargetAnswer) -> dict[str, Any] | None:
    """The assistant's message of an answer, streamed or not; None if it has none."""
    if answer.relay is not None:
        collected = answer.relay.captured
        choices = collected.choices() if collected is not None else ()
        return _message_of_choice(choices[0]) if choices else None
    found = answer.fields.get("choices")
    message = found[0].get("message") if isinstance(found, list) and found and isinstance(found[0], dict) else None
    if not isinstance(message, dict) or not (message.get("content") or message.get("tool_calls")):
        return None
    return message


def _message_of_choice(choice: Choice) -> dict[str, Any] | None:
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(choice.tool_calls)
    ]
    if not choice.text and not calls:
        return None
    return {"role": "assistant", "content": choice.text or None, **({"tool_calls": calls} if calls else {})}
