"""The table of accepted fields: against the providers' own SDKs, and what it makes of a request for an engine."""

from typing import Any, get_type_hints

import pytest
from groq.types.chat.completion_create_params import CompletionCreateParams as GroqRequest
from hypothesis import given
from hypothesis import strategies as st
from mistralai.client.models.chatcompletionrequest import ChatCompletionRequest as MistralRequest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as OpenAIRequest

from flotilla.catalog.providers import KNOWN_FIELDS, FieldRules, load_providers, provider_of, rules_for

HELLO = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
OPENAI = "https://api.openai.com/v1"
HOSTS = {
    "AzureOpenAI": "https://res.openai.azure.com/openai/v1",
    "Mistral": "https://api.mistral.ai/v1",
    "Groq": "https://api.groq.com/openai/v1",
    "Together": "https://api.together.xyz/v1",
    "Gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "VertexAI": "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi",
    "XAI": "https://api.x.ai/v1",
    "DeepSeek": "https://api.deepseek.com/v1",
    "OpenAI": OPENAI,
    "Compatible": "https://llm.example.com/v1",
}
TOGETHER = """messages model chat_template_kwargs compliance context_length_exceeded_behavior echo frequency_penalty
    function_call logit_bias logprobs max_tokens min_p n presence_penalty reasoning reasoning_effort repetition_penalty
    response_format safety_model seed stop temperature tool_choice tools top_k top_p stream"""
"""Of together 3.1.1, whose own dependencies do not fit ours: types/chat/completion_create_params.py."""


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "support", "messages": HELLO, **fields}


def rules(host: str, model: str) -> FieldRules:
    return rules_for("OpenAI", HOSTS[host], model)


@pytest.mark.parametrize(
    ("provider", "theirs", "not_served"),
    [
        ("OpenAI", set(get_type_hints(OpenAIRequest)), set()),
        ("Mistral", set(MistralRequest.model_fields), set()),
        # The SDK has fields that its own documentation says are refused, and lacks stream_options.
        ("Groq", set(GroqRequest.__annotations__) | {"stream_options"}, {"logprobs", "top_logprobs", "logit_bias"}),
        ("Together", set(TOGETHER.split()), set()),
    ],
)
def test_the_accepted_fields_are_those_of_the_providers_sdk(
    provider: str, theirs: set[str], not_served: set[str]
) -> None:
    assert set(load_providers()[provider].accepts or ()) == theirs - not_served


@pytest.mark.parametrize(("name", "url"), HOSTS.items())
def test_a_provider_is_known_by_its_host(name: str, url: str) -> None:
    assert provider_of("OpenAI", url).name == name


def test_a_host_that_only_ends_alike_is_another() -> None:
    assert provider_of("OpenAI", "https://notapi.openai.com.example.net/v1").name == "Compatible"


@pytest.mark.parametrize("model", ["gpt-5-mini", "gpt-5", "o3", "o4-mini", "gpt-5.2", "openai/gpt-5-nano"])
def test_a_reasoning_model_of_openai_gets_no_temperature_and_the_newer_bound(model: str) -> None:
    found = rules("OpenAI", model).conform(
        request(max_tokens=50, temperature=0, top_p=1, logprobs=True, tools=TOOLS, response_format=SCHEMA, stop=["x"])
    )
    assert found.fields == request(max_completion_tokens=50, top_p=1, tools=TOOLS, response_format=SCHEMA)
    assert found.dropped == ("logprobs", "stop", "temperature")


def test_without_reasoning_the_newer_models_take_a_temperature() -> None:
    asked = request(temperature=0, reasoning_effort="none")
    assert rules("OpenAI", "gpt-5.1").conform(asked).fields == asked


def test_a_chat_model_of_the_same_generation_keeps_its_temperature() -> None:
    assert rules("OpenAI", "gpt-5-chat-latest").conform(request(temperature=0.2)).dropped == ()


