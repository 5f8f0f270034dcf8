"""Fixtures of all tests. Each comes from a module under tests/support."""

from tests.support.controlplane import controlplane, kubectl, namespace, pytest_collection_finish

__all__ = ["controlplane", "kubectl", "namespace", "pytest_collection_finish"]
