"""spec.model: which weights are served, from where, and under which names."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.secrets import CredentialsSecret
from flotilla.api.types import Cel, DnsSubdomain, ListMap, Model


class Embeddings(StrEnum):
    """Whether input and output embeddings are one table."""

    TIED = "Tied"
    UNTIED = "Untied"


_SOURCE_RULE = (
    r"self.matches('^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*$"
    r"|^(s3|gs)://[a-z0-9][-._a-z0-9]*/[^ ]+$|^oci://[a-z0-9][-._:/@a-zA-Z0-9]*$"
    r"|^pvc://[a-z0-9][-.a-z0-9]*(/[^: ]*)?$') && !self.contains('/../')"
)
_SOURCE_MESSAGE = (
    "spec.model.source must be hf://OWNER/NAME, s3://BUCKET/PATH, gs://BUCKET/PATH, oci://IMAGE or pvc://CLAIM/PATH, "
    "such as hf://Qwen/Qwen2.5-7B-Instruct; pin a revision with spec.model.revision"
)


class ArchitectureSpec(Model):
    """What a model is made of, by its config.json."""

    parameters_millions: Annotated[int, Field(ge=1, le=10_000_000)]
    """parametersMillions are all parameters, in millions; those of every expert."""
    layers: Annotated[int, Field(ge=1, le=1000)]
    """layers with attention: num_hidden_layers."""
    hidden_size: Annotated[int, Field(ge=1, le=100_000)]
    """hiddenSize: hidden_size."""
    intermediate_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """intermediateSize: intermediate_size."""
    attention_heads: Annotated[int, Field(ge=1, le=1000)]
    """attentionHeads: num_attention_heads."""
    kv_heads: Annotated[int, Field(ge=1, le=1000)]
    """kvHeads: num_key_value_heads."""
    head_dim: Annotated[int, Field(ge=1, le=10_000)]
    """headDim: head_dim, or hidden_size / num_attention_heads."""
    vocab_size: Annotated[int, Field(ge=1, le=10_000_000)]
    """vocabSize: vocab_size."""
    embeddings: Embeddings = Embeddings.UNTIED
    """embeddings are Tied where tie_word_embeddings is true."""
    max_context_length: Annotated[int, Field(ge=1, le=100_000_000)]
    """maxContextLength: max_position_embeddings."""
    sliding_window: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """slidingWindow in tokens of the layers that have one."""
    sliding_window_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    """slidingWindowLayers are the layers that see a window only."""
    latent_width: Annotated[int, Field(ge=0, le=100_000)] = 0
    """latentWidth of models with latent attention (MLA): kv_lora_rank + qk_rope_head_dim."""


class Adapter(Model):
    """One LoRA adapter."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", min_length=1, max_length=100)]
    """name that clients send as the model."""
    source: Annotated[
        str,
        StringConstraints(min_length=6, max_length=300),
        Cel(
            r"self.matches('^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*$|^pvc://[a-z0-9][-.a-z0-9]*/[^:]+$')",
            "spec.model.adapters[*].source must be hf://OWNER/NAME or pvc://CLAIM/PATH",
        ),
    ]
    """source of the adapter: hf://OWNER/NAME, or pvc://CLAIM/PATH."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """rank of the adapter's matrices: r in its adapter_config.json."""


class ModelCache(Model):
    """Where downloads and compiled kernels live."""

    claim_name: DnsSubdomain | None = None
    """claimName is a PersistentVolumeClaim, so that the next start finds them; ReadWriteMany for several replicas.

    Default: a folder that goes with the pod."""


class ModelSpec(Model):
    """Which weights are served, under which name."""

    source: Annotated[
        str,
        StringConstraints(min_length=6, max_length=300),
        Cel(_SOURCE_RULE, _SOURCE_MESSAGE),
    ]
    """source of the weights.

    hf://OWNER/NAME of the Hugging Face hub, s3:// or gs:// for a bucket, oci:// for an image, pvc://CLAIM/PATH."""
    revision: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$", min_length=1, max_length=200)] | None
    ) = None
    """revision pins a branch, tag or commit of the source. Without it a restart may load other weights."""
    served_name: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._:/A-Za-z0-9]*$", min_length=1, max_length=200)]
        | None
    ) = None
    """servedName is the model name that clients send. Default: metadata.name."""
    context_length: Annotated[int, Field(ge=256, le=10_000_000)] | None = None
    """contextLength is the most tokens of prompt and answer together.

    Default: the model's own, or what fits where that is less."""
    architecture: ArchitectureSpec | None = None
    """architecture are facts for the memory fit of a model that the catalogue does not have.

    `flotilla estimate --config config.json` prints them."""
    credentials_secret: CredentialsSecret | None = None
    """credentialsSecret gives access to the source.

    hf: a token. s3: variables such as AWS_ACCESS_KEY_ID. gs: a key file. oci: a pull secret."""
    adapters: Annotated[list[Adapter], ListMap(("name",), 32)] = Field(default_factory=list)
    """adapters are LoRA adapters that are served beside the model, each under its own name.

    SGLang takes SERVEDNAME:ADAPTER as the model of a request."""
    cache: ModelCache = ModelCache()
    """cache says where downloaded weights and compiled kernels are kept."""
