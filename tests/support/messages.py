"""Reads what a client of Anthropic's Messages API is answered, by the types of Anthropic's own client."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.support.sdk import check_event, check_message


def message_events(text: str | bytes) -> list[dict[str, Any]]:
    """The data of all events; the name of each is its type, and each is of the client's types but pings and errors."""
    found = []
    for block in (text if isinstance(text, str) else text.decode()).split("\n\n"):
        if block:
            name, _, data = block.partition("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            if event["type"] not in ("ping", "error"):
                check_event(event)
            found.append(event)
    return found


def put_together(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that a whole stream tells; one block is open at a time, and nothing follows the end."""
    message: dict[str, Any] = {}
    arguments = ""
    opened = ended = False
    for event in events:
        assert not ended
        match event["type"]:
            case "message_start":
                assert not message
                message = dict(event["message"])
            case "content_block_start":
                assert (opened, event["index"]) == (False, len(message["content"]))
                message["content"].append(dict(event["content_block"]))
                opened, arguments = True, ""
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                assert opened
                if delta["type"] == "text_delta":
                    block["text"] += delta["text"]
                else:
                    arguments += delta["partial_json"]
            case "content_block_stop":
                if arguments:
                    message["content"][event["index"]]["input"] = json.loads(arguments)
                opened = False
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
            case "message_stop":
                ended = True
    assert (ended, opened) == (True, False)
    check_message(message)
    return message
