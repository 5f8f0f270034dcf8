"""What redaction removes, and what it must leave alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.api.routing_policy import RedactionRule
from flotilla.finetuning.redaction import redact, redact_json

ALL = tuple(RedactionRule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ann.b+c@mail.example.co.uk, please", "Write to [Email], please"),
        ("My card is 4111 1111 1111 1111.", "My card is [CreditCard]."),
        ("order 4111111111111112 of today", "order 4111111111111112 of today"),
        ("to DE89 3704 0044 0532 0130 00 by Friday", "to [IBAN] by Friday"),
        ("part GB29NWBK60161331926818 is not one", "part GB29NWBK60161331926818 is not one"),
        ("from 192.168.10.7 again", "from [IPAddress] again"),
        ("version 1.2.3.4.5 is out", "version 1.2.3.4.5 is out"),
        ("host 2001:db8:85a3::8a2e:370:7334 fails", "host [IPAddress] fails"),
        ("call +49 (30) 1234-5678 now", "call [PhoneNumber] now"),
        ("call 415-555-0132 or 030 12345678", "call [PhoneNumber] or [PhoneNumber]"),
        ("in 2024, 300 users and 12 500 000 rows", "in 2024, 300 users and 12 500 000 rows"),
        ("key sk-abcdefghijklmnop1234 leaked", "key [Secret] leaked"),
        ("Authorization: Bearer abcdefghij.klmnop-qrstuv", "Authorization: [Secret]"),
        ("password: hunter2hunter2, thanks", "[Secret], thanks"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nok", "[Secret]\nok"),
    ],
)
def test_what_has_a_form_is_replaced_and_other_numbers_stay(text: str, expected: str) -> None:
    assert redact(text, ALL) == expected


def test_only_the_rules_of_the_policy_apply() -> None:
    text = "ann@example.com at 10.0.0.1"
    assert redact(text, [RedactionRule.IP_ADDRESS]) == "ann@example.com at [IPAddress]"
    assert redact(text, []) == text


@given(st.text(max_size=300))
def test_a_second_redaction_changes_nothing(text: str) -> None:
    once = redact(text, ALL)
    assert redact(once, ALL) == once


def test_every_string_of_a_conversation_is_redacted() -> None:
    message = {
        "content": [{"type": "text", "text": "a@b.example"}],
        "tool_calls": [{"arguments": '{"to": "c@d.example"}'}],
    }
    assert "@" not in str(redact_json([message], ALL))
