"""Cost metrics as a scrape shows them."""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal

from flotilla.catalog.accelerators import load_accelerators
from flotilla.console.metrics import exposition
from flotilla.cost.gpu_prices import CostBasis, Rate
from flotilla.cost.hosted_prices import MEASURED, Comparator, HostedPrice, Terms, Tiers, TokenPrices, TokenWeights
from flotilla.cost.ledger import Account, Counters, Ledger, PodObservation, dump_account, load_account
from flotilla.cost.metrics import DeploymentView, FleetFamilies
from flotilla_devcluster.stack import samples, value

D = Decimal
Found = dict[str, list[tuple[dict[str, str], Decimal]]]
HOSTED = HostedPrice("openai", "mini", "test", Tiers(D(1), ((1000, D(3)),)), Tiers(D(10)), Tiers(D("0.5")))
L4 = load_accelerators()["nvidia-l4"]


def view(**changes: object) -> DeploymentView:
    values: dict[str, object] = {
        "namespace": "ns",
        "name": "m",
        "model": "hf://a/b",
        "engine": "vllm",
        "team": "legal",
        "gpu_type": "nvidia-l4",
        "basis": CostBasis(L4, comparators=(Comparator(HOSTED),), tokens_per_second=D(1000)),
        "replica_usd_per_hour": D(2),
        "account": None,
        "min_replicas": 1,
        "max_replicas": 4,
        "desired_replicas": 1,
        "ready_replicas": 1,
        "waiting": None,
        "running": None,
        **changes,
    }
    return DeploymentView(**values)  # type: ignore[arg-type]


def exposed(
    *views: DeploymentView,
    prices: Iterable[Rate] = (),
    catalog_version: str = "",
    unpriced: Mapping[str, int] | None = None,
    free: Mapping[str, Decimal] | None = None,
) -> Found:
    families = FleetFamilies()
    for one in views:
        families.add(one)
    families.cost.add_prices(prices, catalog_version)
    families.cost.add_unpriced(unpriced or {})
    families.cost.add_unallocated(free or {})
    return samples(exposition(families.all()).decode())


def hour(
    *, requests: float, usd: str | None = "2", state: str = "serving", comparator: Comparator | None = None
) -> Account:
    """An hour of one pod: 1000 tokens in (200 of them cached) and 100 out for each request."""
    ledger = Ledger(gap_s=1e9)
    for now, done in ((0.0, 0.0), (3600.0, requests)):
        counters = Counters(prompt=1000 * done, generated=100 * done, cached=200 * done, requests=done)
        pod = PodObservation("u", 0, state, D(1), counters, None if usd is None else D(usd), "spot", "catalog")  # type: ignore[arg-type]
        ledger.observe("k", [pod], now=now, comparators=(comparator or Comparator(HOSTED),))
    return ledger.accounts["k"]


def test_what_is_unknown_has_no_series() -> None:
    found = exposed(view())
    assert set(found) == {
        "flotilla_desired_replicas", "flotilla_ready_replicas", "flotilla_min_replicas", "flotilla_max_replicas",
        "flotilla_deployment_info", "flotilla_unpriced_total",
    }  # fmt: skip
    assert set(exposed()) == {"flotilla_unpriced_total"}


def test_gpus_that_no_pod_holds_have_a_price_by_class() -> None:
    found = exposed(free={"nvidia-l4": D("1.6"), "nvidia-h100": D(0)})
    rates = [
        value(found, "flotilla_unallocated_gpu_cost_usd_per_hour", gpu_type=t) for t in ("nvidia-l4", "nvidia-h100")
    ]
    assert rates == [D("1.6"), 0]


def test_a_resource_that_waits_for_its_owner_says_so() -> None:
    assert [value(exposed(view(stalled=stalled)), "flotilla_stalled") for stalled in (True, False, None)] == [
        1,
        0,
        None,
    ]


def test_a_deployment_without_traffic_costs_and_has_no_unit_cost() -> None:
    found = exposed(view(account=hour(requests=0, state="idle")))
    assert value(found, "flotilla_deployment_cost_usd_total", state="idle") == 2
    assert value(found, "flotilla_deployment_active_ratio", window="1h") == 0
    for name in (
        "deployment_cost_usd_per_million_tokens", "deployment_cost_usd_per_request", "cost_ratio", "savings_usd",
        "break_even_tasks_per_day", "break_even_utilization_ratio",
    ):  # fmt: skip
        assert f"flotilla_{name}" not in found


