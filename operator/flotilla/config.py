"""The settings of the operator. `flotilla.settings` reads them from options, environment variables and a file."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from flotilla import __version__
from flotilla.addresses import base_url
from flotilla.constants import IMAGE
from flotilla.errors import InvalidSpec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]

_OWN_CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts the token of the pod's ServiceAccount."""


class HostedModel(BaseModel):
    """A hosted model, by its provider and name in the genai-prices package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str = Field(description="Provider in genai-prices, such as openai.")
    model: str = Field(description="Model of that provider, such as gpt-5-mini.")


class LeaderElection(BaseModel):
    """Only the operator that holds the Lease acts; the others wait for it.

    The defaults tolerate an apiserver that is unavailable for half a minute, as during the upgrade of a control plane.
    An operator that shuts down in order releases the Lease at once. (OpenShift's library-go uses 137, 107 and 26 s for
    the same reason.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Take a Lease before acting, so that only one operator acts at a time.")
    namespace: Name = Field(
        "flotilla-system",
        description="Namespace of the operator: of its Lease, and of the ConfigMaps with the recorded cost, which are "
        "kept there without leader election too.",
    )
    name: Name = Field("flotilla-operator", description="Name of the Lease.")
    duration_s: float = Field(
        60, gt=0, description="Seconds after the last renewal from which another operator may take the Lease."
    )
    renew_deadline_s: float = Field(
        45, gt=0, description="Seconds without a successful renewal after which the leader stops."
    )
    retry_s: float = Field(2, gt=0, description="Seconds between attempts to take or renew the Lease.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.duration_s > self.renew_deadline_s > self.retry_s:
            raise ValueError(
                f"duration_s ({self.duration_s:g}) must exceed renew_deadline_s ({self.renew_deadline_s:g}), and that "
                f"must exceed retry_s ({self.retry_s:g}); otherwise two operators could act at the same time"
            )
        return self


class OperatorConfig(BaseModel):
    """The settings of `flotilla operator`.

    Each is an option of the command, an environment variable and a key of the settings file: `flotilla.settings`
    derives all three from this model. The schema of the Helm chart's `config` comes from it too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kubeconfig: Path | None = Field(
        None,
        description="Kubeconfig files, separated by colons. Default: ~/.kube/config, or the pod's ServiceAccount where "
        "that file does not exist.",
    )
    context: str | None = Field(None, description="Context of the kubeconfig. Default: the current context.")
    namespaces: tuple[Name, ...] = Field((), description="Namespaces to watch. Default: the whole cluster.")
    workers: int = Field(8, ge=1, le=64, description="Resources that are reconciled at the same time.")
    resync_interval_s: float = Field(
        600,
        ge=5,
        description="Seconds after which every resource is looked at again, and nodes and OpenCost are read again.",
    )
    scaling_interval_s: float = Field(2, ge=0.2, le=60, description="Seconds between two reads of the engines' queues.")
    status_interval_s: float = Field(
        1, ge=0, description="Least seconds between two status writes of one resource and generation."
    )
    request_timeout_s: float = Field(10, gt=0, description="Timeout of one call to the apiserver, in seconds.")
    listen_host: str = Field(
        "0.0.0.0",  # noqa: S104 - probes and Prometheus come from other hosts
        description="Address of /healthz, /readyz and /metrics.",
    )
    listen_port: int = Field(
        8080, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics; 0 takes a free one."
    )
    console: Literal["Enabled", "Disabled"] = Field(
        "Disabled", description="A read-only page of the fleet at /console/, for everyone who can reach listen_port."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_format: Literal["json", "text"] = Field("json", description="Format of the log lines.")
    leader_election: LeaderElection = Field(LeaderElection(), description="Which of several operators acts.")
    compare_with: HostedModel | None = Field(
        HostedModel(provider="openai", model="gpt-5-mini"),
        description="The hosted model that a ModelDeployment without spec.cost.compareWith is compared with.",
    )
    engines: Path | None = Field(
        None, description="Folder with engine profiles (*.yaml), which add to the packaged ones and override them."
    )
    accelerators: Path | None = Field(
        None, description="YAML list of accelerator classes, which add to the packaged ones and override them."
    )
    prometheus_url: str | None = Field(
        None,
        description="Address of the Prometheus that scrapes the engines, such as "
        "http://prometheus.monitoring.svc:9090. Default: no Prometheus is queried.",
    )
    prometheus_ca_file: Path | None = Field(
        None, description="Certificate authorities for prometheus_url. Default: the public ones."
    )
    prometheus_bearer_token_file: Path | None = Field(
        None,
        description="File with a bearer token for prometheus_url, read with each query. The operator's own token is "
        "refused.",
    )
    scaling_source: Literal["Auto", "Pods", "Prometheus"] = Field(
        "Auto",
        description="Where queue lengths are read. Auto: from the pods, and from Prometheus for pods that do not "
        "answer. Pods: only from the pods. Prometheus: from Prometheus first, for networks in which "
        "the operator cannot reach pods.",
    )
    wake_query: str | None = Field(
        None,
        description="PromQL for requests per second to models without replicas, with the labels namespace and "
        "modeldeployment; a value above 0 starts a replica. For traffic that does not pass Flotilla's gateway.",
    )
    ledger_interval_s: float = Field(
        300,
        ge=10,
        description="Seconds between two writes of a deployment's recorded cost to its ConfigMap; it is also written "
        "when its pods change.",
    )
    price_catalog: Path | None = Field(
        None,
        description="YAML file with your own GPU and hosted prices, read again when it changes. A faulty change is "
        "refused and reported in CostKnown.",
    )
    price_stale_days: int = Field(
        60, ge=1, le=3650, description="Age in days from which CostKnown warns that a price is old."
    )
    pod_address_map: str = Field(
        "",
        description="CIDR=CIDR pairs, for networks in which pods are reached at another address than their own.",
    )
    gateway_image: str = Field(f"{IMAGE}:{__version__}", min_length=1, description="Image of the gateways.")
    gateway_replicas: int = Field(2, ge=1, le=100, description="Pods of each gateway.")
    gateway_redis_secret: str = Field(
        "",
        max_length=253,
        description="Name of a Secret, in each namespace with a gateway, whose key `url` is the address of a Redis or "
        "Valkey in which the gateway's pods share rate limits and budgets. Default: each pod counts by itself.",
    )
    gateway_tls_secret: str = Field(
        "",
        max_length=253,
        description="Name of a Secret of type kubernetes.io/tls, in each namespace with a gateway, with the gateway's "
        "certificate. Default: clients connect by http.",
    )
    gateway_env: dict[str, str] = Field(
        {}, description="Additional environment variables of the gateways, such as OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    allow_private_hosted_addresses: bool = Field(
        False,
        description="Allow http and private addresses for hosted targets of RoutingPolicies, for tests on one machine. "
        "Everyone who may write a RoutingPolicy can then make the gateway call any address of the cluster.",
    )

    @field_validator("prometheus_url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        try:
            return None if url is None else base_url(url, field="prometheus_url")
        except InvalidSpec as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _prometheus_is_named(self) -> Self:
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
                "prometheus_bearer_token_file and prometheus_ca_file need a prometheus_url with https://; over http "
                "the token can be read on the network"
            )
        if token is not None and _OWN_CREDENTIALS.resolve() in token.resolve().parents:
            raise ValueError(
                f"prometheus_bearer_token_file {token} is the operator's own token, which the apiserver accepts; mount "
                "a token of a ServiceAccount that may only read Prometheus"
            )
        return self
