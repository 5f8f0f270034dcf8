"""What an administrator may set on the operator, and nothing about a single model."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from flotilla import __version__
from flotilla.constants import IMAGE
from flotilla.domain.endpoints import base_url
from flotilla.errors import InvalidSpec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]

_OWN_CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has its token for the apiserver."""


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
    namespace: Name = Field(
        "flotilla-system",
        description="Where the operator itself lives: its Lease, and what deployments have cost, which is kept there "
        "without leader election too.",
    )
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
    console: Literal["Enabled", "Disabled"] = Field(
        "Disabled", description="A read-only page of the fleet under /console/, for whoever reaches listen_port."
    )
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
    prometheus_url: str | None = Field(
        None,
        description="Of the Prometheus that scrapes the engines, such as http://prometheus.monitoring.svc:9090; "
        "None: nothing asks one.",
    )
    prometheus_ca_file: Path | None = Field(
        None, description="Authorities that its certificate may come from; None: the public ones."
    )
    prometheus_bearer_token_file: Path | None = Field(
        None, description="A token for it, read with each query. The operator's own token is refused."
    )
    scaling_source: Literal["Auto", "Pods", "Prometheus"] = Field(
        "Auto",
        description="Where queues are read: Auto asks the pods, and Prometheus for those that do not answer; Pods asks "
        "nobody else; Prometheus comes first, for networks in which the operator reaches no pod.",
    )
    wake_query: str | None = Field(
        None,
        description="PromQL for requests per second to models without replicas, by the labels namespace and "
        "modeldeployment: more than 0 starts one. For traffic that comes through no gateway of ours.",
    )
    ledger_interval_s: float = Field(
        300,
        ge=10,
        description="What a deployment with pods has cost is written to its ConfigMap so often, and whenever its pods "
        "change.",
    )
    price_catalog: Path | None = Field(
        None,
        description="A YAML file with GPU and hosted prices of your own, read again when it changes; a wrong change is "
        "refused and said in CostKnown.",
    )
    price_stale_days: int = Field(60, ge=1, le=3650, description="CostKnown warns of prices that are older.")
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

    @field_validator("prometheus_url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        try:
            return None if url is None else base_url(url, field="prometheus_url")
        except InvalidSpec as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _prometheus_is_there_to_be_asked(self) -> Self:
        wants = "scaling_source Prometheus" if self.scaling_source == "Prometheus" else ""
        wants = "wake_query" if self.wake_query else wants
        if wants and not self.prometheus_url:
            raise ValueError(f"{wants} needs prometheus_url, such as http://prometheus.monitoring.svc:9090")
        return self

    @model_validator(mode="after")
    def _credentials_stay_where_they_belong(self) -> Self:
        token = self.prometheus_bearer_token_file
        if (token or self.prometheus_ca_file) and not (self.prometheus_url or "").startswith("https://"):
            raise ValueError(
                "prometheus_bearer_token_file and prometheus_ca_file need a prometheus_url with https://: over http "
                "everybody on the way reads the token"
            )
        if token is not None and _OWN_CREDENTIALS.resolve() in token.resolve().parents:
            raise ValueError(
                f"prometheus_bearer_token_file {token} is the operator's own token, which the apiserver accepts; mount "
                "a token of a ServiceAccount that may only read Prometheus"
            )
        return self
