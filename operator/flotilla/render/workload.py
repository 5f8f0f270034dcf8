"""A ModelDeployment's Deployment, Service and PodDisruptionBudget, from the resolved plan.

The labels, owner and hash that every object of Flotilla has, and the check whether a live object still has what was
rendered, are here too; the objects of gateways use them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from flotilla.api.model_deployment import EnvVar, ModelDeployment, SchedulingSpec, TopologySpread
from flotilla.api.types import amount
from flotilla.catalog.accelerators import Accelerator
from flotilla.constants import (
    ANNOTATION_HASH,
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    CONDITION_ADAPTERS,
    ENGINE_CONTAINER,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_NAME,
    LABEL_PART_OF,
    LABEL_QUEUE_NAME,
    MANAGER,
)
from flotilla.planning.adapters import AdapterPlan, claim_path, image_path
from flotilla.planning.memory_fit import DEFAULT_MEMORY_GIB
from flotilla.planning.resolve import MODEL_PATH, Resolved

Object = dict[str, Any]


def selector(md: ModelDeployment) -> dict[str, str]:
    """The labels that find the pods; a Deployment can never change them."""
    return {LABEL_MANAGED_BY: MANAGER, LABEL_MODEL: md.metadata.name}


def labels(md: ModelDeployment) -> dict[str, str]:
    """The labels of children and pods. The user's own are not copied: Argo CD would claim the children by them."""
    return {
        **selector(md),
        LABEL_NAME: str(md.spec.engine.name),
        LABEL_COMPONENT: "engine",
        LABEL_PART_OF: MANAGER,
    }


def child(
    md: ModelDeployment, *, api_version: str, kind: str, spec: Object, annotations: dict[str, str] | None = None
) -> Object:
    """A whole manifest, owned by the ModelDeployment, of its name, with its hash."""
    manifest: Object = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": md.metadata.name,
            "namespace": md.metadata.namespace,
            "labels": labels(md),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": "ModelDeployment",
                    "name": md.metadata.name,
                    "uid": md.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": spec,
    }
    if annotations:
        manifest["metadata"]["annotations"] = annotations
    manifest["metadata"]["annotations"] = {**(annotations or {}), ANNOTATION_HASH: digest(manifest)}
    return manifest


def digest(manifest: Object) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()


CREDENTIALS_PATH = "/credentials"
_SHM_GIB_PER_GPU = 2

MountedVolume = tuple[Object, Object]
"""A volumeMount and its volume."""


def volumes(md: ModelDeployment, resolved: Resolved) -> list[MountedVolume]:
    """Pairs in a fixed order: a changed order would restart the pods."""
    shm = md.spec.resources.shared_memory or f"{_SHM_GIB_PER_GPU * resolved.gpus}Gi"
    claim = md.spec.model.cache.claim_name
    return [
        _mounted("cache", "/cache", {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}),
        _mounted("tmp", "/tmp", {"emptyDir": {}}),  # noqa: S108 - in the container
        _mounted("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": shm}}),  # noqa: S108 - in the container
        *_weights(resolved),
        *_adapters(resolved.adapters),
        *_key(md, resolved),
    ]


