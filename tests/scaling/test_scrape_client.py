"""Reading the engines' metrics: real texts, simulated engines, and everything that can go wrong."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from tests.support.engine_sim import running_any, running_tgi, running_vllm

from flotilla.addresses import AddressMap
from flotilla.catalog.engines import MetricName, load_profiles, metric_name
from flotilla.catalog.engines import parse as parse_profile
from flotilla.errors import InvalidSpec
from flotilla.scaling.scrape_client import EngineSample, ScrapeError, Scraper, ScrapeTarget, find, parse

GOLDEN = Path(__file__).parents[1] / "golden"
PROFILES = load_profiles()
VLLM = PROFILES["vllm"].metrics.names
TGI = PROFILES["tgi"].metrics.names


def target(url: str, names: object = VLLM, uid: str = "u") -> ScrapeTarget:
    assert isinstance(names, dict)
    host, _, port = url.removeprefix("http://").partition(":")
    return ScrapeTarget(uid, host, int(port), "/metrics", names)


def test_data_parallel_ranks_add_up_and_the_fullest_cache_counts() -> None:
    text = "\n".join(
        f'vllm:{name}{{engine="{rank}"}} {value}'
        for rank, values in enumerate(((3, 1, 0.25), (4, 2, 0.5)))
        for name, value in zip(
            ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"), values, strict=True
        )
    )
    assert parse(text.encode(), VLLM) == EngineSample(running=7, waiting=3, kv_usage=0.5)


def test_a_fresh_tgi_without_queue_metrics_is_idle() -> None:
    assert parse(b"tgi_batch_max_total_tokens 4096\n", TGI) == EngineSample(running=0, waiting=0)


QUEUE = "vllm:num_requests_running 1\nvllm:num_requests_waiting 1\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vllm:num_requests_waiting 1\n", "no running among the metrics"),
        ("nothing 1\n", "no running and waiting among the metrics"),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting 1\n", "running is nan"),
        ("vllm:num_requests_running 1\nvllm:num_requests_waiting -1\n", "waiting is -1"),
        ("vllm:num_requests_running x\n", "unreadable metrics"),
        (f"{QUEUE}vllm:prompt_tokens_total +Inf\n", "prompt_tokens is inf"),
        (
            f'{QUEUE}vllm:prompt_tokens_total{{a="1"}} 1e308\nvllm:prompt_tokens_total{{a="2"}} 1e308\n',
            "prompt_tokens is 1e+308",
        ),
        (f"{QUEUE}vllm:prompt_tokens_total 3e15\n", "prompt_tokens is 3e+15, which is no count"),
        (QUEUE + 'vllm:prompt_tokens_total{a="\\n"} 1\n' * 500, "too many in an unusual form"),
    ],
)
def test_what_cannot_be_believed_is_an_error_with_a_reason(text: str, reason: str) -> None:
    answer = parse(text.encode(), VLLM)
    assert isinstance(answer, ScrapeError)
    assert reason in answer.reason


def test_every_metric_of_vllms_profile_is_one_that_vllm_exports() -> None:
    known = (GOLDEN / "vllm-0.33-metric-families.txt").read_text()
    for candidates in VLLM.values():
        families = (re.sub("_(total|sum|count)$", "", metric_name(name).family) for name in candidates)
        assert any(family in known for family in families), candidates


def fully(text: str, names: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """By the parser of prometheus_client, which reads every line."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def meant(name: MetricName) -> list[float]:
        values = [name.value(each.labels, each.value) for each in samples if each.name == name.family]
        return [value for value in values if value is not None]

    firsts = {field: next(filter(None, map(meant, map(metric_name, names[field]))), None) for field in names}
    return {field: values for field, values in firsts.items() if values is not None}


def test_what_failed_is_told_from_what_succeeded_by_a_label() -> None:
    ends = "".join(
        f'vllm:request_success_total{{engine="0",finished_reason="{reason}"}} {count}\n'
        for reason, count in (("stop", 4), ("length", 2), ("abort", 1), ("error", 8))
    )
    queue = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
    assert parse((queue + ends).encode(), VLLM) == EngineSample(0, 0, requests_success=6, requests_failed=9)
    assert parse((queue + "vllm:request_success_total 5\n").encode(), VLLM) == EngineSample(0, 0, requests_success=5)


