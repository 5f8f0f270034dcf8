"""What the chart renders, by the real helm."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import manifests, values
from tests.support.helm import Helm, Object

from flotilla.api import crd
from flotilla.config import OperatorConfig
from flotilla.cost.gpu_prices import load_price_catalog
from flotilla.planning.resolve import load_catalog
from flotilla.render import rbac
from flotilla.settings import load

ENGINE = re.search(
    r"```yaml\n(name: tensorflux.*?)```", (manifests.ROOT / "docs/guides/adding-an-engine.md").read_text(), re.DOTALL
)
CLASS = {
    "class": "nvidia-l4-half",
    "vendor": "nvidia",
    "memoryGib": "11.2",
    "computeCapability": "8.9",
    "shared": True,
    "resource": "nvidia.com/gpu.shared",
    "price": {"usd": "0.40", "source": "our contract", "asOf": "2026-11-01"},
}
PRICES = {"source": "contract", "asOf": "2026-11-20", "gpus": [{"class": "nvidia-l4", "usd": "0.62"}]}
MONITORS: dict[str, Any] = {
    "serviceMonitor": {"enabled": True},
    "podMonitor": {"enabled": True},
    "engineMonitors": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
}
CHANGES: dict[str, Any] = {
    "nameOverride": "fleet",
    "fullnameOverride": "fleet",
    "commonLabels": {"team": "ml"},
    "image.repository": "registry.example.com/flotilla",
    "image.tag": "1.2.3",
    "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Always",
    "image.pullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "config": {"workers": 4},
    "engines": {"tensorflux": yaml.safe_load(ENGINE[1] if ENGINE else "")},
    "accelerators": [CLASS],
    "priceCatalog": PRICES,
    "crds.enabled": False,
    "crds.keep": False,
    "rbac.create": False,
    "rbac.aggregate": False,
    "serviceAccount.create": False,
    "serviceAccount.name": "mine",
    "serviceAccount.annotations": {"a": "b"},
    "resources": {"requests": {"cpu": "1"}},
    "podDisruptionBudget.enabled": False,
    "topologySpread": "None",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "volumes": [{"name": "ca", "emptyDir": {}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "service.port": 9090,
    "service.annotations": {"a": "b"},
    "networkPolicy.enabled": False,
    "networkPolicy.metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    "networkPolicy.egress": [{"ports": [{"port": 443}]}],
    "monitoring.serviceMonitor.enabled": True,
    "monitoring.serviceMonitor.labels": {"release": "prometheus"},
    "monitoring.serviceMonitor.interval": "10s",
    "monitoring.podMonitor.enabled": True,
    "monitoring.podMonitor.labels": {"release": "prometheus"},
    "monitoring.podMonitor.interval": "10s",
    "monitoring.engineMonitors.enabled": True,
    "monitoring.engineMonitors.labels": {"release": "prometheus"},
    "monitoring.engineMonitors.interval": "10s",
    "monitoring.prometheusRule.enabled": True,
    "monitoring.prometheusRule.labels": {"release": "prometheus"},
    "monitoring.dashboards.enabled": True,
    "monitoring.dashboards.labels": {"sidecar": "yes"},
}
"""Another value for each key of values.yaml."""


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: merged(base[key], change[key])
        if isinstance(base.get(key), dict) and isinstance(change.get(key), dict)
        else change.get(key, base.get(key))
        for key in {**base, **change}
    }


def whole() -> dict[str, Any]:
    """Everything at once that goes together."""
    found: dict[str, Any] = {}
    for path, value in CHANGES.items():
        if value is not False:
            found = merged(found, nested(path, value))
    return found


def find(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = (o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"]))
    return found


@pytest.fixture
def with_monitoring(tmp_path: Path) -> Path:
    """The chart with a rule and a dashboard, whatever the repository holds."""
    copy = tmp_path / "flotilla"
    shutil.copytree(manifests.CHART, copy)
    for folder, name, text in (
        ("rules", "fleet.yaml", "groups:\n- name: flotilla\n  rules: []\n"),
        ("dashboards", "fleet.json", '{"title": "{{ model }}"}\n'),
    ):
        (copy / "files/monitoring" / folder).mkdir(parents=True, exist_ok=True)
        (copy / "files/monitoring" / folder / name).write_text(text)
    return copy


def test_lint_is_content_with_the_defaults_and_with_everything(helm: Helm, tmp_path: Path) -> None:
    everything = tmp_path / "values.yaml"
    everything.write_text(yaml.safe_dump(whole()))
    helm("lint", "--strict", manifests.CHART)
    helm("lint", "--strict", manifests.CHART, "--values", everything)


def test_no_value_is_without_effect(helm: Helm, with_monitoring: Path) -> None:
    paths = {
        ".".join(value.path)
        for value in values.parse((manifests.CHART / "values.yaml").read_text())
        if not value.is_group
    }
    assert paths == set(CHANGES)
    plain = {"serviceAccount": {"name": "given"}}
    monitored = {**plain, "monitoring": MONITORS}
    texts = {name: helm.text(base, chart=with_monitoring) for name, base in (("", plain), ("monitoring", monitored))}
    for path, value in CHANGES.items():
        monitoring = path.startswith("monitoring.") and not path.endswith(".enabled")
        changed = merged(monitored if monitoring else plain, nested(path, value))
        assert helm.text(changed, chart=with_monitoring) != texts["monitoring" if monitoring else ""], path


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"image": {"digest": "sha256:12"}}, "image/digest"),
        ({"config": {"worker": 2}}, "worker"),
        ({"config": {"workers": 0}}, "config/workers"),
        ({"config": {"namespaces": ["Team A"]}}, "config/namespaces"),
        ({"config": {"kubeconfig": "/root/.kube/config"}}, "kubeconfig"),
        ({"config": {"leader_election": {"namespace": "other"}}}, "leader_election"),
        ({"monitoring": {"serviceMonitor": {"interval": "soon"}}}, "interval"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ],
)
def test_a_wrong_value_is_named(helm: Helm, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        helm.render(wrong)


def kubelet(objects: list[Object], folder: Path) -> Path:
    """Lay the operator's files out as the volume of its pod has them; returns its configuration."""
    deployment, data = find(objects, "Deployment"), find(objects, "ConfigMap", "flotilla-operator")["data"]
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (volume,) = (v["configMap"] for v in volumes if "configMap" in v)
    for item in volume["items"]:
        path = folder / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[item["key"]].replace("/etc/flotilla", str(folder)))
    assert {item["key"] for item in volume["items"]} == set(data)
    return folder / "config.yaml"