def _mounted(name: str, path: str, source: Object, *, read_only: bool = False) -> MountedVolume:
    mount: Object = {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
    return mount, {"name": name, **source}


def _claim(name: str) -> Object:
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def _weights(resolved: Resolved) -> list[MountedVolume]:
    source = resolved.source
    if source.scheme == "pvc":
        return [_mounted("model", MODEL_PATH, _claim(source.claim), read_only=True)]
    if source.scheme == "oci":
        return [_mounted("model", MODEL_PATH, _image(source.rest), read_only=True)]
    return []


def _image(reference: str) -> Object:
    """An image volume: Kubernetes 1.33 and later, on by default since 1.35."""
    return {"image": {"reference": reference, "pullPolicy": "IfNotPresent"}}


def _adapters(plan: AdapterPlan) -> list[MountedVolume]:
    places = [(claim_path(claim), _claim(claim)) for claim in plan.claims]
    places += [(image_path(name), _image(reference)) for name, reference in plan.images]
    return [
        _mounted(f"adapters-{number}", path, source, read_only=True) for number, (path, source) in enumerate(places)
    ]


def _key(md: ModelDeployment, resolved: Resolved) -> list[MountedVolume]:
    credentials = md.spec.model.credentials_secret
    if credentials is None or resolved.source.scheme != "gs":
        return []
    items = [{"key": credentials.key or "key.json", "path": "key.json"}]
    secret = {"secret": {"secretName": credentials.name, "items": items}}
    return [_mounted("credentials", CREDENTIALS_PATH, secret, read_only=True)]


_STARTUP_PERIOD_S = 1
"""The least that Kubernetes allows. A refused connection costs nothing, and a model that is loaded serves up to 9 s
earlier than with the usual 10 s."""
_CPU_PER_GPU = 4
_MARGIN_S = 15
"""Between the engine's own drain limit and SIGKILL: it unloads the GPU in that time."""


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A rendered pod template and its hash: a new hash is a rollout."""

    manifest: Object
    hash: str


def pod_template(md: ModelDeployment, resolved: Resolved) -> PodTemplate:
    """The template of the Deployment's pods, rendered once for a generation of the spec."""
    manifest = _template(md, resolved)
    return PodTemplate(manifest, digest(manifest))


def _template(md: ModelDeployment, resolved: Resolved) -> Object:
    """The same input gives the same bytes, because a changed byte restarts a model."""
    queue = md.spec.scheduling.queue_name
    return {
        "metadata": {"labels": {**labels(md), **({LABEL_QUEUE_NAME: queue} if queue else {})}},
        "spec": {
            # A Service called vllm would inject VLLM_PORT=tcp://..., which vLLM refuses to start with.
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": (
                resolved.profile.drain.pre_stop_seconds + resolved.profile.drain.seconds + _MARGIN_S
            ),
            **_pull_secrets(md, resolved),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": resolved.profile.uid,
                "runAsGroup": resolved.profile.uid,
                "fsGroup": resolved.profile.uid,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_readiness_gates(resolved.adapters),
            "containers": [container(md, resolved)],
            "volumes": [volume for _, volume in volumes(md, resolved)],
            **scheduling(md, resolved.accelerator),
        },
    }


def _readiness_gates(plan: AdapterPlan) -> Object:
    """The operator sets this condition when the engine has all adapters, so that no request reaches a pod before."""
    return {"readinessGates": [{"conditionType": CONDITION_ADAPTERS}]} if plan.runtime and plan.slots else {}


