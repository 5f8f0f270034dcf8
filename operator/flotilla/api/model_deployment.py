"""The ModelDeployment resource: what a user writes (spec) and what the operator reports (status)."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from flotilla.api.cost import ONE_PRICE, CostSpec, CostStatus
from flotilla.api.types import (
    Atomic,
    Cel,
    Condition,
    CredentialsSecret,
    DnsLabel,
    DnsSubdomain,
    LabelKey,
    LabelValue,
    ListMap,
    Model,
    ObjectMeta,
    Preserve,
    Quantity,
    SecretKeyRef,
)


class Embeddings(StrEnum):
    """Whether input and output embeddings are one table."""

    TIED = "Tied"
    UNTIED = "Untied"


_SOURCE_RULE = (
    r"self.matches('^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*$"
    r"|^(s3|gs)://[a-z0-9][-._a-z0-9]*/[^ ]+$|^oci://[a-z0-9][-._:/@a-zA-Z0-9]*$"
    r"|^pvc://[a-z0-9][-.a-z0-9]*(/[^: ]*)?$') && !self.matches('/[.][.](/|$)')"
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
    recurrent_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    """recurrentLayers keep a state of fixed size instead of a cache (Mamba, linear attention), beside the layers."""
    recurrent_state_bytes: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """recurrentStateBytes are kept for each request and recurrent layer, on one GPU; more GPUs divide them."""
    experts: Annotated[int, Field(ge=0, le=10_000)] = 0
    """experts are the routed experts of a layer, for a mixture of experts."""
    experts_per_token: Annotated[int, Field(ge=0, le=1000)] = 0
    """expertsPerToken: num_experts_per_tok. The speed depends on it."""
    expert_width: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """expertWidth: moe_intermediate_size, or intermediate_size where the file has no other."""
    expert_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    """expertLayers are the layers with experts. Default: all layers."""


class Adapter(Model):
    """One LoRA adapter."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", min_length=1, max_length=100)]
    """name that clients send as the model."""
    source: Annotated[
        str,
        StringConstraints(min_length=6, max_length=300),
        Cel(
            r"self.matches('^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*$|^pvc://[a-z0-9][-.a-z0-9]*/[^:]+$"
            r"|^oci://[a-z0-9][-._:/@a-zA-Z0-9]*$') && !self.contains('/../')",
            "spec.model.adapters[*].source must be hf://OWNER/NAME, pvc://CLAIM/PATH or oci://IMAGE; copy an adapter "
            "from a bucket to a volume",
        ),
    ]
    """source of the adapter: hf://OWNER/NAME of the Hugging Face hub, pvc://CLAIM/PATH, or oci://IMAGE."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """rank of the adapter's matrices: r in its adapter_config.json."""


class LoraSpec(Model):
    """What the engine reserves for LoRA adapters, so that they come and go without a new pod."""

    max_adapters: Annotated[int, Field(ge=1, le=32)] = 4
    """maxAdapters that can be in use at one time."""
    max_rank: Annotated[int, Field(ge=1, le=512)] = 16
    """maxRank of the adapters' matrices; more takes more memory."""
    claim_names: Annotated[list[DnsSubdomain], Atomic(8)] = Field(default_factory=list)
    """claimNames are PersistentVolumeClaims that will hold adapters.

    They are mounted from the start, because mounting one later replaces the pods."""


