"""spec.engine, spec.quantization and spec.accelerator: what runs the model, in which types, on which GPUs."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.secrets import SecretKeyRef
from flotilla.api.types import Atomic, Cel, DnsLabel, ListMap, Model


class QuantizationMethod(StrEnum):
    """How weights are stored and multiplied."""

    AUTO = "auto"
    NONE = "none"
    FP8 = "fp8"
    FP8_PER_CHANNEL = "fp8-per-channel"
    AWQ = "awq"
    GPTQ = "gptq"
    COMPRESSED_TENSORS = "compressed-tensors"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    INT8_W8A8 = "int8-w8a8"
    BITSANDBYTES = "bitsandbytes"
    GGUF = "gguf"


class KvCacheType(StrEnum):
    """How the KV cache is stored."""

    AUTO = "auto"
    FP8 = "fp8"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"


class EnvVarSource(Model):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKeyRef
    """secretKeyRef takes the value from a Secret."""


class EnvVar(Model):
    """One environment variable of the engine."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", min_length=1, max_length=200)]
    """name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """value as plain text; visible to everybody who may read this resource."""
    value_from: EnvVarSource | None = None
    """valueFrom takes the value from a Secret."""


_ONE_SOURCE = Cel(
    "has(self.value) != has(self.valueFrom)",
    "each item of spec.engine.env needs exactly one of value and valueFrom",
)


class EngineSpec(Model):
    """The inference server."""

    name: DnsLabel
    """name of the engine: vllm, sglang, llamacpp, tgi (in maintenance upstream), or one that the operator was given."""
    version: (
        Annotated[str, StringConstraints(pattern=r"^b?[0-9]+(\.[0-9]+)*$|^latest$", min_length=1, max_length=20)] | None
    ) = None
    """version of the engine, such as 0.33.0. Default: the newest that this release of Flotilla knows."""
    image: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-._:/@a-zA-Z0-9]*$", min_length=1, max_length=500)] | None
    ) = None
    """image replaces the engine's own. It must be of spec.engine.version and start the server by itself."""
    args: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=1000)]], Atomic(64)] = Field(
        default_factory=list
    )
    """args are appended to the engine's command line. Flags that the operator sets itself are refused by name."""
    env: Annotated[list[Annotated[EnvVar, _ONE_SOURCE]], ListMap(("name",), 64)] = Field(default_factory=list)
    """env are additional environment variables."""


class QuantizationSpec(Model):
    """How weights and KV cache are stored."""

    method: QuantizationMethod = QuantizationMethod.AUTO
    """method of the weights.

    auto leaves pre-quantized checkpoints alone and else takes fp8 where the GPU runs it natively."""
    kv_cache: KvCacheType = KvCacheType.AUTO
    """kvCache is the type of the KV cache; auto takes that of the model."""


class AcceleratorSpec(Model):
    """The GPUs of one replica."""

    class_: Annotated[DnsLabel, Field(alias="class")]
    """class is a row of the operator's accelerator table, such as nvidia-l4."""
    count: Annotated[int, Field(ge=1, le=16)] | None = None
    """count of GPUs for one replica; the model is split over them (tensor parallelism).

    Default: the fewest that fit, or 1 where the model's architecture is not known."""
