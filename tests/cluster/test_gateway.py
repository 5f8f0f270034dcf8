"""RoutingPolicies on a whole cluster: their gateway comes, serves, follows them, and goes with the last of them."""

import hashlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from tests.support.hosted import HostedApi
from tests.support.models import Models

from flotilla.constants import GATEWAY
from flotilla_devcluster.apiserver import select
from flotilla_devcluster.stack import USER

pytestmark = pytest.mark.cluster

OWNED = (
    "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "NetworkPolicy", "Deployment", "Service",
    "PodDisruptionBudget",
)  # fmt: skip
HELLO: list[Any] = [{"role": "user", "content": "Which queue is this ticket for?"}]


def policy(*models: str, hosted_url: str = "https://api.example.com", default: str = "small") -> dict[str, Any]:
    """Short requests to a model of the cluster, and the hosted one for what is public and long or when it is asked."""
    return {
        "hostModels": list(models),
        "targets": [
            {"name": "small", "modelDeploymentRef": {"name": "tiny"}},
            {
                "name": "frontier",
                "external": {
                    "baseURL": f"{hosted_url}/v1",
                    "model": "big-1",
                    "secretRef": {"name": "provider", "key": "api-key"},
                    "price": {"inputPerMTok": "3", "outputPerMTok": "15"},
                },
            },
        ],
        "dataPolicy": {
            "unknownClass": "sovereign",
            "classes": [
                {"name": "sovereign", "allowBoundaries": ["Cluster"]},
                {"name": "public", "allowBoundaries": ["Cluster", "External"]},
            ],
        },
        "rules": [{"name": "long", "match": {"promptTokens": {"min": 1000}}, "route": route("frontier", "small")}],
        "defaultRoute": route(default, "small" if default != "small" else "frontier"),
    }


def route(first: str, *others: str) -> dict[str, Any]:
    return {"split": [{"target": first}], **({"fallback": {"targets": list(others)}} if others else {})}


def openai(models: Models) -> OpenAI:
    url = models.wait(lambda: models.stack.service_url(GATEWAY, models.namespace), "the gateway's Service")
    return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30)


def ask(client: OpenAI, *, data_class: str = "public", content: str = "Hello") -> tuple[str, str]:
    """The answer's text and the decision header."""
    raw = client.chat.completions.with_raw_response.create(
        model="support",
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        extra_headers={"x-data-class": data_class},
    )
    return raw.parse().choices[0].message.content or "", raw.headers["x-flotilla-route"]


def programmed(models: Models, name: str = "support") -> None:
    """The newest generation is in the document, and every replica serves that."""

    def probe() -> bool:
        live, document = models.get("RoutingPolicy", name) or {}, models.get("ConfigMap", GATEWAY) or {}
        status = live.get("status", {})
        text = document.get("data", {}).get("document.json", "")
        states = {c["type"]: (c["status"], c["observedGeneration"]) for c in status.get("conditions", ())}
        served = states.get("Programmed") == ("True", live["metadata"]["generation"])
        return served and status["configHash"] == hashlib.sha256(text.encode()).hexdigest()

    models.wait(probe, f"{name} to be programmed")


def serve(models: Models, spec: dict[str, Any], hosted: HostedApi) -> OpenAI:
    """A model, a key, a policy, and a client of its gateway."""
    models.apply("tiny", {**spec, "scaling": {"minReplicas": 1, "maxReplicas": 1}})
    models.apply("support", policy("support", hosted_url=hosted.url), kind="RoutingPolicy")
    models.wait_ready("tiny")
    lacking = models.wait_condition("support", "ResolvedRefs", "False", "SecretKeyNotFound", kind="RoutingPolicy")
    assert "spec.targets[1].external.secretRef" in lacking["message"]
    secret = {"metadata": {"name": "provider"}, "stringData": {"api-key": "sk-of-the-provider"}}
    models.stack.plane.api.request("POST", models.path("Secret"), secret)
    models.wait_condition("support", "Ready", "True", kind="RoutingPolicy")
    return openai(models)


def test_a_policy_is_served_changed_without_a_dropped_request_and_kept_when_it_turns_bad(
    models: Models, spec: dict[str, Any], hosted: HostedApi
) -> None:
    client = serve(models, spec, hosted)
    said, decided = ask(client)
    assert said != "from the hosted model"
    assert "rule=default;target=small;attempts=1;class=public;policy=support@" in decided
    stream = client.chat.completions.create(model="support", messages=HELLO, max_tokens=8, stream=True)
    assert sum(len(chunk.choices) for chunk in stream) > 1
    said, decided = ask(client, content="word " * 2000)
    assert said == "from the hosted model"
    assert "rule=long;target=frontier" in decided
    assert hosted.received[-1].headers["authorization"] == "Bearer sk-of-the-provider"
    assert "target=small" in ask(client, content="word " * 800, data_class="sovereign")[1]
    assert [model.id for model in client.models.list()] == ["support"]

    changed = policy("support", hosted_url=hosted.url, default="frontier")
    stop = threading.Event()

    def keep_asking() -> list[str]:
        told = []
        while not stop.is_set():
            told.append(ask(client)[1])
        return told

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        try:
            models.apply("support", changed, kind="RoutingPolicy")
            programmed(models)
        finally:
            stop.set()
        answered = [decision for task in asking for decision in task.result()]
    assert {decision.split(";")[1] for decision in answered} <= {"target=small", "target=frontier"}
    assert "target=frontier" in ask(client)[1]

    models.apply("support", {**changed, "defaultRoute": route("nowhere")}, kind="RoutingPolicy")
    models.wait_condition("support", "Accepted", "False", "UnknownTarget", kind="RoutingPolicy")
    models.wait_condition("support", "Programmed", "False", "OlderGenerationServed", kind="RoutingPolicy")
    models.stack.restart_operator()
    models.apply("other", policy("other", hosted_url=hosted.url), kind="RoutingPolicy")
    programmed(models, "other")
    assert "target=frontier" in ask(client)[1]
    with pytest.raises(APIStatusError, match="does not exist") as refused:
        client.chat.completions.create(model="nonsense", messages=HELLO)
    assert refused.value.status_code == 404


