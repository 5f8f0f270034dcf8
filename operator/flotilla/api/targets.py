"""The places that requests of a RoutingPolicy can go to."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.secrets import SecretKeyRef
from flotilla.api.types import Cel, DnsLabel, Model, Usd

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._:/A-Za-z0-9]*$", min_length=1, max_length=200)]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9]*$", min_length=1, max_length=63)]


class Boundary(StrEnum):
    """Whether a request stays in the cluster."""

    CLUSTER = "Cluster"
    EXTERNAL = "External"


class Provider(StrEnum):
    """Which API a hosted model speaks."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class Support(StrEnum):
    """Whether a target can do something; left out where nobody knows, and then it is tried."""

    SUPPORTED = "Supported"
    UNSUPPORTED = "Unsupported"


class ModelDeploymentRef(Model):
    """A ModelDeployment of the same namespace."""

    name: DnsLabel
    """name of the ModelDeployment."""
    adapter: ModelName | None = None
    """adapter of the ModelDeployment that is asked instead of the model itself."""


class Price(Model):
    """What a hosted model costs, in US dollars per million tokens."""

    input_per_m_tok: Annotated[Usd, Field(alias="inputPerMTok")]
    """inputPerMTok is the price of a million prompt tokens."""
    output_per_m_tok: Annotated[Usd, Field(alias="outputPerMTok")]
    """outputPerMTok is the price of a million answer tokens."""
    cached_input_per_m_tok: Annotated[Usd | None, Field(alias="cachedInputPerMTok")] = None
    """cachedInputPerMTok is the price of a million prompt tokens from the provider's cache. Default: inputPerMTok."""


class ExternalTarget(Model):
    """A hosted model."""

    provider: Provider = Provider.OPENAI
    """provider is OpenAI for every OpenAI-compatible API, or Anthropic for the Messages API."""
    base_url: Annotated[
        str,
        StringConstraints(
            pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[-A-Za-z0-9._~/]*)?$", min_length=10, max_length=500
        ),
        Field(alias="baseURL"),
    ]
    """baseURL of the API, https and a public host without credentials, such as https://api.openai.com/v1."""
    model: ModelName
    """model as the provider names it."""
    secret_ref: SecretKeyRef
    """secretRef names the key of a Secret that holds the API key."""
    price: Price | None = None
    """price of the model. Budgets need it."""


class Capabilities(Model):
    """What a target can do. A request goes to no target that is known to lack what it needs."""

    context_length: Annotated[int, Field(ge=256, le=100_000_000)] | None = None
    """contextLength is the most tokens of prompt and answer together. Default: that of the ModelDeployment."""
    tools: Support | None = None
    """tools says whether the model can call tools."""
    json_schema: Support | None = None
    """jsonSchema says whether answers can be held to a JSON schema."""
    vision: Support | None = None
    """vision says whether the model reads images."""


class Target(Model):
    """A place that requests can go to."""

    name: DnsLabel
    """name by which routes refer to the target."""
    model_deployment_ref: ModelDeploymentRef | None = None
    """modelDeploymentRef is a ModelDeployment of this namespace."""
    external: ExternalTarget | None = None
    """external is a hosted model."""
    region: Region | None = None
    """region where the target processes data, for data classes that allow only some."""
    capabilities: Capabilities = Capabilities()
    """capabilities of the target."""


ONE_PLACE = Cel(
    "has(self.modelDeploymentRef) != has(self.external)",
    "each item of spec.targets needs exactly one of modelDeploymentRef and external",
)