def test_without_a_price_there_are_tokens_and_gpu_hours_and_no_dollars() -> None:
    found = exposed(view(account=hour(requests=100, usd=None), replica_usd_per_hour=None))
    assert value(found, "flotilla_deployment_gpu_hours_total", gpu_type="nvidia-l4", capacity_type="spot") == 1
    assert value(found, "flotilla_deployment_tokens_total", token_type="output") == 10_000
    assert not [name for name in found if "cost_usd" in name and "hosted" not in name]
    assert "flotilla_savings_usd" not in found


def test_errors_are_counted_where_the_engine_counts_them() -> None:
    ledger = Ledger()
    for now, failed in ((0.0, 0.0), (10.0, 3.0), (20.0, 1.0)):
        pod = PodObservation("u", 0, "serving", D(1), Counters(requests=5, failed=failed), D(1))
        ledger.observe("k", [pod], now=now)
    account = load_account(dump_account(ledger.accounts["k"]))
    found = exposed(view(account=account))
    assert value(found, "flotilla_deployment_requests_total", outcome="error") == 4, "the engine began again at 1"
    restarted = value(found, "flotilla_deployment_requests_total", outcome="success")
    assert restarted == 10


def test_an_hour_of_work_in_dollars() -> None:
    found = exposed(view(account=hour(requests=1000)), prices=())
    assert value(found, "flotilla_deployment_cost_usd_per_hour", capacity_type="spot", price_source="catalog") == 2
    assert value(found, "flotilla_deployment_tokens_total", token_type="cached_input") == 200_000
    assert value(found, "flotilla_deployment_tokens_total", token_type="input") == 800_000
    assert value(found, "flotilla_deployment_requests_total", outcome="success") == 1000
    assert value(found, "flotilla_deployment_requests_total", outcome="error") is None, "this engine counts none"
    assert value(found, "flotilla_deployment_cost_usd_per_request", window="1h") == D("0.002")
    assert "flotilla_deployment_token_weight_ratio" not in found, "the measured ones are in the rules"
    basis = CostBasis(L4, weights=TokenWeights(D(4), D("0.1")))
    told = exposed(view(basis=basis))
    weights = [value(told, "flotilla_deployment_token_weight_ratio", token_type=t) for t in MEASURED.by_token_type]
    assert weights == [1, D("0.1"), 4]
    blended = value(found, "flotilla_deployment_cost_usd_per_million_tokens", token_type="blended", window="24h")
    assert blended is not None
    assert round(blended, 6) == round(D(2) / D("1.1"), 6)
    rates = {
        kind: value(found, "flotilla_deployment_cost_usd_per_million_tokens", token_type=kind, window="1h") or D(0)
        for kind in ("input", "cached_input", "output")
    }
    assert round(rates["input"] * D("0.8") + rates["cached_input"] * D("0.2") + rates["output"] * D("0.1"), 6) == 2
    hosted = D("0.8") * 1 + D("0.2") * D("0.5") + D("0.1") * 10
    assert value(found, "flotilla_hosted_equivalent_cost_usd_total", comparator="openai/mini") == hosted
    assert value(found, "flotilla_savings_usd", comparator="openai/mini", window="1h") == hosted - 2
    assert round(value(found, "flotilla_cost_ratio", window="1h") or 0, 4) == round(hosted / 2, 4)
    assert value(found, "flotilla_deployment_active_ratio", window="1h") == 1
    saturation = value(found, "flotilla_deployment_saturation_ratio", window="24h")
    assert round(saturation or 0, 6) == round(D(100_000) / 3_600_000, 6)
    assert round(value(found, "flotilla_break_even_tasks_per_day") or 0) == round(48 / (hosted / 1000))
    load = value(found, "flotilla_break_even_utilization_ratio")
    assert round(load or 0, 6) == round(2 / hosted * D(100_000) / 3_600_000, 6)


