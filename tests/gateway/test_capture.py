"""Capture in a running gateway: what is kept, what is not, and that nothing of a forbidden class is ever on disk."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import Running, document_of, eventually, running_gateway
from tests.support.hosted import HostedApi, Whole, fault
from tests.support.hosted_answers import chat, hosted_api
from tests.support.routing import SOUND

from flotilla.finetuning.capture import Selection
from flotilla.finetuning.capture_store import FolderStore, examples

PUBLIC = {"x-data-class": "public", "x-flotilla-task": "classification"}
CAPTURE: dict[str, Any] = {"classes": ["public"], "percent": 100, "to": {"claimName": "captures"}}


def policy(**capture: Any) -> dict[str, Any]:
    """The sound policy with capture of public data; nothing leaves the cluster."""
    classes = [
        {"name": "sovereign", "allowBoundaries": ["Cluster"]},
        {"name": "public", "allowBoundaries": ["Cluster", "External"], "capture": "Allowed"},
    ]
    route = {
        "split": [{"target": "small"}],
        "escalation": {"target": "medium", "signals": ["EmptyAnswer"], "maxRatePercent": 100},
    }
    rule = {"name": "classify", "match": {"tasks": ["classification"]}, "route": route}
    return {
        **SOUND,
        "targets": SOUND["targets"][:2],
        "dataPolicy": {"unknownClass": "sovereign", "classes": classes},
        "rules": [rule],
        "defaultRoute": {"split": [{"target": "small"}]},
        "capture": {**CAPTURE, **capture},
    }


@asynccontextmanager
async def capturing(
    tmp_path: Path, small: HostedApi, medium: HostedApi, **capture: Any
) -> AsyncIterator[tuple[Running, Path]]:
    folder = tmp_path / "captures"
    engines = {"qwen-small": [small], "qwen-medium": [medium]}
    async with running_gateway(
        tmp_path, document_of(policy(**capture)), engines=engines, capture_claims={"captures": folder}
    ) as gw:
        yield gw, folder


def kept(folder: Path) -> list[dict[str, Any]]:
    return list(examples(FolderStore(folder), Selection()))


def disk(folder: Path) -> bytes:
    """Every byte of every file, whatever its name."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file()) if folder.exists() else b""


async def asked(gw: Running, text: str, headers: Mapping[str, str] = PUBLIC, **fields: Any) -> tuple[int, Any, Any]:
    return await gw.chat(headers=headers, messages=[{"role": "user", "content": text}], **fields)


async def test_an_answered_request_becomes_an_example_and_an_escalated_one_a_pair(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as medium, capturing(tmp_path, small, medium) as (gw, folder):
        small.script(Whole(chat("billing")), Whole(chat("")))
        medium.script(Whole(chat("outage")))
        await asked(gw, "first ticket of ann@example.com", user="u-77")
        await asked(gw, "second ticket")
        await eventually(lambda: len(kept(folder)) == 2)
        first, second = kept(folder)
        assert [message["content"] for message in first["messages"]] == ["first ticket of [Email]", "billing"]
        assert "rejected" not in first
        assert second["messages"][-1]["content"] == "outage"
        assert second["rejected"]["role"] == "assistant"
        about = second["flotilla"]
        assert (about["target"], about["rejectedTarget"], about["signal"]) == ("medium", "small", "EmptyAnswer")
        assert (about["rule"], about["class"], about["task"]) == ("classify", "public", "classification")
        assert b"u-77" not in disk(folder)


async def test_a_stream_is_kept_as_the_text_that_the_client_got(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as medium, capturing(tmp_path, small, medium) as (gw, folder):
        status, events, _ = await gw.stream(headers=PUBLIC)
        assert status == 200
        text = "".join(
            (choice["delta"].get("content") or "")
            for event in events
            if event != "[DONE]"
            for choice in event["choices"]
        )
        await eventually(lambda: len(kept(folder)) == 1)
        assert kept(folder)[0]["messages"][-1]["content"] == text


async def test_nothing_of_a_forbidden_class_reaches_the_disk(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as medium, capturing(tmp_path, small, medium) as (gw, folder):
        small.script(*(Whole(chat(f"answer-{number}")) for number in range(5)))
        for number, headers in enumerate(
            ({}, {"x-data-class": "sovereign"}, {"x-data-class": "no-such-class"}, {**PUBLIC, "x-data-class": "Public"})
        ):
            assert (await asked(gw, f"forbidden-{number}", headers))[0] == 200
        assert (await asked(gw, "allowed"))[0] == 200
        await eventually(lambda: len(kept(folder)) == 1)
    assert b"allowed" in disk(tmp_path / "captures")
    assert b"forbidden" not in disk(tmp_path)
    assert b"answer-0" not in disk(tmp_path)


async def test_failed_requests_other_rules_and_texts_in_logs_are_not_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with (
        hosted_api() as small,
        hosted_api() as medium,
        capturing(tmp_path, small, medium, rules=["classify"]) as (gw, folder),
    ):
        small.script(fault(500), Whole(chat("default")), Whole(chat("kept")))
        assert (await asked(gw, "failed text"))[0] >= 500
        assert (await asked(gw, "of the default route", {"x-data-class": "public"}))[0] == 200
        assert (await asked(gw, "kept text"))[0] == 200
        await eventually(lambda: len(kept(folder)) == 1)
        assert b"failed text" not in disk(folder)
        assert b"default route" not in disk(folder)
    output = capfd.readouterr()
    assert "kept text" not in output.out + output.err


async def test_examples_wait_while_the_claim_cannot_be_written_and_none_is_lost_or_doubled(tmp_path: Path) -> None:
    blocked = tmp_path / "captures"
    blocked.write_text("a file where the folder should be")
    async with hosted_api() as small, hosted_api() as medium, capturing(tmp_path, small, medium) as (gw, folder):
        small.script(*(Whole(chat("billing")) for _ in range(4)))
        for number in range(4):
            assert (await asked(gw, f"ticket {number}"))[0] == 200
        await eventually(lambda: bool(gw.gateway.state.metrics.captures.values))
        blocked.unlink()
        await eventually(lambda: len(kept(folder)) == 4)
    texts = [one["messages"][0]["content"] for one in kept(tmp_path / "captures")]
    assert texts == [f"ticket {number}" for number in range(4)]


async def test_what_waits_is_written_when_the_gateway_ends(tmp_path: Path) -> None:
    async with hosted_api() as small, hosted_api() as medium, capturing(tmp_path, small, medium) as (gw, _):
        small.script(Whole(chat("billing")))
        await asked(gw, "last ticket")
    assert len(kept(tmp_path / "captures")) == 1
