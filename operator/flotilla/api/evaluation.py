"""The Evaluation resource: cases, targets, a scorer and the requirements that a target must meet; and its results."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from flotilla.api.routing_policy import ExternalTarget, ModelDeploymentRef, Permille, TaskName
from flotilla.api.types import (
    Atomic,
    Cel,
    Condition,
    CredentialsSecret,
    DnsLabel,
    DnsSubdomain,
    ListMap,
    ListSet,
    Model,
    ObjectMeta,
    Preserve,
    Quantity,
    Usd,
)

CaseText = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
FieldPath = Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)*$", min_length=1, max_length=200)]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]
UsdAmount = Annotated[str, StringConstraints(max_length=32)]
Cases = Annotated[int, Field(ge=0, le=1_000_000)]


class DatasetSpec(Model):
    """Where the cases are."""

    source: Annotated[
        str,
        StringConstraints(
            pattern=r"^(configmap|pvc|s3|gs|oci)://[a-z0-9][-A-Za-z0-9._:@]*(/[-A-Za-z0-9._=@:]+)*$",
            min_length=10,
            max_length=500,
        ),
    ]
    """source of the cases, a JSONL file: configmap://NAME/KEY, pvc://CLAIM/PATH, s3://BUCKET/KEY, gs://BUCKET/KEY
    or oci://IMAGE (its file cases.jsonl)."""
    sample_size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """sampleSize is how many of the cases are asked, chosen by seed. Default: all."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the choice and of the order of cases; another seed is another sample."""
    credentials_secret: CredentialsSecret | None = None
    """credentialsSecret to read a bucket: for s3 its keys are environment variables of the AWS tools."""


_SOURCE = Cel(
    "self.source.startsWith('oci://') || self.source.matches('^[a-z0-9]+://[^/]+/.+$')",
    "spec.dataset.source must be configmap://NAME/KEY, pvc://CLAIM/PATH, s3://BUCKET/KEY, gs://BUCKET/KEY "
    "or oci://IMAGE",
    field_path=".source",
)


class EvaluatedTarget(Model):
    """A model that is asked."""

    name: DnsLabel
    """name by which requirements and results refer to the target."""
    model_deployment_ref: ModelDeploymentRef | None = None
    """modelDeploymentRef is a ModelDeployment of this namespace."""
    external: ExternalTarget | None = None
    """external is a hosted model."""


_ONE_PLACE = Cel(
    "has(self.modelDeploymentRef) != has(self.external)",
    "each item of spec.targets needs exactly one of modelDeploymentRef and external",
)


class RequestSpec(Model):
    """How a case becomes a request."""

    instructions: CaseText | None = None
    """instructions become the system message of each case that has none. They hold the prompt under test."""
    max_tokens: Annotated[int, Field(ge=1, le=131_072)] = 256
    """maxTokens of an answer."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """timeoutSeconds of one request. One that takes longer counts as a wrong, malformed answer."""
    parameters: Annotated[dict[str, Any], Preserve()] | None = None
    """parameters are further fields of the chat completion request, such as response_format. temperature is 0 unless
    it is set here, or the model refuses it."""


class ScoringMethod(StrEnum):
    """How an answer is compared with what a case expects."""

    LABEL = "Label"
    """The answer names one of a few classes."""
    EXACT_MATCH = "ExactMatch"
    JSON_FIELDS = "JSONFields"
    """Fields of a JSON answer."""
    JSON_SCHEMA = "JSONSchema"
    """A JSON answer of a certain form."""
    CONTAINS = "Contains"
    NUMERIC = "Numeric"
    JUDGE = "Judge"
    """Another model decides."""


class JudgeSpec(Model):
    """A model that decides whether an answer is good enough."""

    target: DnsLabel
    """target that judges, an item of spec.targets. It is not scored itself."""
    rubric: CaseText
    """rubric tells the judge what makes an answer good. Where a case has an expected answer, the judge compares both
    twice with their positions swapped; two opposite decisions count as half."""


class ScorerSpec(Model):
    """What counts as a right answer."""

    method: ScoringMethod
    """method of scoring."""
    labels: Annotated[list[LabelText], ListSet(200)] = Field(default_factory=list)
    """labels that Label accepts; an answer that names none of them is malformed. Default: those that cases expect."""
    fields: Annotated[list[FieldPath], ListSet(64)] = Field(default_factory=list)
    """fields that JSONFields compares, as paths with dots. Default: all fields of the expected answer."""
    # Not called schema, which is a method of pydantic's.
    json_schema: Annotated[dict[str, Any], Preserve()] | None = None
    """jsonSchema that an answer must fulfil. Default: the case's expected value is the schema."""
    tolerance: (
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?$", min_length=1, max_length=25)] | None
    ) = None
    """tolerance of Numeric: the largest difference, in units of the number."""
    tolerance_permille: Permille | None = None
    """tolerancePermille of Numeric: the largest difference, in thousandths of the expected number."""
    judge: JudgeSpec | None = None
    """judge of the method Judge."""


