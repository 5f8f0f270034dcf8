"""Fixtures of all tests. Each comes from a module under tests/support."""

from hypothesis import HealthCheck, settings

from tests.support.controlplane import controlplane, kubectl, namespace, pytest_collection_finish
from tests.support.helm import helm

__all__ = ["controlplane", "helm", "kubectl", "namespace", "pytest_collection_finish"]

# A test fails for what the code does and not for how busy the machine is: no example has a time limit of its own.
settings.register_profile("flotilla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flotilla")
