"""The inputs of the stage federate, and of each of its trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from genfl.analysis.extractors import ExtractorChoice, choose_extractor
from genfl.config import Config, Method, Model, Partition
from genfl.config.generation import Prompts
from genfl.config.names import FLOWER, FLOWER_IN_PROCESS
from genfl.config.privacy import Privacy
from genfl.config.training import Federation
from genfl.data.texts import GENERATED_TOKENIZER
from genfl.engines.auto import EXACT, ROUNDING
from genfl.engines.fast import fast_status
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import VOCABULARY
from genfl.learning.task import Precision
from genfl.models import MODELS
from genfl.references import GENERATOR
from genfl.stages.audit import generated_digests
from genfl.stages.base import (
    IF_SET,
    IGNORED,
    DataInputs,
    IfChanged,
    PublicInputs,
    Upstream,
    Without,
    digest_of,
)
from genfl.stages.generate import GeneratorInputs
from genfl.stages.guided import GuidedInputs, guided_inputs, kind_digest
from genfl.stages.pretrain import ModelInputs, PretrainInputs, pretrain_inputs, seed_digest

FEDERATE, FOLDER, VERSION = "federate", "federate", 5
"""The stage's name, its folder, and the version of its files."""

TRIALS_VERSION = 4
"""The version of what trials compute. If the stage's version is raised alone, no trial trains again."""

STATEMENTS = {"public"}
"""The settings of privacy that are stated, but change nothing that a trial computes."""

LATER = {"noise", "quorum", "mechanism"}
"""The settings of privacy whose defaults leave the digests of trials as they were without them."""

NEW = {"secure"}
"""The settings of a federation whose defaults leave the digests of trials as they were without them."""

BITWISE_SAME = {"checkpoint_every", "engine", "fast", "extractor", "keep_every", "quorum", "deadline"}
"""The settings of a federation that do not count by themselves.

The engine, and the fast path, change the last bits if clients run in batches; see `FederateInputs.engine`.
The extractor changes no trial; see `FederateInputs.extractor`. Nor does `FederateInputs.keep_every`.
"""


