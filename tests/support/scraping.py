"""Scrape configuration that the Prometheus operator would make of our PodMonitors, for the local cluster.

Debian's Prometheus is built without Kubernetes' discovery, so that `Discovery` writes what that would find into a file.
Pods of the local cluster have addresses of 10.244.0.0/16 and listen on the loopback twin; the operator is a process.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.prometheus import Page

_META = "__meta_kubernetes_pod_"


def of_pods(monitor: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The job of a PodMonitor, for the pods that `Discovery` writes into the file."""
    spec = monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    keep = [
        {"source_labels": [f"{_META}label_{_sanitized(label)}"], "regex": value, "action": "keep"}
        for label, value in spec["selector"]["matchLabels"].items()
    ]
    copied = {
        "namespace": "__meta_kubernetes_namespace",
        "pod": f"{_META}name",
        "container": f"{_META}container_name",
    }
    own = [
        {"source_labels": rule["sourceLabels"], "target_label": rule["targetLabel"]}
        for rule in endpoint.get("relabelings", ())
    ]
    twin = {"source_labels": ["__address__"], "regex": r"10\.(244\..+)", "target_label": "__address__"}
    return {
        "job_name": monitor["metadata"]["name"],
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint.get("honorLabels", False),
        "file_sd_configs": [{"files": [str(file)]}],
        "relabel_configs": [
            *keep,
            {"source_labels": [f"{_META}container_port_name"], "regex": endpoint["port"], "action": "keep"},
            {"source_labels": [f"{_META}phase"], "regex": "(Failed|Succeeded)", "action": "drop"},
            *({"source_labels": [source], "target_label": target} for target, source in copied.items()),
            *own,
            {**twin, "replacement": "127.$1"},
        ],
    }


def of_process(monitor: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The job of a PodMonitor whose pod is a process here; `point` says where."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    return {
        "job_name": monitor["metadata"]["name"],
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint.get("honorLabels", False),
        "file_sd_configs": [{"files": [str(file)]}],
    }


def point(file: Path, address: str, **labels: str) -> None:
    """The process of `of_process` is there now; its labels are those of a pod."""
    _write(file, [{"targets": [address], "labels": labels}])


class Discovery:
    """Follows the pods until `stop`; `pods` lists them. `state` shows them as kube-state-metrics would."""

    def __init__(self, file: Path, pods: Callable[[], Iterable[Mapping[str, Any]]], *, state: Page) -> None:
        self._file, self._pods, self._state = file, pods, state
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(0.25):
            self._write()

    def _write(self) -> None:
        pods = list(self._pods())
        _write(self._file, [group for pod in pods for group in _targets(pod)])
        self._state.text = "".join(map(_scheduled, pods))


def _scheduled(pod: Mapping[str, Any]) -> str:
    meta = pod["metadata"]
    conditions = pod.get("status", {}).get("conditions", ())
    times = [c["lastTransitionTime"] for c in conditions if (c["type"], c["status"]) == ("PodScheduled", "True")]
    labels = f'namespace="{meta["namespace"]}",pod="{meta["name"]}",uid="{meta["uid"]}"'
    return "".join(
        f"kube_pod_status_scheduled_time{{{labels}}} {datetime.fromisoformat(at).timestamp():.0f}\n" for at in times
    )


def _targets(pod: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One for each port, with the labels of https://prometheus.io/docs/prometheus/2.42/configuration/configuration/"""
    meta, address = pod["metadata"], pod.get("status", {}).get("podIP")
    if not address:
        return
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            yield {
                "targets": [f"{address}:{port['containerPort']}"],
                "labels": {
                    "__meta_kubernetes_namespace": meta["namespace"],
                    f"{_META}name": meta["name"],
                    f"{_META}phase": pod["status"].get("phase", ""),
                    f"{_META}container_name": container["name"],
                    f"{_META}container_port_name": port["name"],
                    **{f"{_META}label_{_sanitized(name)}": value for name, value in meta["labels"].items()},
                },
            }


def _write(file: Path, groups: list[dict[str, Any]]) -> None:
    text = json.dumps(groups)
    if not file.exists() or file.read_text() != text:
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)


def _sanitized(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)
