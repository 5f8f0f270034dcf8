"""What each provider's documented answer counts, and what it costs: one case each, with its source."""

from decimal import Decimal
from typing import Any

import pytest

from flotilla.api.routing_policy import Price
from flotilla.gateway.anthropic.outbound_responses import completion_usage
from flotilla.routing.budgets import Usage, cost, usage_of

DOCUMENTED: dict[str, tuple[dict[str, Any], Usage]] = {
    # Reasoning is within the completion. https://platform.openai.com/docs/guides/reasoning
    "OpenAI, reasoning": (
        {
            "prompt_tokens": 75,
            "completion_tokens": 1186,
            "total_tokens": 1261,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 1024, "audio_tokens": 0},
        },
        Usage(75, 1186),
    ),
    # https://platform.openai.com/docs/guides/prompt-caching; cache_write_tokens: openai 3.57, CompletionUsage
    "OpenAI, cached": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "cache_write_tokens": 50},
        },
        Usage(2006, 300, 1920, 50),
    ),
    # https://platform.openai.com/docs/guides/audio: sound and text are among the totals.
    "OpenAI, sound": (
        {
            "prompt_tokens": 270,
            "completion_tokens": 164,
            "total_tokens": 434,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 251},
            "completion_tokens_details": {"audio_tokens": 126, "reasoning_tokens": 0},
        },
        Usage(270, 164, audio_tokens=251, audio_output_tokens=126),
    ),
    # Thoughts are in the total only. https://github.com/mozilla-ai/any-llm/issues/1290
    "Gemini": ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}, Usage(20, 603)),
    # Reasoning is beside the completion. https://docs.x.ai/docs/guides/reasoning
    "xAI": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 94, "audio_tokens": 0},
        },
        Usage(32, 103, 6),
    ),
    # https://docs.mistral.ai/api (mistralai 3.7, UsageInfo)
    "Mistral": (
        {"prompt_tokens": 16, "completion_tokens": 34, "total_tokens": 50, "service_tier": "priority"},
        Usage(16, 34, service_tier="priority"),
    ),
    # https://console.groq.com/docs/prompt-caching (groq 1.7, CompletionUsage)
    "Groq": (
        {
            "queue_time": 0.026,
            "prompt_tokens": 4641,
            "prompt_time": 0.009,
            "completion_tokens": 1817,
            "total_tokens": 6458,
            "prompt_tokens_details": {"cached_tokens": 4608},
        },
        Usage(4641, 1817, 4608),
    ),
    # https://docs.together.ai/reference/chat-completions-1
    "Together": ({"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32}, Usage(24, 8)),
    # https://api-docs.deepseek.com/guides/kv_cache
    "DeepSeek": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
            "completion_tokens_details": {"reasoning_tokens": 15},
        },
        Usage(100, 20, 64),
    ),
    # https://docs.claude.com/en/docs/build-with-claude/prompt-caching: cached tokens are beside input_tokens.
    "Anthropic": (
        completion_usage(
            {
                "input_tokens": 2048,
                "cache_read_input_tokens": 1800,
                "cache_creation_input_tokens": 248,
                "output_tokens": 503,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "service_tier": "standard",
            }
        ),
        Usage(4096, 503, 1800, 248, 100, service_tier="standard"),
    ),
    # vLLM 0.33, with --enable-prompt-tokens-details
    "vLLM": (
        {
            "prompt_tokens": 40,
            "total_tokens": 60,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 32},
        },
        Usage(40, 20, 32),
    ),
}


@pytest.mark.parametrize(("counted", "read"), DOCUMENTED.values(), ids=DOCUMENTED)
def test_a_documented_usage_is_read(counted: dict[str, Any], read: Usage) -> None:
    assert usage_of(counted) == read


PRICE = Price(
    input_per_m_tok="3",
    output_per_m_tok="15",
    cached_input_per_m_tok="0.3",
    audio_input_per_m_tok="40",
    audio_output_per_m_tok="80",
)


@pytest.mark.parametrize(
    ("case", "usd"),
    [
        # 2,048 at 3, 1,800 at 0.30, 148 at 3.75, 100 at 6, 503 at 15 dollars per million
        ("Anthropic", "0.015384"),
        # 19 at 3, 251 at 40, 38 at 15, 126 at 80 dollars per million
        ("OpenAI, sound", "0.020747"),
        # All that is not of the prompt at the price of output.
        ("Gemini", "0.009105"),
    ],
)
def test_a_documented_usage_costs_what_the_price_list_says(case: str, usd: str) -> None:
    assert cost(DOCUMENTED[case][1], PRICE) == Decimal(usd)


def test_a_written_token_costs_its_own_price_and_otherwise_what_the_provider_charges() -> None:
    written = Usage(1_000_000, 0, 0, 1_000_000)
    assert cost(written, PRICE, Decimal(1)) == 3
    assert cost(written, PRICE) == Decimal("3.75")
    assert cost(written, PRICE.model_copy(update={"cache_write_input_per_m_tok": "4"})) == 4