_JUDGE = Cel("(self.method == 'Judge') == has(self.judge)", "judge belongs to method Judge: set both or neither")


class WithinOf(Model):
    """A distance to another target, compared case by case."""

    target: DnsLabel
    """target that is the measure, an item of spec.targets."""
    permille: Annotated[int, Field(ge=0, le=999)]
    """permille by which the quality may be lower, in thousandths."""


class QualityRequirement(Model):
    """The least quality: a number, a distance to another target, or both."""

    min_permille: Annotated[int, Field(ge=1, le=999)] | None = None
    """minPermille is the least share of right answers, in thousandths."""
    within_permille_of: WithinOf | None = None
    """withinPermilleOf another target, whose own answers to the same cases are the measure."""


_SOME_QUALITY = Cel(
    "has(self.minPermille) || has(self.withinPermilleOf)",
    "spec.requirements.quality needs minPermille or withinPermilleOf",
)


class Requirements(Model):
    """What must hold for a target to be qualified. What is left out is measured and not judged."""

    quality: Annotated[QualityRequirement, _SOME_QUALITY] | None = None
    """quality that must be shown."""
    confidence_permille: Annotated[int, Field(ge=500, le=999)] = 950
    """confidencePermille with which each requirement must be shown to hold, or not to hold."""
    first_token_p99_milliseconds: Annotated[Milliseconds | None, Field(alias="firstTokenP99Milliseconds")] = None
    """firstTokenP99Milliseconds that the answers' beginning may take, under the stated load."""
    total_p99_milliseconds: Annotated[Milliseconds | None, Field(alias="totalP99Milliseconds")] = None
    """totalP99Milliseconds that a whole answer may take, under the stated load."""
    malformed_permille: Annotated[int, Field(ge=1, le=999)] | None = None
    """malformedPermille of the answers may be malformed, weird inputs included."""
    cost_per_thousand_tasks_usd: Annotated[Usd | None, Field(alias="costPerThousandTasksUSD")] = None
    """costPerThousandTasksUSD that a thousand cases may cost."""


class WeirdInputs(StrEnum):
    """Whether inputs that no dataset holds are sent too."""

    INCLUDED = "Included"
    EXCLUDED = "Excluded"


class TailSpec(Model):
    """What is tried beside the cases."""

    weird_inputs: WeirdInputs = WeirdInputs.INCLUDED
    """weirdInputs: an empty text, 100 kB, emoji and right-to-left text, broken JSON, another language, an injection.
    Only whether the answer is well formed counts."""


class LoadSpec(Model):
    """The load under which latency is measured."""

    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """concurrency is how many requests a target has at one time."""


class SpendingLimit(Model):
    """How much a run may cost."""

    max_hosted_usd: Annotated[Usd, Field(alias="maxHostedUSD")] = "5"
    """maxHostedUSD that hosted targets, a judge included, may cost in one run. At the limit the run ends with what it
    has."""


class AfterChange(StrEnum):
    """Whether a target that changed is evaluated again."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class RerunSpec(Model):
    """When the evaluation runs again."""

    after_change: AfterChange = AfterChange.ENABLED
    """afterChange of a target's revision. A verdict about an older revision does not count, whatever is set here."""
    every_hours: Annotated[int, Field(ge=1, le=8784)] | None = None
    """everyHours since the last run ended. Default: never for that reason alone."""


