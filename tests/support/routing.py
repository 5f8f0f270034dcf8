"""A sound RoutingPolicy, and random ones with random requests and failures, for properties pure and over sockets."""

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import strategies as st

from flotilla.api.routing_policy import DeterministicSignal, Failure, RoutingPolicy, Signal
from flotilla.routing.document import DeploymentFacts, GatewayDocument, Policy, compile_policy
from flotilla.routing.request import Features, Operation

FACTS = {
    "qwen-small": DeploymentFacts("qwen-small", "qwen2.5-1.5b", "vllm", ("triage",), 8192),
    "qwen-medium": DeploymentFacts("qwen-medium", "qwen2.5-7b", "vllm", (), 32768),
}
HOSTED: dict[str, Any] = {
    "baseURL": "https://api.example.com/v1",
    "model": "big-1",
    "secretRef": {"name": "provider", "key": "api-key"},
    "price": {"inputPerMTok": "3", "outputPerMTok": "15"},
}
SOUND: dict[str, Any] = {
    "hostModels": ["support"],
    "targets": [
        {"name": "small", "modelDeploymentRef": {"name": "qwen-small"}},
        {"name": "medium", "modelDeploymentRef": {"name": "qwen-medium"}},
        {"name": "frontier", "external": HOSTED, "region": "us"},
    ],
    "dataPolicy": {
        "unknownClass": "sovereign",
        "classes": [
            {"name": "sovereign", "allowBoundaries": ["Cluster"]},
            {"name": "public", "allowBoundaries": ["Cluster", "External"]},
        ],
    },
    "rules": [
        {
            "name": "classify",
            "match": {"tasks": ["classification"], "promptTokens": {"max": 2000}},
            "route": {
                "split": [{"target": "small"}],
                "fallback": {"targets": ["medium", "frontier"]},
                "escalation": {"target": "frontier", "signals": ["SchemaInvalid", "EmptyAnswer"]},
            },
        }
    ],
    "defaultRoute": {"split": [{"target": "medium"}], "fallback": {"targets": ["frontier"]}},
}
CLASSES = ("strict", "middle", "free")
TASKS = ("classification", "drafting")


def resource(
    spec: dict[str, Any], *, name: str = "policy", namespace: str = "team", generation: int = 1
) -> RoutingPolicy:
    """A RoutingPolicy as the apiserver would hand it out."""
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": generation}
    return RoutingPolicy.model_validate({"metadata": meta, "spec": spec})


def compiled(spec: dict[str, Any]) -> Policy:
    """The policy as a gateway has it."""
    return compile_policy(resource(spec), FACTS)


def compile_document(
    namespace: str, resources: Iterable[RoutingPolicy], facts: Mapping[str, DeploymentFacts]
) -> GatewayDocument:
    """The document of sound policies, without the checks of `admission.admit`."""
    found = (compile_policy(one, facts) for one in resources)
    return GatewayDocument(namespace=namespace, policies=tuple(sorted(found, key=lambda policy: policy.name)))


@st.composite
def routes(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    """A route over some of the targets."""
    some = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    split = [{"target": target, "weight": draw(st.integers(1, 5))} for target in draw(some)]
    route: dict[str, Any] = {"split": split, "maxAttempts": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        kinds = st.lists(st.sampled_from([str(f) for f in Failure]), min_size=1, unique=True)
        route["fallback"] = {"targets": draw(some), "on": draw(kinds)}
    if draw(st.booleans()):
        signals = st.lists(st.sampled_from([str(s) for s in DeterministicSignal]), min_size=1, unique=True)
        route["escalation"] = {"target": draw(st.sampled_from(names)), "signals": draw(signals)}
    return route


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Any spec that the schema admits, sound or not, with up to five targets."""
    targets: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 5))):
        places: list[dict[str, Any]] = [{"modelDeploymentRef": {"name": "qwen-small"}}, {"external": HOSTED}]
        target = {"name": f"t{index}", **draw(st.sampled_from(places))}
        if draw(st.booleans()):
            target["region"] = draw(st.sampled_from(["eu", "us"]))
        if draw(st.booleans()):
            target["capabilities"] = {draw(st.sampled_from(["tools", "jsonSchema", "vision"])): "Unsupported"}
        targets.append(target)
    names = [target["name"] for target in targets]
    boundaries = st.lists(st.sampled_from(["Cluster", "External"]), min_size=1, max_size=2, unique=True)
    regions = st.lists(st.sampled_from(["eu", "us"]), max_size=2, unique=True)
    classes = [{"name": c, "allowBoundaries": draw(boundaries), "allowRegions": draw(regions)} for c in CLASSES]
    rules = [
        {"name": f"r{index}", "match": draw(_MATCHES), "route": draw(routes(names))}
        for index in range(draw(st.integers(0, 3)))
    ]
    spec: dict[str, Any] = {
        "hostModels": ["m"],
        "targets": targets,
        "dataPolicy": {"unknownClass": draw(st.sampled_from(CLASSES)), "classes": classes},
        "clients": [{"name": f"of-{c}", "secretRef": {"name": "clients", "key": c}, "dataClass": c} for c in CLASSES],
        "rules": rules,
        "defaultRoute": draw(routes(names)),
    }
    if draw(st.booleans()):
        asked = [{"name": task, "description": task} for task in TASKS]
        spec["classifier"] = {"target": draw(st.sampled_from(names)), "tasks": asked}
    return spec


_MATCHES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"tasks": ["classification"]}, {"tools": {"min": 1}}, {"streaming": "Streamed"}, {"promptTokens": {"max": 99}}]
)
FEATURES: st.SearchStrategy[Features] = st.builds(
    Features,
    operation=st.sampled_from(list(Operation)),
    model=st.just("m"),
    task=st.none() | st.sampled_from(TASKS),
    data_class=st.none() | st.sampled_from([*CLASSES, "no-such-class", "free, strict"]),
    prompt_tokens=st.integers(0, 20_000),
    max_tokens=st.none() | st.integers(1, 20_000),
    tools=st.integers(0, 2),
    json_schema=st.booleans(),
    images=st.integers(0, 1),
    stream=st.booleans(),
    session=st.none() | st.sampled_from(["s1", "s2"]),
    client=st.none() | st.sampled_from([f"of-{c}" for c in CLASSES]),
)
FAILURES: st.SearchStrategy[Failure] = st.sampled_from(list(Failure))
SIGNALS: st.SearchStrategy[frozenset[Signal]] = st.frozensets(st.sampled_from(list(Signal)), max_size=3)
