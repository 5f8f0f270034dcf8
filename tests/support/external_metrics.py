"""The external metrics API of one metric, made of a CustomResourceDefinition: what an HPA asks is a plain list.

An adapter would be an extension apiserver behind the aggregator; for one number a list of objects with the fields of
an ExternalMetricValue is the same to its reader.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from flotilla_devcluster.controlplane import Cluster

METRIC = "flotilla-queue-depth"
_GROUP = "external.metrics.k8s.io"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class ExternalMetric:
    """A value for one namespace; `set` replaces it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._api = cluster.api
        self._path = f"/apis/{_GROUP}/v1beta1/namespaces/{namespace}/{METRIC}/value"

    def set(self, value: int) -> None:
        obj = {
            "apiVersion": f"{_GROUP}/v1beta1",
            "kind": "ExternalMetricValue",
            "metadata": {"name": "value"},
            "metricName": METRIC,
            "metricLabels": {},
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "value": str(value),
        }
        self._api.apply(self._path, obj)


@contextmanager
def external_metric(cluster: Cluster, namespace: str) -> Iterator[ExternalMetric]:
    """The API group is there for as long as this lasts."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{METRIC}.{_GROUP}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test's stand-in"},
        },
        "spec": {
            "group": _GROUP,
            "scope": "Namespaced",
            "names": {"plural": METRIC, "singular": METRIC, "kind": "ExternalMetricValue"},
            "versions": [
                {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }
    cluster.api.apply(f"{_CRDS}/{METRIC}.{_GROUP}", crd)
    try:
        yield ExternalMetric(cluster, namespace)
    finally:
        cluster.api.request("DELETE", f"{_CRDS}/{METRIC}.{_GROUP}")