@pytest.mark.parametrize("name", ["", "a b", 'a{b="c"}', 'a{b=~"c",d=~"e"}', 'a{b=~".*"}', 'a{b=~""}'])
def test_a_profile_with_another_form_of_metric_is_refused(name: str) -> None:
    raw = yaml.safe_load((files("flotilla.catalog") / "data/engines/vllm.yaml").read_text())
    raw["metrics"]["names"]["requests_success"] = [name]
    with pytest.raises(
        InvalidSpec, match=r"mine\.yaml: metrics\.names\.requests_success\.0: .*is neither a metric nor"
    ):
        parse_profile("mine.yaml", yaml.safe_dump(raw))


def test_a_real_vllm_under_load_is_read_as_the_full_parser_reads_it() -> None:
    text = (GOLDEN / "vllm-0.33-under-load.txt").read_text()
    found = find(text.encode(), VLLM)
    assert found == fully(text, VLLM)
    assert set(found) == set(VLLM)
    assert parse(text.encode(), VLLM) == EngineSample(
        running=4,
        waiting=8,
        kv_usage=0.0004883110541414881,
        prompt_tokens=12,
        generation_tokens=751,
        cached_tokens=0,
        requests_success=0,
        requests_failed=0,
        rejected=0,
        first_token_seconds=0.11780786514282227,
        first_tokens=4,
        token_interval_seconds=2.920954382000673,
        token_intervals=747,
        kv_tokens=2_097_152,
        kv_requests=2048,
        kv_blocks=16_384,
        kv_block_tokens=128,
    )


@pytest.mark.parametrize("engine", ["vllm", "tgi", "sglang", "llamacpp"])
async def test_the_text_of_every_simulated_engine_is_read_as_the_full_parser_reads_it(engine: str) -> None:
    async with running_any(engine) as running:
        body = {"model": "m/x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        assert (await running.post("/v1/chat/completions", body))[0] == 200
        async with running.session.get(running.url + "/metrics") as answer:
            text = await answer.text()
    names = PROFILES[engine].metrics.names
    assert find(text.encode(), names) == fully(text, names)
    assert isinstance(parse(text.encode(), names), EngineSample)


async def test_simulated_engines_are_read_by_the_packaged_names() -> None:
    scraper = Scraper(AddressMap())
    try:
        async with running_vllm() as vllm, running_tgi() as tgi:
            body = {"model": "m/x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            assert (await vllm.post("/v1/chat/completions", body))[0] == 200
            answers = await scraper.scrape([target(vllm.url, VLLM, "v"), target(tgi.url, TGI, "t")])
            first, second = answers["v"], answers["t"]
            assert isinstance(first, EngineSample)
            assert (first.running, first.waiting, first.generation_tokens, first.requests_success) == (0, 0, 5, 1)
            assert isinstance(second, EngineSample)
            assert (second.running, second.waiting) == (0, 0)
    finally:
        await scraper.close()


@asynccontextmanager
async def server(answer: web.Response) -> AsyncIterator[str]:
    app = web.Application()

    async def handle(_: web.Request) -> web.Response:
        return answer

    app.add_routes([web.get("/metrics", handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (web.Response(status=500), "HTTP 500"),
        (web.Response(status=302, headers={"Location": "http://elsewhere/"}), "HTTP 302"),
        (web.Response(body=b"x" * (4 * 2**20 + 1)), "more than"),
    ],
)
async def test_a_pod_that_answers_wrongly_is_an_error(answer: web.Response, reason: str) -> None:
    scraper = Scraper(AddressMap())
    async with server(answer) as url:
        found = (await scraper.scrape([target(url)]))["u"]
    await scraper.close()
    assert isinstance(found, ScrapeError)
    assert reason in found.reason


async def test_a_pod_that_does_not_answer_is_an_error() -> None:
    scraper = Scraper(AddressMap())
    found = (await scraper.scrape([target("http://127.0.0.1:1")]))["u"]
    await scraper.close()
    assert isinstance(found, ScrapeError)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "a=b", "10.0.0.0/8=127.0.0.0/16", "::/0=::/0"])
def test_a_wrong_address_map_is_refused_with_an_example(text: str) -> None:
    from flotilla.errors import InvalidSpec

    with pytest.raises(InvalidSpec, match=r"10\.244\.0\.0/16=127\.244\.0\.0/16"):
        AddressMap.parse(text)


def test_addresses_are_mapped_with_their_host_bits() -> None:
    mapped = AddressMap.parse("10.244.0.0/16=127.244.0.0/16")
    assert mapped.translate("10.244.3.9") == "127.244.3.9"
    assert mapped.translate("10.1.1.1") == "10.1.1.1"
    assert AddressMap.parse("").translate("10.244.3.9") == "10.244.3.9"
