"""A revision changes with what a target serves, and with nothing else."""

from typing import Any

import pytest
from tests.support.schema import put
from tests.support.whole import EVALUATION

from flotilla.api.routing_policy import ExternalTarget, ModelDeploymentRef
from flotilla.constants import ANNOTATION_TEMPLATE_HASH
from flotilla.evaluation.revision import hosted_revision, self_hosted_revision

EXTERNAL = EVALUATION["spec"]["targets"][0]["external"]
MODEL: dict[str, Any] = {"metadata": {"name": "m"}, "status": {"adapters": [{"name": "a", "digest": "sha256:1"}]}}
DEPLOYMENT: dict[str, Any] = {"metadata": {"name": "m", "annotations": {ANNOTATION_TEMPLATE_HASH: "t1"}}}


def hosted(external: dict[str, Any]) -> str:
    return hosted_revision(ExternalTarget.model_validate(external))


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        (("model",), "gpt-5", True),
        (("baseURL",), "https://eu.api.openai.com/v1", True),
        (("provider",), "Anthropic", True),
        (("secretRef", "name"), "other", False),
        (("price", "inputPerMTok"), "9", False),
    ],
)
def test_a_hosted_revision_is_about_provider_model_and_url(path: tuple[str, ...], value: str, changes: bool) -> None:
    assert (hosted(put(EXTERNAL, path, value)) != hosted(EXTERNAL)) is changes


def of(
    adapter: str | None = None, model: dict[str, Any] | None = MODEL, deployment: dict[str, Any] | None = DEPLOYMENT
) -> str | None:
    return self_hosted_revision(ModelDeploymentRef(name="m", adapter=adapter), model, deployment)


def test_a_self_hosted_revision_follows_the_pod_template_and_the_adapters_digest() -> None:
    template = put(DEPLOYMENT, ("metadata", "annotations", ANNOTATION_TEMPLATE_HASH), "t2")
    digest = put(MODEL, ("status", "adapters", 0, "digest"), "sha256:2")
    scaled = {**DEPLOYMENT, "spec": {"replicas": 9}}
    assert len({of(), of("a"), of("b"), of(deployment=template), of("a", digest), of("a", deployment=template)}) == 6
    assert of(deployment=scaled) == of()
    assert of(model=digest) == of()


def test_a_revision_is_unknown_while_its_objects_are() -> None:
    assert of(model=None) is None
    assert of(deployment=None) is None
    assert of(deployment={"metadata": {"name": "m"}}) is None