def container(md: ModelDeployment, resolved: Resolved) -> Object:
    """The engine's container."""
    profile = resolved.profile
    health = {"httpGet": {"path": profile.health, "port": "http"}}
    readiness = {"httpGet": {"path": profile.readiness or profile.health, "port": "http"}}
    return {
        "name": ENGINE_CONTAINER,
        "image": resolved.image,
        # The apiserver's own default, which it would keep from the first image when another one follows.
        "imagePullPolicy": "Always" if _moves(resolved.image) else "IfNotPresent",
        # The last lines of a crash in the pod's status, for the condition: the operator may not read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **({"command": list(profile.command)} if profile.command else {}),
        "args": list(resolved.argv),
        "env": _env(md, resolved),
        **_env_from(md, resolved),
        "ports": [{"name": "http", "containerPort": resolved.port, "protocol": "TCP"}],
        "resources": _resources(md, resolved),
        # On the path of readiness: the kubelet probes readiness at once when the startup probe succeeds, so that the
        # pod is Ready then and not a period later.
        "startupProbe": {
            **readiness,
            "periodSeconds": _STARTUP_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": resolved.startup_seconds // _STARTUP_PERIOD_S,
        },
        "readinessProbe": {**readiness, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        # The engine shares its CPU with the tokenizer: under load an answer takes seconds.
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": profile.drain.pre_stop_seconds}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [mount for mount, _ in volumes(md, resolved)],
    }


def _env(md: ModelDeployment, resolved: Resolved) -> list[Object]:
    env: list[Object] = [{"name": name, "value": value} for name, value in resolved.env]
    credentials = md.spec.model.credentials_secret
    if credentials is not None and resolved.source.scheme == "hf":
        reference = {"name": credentials.name, "key": credentials.key or "token"}
        env.append({"name": resolved.profile.token_env, "valueFrom": {"secretKeyRef": reference}})
    if credentials is not None and resolved.source.scheme == "gs":
        env.append({"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": f"{CREDENTIALS_PATH}/key.json"})
    return [*env, *(_variable(variable) for variable in md.spec.engine.env)]


def _env_from(md: ModelDeployment, resolved: Resolved) -> Object:
    credentials = md.spec.model.credentials_secret
    if credentials is None or resolved.source.scheme != "s3":
        return {}
    return {"envFrom": [{"secretRef": {"name": credentials.name}}]}


def _moves(image: str) -> bool:
    """Whether the image's tag is latest, named or not."""
    name, _, digest_ = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return not digest_ and tag in ("", "latest")


def _pull_secrets(md: ModelDeployment, resolved: Resolved) -> Object:
    credentials = md.spec.model.credentials_secret
    if credentials is None or resolved.source.scheme != "oci":
        return {}
    return {"imagePullSecrets": [{"name": credentials.name}]}


def _variable(variable: EnvVar) -> Object:
    if variable.value_from is not None:
        reference = variable.value_from.secret_key_ref
        return {
            "name": variable.name,
            "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}},
        }
    return {"name": variable.name, "value": variable.value or ""}


def _resources(md: ModelDeployment, resolved: Resolved) -> Object:
    wanted, gpus = md.spec.resources, resolved.gpus
    memory = wanted.memory or f"{DEFAULT_MEMORY_GIB * gpus}Gi"
    # A CPU is no extended resource: the pod gets as many cores as it asks for.
    gpu = {resolved.accelerator.resource: str(gpus)} if resolved.accelerator.resource else {}
    return {
        "requests": {"cpu": wanted.cpu or str(_CPU_PER_GPU * gpus), "memory": memory, **gpu},
        "limits": {"memory": memory, **gpu},
    }


def scheduling(md: ModelDeployment, accelerator: Accelerator) -> Object:
    """Where the pod may run: the class's own nodes and taints, and what the user adds."""
    wanted = md.spec.scheduling
    own = [{"key": accelerator.taint, "operator": "Exists", "effect": "NoSchedule"}] if accelerator.taint else []
    result: Object = {
        "affinity": _affinity(wanted, accelerator),
        "tolerations": [*own, *(t.model_dump(by_alias=True, exclude_none=True) for t in wanted.tolerations)],
    }
    if wanted.node_selector:
        result["nodeSelector"] = dict(wanted.node_selector)
    if wanted.topology_spread is TopologySpread.PREFERRED:
        result["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(md)},
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ]
    for field, value in (
        ("priorityClassName", wanted.priority_class_name),
        ("runtimeClassName", wanted.runtime_class_name),
        ("schedulerName", wanted.scheduler_name),
    ):
        if value:
            result[field] = value
    return result


def _affinity(wanted: SchedulingSpec, accelerator: Accelerator) -> Object:
    """The user's affinity, each of whose required node terms must also be a node of the class.

    Terms are alternatives, so the product of both lists requires one term of each.
    """
    affinity: Object = dict(wanted.affinity or {})
    node: Object = dict(affinity.get("nodeAffinity") or {})
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    theirs = (node.get(key) or {}).get("nodeSelectorTerms") or [{}]
    ours = [{"key": label, "operator": "In", "values": list(values)} for label, values in accelerator.node_labels]
    terms = [
        {**term, "matchExpressions": [*term.get("matchExpressions", ()), expression]}
        for term in theirs
        for expression in ours
    ]
    return {**affinity, "nodeAffinity": {**node, key: {"nodeSelectorTerms": terms}}}


SERVICE_PORT = 8000
_PATIENCE_S = 600
"""Beyond what a start may take: pulling an image of many gigabytes."""


def children(
    md: ModelDeployment, resolved: Resolved, template: PodTemplate, *, replicas: int, surge: bool = False
) -> list[Object]:
    """Deployment, Service and, from two replicas on, a PodDisruptionBudget, in the order to apply them.

    The Deployment has no `spec.replicas`: that field belongs to the scaler.
    """
    result = [deployment(md, resolved, template, surge=surge), service(md)]
    if replicas > 1:
        result.append(budget(md))
    return result


def deployment(md: ModelDeployment, resolved: Resolved, template: PodTemplate, *, surge: bool) -> Object:
    """apps/v1 Deployment. Without `surge` a rollout takes one replica at a time: with it, it would wait for a GPU that
    a full cluster never has."""
    spec: Object = {
        "selector": {"matchLabels": selector(md)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)},
        },
        "progressDeadlineSeconds": md.spec.rollout.timeout_seconds or resolved.startup_seconds + _PATIENCE_S,
        "revisionHistoryLimit": 3,
        "template": template.manifest,
    }
    hashed = {ANNOTATION_TEMPLATE_HASH: template.hash}
    return child(md, api_version="apps/v1", kind="Deployment", spec=spec, annotations=hashed)


def service(md: ModelDeployment) -> Object:
    """v1 Service: one address for all replicas, on the same port for every engine."""
    port = {"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": "http"}
    return child(
        md,
        api_version="v1",
        kind="Service",
        spec={"type": "ClusterIP", "selector": selector(md), "ports": [port]},
    )


