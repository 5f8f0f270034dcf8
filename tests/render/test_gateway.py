"""A gateway's objects against a golden file; `UPDATE_GOLDEN=1 pytest tests/render/test_gateway.py` writes it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tests.support.routing import FACTS, SOUND, compile_document, resource

from flotilla.constants import ANNOTATION_HASH, GATEWAY
from flotilla.render import rbac
from flotilla.render.gateway import GatewaySettings, Owner, children, endpoint, selector
from flotilla.routing.document import DOCUMENT_FILE, key_file, load_document

GOLDEN = Path(__file__).parents[1] / "golden" / "gateway" / "two-policies.yaml"
CLIENT = {"name": "helpdesk", "secretRef": {"name": "clients", "key": "helpdesk"}}
OWNERS = (Owner("b", "uid-b"), Owner("a", "uid-a"))
SETTINGS = GatewaySettings(
    image="registry.example.com/flotilla:1", redis_secret="redis", env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel"}
)
DOCUMENT = compile_document(
    "team",
    [resource({**SOUND, "clients": [CLIENT]}, name="a"), resource({**SOUND, "hostModels": ["other"]}, name="b")],
    FACTS,
)


def rendered(settings: GatewaySettings = SETTINGS) -> dict[str, dict[str, Any]]:
    return {child["kind"]: child for child in children(DOCUMENT, OWNERS, settings)}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = rendered()["Deployment"]["spec"]["template"]["spec"]
    return spec


def test_manifests_are_the_golden_ones() -> None:
    text = yaml.safe_dump_all(children(DOCUMENT, OWNERS, SETTINGS), sort_keys=False, width=110)
    if "UPDATE_GOLDEN" in os.environ:
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_every_object_is_owned_by_all_policies_and_controlled_by_none() -> None:
    for child in rendered().values():
        references = child["metadata"]["ownerReferences"]
        assert [reference["uid"] for reference in references] == ["uid-a", "uid-b"]
        assert not any("controller" in reference for reference in references)
        assert child["metadata"]["name"] == GATEWAY
        assert len(child["metadata"]["annotations"][ANNOTATION_HASH]) == 64


def test_the_pods_are_as_restricted_as_pod_security_asks() -> None:
    spec = pod()
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {"projected", "emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_the_config_map_holds_the_document_to_the_byte() -> None:
    text = rendered()["ConfigMap"]["data"][DOCUMENT_FILE]
    assert load_document(text.encode()).hash == DOCUMENT.hash


def test_each_key_is_one_file_and_a_missing_secret_stops_no_pod() -> None:
    (sources,) = (volume["projected"]["sources"] for volume in pod()["volumes"] if "projected" in volume)
    secrets = [source["secret"] for source in sources if "secret" in source]
    assert [secret["name"] for secret in secrets] == ["clients", "provider"]  # the provider's key, which both use, once
    assert all(secret["optional"] for secret in secrets)
    paths = [item["path"] for secret in secrets for item in secret["items"]]
    assert paths == [f"keys/{key_file(secret)}" for secret in DOCUMENT.secrets]


def test_a_changed_route_restarts_no_pod() -> None:
    changed = compile_document("team", [resource({**SOUND, "clients": [CLIENT], "rules": []}, name="a")], FACTS)
    after = {child["kind"]: child for child in children(changed, OWNERS, SETTINGS)}
    assert after["ConfigMap"]["data"] != rendered()["ConfigMap"]["data"]
    assert after["Deployment"]["spec"] == rendered()["Deployment"]["spec"]


def test_services_budgets_and_network_policies_choose_the_pods() -> None:
    labels = rendered()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector().items() <= labels.items()
    assert rendered()["Service"]["spec"]["selector"] == selector()
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        spec = rendered()[kind]["spec"]
        assert (spec.get("podSelector") or spec.get("selector"))["matchLabels"] == selector()
    assert "PodDisruptionBudget" not in rendered(GatewaySettings(image="x", replicas=1))


def test_the_operator_holds_what_it_grants() -> None:
    held = {(rule.group, resource, verb) for rule, resource, verb in rbac.permissions() if not rule.names}
    for rule in rendered()["Role"]["rules"]:
        for name in rule["resources"]:
            assert {(group, name, verb) for group in rule["apiGroups"] for verb in rule["verbs"]} <= held


def test_the_operator_may_touch_no_account_role_or_binding_but_the_gateways() -> None:
    narrow = {"serviceaccounts", "roles", "rolebindings", "networkpolicies", "configmaps"}
    rules = [rule for rule, resource, _ in rbac.permissions() if resource in narrow and not rule.own_namespace]
    assert {resource for rule in rules for resource in rule.resources} == narrow
    assert all(rule.names == (GATEWAY,) for rule in rules)
    roles = [manifest for manifest in rbac.manifests() if manifest["kind"] == "ClusterRole"]
    granted = [rule for role in roles for rule in role["rules"]]
    assert all(rule.get("resourceNames") == [GATEWAY] for rule in granted if narrow & set(rule["resources"]))


def test_the_endpoint_is_the_service() -> None:
    port = rendered()["Service"]["spec"]["ports"][0]["port"]
    assert endpoint("team") == f"http://{GATEWAY}.team.svc:{port}/v1"


def test_the_certificate_of_clients_is_mounted_if_a_secret_is_named() -> None:
    spec = rendered(replace(SETTINGS, tls_secret="web"))["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    assert container["args"][container["args"].index("--tls") + 1] == mount["mountPath"]
    assert {"secretName": "web", "defaultMode": 0o440} in [volume.get("secret") for volume in spec["volumes"]]
    assert endpoint("team", tls=True).startswith("https://")
    assert "--tls" not in pod()["containers"][0]["args"]
