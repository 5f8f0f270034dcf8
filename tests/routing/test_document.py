"""The file between operator and gateway: exact in its hash, open to older writers, closed to what is not known."""

from typing import Any

import orjson
import pytest
from tests.support.routing import FACTS, SOUND, compile_document, resource
from tests.support.schema import REMOVED, Path, put
from tests.support.whole import ROUTING_POLICY

from flotilla.api.types import SecretKeyRef
from flotilla.errors import InvalidSpec
from flotilla.routing.document import DeploymentFacts, facts_of, key_file, load_document

DOCUMENT = compile_document("team", [resource(SOUND), resource(ROUTING_POLICY["spec"], name="whole")], FACTS)
CONTENT = orjson.loads(DOCUMENT.text)


def text(*changes: tuple[Path, Any]) -> bytes:
    content = CONTENT
    for path, value in changes:
        content = put(content, path, value)
    return orjson.dumps(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("surprise",), 1),
        (("format",), 2),
        (("policies", 0, "surprise"), {"deny": "all"}),
        (("policies", 0, "targets", 0, "cluster", "surprise"), "x"),
        (("policies", 1, "rules", 0, "match", "weekday"), "Sunday"),
        (("policies", 1, "rules", 0, "route", "escalation", "signals"), ["Boredom"]),
        (("policies", 0, "classes", 0, "allowed"), "all"),
    ],
)
def test_what_a_release_does_not_know_is_refused_and_never_ignored(path: Path, value: Any) -> None:
    with pytest.raises(InvalidSpec, match="cannot be served because of") as refused:
        load_document(text((path, value)))
    assert refused.value.field


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff"])
def test_what_is_no_document_is_refused(junk: bytes) -> None:
    with pytest.raises(InvalidSpec):
        load_document(junk)


def test_what_an_older_release_did_not_write_yet_has_its_default_and_the_files_own_hash() -> None:
    older = text(
        (("policies", 0, "hold"), REMOVED),
        (("policies", 0, "limits"), REMOVED),
        (("policies", 1, "rules", 0, "route", "timeouts", "idleSeconds"), REMOVED),
    )
    read = load_document(older)
    assert read.policies[0].hold.max_wait_seconds == 120
    assert (read.text, read.hash != DOCUMENT.hash) == (older, True)
    assert load_document(DOCUMENT.text).hash == DOCUMENT.hash


def test_a_model_that_does_not_exist_yet_is_a_target_by_its_name() -> None:
    target = compile_document("team", [resource(SOUND)], {}).policies[0].target["small"]
    assert (target.served_model, target.capabilities.context_length) == ("qwen-small", None)


def test_a_target_knows_its_adapter_and_the_models_context_length_unless_the_policy_says_other() -> None:
    spec = put(SOUND, ("targets", 0, "modelDeploymentRef", "adapter"), "triage")
    spec = put(spec, ("targets", 1, "capabilities"), {"contextLength": 512, "tools": "Unsupported"})
    targets = compile_document("team", [resource(spec)], FACTS).policies[0].target
    assert (targets["small"].served_model, targets["small"].capabilities.context_length) == ("triage", 8192)
    assert (targets["medium"].served_model, targets["medium"].capabilities.context_length) == ("qwen2.5-7b", 512)
    assert targets["medium"].capabilities.tools == "Unsupported"


@pytest.mark.parametrize(
    ("engine", "adapter", "model", "scales"),
    [
        ("vllm", "triage", "triage", None),
        ("sglang", "triage", "qwen:triage", None),
        ("llamacpp", "triage", "qwen", (0, 1)),
        ("llamacpp", None, "qwen", (0, 0)),
        ("vllm", None, "qwen", None),
    ],
)
def test_an_adapter_is_asked_for_as_its_engine_wants_it(
    engine: str, adapter: str | None, model: str, scales: tuple[int, ...] | None
) -> None:
    facts = {"qwen-small": DeploymentFacts("qwen-small", "qwen", engine, adapters=("billing", "triage"))}
    reference = {"name": "qwen-small", **({"adapter": adapter} if adapter else {})}
    spec = put(SOUND, ("targets", 0, "modelDeploymentRef"), reference)
    cluster = compile_document("team", [resource(spec)], facts).policies[0].target["small"].cluster
    assert cluster is not None
    assert (cluster.served_model, cluster.lora_scales) == (model, scales)


def test_the_revision_in_headers_follows_the_meaning_and_not_the_generation() -> None:
    one, two = (compile_document("team", [resource(SOUND, generation=g)], FACTS).policies[0] for g in (1, 2))
    assert one.revision == two.revision
    other = compile_document("team", [resource({**SOUND, "rules": []})], FACTS).policies[0]
    assert other.revision != one.revision


def test_key_files_of_two_keys_are_two_and_each_fits_a_file_name() -> None:
    long = "a" * 253
    keys = [SecretKeyRef(name=name, key=key) for name in ("a", "a.b", long) for key in ("b", "b.c", long)]
    paths = {key_file(key) for key in keys}
    assert len(paths) == len(keys)
    assert all(len(part) < 100 and ".." not in part for path in paths for part in path.split("/"))


def test_facts_of_a_model_come_from_its_spec_and_from_its_fit() -> None:
    live: dict[str, Any] = {
        "metadata": {"name": "m"},
        "spec": {"model": {"servedName": "qwen", "adapters": [{"name": "triage"}]}, "engine": {"name": "vllm"}},
        "status": {"fit": {"contextLength": 4096}},
    }
    facts = facts_of(live)
    assert (facts.served_name, facts.adapters, facts.context_length) == ("qwen", ("triage",), 4096)
    assert facts_of(put(live, ("spec", "model", "contextLength"), 2048)).context_length == 2048
    assert facts_of({"metadata": {"name": "m"}, "spec": {}}).served_name == "m"
