"""The schema of a run's results: ``summary.json`` and the stage records that it is computed from.

Units: accuracies, scores and shares are fractions in [0, 1], sizes are bytes and times are seconds. "Over the
seeds" means one value for each seed of the run. A standard deviation is that of a sample (n − 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genfl.config import Content
from genfl.config.privacy import PrivacyUnit
from genfl.errors import InputError
from genfl.privacy.ledger import Ledger, Mechanism, Recipient, Topic
from genfl.results.names import CENTRALISED
from genfl.storage import read_json, write_json

SCHEMA = 8
"""The version of ``summary.json``. It is raised whenever a field is added, removed or changes its meaning."""


class ResultModel(BaseModel):
    """A part of a result: values do not change, and unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, named as in the JSON file."""
        return self.model_dump(mode="json", by_alias=True)


class CurvePoint(NamedTuple):
    """A point of a curve; in JSON a list of three numbers."""

    x: Annotated[
        int | float, Field(description="Horizontal position, a round or a share; each field says which.")
    ]
    mean: Annotated[float, Field(description="Mean over the seeds.")]
    std: Annotated[float, Field(description="Standard deviation over the seeds; 0 for a single seed.")]


class Figure(ResultModel):
    """A figure over the seeds."""

    mean: float = Field(description="Mean over the seeds.")
    std: float | None = Field(description="Standard deviation over the seeds; null for a single seed.")
    per_seed: list[float] = Field(description="The value of each seed, in the order of `seeds`.")


class LabelsResult(ResultModel):
    """What label discovery learned."""

    found: list[str] = Field(description="Names of the labels; the position of a name is its class index.")
    cells: int = Field(description="Cells of the Bloom lookup table that each client uploads, at least 1.")
    bytes_per_client: int = Field(description="Bytes that each client uploads, over all attempts.")
    attempts: int = Field(description="Attempts until the sum of the tables could be decoded, at least 1.")
    holders: dict[str, int] = Field(
        description="For each label, how many clients hold it, from 1 to the number of clients. It is noised"
        " if the config sets labels.count_epsilon."
    )


class GeneratedLabel(ResultModel):
    """Counts of the generated samples of one label."""

    samples: int = Field(description="Samples that were kept.")
    removed: dict[str, int] = Field(
        description="Samples that were left out, by reason, for example `blank` or `silent`."
    )
    duplicates: int = Field(description="Kept samples that equal an earlier one of any label, byte by byte.")
    near_duplicates: int = Field(
        description="Kept samples close to an earlier one of the same label, exact duplicates included."
    )


class GenerateResult(ResultModel):
    """What the stage `generate` made."""

    samples: int = Field(description="Samples that were kept, of all labels.")
    removed: int = Field(description="Samples that were left out because nothing can be learned from them.")
    duplicates: int = Field(description="Kept samples that equal an earlier one, byte by byte.")
    near_duplicates: int = Field(
        description="Kept samples close to an earlier one of the same label, exact duplicates included."
    )
    bytes: int = Field(description="Size of the Parquet files, in bytes.")
    seconds: float = Field(
        description="Time that generation took, in seconds, summed over interruptions and processes. Loading"
        " the model is not counted."
    )
    samples_per_second: float = Field(description="`samples` divided by `seconds`.")
    labels: dict[str, GeneratedLabel] = Field(description="Counts for each label.")


class GuidedResult(ResultModel):
    """What clients generated from their own real examples, summed over all seeds."""

    samples: int = Field(description="Samples that were kept.")
    removed: int = Field(description="Samples that were left out because nothing can be learned from them.")
    seconds: float = Field(description="Time that generation took, in seconds, summed over interruptions.")


class OverlapCounts(ResultModel):
    """Near-duplicates between two data sets; `test_train` compares test examples with training examples."""

    examples: int = Field(description="Number of examples of the first data set, all of which are compared.")
    others: int = Field(description="Number of examples of the second data set.")
    compared: int = Field(description="How many of the second data set are compared.")
    pairs: int = Field(description="Pairs of near-duplicates.")
    near: int = Field(description="Examples of the first data set with a near-duplicate in the second.")
    others_near: int = Field(
        description="Examples of the second data set with a near-duplicate in the first."
    )


class AuditResult(ResultModel):
    """Near-duplicates of test and training examples."""

    test_train: OverlapCounts = Field(description="Test examples against all training examples.")
    generated_test: OverlapCounts | None = Field(
        description="Generated samples against test examples; null without a generator."
    )
    generated_train: OverlapCounts | None = Field(
        description="Generated samples against private training examples; null without a generator."
    )
    dropped: int = Field(
        description="Samples generated from prompts that no method trains on: they are near-duplicates of"
        " test examples. Those that clients generate from real examples are kept."
    )
    public_test: OverlapCounts | None = Field(
        None,
        description="Public samples against test examples; null without public data. Samples that"
        " audit.overlap drops are not among them.",
    )
    public_train: OverlapCounts | None = Field(
        None,
        description="Public samples against private training examples; null without public data. If the"
        " public data is the part that no client gets, it is compared with the clients' part.",
    )


class VocabularyResult(ResultModel):
    """The vocabulary of the generated texts."""

    folder: str = Field(description="Folder of the tokenizer, below `vocabulary/` in the run's folder.")
    words: int = Field(description="Number of words in the vocabulary.")
    unknown: float = Field(
        description="Share of the test texts' words that are not in the vocabulary, in [0, 1]."
    )


class PretrainingEpoch(ResultModel):
    """The losses of one epoch of pre-training."""

    epoch: int = Field(description="Number of the epoch, from 1.")
    loss: float = Field(description="Mean training loss (cross-entropy), in nats.")
    held_back_loss: float = Field(description="Loss on the samples held back, in nats.")
    held_back_accuracy: float = Field(description="Accuracy on the samples held back, in [0, 1].")


class PretrainedModel(ResultModel):
    """The pre-training of one seed's model."""

    best_epoch: int = Field(description="The epoch of least held-back loss, whose model is used.")
    history: list[PretrainingEpoch] = Field(description="All epochs, in order.")


