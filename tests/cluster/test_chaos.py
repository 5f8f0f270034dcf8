"""An apiserver that misbehaves: nothing is lost, and the operator's process stays the same one."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from tests.support.flaky import Fault, FlakyProxy, answer_status
from tests.support.models import Models

from flotilla_devcluster import kubeconfig
from flotilla_devcluster.kubeconfig import Access
from flotilla_devcluster.stack import Stack

pytestmark = pytest.mark.cluster

AWAY_S = 30.0


@dataclass(frozen=True)
class Chaos:
    """The proxy between the operator and the apiserver, and the process that must survive it."""

    proxy: FlakyProxy
    stack: Stack
    pid: int

    def check_same_process(self) -> None:
        self.stack.operator.process.check()
        assert self.stack.operator.process.pid == self.pid


@pytest.fixture(scope="module")
def chaos(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    """The session's operator, started again behind the proxy for the tests of this module."""
    access = kubeconfig.load(stack.kubeconfig)
    proxy = FlakyProxy(stack.plane.url, access.authority)
    proxy.start()
    direct, settings = stack.kubeconfig, stack.settings
    # With the times of production, which outlast AWAY_S.
    stack.settings = {name: value for name, value in settings.items() if name != "leader_election"}
    path = tmp_path_factory.mktemp("chaos") / "kubeconfig"
    stack.kubeconfig = kubeconfig.write(path, Access(proxy.url, token=access.token), name="flaky")
    stack.restart_operator()
    yield Chaos(proxy, stack, stack.operator.process.pid)
    stack.kubeconfig, stack.settings = direct, settings
    stack.restart_operator()
    proxy.stop()


def is_watch(request: web.BaseRequest) -> bool:
    return request.query.get("watch") == "true"


def test_an_apiserver_that_is_away_for_half_a_minute_loses_nothing(
    chaos: Chaos, models: Models, spec: dict[str, Any]
) -> None:
    for name in ("kept", "robbed", "dropped"):
        models.apply(name, spec)
    for name in ("kept", "robbed", "dropped"):
        models.wait_ready(name)
    with chaos.proxy.away():
        until_s = time.monotonic() + AWAY_S
        models.apply("born", spec)
        models.delete("Deployment", "robbed")
        models.delete("Service", "robbed")
        models.delete("ModelDeployment", "dropped")
        models.patch("Deployment", "kept", {"spec": {"template": {"spec": {"enableServiceLinks": True}}}})
        time.sleep(until_s - time.monotonic())
    models.wait_ready("born")
    models.wait(lambda: models.get("Deployment", "robbed"), "the Deployment to come back")
    models.wait(lambda: models.get("Service", "robbed"), "the Service to come back")
    models.wait(lambda: models.get("Deployment", "dropped") is None, "the deleted one's children to go")
    models.wait(
        lambda: not (models.get("Deployment", "kept") or {})["spec"]["template"]["spec"]["enableServiceLinks"],
        "the edited Deployment to be put back",
    )
    chaos.check_same_process()


@pytest.mark.parametrize(
    ("code", "reason"),
    [(429, "TooManyRequests"), (409, "Conflict"), (500, "InternalError")],
)
def test_refused_writes_are_made_later(
    chaos: Chaos, models: Models, spec: dict[str, Any], code: int, reason: str
) -> None:
    first_tries: set[str] = set()

    def fault(request: web.BaseRequest) -> web.StreamResponse | None:
        ours = request.method in ("PATCH", "POST") and f"/namespaces/{models.namespace}/" in request.path
        if not ours or request.path in first_tries:
            return None
        first_tries.add(request.path)
        return answer_status(code, reason=reason, retry_after_s=1 if code == 429 else None)

    with chaos.proxy.failing(fault):
        models.apply("patient", spec)
        models.wait_ready("patient")
    written = {"Deployment": "", "Service": "", "ModelDeployment": "/status"}
    assert {models.path(kind, "patient") + subresource for kind, subresource in written.items()} <= first_tries
    chaos.check_same_process()


def gone(request: web.BaseRequest) -> web.StreamResponse | None:
    return answer_status(410, reason="Expired") if is_watch(request) else None


def broken_off(code: int) -> Fault:
    def fault(request: web.BaseRequest) -> web.StreamResponse | None:
        if not is_watch(request):
            return None
        error = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "broken off"}
        return web.Response(text=json.dumps({"type": "ERROR", "object": error}) + "\n", content_type="application/json")

    return fault


def refused(request: web.BaseRequest) -> web.StreamResponse | None:
    return answer_status(500, reason="InternalError") if is_watch(request) else None


@pytest.mark.parametrize(
    "fault", [gone, refused, broken_off(410), broken_off(500)], ids=["410", "500", "event-410", "event-500"]
)
def test_broken_watches_lose_nothing(chaos: Chaos, models: Models, spec: dict[str, Any], fault: Fault) -> None:
    models.apply("robbed", spec)
    models.apply("dropped", spec)
    models.wait_ready("robbed")
    models.wait_ready("dropped")
    before = chaos.proxy.faults
    with chaos.proxy.failing(fault):
        chaos.proxy.close_watches()
        models.delete("Deployment", "robbed")
        models.delete("ModelDeployment", "dropped")
        models.apply("born", spec)
        models.wait(lambda: chaos.proxy.faults > before + 3, "the watches to fail")
    models.wait_ready("born")
    models.wait(lambda: models.get("Deployment", "robbed"), "the Deployment to come back", timeout_s=60)
    models.wait_ready("robbed")
    models.wait(lambda: 'name="dropped"' not in chaos.stack.operator.metrics(), "its metrics to vanish", timeout_s=60)
    chaos.check_same_process()


def test_watches_that_are_cut_again_and_again_lose_nothing(chaos: Chaos, models: Models, spec: dict[str, Any]) -> None:
    names = [f"cut-{number}" for number in range(6)]
    for name in names:
        models.apply(name, spec)
        chaos.proxy.close_watches()
        time.sleep(0.3)
    models.wait_ready(names[0])
    models.delete("Deployment", names[0])
    chaos.proxy.close_watches()
    models.wait(lambda: models.get("Deployment", names[0]), "the Deployment to come back", timeout_s=60)
    for name in names:
        models.wait_ready(name)
    chaos.check_same_process()


def test_watches_that_fall_silent_lose_nothing(chaos: Chaos, models: Models, spec: dict[str, Any]) -> None:
    for name in ("robbed", "dropped"):
        models.apply(name, spec)
        models.wait_ready(name)
    chaos.proxy.mute_watches()
    models.delete("Deployment", "robbed")
    models.delete("ModelDeployment", "dropped")
    models.apply("born", spec)
    models.wait(lambda: models.get("Deployment", "robbed"), "the Deployment to come back")
    models.wait(lambda: 'name="dropped"' not in chaos.stack.operator.metrics(), "its metrics to vanish")
    models.wait_ready("born")
    chaos.check_same_process()