class ModelCache(Model):
    """Where downloads and compiled kernels live."""

    claim_name: DnsSubdomain | None = None
    """claimName is a PersistentVolumeClaim, so that the next start finds them; ReadWriteMany for several replicas.

    Default: a folder that is deleted with the pod."""


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

    vLLM and SGLang load and unload them while they serve. SGLang takes SERVEDNAME:ADAPTER as the model of a request,
    and llama.cpp the number of the adapter as lora; a gateway writes both."""
    lora: LoraSpec | None = None
    """lora reserves memory for adapters, also where there is none yet. Default: its fields' own, with an adapter."""
    cache: ModelCache = ModelCache()
    """cache specifies where downloaded weights and compiled kernels are kept."""


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
    """version of the engine, such as 0.33.0. Default: the newest that this release of Flotilla supports."""
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

    auto takes fp8 where the GPU runs it natively and the catalogue knows that the weights have 16 bits; else it leaves
    the checkpoint as it is stored."""
    kv_cache: KvCacheType = KvCacheType.AUTO
    """kvCache is the type of the KV cache; auto takes that of the model."""


class AcceleratorSpec(Model):
    """The GPUs of one replica."""

    class_: Annotated[DnsLabel, Field(alias="class")]
    """class is a row of the operator's accelerator table, such as nvidia-l4."""
    count: Annotated[int, Field(ge=1, le=16)] | None = None
    """count of GPUs for one replica; the model is split over them (tensor parallelism).

    Default: the fewest that fit, or 1 where the model's architecture is not known."""


MAX_REPLICAS = 1000
SCALE_TO_ZERO_AFTER_S = 900


class ScalingMode(StrEnum):
    """Who sets the replica count."""

    INTERNAL = "Internal"
    EXTERNAL = "External"
    NONE = "None"


class ScalingSpec(Model):
    """How many replicas, and who decides."""

    mode: ScalingMode = ScalingMode.INTERNAL
    """mode is Internal (the operator, on queue depth), External (an HPA or KEDA, on /scale) or None (spec.replicas)."""
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    """minReplicas is the least number of replicas in mode Internal.

    0 needs a source of demand for a model without replicas: a gateway, or the operator's wake_query."""
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    """maxReplicas is the greatest number of replicas in mode Internal."""
    queue_depth_per_replica: Annotated[int, Field(ge=1, le=10_000)] = 8
    """queueDepthPerReplica is the wanted number of waiting and running requests per replica."""
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=86_400)] = 240
    """scaleDownDelaySeconds is how long a smaller number must have been enough before replicas are removed."""
    scale_up_limit_per_minute: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 20
    """scaleUpLimitPerMinute is how many replicas may be added within a minute."""
    scale_down_percent_per_minute: Annotated[int, Field(ge=1, le=100)] = 25
    """scaleDownPercentPerMinute is the share of the replicas that may be removed within a minute; one always may."""
    scale_to_zero_after_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """scaleToZeroAfterSeconds without any request remove the last replica, but not before scaleDownDelaySeconds.

    Only where minReplicas is 0. Default: 900."""


BOUNDS = Cel(
    # The apiserver judges `default: {}` before it fills the defaults in.
    "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
    "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas; maxReplicas is 1 where it is left out",
    field_path=".minReplicas",
)
ZERO = Cel(
    "!has(self.scaleToZeroAfterSeconds) || (has(self.minReplicas) && self.minReplicas == 0)",
    "spec.scaling.scaleToZeroAfterSeconds needs spec.scaling.minReplicas: 0, which is 1 where it is left out",
    field_path=".scaleToZeroAfterSeconds",
)


class RolloutStrategy(StrEnum):
    """How a changed pod template replaces running pods."""

    AUTO = "Auto"
    SURGE = "Surge"
    REPLACE = "Replace"


class TopologySpread(StrEnum):
    """Whether replicas prefer different hosts and zones."""

    PREFERRED = "Preferred"
    NONE = "None"


class RolloutSpec(Model):
    """How a change of the model, the engine or its flags reaches the pods."""

    strategy: RolloutStrategy = RolloutStrategy.AUTO
    """strategy is Surge (a new replica starts before an old one is deleted) or Replace (an old one is deleted first).

    Auto surges where a node has the accelerators free when the change is made."""
    timeout_seconds: Annotated[int, Field(ge=60, le=86_400)] | None = None
    """timeoutSeconds is how long a new pod may take to load the model, and a rollout to make progress.

    Old replicas keep serving meanwhile. The startup probe and the engine's own limit follow it. Default: by the size of
    the weights, and ten minutes more for the rollout."""


