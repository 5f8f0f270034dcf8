"""What a test does with ModelDeployments: apply, look, wait, break."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from flotilla.constants import API_VERSION
from flotilla.errors import FlotillaError
from flotilla_devcluster.process import until
from flotilla_devcluster.stack import Stack, samples, value

PATHS = {
    "ModelDeployment": "/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/modeldeployments",
    "RoutingPolicy": "/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/routingpolicies",
    "Evaluation": "/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/evaluations",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
}


class Models:
    """Objects of one namespace, as an administrator sees them."""

    def __init__(self, stack: Stack, namespace: str) -> None:
        self.stack = stack
        self.namespace = namespace

    def path(self, kind: str, name: str = "") -> str:
        root = PATHS[kind].format(namespace=self.namespace)
        return f"{root}/{name}" if name else root

    def apply(self, name: str, spec: Mapping[str, Any], *, kind: str = "ModelDeployment") -> dict[str, Any]:
        """Server-side apply of a user's resource."""
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.stack.plane.api.apply(self.path(kind, name), manifest, manager="kubectl")

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.stack.plane.api.get(self.path(kind, name))

    def list(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.stack.plane.api.request("GET", self.path(kind))["items"]
        return items

    def patch(self, kind: str, name: str, body: object, *, subresource: str = "") -> dict[str, Any]:
        """A merge patch, as `kubectl edit` or `kubectl scale` would do."""
        path = self.path(kind, name) + (f"/{subresource}" if subresource else "")
        answer: dict[str, Any] = self.stack.plane.api.request(
            "PATCH", path, body, content_type="application/merge-patch+json"
        )
        return answer

    def delete(self, kind: str, name: str) -> None:
        self.stack.plane.api.request("DELETE", self.path(kind, name))

    def condition(self, name: str, type_: str, *, kind: str = "ModelDeployment") -> dict[str, Any]:
        """The condition, or an empty mapping."""
        obj = self.get(kind, name) or {}
        found = (c for c in obj.get("status", {}).get("conditions", ()) if c["type"] == type_)
        condition: dict[str, Any] = next(found, {})
        return condition

    def wait(self, probe: Callable[[], Any], what: str, *, timeout_s: float = 60.0) -> Any:
        """Until `probe` is truthy; the operator's log is in the error."""
        try:
            return until(probe, what=what, timeout_s=timeout_s)
        except FlotillaError as error:
            raise AssertionError(f"{error}\n{self.stack.operator.process.log_tail(30)}") from error

    def wait_condition(
        self, name: str, type_: str, status: str, reason: str = "", *, kind: str = "ModelDeployment"
    ) -> dict[str, Any]:
        """Until the condition has that status and reason."""

        def probe() -> dict[str, Any]:
            condition = self.condition(name, type_, kind=kind)
            matches = condition.get("status") == status and reason in ("", condition.get("reason"))
            return condition if matches else {}

        condition: dict[str, Any] = self.wait(probe, f"{type_}={status} {reason} of {name}")
        return condition

    def wait_ready(self, name: str) -> None:
        self.wait_condition(name, "Ready", "True")

    def wait_quiet(self, *, quiet_s: float = 2.0, timeout_s: float = 60.0) -> dict[str, str]:
        """Until no ModelDeployment has changed for `quiet_s`; returns their resourceVersions by name."""
        seen: dict[str, str] = {}
        since = time.monotonic()

        def probe() -> bool:
            nonlocal seen, since
            now = {m["metadata"]["name"]: m["metadata"]["resourceVersion"] for m in self.list("ModelDeployment")}
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > quiet_s

        self.wait(probe, "the ModelDeployments to settle", timeout_s=timeout_s)
        return seen

    def reconciled(self) -> float:
        """How many passes the running operator has made over ModelDeployments."""
        found = value(samples(self.stack.operator.metrics()), "flotilla_reconcile_total", kind="ModelDeployment")
        return float(found or 0)

    def metric(self, model: str, name: str) -> float | None:
        """What the operator's metric says of a model, None where it has no such series."""
        of = {"modeldeployment": model, "namespace": self.namespace}
        found = value(samples(self.stack.operator.metrics()), name, **of)
        return None if found is None else float(found)
