"""A report on a fleet in which every kind of finding occurs."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from flotilla.cost.spending import Spent
from flotilla.reports.cost_report import Report, Step

D = Decimal
END = datetime(2026, 11, 25, 9, tzinfo=UTC)
DAYS = 14
FLEET = (
    Spent(
        "support", "triage-qwen2-5-7b", "hf://Qwen/Qwen2.5-7B-Instruct", "vllm", "nvidia-l4", "support",
        usd_by_state={"serving": D("241.20"), "idle": D("31.40"), "startup": D("4.10"), "draining": D("0.70")},
        estimated_usd=D("20"),
        gpu_hours=D("346.6"),
        tokens={"input": D(1_410_000_000), "cached_input": D(310_000_000), "output": D(236_000_000)},
        requests=D(1_570_000),
        hosted_usd={"openai/gpt-5-mini": D("832.10"), "anthropic/claude-haiku-4-5": D("2621.00"),
                    "together/llama-3.1-8b": D("352.30")},
        usd_per_hour=D("0.80"), saturation=D("0.41"), min_replicas=1, max_replicas=4,
    ),
    Spent(
        "legal", "contracts-qwen3-14b", "hf://Qwen/Qwen3-14B", "vllm", "nvidia-h100-80gb", "legal",
        usd_by_state={"serving": D("310.00"), "idle": D("1930.50"), "startup": D("70.90"), "draining": D("0.30")},
        gpu_hours=D("336"),
        tokens={"input": D(402_000_000), "cached_input": D(12_000_000), "output": D(88_000_000)},
        requests=D(96_000),
        hosted_usd={"openai/gpt-5-mini": D("279.50"), "anthropic/claude-haiku-4-5": D("842.10")},
        usd_per_hour=D("6.88"), budget_usd_per_month=D("4000"), saturation=D("0.06"), min_replicas=1, max_replicas=2,
    ),
    Spent(
        "search", "rewriter-llama-3-1-8b", "hf://meta-llama/Llama-3.1-8B-Instruct", "sglang", "nvidia-l4", "search",
        usd_by_state={"serving": D("60.20"), "idle": D("2.30"), "startup": D("33.40"), "draining": D("1.10")},
        gpu_hours=D("121"),
        tokens={"input": D(530_000_000), "output": D(71_000_000)},
        requests=D(820_000),
        hosted_usd={"openai/gpt-5-mini": D("274.50")},
        usd_per_hour=D("2.41"), saturation=D("0.93"), min_replicas=0, max_replicas=3,
    ),
    Spent(
        "lab", "forgotten", "hf://google/gemma-3-12b-it", "vllm", "nvidia-a10g", "",
        usd_by_state={"serving": D(0), "idle": D("338.00"), "startup": D("0.20"), "draining": D(0)},
        gpu_hours=D("336"), tokens={}, requests=D(0), hosted_usd={"openai/gpt-5-mini": D(0)},
        usd_per_hour=D("1.006"), min_replicas=1, max_replicas=1,
    ),
    Spent("lab", "on-a-new-card", "hf://mistralai/Ministral-8B", "vllm", "nvidia-b300", "", gpu_hours=D("12")),
)  # fmt: skip


def report() -> Report:
    """Two weeks, in steps of a day."""
    steps = []
    for day in range(DAYS):
        at = END - timedelta(days=DAYS - day)
        busy = 1.3 if at.weekday() < 5 else 0.4
        usd = {"serving": 44 * busy, "idle": 180 - 20 * busy, "startup": 7.5 * busy, "draining": 0.2}
        steps.append(Step(f"{at:%b} {at.day}", usd))
    return Report(FLEET, tuple(steps), END - timedelta(days=DAYS), END, "Prometheus")
