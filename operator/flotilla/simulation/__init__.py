"""Engines and fleets as a model, to try a policy or size a fleet without GPUs.

trace   load over time: CSV files, packaged traces, named shapes
engine  a continuously batching engine: iterations, KV cache, queue
fleet   replicas under the operator's own autoscaler, and the figures of a run
advice  which way of serving a workload is cheapest
"""
