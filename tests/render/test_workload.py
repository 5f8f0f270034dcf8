"""Rendered manifests against golden files; `UPDATE_GOLDEN=1 pytest tests/render/test_workload.py` rewrites them."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.combinations import COMBINATIONS as CASES

from flotilla.api.crd import DEFINITIONS
from flotilla.api.model_deployment import ModelDeployment
from flotilla.constants import ANNOTATION_HASH
from flotilla.planning.resolve import load_catalog, resolve
from flotilla.render import rbac
from flotilla.render.workload import children, foreign_risks, pod_template
from flotilla_devcluster.engine import llamacpp_config, sglang_config, tgi_config, vllm_config

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "manifests"
CATALOG = load_catalog()
BASE = CASES["vllm-minimal"][0]
PARSERS: dict[str, Callable[..., Any]] = {
    "vllm": vllm_config.configure,
    "tgi": tgi_config.configure,
    "sglang": sglang_config.configure,
    "llamacpp": llamacpp_config.configure,
}
"""The simulated engines' own readings of a command line, made from the real parsers' tables."""


def rendered(spec: dict[str, Any], replicas: int = 1) -> list[dict[str, Any]]:
    meta = {"name": "tiny", "namespace": "models", "uid": "0000-1111", "generation": 1}
    model = ModelDeployment.model_validate({"metadata": meta, "spec": spec})
    resolved = resolve("tiny", model.spec, CATALOG)
    return children(model, resolved, pod_template(model, resolved), replicas=replicas)


@pytest.mark.parametrize("name", CASES)
def test_manifests_are_the_golden_ones(name: str) -> None:
    spec, replicas = CASES[name]
    text = yaml.safe_dump_all(rendered(spec, replicas), sort_keys=False, width=110)
    path = GOLDEN / f"{name}.yaml"
    if "UPDATE_GOLDEN" in os.environ:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_there_is_a_golden_file_for_each_case_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_engine_starts_with_every_golden_command_line(name: str) -> None:
    spec, replicas = CASES[name]
    container = rendered(spec, replicas)[0]["spec"]["template"]["spec"]["containers"][0]
    arguments = [*container.get("command", ()), *container["args"]]
    values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    # As large a cache as it takes: whether it fits a real card is the memory fit's business.
    config = PARSERS[spec["engine"]["name"]](arguments, {**values, "FLOTILLA_SIM_KV_TOKENS": "1000000000"})
    assert config.port == container["ports"][0]["containerPort"]


def test_there_are_at_least_forty_combinations() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_every_child_is_owned_labelled_and_hashed(name: str) -> None:
    spec, replicas = CASES[name]
    for child in rendered(spec, replicas):
        meta = child["metadata"]
        assert meta["ownerReferences"][0]["uid"] == "0000-1111"
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "flotilla"
        assert len(meta["annotations"][ANNOTATION_HASH]) == 64


RISKS: list[tuple[dict[str, Any], list[str]]] = [
    ({"hostNetwork": True, "hostPID": False}, ["hostNetwork"]),
    ({"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}, ["volume node (hostPath)"]),
    ({"containers": [{"name": "proxy", "image": "x", "env": [{"name": "LD_PRELOAD"}]}]}, []),
    ({"containers": [{"name": "p", "securityContext": {"privileged": True}}]}, ["privileged of the container p"]),
    (
        {"initContainers": [{"name": "i", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
        ["capabilities.add of the container i"],
    ),
]


@pytest.mark.parametrize(("added", "found"), RISKS)
def test_additions_to_the_pod_template_that_take_away_protection_are_found(
    added: dict[str, Any], found: list[str]
) -> None:
    meta = {"name": "tiny", "namespace": "models", "uid": "0000-1111", "generation": 1}
    model = ModelDeployment.model_validate({"metadata": meta, "spec": BASE})
    resolved = resolve("tiny", model.spec, CATALOG)
    template = pod_template(model, resolved).manifest
    live = {"spec": {"template": copy.deepcopy(template)}}
    dangerous = resolved.profile.is_dangerous
    assert foreign_risks(template, live, dangerous) == []
    pod = live["spec"]["template"]["spec"]
    for key, value in added.items():
        pod[key] = [*pod.get(key, ()), *value] if isinstance(value, list) else value
    assert foreign_risks(template, live, dangerous) == found
    engine = pod["containers"][0]
    engine["env"] = [*engine["env"], {"name": "LD_AUDIT", "value": "x"}, {"name": "TZ", "value": "UTC"}]
    engine["lifecycle"] = {**engine["lifecycle"], "postStart": {"exec": {"command": ["sh"]}}}
    engine["envFrom"] = [*engine.get("envFrom", ()), {"secretRef": {"name": "x"}}]
    risks = foreign_risks(template, live, dangerous)
    assert {"variable LD_AUDIT of the engine", "postStart hook of the engine"} < set(risks)
    assert ("envFrom of the engine" in risks) == ("envFrom" not in template["spec"]["containers"][0])


def test_replicas_belong_to_the_scaler() -> None:
    assert "replicas" not in rendered(BASE)[0]["spec"]


def test_a_budget_comes_with_the_second_replica() -> None:
    assert [child["kind"] for child in rendered(BASE, 1)] == ["Deployment", "Service"]
    assert [child["kind"] for child in rendered(BASE, 2)] == ["Deployment", "Service", "PodDisruptionBudget"]


def test_the_pod_template_changes_with_what_the_pod_uses_and_with_nothing_else() -> None:
    template = rendered(BASE)[0]["spec"]["template"]
    other = copy.deepcopy(BASE)
    other |= {"cost": {"gpuHourlyPrice": "9"}, "scaling": {"maxReplicas": 4}}
    assert rendered(other)[0]["spec"]["template"] == template
    assert rendered({**BASE, "engine": {"name": "vllm", "args": ["--x"]}})[0]["spec"]["template"] != template


def test_the_role_covers_each_resource_that_users_write() -> None:
    assert {definition.plural for definition in DEFINITIONS} == set(rbac.USER_RESOURCES)


def test_the_committed_role_is_the_table() -> None:
    assert list(yaml.safe_load_all((ROOT / "manifests/base/rbac.yaml").read_text())) == rbac.manifests()


def test_the_role_grants_no_secrets_no_exec_and_no_writing_of_specs() -> None:
    for rule, resource, verb in rbac.permissions():
        assert "*" not in (rule.group, resource, verb)
        assert resource not in ("secrets", "pods/exec", "pods/portforward")
        if resource in rbac.USER_RESOURCES:
            assert verb in ("list", "watch")


def test_operator_is_no_package_for_it_would_shadow_the_standard_librarys() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
