"""The resources of the group flotilla.dev as pydantic models, and the CRDs that are made of them. Pure.

types              strings with bounds, money, quantities, list-maps, references, conditions: what all resources share
model_deployment   spec and status of a ModelDeployment, except spec.cost
cost               spec.cost: own prices and hosted models to compare with
routing_policy     spec and status of a RoutingPolicy
evaluation         spec and status of an Evaluation
crd                the generator: models and their field docstrings become crds/*.yaml
"""