class PretrainResult(ResultModel):
    """What the stage `pretrain` trained."""

    seeds: dict[str, PretrainedModel] = Field(
        description="For each seed, its pre-training on generated data; empty without a generator."
    )
    public: dict[str, PretrainedModel] = Field(
        {},
        description="For each seed, its pre-training on public data; empty if no method starts from it.",
    )


class AlgorithmPart(ResultModel):
    """An algorithm, a server optimizer or a local hook, with its options beside its name."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Its name, as in `genfl list algorithms`, or the name of a reference.")


class ClientsTested(ResultModel):
    """Accuracy of the final models on the samples that clients hold back for testing."""

    tested: list[int] = Field(description="For each seed, how many clients hold samples back.")
    samples: list[int] = Field(description="For each seed, how many samples they hold back together.")
    accuracy: Figure = Field(description="Accuracy over all these samples, in [0, 1].")
    worst: Figure = Field(description="Accuracy of the worst client, in [0, 1].")
    quantiles: list[CurvePoint] = Field(
        description="Accuracies of the clients in ascending order: x is the share of the clients, in [0, 1]."
    )


class Similarity(ResultModel):
    """How similar the mean features of the clients' data are, pair by pair."""

    cosine: list[list[float]] = Field(description="Cosine similarity, [clients, clients], in [−1, 1].")
    l2: list[list[float]] = Field(description="Euclidean distance, [clients, clients], at least 0.")


class Heterogeneity(ResultModel):
    """How different the clients' data and their local models are."""

    extractor: str = Field(
        description="What extracts the features by which clients' data are compared (federate.extractor)."
    )
    similarity: list[Similarity] | None = Field(
        description="Similarity of the clients' data, for each seed; null for many clients, or if nothing is"
        " trained."
    )
    mean_cosine: Figure | None = Field(
        description="Mean of `cosine` over different clients; null without `similarity`."
    )
    mean_l2: Figure | None = Field(
        description="Mean of `l2` over different clients; null without `similarity`."
    )
    divergence: list[CurvePoint] = Field(
        description="Distance (l2) of a round's local models from their mean, the root mean square over the"
        " clients; x is the round."
    )
    mean_divergence: Figure | None = Field(
        description="Mean of `divergence` over the rounds; null if it was not measured."
    )
    generality: list[CurvePoint] = Field(
        description="Mean test accuracy of the local models of a round, in [0, 1]; x is the round."
    )


