"""Flotilla: a Kubernetes operator for self-hosted fleets of small language models.

Where to look first, by what is to be changed:

api         the fields of the resources, and the CRDs that are generated from them
catalog     engines, accelerators and models, as data files with their loaders
planning    from a spec to what will run: quantization, memory fit, speed, arguments
render      from a plan to Kubernetes manifests
controller  the reconcilers: what is applied, which conditions are written
scaling     how many replicas, from which samples
cost        prices, the ledger, comparison with hosted models, cost metrics
routing     the decision for one request of a gateway
gateway     the data plane that serves clients
simulation  an engine and a fleet as a model: `flotilla simulate` and `advise`
reports     the cost report, FOCUS, alerts and dashboards
console     the operator's web page, health and /metrics
kube        the client of the apiserver, informers, kopf, the store, the Lease
cli         one module per command
"""

__version__ = "0.1.0"
