"""A real Prometheus on a free port, with the scrape targets and the history that a test gives it."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from flotilla.errors import Transient
from flotilla_devcluster import programs
from flotilla_devcluster.network import reserve
from flotilla_devcluster.process import Process, until

_START_S = 60.0


@dataclass
class Page:
    """A scrape target: what `text` holds is what Prometheus reads. None answers 503, as a pod that is gone."""

    address: str
    text: str | None
    labels: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def serving(text: str | None = "", labels: Mapping[str, str] | None = None) -> Iterator[Page]:
    """A page on a loopback port; `labels` are those that discovery would give the target."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if page.text is None else 200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write((page.text or "").encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    page = Page(f"127.0.0.1:{server.server_address[1]}", text, labels or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield page
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Prometheus:
    """A server that runs."""

    url: str
    process: Process

    def ask(self, promql: str) -> list[dict[str, Any]]:
        """The result of an instant query, by another way than the product's client."""
        query = urllib.parse.urlencode({"query": promql})
        result: list[dict[str, Any]] = self.get(f"/api/v1/query?{query}")["result"]
        return result

    def kind(self, promql: str) -> str:
        """What an instant query's result is, such as vector."""
        found: str = self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': promql})}")["resultType"]
        return found

    def get(self, path: str) -> dict[str, Any]:
        """The data of an answer of the HTTP API."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from error
        except OSError as error:
            self.process.check()
            raise Transient(str(error)) from error
        return data

    def until(self, promql: str) -> list[dict[str, Any]]:
        """The first answer of the query that holds a series."""
        return until(lambda: self.ask(promql), what=f"a series of {promql}", timeout_s=_START_S)


@contextmanager
def running_prometheus(
    directory: Path,
    *,
    pages: Sequence[Page] = (),
    scrape_configs: Sequence[Mapping[str, Any]] = (),
    rules: Sequence[Path] = (),
    history: str = "",
    web_config: Mapping[str, Any] | None = None,
    interval_s: float = 1.0,
) -> Iterator[Prometheus]:
    """`history` is OpenMetrics text with a time at each sample (`up{job="x"} 1 1700000000.0`), without the `# EOF`.

    `web_config` is Prometheus' own file for TLS and passwords; the readiness is then for the test to wait for.
    """
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    if history:
        _import(history, directory, data)
    interval = f"{round(interval_s * 1000)}ms"
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {
                "job_name": "pages",
                "static_configs": [{"targets": [page.address], "labels": dict(page.labels)} for page in pages],
            },
            *map(dict, scrape_configs),
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = reserve(1)
    argv = [
        str(programs.find_debian("prometheus")),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=100y",
        "--web.enable-remote-write-receiver",
        "--log.level=warn",
    ]
    if web_config is not None:
        (directory / "web.yml").write_text(yaml.safe_dump(dict(web_config)))
        argv.append(f"--web.config.file={directory / 'web.yml'}")
    process = Process.start("prometheus", argv, log=directory / "prometheus.log", env=programs.debian_environment())
    running = Prometheus(f"http://127.0.0.1:{port}", process)
    try:
        if web_config is None:
            until(lambda: _ready(running), what="Prometheus", timeout_s=_START_S)
        yield running
    finally:
        process.kill()


def _ready(running: Prometheus) -> bool:
    try:
        with urllib.request.urlopen(f"{running.url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError as error:
        running.process.check()
        raise Transient(str(error)) from error


def _import(history: str, directory: Path, data: Path) -> None:
    file = directory / "history.txt"
    file.write_text(history.rstrip("\n") + "\n# EOF\n")
    subprocess.run(
        [
            programs.find_debian("promtool"),
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            "--quiet",
            str(file),
            str(data),
        ],
        env=programs.debian_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
