"""Certificates, ports, processes, audit log: the parts of the control plane that need no cluster."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flotilla.errors import Conflict, InvalidSpec, NotReady, Transient
from flotilla_devcluster import components
from flotilla_devcluster.apiserver import AuditLog, select
from flotilla_devcluster.named_cluster import NamedCluster
from flotilla_devcluster.network import PodNetworks, reserve
from flotilla_devcluster.pki import Pki
from flotilla_devcluster.process import Process, until


def gone(pid: int, within_s: float = 3.0) -> bool:
    """Whether the process ends in time; a zombie that nobody collects has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_certificates_satisfy_a_strict_client(tmp_path: Path) -> None:
    """VERIFY_X509_STRICT is the default from Python 3.13 on, and asks for the key identifiers."""
    pki = Pki.create(tmp_path, service_ip=components.SERVICE_IP)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.path("apiserver.crt"), pki.path("apiserver.key"))
    client = ssl.create_default_context(cafile=pki.path("ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", "127.0.0.1", components.SERVICE_IP, "kubernetes.default.svc"):
        assert handshake(client, server, name)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return sides[0].cipher() is not None and sides[1].cipher() is not None


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    Pki.create(tmp_path, service_ip=components.SERVICE_IP)
    keys = list(tmp_path.glob("*.key"))
    assert len(keys) >= 6
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_reserved_ports_are_distinct_and_can_be_bound_by_a_server() -> None:
    ports = reserve(20)
    assert len(set(ports)) == 20
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", ports[0]))
        server.listen()


def test_reserved_port_is_given_once() -> None:
    """Enough rounds that the kernel would hand out one of the ports again if they were merely closed."""
    mine = set(reserve(50))
    for _ in range(20):
        assert mine.isdisjoint(reserve(50))


def test_process_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG watches the forking thread, not the process."""
    started: list[Process] = []
    thread = threading.Thread(
        target=lambda: started.append(Process.start("sleeper", ["sleep", "60"], log=tmp_path / "log"))
    )
    thread.start()
    thread.join()
    (process,) = started
    try:
        assert not process.wait(0.3)
    finally:
        process.kill()


def test_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from flotilla_devcluster.process import Process\n"
        "child = Process.start('sleeper', ['sleep', '60'], log=pathlib.Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    assert gone(child)


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = Process.start("stubborn", ["sh", "-c", "trap '' TERM; echo up; sleep 60"], log=tmp_path / "log")
    until(lambda: process.log_tail() == "up", what="the shell", timeout_s=5)
    process.stop(grace_s=0.2)
    assert process.exit_code == -signal.SIGKILL


def test_paused_process_can_be_stopped(tmp_path: Path) -> None:
    process = Process.start("sleeper", ["sleep", "60"], log=tmp_path / "log")
    process.pause()
    process.stop(grace_s=5)
    assert process.exit_code == -signal.SIGTERM


def test_death_of_a_process_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = Process.start("broken", ["sh", "-c", "echo no such flag >&2; exit 3"], log=tmp_path / "log")
    assert process.wait(5)
    with pytest.raises(NotReady, match=r"(?s)broken ended with exit status 3.*no such flag"):
        process.check()


def test_missing_program_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="/no/such/etcd of etcd does not exist"):
        Process.start("etcd", ["/no/such/etcd"], log=tmp_path / "log")


def test_waiting_ends_with_the_last_answer() -> None:
    def probe() -> bool:
        raise Transient("connection refused")

    with pytest.raises(NotReady, match=r"waiting for the moon after 0\.1 s.*connection refused"):
        until(probe, what="the moon", timeout_s=0.1)


def event(**changes: object) -> str:
    base: dict[str, object] = {
        "verb": "patch",
        "userAgent": "flotilla/0.1.0",
        "requestURI": "/apis/apps/v1/namespaces/a/deployments/x?fieldManager=flotilla",
        "user": {"username": "system:serviceaccount:a:op"},
        "objectRef": {"apiGroup": "apps", "resource": "deployments", "namespace": "a", "name": "x"},
        "responseStatus": {"code": 200},
    }
    return json.dumps(base | changes) + "\n"


def test_audit_events_after_a_mark_can_be_counted_by_user_agent_and_verb(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    assert log.mark() == 0
    log.path.write_text(event())
    mark = log.mark()
    with log.path.open("a") as file:
        file.write(event(verb="list") + event() + event(userAgent="kubectl/v1.36.4") + '{"verb": "half an ev')
    events = log.since(mark)
    assert [item.verb for item in events] == ["list", "patch", "patch"]
    assert len(select(events, agent="flotilla/", writes=True)) == 1
    assert len(select(events, user="system:serviceaccount:a:op")) == 3
    assert (events[1].group, events[1].resource, events[1].name, events[1].code) == (
        "apps",
        "deployments",
        "x",
        200,
    )


def test_audit_event_without_a_resource_is_read(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.path.write_text(event(objectRef=None, responseStatus=None))
    assert [(item.resource, item.code) for item in log.since()] == [("", 0)]


def test_apiserver_without_controllers_admits_pods_without_service_accounts(tmp_path: Path) -> None:
    ports = components.Ports(1, 2, 3, 4, 5)

    def argv(*, controllers: bool) -> list[str]:
        return components.apiserver(
            tmp_path / "kube-apiserver",
            pki=tmp_path,
            ports=ports,
            audit_policy=tmp_path,
            audit_log=tmp_path,
            egress=tmp_path,
            tuning=components.Tuning(),
            controllers=controllers,
        )

    assert set(argv(controllers=False)) - set(argv(controllers=True)) == {"--disable-admission-plugins=ServiceAccount"}


@pytest.mark.parametrize("name", ["", "../other", "Big", "a/b", "-a", "x" * 41])
def test_unusable_cluster_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec):
        NamedCluster(name, environ={"XDG_STATE_HOME": str(tmp_path)})


@pytest.fixture
def named(tmp_path: Path) -> NamedCluster:
    return NamedCluster("dev", environ={"XDG_STATE_HOME": str(tmp_path)})


def test_cluster_can_be_held_only_once(named: NamedCluster) -> None:
    with named.held():
        assert named.supervisor() == os.getpid()
        with pytest.raises(Conflict, match="runs already"), named.held():
            pytest.fail("two supervisors of one cluster")
    assert named.supervisor() is None
    assert not named.directory.exists()


def test_folder_of_a_failed_start_stays_and_the_next_start_clears_it(named: NamedCluster) -> None:
    def fail() -> None:
        with named.held():
            named.plane.mkdir()
            (named.plane / "old.log").touch()
            raise NotReady("etcd ended")

    with pytest.raises(NotReady):
        fail()
    assert (named.plane / "old.log").exists()
    with named.held():
        assert not named.plane.exists()


def test_state_of_a_cluster_that_does_not_run_is_an_error_with_the_remedy(named: NamedCluster) -> None:
    with pytest.raises(NotReady, match="flotilla devcluster up --name dev"):
        named.state()


def test_state_is_what_the_supervisor_published(named: NamedCluster) -> None:
    with named.held():
        with pytest.raises(NotReady, match="still starting"):
            named.state()
        named.publish({"url": "https://127.0.0.1:1"})
        assert named.state() == {"url": "https://127.0.0.1:1"}


def test_stopping_nothing_says_so(named: NamedCluster) -> None:
    assert named.stop() is False


def test_two_agents_get_different_networks_and_a_released_one_is_free_again(tmp_path: Path) -> None:
    one, other = PodNetworks(tmp_path), PodNetworks(tmp_path)

    assert [one.claim(), other.claim(), one.claim()] == [1, 2, 3]
    one.release()
    assert [other.claim(), other.claim()] == [1, 3]
    other.release()
