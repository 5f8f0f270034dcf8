"""The resources that Flotilla uses, their URL paths, and the keys by which they are reconciled."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from flotilla.constants import GATEWAY, GROUP, VERSION


class Kind(NamedTuple):
    """One resource of the Kubernetes API. A tuple, because it is a part of every key, which are hashed often."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As manifests write it: `apps/v1`, or `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path; without a namespace that of all namespaces. Names are percent-encoded.

        Raises ValueError for one namespaced object without its namespace: that path would mean something else.
        """
        if name is not None and self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name!r} needs a namespace: pass the one that it lives in.")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace and self.namespaced:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)

    def path_of(self, obj: Mapping[str, Any], subresource: str | None = None) -> str:
        """The URL path of an object."""
        return self.path(obj["metadata"].get("namespace"), obj["metadata"]["name"], subresource)


MODEL_DEPLOYMENT = Kind(GROUP, VERSION, "modeldeployments", "ModelDeployment")
ROUTING_POLICY = Kind(GROUP, VERSION, "routingpolicies", "RoutingPolicy")
EVALUATION = Kind(GROUP, VERSION, "evaluations", "Evaluation")
USER_KINDS = (MODEL_DEPLOYMENT, ROUTING_POLICY, EVALUATION)
"""The resources that users write: watched, listed, and queued when they change."""
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
JOB = Kind("batch", "v1", "jobs", "Job")
SERVICE = Kind("", "v1", "services", "Service")
POD_DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
ROLE = Kind("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD = Kind("", "v1", "pods", "Pod")
NODE = Kind("", "v1", "nodes", "Node", namespaced=False)
SECRET = Kind("", "v1", "secrets", "Secret")
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
EVENT = Kind("events.k8s.io", "v1", "events", "Event")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
SELF_SUBJECT_ACCESS_REVIEW = Kind(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)


class Key(NamedTuple):
    """The unit of work of the queue: a resource, or the gateway of a namespace with all its policies."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


GATEWAY_KIND = Kind(GROUP, VERSION, "gateways", "Gateway")
"""Of keys only, there is no such resource: the policies of a namespace share one gateway and are one unit of work."""


def gateway_key(namespace: str) -> Key:
    """The key of a namespace's gateway."""
    return Key(GATEWAY_KIND, namespace, GATEWAY)