class TargetResult(ResultModel):
    """How soon a method reaches a target accuracy."""

    accuracy: float = Field(description="The accuracy to reach, between 0 and 1.")
    rounds: int | None = Field(
        description="First evaluated round whose mean accuracy is this accuracy or more; null if never."
    )
    rounds_per_seed: list[int | None] = Field(
        description="The same for each seed's own accuracy, in the order of `seeds`."
    )
    bytes: int | None = Field(
        description="Bytes sent and received by the cohorts up to that round, with `setup_bytes`; mean over"
        " the seeds; null if the accuracy is never reached."
    )


class EqualBytes(ResultModel):
    """What a method reaches with the bytes that all methods may use (FedGC, Table 11)."""

    rounds: int = Field(description="The last evaluated round within `byte_budget`.")
    bytes: int = Field(
        description="Bytes sent and received until then, with `setup_bytes`; mean over the seeds."
    )
    accuracy: Figure = Field(
        description="Test accuracy, in [0, 1]: the mean of the last evaluations within the budget (at most"
        " five, never the one before the first round unless there is no other)."
    )


class ExtraCost(ResultModel):
    """What a method costs beyond the same algorithm without the generator (FedGC, Table 10)."""

    baseline: str = Field(description="The method that differs in the generator alone.")
    bytes: float | None = Field(
        description="Bytes of setup and all rounds beyond those of the baseline, as a share of these: 0.05"
        " stands for 5 % more; null if the baseline sends nothing."
    )
    samples: float | None = Field(
        description="Samples that clients train on, over all local steps and rounds, beyond those of the"
        " baseline, as a share of these. Samples that are filtered out count. Null if not recorded."
    )


class MethodResult(ResultModel):
    """The figures of one method over the seeds."""

    algorithm: AlgorithmPart | list[AlgorithmPart] | None = Field(
        description="Algorithm and options; a list if several are combined; null for `synthetic_only`."
    )
    data: Literal["private", "generated", "mixed", "p2g", "g2p"] | None = Field(
        description="What clients train on: private data, generated data, both mixed, private then generated"
        " (p2g) or generated then private (g2p); null for `synthetic_only`."
    )
    content: Content | None = Field(
        description="Division of generated content over clients; null if they train on private data only."
    )
    source: Literal["generated", "public"] | None = Field(
        description="The data from outside the clients that the method takes, to start from, to train on or"
        " to distil on: generated or public; null if it takes none."
    )
    reference: bool = Field(description="Whether it is a reference, which is not federated.")
    uses_generator: bool = Field(description="Whether the method needs the generator.")
    existing_model: bool = Field(
        description="Whether training, or the pre-training before it, started from an existing model."
    )
    generated_samples: float = Field(
        description="Samples of `source`, generated or public, that clients train on besides their own,"
        " summed over clients; mean over the seeds."
    )
    accuracy: Figure = Field(
        description="Test accuracy, in [0, 1]: the mean of the last evaluations (at most five, never the one"
        " before the first round)."
    )
    macro_f1: Figure = Field(
        description="Mean of the F1 scores of the classes, in [0, 1], over the same evaluations."
    )
    calibration_error: Figure | None = Field(
        description="Expected calibration error in 15 bins, in [0, 1], over the same evaluations; null if a"
        " model diverged."
    )
    recall: list[float | None] = Field(
        description="Recall of each class at the last evaluation, in [0, 1], mean over the seeds, in the"
        " order of `labels.found`; null for a class without test examples."
    )
    clients: ClientsTested | None = Field(
        description="Accuracy on the clients' own test samples; null if clients hold nothing back."
    )
    curve: list[CurvePoint] = Field(
        description="Test accuracy after each evaluated round, in [0, 1]; x is the round, 0 before the first."
    )
    rounds_to_target: int | None = Field(
        description="First evaluated round whose mean accuracy is `target_accuracy` or more; null if never."
    )
    rounds_to_target_per_seed: list[int | None] = Field(
        description="The same for each seed's own accuracy, in the order of `seeds`."
    )
    bytes_to_target: int | None = Field(
        description="Bytes sent and received by the cohorts up to that round, with `setup_bytes`; mean over"
        " the seeds; null if the target is never reached."
    )
    targets: list[TargetResult] = Field(
        description="Rounds and bytes to each target accuracy, in the order of the summary's `targets`."
    )
    total_bytes: int = Field(
        description="Bytes sent and received in all rounds, with `setup_bytes`; mean over the seeds; 0 for"
        " references."
    )
    equal_bytes: EqualBytes | None = Field(
        description="Accuracy with the bytes of `byte_budget`; null for references, and if the setup alone"
        " needs more."
    )
    extra_cost: ExtraCost | None = Field(
        description="Cost beyond the same algorithm without the generator; null if the run has none."
    )
    delta: Figure | None = Field(
        description="Accuracy minus that of the model trained on generated data alone, which the method"
        " started from (the Δ-metric of GPT-FL, Table 4), in [−1, 1]; null for methods with another start."
    )
    setup_bytes: int = Field(
        description="Bytes sent once before the first round: label discovery, and generated data for clients."
        " Generated data count as inputs of models, not as the generator's files."
    )
    uplink_bytes_per_round: float = Field(
        description="Bytes that a cohort sends in a round, mean over rounds and seeds; 0 for references."
    )
    downlink_bytes_per_round: float = Field(
        description="Bytes that a cohort receives in a round, mean over rounds and seeds; 0 for references."
    )
    diversity: list[CurvePoint] = Field(
        description="Gradient diversity of each round's cohort, from 1 / clients_per_round; x is the round."
        " Rounds that a seed could not measure are left out."
    )
    heterogeneity: Heterogeneity | None = Field(
        description="Differences between clients; null unless federate.heterogeneity is set."
    )
    refused_uploads: int = Field(
        description="Uploads that were refused because they were not finite, over all rounds and seeds."
    )
    uploads: int = Field(
        description="Uploads over all rounds and seeds, refused ones included; 0 for references."
    )
    untrained_seeds: list[int] = Field(
        description="The seeds in which every upload was refused: the final model is the initial one."
    )

    masked_upload_bytes: int | None = Field(
        description="Bytes of the words of one client's masked upload, without the message around them; null"
        " without federate.secure, for references, and if no upload counted."
    )

    @property
    def upper_bound(self) -> bool:
        """Whether it trains on all private data in one place, which is not allowed in practice."""
        return (
            isinstance(self.algorithm, AlgorithmPart)
            and self.algorithm.name == CENTRALISED
            and self.data != "generated"
        )

    @property
    def cost_cells(self) -> dict[str, int | float | None]:
        """The cells of a table on costs, by their columns' names; None where there is no such figure."""
        equal, extra, delta = self.equal_bytes, self.extra_cost, self.delta
        return {
            "total_bytes": self.total_bytes,
            "equal_bytes": equal.bytes if equal else None,
            "accuracy_at_equal_bytes": equal.accuracy.mean if equal else None,
            "extra_bytes": extra.bytes if extra else None,
            "extra_samples": extra.samples if extra else None,
            "delta": delta.mean if delta else None,
        }

    @property
    def bytes_per_round(self) -> float:
        """Bytes that a cohort sends and receives in a round."""
        return self.uplink_bytes_per_round + self.downlink_bytes_per_round


