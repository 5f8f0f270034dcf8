"""Each rule of both schemas on the real apiserver: a whole object passes, and each way to break it is named."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.schema import REMOVED, Path, Violation, cel_messages, missing, put, violations
from tests.support.whole import EVALUATION, MODEL_DEPLOYMENT, ROUTING_POLICY

from flotilla.api.admission import review
from flotilla.api.crd import DEFINITIONS, crd
from flotilla.errors import InvalidSpec
from flotilla_devcluster.controlplane import Cluster

pytestmark = pytest.mark.controlplane

WHOLE = {"ModelDeployment": MODEL_DEPLOYMENT, "RoutingPolicy": ROUTING_POLICY, "Evaluation": EVALUATION}
PLURALS = {definition.kind: definition.plural for definition in DEFINITIONS}
SCHEMAS: dict[str, Any] = {
    definition.kind: crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for definition in DEFINITIONS
}
ALTERNATIVES = {
    "spec.engine.env[0].value",  # item 1 has it
    "spec.cost.gpuHourlyPrice",  # owned is there instead
    "spec.targets[0].modelDeploymentRef",  # item 1 has it
    "spec.capture.to.claimName",  # the bucket is there instead
    "spec.rules[0].route.preference",  # the default route has it
    "spec.rules[0].route.promotion",
    "spec.rules[0].route.shadow",
    "spec.defaultRoute.split",  # the rule has it
}
VIOLATIONS = [
    pytest.param(kind, violation, id=f"{kind} {violation.id}"[:150])
    for kind, whole in WHOLE.items()
    for violation in violations(SCHEMAS[kind]["properties"]["spec"], whole["spec"], ("spec",))
]


def create(cluster: Cluster, obj: dict[str, Any], **query: str) -> dict[str, Any]:
    """A dry run: the apiserver judges and stores nothing."""
    path = f"/apis/flotilla.dev/v1alpha1/namespaces/default/{PLURALS[obj['kind']]}"
    answer: dict[str, Any] = cluster.api.request("POST", path, obj, dryRun="All", **query)
    return answer


@pytest.mark.parametrize("kind", WHOLE)
def test_an_object_with_every_field_is_accepted_and_nothing_is_pruned(controlplane: Cluster, kind: str) -> None:
    made = create(controlplane, WHOLE[kind], fieldValidation="Strict")
    assert made["spec"] == WHOLE[kind]["spec"]
    reviewed = review(WHOLE[kind])
    assert (reviewed.refusals, reviewed.resource["spec"]) == ((), made["spec"])


@pytest.mark.parametrize("kind", WHOLE)
def test_the_whole_object_leaves_no_field_of_the_schema_out(kind: str) -> None:
    left_out = set(missing(SCHEMAS[kind]["properties"]["spec"], WHOLE[kind]["spec"], ("spec",)))
    assert left_out <= ALTERNATIVES


@pytest.mark.parametrize(("kind", "violation"), VIOLATIONS)
def test_a_broken_rule_is_refused_by_the_fields_name(controlplane: Cluster, kind: str, violation: Violation) -> None:
    with pytest.raises(InvalidSpec) as refused:
        create(controlplane, violation.break_(WHOLE[kind]))
    assert violation.field in str(refused.value)
    assert violation.says in str(refused.value)
    fields = [refusal.field for refusal in review(violation.break_(WHOLE[kind])).refusals]
    assert any(field.startswith(violation.field) for field in fields), "`flotilla render` agrees"


@pytest.mark.parametrize("kind", WHOLE)
def test_a_misspelt_field_is_refused_by_name(controlplane: Cluster, kind: str) -> None:
    with pytest.raises(InvalidSpec, match=r'unknown field "spec\.targetz"'):
        create(controlplane, put(WHOLE[kind], ("spec", "targetz"), 1), fieldValidation="Strict")


SCALING: Path = ("spec", "scaling")
COMPARATOR: Path = ("spec", "cost", "compareWith", 0)
CEL: list[tuple[str, list[tuple[Path, Any]], str]] = [
    ("ModelDeployment", [(("spec", "cost", "gpuHourlyPrice"), "2.10")], "takes gpuHourlyPrice or owned, not both"),
    (
        "ModelDeployment",
        [(("spec", "cost", "owned", "usdPerKwh"), REMOVED)],
        "spec.cost.owned.powerWatts needs spec.cost.owned.usdPerKwh",
    ),
    (
        "ModelDeployment",
        [((*COMPARATOR, "cacheCredit"), "Observed")],
        "cachedPercent belongs to cacheCredit Fixed: set both or neither",
    ),
    (
        "ModelDeployment",
        [((*COMPARATOR, "mode"), "Batch")],
        "mode Batch is for prices of the catalogue",
    ),
    (
        "ModelDeployment",
        [(("spec", "model", "source"), "https://example.com/model")],
        "spec.model.source must be hf://OWNER/NAME",
    ),
    ("ModelDeployment", [(("spec", "model", "source"), "pvc://claim/../../etc")], "spec.model.source must be hf://"),
    ("ModelDeployment", [(("spec", "model", "source"), "pvc://claim/..")], "spec.model.source must be hf://"),
    ("ModelDeployment", [(("spec", "model", "source"), "s3://Bucket")], "spec.model.source must be hf://"),
    (
        "ModelDeployment",
        [(("spec", "model", "adapters"), [{"name": "a", "source": "s3://bucket/adapter"}])],
        "spec.model.adapters[*].source must be hf://OWNER/NAME, pvc://CLAIM/PATH or oci://IMAGE",
    ),
    ("ModelDeployment", [(("spec", "model", "source"), "hf://too/many/parts")], "spec.model.source must be hf://"),
    (
        "ModelDeployment",
        [((*SCALING, "minReplicas"), 9)],
        "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas",
    ),
    ("ModelDeployment", [(SCALING, {"mode": "External", "minReplicas": 2})], "maxReplicas is 1 where it is left out"),
    (
        "ModelDeployment",
        [((*SCALING, "minReplicas"), 1)],
        "spec.scaling.scaleToZeroAfterSeconds needs spec.scaling.minReplicas: 0",
    ),
    (
        "ModelDeployment",
        [(SCALING, {"mode": "External", "scaleToZeroAfterSeconds": 60})],
        "spec.scaling.scaleToZeroAfterSeconds needs spec.scaling.minReplicas: 0",
    ),
    ("ModelDeployment", [((*SCALING, "mode"), "Internal")], "spec.replicas belongs to scaling.mode External or None"),
    ("ModelDeployment", [(SCALING, REMOVED)], "spec.replicas belongs to scaling.mode External or None"),
    (
        "ModelDeployment",
        [(("spec", "engine", "env", 1), {"name": "A"})],
        "each item of spec.engine.env needs exactly one of value and valueFrom",
    ),
    (
        "ModelDeployment",
        [(("spec", "engine", "env", 0, "value"), "both")],
        "each item of spec.engine.env needs exactly one of value and valueFrom",
    ),
    ("ModelDeployment", [(("metadata", "name"), "1st")], "metadata.name must start with a letter"),
    ("ModelDeployment", [(("metadata", "name"), "a" * 53)], "metadata.name must start with a letter"),
    ("ModelDeployment", [(("metadata", "name"), "dotted.name")], "metadata.name must start with a letter"),
    ("Evaluation", [(("metadata", "name"), "1st")], "metadata.name must start with a letter"),
    (
        "Evaluation",
        [(("spec", "targets", 0, "modelDeploymentRef"), {"name": "x"})],
        "each item of spec.targets needs exactly one of modelDeploymentRef and external",
    ),
    ("Evaluation", [(("spec", "scorer", "method"), "Label")], "judge belongs to method Judge: set both or neither"),
    (
        "Evaluation",
        [(("spec", "scorer", "judge", "target"), "nobody")],
        "spec.scorer.judge.target must be the name of one of spec.targets",
    ),
    ("Evaluation", [(("spec", "dataset", "source"), "s3://cases")], "spec.dataset.source must be configmap://NAME/KEY"),
    (
        "Evaluation",
        [(("spec", "requirements", "quality"), {})],
        "spec.requirements.quality needs minPermille or withinPermilleOf",
    ),
    (
        "Evaluation",
        [(("spec", "requirements", "quality", "withinPermilleOf", "target"), "nobody")],
        "spec.requirements.quality.withinPermilleOf.target must be the name of one of spec.targets",
    ),
    ("RoutingPolicy", [(("metadata", "name"), "1st")], "metadata.name must start with a letter"),
    (
        "RoutingPolicy",
        [(("spec", "targets", 1, "modelDeploymentRef"), REMOVED)],
        "each item of spec.targets needs exactly one of modelDeploymentRef and external",
    ),
    (
        "RoutingPolicy",
        [(("spec", "targets", 0, "modelDeploymentRef"), {"name": "x"})],
        "each item of spec.targets needs exactly one of modelDeploymentRef and external",
    ),
    (
        "RoutingPolicy",
        [(("spec", "capture", "to", "claimName"), "examples")],
        "spec.capture.to needs exactly one of claimName and bucket",
    ),
    (
        "RoutingPolicy",
        [(("spec", "dataPolicy", "unknownClass"), "missing")],
        "spec.dataPolicy.unknownClass must be the name of one of spec.dataPolicy.classes",
    ),
    (
        "RoutingPolicy",
        [(("spec", "rules", 0, "match", "promptTokens", "min"), 3000)],
        "spec.rules[0].match.promptTokens: Invalid value: min must not exceed max",
    ),
    (
        "RoutingPolicy",
        [(("spec", "rules", 0, "match", "tools", "min"), 2)],
        "spec.rules[0].match.tools: Invalid value: min must not exceed max",
    ),
    (
        "RoutingPolicy",
        [(("spec", "rules", 0, "route", "split", 0, "weight"), 0)],
        "at least one weight of a split must be greater than 0",
    ),
    (
        "RoutingPolicy",
        [(("spec", "defaultRoute", "preference"), REMOVED), (("spec", "defaultRoute", "promotion"), REMOVED)],
        "a route needs exactly one of split and preference",
    ),
    (
        "RoutingPolicy",
        [(("spec", "rules", 0, "route", "promotion"), {"steps": []})],
        "a promotion needs a preference",
    ),
    (
        "RoutingPolicy",
        [(("spec", "defaultRoute", "promotion", "steps", 0, "percent"), 50)],
        "no two steps of a promotion may have the same percent",
    ),
    (
        "RoutingPolicy",
        [(("spec", "rules", 0, "route", "escalation"), {"target": "frontier"})],
        "an escalation needs signals or confidence",
    ),
    (
        "RoutingPolicy",
        [(("spec", "limits", "rates", 0), {"name": "none"})],
        "each item of spec.limits.rates needs requestsPerMinute or tokensPerMinute",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "message"), CEL)
def test_a_cel_rule_refuses_with_its_message(
    controlplane: Cluster, kind: str, changes: list[tuple[Path, Any]], message: str
) -> None:
    obj = WHOLE[kind]
    for path, value in changes:
        obj = put(obj, path, value)
    with pytest.raises(InvalidSpec) as refused:
        create(controlplane, obj)
    said = str(refused.value)
    assert message in said or message.replace("Invalid value: ", 'Invalid value: "object": ') in said
    rule = message.rpartition("Invalid value: ")[2]
    refusals = review(obj).refusals
    assert any(rule[1:] in str(refusal) for refusal in refusals), "`flotilla render` agrees"


@pytest.mark.parametrize("kind", WHOLE)
def test_each_cel_rule_has_a_case(kind: str) -> None:
    tested = [message.rpartition("Invalid value: ")[2] for of, _, message in CEL if of == kind]
    untested = [rule for rule in cel_messages(SCHEMAS[kind]) if not any(case in rule for case in tested)]
    assert untested == []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"scaling": {"mode": "None"}, "replicas": 0},
        {"scaling": {"maxReplicas": 4}},
        {"scaling": {"minReplicas": 0}},
        {"scaling": {"minReplicas": 0, "scaleToZeroAfterSeconds": 1}},
        {"scaling": {"minReplicas": 1000, "maxReplicas": 1000}},
        {"accelerator": {"class": "nvidia-l4", "count": 16}},
        {"cost": {"gpuHourlyPrice": "0.5"}},
    ],
)
def test_what_is_at_the_edge_of_the_rules_is_accepted(controlplane: Cluster, spec: dict[str, Any]) -> None:
    minimal = {
        "model": {"source": "hf://a/b"},
        "engine": {"name": "tgi"},
        "accelerator": {"class": "nvidia-l4"},
    }
    obj = {**MODEL_DEPLOYMENT, "spec": {**minimal, **spec}}
    made = create(controlplane, obj, fieldValidation="Strict")
    reviewed = review(obj)
    assert (reviewed.refusals, reviewed.resource["spec"]) == ((), made["spec"])
    assert made["spec"]["scaling"]["minReplicas"] == spec.get("scaling", {}).get("minReplicas", 1)


ODD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2.5, 2**31, 2**63, "", "2", "yes", "a" * 70, "Ünïcode", "x y", "x\n", "Internal"),
    *("hf://a/b", "0.50", "1Gi", "1e3", "../..", [], [1], ["a", "a"], {}, {"name": "a"}, {"key": "value"}),
)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every path of a value, itself included."""
    yield path
    if isinstance(value, dict):
        for name, part in value.items():
            yield from places(part, (*path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*path, index))


