"""The control plane of the operator: from a changed object to a converged cluster and a written status.

In the order of a change: the store reports it to `control_loop`, which puts the keys of all dependants into the
`queue`; a worker calls the reconciler of the key: `model_deployment`, `gateway` or `evaluation`. A reconciler plans
(pure packages), has `apply` converge the children, and writes the status that `model_status`, `policy_status` or
`evaluation_status` (all pure) made. `promotions` decides where traffic goes by evidence, with what `guard_loop` reads
from gateways. `resync` lists every kind periodically.

Texts of conditions: `model_status` and `policy_status`; those of ScalingActive are in scaling.autoscaler, those of
CostKnown in cost.price_loop, and those of a wrong spec in the errors that planning and api raise.
"""