class Toleration(Model):
    """Lets pods run on nodes with a taint."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """key of the taint; without it every key."""
    operator: Annotated[str, StringConstraints(pattern="^(Exists|Equal)$", min_length=5, max_length=6)] | None = None
    """operator is Exists or Equal."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """value of the taint, for Equal."""
    effect: (
        Annotated[
            str,
            StringConstraints(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$", min_length=9, max_length=16),
        ]
        | None
    ) = None
    """effect of the taint; without it every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """tolerationSeconds bounds how long a NoExecute taint is tolerated."""


class SchedulingSpec(Model):
    """Where pods may run, beside what the accelerator class asks for."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Atomic(32)] = Field(default_factory=dict)
    """nodeSelector are labels that a node must have."""
    tolerations: Annotated[list[Toleration], Atomic(32)] = Field(default_factory=list)
    """tolerations are added to those of the accelerator class."""
    affinity: Annotated[dict[str, Any], Preserve()] | None = None
    """affinity is a Kubernetes pod affinity; required node terms are combined with those of the accelerator class."""
    topology_spread: TopologySpread = TopologySpread.PREFERRED
    """topologySpread Preferred spreads replicas over hosts and zones where there is room."""
    priority_class_name: DnsSubdomain | None = None
    """priorityClassName lets more important models preempt others."""
    runtime_class_name: DnsSubdomain | None = None
    """runtimeClassName selects a container runtime, such as nvidia."""
    scheduler_name: DnsSubdomain | None = None
    """schedulerName selects another scheduler than the default one."""
    queue_name: DnsLabel | None = None
    """queueName is the Kueue LocalQueue that admits the pods."""


class ResourcesSpec(Model):
    """CPU and memory of the engine's container; the defaults grow with the number of GPUs."""

    cpu: Quantity | None = None
    """cpu that is requested, in cores. There is no CPU limit: throttling would stall the GPU."""
    memory: Quantity | None = None
    """memory that is requested and the limit."""
    shared_memory: Quantity | None = None
    """sharedMemory is the size of /dev/shm, which counts against memory."""


class EngineStatus(Model):
    """The engine in use."""

    name: Annotated[str, StringConstraints(max_length=63)] | None = None
    """name of the engine."""
    version: Annotated[str, StringConstraints(max_length=63)] | None = None
    """version of the engine."""
    image: Annotated[str, StringConstraints(max_length=500)] | None = None
    """image that the pods run."""


class QuantizationStatus(Model):
    """What the quantization was resolved to."""

    method: Annotated[str, StringConstraints(max_length=63)] | None = None
    """method in use."""
    kv_cache: Annotated[str, StringConstraints(max_length=63)] | None = None
    """kvCache type in use."""
    note: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """note is what is slower or different than one may expect."""


class AcceleratorStatus(Model):
    """The GPUs in use."""

    class_: Annotated[Annotated[str, StringConstraints(max_length=63)] | None, Field(alias="class")] = None
    """class of the accelerator."""
    count: Annotated[int, Field(ge=0, le=16)] | None = None
    """count of GPUs per replica."""
    resource: Annotated[str, StringConstraints(max_length=253)] | None = None
    """resource that pods request, such as nvidia.com/gpu."""


class FitStatus(Model):
    """How the model fits into the memory of one GPU."""

    verdict: Annotated[str, StringConstraints(max_length=63)] | None = None
    """verdict is Fits, Tight or Unknown."""
    weights_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """weightsMib of the model on each GPU."""
    working_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """workingMib is the estimate of what the engine needs beside weights and cache."""
    kv_cache_mib: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """kvCacheMib is left for the KV cache."""
    context_length: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """contextLength in tokens that requests may have."""
    longest_context_length: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """longestContextLength would fit by the estimate."""
    concurrent_requests: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """concurrentRequests is the number of concurrent requests of full context length that fit."""
    measured_cache_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """measuredCacheTokens is the room in tokens that the running engines report for their KV cache.

    It is the smallest of the pods, and a bound above where a model has layers of several kinds."""
    measured_context_length: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """measuredContextLength in tokens is what the running engines accept."""
    measured_requests: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """measuredRequests is the number of requests of that context for which the running engines report room."""