def baseline_of(name: str, methods: Mapping[str, MethodResult]) -> str | None:
    """Return the federated method that differs from another one in the generator alone; None without one.

    Args:
        name: A method that uses the generator. There is no baseline for others, nor for references.
        methods: The methods of the run.
    """
    method = methods[name]
    if method.reference or method.source != "generated":
        return None
    return next(
        (
            other
            for other, result in methods.items()
            if not (result.reference or result.source)
            and (result.algorithm, result.existing_model) == (method.algorithm, method.existing_model)
        ),
        None,
    )


class InferenceCost(ResultModel):
    """The cost of predictions on the test set."""

    parameters: int = Field(description="Number of parameters of the downstream model.")
    seconds_per_1000: float = Field(
        description="Time of 1,000 predictions of the downstream model, in seconds, in batches."
    )
    generator_parameters: int | None = Field(
        description="Number of parameters of the generator; null unless the reference `generator` ran."
    )
    generator_seconds_per_1000: float | None = Field(
        description="Time of 1,000 predictions of the generator, in seconds; null unless it ran."
    )


class WorkCost(ResultModel):
    """What some work cost, by counters of the machine."""

    seconds: float = Field(
        description="Time in seconds, over all shards and all starts in the run's folder, also those with"
        " earlier configs (`--update`)."
    )
    devices: list[str] = Field(description="Names of the processors and GPUs.")
    gpu_seconds: float = Field(description="Time in seconds times the number of GPUs in use.")
    peak_memory: int | None = Field(
        description="Largest resident memory of the main process, in bytes; null where it is not measured."
    )
    peak_gpu_memory: int | None = Field(
        description="Most GPU memory that torch allocated, in bytes; null without a GPU."
    )
    joules: float | None = Field(
        description="Energy in joules, of the devices that `counters` stands for; null if it was not"
        " measured."
    )
    counters: list[str] = Field(
        description="Where the energy of all the work was read: `rapl` (whole processors), `nvml` (GPUs in"
        " use); empty if nowhere."
    )
    energy: dict[str, float] = Field(
        {}, description="Energy in joules by each of `counters`. Work without a GPU has 0 of `nvml`."
    )


