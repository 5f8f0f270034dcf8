"""The pod template of an engine."""

from flotilla.api.engine import EnvVar
from flotilla.api.model_deployment import ModelDeployment
from flotilla.api.pods import SchedulingSpec, TopologySpread
from flotilla.constants import LABEL_QUEUE_NAME
from flotilla.domain.accelerators import Accelerator
from flotilla.domain.fitting import DEFAULT_MEMORY_GIB
from flotilla.domain.resolve import Resolved
from flotilla.render.names import Object, labels, selector
from flotilla.render.volumes import CREDENTIALS_PATH, volumes

_STARTUP_PERIOD_S = 2
"""A refused connection costs nothing, and a model that is loaded serves this much earlier than with the usual 10 s."""
_CPU_PER_GPU = 4
_MARGIN_S = 15
"""Between the engine's own drain limit and SIGKILL: it unloads the GPU in that time."""


def template(md: ModelDeployment, resolved: Resolved) -> Object:
    """A pod template; the same input gives the same bytes, for a changed byte restarts a model."""
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
            "containers": [container(md, resolved)],
            "volumes": [volume for _, volume in volumes(md, resolved)],
            **scheduling(md, resolved.accelerator),
        },
    }


def container(md: ModelDeployment, resolved: Resolved) -> Object:
    """The engine's container."""
    profile = resolved.profile
    probe = {"httpGet": {"path": profile.health, "port": "http"}}
    return {
        "name": "engine",
        "image": resolved.image,
        # The last lines of a crash in the pod's status, for the condition: the operator may not read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **({"command": list(profile.command)} if profile.command else {}),
        "args": list(resolved.argv),
        "env": _env(md, resolved),
        **_env_from(md, resolved),
        "ports": [{"name": "http", "containerPort": resolved.port, "protocol": "TCP"}],
        "resources": _resources(md, resolved),
        "startupProbe": {
            **probe,
            "periodSeconds": _STARTUP_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": resolved.startup_seconds // _STARTUP_PERIOD_S,
        },
        "readinessProbe": {
            "httpGet": {"path": profile.readiness or profile.health, "port": "http"},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        # The engine shares its CPU with the tokenizer: under load an answer takes seconds.
        "livenessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
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

    Terms are alternatives, so the product of both lists says: one of theirs and one of ours.
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