class ScalingStatus(Model):
    """What the autoscaler last decided; a restarted operator continues from here."""

    mode: Annotated[str, StringConstraints(max_length=63)] | None = None
    """mode in force."""
    desired_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """desiredReplicas is the number of pods that is wanted now."""
    source: Annotated[str, StringConstraints(max_length=63)] | None = None
    """source of the engines' queues: Pods or Prometheus."""
    panic_since: Annotated[str, StringConstraints(max_length=40)] | None = None
    """panicSince a burst began: no replica is removed before it has been over for scaleDownDelaySeconds."""


class AdapterStatus(Model):
    """One LoRA adapter on the replicas."""

    name: Annotated[str, StringConstraints(max_length=100)]
    """name of the adapter."""
    digest: Annotated[str, StringConstraints(max_length=100)] | None = None
    """digest of the adapter's source; it changes when other weights are meant."""
    loaded_replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """loadedReplicas have it."""


class ModelDeploymentStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Ready, Reconciling and Stalled sum up.

    SpecValid, FitsMemory, Scheduled, ModelLoaded, ScalingActive and CostKnown give the reasons."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """replicas that exist."""
    scheduled_replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """scheduledReplicas hold a node and its accelerators, and cost money."""
    ready_replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """readyReplicas serve."""
    ready_summary: Annotated[str, StringConstraints(max_length=63)] | None = None
    """readySummary is ready/wanted, for a column."""
    selector: Annotated[str, StringConstraints(max_length=253)] | None = None
    """selector of the pods, for the /scale subresource."""
    endpoint: Annotated[str, StringConstraints(max_length=253)] | None = None
    """endpoint is the base URL for OpenAI clients inside the cluster."""
    engine: EngineStatus | None = None
    """engine in use."""
    quantization: QuantizationStatus | None = None
    """quantization in use."""
    accelerator: AcceleratorStatus | None = None
    """accelerator in use."""
    fit: FitStatus | None = None
    """fit of the model into the accelerator's memory."""
    adapters: Annotated[list[AdapterStatus], ListMap(("name",), 32)] | None = None
    """adapters that are wanted, and on how many replicas each is."""
    scaling: ScalingStatus | None = None
    """scaling decision in force."""
    cost: CostStatus | None = None
    """cost basis."""


_REPLICAS_OWNER = Cel(
    "!has(self.replicas) || self.scaling.mode != 'Internal'",
    "spec.replicas belongs to scaling.mode External or None; in mode Internal the operator counts between minReplicas "
    "and maxReplicas, so remove spec.replicas or change spec.scaling.mode",
    field_path=".replicas",
)
NAME_RULE = Cel(
    "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name must start with a letter, hold only lower case letters, digits and dashes, and have at most 52 "
    "characters: a Service and labels take it",
)


class ModelDeploymentSpec(Model):
    """What is wanted."""

    model: ModelSpec
    """model specifies which weights are served, under which name."""
    engine: EngineSpec
    """engine is the inference server."""
    quantization: QuantizationSpec = QuantizationSpec()
    """quantization specifies how weights and KV cache are stored."""
    accelerator: AcceleratorSpec
    """accelerator specifies which GPUs a replica gets."""
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """replicas is the number of pods in scaling.mode External, where /scale writes it, and None.

    Leave it out of Git where an autoscaler writes it."""
    scaling: Annotated[ScalingSpec, BOUNDS, ZERO] = ScalingSpec()
    """scaling specifies how many replicas there are and who decides."""
    rollout: RolloutSpec = RolloutSpec()
    """rollout specifies how a change reaches the pods."""
    scheduling: SchedulingSpec = SchedulingSpec()
    """scheduling specifies where pods may run."""
    resources: ResourcesSpec = ResourcesSpec()
    """resources override the CPU and memory of the engine's container."""
    cost: Annotated[CostSpec, ONE_PRICE] = CostSpec()
    """cost specifies what the deployment is priced at and compared with."""


class ModelDeployment(Model):
    """ModelDeployment serves one model on GPUs of the cluster."""

    metadata: ObjectMeta
    spec: Annotated[ModelDeploymentSpec, _REPLICAS_OWNER]