def test_the_operator_starts_with_no_values(helm: Helm, tmp_path: Path) -> None:
    config = load({}, environ={}, file=kubelet(helm.render(), tmp_path))
    defaults = OperatorConfig()
    assert config == defaults


def test_the_operator_reads_what_the_values_say(helm: Helm, tmp_path: Path) -> None:
    settings = {
        "workers": 3,
        "namespaces": ["a", "b"],
        "compare_with": None,
        "log_level": "DEBUG",
        "leader_election": {"duration_s": 30, "renew_deadline_s": 20},
    }
    files = {"engines": CHANGES["engines"], "accelerators": [CLASS], "priceCatalog": PRICES}
    asked = {"config": settings, **files, "fullnameOverride": "x"}
    objects = helm.render(asked)
    config = load({}, environ={}, file=kubelet_of(objects, tmp_path, "x-operator"))
    assert (config.workers, config.namespaces, config.compare_with, config.log_level) == (3, ("a", "b"), None, "DEBUG")
    assert (config.leader_election.duration_s, config.leader_election.retry_s) == (30, 2)
    assert (config.leader_election.namespace, config.leader_election.name) == ("flotilla-system", "x-operator")
    catalog = load_catalog(engines=config.engines, accelerator_table=config.accelerators)
    assert str(load_price_catalog(config.price_catalog).gpus[0].gpu_usd_per_hour) == "0.62"
    assert "tensorflux" in catalog.profiles
    assert catalog.accelerators["nvidia-l4-half"].price is not None


def kubelet_of(objects: list[Object], folder: Path, name: str) -> Path:
    renamed = [
        {**o, "metadata": {**o["metadata"], "name": "flotilla-operator"}} if o["metadata"]["name"] == name else o
        for o in objects
    ]
    return kubelet(renamed, folder)


def test_a_changed_setting_or_file_restarts_the_operator(helm: Helm) -> None:
    def mark(asked: dict[str, Any]) -> str:
        annotations = find(helm.render(asked), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["flotilla.dev/config-hash"])

    marks = [mark(asked) for asked in ({}, {"config": {"workers": 3}}, {"accelerators": [CLASS]}, {"replicas": 5})]
    marks.append(mark({"priceCatalog": {**PRICES, "source": "another"}}))
    marks.append(mark({"priceCatalog": PRICES}))
    assert len(set(marks)) == 4
    assert marks[3] == marks[0]
    assert marks[4] == marks[5], "the operator reads new prices by itself"


def test_a_file_that_a_setting_names_can_be_mounted(helm: Helm) -> None:
    authority = {"name": "ca", "configMap": {"name": "prometheus-ca"}}
    mount = {"name": "ca", "mountPath": "/etc/ca"}
    settings = {"prometheus_url": "https://prometheus:9090", "prometheus_ca_file": "/etc/ca/ca.crt"}
    objects = helm.render({"volumes": [authority], "volumeMounts": [mount], "config": settings})
    pod = find(objects, "Deployment")["spec"]["template"]["spec"]
    assert authority in pod["volumes"]
    assert mount in pod["containers"][0]["volumeMounts"]
    config = yaml.safe_load(find(objects, "ConfigMap")["data"]["config.yaml"])
    assert config["prometheus_ca_file"] == "/etc/ca/ca.crt"


