"""Flotilla: a Kubernetes operator for self-hosted fleets of small language models.

Where to look first, by what is to be changed:

api         the fields of the resources, and the CRDs that are generated from them
catalog     engines, accelerators and models, as data files with their loaders
planning    from a spec to what will run: quantization, memory fit, speed, arguments
render      from a plan to Kubernetes manifests
controller  the reconcilers: what is applied, which conditions are written
scaling     how many replicas, from which samples
cost        prices, the ledger, comparison with hosted models; all series of /metrics per deployment
routing     the decision for one request of a gateway
gateway     the data plane that serves clients
simulation  an engine and a fleet as a model: `flotilla simulate` and `advise`
reports     the cost report, FOCUS, alerts and dashboards
console     the HTTP server for /metrics, health and the web page; the operator's own series
prometheus  the client of the installation's Prometheus
kube        the client of the apiserver, informers, kopf, the store, the Lease
cli         one module per command

Single modules: app (start and stop of the operator), config and settings (its settings and where they come from),
errors (the tree of all errors), validation (pydantic errors as sentences), background (loops that restart), constants
(names in the cluster), addresses, logs, yaml_text.
"""

__version__ = "0.1.0"
