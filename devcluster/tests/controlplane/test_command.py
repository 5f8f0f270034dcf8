"""`flotilla devcluster` as a user runs it: a process that is started, asked, interrupted and killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.support import toys
from tests.support.doc_commands import blocks, reader

from flotilla_devcluster import programs
from flotilla_devcluster.apiserver import Api
from flotilla_devcluster.kubeconfig import load
from flotilla_devcluster.named_cluster import NamedCluster
from flotilla_devcluster.process import until

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[3]
MARK = "the end of what the page shows"
COMMAND = [sys.executable, "-m", "flotilla_devcluster"]


@dataclass
class Running:
    """`flotilla devcluster up` in the foreground, which has said that it is ready."""

    process: subprocess.Popen[str]
    cluster: NamedCluster
    environ: dict[str, str]
    arguments: list[str]
    pids: list[int]


def make_environ(directory: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(directory / "state"), "COLUMNS": "200"}


def make_arguments(directory: Path) -> list[str]:
    (directory / "crds").mkdir()
    return ["--name", "mine", "--crds", str(toys.write_crd(directory / "crds"))]


@contextmanager
def foreground(directory: Path) -> Iterator[Running]:
    environ, arguments = make_environ(directory), make_arguments(directory)
    cluster = NamedCluster("mine", environ=environ)
    with subprocess.Popen(
        [*COMMAND, "up", *arguments], env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert "is ready after" in process.stdout.readline()
            yield Running(process, cluster, environ, arguments, pids(cluster))
        finally:
            process.kill()
            process.wait()
            cluster.stop()


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Running]:
    """A cluster of the test's own, to be ended by it."""
    with foreground(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A cluster that the tests of this module leave as it is."""
    with foreground(tmp_path_factory.mktemp("lasting")) as running:
        yield running


def run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=environ, capture_output=True, text=True, timeout=120, check=False)


def pids(cluster: NamedCluster) -> list[int]:
    return [process["pid"] for process in cluster.state()["processes"].values()]


def alive(wanted: list[int]) -> list[int]:
    """Those that run; one that waits to be collected by its new parent does not."""
    found = []
    for pid in wanted:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_interrupt_ends_the_cluster_cleanly(doomed: Running) -> None:
    """The signal goes to the whole process group, as a terminal sends it, and impatiently twice."""
    assert len(alive(doomed.pids)) == 4
    os.killpg(doomed.process.pid, signal.SIGINT)
    os.killpg(doomed.process.pid, signal.SIGINT)
    assert doomed.process.wait(20) == 0
    assert alive(doomed.pids) == []
    assert not doomed.cluster.directory.exists()


def test_killed_supervisor_leaves_no_process(doomed: Running) -> None:
    doomed.process.kill()
    doomed.process.wait(5)
    until(lambda: not alive(doomed.pids), what="the children to die", timeout_s=3)
    asked = run(doomed.environ, "status", "--name", "mine")
    assert asked.returncode == 1
    assert "does not run" in asked.stderr
    assert "is removed" in run(doomed.environ, "down", "--name", "mine").stdout
    assert not doomed.cluster.directory.exists()


def test_component_that_dies_ends_the_command(doomed: Running) -> None:
    """Its logs stay, for whoever wants to know why."""
    scheduler = doomed.cluster.state()["processes"]["kube-scheduler"]
    os.kill(scheduler["pid"], signal.SIGKILL)
    assert doomed.process.wait(20) == 1
    assert alive(doomed.pids) == []
    assert Path(scheduler["log"]).is_file()


def test_detached_cluster_lives_until_down(tmp_path: Path) -> None:
    environ, arguments = make_environ(tmp_path), make_arguments(tmp_path)
    cluster = NamedCluster("mine", environ=environ)
    try:
        begun = run(environ, "up", "--detach", *arguments)
        assert begun.returncode == 0, begun.stderr
        assert f"KUBECONFIG={cluster.kubeconfig}" in begun.stdout
        assert Api(load(cluster.kubeconfig)).get(toys.PATH.format(namespace="default")) is not None
        assert "runs already" in run(environ, "up", "--detach", *arguments).stdout
        started = pids(cluster)
        assert "is removed" in run(environ, "down", "--name", "mine").stdout
        assert alive(started) == []
        assert not cluster.directory.exists()
        assert "There is no cluster" in run(environ, "down", "--name", "mine").stdout
    finally:
        cluster.stop()


def test_the_quick_start_works_line_by_line(tmp_path: Path) -> None:
    """All but the demo, which has a test of its own, and the clone: typed one after another into one shell."""
    page = [line.command for block in blocks(ROOT / "docs/guides/quick-start.md") for line in block]
    typed = [command for command in page if not command.startswith(("git clone", "make demo"))]
    assert (typed[0], typed[-1]) == (
        "uv run flotilla devcluster up --operator --detach",
        "uv run flotilla devcluster down",
    )
    home = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "XDG_STATE_HOME")}
    environ = {
        **home,
        **reader(tmp_path, {"kubectl": programs.find_kubectl()}),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(programs.cache_directory().parents[1]),
        "COLUMNS": "200",
    }
    cluster = NamedCluster("default", environ=environ)
    before_end = ["flotilla devcluster status", f"echo {MARK}", typed[-1]]
    script = "set -ex\n" + "\n".join([*typed[:-1], *before_end])
    try:
        done = subprocess.run(
            ["bash", "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shown, _, end = done.stdout.partition(MARK)
        assert '"id": "smollm2-135m"' in shown.replace('":"', '": "')
        assert "/console/" in shown
        components = shown[shown.rindex("component") :].splitlines()[1:]
        assert [row.split()[-1] for row in components if row] == ["ok"] * 6, components
        assert "is removed" in end
        assert cluster.supervisor() is None
        assert not cluster.directory.exists()
    finally:
        cluster.stop()


def test_the_operator_needs_controllers(tmp_path: Path) -> None:
    refused = run(make_environ(tmp_path), "up", "--operator", "--no-controllers")
    assert refused.returncode == 1
    assert "--no-controllers" in refused.stderr


def test_detached_start_that_fails_says_why(tmp_path: Path) -> None:
    environ = make_environ(tmp_path)
    (tmp_path / "empty").mkdir()
    failed = run(environ, "up", "--detach", "--name", "mine", "--crds", str(tmp_path / "empty"))
    assert failed.returncode == 1
    assert "holds no CustomResourceDefinition" in failed.stderr
    assert NamedCluster("mine", environ=environ).supervisor() is None


def test_second_cluster_of_a_name_is_refused(lasting: Running) -> None:
    refused = run(lasting.environ, "up", *lasting.arguments)
    assert refused.returncode == 1
    assert "runs already" in refused.stderr
    assert len(alive(lasting.pids)) == 4


def test_kubeconfig_is_printed_as_path_or_content(lasting: Running) -> None:
    path = Path(run(lasting.environ, "kubeconfig", "--name", "mine").stdout.strip())
    assert Api(load(path)).healthy()
    assert run(lasting.environ, "kubeconfig", "--name", "mine", "--raw").stdout == path.read_text()


def test_status_shows_pid_version_and_health_of_each_process(lasting: Running) -> None:
    rows = status_rows(lasting)
    names = ["etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager"]
    assert list(rows) == ["component", *names]
    assert [int(rows[name][0]) for name in names] == lasting.pids
    assert [rows[name][2:] for name in names] == [["3.6.7", "ok"]] + [["1.36.4", "ok"]] * 3


def test_status_shows_what_fails(lasting: Running) -> None:
    pid = lasting.cluster.state()["processes"]["kube-scheduler"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        rows = status_rows(lasting, returncode=1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [name for name, row in rows.items() if row[-1] == "FAILS"] == ["kube-scheduler"]


def status_rows(running: Running, *, returncode: int = 0) -> dict[str, list[str]]:
    status = run(running.environ, "status", "--name", "mine")
    assert status.returncode == returncode, status.stderr
    lines = [line.split() for line in status.stdout.splitlines() if line.strip()]
    return {words[0]: words[1:] for words in lines}