def test_the_gateway_is_owned_by_its_policies_rests_and_goes_with_the_last(models: Models) -> None:
    models.apply("first", policy("a"), kind="RoutingPolicy")
    models.apply("second", policy("b"), kind="RoutingPolicy")
    for name in ("first", "second"):
        programmed(models, name)
    models.delete("RoutingPolicy", "first")
    models.wait(lambda: _owners(models) == {"second"}, "the deleted policy to be taken off")
    models.wait(lambda: _served(models) == ["second"], "the document to follow")
    programmed(models, "second")
    mark = models.stack.audit.mark()
    before = models.get("RoutingPolicy", "second")
    models.patch("ConfigMap", GATEWAY, {"metadata": {"labels": {"a-users": "own"}}})
    models.apply("touched", {"model": {"source": "hf://a/b"}, "engine": {"name": "vllm"}, **_NOWHERE})
    models.wait_condition("touched", "Stalled", "True")
    mine = select(models.stack.audit.since(mark), user=USER, writes=True)
    assert {event.resource for event in mine if event.namespace == models.namespace} <= {"modeldeployments", "events"}
    assert models.get("RoutingPolicy", "second") == before
    models.delete("RoutingPolicy", "second")
    models.wait(lambda: not any(models.get(kind, GATEWAY) for kind in OWNED), "the gateway to be collected")
    models.apply("third", policy("c"), kind="RoutingPolicy")
    programmed(models, "third")


_NOWHERE = {"accelerator": {"class": "no-such-class"}}


def _served(models: Models) -> list[str]:
    text = ((models.get("ConfigMap", GATEWAY) or {}).get("data") or {}).get("document.json", '{"policies": []}')
    return [policy["name"] for policy in json.loads(text)["policies"]]


def _owners(models: Models) -> set[str]:
    deployment = models.get("Deployment", GATEWAY) or {}
    return {reference["name"] for reference in deployment.get("metadata", {}).get("ownerReferences", ())}


def test_a_gateways_objects_that_are_edited_or_deleted_by_hand_are_restored(
    models: Models, spec: dict[str, Any]
) -> None:
    models.apply("tiny", spec)
    models.apply("support", policy("support"), kind="RoutingPolicy")
    models.wait(lambda: "support" in document_of(models), "the document")
    models.patch("ConfigMap", GATEWAY, {"data": {"document.json": "{}"}})
    # Not compared as a whole: it follows what the operator finds out about the model meanwhile.
    models.wait(lambda: "support" in document_of(models), "the document to be restored")
    models.delete("Role", GATEWAY)
    models.wait(lambda: models.get("Role", GATEWAY), "the Role to come back")


def test_the_document_follows_the_context_length_that_the_operator_finds(models: Models, spec: dict[str, Any]) -> None:
    """The operator's own status write is all that tells of it."""
    model = {**spec, "model": {"source": "hf://Qwen/Qwen3-14B"}, "scaling": {"minReplicas": 0, "maxReplicas": 1}}
    models.apply("support", policy("support"), kind="RoutingPolicy")
    lengths = [
        followed(models, {**model, "accelerator": {"class": accelerator}})
        for accelerator in ("nvidia-l4", "nvidia-h100-80gb", "nvidia-l4")
    ]
    assert lengths[0] == lengths[2] != lengths[1]


def followed(models: Models, spec: dict[str, Any]) -> int:
    """Apply the spec, and wait until the document has the context length that the status says; returns that."""
    models.apply("tiny", spec)
    length: int = models.wait(lambda: context_length(models, spec["accelerator"]["class"]), "the context length")
    models.wait(lambda: re.search(rf'"context_?length": ?{length}\b', document_of(models), re.I), "the document")
    return length


def document_of(models: Models) -> str:
    text: str = (models.get("ConfigMap", GATEWAY) or {}).get("data", {}).get("document.json", "")
    return text


def context_length(models: Models, accelerator: str) -> int:
    """What the status of the newest generation says; 0 where there is none yet."""
    live = models.get("ModelDeployment", "tiny") or {}
    status = live.get("status", {})
    if status.get("observedGeneration") != live["metadata"]["generation"]:
        return 0
    if status.get("accelerator", {}).get("class") != accelerator:
        return 0
    return int(status.get("fit", {}).get("contextLength", 0))
