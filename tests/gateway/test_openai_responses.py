"""The relay of streamed events, without sockets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hosted_answers import openai_chunks

from flotilla.gateway.openai.responses import StreamRelay


class Sent:
    """What a client gets."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def relay(sent: Sent, *, strip: bool = True, logprobs: bool = False) -> StreamRelay:
    return StreamRelay(sent, on_start=lambda: None, strip_usage=strip, strip_logprobs=logprobs)  # type: ignore[arg-type]


@given(cuts=st.lists(st.integers(1, 400), max_size=30), line=st.sampled_from([b"\n", b"\r\n"]), strip=st.booleans())
def test_events_are_the_same_however_the_network_cut_them(cuts: list[int], line: bytes, strip: bool) -> None:
    whole = b"".join(openai_chunks("One two three", usage=True))
    data = whole.replace(b"\n", line)
    sent = Sent()
    relayed = relay(sent, strip=strip)
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        if piece:
            assert relayed.feed(piece) is None
            assert sent.data.endswith((b"\n\n", b"\r\n\r\n")) or not sent.data
    expected = [_read(block) for block in whole.split(b"\n\n") if block]
    got = [_read(block) for block in sent.data.replace(b"\r\n", b"\n").split(b"\n\n") if block]
    assert got == [item for item in expected if not strip or item == b"[DONE]" or item["choices"]]
    assert relayed.done
    assert relayed.usage is not None


def _read(block: bytes) -> Any:
    text = block.removeprefix(b"data: ")
    return text if text == b"[DONE]" else {k: v for k, v in json.loads(text).items() if k != "usage"}


def test_what_comes_after_done_is_dropped() -> None:
    sent = Sent()
    relayed = relay(sent)
    relayed.feed(b'data: {"choices": []}\n\ndata: [DONE]\n\ndata: {"more": 1}\n\n')
    relayed.feed(b"data: more\n\n")
    assert sent.data.endswith(b"data: [DONE]\n\n")


def test_a_text_that_says_done_is_no_end() -> None:
    relayed = relay(Sent())
    relayed.feed(b'data: {"choices": [{"delta": {"content": "data: [DONE]"}}]}\n\n')
    assert not relayed.done


def test_token_probabilities_of_a_stream_are_taken_out() -> None:
    sent = Sent()
    relay(sent, logprobs=True).feed(
        b'data: {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": []}}]}\n\n'
    )
    assert json.loads(sent.data[6:])["choices"][0]["logprobs"] is None


def test_an_event_without_end_is_refused() -> None:
    relayed = relay(Sent())
    wrong = None
    for _ in range(10):
        wrong = wrong or relayed.feed(b"x" * 2**20)
    assert wrong == "an event without an end"


@pytest.mark.parametrize("line", ["id: 7", "event: message", ": a comment", "retry: 10"])
def test_the_data_of_an_event_is_read_whatever_other_lines_it_has(line: str) -> None:
    sent = Sent()
    relayed = relay(sent)
    answer = {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    for data in (json.dumps(answer), json.dumps(usage), "[DONE]"):
        assert relayed.feed(f"{line}\ndata: {data}\n\n".encode()) is None
    assert relayed.usage is not None
    assert (relayed.usage.prompt_tokens, relayed.usage.completion_tokens) == (3, 2)
    assert relayed.done
    assert sent.data.decode() == (
        f'{line}\ndata: {{"choices":[{{"delta":{{"content":"a"}}}}]}}\n\n{line}\ndata: [DONE]\n\n'
    )


def test_an_error_event_before_the_first_chunk_is_no_answer_whatever_its_lines() -> None:
    for error in (b'event: error\ndata: {"error": {}}\n\n', b': hi\n\ndata: {"error": {}}\n\n'):
        sent = Sent()
        assert relay(sent).feed(error) == "an error instead of a stream"
        assert not sent.data


def test_a_stream_with_its_finish_reason_is_complete_without_done() -> None:
    for finish in (b'"finish_reason":"stop"', b'"finish_reason": "length"'):
        sent = Sent()
        relayed = relay(sent)
        relayed.feed(b'data: {"choices":[{"delta":{},' + finish + b"}]}\n\n")
        assert relayed.complete()
        assert sent.data.endswith(b"data: [DONE]\n\n")
    unfinished = relay(Sent())
    unfinished.feed(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n')
    assert not unfinished.complete()
    cut = relay(Sent())
    cut.feed(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: {"cho')
    assert not cut.complete()