def test_gateways_run_the_operators_image_once_there_are_gateways(helm: Helm, tmp_path: Path) -> None:
    copy = tmp_path / "flotilla"
    shutil.copytree(manifests.CHART, copy)
    (copy / "files/settings.yaml").write_text("[gateway_image, workers]\n")
    (copy / "values.schema.json").unlink()
    image = {"repository": "registry.example.com/flotilla", "tag": "1"}

    def gateway_image(values: dict[str, Any]) -> str | None:
        config = find(helm.render(values, chart=copy), "ConfigMap")["data"]["config.yaml"]
        name: str | None = yaml.safe_load(config).get("gateway_image")
        return name

    assert gateway_image({"image": image}) == "registry.example.com/flotilla:1"
    assert gateway_image({"image": image, "config": {"gateway_image": "mine:2"}}) == "mine:2"


def test_the_crds_are_those_of_the_package(helm: Helm) -> None:
    wanted = [crd.crd(definition) for definition in crd.DEFINITIONS]
    for keep, annotation in ((True, {"helm.sh/resource-policy": "keep"}), (False, {})):
        found = [o for o in helm.render({"crds": {"keep": keep}}) if o["kind"] == "CustomResourceDefinition"]
        for mine, theirs in zip(wanted, found, strict=True):
            annotations = {**mine["metadata"]["annotations"], **annotation}
            assert {**mine, "metadata": {**mine["metadata"], "annotations": annotations}} == theirs
    assert not any(o["kind"] == "CustomResourceDefinition" for o in helm.render({"crds": {"enabled": False}}))


def test_the_roles_are_those_of_the_table(helm: Helm) -> None:
    objects = helm.render()
    assert find(objects, "ClusterRole", "flotilla-operator")["rules"] == rbac.rules()
    assert find(objects, "Role")["rules"] == rbac.rules(own_namespace=True)
    for role in rbac.USER_ROLES:
        assert find(objects, "ClusterRole", f"flotilla-{role.name}")["rules"] == rbac.user_rules(role)


def test_an_operator_of_some_namespaces_gets_no_cluster_wide_right(helm: Helm) -> None:
    objects = helm.render({"config": {"namespaces": ["a", "flotilla-system"]}, "rbac": {"aggregate": False}})
    assert not any(o["kind"].startswith("ClusterRole") for o in objects)
    roles = {manifests.identity(o)[1:]: o["rules"] for o in objects if o["kind"] == "Role"}
    fleet = rbac.rules(cluster_wide=False)
    assert roles == {
        ("a", "flotilla-operator-fleet"): fleet,
        ("flotilla-system", "flotilla-operator-fleet"): fleet,
        ("flotilla-system", "flotilla-operator"): rbac.rules(own_namespace=True),
    }
    for binding in (o for o in objects if o["kind"] == "RoleBinding"):
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "flotilla-operator", "namespace": "flotilla-system"}
        ]
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]


def test_no_role_has_a_wildcard_or_reaches_for_more_rights(helm: Helm) -> None:
    forbidden = {"secrets", "pods/exec", "pods/attach", "serviceaccounts/token", "*"}
    for rule in (rule for o in helm.render() if "Role" in o["kind"] for rule in o.get("rules", ())):
        assert not forbidden & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_two_releases_share_no_object(helm: Helm) -> None:
    first, second = (
        {manifests.identity(o) for o in helm.render({"fullnameOverride": name, "crds": {"enabled": False}})}
        for name in ("one", "two")
    )
    assert not first & second


def test_one_operator_has_no_budget(helm: Helm) -> None:
    assert not any(o["kind"] == "PodDisruptionBudget" for o in helm.render({"replicas": 1}))
    assert find(helm.render(), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_rules_and_dashboards_arrive_as_they_are_written(helm: Helm, with_monitoring: Path) -> None:
    objects = helm.render({"monitoring": MONITORS}, chart=with_monitoring)
    assert find(objects, "PrometheusRule", "flotilla-fleet")["spec"] == {"groups": [{"name": "flotilla", "rules": []}]}
    dashboard = find(objects, "ConfigMap", "flotilla-fleet")
    assert dashboard["data"]["fleet.json"].strip() == '{"title": "{{ model }}"}'
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_monitors_name_the_port_of_what_they_select(helm: Helm) -> None:
    objects = helm.render({"monitoring": MONITORS})
    pod = find(objects, "Deployment")["spec"]["template"]
    service, monitor = find(objects, "Service"), find(objects, "ServiceMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    assert labels <= service["metadata"]["labels"].items()
    assert labels <= pod["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    (endpoint,) = find(objects, "PodMonitor", "flotilla-operator")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    assert endpoint["honorLabels"]
    assert monitor["spec"]["endpoints"][0]["honorLabels"]
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert service["spec"]["ports"][0]["targetPort"] in ports
