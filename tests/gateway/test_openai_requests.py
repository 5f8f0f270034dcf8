"""A body is read in one way and changed in one place."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.gateway.openai.requests import FORBIDDEN_FIELDS, InvalidBody, image_problem, parse_body, rewrite_body

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = TEXT.filter(lambda key: key not in FORBIDDEN_FIELDS)
READ = {"model", "messages", "tools", "stream", "stream_options", "logprobs", "top_logprobs"}
TRAPS = st.sampled_from(['":', ": x", "a\\", '" : "', '"model":"m"'])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT | TRAPS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OTHERS = st.dictionaries(KEYS.filter(lambda key: key not in READ), VALUES, max_size=4)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", "\n:\t")])


@given(others=OTHERS, separators=SEPARATORS, escaped=st.booleans())
def test_a_body_without_repeated_keys_is_read_however_it_is_written(
    others: dict[str, Any], separators: tuple[str, str], escaped: bool
) -> None:
    body = {"model": "m", **others}
    assert parse_body(json.dumps(body, separators=separators, ensure_ascii=escaped).encode()).fields == body


@given(others=OTHERS, separators=SEPARATORS, key=TEXT, escaped=st.booleans(), deep=st.booleans())
def test_a_repeated_key_never_passes(
    others: dict[str, Any], separators: tuple[str, str], key: str, escaped: bool, deep: bool
) -> None:
    comma, colon = separators
    name = json.dumps(key)
    again = '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"' if escaped and key.isascii() else name
    twice = f"{{{name}{colon}1{comma}{again}{colon}2}}"
    inner = json.dumps({"model": "m", **others}, separators=separators)
    more = f'"x-deep"{colon}{twice}' if deep else f"{name}{colon}1{comma}{again}{colon}2"
    raw = f"{inner[:-1]}{comma}{more}}}"
    with pytest.raises(InvalidBody) as error:
        parse_body(raw.encode())
    assert error.value.code in ("duplicate_key", "forbidden_field")


@given(others=OTHERS, separators=SEPARATORS, usage=st.booleans(), logprobs=st.booleans())
def test_only_what_must_change_changes(
    others: dict[str, Any], separators: tuple[str, str], usage: bool, logprobs: bool
) -> None:
    body = {"model": "client-name", **others}
    raw = json.dumps(body, separators=separators).encode()
    out = json.loads(rewrite_body(parse_body(raw), "served/name", usage=usage, logprobs=logprobs))
    expected = {**body, "model": "served/name"}
    if usage:
        expected["stream_options"] = {"include_usage": True}
    if logprobs:
        expected |= {"logprobs": True, "top_logprobs": 2}
    assert out == expected


def test_numbers_are_passed_on_as_they_were_written() -> None:
    raw = b'{"seed": 123456789012345678901234567890, "top_p": 0.10, "model": "a"}'
    assert rewrite_body(parse_body(raw), "b") == raw.replace(b'"a"', b'"b"')


def test_a_stream_option_of_the_clients_stays() -> None:
    raw = b'{"model":"a","stream_options":{"continuous_usage_stats":true}}'
    out = json.loads(rewrite_body(parse_body(raw), "b", usage=True))
    assert out["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


@pytest.mark.parametrize("name", sorted(FORBIDDEN_FIELDS))
def test_each_forbidden_field_is_named(name: str) -> None:
    with pytest.raises(InvalidBody) as error:
        parse_body(json.dumps({"model": "m", "a": [{"b": {name: 1}}]}).encode())
    assert error.value.param == name


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("data:image/png;base64,AAAA", True),
        ("https://images.example.com/a.png?size=2#x", True),
        ("http://images.example.com:8080/a.png", True),
        ("http://169.254.169.254/latest/meta-data", False),
        ("http://[::ffff:169.254.169.254]/", False),
        ("http://2130706433/", False),
        ("http://0x7f.1/", False),
        ("http://10.0.0.1:8000/v1/models", False),
        ("http://kubernetes.default.svc/", False),
        ("http://flotilla-gateway:8000/", False),
        ("http://metadata.google.internal/", False),
        ("http://localhost./", False),
        ("http://images.example.com@10.0.0.1/", False),
        ("http://images.example.com\\@10.0.0.1/", False),
        ("http:///a.png", False),
        ("http://[", False),
    ],
)
def test_an_image_is_fetched_from_public_hosts_only(url: str, fine: bool) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert (image_problem(messages) is None) == fine
