"""The Prometheus client against a real server, and against servers that behave badly."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.support.prometheus import Page, Prometheus, running_prometheus, serving

from flotilla.catalog.engines import load_profiles
from flotilla.config import OperatorConfig
from flotilla.errors import Forbidden, Incomplete, InvalidSpec, Transient
from flotilla.prometheus.client import Point, PrometheusClient, quoted, selector
from flotilla.scaling.engine_client import Aged, PodSeries, PrometheusEngines, engine_query
from flotilla.scaling.scrape_client import EngineSample, ScrapeError
from flotilla_devcluster.pki import Authority

VLLM = load_profiles()["vllm"].metrics.names
ODD = "a\"b\\c'd\n{e}|f.*$"
START = 1_700_000_000
HISTORY = "\n".join(
    [
        "# TYPE work counter",
        # 60 s apart; the process starts again after the third.
        *(f"work_total {value} {START + 60 * n}" for n, value in enumerate((0, 60, 120, 30, 90))),
        "# TYPE gap gauge",
        *(f"gap {n} {START + 60 * n}" for n in (0, 1, 9)),
    ]
)


def engine(running: float | str, waiting: float, kv: float = 0.25, rejected: int = 4) -> str:
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {kv}\n'
        f'vllm:admission_rejections_total{{engine="0"}} {rejected}\n'
        'vllm:request_success_total{engine="0",finished_reason="stop"} 5\n'
        'vllm:request_success_total{engine="0",finished_reason="error"} 1\n'
        'vllm:request_success_total{engine="0",finished_reason="abort"} 2\n'
    )


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, Page]]:
    with (
        serving(engine(3, 2), {"namespace": "a", "pod": "p-1"}) as first,
        serving(engine("NaN", 0), {"namespace": "a", "pod": "p-2"}) as broken,
        serving(engine(9, 9), {"namespace": "b", "pod": "p-1"}) as other,
        serving("odd 1\n", {"namespace": ODD}) as odd,
    ):
        yield {"first": first, "broken": broken, "other": other, "odd": odd}


@pytest.fixture(scope="module")
def server(pages: dict[str, Page], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(directory, pages=list(pages.values()), history=HISTORY) as running:
        running.until("count(up == 1) == 4")
        yield running


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[PrometheusClient]:
    made = PrometheusClient(url, **options)
    try:
        yield made
    finally:
        await made.close()


async def test_a_vector_a_scalar_and_an_empty_answer_are_told_apart(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        (found,) = await prometheus.query(selector(["vllm:num_requests_waiting"], {"namespace": ["b"]}))
        assert (found.value, found.labels["pod"]) == (9.0, "p-1")
        assert abs(found.at - time.time()) < 60
        assert [s.value for s in await prometheus.query("2 + 2")] == [4.0]
        assert [s.value for s in await prometheus.query("vector(0)")] == [0.0]
        assert await prometheus.query("no_such_metric") == ()


@pytest.mark.parametrize("promql", ["vector(0) / 0", "vector(1) / 0", "-vector(1) / 0"])
async def test_nan_and_infinity_are_unknown_and_not_zero(server: Prometheus, promql: str) -> None:
    async with client(server.url) as prometheus:
        assert [s.value for s in await prometheus.query(promql)] == [None]


async def test_results_of_another_type_are_refused_with_the_query(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        with pytest.raises(InvalidSpec, match=r"gives a matrix and not a vector or scalar: up\[1m\]"):
            await prometheus.query("up[1m]")
        with pytest.raises(InvalidSpec, match="gives a string"):
            await prometheus.query('"text"')
        with pytest.raises(InvalidSpec, match="gives a vector and not a matrix"):
            await prometheus.query_samples("up")


async def test_a_query_that_is_no_promql_is_the_askers_fault(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        with pytest.raises(InvalidSpec, match="parse error"):
            await prometheus.query("sum(")


async def test_a_range_has_no_point_where_there_is_no_data(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        (found,) = await prometheus.query_range("last_over_time(gap[30s])", start=START, end=START + 600, step_s=60)
        assert found.points == (Point(START, 0.0), Point(START + 60, 1.0), Point(START + 540, 9.0))
        with pytest.raises(InvalidSpec, match="in steps of 0 s"):
            await prometheus.query_range("gap", start=0, end=1, step_s=0)


async def test_increase_counts_across_a_restart(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        samples = await prometheus.query_samples(f"work_total[{10**6}h] @ {START + 240}")
        assert [point.value for point in samples[0].points] == [0, 60, 120, 30, 90]
        (found,) = await prometheus.query(f"increase(work_total[4m] @ {START + 240})")
        assert found.value == 210


async def test_a_label_value_stays_a_value_whatever_it_holds(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        for values in ([ODD], [ODD, "x"], ["x|y", ODD]):
            (found,) = await prometheus.query(selector(["odd"], {"namespace": values}))
            assert found.labels["namespace"] == ODD
        for wrong in (".*", 'x"} or up{job!="', "a", ODD + ".", "a|.*"):
            assert await prometheus.query(selector(["odd"], {"namespace": [wrong]})) == ()
            assert await prometheus.query(selector(["odd"], {"namespace": [wrong, "x"]})) == ()


async def test_a_query_longer_than_an_address_may_be_is_answered(server: Prometheus) -> None:
    names = [f"pod-{n}" for n in range(20_000)]
    async with client(server.url) as prometheus:
        (found,) = await prometheus.query(
            selector(["vllm:num_requests_running"], {"namespace": ["a"], "pod": ["p-1", *names]})
        )
        assert found.value == 3.0


def pod(uid: str, namespace: str, name: str) -> PodSeries:
    return PodSeries(uid, namespace, name, VLLM)


async def test_engines_are_read_by_pod_and_what_is_not_there_is_unknown(server: Prometheus) -> None:
    async with client(server.url) as prometheus:
        found = await PrometheusEngines(prometheus).read(
            [pod("1", "a", "p-1"), pod("2", "a", "p-2"), pod("3", "b", "p-1"), pod("4", "b", "gone")]
        )
    first, third = found["1"], found["3"]
    assert isinstance(first, Aged)
    assert first.sample == EngineSample(
        running=3, waiting=2, kv_usage=0.25, rejected=4, requests_success=5, requests_failed=3
    )
    assert abs(time.time() - first.at) < 60
    assert isinstance(third, Aged)
    assert third.sample.waiting == 9
    assert found["2"] == ScrapeError("running is nan, which is no count")
    assert found["4"] == ScrapeError("Prometheus has no sample of the last 45 s")


async def test_a_pod_whose_last_scrape_is_old_is_unknown_while_an_instant_query_repeats_it(tmp_path: Path) -> None:
    at = time.time() - 200
    history = "\n".join(
        f'# TYPE {name} gauge\n{name}{{namespace="a",pod="p"}} 5 {at}'
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting")
    )
    with running_prometheus(tmp_path, history=history) as old:
        async with client(old.url) as prometheus:
            assert [s.value for s in await prometheus.query("vllm:num_requests_waiting")] == [5]
            fresh = await PrometheusEngines(prometheus).read([pod("1", "a", "p")])
            assert fresh == {"1": ScrapeError("Prometheus has no sample of the last 45 s")}
            patient = (await PrometheusEngines(prometheus, fresh_s=600).read([pod("1", "a", "p")]))["1"]
            assert isinstance(patient, Aged)
            assert patient.at == pytest.approx(at, abs=0.01)


async def test_engines_of_a_prometheus_that_is_away_are_unknown() -> None:
    async with client("http://127.0.0.1:1") as prometheus:
        found = (await PrometheusEngines(prometheus).read([pod("1", "a", "p")]))["1"]
    assert isinstance(found, ScrapeError)
    assert "does not answer" in found.reason


def test_the_engine_query_names_each_metric_and_pod() -> None:
    query = engine_query([pod("1", "a", "p-1"), pod("2", "a", "p-2")], fresh_s=45)
    assert query.startswith('{__name__=~"vllm:num_requests_running|vllm:num_requests_waiting|')
    assert query.endswith(',namespace="a",pod=~"p-1|p-2"}[45000ms]')


@pytest.mark.parametrize(
    ("names", "labels"),
    [(["up or x"], {}), ([], {}), (["up"], {"pod": []}), (["up"], {"pod": [""]}), (["up"], {'pod="x",y': ["z"]})],
)
def test_a_selector_of_nothing_or_of_no_name_is_refused(names: list[str], labels: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"no metric name|needs values|no label name"):
        selector(names, labels)


def test_what_utf8_cannot_hold_is_no_label_value() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        quoted("\ud800")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def impostor(handler: Handler) -> AsyncIterator[str]:
    app = web.Application(client_max_size=10**8)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


VECTOR = {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "7"]}]}}


@pytest.mark.parametrize(
    ("status", "document", "error", "reason"),
    [
        (200, {**VECTOR, "warnings": ["store 2 is away"]}, Incomplete, "a part of the data: store 2 is away"),
        (200, {"status": "error", "error": "x"}, Transient, "not as Prometheus does"),
        (200, {"status": "success", "data": None}, Transient, "not as Prometheus does"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [{}]}}, Transient, "not as Prom"),
        (
            200,
            {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]}},
            Transient,
            "not as Prometheus does",
        ),
        (200, "<html>a login page</html>", Transient, "not as Prometheus does"),
        (204, "", Transient, "204"),
        (302, "", Transient, "redirect"),
        (401, "", Forbidden, "prometheus_bearer_token_file"),
        (403, "", Forbidden, "prometheus_bearer_token_file"),
        (404, "404 page not found", Transient, "Check the path"),
        (422, {"status": "error", "error": "too many samples"}, InvalidSpec, "too many samples"),
        (429, "", Transient, "429"),
        (500, {"status": "error", "error": "boom"}, Transient, "500 boom"),
        (503, "", Transient, "503"),
    ],
)
async def test_every_other_answer_is_an_error_that_says_why(
    status: int, document: Any, error: type[Exception], reason: str
) -> None:
    text = document if isinstance(document, str) else json.dumps(document)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={"Location": "http://127.0.0.1:1/"})

    async with impostor(answer) as url, client(url) as prometheus:
        with pytest.raises(error, match=reason):
            await prometheus.query("up")


async def test_infos_are_no_warnings() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({**VECTOR, "infos": ["might not be a counter"]})

    async with impostor(answer) as url, client(url) as prometheus:
        assert [s.value for s in await prometheus.query("up")] == [7]


@pytest.mark.parametrize(("failures", "calls"), [(1, 2), (9, 2)])
async def test_a_server_that_starts_is_asked_once_more(failures: int, calls: int) -> None:
    seen = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        return web.Response(status=503) if seen <= failures else web.json_response(VECTOR)

    async with impostor(answer) as url, client(url) as prometheus:
        if failures == 1:
            assert [s.value for s in await prometheus.query("up")] == [7]
        else:
            with pytest.raises(Transient, match="HTTP 503"):
                await prometheus.query("up")
    assert seen == calls


async def test_an_address_where_nobody_listens_is_an_error_and_no_hang() -> None:
    async with client("http://127.0.0.1:1") as prometheus:
        with pytest.raises(Transient, match="does not answer"):
            await prometheus.query("up")


async def test_servers_that_are_silent_or_drip_cost_their_time_and_block_nobody() -> None:
    released = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if "drip" in request.query["query"]:
            response = web.StreamResponse()
            await response.prepare(request)
            while not released.is_set():
                await response.write(b" ")
                await asyncio.sleep(0.01)
            return response
        await released.wait()
        return web.Response()

    async with impostor(answer) as url, client(url, timeout_s=0.3) as prometheus:
        answers = await asyncio.gather(
            *(prometheus.query(name) for name in ("drip", "silent") * 8), return_exceptions=True
        )
        released.set()
    assert all(isinstance(answer, Transient) for answer in answers), answers


async def test_an_answer_without_end_is_cut() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        block = b" " * 2**20
        while True:
            await response.write(block)

    async with impostor(answer) as url, client(url, timeout_s=60) as prometheus:
        with pytest.raises(Transient, match="more than 33554432 bytes"):
            await prometheus.query("up")


async def test_only_the_token_of_the_file_is_sent_and_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response(VECTOR)

    token = tmp_path / "token"
    async with impostor(answer) as url:
        async with client(url) as plain:
            await plain.query("up")
        async with client(url, bearer_token_file=token) as prometheus:
            with pytest.raises(Transient, match="is not readable"):
                await prometheus.query("up")
            for content in ("first\n", "second"):
                token.write_text(content)
                await prometheus.query("up")
            token.write_text("one\r\nInjected: x")
            with pytest.raises(Transient, match="does not hold one token"):
                await prometheus.query("up")
    assert seen == [None, "Bearer first", "Bearer second"]


async def test_a_certificate_is_checked_against_the_file_of_authorities(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority, stranger = Authority("prometheus-test"), Authority("stranger")
    certificate, key = authority.server("prometheus", ["127.0.0.1"]).write(tmp_path, "tls")
    (tmp_path / "ca.crt").write_bytes(authority.pair.certificate)
    (tmp_path / "stranger.crt").write_bytes(stranger.pair.certificate)
    files = {"cert_file": str(certificate), "key_file": str(key)}
    directory = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(directory, web_config={"tls_server_config": files}) as running:
        url = running.url.replace("http:", "https:")
        async with client(url, ca_file=tmp_path / "ca.crt") as prometheus:
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert [s.value for s in await prometheus.query("vector(1)")] == [1]
                        break
                    except Transient:
                        await asyncio.sleep(0.05)
        for trusted in (tmp_path / "stranger.crt", None):
            async with client(url, ca_file=trusted) as prometheus:
                with pytest.raises(Transient, match="name its authority in prometheus_ca_file"):
                    await prometheus.query("up")
        async with client(url, ca_file=tmp_path / "none.crt") as prometheus:
            with pytest.raises(Transient, match=r"none\.crt"):
                await prometheus.query("up")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://prometheus:9090/", "http://prometheus:9090"),
        ("https://host/a/b//", "https://host/a/b"),
        ("http://10.1.2.3:9090", "http://10.1.2.3:9090"),
        ("http://[::1]:9090/", "http://[::1]:9090"),
    ],
)
def test_the_address_is_normalised(given: str, used: str) -> None:
    assert OperatorConfig(prometheus_url=given).prometheus_url == used


@pytest.mark.parametrize(
    "url",
    [
        "",
        "prometheus:9090",
        "file:///etc/passwd",
        "gopher://x",
        "http://",
        "http://x:99999",
        "http://user:secret@x",
        "http://ok@evil",
        "http://x/?q=1",
        "http://x/#a",
        "http://x/?",
        "http://x y",
        "http://x\r\nHost: y",
        "http://169.254.169.254",
        "http://169.254.169.254.",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.0376.0251.0376",
        "http://169.16689662",
        "http://[::ffff:169.254.169.254]",
        "http://[fd00:ec2::254]",
        "http://[fe80::1]",
        "http://0.0.0.0",
        "http://\u0435xample",
    ],
)
def test_an_address_that_could_lead_astray_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="prometheus_url") as refused:
        OperatorConfig(prometheus_url=url)
    if "user:secret" in url:
        assert "secret" not in str(refused.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_a_token_goes_over_https_only_and_never_the_operators_own(tmp_path: Path) -> None:
    own = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    linked = tmp_path / "token"
    linked.symlink_to(own)
    for token in (own, linked):
        with pytest.raises(ValueError, match="operator's own token"):
            OperatorConfig(prometheus_url="https://x", prometheus_bearer_token_file=token)
    with pytest.raises(ValueError, match="need a prometheus_url with https"):
        OperatorConfig(prometheus_url="http://x", prometheus_bearer_token_file=tmp_path / "t")
    with pytest.raises(ValueError, match="need a prometheus_url with https"):
        OperatorConfig(prometheus_ca_file=tmp_path / "t")


def test_no_client_without_an_address() -> None:
    assert PrometheusClient.from_config(OperatorConfig()) is None


def test_an_operator_without_prometheus_loads_none_of_its_libraries() -> None:
    code = (
        "import sys, flotilla.app, flotilla.scaling.engine_client as e\n"
        "from flotilla.config import OperatorConfig\n"
        "assert e.PrometheusClient.from_config(OperatorConfig(prometheus_url='http://x')) is not None\n"
        "print(*{'dateparser', 'prometheus_api_client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
