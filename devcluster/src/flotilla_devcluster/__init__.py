"""A Kubernetes cluster out of processes of the user: control plane, node agent, simulated engines.

A tool for development and tests; nothing of the operator imports it.
"""