class EvaluationResources(Model):
    """CPU and memory of the run."""

    cpu: Quantity = "250m"
    """cpu that is requested, in cores."""
    memory: Quantity = "256Mi"
    """memory that is requested and the limit."""


class EvaluationJobSpec(Model):
    """The Job that runs the evaluation."""

    queue_name: DnsSubdomain | None = None
    """queueName is Kueue's LocalQueue, which decides when the Job starts."""
    resources: EvaluationResources = EvaluationResources()
    """resources of the Job's container."""
    results_claim_name: DnsSubdomain | None = None
    """resultsClaimName is a PersistentVolumeClaim for the results of each case, which lets a run continue on another
    node. Default: they are kept for as long as the pod."""
    max_duration_seconds: Annotated[int, Field(ge=60, le=604_800)] = 21_600
    """maxDurationSeconds after which the run is ended and counts as failed."""
    node_selector: Annotated[dict[str, Annotated[str, StringConstraints(max_length=63)]], Atomic(16)] = Field(
        default_factory=dict
    )
    """nodeSelector of the Job's pod."""


class EvaluationSpec(Model):
    """What is asked."""

    task: TaskName
    """task that the cases are examples of, as routing rules name it."""
    dataset: Annotated[DatasetSpec, _SOURCE]
    """dataset of cases."""
    targets: Annotated[list[Annotated[EvaluatedTarget, _ONE_PLACE]], ListMap(("name",), 8)] = Field(min_length=1)
    """targets that are asked the same cases."""
    request: RequestSpec = RequestSpec()
    """request specifies how a case is asked."""
    scorer: Annotated[ScorerSpec, _JUDGE]
    """scorer decides which answers are right."""
    requirements: Requirements = Requirements()
    """requirements that a target must meet to be qualified."""
    tail: TailSpec = TailSpec()
    """tail specifies what is tried beside the cases."""
    load: LoadSpec = LoadSpec()
    """load under which latency is measured."""
    limits: SpendingLimit = SpendingLimit()
    """limits on what a run may cost."""
    rerun: RerunSpec = RerunSpec()
    """rerun specifies when the evaluation runs again."""
    job: EvaluationJobSpec = EvaluationJobSpec()
    """job that runs the evaluation."""


_MEASURE = Cel(
    "!has(self.requirements.quality) || !has(self.requirements.quality.withinPermilleOf) || "
    "self.targets.exists(t, t.name == self.requirements.quality.withinPermilleOf.target)",
    "spec.requirements.quality.withinPermilleOf.target must be the name of one of spec.targets",
)
_JUDGE_TARGET = Cel(
    "!has(self.scorer.judge) || self.targets.exists(t, t.name == self.scorer.judge.target)",
    "spec.scorer.judge.target must be the name of one of spec.targets",
)


class QualificationVerdict(StrEnum):
    """What the requirements and the results come to."""

    QUALIFIED = "Qualified"
    DISQUALIFIED = "Disqualified"
    INCONCLUSIVE = "Inconclusive"
    """Neither is shown yet; the reason says what is missing."""


