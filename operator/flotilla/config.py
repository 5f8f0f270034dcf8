"""What an administrator may set on the operator, and nothing about a single model."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from flotilla import __version__
from flotilla.constants import IMAGE

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]


class HostedModel(BaseModel):
    """A hosted model by the names that genai-prices knows it by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    model: str


class LeaderElection(BaseModel):
    """One operator acts at a time; the others stand by with the Lease in view.

    The times outlast an apiserver that is away for half a minute, as an upgrade of a control plane takes; an operator
    that ends in order gives the Lease up at once. (OpenShift's library-go chose 137, 107 and 26 s for the same reason.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    namespace: Name = "flotilla-system"
    name: Name = "flotilla-operator"
    duration_s: float = Field(60, gt=0, description="Others may take the Lease this long after the last renewal.")
    renew_deadline_s: float = Field(45, gt=0, description="The leader ends itself when it could not renew for so long.")
    retry_s: float = Field(2, gt=0, description="Pause between attempts to take or renew.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.duration_s > self.renew_deadline_s > self.retry_s:
            raise ValueError(
                f"duration_s ({self.duration_s:g}) must exceed renew_deadline_s ({self.renew_deadline_s:g}), and that "
                f"retry_s ({self.retry_s:g}): else two operators could act at once"
            )
        return self


class OperatorConfig(BaseModel):
    """Settings of `flotilla operator`; each is an option and an environment variable of the command too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kubeconfig: Path | None = Field(None, description="None: the pod's ServiceAccount.")
    namespaces: tuple[Name, ...] = Field((), description="Empty: the whole cluster.")
    workers: int = Field(8, ge=1, le=64, description="Resources that are reconciled at the same time.")
    resync_interval_s: float = Field(
        600, ge=5, description="A full LIST replaces the store so often: watches can miss deletions."
    )
    scaling_interval_s: float = Field(2, ge=0.2, le=60, description="Between two reads of the engines' queues.")
    status_interval_s: float = Field(
        1, ge=0, description="Two status writes of one resource and generation are at least so far apart."
    )
    request_timeout_s: float = Field(10, gt=0, description="Of one call to the apiserver.")
    listen_host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from other hosts
    listen_port: int = Field(8080, ge=0, le=65535, description="/healthz, /readyz and /metrics; 0 takes a free one.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
    leader_election: LeaderElection = LeaderElection()
    compare_with: HostedModel | None = Field(
        HostedModel(provider="openai", model="gpt-5-mini"),
        description="The hosted model that a ModelDeployment without spec.cost.compareWith is priced against.",
    )
    engines: Path | None = Field(
        None, description="A folder with engine profiles (*.yaml), which add to the packaged ones and win over them."
    )
    accelerators: Path | None = Field(
        None, description="A YAML list of accelerator classes, which add to the packaged ones and win over them."
    )
    pod_address_map: str = Field(
        "",
        description="CIDR=CIDR pairs for networks in which pods are reached by another address than their own.",
    )
    gateway_image: str = Field(f"{IMAGE}:{__version__}", min_length=1, description="Image of gateways.")
    gateway_replicas: int = Field(2, ge=1, le=100, description="Pods of each gateway.")
    gateway_redis_secret: str = Field(
        "",
        max_length=253,
        description="Name of a Secret, in each namespace with a gateway, whose key `url` leads to a Redis or Valkey by "
        "which the gateway's pods share rate limits and budgets. Empty: each pod counts by itself.",
    )
    gateway_env: dict[str, str] = Field(
        {}, description="More environment variables of gateways, such as OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    allow_private_hosted_addresses: bool = Field(
        False,
        description="Let hosted targets of RoutingPolicies be http or at private addresses. For tests on one machine: "
        "whoever may write a RoutingPolicy can then make the gateway call any address of the cluster.",
    )
