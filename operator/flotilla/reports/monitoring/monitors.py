"""What the Prometheus operator is to scrape: engines, the operator itself, gateways."""

from typing import Any

from flotilla.constants import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL, LABEL_NAME, LABEL_PART_OF, MANAGER

_INTERVAL = "30s"
MODEL_META_LABEL = "__meta_kubernetes_pod_label_" + "".join(c if c.isalnum() else "_" for c in LABEL_MODEL)


def manifests(*, operator_namespace: str = "flotilla-system") -> list[dict[str, Any]]:
    """PodMonitors. Metrics of engines and gateways may not claim another origin: honorLabels is off for them."""
    return [
        _monitor(
            "flotilla-engines",
            selector={LABEL_MANAGED_BY: MANAGER, LABEL_COMPONENT: "engine"},
            endpoint={
                "port": "http",
                "path": "/metrics",
                "relabelings": [{"sourceLabels": [MODEL_META_LABEL], "targetLabel": "modeldeployment"}],
            },
        ),
        _monitor(
            "flotilla-gateways",
            selector={LABEL_MANAGED_BY: MANAGER, LABEL_COMPONENT: "gateway"},
            endpoint={"port": "admin", "path": "/metrics"},
        ),
        # The operator's series are about other namespaces than its own, and only it may set those labels.
        _monitor(
            "flotilla-operator",
            selector={LABEL_NAME: "flotilla-operator"},
            endpoint={"port": "metrics", "path": "/metrics", "honorLabels": True},
            namespaces=[operator_namespace],
        ),
    ]


def _monitor(
    name: str, *, selector: dict[str, str], endpoint: dict[str, Any], namespaces: list[str] | None = None
) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name, "labels": {LABEL_PART_OF: MANAGER}},
        "spec": {
            "namespaceSelector": {"matchNames": namespaces} if namespaces else {"any": True},
            "selector": {"matchLabels": selector},
            "podMetricsEndpoints": [{"interval": _INTERVAL, **endpoint}],
        },
    }
