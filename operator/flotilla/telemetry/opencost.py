"""What OpenCost says that nodes cost, by way of Prometheus."""

from decimal import Decimal

from flotilla.telemetry.prometheus import PrometheusClient

# Not node_gpu_hourly_cost: OpenCost divides a node's price over GPU, CPU and memory, and gives the GPU a third of it.
QUERY = "max by (node) (node_total_hourly_cost) / (max by (node) (node_gpu_count) > 0)"


async def gpu_prices(prometheus: PrometheusClient) -> dict[str, Decimal]:
    """US dollars per GPU-hour by node, the host included; a price of 0 or NaN is a missing one. Raises as a query."""
    return {
        series.labels["node"]: Decimal(str(series.value))
        for series in await prometheus.query(QUERY)
        if series.labels.get("node") and series.value is not None and series.value > 0
    }
