"""The autoscalers of the benchmark by the formulas that their projects publish."""

from benchmarks.scaling import Answer, verdict
from benchmarks.scaling_policies import Foresight, HorizontalPodAutoscaler, Keda, KubeAI

from flotilla.simulation.fleet import Observation


def seen(now_s: float, wanted: int, load: int, *, ready: int | None = None, held: int = 0) -> Observation:
    return Observation(
        now_s=now_s,
        wanted=wanted,
        ready=wanted if ready is None else ready,
        waiting=0,
        running=load,
        held=held,
        kv_full=0.0,
        served=0,
        rejected=0,
    )


def test_hpa_takes_the_ratio_and_holds_within_its_tolerance() -> None:
    for load, wish in ((16, 2), (17, 2), (18, 3), (40, 5)):
        assert HorizontalPodAutoscaler(target=8, least=1, most=12).decide(seen(0, 2, load)) == wish


def test_hpa_adds_at_most_four_or_the_double_in_a_period() -> None:
    hpa = HorizontalPodAutoscaler(target=8, least=1, most=100)
    assert hpa.decide(seen(0, 1, 800)) == 5
    assert hpa.decide(seen(15, 5, 800, ready=1)) == 10
    assert HorizontalPodAutoscaler(target=8, least=1, most=12).decide(seen(0, 5, 800)) == 10


def test_pods_that_start_damp_hpa_in_both_directions() -> None:
    hpa = HorizontalPodAutoscaler(target=8, least=1, most=12)
    assert hpa.decide(seen(0, 4, 32, ready=2)) == 4
    assert hpa.decide(seen(15, 4, 2, ready=1)) == 4


def test_hpa_goes_in_by_the_highest_wish_of_five_minutes() -> None:
    hpa = HorizontalPodAutoscaler(target=8, least=1, most=12)
    assert hpa.decide(seen(0, 6, 48)) == 6
    for at_s in range(15, 300, 15):
        assert hpa.decide(seen(at_s, 6, 20)) == 6
    assert hpa.decide(seen(315, 6, 8)) == 3
    assert HorizontalPodAutoscaler(target=8, least=1, most=12).decide(seen(0, 6, 0)) == 6


def test_hpa_without_a_ready_pod_has_no_metric_and_holds() -> None:
    assert HorizontalPodAutoscaler(target=8, least=1, most=12).decide(seen(0, 3, 0, ready=0, held=50)) == 3


def test_keda_reads_what_prometheus_scraped_half_a_minute_ago() -> None:
    keda = Keda(target=8, least=1, most=12)
    assert keda.decide(seen(0, 1, 8)) == 1
    assert keda.decide(seen(15, 1, 80)) == 1
    assert keda.decide(seen(30, 1, 80)) == 5
    assert keda.decide(seen(45, 5, 0)) == 10


def test_kubeai_takes_minutes_to_see_a_step() -> None:
    kubeai = KubeAI(target=8, least=1, most=12)
    wanted, at_s = 1, 0.0
    while wanted < 5:
        wanted = kubeai.decide(seen(at_s, wanted, 40))
        at_s += kubeai.interval_s
    assert 480 <= at_s <= 600


def test_kubeai_goes_in_after_three_agreeing_looks() -> None:
    kubeai = KubeAI(target=8, least=1, most=12, before=40)
    wishes = [kubeai.decide(seen(n * 10.0, 5, 0)) for n in range(20)]
    first = next(n for n, wish in enumerate(wishes) if wish < 5)
    # After 12 of 60 looks the mean is 32, which four replicas serve; two looks later there are three votes.
    assert first == 11 + 2


def answer(wait_s: float, gpu_hours: float, dropped: int = 0) -> Answer:
    return Answer(wait_s, 0.0, 0.0, dropped, 1000, gpu_hours, 0)


def test_a_trace_is_won_by_a_shorter_wait_or_fewer_hours_and_by_nothing_else() -> None:
    assert verdict(answer(1, 10.5), answer(2, 10)).startswith("won: shorter wait")
    assert verdict(answer(1, 10.6), answer(2, 10)) == "not met: shorter wait, but at 1.06 x the GPU-hours"
    assert verdict(answer(2, 8.5), answer(2, 10)).startswith("won: the same wait")
    assert verdict(answer(2, 8.6), answer(2, 10)).startswith("not met: the same wait")
    assert verdict(answer(3, 5), answer(2, 10)).startswith("lost: longer wait")


def test_where_both_waits_end_with_patience_what_was_dropped_decides() -> None:
    assert verdict(answer(60, 10, 10), answer(60, 10, 50)).startswith("not met: dropped 1.0 against 5.0 %")
    assert verdict(answer(60, 8, 10), answer(60, 10, 50)).startswith("won: dropped 1.0 against 5.0 %")
    assert verdict(answer(60, 8, 50), answer(60, 10, 10)).startswith("lost: dropped 5.0 against 1.0 %")


def test_foresight_has_the_replicas_when_the_requests_come() -> None:
    arrivals = [600 + n / 5 for n in range(600)]
    policy = Foresight(arrivals, per_replica=1.0, least=1, most=12, startup_s=120.0)
    wanted = {at_s: policy.decide(seen(at_s, 1, 0)) for at_s in (0, 300, 525, 600, 660, 720, 900)}
    assert wanted == {0: 1, 300: 1, 525: 5, 600: 5, 660: 5, 720: 3, 900: 1}
