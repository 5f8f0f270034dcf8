"""The gateway's objects and the operator's rights over them, judged by a real apiserver."""

from typing import Any

import pytest
from tests.support.routing import FACTS, SOUND, compile_document, resource

from flotilla.constants import API_VERSION, GATEWAY
from flotilla.controller.apply import CHILD_KINDS, LISTED_KINDS
from flotilla.errors import FlotillaError, Forbidden, InvalidSpec
from flotilla.kube.kinds import ROUTING_POLICY
from flotilla.render.gateway import GatewaySettings, Owner, children
from flotilla_devcluster.apiserver import Api, NotFound
from flotilla_devcluster.controlplane import Cluster
from flotilla_devcluster.kubeconfig import load
from flotilla_devcluster.process import until
from flotilla_devcluster.stack import ACCOUNT, NAMESPACE, install_operator

pytestmark = pytest.mark.controlplane

KINDS = {kind.kind: kind for kind in (*CHILD_KINDS, *LISTED_KINDS)}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def objects(namespace: str, *, uid: str = "0000-1111") -> dict[str, dict[str, Any]]:
    """By kind; `uid` is their owner's."""
    document = compile_document(namespace, [resource(SOUND, namespace=namespace)], FACTS)
    settings = GatewaySettings(image="registry.example.com/flotilla:1", redis_secret="redis")
    return {child["kind"]: child for child in children(document, [Owner("policy", uid)], settings)}


@pytest.fixture
def operators(controlplane: Cluster) -> Api:
    """The apiserver as the operator's ServiceAccount sees it."""
    install_operator(controlplane, controllers=False)
    api = Api(load(controlplane.service_account_kubeconfig(NAMESPACE, ACCOUNT)))

    def allowed() -> bool:
        try:
            api.request("GET", "/api/v1/pods", limit="1")
        except Forbidden:
            return False
        return True

    until(allowed, what="the role to take effect", timeout_s=10)
    return api


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Job"}))  # Jobs are made for evaluations
def test_the_operator_may_make_each_object_and_the_apiserver_knows_every_field(
    controlplane: Cluster, operators: Api, namespace: str, kind: str
) -> None:
    # A binding is judged by its Role, which must be there and stay: the collector takes one without a living owner.
    policy = {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "metadata": {"name": "policy"}, "spec": SOUND}
    owner = controlplane.api.request("POST", ROUTING_POLICY.path(namespace), policy)
    made = objects(namespace, uid=owner["metadata"]["uid"])
    apply = {"content_type": "application/apply-patch+yaml", "fieldManager": "flotilla", "fieldValidation": "Strict"}
    if kind == "RoleBinding":
        operators.request("PATCH", KINDS["Role"].path(namespace, GATEWAY), made["Role"], **apply)
    answer = operators.request("PATCH", KINDS[kind].path(namespace, GATEWAY), made[kind], dryRun="All", **apply)
    assert answer["metadata"]["name"] == GATEWAY


def test_a_binding_whose_role_is_not_there_is_answered_404_which_the_operator_waits_out(
    operators: Api, namespace: str
) -> None:
    binding = objects(namespace)["RoleBinding"]
    apply = {"content_type": "application/apply-patch+yaml", "fieldManager": "flotilla", "dryRun": "All"}
    with pytest.raises(NotFound, match=f'rolebindings.*"{GATEWAY}" not found'):
        operators.request("PATCH", KINDS["RoleBinding"].path(namespace, GATEWAY), binding, **apply)


def test_the_pods_run_where_pod_security_enforces_restricted(controlplane: Cluster, namespace: str) -> None:
    controlplane.api.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": RESTRICTED}},
        content_type="application/merge-patch+json",
    )
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    controlplane.api.request("POST", accounts, {"metadata": {"name": GATEWAY}})
    template = objects(namespace)["Deployment"]["spec"]["template"]
    pod = {"metadata": {"name": "gateway", **template["metadata"]}, "spec": template["spec"]}
    made = controlplane.api.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")
    assert made["spec"]["serviceAccountName"] == GATEWAY
    privileged = {**pod, "spec": {**pod["spec"], "hostNetwork": True}}
    with pytest.raises((Forbidden, InvalidSpec), match=r"violates PodSecurity|hostNetwork"):
        controlplane.api.request("POST", f"/api/v1/namespaces/{namespace}/pods", privileged, dryRun="All")


@pytest.mark.parametrize("kind", [kind.kind for kind in LISTED_KINDS])
def test_the_operator_reaches_no_other_object_of_these_kinds(operators: Api, namespace: str, kind: str) -> None:
    collection = KINDS[kind].path(namespace)
    child = objects(namespace)[kind]
    other = {**child, "metadata": {"name": "other", "namespace": namespace}}
    apply = {"content_type": "application/apply-patch+yaml", "fieldManager": "flotilla", "dryRun": "All"}
    for method, path, body, options in (
        ("GET", f"{collection}/other", None, {}),
        ("GET", collection, None, {}),
        ("GET", collection, None, {"fieldSelector": "metadata.name=other"}),
        ("PATCH", f"{collection}/other", other, apply),
        ("POST", collection, other, {"dryRun": "All"}),
        ("DELETE", f"{collection}/{GATEWAY}", None, {}),
    ):
        with pytest.raises(Forbidden):
            operators.request(method, path, body, **options)
    assert operators.request("GET", collection, fieldSelector=f"metadata.name={GATEWAY}")["items"] == []


def test_the_operator_can_grant_no_more_than_the_gateways_role(operators: Api, namespace: str) -> None:
    made = objects(namespace)
    binding, role = made["RoleBinding"], made["Role"]
    cluster_roles = [
        {**binding, "roleRef": {**binding["roleRef"], "kind": "ClusterRole", "name": name}}
        for name in ("cluster-admin", "edit", "view")
    ]
    secrets = {**role, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
    for greedy in (*cluster_roles, secrets):
        with pytest.raises(FlotillaError, match="attempting to grant RBAC permissions not currently held"):
            operators.request(
                "PATCH",
                KINDS[greedy["kind"]].path(namespace, GATEWAY),
                greedy,
                content_type="application/apply-patch+yaml",
                fieldManager="flotilla",
                dryRun="All",
            )
