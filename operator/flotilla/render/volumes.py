"""What an engine's pod mounts: writable folders beside the read-only root, weights, adapters, a key."""

from flotilla.api.model_deployment import ModelDeployment
from flotilla.domain import sources
from flotilla.domain.resolve import ADAPTER_PATH, Resolved
from flotilla.domain.sources import MODEL_PATH
from flotilla.render.names import Object

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
        *_adapters(md),
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
        # An image volume: Kubernetes 1.33 and later, on by default since 1.35.
        image = {"image": {"reference": source.rest, "pullPolicy": "IfNotPresent"}}
        return [_mounted("model", MODEL_PATH, image, read_only=True)]
    return []


def _adapters(md: ModelDeployment) -> list[MountedVolume]:
    parsed = [sources.parse(adapter.source) for adapter in md.spec.model.adapters]
    claims = dict.fromkeys(source.claim for source in parsed if source.scheme == "pvc")
    return [
        _mounted(f"adapters-{number}", f"{ADAPTER_PATH}/{claim}", _claim(claim), read_only=True)
        for number, claim in enumerate(claims)
    ]


def _key(md: ModelDeployment, resolved: Resolved) -> list[MountedVolume]:
    credentials = md.spec.model.credentials_secret
    if credentials is None or resolved.source.scheme != "gs":
        return []
    items = [{"key": credentials.key or "key.json", "path": "key.json"}]
    secret = {"secret": {"secretName": credentials.name, "items": items}}
    return [_mounted("credentials", CREDENTIALS_PATH, secret, read_only=True)]
