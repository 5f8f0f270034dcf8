"""What the fleet costs, and what a hosted model would have cost for the same work.

gpu_prices           the sources of a GPU-hour's price and their order (pure)
hosted_prices        hosted models: tiers, token factors, cache credit (pure)
hosted_price_client  looks a hosted model up in genai-prices, in a process of its own
price_loop           keeps nodes, catalogue file and OpenCost current; the pricing plan of a spec; condition CostKnown
ledger               GPU-hours, dollars and tokens by pod and state (pure); ledger_store keeps it in ConfigMaps
accounting_loop      after each scrape: observations of pods go into the ledger
unallocated_loop     GPUs that no pod holds
comparison           utilization, unit costs, savings, break-even (pure)
metrics              all series of /metrics per deployment: replicas, load and cost (pure)
spending             sums over a period for `flotilla cost` and `report` (pure); spending_client asks Prometheus
route_spending       spending by route, team and target (pure)
speed_client         how fast deployments of a model are, from Prometheus, for `flotilla estimate`

A price goes: price_loop -> accounting_loop -> ledger -> metrics.
"""
