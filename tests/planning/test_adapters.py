"""LoRA adapters: what is reserved, what a pod is asked for, and that adapters come and go without a new pod."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.model_deployment import ModelDeployment, ModelDeploymentSpec
from flotilla.errors import InvalidSpec
from flotilla.planning.adapters import WantedAdapter, changes
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla.render.workload import pod_template

CATALOG = load_catalog()
MODEL = "hf://Qwen/Qwen2.5-7B-Instruct"
GGUF = "hf://Qwen/Qwen2.5-7B-Instruct-GGUF"


def resolved(engine: str = "vllm", **model: Any) -> Resolved:
    source = GGUF if engine == "llamacpp" else MODEL
    wanted = ModelDeploymentSpec.model_validate(
        {"model": {"source": source, **model}, "engine": {"name": engine}, "accelerator": {"class": "nvidia-l4"}}
    )
    return resolve("m", wanted, CATALOG)


names = st.sampled_from(["a", "b", "c", "d"])
paths = st.sampled_from(["acme/one", "acme/two", "/adapters/claim/x"])


@given(st.dictionaries(names, paths), st.dictionaries(names, paths))
def test_the_changes_lead_from_what_is_loaded_to_what_is_wanted_and_touch_nothing_else(
    loaded: dict[str, str], target: dict[str, str]
) -> None:
    wanted = [WantedAdapter(name, path, "sha256:0") for name, path in target.items()]
    todo = changes(loaded, wanted)
    kept = {name: path for name, path in loaded.items() if name not in todo.unload}
    assert not set(kept) & {adapter.name for adapter in todo.load}  # an engine refuses a name that it has
    assert kept | {adapter.name: adapter.path for adapter in todo.load} == target
    assert all(target.get(name) == path for name, path in kept.items())
    assert set(todo.unload) <= set(loaded)
    assert bool(todo) == (loaded != target)
    assert not changes(target, wanted)


adapter_lists = st.lists(names, unique=True, max_size=4).map(
    lambda chosen: [{"name": name, "source": f"hf://acme/{name}"} for name in chosen]
)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@given(before=adapter_lists, after=adapter_lists)
def test_adapters_come_and_go_without_another_pod_template(
    engine: str, before: list[dict[str, str]], after: list[dict[str, str]]
) -> None:
    slots = {"maxAdapters": 4, "claimNames": ["tuned"]}
    later = [*after, {"name": "tuned", "source": "pvc://tuned/v1"}][:4]
    hashes = {template(engine, adapters, slots) for adapters in (before, later)}
    assert len(hashes) == 1


def template(engine: str, adapters: list[dict[str, str]], lora: dict[str, Any] | None) -> str:
    model: dict[str, Any] = {"source": MODEL, "adapters": adapters, **({"lora": lora} if lora else {})}
    wanted = {"model": model, "engine": {"name": engine}, "accelerator": {"class": "nvidia-l4"}}
    md = ModelDeployment.model_validate({"metadata": {"name": "m", "namespace": "n", "uid": "u"}, "spec": wanted})
    return pod_template(md, resolve("m", md.spec, CATALOG)).hash


def test_without_slots_only_the_first_adapter_changes_the_pods() -> None:
    one, two = ({"name": name, "source": f"hf://acme/{name}"} for name in ("one", "two"))
    none, first, second = (template("vllm", adapters, None) for adapters in ([], [one], [one, two]))
    assert none != first == second


def test_an_engine_that_reads_adapters_at_its_start_has_them_in_its_arguments() -> None:
    adapters = [{"name": "a", "source": "pvc://tuned/a.gguf"}, {"name": "b", "source": "pvc://tuned/b.gguf"}]
    plan = resolved("llamacpp", adapters=adapters)
    assert plan.adapters.runtime is None
    argv = list(plan.argv)
    assert argv[argv.index("--lora-init-without-apply") :][:5] == [
        "--lora-init-without-apply",
        "--lora",
        "/adapters/tuned/a.gguf",
        "--lora",
        "/adapters/tuned/b.gguf",
    ]


@pytest.mark.parametrize(
    ("engine", "model", "field", "said"),
    [
        (
            "vllm",
            {"lora": {"maxAdapters": 1}, "adapters": [{"name": n, "source": f"hf://a/{n}"} for n in "ab"]},
            "spec.model.lora.maxAdapters",
            "2 adapters are more than the 1 slots",
        ),
        (
            "vllm",
            {"lora": {"maxRank": 8}, "adapters": [{"name": "a", "source": "hf://a/a", "rank": 9}]},
            "spec.model.lora.maxRank",
            "rank 9 is more than spec.model.lora.maxRank, 8",
        ),
        ("sglang", {"lora": {"maxRank": 512}}, "spec.model.lora.maxRank", "more than the 256 that sglang can reserve"),
        (
            "llamacpp",
            {"adapters": [{"name": "a", "source": "hf://a/a"}]},
            "spec.model.adapters[0].source",
            "llamacpp cannot read an adapter from hf://. Use one of pvc://.",
        ),
    ],
)
def test_what_cannot_be_reserved_or_read_is_refused_with_the_remedy(
    engine: str, model: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidSpec, match=said.replace("[", r"\[")) as refused:
        resolved(engine, **model)
    assert refused.value.field == field


def test_the_digest_follows_the_source() -> None:
    def digest(source: str) -> str:
        return resolved(adapters=[{"name": "a", "source": source}]).adapters.wanted[0].digest

    assert digest("hf://acme/one") == digest("hf://acme/one") != digest("hf://acme/two")