def mutated(whole: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """One to three changes at random places: a value of another kind, a part taken away, or a field added."""
    obj = whole
    for _ in range(chance.randint(1, 3)):
        chosen = [path for path in places(obj) if path[:1] == ("spec",) or path == ("metadata", "name")]
        if not chosen:
            break
        path = chance.choice(chosen)
        change = chance.random()
        if change < 0.3 and isinstance(path[-1], str):
            obj = put(obj, path, REMOVED)
        elif change < 0.35 and isinstance(path[-1], str):
            obj = put(obj, (*path[:-1], "added"), chance.choice(ODD))
        elif change < 0.45 and isinstance(path[-1], str):
            obj = put(obj, ("metadata", chance.choice(("labels", "annotations"))), {chance.choice(KEYS): "v v"})
        else:
            obj = put(obj, path, chance.choice(ODD))
    return obj


KEYS = ("a", "a/b", "A_.-b", "-a", "a b", "x" * 64, "Ex/a", "a/b/c", "")


@pytest.mark.parametrize("kind", WHOLE)
def test_render_and_the_apiserver_agree_on_mutated_objects(controlplane: Cluster, kind: str) -> None:
    """What `flotilla render` accepts the apiserver accepts and stores in the same form, and the reverse."""
    chance = random.Random(20)
    accepted = 0
    for _ in range(150):
        obj = mutated(WHOLE[kind], chance)
        reviewed = review(obj)
        made, said = None, ""
        try:
            made = create(controlplane, obj, fieldValidation="Strict")
        except InvalidSpec as refused:
            said = str(refused)
        ours = [f"{refusal.field}: {refusal}" for refusal in reviewed.refusals]
        assert bool(ours) == bool(said), f"render says {ours}, the apiserver {said!r}, of {obj}"
        assert made is None or reviewed.resource["spec"] == made["spec"]
        accepted += made is not None
    assert 10 < accepted < 140