def test_where_a_replica_can_never_earn_its_price_the_break_even_is_infinite() -> None:
    slow = CostBasis(L4, comparators=(Comparator(HOSTED),), tokens_per_second=D("0.01"))
    found = exposed(view(basis=slow, account=hour(requests=1000)))
    assert value(found, "flotilla_break_even_tasks_per_day") == D("Infinity")


def test_a_comparators_price_is_one_series_for_the_fleet_and_says_its_mode() -> None:
    batch = Comparator(HOSTED, Terms(), batch=True)
    basis = CostBasis(L4, comparators=(batch,))
    views = [view(name=name, basis=basis, account=hour(requests=1, comparator=batch)) for name in "ab"]
    found = exposed(*views)["flotilla_hosted_price_usd_per_million_tokens"]
    assert len(found) == 3
    assert found[0][0] | {"token_type": ""} == {
        "comparator": "openai/mini@batch", "provider": "openai", "model": "mini", "token_type": "", "mode": "batch"
    }  # fmt: skip


def test_prices_in_force_have_a_source_a_date_and_a_catalogues_version() -> None:
    rates = [
        Rate(D(1), "catalog", "contract", date(2026, 11, 1)),
        Rate(D(2), "catalog", "contract", date(2026, 11, 1)),
        Rate(D(3), "resource", "spec.cost.gpuHourlyPrice"),
    ]
    found = exposed(prices=rates, catalog_version="abcd1234", unpriced={"gpu_unknown": 3})
    assert len(found["flotilla_price_info"]) == 2
    assert value(found, "flotilla_price_info", source="catalog", as_of="2026-11-01", catalog_version="abcd1234") == 1
    assert value(found, "flotilla_price_as_of_timestamp_seconds", source="catalog") == 1_793_491_200
    assert value(found, "flotilla_price_as_of_timestamp_seconds", source="resource") is None
    assert value(found, "flotilla_unpriced_total", reason="gpu_unknown") == 3
    assert value(found, "flotilla_unpriced_total", reason="model_unknown") == 0


def test_team_and_budget_are_those_of_the_resource() -> None:
    found = exposed(view(basis=CostBasis(L4, budget_usd_per_month=D(4000))))
    assert value(found, "flotilla_deployment_info", team="legal", model="hf://a/b", engine="vllm") == 1
    assert value(found, "flotilla_deployment_budget_usd_per_month", modeldeployment="m") == 4000


def test_series_vanish_with_their_deployment() -> None:
    assert value(exposed(view(account=hour(requests=1))), "flotilla_deployment_cost_usd_total") is not None
    assert "flotilla_deployment_cost_usd_total" not in exposed()


def test_a_tier_is_chosen_by_the_mean_request_and_not_by_the_sum() -> None:
    assert HOSTED.at(1000) == TokenPrices(D(1), D(10), D("0.5"))
    assert HOSTED.at(1001).input_usd_per_million == 3
    account = hour(requests=1000)
    assert account.usage.prompt > 1000
    assert account.hosted["openai/mini"] == D("0.8") + D("0.1") + 1


def test_a_hundred_deployments_with_three_comparators_stay_under_six_thousand_series() -> None:
    comparators = tuple(
        Comparator(HostedPrice("p", f"m{i}", "test", Tiers(D(1)), Tiers(D(2)), Tiers(D(1)))) for i in range(3)
    )
    basis = CostBasis(L4, comparators=comparators, tokens_per_second=D(1000), budget_usd_per_month=D(1))
    ledger = Ledger(gap_s=1e9)
    for now in (0.0, 3600.0):
        pod = PodObservation("u", 0, "serving", D(1), Counters(now, now, now, now, now), D(1), "spot", "catalog")
        ledger.observe("k", [pod], now=now, comparators=comparators)
    more = {"kv_usage": 0.5, "demand": 1.0, "stalled": False}
    views = [
        view(name=f"m{i}", basis=basis, account=ledger.accounts["k"], waiting=0.0, running=1.0, **more)
        for i in range(100)
    ]
    found = exposed(*views, prices=[Rate(D(1), "catalog", "contract", date(2026, 11, 1))], free={"nvidia-l4": D(1)})
    assert len(found) == 32, "every family of the reference but weights, and those of scaling"
    assert sum(map(len, found.values())) < 6000
