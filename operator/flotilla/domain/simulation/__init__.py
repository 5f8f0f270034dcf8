"""A fleet of engines as a model: what a load trace and a scaling policy would do to waiting, replicas and cost.

`batching` is one engine, the same model that the simulated engine of the local control plane runs on.
"""
