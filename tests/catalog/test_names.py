"""Names of models as people type them."""

import pytest

from flotilla.catalog.models import load_models
from flotilla.catalog.names import hub_id

MODELS = load_models()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen3:8b", "Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama3.1:8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama 3.1 8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama3.1:8b-instruct-q4_K_M", "meta-llama/Llama-3.1-8B-Instruct"),
        ("https://huggingface.co/Qwen/Qwen3-4B/tree/main", "Qwen/Qwen3-4B"),
        ("https://huggingface.co/Qwen/Qwen3-4B?library=vllm", "Qwen/Qwen3-4B"),
        ("huggingface.co/google/gemma-3-4b-it/", "google/gemma-3-4b-it"),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M", "unsloth/Qwen3-8B-GGUF"),
        ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gemma3:4b", "google/gemma-3-4b-it"),
        ("gemma2:9b", "google/gemma-2-9b-it"),
        ("gemma-3-27b", "google/gemma-3-27b-it"),
        ("phi4", "microsoft/phi-4"),
        ("phi4-mini", "microsoft/Phi-4-mini-instruct"),
        ("gpt-oss:20b", "openai/gpt-oss-20b"),
        ("smollm2:1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        ("codellama:7b", "codellama/CodeLlama-7b-Instruct-hf"),
        ("qwen2.5-7b-instruct-awq", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
        ("bge-m3", "BAAI/bge-m3"),
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("deepseek-r1-distill-llama-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "nvidia/Llama-3.3-70B-Instruct-NVFP4"),
        ("meta-llama/Meta-Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
    ],
)
def test_what_people_type_is_understood(typed: str, meant: str) -> None:
    assert MODELS.match(typed).id == meant


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("meta-llama/Llama-3.1-8B-Instuct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-7B", "Qwen/Qwen3-8B"),
        ("mistral:7b", "mistralai/Mistral-7B-Instruct-v0.1"),
        ("mistralai/Mistral-7B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("deepseek-r1:8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5"),
        ("granite4:tiny", "ibm-granite/granite-4.0-h-tiny"),
        ("llama3", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("Qwen/Qwen2.5-7b-instuct-awq", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ],
)
def test_what_is_open_or_misspelt_is_offered(typed: str, offered: str) -> None:
    match = MODELS.match(typed)
    assert match.id == ""
    assert offered in match.near
    assert len(match.near) <= 5
    assert match.hint.startswith("Did you mean ")


@pytest.mark.parametrize("typed", ["", "  ", "s3://bucket/llama", "acme/quokka", "https://example.com/Qwen/Qwen3-8B"])
def test_nothing_is_offered_where_nothing_is_alike(typed: str) -> None:
    match = MODELS.match(typed)
    assert (match.id, match.near, match.hint) == ("", (), "")


@pytest.mark.parametrize("link", ["https://huggingface.co/a/b", "http://www.huggingface.co/a/b/blob/main/config.json"])
def test_a_link_to_the_hub_is_an_id(link: str) -> None:
    assert hub_id(link) == "a/b"


def test_what_is_no_link_stays_as_it_is() -> None:
    assert hub_id(" pvc://claim/path ") == "pvc://claim/path"
