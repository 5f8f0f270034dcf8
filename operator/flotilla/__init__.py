"""Flotilla: a Kubernetes operator for self-hosted fleets of small language models."""

__version__ = "0.1.0"