def budget(md: ModelDeployment) -> Object:
    """policy/v1 PodDisruptionBudget: a drain takes one replica at a time, and broken ones at once."""
    return child(
        md,
        api_version="policy/v1",
        kind="PodDisruptionBudget",
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(md)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


_KEYS = ("name", "key", "topologyKey", "containerPort", "port", "mountPath", "uid")
"""The keys by which items of Kubernetes' lists of objects are matched, in the order in which they are tried."""
_QUANTITY_FIELDS = frozenset({"requests", "limits", "sizeLimit"})
_ATOMIC_FIELDS = frozenset({"selector", "matchLabels", "nodeSelector"})
"""Maps that Kubernetes replaces as a whole: a key that somebody added to a Service's selector takes its endpoints."""


def needs_apply(desired: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether the live object lacks something of ours, or has something that we set once and no longer want.

    The second is what the hash is for: a field that left the manifest is still ours in the cluster.
    """
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_HASH) != desired["metadata"]["annotations"][ANNOTATION_HASH]:
        return True
    # Items of a LIST carry neither apiVersion nor kind.
    return not all(within(desired[part], live.get(part)) for part in desired if part not in ("apiVersion", "kind"))


def within(desired: Any, live: Any, *, quantity: bool = False) -> bool:
    """Whether every leaf of `desired` is in `live`; what is only in `live` does not matter, except in atomic maps."""
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and all(
            (key in live or _empty(value))
            and (key not in _ATOMIC_FIELDS or not isinstance(value, Mapping) or _same_keys(value, live.get(key)))
            and within(value, live.get(key), quantity=quantity or key in _QUANTITY_FIELDS)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _list_within(desired, live)
    if desired == live and type(desired) is type(live):
        return True
    if _empty(desired) and live is None:
        return True
    return quantity and isinstance(live, str | int) and amount(str(desired)) == amount(str(live))


def _same_keys(desired: Mapping[str, Any], live: Any) -> bool:
    return desired.keys() == (live.keys() if isinstance(live, Mapping) else set())


def _empty(value: Any) -> bool:
    """The apiserver drops empty strings, lists and maps of optional fields."""
    return value in ("", [], {}) and not isinstance(value, bool)


def _list_within(desired: Sequence[Any], live: Any) -> bool:
    if not isinstance(live, list):
        return live is None and not desired
    key = _merge_key(desired)
    if key is None:
        return len(desired) == len(live) and all(within(d, item) for d, item in zip(desired, live, strict=True))
    found = {item.get(key): item for item in live if isinstance(item, Mapping)}
    return all(item[key] in found and within(item, found[item[key]]) for item in desired)


def _merge_key(items: Sequence[Any]) -> str | None:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None


_MOST_SHOWN = 8
_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")


def foreign_risks(
    template: Mapping[str, Any], live: Mapping[str, Any], refuses_env: Callable[[str], bool]
) -> list[str]:
    """What others added to the live Deployment's pod template that takes away what the rendered `template` promises.

    That is access to the node, more rights, and variables or commands that replace the engine's code. Additions without
    such an effect (labels, annotations, sidecars, volumes, other variables) are left alone. `refuses_env` says whether
    the name of a variable is refused in a spec.
    """
    pod = live["spec"].get("template", {}).get("spec") or {}
    found = [name for name in _HOST_FIELDS if pod.get(name)]
    found += [f"volume {volume.get('name')} (hostPath)" for volume in pod.get("volumes") or () if "hostPath" in volume]
    for container in (*(pod.get("initContainers") or ()), *(pod.get("containers") or ())):
        security = container.get("securityContext") or {}
        name = container.get("name")
        found += [
            f"{field} of the container {name}"
            for field, given in (
                ("privileged", security.get("privileged")),
                ("allowPrivilegeEscalation", security.get("allowPrivilegeEscalation")),
                ("capabilities.add", (security.get("capabilities") or {}).get("add")),
            )
            if given
        ]
    (engine,) = template["spec"]["containers"]
    running: Mapping[str, Any] = next((c for c in pod.get("containers") or () if c.get("name") == engine["name"]), {})
    rendered = {variable["name"] for variable in engine["env"]}
    added = [variable["name"] for variable in running.get("env") or () if variable.get("name") not in rendered]
    found += [f"variable {name} of the engine" for name in added if refuses_env(name)]
    found += [f"{field} of the engine" for field in ("command", "envFrom") if field in running and field not in engine]
    if "postStart" in (running.get("lifecycle") or {}):
        found.append("postStart hook of the engine")
    return found[:_MOST_SHOWN]
