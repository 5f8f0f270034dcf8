"""How many replicas: read the engines, decide, and let the reconciler write it. Knows no price.

In the order of a sample: `scrape_client` reads one engine's /metrics; `engine_client` joins pods, Prometheus and the
gateways' demand; `sampling` aggregates them into one sample (pure); `autoscaler` decides (pure); `scaling_loop` runs
this every two seconds, keeps the state per ModelDeployment, and notifies subscribers, such as the cost accounting.
`wake_loop` waits for reports of the gateways about held requests for a model at zero, and lets the scaling loop
decide at once."""