@dataclass(frozen=True)
class ExtractorInputs:
    """The extractor of features by which clients are compared.

    Attributes:
        model: The name of its model; None for a projection.
        options: The options of the model.
        weights: The digest of the file of its weights; None for a projection.
        code: The digest of the model's code, if it is a user's own.
        choice: The extractor.
    """

    model: str | None
    options: dict[str, Any]
    weights: str | None
    code: str
    choice: Annotated[ExtractorChoice, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> ExtractorInputs | None:
        """Return the extractor of a config; None if clients are not compared.

        Raises:
            InputError: There is no such file.
        """
        if not config.federate.heterogeneity:
            return None
        try:
            choice = choose_extractor(config.federate.extractor, config.model.name, config.model.options())
        except ValueError as error:
            raise InputError(f"federate.extractor: {error}") from error
        weights = context.file_digest(choice.path) if choice.path else None
        code = MODELS[choice.model].code if choice.model else ""
        return cls(choice.model, dict(choice.options), weights, code, choice)


@dataclass(frozen=True)
class FederateInputs:
    """The inputs of the federated results, besides generated samples and pre-trained models.

    Attributes:
        data: The private data.
        partition: The split over clients.
        model: The downstream model.
        client_models: The models of clients, for methods whose clients differ.
        federation: Rounds, cohorts, local training.
        engine: ``exact`` for engines with the same bits. Else the engine, the version of its rounding, and
            whether the fast path is on in this process.
        methods: The methods to compare.
        code: The digests of the code of users' own methods, by name.
        client_code: The digests of the code of users' own client models, by name.
        seeds: The seeds.
        generator: The generator; None without a generator.
        prompts: The section of the prompts. The generator classifies with them.
        guided: The inputs of the guided samples; None without a generator.
        pretrained: The inputs of the pre-trained models; None if there are none.
        public: The public data; None if there is none.
        extractor: What clients' data are compared by; None if they are not.
        labels: The label names that discovery finds, for checks before it runs.
        privacy: Differential privacy; None without it.
        keep_every: The rounds between kept models; None if final models alone are kept.
    """

    data: DataInputs
    partition: Partition
    model: ModelInputs
    client_models: list[Model]
    federation: Annotated[Federation, Without(BITWISE_SAME), IfChanged(NEW)]
    engine: Any
    methods: dict[str, Method]
    code: dict[str, str]
    client_code: dict[str, str]
    seeds: list[int]
    generator: Annotated[GeneratorInputs | None, IGNORED]
    prompts: Annotated[Prompts, IGNORED]
    guided: Annotated[GuidedInputs | None, IGNORED]
    pretrained: Annotated[PretrainInputs | None, IGNORED]
    public: Annotated[PublicInputs | None, IF_SET]
    extractor: Annotated[ExtractorInputs | None, IF_SET]
    labels: Annotated[list[str], IGNORED]
    privacy: Annotated[Privacy | None, IF_SET, Without(STATEMENTS), IfChanged(LATER)]
    keep_every: Annotated[int | None, IF_SET]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> FederateInputs:
        """Return the inputs of the stage for a config."""
        engine = config.federate.engine
        return cls(
            DataInputs.of(config, context),
            config.data.partition,
            ModelInputs.of(config, context),
            config.client_models,
            config.federate,
            "exact" if engine in EXACT else [engine, ROUNDING, _fast(config.federate)],
            config.methods,
            {name: code for method in config.methods.values() for name, code in method.code.items()},
            config.client_model_code,
            config.seeds,
            GeneratorInputs.of(config, context) if config.generates else None,
            config.prompts,
            guided_inputs(config, context) if config.generates else None,
            pretrain_inputs(config, context) if config.generates or config.pretrains_on_public else None,
            PublicInputs.of(config, context),
            ExtractorInputs.of(config, context),
            context.discovered(config),
            config.privacy,
            config.federate.keep_every,
        )


@dataclass(frozen=True)
class TrialInputs:
    """The inputs of one trial; see `FederateInputs`."""

    labels: list[str]
    data: DataInputs
    partition: Partition
    precision: Precision
    device_type: str
    model: Model
    client_models: list[Model]
    federation: Annotated[Federation, Without(BITWISE_SAME), IfChanged(NEW)]
    engine: Any
    method: Method
    code: list[dict[str, str]]
    seed: int
    privacy: Annotated[Privacy | None, IF_SET, Without(STATEMENTS), IfChanged(LATER)]


@dataclass(frozen=True)
class ZeroShotInputs:
    """The inputs of the generator as a classifier, with one seed."""

    labels: list[str]
    data: DataInputs
    sentences: list[Any]
    generator: GeneratorInputs | None
    method: Method
    seed: int


def trial_digest(inputs: FederateInputs, upstream: Upstream, method: Method, seed: int, batched: bool) -> str:
    """Return the digest of everything that a trial depends on.

    Args:
        inputs: The stage's inputs.
        upstream: The outputs that the stage reads.
        method: The method.
        seed: The seed.
        batched: Whether its clients run in batches, which changes the last bits.
    """
    stages: dict[str, str] = {}
    if method.reference == GENERATOR:
        sentences: list[Any] = [inputs.prompts.style, inputs.prompts.template, inputs.prompts.blanks]
        if inputs.generator and inputs.generator.modality == "text":
            shots = getattr(method.algorithm[0], "shots", 0)
            sentences = [inputs.partition] if shots else []  # examples are those of a client
        zero_shot = ZeroShotInputs(upstream.labels, inputs.data, sentences, inputs.generator, method, seed)
        return digest_of(FEDERATE, TRIALS_VERSION, zero_shot, stages)
    if method.reads_generated:
        stages |= generated_digests(upstream)
    if method.source == "public" and method.reads_auxiliary:
        assert inputs.public is not None
        stages["public"] = inputs.public.content
    if inputs.data.section.tokenizer == GENERATED_TOKENIZER:
        stages[VOCABULARY] = upstream.digest(VOCABULARY)
    if method.content and method.content.guidance != "prompt":
        assert inputs.guided is not None
        stages["guided"] = kind_digest(inputs.guided, upstream, method.content)
    if method.start == "pretrained":
        assert inputs.pretrained is not None
        stages["pretrain"] = seed_digest(inputs.pretrained, upstream, seed, method.source)
    if method.start == "init":
        stages["init"] = str(inputs.model.initial)
    differ = method.takes_client_models
    trial_inputs = TrialInputs(
        upstream.labels,
        inputs.data,
        inputs.partition,
        inputs.model.precision,
        inputs.model.device_type,
        inputs.model.model,
        inputs.client_models if differ else [],
        inputs.federation,
        _bits(inputs.federation, method, batched=batched),
        method,
        [inputs.model.code, inputs.client_code if differ else {}, method.code],
        seed,
        None if method.reference else inputs.privacy,
    )
    return digest_of(FEDERATE, TRIALS_VERSION, trial_inputs, stages)


def _bits(federation: Federation, method: Method, *, batched: bool) -> Any:
    """Return what the way in which clients run adds to a digest; ``exact`` for that of `sequential`."""
    if over_flower(federation, method):
        return federation.engine  # the same bits, but a checkpoint without the clients' memories
    return ["vectorized", ROUNDING, _fast(federation)] if batched else "exact"


def over_flower(federation: Federation, method: Method) -> bool:
    """Return whether the clients of a method run over Flower. References are not federated."""
    return federation.engine in (FLOWER, FLOWER_IN_PROCESS) and method.reference is None


def _fast(federation: Federation) -> bool:
    """Return whether the fast path is on: by the config, the environment, and this version of torch."""
    return federation.fast and fast_status().on