class StageCost(WorkCost):
    """What a stage cost, by counters of the machine."""

    complete: bool = Field(
        True,
        description="Whether it is the cost of all the work. It is not if another run did a part that was"
        " taken over, or an earlier version without counters.",
    )
    inference: InferenceCost | None = Field(
        None, description="The cost of predictions; null for other stages than `federate`."
    )


class PointCost(ResultModel):
    """What generation cost for each point of accuracy that a method gains over its baseline."""

    baseline: str = Field(description="The method that differs in the generator alone.")
    points: float = Field(description="Points of accuracy that the method gains over it, above 0.")
    generation_seconds: float = Field(description="Time of generation for each point, in seconds.")
    generation_joules: float | None = Field(
        description="Energy of generation for each point, in joules; null if it was not measured."
    )


class CostAccount(ResultModel):
    """What the run cost, without label discovery and the report; null where this is not completely known."""

    generation: WorkCost | None = Field(
        description="The cost of prompts and of all generated samples; null without a generator."
    )
    training: WorkCost | None = Field(
        description="The cost of the audit, of pre-training, and of all federated training, tests included."
    )
    inference: InferenceCost | None = Field(description="The cost of predictions; null if not measured.")
    per_point: dict[str, PointCost] = Field(
        description="For each method that gains over its baseline, the cost of a point of accuracy."
    )


class NoiseResult(ResultModel):
    """The noise on a series of sums, and what it guarantees for one federation: a method with one seed."""

    unit: PrivacyUnit = Field(
        description="What is protected: `sample` (each private sample) or `user` (all data of a client)."
    )
    neighbours: str = Field(description="Which data sets are neighbours, in words.")
    noise_multiplier: float = Field(
        description="Standard deviation of the noise σ, divided by the clipping norm, above 0."
    )
    norm: float = Field(description="The clipping norm, above 0.")
    sampling_rate: float = Field(
        description="The probability q with which a unit takes part in a step, in (0, 1]."
    )
    steps: int = Field(description="Steps of the most exposed unit that were taken.")
    delta: float = Field(description="The probability δ with which the bound may fail, in (0, 1).")
    epsilon: float = Field(description="The bound ε on the privacy loss of the steps taken, at least 0.")
    sensitivity: float | None = Field(
        None,
        description="Of noise that is correlated over rounds: how far one unit moves what it is added to in"
        " all steps together, divided by the norm; null if the noise of the steps is independent.",
    )
    min_separation: int | None = Field(
        None,
        description="Of the same: the least number of rounds from one participation of a client to its next;"
        " null if none takes part twice.",
    )


class ReleaseResult(ResultModel):
    """Something that is computed from private data."""

    name: str = Field(description="A short name.")
    stage: str = Field(description="The stage that computes it.")
    topic: Topic = Field(description="What it is about; a report has a line for each topic.")
    what: str = Field(description="What is released, in words.")
    source: str = Field(description="The data that it is computed from, in words.")
    recipient: Recipient = Field(
        description="Who learns it. `sum`: the server, which needs the sum over clients alone. `others`:"
        " other clients, and whoever gets the model. `readers`: whoever reads the report and the summary."
        " `nobody`: it stays where the private data is."
    )
    mechanism: Mechanism = Field(
        description="`exact`: no protection. `secure_sum`: only the exact sum is seen; in simulations,"
        " the protocol is simulated. `gaussian`: noise. `discrete_gaussian`: noise that clients add before a"
        " secure sum."
        " `discrete_laplace`: noise on whole numbers. `trusted`: no protection, but the guarantee counts on"
        " its recipient, who adds the noise. `derived`: computed from other releases and public data alone."
        " `local`: it does not leave the place of the private data."
    )
    methods: list[str] = Field(description="The methods that it belongs to; empty if it belongs to the run.")
    noise: NoiseResult | None = Field(
        description="The noise, of the seed with the largest ε; null without noise."
    )
    public: bool = Field(description="Whether the config declares it as public knowledge (privacy.public).")
    outside: bool = Field(description="Whether it is released as it is, so that no guarantee covers it.")
    epsilon: float | None = Field(
        description="Its own privacy loss ε: that of the noise, 0 if it tells nothing more than other"
        " releases or public knowledge do; null if it is exact, or seen by a trusted server alone."
    )
    fix: str = Field(description="How a config avoids it; empty where there is no need.")


