"""The gateway of a namespace: one set of objects, owned by all RoutingPolicies that it serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flotilla.api.types import SecretKeyRef
from flotilla.constants import (
    ANNOTATION_HASH,
    API_VERSION,
    GATEWAY,
    GATEWAY_COMPONENT,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_PART_OF,
    MANAGER,
)
from flotilla.render.workload import Object, digest
from flotilla.routing.document import DOCUMENT_FILE, KEYS_FOLDER, MOUNT_PATH, GatewayDocument, key_file

TRAFFIC_PORT = 8000
ADMIN_PORT = 9090
STATE_PATH = "/var/lib/flotilla"
CAPTURES_PATH = "/var/lib/flotilla-captures"
"""Under it each claim of captured examples has a folder of its name."""
TLS_PATH = "/etc/flotilla-tls"
REDIS_KEY = "url"
"""Key of the Secret that holds the URL of a Redis."""
RULES: tuple[Object, ...] = (
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
)
"""Rights of a gateway in its own namespace. The operator holds them too, because a right is granted by holders only."""
MAX_OWNERS = 10
"""Policies in the owner references of a gateway's objects: the oldest ones. When one of them is deleted, another takes
its place, so that the garbage collector removes the objects only with the last policy."""
_UID = 65532
_PRE_STOP_S = 5
"""Seconds until the node of every client has removed the pod from its endpoints."""
_GRACE_S = 630
"""The longest default of a request's time, and some more."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What an administrator decides about every gateway."""

    image: str
    replicas: int = 2
    redis_secret: str = ""
    tls_secret: str = ""
    """Name of a Secret of type kubernetes.io/tls in each namespace with a gateway; empty for plain HTTP."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Owner:
    """A RoutingPolicy of the namespace."""

    name: str
    uid: str


def endpoint(namespace: str, *, tls: bool = False) -> str:
    """The base URL for OpenAI clients inside the cluster."""
    return f"{'https' if tls else 'http'}://{GATEWAY}.{namespace}.svc:{TRAFFIC_PORT}/v1"


def children(document: GatewayDocument, owners: Sequence[Owner], settings: GatewaySettings) -> list[Object]:
    """All objects, in the order to apply them: what the pods need comes first.

    The garbage collector deletes them with the last of `owners`, of which there should be `MAX_OWNERS` at most; none of
    them is the controller, because an object has only one.
    """
    pod = _pod(document, settings)
    pods = {"matchLabels": selector()}
    subjects = [{"kind": "ServiceAccount", "name": GATEWAY, "namespace": document.namespace}]
    rbac = "rbac.authorization.k8s.io"
    rollout = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    deployment = {
        "replicas": settings.replicas,
        "selector": pods,
        "strategy": rollout,
        "revisionHistoryLimit": 3,
        "template": pod,
    }
    ports = [{"name": "http", "port": TRAFFIC_PORT, "protocol": "TCP", "targetPort": "http"}]
    budget = {"maxUnavailable": 1, "selector": pods, "unhealthyPodEvictionPolicy": "AlwaysAllow"}

    def child(api_version: str, kind: str, **parts: object) -> Object:
        return _child(document.namespace, owners, api_version, kind, parts)

    return [
        child("v1", "ServiceAccount", automountServiceAccountToken=False),
        child(f"{rbac}/v1", "Role", rules=[dict(rule) for rule in RULES]),
        child(
            f"{rbac}/v1",
            "RoleBinding",
            roleRef={"apiGroup": rbac, "kind": "Role", "name": GATEWAY},
            subjects=subjects,
        ),
        child("v1", "ConfigMap", data={DOCUMENT_FILE: document.text.decode()}),
        child("networking.k8s.io/v1", "NetworkPolicy", spec=_network()),
        child("apps/v1", "Deployment", spec=deployment),
        child("v1", "Service", spec={"type": "ClusterIP", "selector": selector(), "ports": ports}),
        *([child("policy/v1", "PodDisruptionBudget", spec=budget)] if settings.replicas > 1 else ()),
    ]


def selector() -> dict[str, str]:
    """The labels that find the pods of a namespace's gateway."""
    return {LABEL_MANAGED_BY: MANAGER, LABEL_COMPONENT: GATEWAY_COMPONENT}


def _labels() -> dict[str, str]:
    return {**selector(), LABEL_NAME: GATEWAY, LABEL_PART_OF: MANAGER}


def _child(namespace: str, owners: Sequence[Owner], api_version: str, kind: str, parts: Mapping[str, object]) -> Object:
    references = [
        {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "name": owner.name, "uid": owner.uid}
        for owner in sorted(owners, key=lambda owner: owner.uid)
    ]
    meta: Object = {"name": GATEWAY, "namespace": namespace, "labels": _labels(), "ownerReferences": references}
    manifest: Object = {"apiVersion": api_version, "kind": kind, "metadata": meta, **parts}
    meta["annotations"] = {ANNOTATION_HASH: digest(manifest)}
    return manifest


