"""How many replicas: read the engines, decide, and let the reconciler write it. Knows no price.

In the order of a sample: `scrape_client` reads one engine's /metrics; `engine_client` joins pods, Prometheus and the
gateways' demand; `sampling` adds them up to a sample (pure); `autoscaler` decides (pure); `scaling_loop` runs this
every two seconds, keeps the state per ModelDeployment, and calls those who follow the samples, such as the cost
accounting. `wake_loop` hears from the gateways of requests that wait for a model at zero, and lets the scaling loop
decide at once.
"""
