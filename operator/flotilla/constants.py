"""Names that appear in the cluster: changing one orphans objects that exist."""

from typing import Final

GROUP: Final = "flotilla.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

MANAGER: Final = "flotilla"
"""Field manager of the children."""
STATUS_MANAGER: Final = "flotilla-status"
SCALER_MANAGER: Final = "flotilla-scaler"
"""Field manager of one field only: `spec.replicas` of the child Deployment."""

ENGINE_CONTAINER: Final = "engine"
"""Name of the engine's container in its pods."""
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_MODEL: Final = f"{GROUP}/model"
"""Name of the ModelDeployment; with managed-by it is the pods' immutable selector."""
LABEL_EVALUATION: Final = f"{GROUP}/evaluation"
"""Name of the Evaluation, on its Jobs and their pods."""
LABEL_TEAM: Final = f"{GROUP}/team"
"""Of a ModelDeployment: who pays for it."""
LABEL_QUEUE_NAME: Final = "kueue.x-k8s.io/queue-name"

ANNOTATION_HASH: Final = f"{GROUP}/hash"
"""SHA-256 of the manifest that the operator rendered, without `spec.replicas`."""

ANNOTATION_DOCUMENT: Final = f"{GROUP}/document-hash"
"""On a gateway's pod: the document that it is to serve, which has its kubelet renew the mounted one."""
ANNOTATION_TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
"""SHA-256 of the pod template of a Deployment: a new one is a rollout."""

ANNOTATION_PLAN: Final = f"{GROUP}/plan"
"""Of the pods of an Evaluation's Job: the document of the run, which the container sees as a file."""
CONDITION_ADAPTERS: Final = f"{GROUP}/adapters"
"""Condition of engine pods, and their readiness gate: the engine has loaded the LoRA adapters that are wanted."""

MANAGED_BY_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGER}"

IMAGE: Final = "ghcr.io/flotilla-dev/flotilla"
"""Of every process of Flotilla, without the tag."""
GATEWAY: Final = "flotilla-gateway"
"""Name of all that belongs to the gateway of a namespace."""
GATEWAY_COMPONENT: Final = "gateway"
"""Value of the component label on the pods of gateways."""