class GuaranteeResult(ResultModel):
    """What differential privacy guarantees for one federation: one method with one seed.

    Several methods and seeds of a run are a simulation of alternatives. If all of them were run on the same
    people, their privacy losses would add up.
    """

    unit: PrivacyUnit = Field(description="What is protected, as in the config.")
    epsilon: float = Field(
        description="The bound ε on the privacy loss of all noised releases together, of the seed with the"
        " largest one."
    )
    delta: float = Field(description="The probability δ with which it may fail, in (0, 1).")
    outside: list[str] = Field(description="Names of the exact releases, which it does not cover.")


class PrivacyResult(ResultModel):
    """What a run releases of private data, and what is guaranteed; also the content of ``privacy.json``."""

    releases: list[ReleaseResult] = Field(description="All releases, in the order of the stages.")
    guarantees: dict[str, GuaranteeResult] = Field(
        description="The guarantee of each method with differential privacy; empty without it."
    )
    notes: list[str] = Field(description="What a reader must know besides, in sentences.")

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Return the result of a ledger."""
        return cls.model_validate(
            {
                "releases": [
                    {
                        **{name: value for name, value in row._asdict().items() if name != "pure_epsilon"},
                        "methods": list(row.methods),
                        "noise": row.noise._asdict() if row.noise else None,
                        "outside": row.outside,
                        "epsilon": row.epsilon,
                    }
                    for row in ledger.releases
                ],
                "guarantees": {
                    name: {**guarantee._asdict(), "outside": list(guarantee.outside)}
                    for name, guarantee in ledger.guarantees.items()
                },
                "notes": list(ledger.notes),
            }
        )


class SumNumbers(ResultModel):
    """How the secure sums of uploads carry floats, and how exact they are. Integers travel as they are."""

    clients: int = Field(description="The most clients of a sum: those of a cohort.")
    threshold: int = Field(description="The fewest clients whose sum is opened.")
    limit: float = Field(description="The largest absolute value in an upload (federate.secure.limit).")
    bits: Literal[32, 64] = Field(description="Bits of the word of a float.")
    step: float = Field(
        description="The distance of neighbouring fixed-point numbers, a power of two: each client rounds its"
        " floats to multiples of it."
    )
    error: float = Field(
        description="The most by which a number in the sum of a whole cohort can differ from the exact sum:"
        " half a step for each client. Rounding to the floats of the model comes on top, as in every sum."
    )


class StageTime(ResultModel):
    """The time of one stage."""

    seconds: float = Field(
        description="Time of the stage, in seconds, from its last start to its end; kept if it is skipped."
    )
    skipped: bool = Field(description="Whether its output was up to date, so that it did not run.")
    cost: StageCost | None = Field(
        description="Its cost, over all starts; null if an earlier version ran it."
    )


class Environment(ResultModel):
    """The software and the machine that computed the figures."""

    genfl: str = Field(description="Version of genfl.")
    python: str = Field(description="Version of Python.")
    torch: str = Field(description="Version of PyTorch.")
    numpy: str = Field(description="Version of NumPy.")
    platform: str = Field(description="Operating system and processor architecture.")
    cpu_count: int | None = Field(description="Number of logical CPUs; null if unknown.")


class Summary(ResultModel):
    """All figures of a run, as in ``summary.json``."""

    schema_version: Literal[8] = Field(alias="schema", description="Version of this schema.")
    name: str = Field(description="Name of the run.")
    seeds: list[int] = Field(description="The seeds, in the order in which figures list them.")
    labels: LabelsResult = Field(description="The labels of the private data.")
    test_samples: int = Field(description="Number of test examples.")
    test_digest: str = Field(
        description="Digest of the test examples: their labels, and their inputs in the run's format. Runs of"
        " the same digest are tested alike."
    )
    generator: str = Field(description="Kind of the generator, for example `image`; `none` without one.")
    generated: bool = Field(
        description="Whether a generator made samples from prompts; false if they were read from files, or if"
        " there are none."
    )
    synthetic: GenerateResult | None = Field(description="The synthetic data; null without a generator.")
    guided: GuidedResult | None = Field(
        description="What clients generated from their own examples; null if no method asks for it."
    )
    vocabulary: VocabularyResult | None = Field(
        description="Vocabulary of the generated texts; null unless data.tokenizer is `generated`."
    )
    audit: AuditResult | None = Field(
        description="Near-duplicates of test and training examples; null if audit.overlap is `ignore`."
    )
    methods: dict[str, MethodResult] = Field(
        description="The figures of each method: `synthetic_only` first if there is a generator, then the"
        " methods of the config, references last."
    )
    compare: tuple[str, str] | None = Field(
        description="The pair of methods that the verdict is about (report.compare); null if the figures"
        " choose it."
    )
    target_accuracy: float = Field(
        description="The accuracy to reach (report.target_accuracy), between 0 and 1; the first if there are"
        " several."
    )
    targets: list[float] = Field(description="All accuracies to reach, between 0 and 1.")
    byte_budget: int | None = Field(
        description="Bytes at which `equal_bytes` compares methods: report.byte_budget, or the least"
        " `total_bytes` of a federated method; null if none sends anything."
    )
    cost: CostAccount = Field(description="What generation and training cost.")
    privacy: PrivacyResult = Field(
        description="What is computed from private data, who learns it, and how it is protected."
    )
    secure_sums: SumNumbers | None = Field(
        description="The numbers of the secure sums of uploads; null without federate.secure."
    )
    stages: dict[str, StageTime] = Field(description="The time of each stage, in order.")
    environment: Environment = Field(description="What the stage `federate` ran on.")

    @property
    def federated(self) -> dict[str, MethodResult]:
        """The methods that are not references."""
        return {name: method for name, method in self.methods.items() if not method.reference}

    @classmethod
    def parse(cls, content: Any, source: str = "summary") -> Self:
        """Return a summary from the plain values of ``summary.json``.

        Args:
            content: The values, as `json.loads` returns them.
            source: What error messages call them, for example a path.

        Raises:
            InputError: They have another schema, or do not fit it.
        """
        version = content.get("schema") if isinstance(content, dict) else None
        if version != SCHEMA:
            raise InputError(
                f"{source}: schema {version!r}, but this version of genfl reads schema {SCHEMA}; "
                + (
                    "update genfl"
                    if isinstance(version, int) and version > SCHEMA
                    else "run the config again, which writes a new summary and repeats no finished stage"
                )
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{source}: {_first_problem(error)}; run the config again") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the summary in a file.

        Args:
            path: A ``summary.json``.

        Raises:
            InputError: There is no such file, or it has another schema.
            GenflError: The file is damaged.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; name the summary.json of a finished run")
        return cls.parse(read_json(path), str(path))

    def write(self, path: Path) -> None:
        """Write the summary as JSON.

        Args:
            path: The file, replaced if it exists.
        """
        write_json(path, self.to_dict())

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema (draft 2020-12) of ``summary.json``."""
        schema = cls.model_json_schema(mode="serialization")
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class StageRecord(ResultModel):
    """The record of a stage, as in ``stages/<stage>.json`` of a run's folder."""

    stage: str = Field(description="Name of the stage.")
    digest: str = Field(description="Digest of everything that the stage's output depends on.")
    output: str = Field("", description="Digest of the part of the output that other stages read.")
    done: bool = Field(
        description="Whether the stage finished; if not, all fields below but `sha256` are absent."
    )
    seconds: float = Field(0.0, description="Time of the stage, in seconds, from its last start to its end.")
    cost: StageCost | None = Field(
        None, description="What the stage cost, over all starts; of an unfinished stage, so far."
    )
    environment: Environment | None = Field(None, description="What the stage ran on.")
    finished: str | None = Field(
        None, description="Date and time of its end (ISO 8601, UTC); null if an earlier version ran it."
    )
    result: dict[str, Any] = Field({}, description="What the stage returned, as plain values.")
    files: dict[str, str] = Field(
        {}, description="SHA-256 of each file that the stage wrote, by its path below the stage's folder."
    )
    sha256: str = Field(description="Digest of the fields above, by which a damaged record is recognised.")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record in a file.

        Args:
            path: A file of the folder ``stages``.

        Raises:
            InputError: There is no such file, or it is no record.
            GenflError: The file is damaged.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the stage first")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(f"{path}: {_first_problem(error)}; run the stage again") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'content'}: {problem['msg']}"
