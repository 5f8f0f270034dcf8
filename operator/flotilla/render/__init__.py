"""From what was planned to Kubernetes manifests. Pure: the same plan gives the same bytes.

workload  Deployment, Service and PodDisruptionBudget of a ModelDeployment; labels, owner reference and hash of all
          objects, and whether a live one still has every rendered field
gateway   the objects of a namespace's gateway
rbac      the one table of permissions: the chart, the manifests and the check at the start are made of it
"""
