"""The simulated nodes, what the agent runs on them, and time as Kubernetes writes it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flotilla_devcluster.network import local_address

KUBELET_PORT = 10250


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeConfig(_Data):
    """One node. Without GPUs it is a plain CPU node."""

    name: str
    gpus: int = Field(0, ge=0, le=16)
    gpu_product: str = "NVIDIA-L4"
    gpu_memory_mib: int = 23034
    compute_capability: str = "8.9"
    family: str = "ada-lovelace"
    cpu: str = "64"
    memory: str = "512Gi"
    instance_type: str = "simulated"
    zone: str = "local-a"

    def manifest(self) -> dict[str, Any]:
        """A v1 Node as a cloud with GPU feature discovery would register it."""
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": self.instance_type,
            "topology.kubernetes.io/zone": self.zone,
            "karpenter.sh/capacity-type": "on-demand",
        }
        taints = []
        if self.gpus:
            major, _, minor = self.compute_capability.partition(".")
            labels |= {
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": self.gpu_product,
                "nvidia.com/gpu.count": str(self.gpus),
                "nvidia.com/gpu.memory": str(self.gpu_memory_mib),
                "nvidia.com/gpu.family": self.family,
                "nvidia.com/gpu.compute.major": major,
                "nvidia.com/gpu.compute.minor": minor,
            }
            taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"taints": taints},
        }

    def status(self, *, now: str, address: str) -> dict[str, Any]:
        """The status of a healthy node."""
        resources = {"cpu": self.cpu, "memory": self.memory, "pods": "110", "ephemeral-storage": "500Gi"}
        if self.gpus:
            resources["nvidia.com/gpu"] = str(self.gpus)
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the node agent runs this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        return {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [ready],
            "addresses": [
                {"type": "InternalIP", "address": address},
                # Where the apiserver, a process of this machine, finds the kubelet's API.
                {"type": "ExternalIP", "address": local_address(address)},
                {"type": "Hostname", "address": self.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            "nodeInfo": {
                "kubeletVersion": "v1.36.4",
                "kubeProxyVersion": "v1.36.4",
                "containerRuntimeVersion": "flotilla-simulated://1",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "simulated",
                "kernelVersion": "simulated",
                "machineID": self.name,
                "systemUUID": self.name,
                "bootID": self.name,
            },
        }


def _default_nodes() -> tuple[NodeConfig, ...]:
    return (
        NodeConfig(name="gpu-1", gpus=4, zone="local-a"),
        NodeConfig(name="gpu-2", gpus=4, zone="local-b"),
        NodeConfig(name="cpu-1", zone="local-a"),
    )


class AgentConfig(_Data):
    """Nodes and the speed of things. The default: two nodes with four L4 each, and one without GPUs."""

    nodes: tuple[NodeConfig, ...] = Field(default_factory=_default_nodes)
    simulation: dict[str, str] = Field(
        default_factory=dict, description="FLOTILLA_SIM_* variables that every simulated engine gets."
    )
    crash_backoff_s: float = Field(10.0, gt=0, description="Of the first restart; it doubles up to 300 s.")
    heartbeat_s: float = Field(5.0, gt=0)
    programs: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Local commands that stand for images by the beginning of their name; the arguments follow.",
    )
    claims: dict[str, str] = Field(
        default_factory=dict, description="Local folders that stand for PersistentVolumeClaims, for `programs`."
    )
    fake_seconds: float = Field(0.0, ge=0, description="How long a container of an unknown image takes to be ready.")

    def write(self, path: Path) -> None:
        """As the agent's process reads it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json())


def rfc3339() -> str:
    """Now, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro() -> str:
    """Now, to the microsecond, for Leases."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