def _pod(document: GatewayDocument, settings: GatewaySettings) -> Object:
    spread = {
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector()},
        "matchLabelKeys": ["pod-template-hash"],
    }
    zones = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    return {
        "metadata": {"labels": _labels()},
        "spec": {
            "serviceAccountName": GATEWAY,
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _PRE_STOP_S + _GRACE_S,
            # Names with a dot are asked for as they are first: a provider called a.b must not be the Service a of the
            # namespace b.
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _UID,
                "runAsGroup": _UID,
                "fsGroup": _UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [{**spread, "topologyKey": key} for key in zones],
            "containers": [_container(document, settings)],
            "volumes": [
                {"name": "config", "projected": {"sources": _sources(document.secrets), "defaultMode": 0o440}},
                {"name": "state", "emptyDir": {"sizeLimit": "16Mi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}},
                *(
                    {"name": f"captures-{number}", "persistentVolumeClaim": {"claimName": claim}}
                    for number, claim in enumerate(_claims(document))
                ),
                *(
                    [{"name": "tls", "secret": {"secretName": settings.tls_secret, "defaultMode": 0o440}}]
                    if settings.tls_secret
                    else []
                ),
            ],
        },
    }


def _claims(document: GatewayDocument) -> list[str]:
    """Claims that captured examples are written to, each once."""
    wanted = {policy.capture.to.claim_name for policy in document.policies if policy.capture is not None}
    return sorted(claim for claim in wanted if claim is not None)


def _bucket_secrets(document: GatewayDocument) -> list[str]:
    wanted = {policy.capture.to.credentials_secret for policy in document.policies if policy.capture is not None}
    return sorted(secret for secret in wanted if secret is not None)


def _container(document: GatewayDocument, settings: GatewaySettings) -> Object:
    claims = _claims(document)

    def probe(path: str) -> Object:
        return {"httpGet": {"path": path, "port": "admin"}, "timeoutSeconds": 3}

    return {
        "name": "gateway",
        "image": settings.image,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": [
            "gateway",
            "--document",
            f"{MOUNT_PATH}/{DOCUMENT_FILE}",
            "--keys",
            f"{MOUNT_PATH}/{KEYS_FOLDER}",
            "--state",
            STATE_PATH,
            "--listen",
            f":{TRAFFIC_PORT}",
            "--admin-listen",
            f":{ADMIN_PORT}",
            *(part for claim in claims for part in ("--capture-claim", f"{claim}={CAPTURES_PATH}/{claim}")),
            *(["--tls", TLS_PATH] if settings.tls_secret else []),
        ],
        "env": _env(settings),
        **(
            {"envFrom": [{"secretRef": {"name": name, "optional": True}} for name in secrets]}
            if (secrets := _bucket_secrets(document))
            else {}
        ),
        "ports": [
            {"name": "http", "containerPort": TRAFFIC_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        # One thread does the work: a second core would idle, and a limit would throttle bursts.
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "startupProbe": {**probe("/healthz"), "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {**probe("/readyz"), "periodSeconds": 1, "failureThreshold": 4},
        "livenessProbe": {**probe("/healthz"), "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": _PRE_STOP_S}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": MOUNT_PATH, "readOnly": True},
            {"name": "state", "mountPath": STATE_PATH},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a path of the container
            *(
                {"name": f"captures-{number}", "mountPath": f"{CAPTURES_PATH}/{claim}"}
                for number, claim in enumerate(claims)
            ),
            *([{"name": "tls", "mountPath": TLS_PATH, "readOnly": True}] if settings.tls_secret else []),
        ],
    }


def _env(settings: GatewaySettings) -> list[Object]:
    env: list[Object] = [{"name": name, "value": value} for name, value in sorted(settings.env.items())]
    if settings.redis_secret:
        reference = {"name": settings.redis_secret, "key": REDIS_KEY}
        env.append({"name": "FLOTILLA_REDIS_URL", "valueFrom": {"secretKeyRef": reference}})
    return env


def _sources(secrets: Sequence[SecretKeyRef]) -> list[Object]:
    """The document and the keys. A Secret that is missing leaves its file out, and stops no other policy."""
    keys: list[Object] = [
        {
            "secret": {
                "name": secret.name,
                "optional": True,
                "items": [{"key": secret.key, "path": f"{KEYS_FOLDER}/{key_file(secret)}"}],
            }
        }
        for secret in secrets
    ]
    return [{"configMap": {"name": GATEWAY, "items": [{"key": DOCUMENT_FILE, "path": DOCUMENT_FILE}]}}, *keys]


def _network() -> Object:
    """Who may connect: everybody to the traffic port, whose clients are in any namespace; only pods to the admin port.

    Egress stays open: hosted models, the apiserver and DNS are addresses that are not known here.
    """
    return {
        "podSelector": {"matchLabels": selector()},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": TRAFFIC_PORT, "protocol": "TCP"}]},
            {"ports": [{"port": ADMIN_PORT, "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]},
        ],
    }
