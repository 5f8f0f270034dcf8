"""`flotilla render`: manifests without a cluster, and why there are none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.schema import put
from tests.support.whole import MODEL_DEPLOYMENT, ROUTING_POLICY
from typer.testing import CliRunner, Result

from flotilla.api import crd
from flotilla.cli import app
from flotilla.cli.manifests import parse
from flotilla.constants import API_VERSION
from flotilla.errors import InvalidSpec

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "manifests/samples"
GOLDEN = ROOT / "tests/golden/manifests"


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["render", *map(str, arguments)], input=stdin)


def test_a_model_becomes_the_manifests_that_the_operator_applies() -> None:
    result = invoke(SAMPLES / "qwen2-5-7b.yaml", "--namespace", "models")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("# ModelDeployment models/qwen2-5-7b: vllm 0.33.0, fp8, 1 x nvidia-l4, 8192 tokens")
    deployment, service = (obj for obj in yaml.safe_load_all(result.stdout) if obj)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["metadata"]["namespace"] == "models"
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert "Qwen/Qwen2.5-7B-Instruct" in container["args"]
    assert set(deployment["metadata"]["annotations"]) == {"flotilla.dev/template-hash"}
    assert "ownerReferences" not in deployment["metadata"]


def test_what_is_rendered_is_what_the_golden_files_say() -> None:
    """With every field set."""
    whole = {**MODEL_DEPLOYMENT, "metadata": {"name": "golden", "namespace": "models"}}
    (answer,) = json.loads(invoke("-", "--json", stdin=yaml.safe_dump(whole)).stdout)
    golden = list(yaml.safe_load_all((GOLDEN / "vllm-whole-two-replicas.yaml").read_text()))
    assert [obj["kind"] for obj in answer["objects"]] == [obj["kind"] for obj in golden]
    mine, theirs = (objs[0]["spec"]["template"]["spec"] for objs in (answer["objects"], golden))
    assert set(mine) == set(theirs)
    assert mine["containers"][0]["securityContext"] == theirs["containers"][0]["securityContext"]


def test_a_folder_is_read_whole_and_a_policy_finds_its_models_there() -> None:
    answers = json.loads(invoke(SAMPLES, "--json").stdout)
    documents = [d for path in SAMPLES.rglob("*.yaml") for d in yaml.safe_load_all(path.read_text())]
    ours = [answer for answer in answers if answer["kind"] != "Gateway"]
    assert len(ours) == sum(document.get("apiVersion") == API_VERSION for document in documents)
    policies = [answer for answer in answers if answer["kind"] == "RoutingPolicy"]
    assert len(policies) > 1
    assert [policy["notes"] + policy["refusals"] for policy in policies] == [[] for _ in policies]


def test_a_model_that_is_not_among_the_files_is_a_note_only() -> None:
    result = invoke(SAMPLES / "support-routing.yaml")
    assert result.exit_code == 0
    assert "# note: spec.targets[0].modelDeploymentRef.name: There is no ModelDeployment" in result.stdout
    assert "# Gateway default/flotilla-gateway: serves support" in result.stdout


def test_the_policies_of_a_namespace_become_the_gateway_that_serves_them() -> None:
    result = invoke(SAMPLES / "support-routing.yaml", "--namespace", "shop")
    objects = [obj for obj in yaml.safe_load_all(result.stdout) if obj]
    kinds = "ServiceAccount Role RoleBinding ConfigMap NetworkPolicy Deployment Service PodDisruptionBudget"
    assert [obj["kind"] for obj in objects] == kinds.split()
    assert {obj["metadata"]["namespace"] for obj in objects} == {"shop"}
    assert not [obj for obj in objects if "ownerReferences" in obj["metadata"]]
    text = objects[3]["data"]["document.json"]
    (policy,) = json.loads(text)["policies"]
    assert policy["hostModels"] == ["support"]
    assert '\n   "hostModels": [\n' in text, "a value a line, for a diff"


def test_two_policies_that_want_one_model_name_are_told_apart() -> None:
    (first,) = [
        d for d in yaml.safe_load_all((SAMPLES / "support-routing.yaml").read_text()) if d["kind"] == "RoutingPolicy"
    ]
    second = {**first, "metadata": {"name": "zweite"}}
    elsewhere = {**first, "metadata": {"name": "third", "namespace": "other"}}
    result = invoke("-", "--json", stdin=yaml.safe_dump_all([first, second, elsewhere]))
    assert result.exit_code == 1
    assert "RoutingPolicy default/zweite: spec.hostModels" in result.stderr
    gateways = [answer for answer in json.loads(result.stdout) if answer["kind"] == "Gateway"]
    assert [(answer["namespace"], answer["summary"]) for answer in gateways] == [
        ("default", "serves support"),
        ("other", "serves third"),
    ]


def lists(value: Any, schema: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the schema says that each item comes once."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from lists(part, schema.get("properties", {}).get(name, {}), (*path, name))
    if isinstance(value, list):
        if schema.get("x-kubernetes-list-type") in ("map", "set"):
            yield path
        for index, item in enumerate(value):
            yield from lists(item, schema.get("items", {}), (*path, index))


TWICE = [
    (document, path)
    for document in (MODEL_DEPLOYMENT, ROUTING_POLICY)
    for definition in crd.DEFINITIONS
    if definition.kind == document["kind"]
    for path in lists(
        document["spec"],
        crd.crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
    )
]


@pytest.mark.parametrize(("document", "path"), TWICE, ids=[".".join(map(str, path)) for _, path in TWICE])
def test_an_item_that_comes_twice_is_refused_as_the_apiserver_does(
    document: dict[str, Any], path: tuple[str | int, ...]
) -> None:
    items: Any = document["spec"]
    for part in path:
        items = items[part]
    changed = {**document, "spec": put(document["spec"], path, [*items, items[0]])}
    with pytest.raises(InvalidSpec, match="is a duplicate of spec") as refused:
        parse(changed, namespace="default")
    assert refused.value.field.endswith(f"[{len(items)}]")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("accelerator", "class"), "nvidia-l5", "spec.accelerator.class: 'nvidia-l5'"),
        (("quantization", "method"), "fp9", "spec.quantization.method"),
        (("scaling", "maxReplica"), 3, "spec.scaling.maxReplica: There is no field 'maxReplica'. Did you mean max"),
        (("engine", "args"), ["--port=1"], "spec.engine.args[0]"),
        (("model", "contextLength"), 9_000_000, "spec."),
        (("engine",), "vllm", "spec.engine: It must be a mapping, not 'vllm'."),
        ((), [1], "spec: It must be a mapping, not [1]."),
    ],
)
def test_a_refusal_names_the_field_and_ends_with_1(path: tuple[str, ...], value: Any, named: str) -> None:
    document = put(MODEL_DEPLOYMENT, ("spec", *path), value)
    result = invoke("-", stdin=yaml.safe_dump(document))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"ModelDeployment default/whole: {named}")
    assert "# refused: " in result.stdout
    assert "kind: Deployment" not in result.stdout


def test_an_unsound_policy_is_refused() -> None:
    document = {
        **ROUTING_POLICY,
        "spec": put(ROUTING_POLICY["spec"], ("rules", 0, "route", "split", 0, "target"), "nowhere"),
    }
    result = invoke("-", stdin=yaml.safe_dump(document))
    assert result.exit_code == 1
    assert "spec.rules[0].route.split[0].target: 'nowhere'" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "cannot be read"),
        ("just words", "not a resource"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n", "no resource of Flotilla"),
    ],
)
def test_a_wrong_question_ends_with_2(text: str, said: str) -> None:
    result = invoke("-", stdin=text)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_file_that_is_not_there_ends_with_2() -> None:
    assert invoke("/nowhere.yaml").exit_code == 2


def test_an_administrators_own_class_is_known_when_given(tmp_path: Path) -> None:
    classes = tmp_path / "classes.yaml"
    row = {"class": "mine", "vendor": "nvidia", "memoryGib": "22.5", "computeCapability": 8.9, "labels": {"a": ["b"]}}
    classes.write_text(yaml.safe_dump([row]))
    document = {**MODEL_DEPLOYMENT, "spec": put(MODEL_DEPLOYMENT["spec"], ("accelerator", "class"), "mine")}
    asked = yaml.safe_dump(document)
    assert invoke("-", stdin=asked).exit_code == 1
    assert invoke("-", "--accelerators", classes, stdin=asked).exit_code == 0


def test_another_version_or_kind_and_a_missing_name_are_told() -> None:
    for change, said in (
        ({"apiVersion": "flotilla.dev/v1"}, "This release knows Evaluation, ModelDeployment, RoutingPolicy"),
        ({"kind": "Model"}, "Model of flotilla.dev/v1alpha1 is unknown"),
        ({"metadata": {}}, "no name"),
    ):
        with pytest.raises(InvalidSpec, match=said):
            parse({**MODEL_DEPLOYMENT, **change}, namespace="default")