def test_the_bound_of_both_names_is_the_newer_one() -> None:
    found = rules("OpenAI", "gpt-4o").conform(request(max_tokens=10, max_completion_tokens=20))
    assert found.fields == request(max_completion_tokens=20)
    found = rules("Mistral", "mistral-small").conform(request(max_tokens=10, max_completion_tokens=None))
    assert found.fields == request(max_tokens=10)


def test_fields_of_engines_are_left_out_or_translated() -> None:
    found = rules("OpenAI", "gpt-4o").conform(
        request(top_k=5, min_p=0.1, guided_json={"type": "object"}, chat_template_kwargs={"a": 1})
    )
    assert found.fields == request(response_format=SCHEMA)
    assert found.dropped == ("chat_template_kwargs", "min_p", "top_k")
    structured = rules("Groq", "llama-3.3-70b").conform(request(structured_outputs={"json": {"type": "object"}}))
    assert structured.fields == request(response_format=SCHEMA)
    regex = rules("OpenAI", "gpt-4o").conform(request(structured_outputs={"regex": "a+"}))
    assert (regex.fields, regex.dropped) == (request(), ("structured_outputs",))


def test_fields_of_messages_that_are_refused_are_left_out_and_empty_ones_are_not_named() -> None:
    history: list[dict[str, Any]] = [
        {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "annotations": [], "refusal": None}
    ]
    found = rules("OpenAI", "gpt-4o").conform({"model": "m", "messages": history})
    assert found.fields["messages"] == [{"role": "assistant", "content": "Hi", "refusal": None}]
    assert found.dropped == ("messages.reasoning_content",)


def test_mistral_gets_no_stream_options_and_its_own_name_of_the_seed() -> None:
    found = rules("Mistral", "mistral-small").conform(
        request(stream=True, stream_options={"include_usage": True}, seed=7, logit_bias={"1": 1})
    )
    assert found.fields == request(stream=True, random_seed=7)
    assert found.dropped == ("logit_bias",)


def test_a_service_tier_is_sent_only_if_the_policy_has_a_price_for_it() -> None:
    asked = request(service_tier="priority")
    refused = rules("OpenAI", "gpt-4o").conform(asked)
    assert (refused.fields, refused.dropped) == (request(), ("service_tier",))
    permitted = rules_for("OpenAI", OPENAI, "gpt-4o", frozenset({"priority"}))
    assert permitted.conform(asked).fields == asked
    assert rules("OpenAI", "gpt-4o").conform(request(service_tier="auto")).dropped == ()


def test_an_unknown_api_gets_every_field_and_a_known_model_there_its_own_rules() -> None:
    asked = request(temperature=0, max_tokens=5, top_k=3, anything={"a": 1})
    assert rules("Compatible", "llama-3.1-8b").conform(asked).fields == asked
    assert rules("Compatible", "gpt-5-mini").conform(asked).dropped == ("temperature",)


NAMES = st.sampled_from(sorted(KNOWN_FIELDS - {"messages", "model"}))
VALUES = st.one_of(st.none(), st.integers(0, 2), st.text(max_size=3), st.just({"json": {"type": "object"}}))


@given(
    host=st.sampled_from(sorted(HOSTS)),
    model=st.sampled_from(["gpt-5-mini", "gpt-4o", "mistral-small", "grok-4", "gemini-3-flash", "llama-3.1-8b"]),
    fields=st.dictionaries(NAMES, VALUES, max_size=8),
)
def test_a_conformed_request_has_accepted_fields_only_and_conforms_itself(
    host: str, model: str, fields: dict[str, Any]
) -> None:
    table = rules(host, model)
    asked = request(**fields)
    found = table.conform(asked)
    if table.accepts is not None:
        assert set(found.fields) <= table.accepts
    if table.family is not None and not table.family.keep_when:
        assert not set(table.family.refuses) & set(found.fields)
    assert (found.fields["model"], found.fields["messages"]) == ("support", HELLO)
    assert table.conform(found.fields) == type(found)(found.fields)
    assert asked == request(**fields)  # the request of the next target is made of the same
    assert set(found.dropped) <= set(asked)
