"""The session's control plane behaves as a cluster: rights, garbage collection, audit, kubectl, ends of namespaces."""

import uuid
from typing import Any

import pytest
from tests.support.controlplane import Kubectl

from flotilla.errors import Ending, Forbidden
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import CONFIG_MAP
from flotilla_devcluster.apiserver import Api, AuditLog, NotFound, select
from flotilla_devcluster.controlplane import Cluster
from flotilla_devcluster.kubeconfig import load
from flotilla_devcluster.process import until

pytestmark = pytest.mark.controlplane

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


def config_map(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}}


def grant_reading_config_maps(api: Api, namespace: str, account: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    api.request("POST", f"{RBAC}/{namespace}/roles", {"metadata": {"name": "reader"}, "rules": rules})
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    api.request("POST", f"{RBAC}/{namespace}/rolebindings", binding)


def test_service_account_may_do_what_rbac_grants_and_nothing_else(controlplane: Cluster, namespace: str) -> None:
    api = Api(load(controlplane.service_account_kubeconfig(namespace, "default")))
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    with pytest.raises(Forbidden, match=f'User "system:serviceaccount:{namespace}:default" cannot list'):
        api.get(maps)
    grant_reading_config_maps(controlplane.api, namespace, "default")
    until(lambda: api.get(maps), what="the new role to take effect", timeout_s=10)
    with pytest.raises(Forbidden, match=r"cannot list resource .secrets"):
        api.get(f"/api/v1/namespaces/{namespace}/secrets")
    with pytest.raises(Forbidden, match="cannot create resource"):
        api.request("POST", maps, config_map("mine"))


def test_token_of_an_account_that_does_not_exist_is_an_error(controlplane: Cluster, namespace: str) -> None:
    with pytest.raises(NotFound, match="nobody"):
        controlplane.service_account_kubeconfig(namespace, "nobody")


def test_client_certificate_carries_user_and_groups(controlplane: Cluster) -> None:
    path = controlplane.client_kubeconfig("system:node:gpu-1", ["system:nodes"])
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = Api(load(path)).request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    assert answer["status"]["userInfo"]["username"] == "system:node:gpu-1"
    assert "system:nodes" in answer["status"]["userInfo"]["groups"]


def test_children_of_a_deleted_owner_are_collected(controlplane: Cluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = controlplane.api.request("POST", path, config_map("owner"))
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    controlplane.api.request("POST", path, config_map("child", ownerReferences=[reference]))
    controlplane.api.request("DELETE", f"{path}/owner")
    assert until(lambda: controlplane.api.get(f"{path}/child") is None, what="the child to go", timeout_s=10)


def test_deployment_gets_pods_that_wait_for_a_node(controlplane: Cluster, namespace: str) -> None:
    """Controllers and scheduler work, and what the scheduler says reaches the pod."""
    labels = {"app": "idle"}
    # No node ever carries this label, whatever nodes other tests have registered.
    pod = {
        "containers": [{"name": "main", "image": "example.invalid/idle"}],
        "nodeSelector": {"tests.flotilla.dev/none": "true"},
    }
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "idle"}, "spec": spec}
    controlplane.api.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment)

    def unschedulable() -> bool:
        pods = controlplane.api.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        reasons = [c.get("reason") for pod in pods for c in pod["status"].get("conditions", [])]
        return reasons.count("Unschedulable") == 2

    assert until(unschedulable, what="two unschedulable pods", timeout_s=10)


def test_audit_log_counts_requests_by_user_and_verb(controlplane: Cluster, namespace: str) -> None:
    log, user = AuditLog(controlplane.audit_log), f"system:serviceaccount:{namespace}:default"
    api = Api(load(controlplane.service_account_kubeconfig(namespace, "default")))
    grant_reading_config_maps(controlplane.api, namespace, "default")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    until(lambda: api.get(path), what="the role to take effect", timeout_s=10)
    mark = log.mark()
    for _ in range(3):
        api.get(path)
    with pytest.raises(Forbidden):
        api.request("POST", path, config_map("mine"))
    until(lambda: select(log.since(mark), user=user, writes=True), what="the last event", timeout_s=5)
    events = select(log.since(mark), user=user, agent="flotilla-devcluster")
    assert [(e.verb, e.resource, e.code) for e in events] == [("list", "configmaps", 200)] * 3 + [
        ("create", "configmaps", 403)
    ]


def test_each_test_gets_a_namespace_whose_pods_can_be_created(controlplane: Cluster, namespace: str) -> None:
    assert namespace.startswith("test-each-test-gets-a-namespace")
    assert controlplane.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default") is not None


def test_kubectl_talks_to_the_cluster_and_parses_its_version(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "configmap", "made-by-kubectl", namespace=namespace)
    listed = kubectl("get", "configmaps", "--output=name", namespace=namespace)
    assert "configmap/made-by-kubectl" in listed.split()
    assert "Server Version: v1." in kubectl("version")


def test_flotilla_kinds_are_served(controlplane: Cluster, namespace: str) -> None:
    path = f"/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/modeldeployments"
    answer = controlplane.api.get(path)
    assert answer is not None
    assert answer["items"] == []


async def test_in_a_namespace_that_is_being_terminated_nothing_is_made(controlplane: Cluster) -> None:
    name = f"ending-{uuid.uuid4().hex[:8]}"
    api, path = controlplane.api, f"/api/v1/namespaces/{name}"
    controlplane.create_namespace(name)
    held = {"metadata": {"name": "held", "finalizers": ["tests.flotilla.dev/held"]}}
    api.request("POST", f"{path}/configmaps", held)
    api.request("DELETE", path)
    client = await KubeClient.connect(kubeconfig=controlplane.kubeconfig, user_agent="test")
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "namespace": name}}
    try:
        with pytest.raises(Ending, match="because it is being terminated"):
            await client.apply(CONFIG_MAP, child, manager="test")
    finally:
        await client.close()
        merge = "application/merge-patch+json"
        api.request("PATCH", f"{path}/configmaps/held", {"metadata": {"finalizers": None}}, content_type=merge)