class SliceResult(Model):
    """The quality over the cases of one slice."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    """name of the slice, as the cases have it."""
    cases: Cases | None = None
    """cases of the slice."""
    quality_permille: Permille | None = None
    """qualityPermille of the slice."""


Status63 = Annotated[str, StringConstraints(max_length=63)]


class TargetResult(Model):
    """What was measured of one target, and the verdict."""

    target: DnsLabel
    """target by name."""
    revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """revision of the target that was measured: a digest of its pod template and adapter, or of the hosted model."""
    verdict: QualificationVerdict | None = None
    """verdict: Qualified, Disqualified or Inconclusive. It is about this revision only."""
    reason: Status63 | None = None
    """reason of the verdict, a CamelCase constant."""
    message: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """message with the figures of the verdict."""
    cases: Cases | None = None
    """cases that were scored."""
    cases_needed: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """casesNeeded is an estimate of how many more cases would settle an Inconclusive verdict."""
    quality_permille: Permille | None = None
    """qualityPermille is the share of right answers, in thousandths."""
    low_permille: Permille | None = None
    """lowPermille is the lower end of the quality's interval at the required confidence."""
    high_permille: Permille | None = None
    """highPermille is the upper end of the quality's interval at the required confidence."""
    macro_f1_permille: Annotated[Permille | None, Field(alias="macroF1Permille")] = None
    """macroF1Permille is the mean over the labels of their F1 scores; of Label only."""
    malformed_permille: Permille | None = None
    """malformedPermille of the answers could not be read, or did not come."""
    first_token_p50_milliseconds: Annotated[Milliseconds | None, Field(alias="firstTokenP50Milliseconds")] = None
    """firstTokenP50Milliseconds is the median time until the answer begins."""
    first_token_p99_milliseconds: Annotated[Milliseconds | None, Field(alias="firstTokenP99Milliseconds")] = None
    """firstTokenP99Milliseconds is the 99th percentile of it."""
    total_p50_milliseconds: Annotated[Milliseconds | None, Field(alias="totalP50Milliseconds")] = None
    """totalP50Milliseconds is the median time of a whole answer."""
    total_p99_milliseconds: Annotated[Milliseconds | None, Field(alias="totalP99Milliseconds")] = None
    """totalP99Milliseconds is the 99th percentile of it."""
    cost_per_thousand_tasks_usd: Annotated[UsdAmount | None, Field(alias="costPerThousandTasksUSD")] = None
    """costPerThousandTasksUSD in US dollars: of a hosted target by its usage, of a self-hosted one its share of the
    GPU dollars that the ledger counted meanwhile."""
    finished_time: Annotated[str, StringConstraints(max_length=40)] | None = None
    """finishedTime is when the run that measured it ended."""
    slices: Annotated[list[SliceResult], ListMap(("name",), 16)] | None = None
    """slices of the dataset, the worst first."""


class MeterStatus(Model):
    """The ledger's totals of a ModelDeployment when the run began."""

    model_deployment: DnsLabel
    """modelDeployment by name."""
    usd: Annotated[UsdAmount | None, Field(alias="usd")] = None
    """usd that the deployment had cost in all."""
    prompt_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """promptTokens that it had read."""
    cached_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """cachedTokens among them."""
    generated_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """generatedTokens that it had written."""


class RunStatus(Model):
    """A run of the evaluation."""

    job_name: Status63 | None = None
    """jobName of the Job."""
    reason: Status63 | None = None
    """reason of the run: SpecChanged, RevisionChanged or Due."""
    started_time: Annotated[str, StringConstraints(max_length=40)] | None = None
    """startedTime is when the Job was made."""
    cases_done: Cases | None = None
    """casesDone of all targets together."""
    cases_total: Cases | None = None
    """casesTotal of all targets together."""
    meters: Annotated[list[MeterStatus], ListMap(("modelDeployment",), 8)] | None = None
    """meters of the self-hosted targets, by which their part of the GPU dollars is found."""


class EvaluationStatus(Model):
    """What is so."""

    conditions: Annotated[list[Condition], ListMap(("type",), 16)] | None = None
    """conditions: Accepted, ResolvedRefs, Complete; Ready, Reconciling and Stalled sum up."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    dataset_digest: Annotated[str, StringConstraints(max_length=80)] | None = None
    """datasetDigest of the cases that were asked, sha256."""
    summary: Annotated[str, StringConstraints(max_length=512)] | None = None
    """summary of the verdicts, for kubectl get."""
    measured_spec: Annotated[str, StringConstraints(max_length=64)] | None = None
    """measuredSpec is a digest of the part of the spec that the results are about."""
    run: RunStatus | None = None
    """run that is under way."""
    results: Annotated[list[TargetResult], ListMap(("target",), 8)] | None = None
    """results of the last run that ended, a target each."""


class Evaluation(Model):
    """Evaluation asks whether models are good enough at a task, with cases, a scorer and requirements."""

    metadata: ObjectMeta
    spec: Annotated[EvaluationSpec, _MEASURE, _JUDGE_TARGET]
