"""The Job of an Evaluation's run: the operator's own image, without rights to the API."""

from collections.abc import Sequence
from dataclasses import dataclass

from flotilla.api.evaluation import Evaluation
from flotilla.api.types import SecretKeyRef
from flotilla.constants import (
    ANNOTATION_PLAN,
    API_VERSION,
    LABEL_COMPONENT,
    LABEL_EVALUATION,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_PART_OF,
    LABEL_QUEUE_NAME,
    MANAGER,
)
from flotilla.render.workload import Object
from flotilla.routing.document import key_file

PROGRESS_PORT = 9090
_PLAN, _KEYS, _DATASET, _RESULTS = "/etc/flotilla", "/keys", "/dataset", "/var/lib/flotilla"
_MESSAGE = "/dev/termination-log"
_UID = 65532
_RETRIES = 6
_KEPT_S = 24 * 3600
"""A finished Job stays for its logs until the next run, but no longer than a day."""


@dataclass(frozen=True, slots=True)
class DatasetMount:
    """Where the container finds the dataset, and the volume that it is on."""

    path: str
    """A path in the container, or the URL of a bucket."""
    volume: Object | None = None
    secret: str = ""
    """Whose keys become environment variables, for a bucket."""


def dataset_mount(evaluation: Evaluation) -> DatasetMount:
    """Of spec.dataset."""
    dataset = evaluation.spec.dataset
    scheme, _, rest = dataset.source.partition("://")
    name, _, path = rest.partition("/")
    if scheme == "configmap":
        return DatasetMount(f"{_DATASET}/{path}", {"configMap": {"name": name}})
    if scheme == "pvc":
        claim = {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        return DatasetMount(f"{_DATASET}/{path}", claim)
    if scheme == "oci":
        image = {"image": {"reference": rest, "pullPolicy": "IfNotPresent"}}
        return DatasetMount(f"{_DATASET}/cases.jsonl", image)
    secret = dataset.credentials_secret
    return DatasetMount(dataset.source, secret="" if secret is None else secret.name)


def job(
    evaluation: Evaluation, *, name: str, plan: str, dataset: DatasetMount, secrets: Sequence[SecretKeyRef], image: str
) -> Object:
    """The manifest. `plan` travels as an annotation of the pod, which sees it as a file."""
    meta, spec = evaluation.metadata, evaluation.spec.job
    labels = {
        LABEL_MANAGED_BY: MANAGER,
        LABEL_PART_OF: MANAGER,
        LABEL_NAME: "flotilla-evaluation",
        LABEL_COMPONENT: "evaluation",
        LABEL_EVALUATION: meta.name,
    }
    queue = {LABEL_QUEUE_NAME: spec.queue_name} if spec.queue_name else {}
    owner = {
        "apiVersion": API_VERSION,
        "kind": "Evaluation",
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": {**labels, **queue},
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": _RETRIES,
            "activeDeadlineSeconds": spec.max_duration_seconds,
            "ttlSecondsAfterFinished": _KEPT_S,
            "template": {
                "metadata": {"labels": labels, "annotations": {ANNOTATION_PLAN: plan}},
                "spec": _pod(evaluation, name, dataset, secrets, image),
            },
        },
    }


def _pod(
    evaluation: Evaluation, name: str, dataset: DatasetMount, secrets: Sequence[SecretKeyRef], image: str
) -> Object:
    spec = evaluation.spec.job
    claim = spec.results_claim_name
    plan = {"path": "plan.json", "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION_PLAN}']"}}
    volumes: list[tuple[str, str, Object, bool]] = [
        ("plan", _PLAN, {"downwardAPI": {"items": [plan]}}, True),
        ("results", _RESULTS, {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}, False),
        ("tmp", "/tmp", {"emptyDir": {"sizeLimit": "16Mi"}}, False),  # noqa: S108 - a path of the container
    ]
    if secrets:
        volumes.append(("keys", _KEYS, {"projected": {"sources": [_key(secret) for secret in secrets]}}, True))
    if dataset.volume is not None:
        volumes.append(("dataset", _DATASET, dataset.volume, True))
    mounts = [
        {"name": volume, "mountPath": path, **({"readOnly": True} if read_only else {})}
        for volume, path, _, read_only in volumes
    ]
    resources = spec.resources
    container: Object = {
        "name": "evaluate",
        "image": image,
        "terminationMessagePath": _MESSAGE,
        "args": [
            "evaluate",
            "--spec",
            f"{_PLAN}/plan.json",
            "--dataset",
            dataset.path,
            "--keys",
            _KEYS,
            "--results",
            # On a claim, runs of several evaluations lie beside one another.
            f"{_RESULTS}/{name}.jsonl",
            "--termination-log",
            _MESSAGE,
            "--listen",
            f"0.0.0.0:{PROGRESS_PORT}",
        ],
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": resources.cpu, "memory": resources.memory},
            "limits": {"memory": resources.memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if dataset.secret:
        container["envFrom"] = [{"secretRef": {"name": dataset.secret}}]
    return {
        # A container that ends with an error starts again in its pod, and finds its results there.
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": volume, **source} for volume, _, source, _ in volumes],
        **({"nodeSelector": dict(spec.node_selector)} if spec.node_selector else {}),
    }


def _key(secret: SecretKeyRef) -> Object:
    """Optional, so that the run starts and names the target whose key is missing."""
    items = [{"key": secret.key, "path": key_file(secret)}]
    return {"secret": {"name": secret.name, "optional": True, "items": items}}
