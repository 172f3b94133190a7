"""The sections of training: the model, pre-training at the server, and the federated rounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from genfl.config.names import OLD_ENGINES, RunEngineName
from genfl.config.section import Choice, OneOf, OptionSections, OrFlag, OrOne, Section, named
from genfl.learning.augment import Augment, Padding
from genfl.learning.pretrain import LrSchedule, PretrainOptimizer, recipe_problem
from genfl.options import options

_model_sections = OptionSections("Model", lambda entry: options(entry.build), build=lambda entry: entry.build)


def _models() -> dict[str, type[BaseModel]]:
    from genfl.models import MODELS

    return _model_sections(MODELS)


MODEL = OneOf("Model", "name", _models)
Model = Annotated[Choice, MODEL, BeforeValidator(named)]
"""A downstream model: its name in `genfl.models.MODELS`, and its options."""

_AUGMENT = "Random changes of the inputs during training."


def _present_engine(value: Any) -> Any:
    """Return the current spelling of an engine's name."""
    return OLD_ENGINES.get(value, value) if isinstance(value, str) else value


class Augmentation(Section):
    """Random changes of inputs during training, drawn for each sample in each step."""

    crop: int = Field(
        0,
        ge=0,
        description="Images: padded by this many pixels on each side, then cropped at a random position.",
    )
    padding: Padding = Field(
        "zeros",
        description="Images: the padding of crop. zeros: the mean colour of normalised images. reflect: the"
        " mirror image.",
    )
    flip: bool = Field(False, description="Images: mirrored left to right with probability 1/2.")
    cutout: int = Field(0, ge=0, description="Images: side of a random square of zeros, in pixels.")
    time_shift: int = Field(0, ge=0, description="Sounds: moved in time by up to this many frames of 10 ms.")
    time_mask: int = Field(
        0, ge=0, description="Sounds: largest number of frames that a mask hides (SpecAugment)."
    )
    frequency_mask: int = Field(
        0, ge=0, description="Sounds: largest number of mel bands that a mask hides (SpecAugment)."
    )
    masks: int = Field(1, ge=1, description="Sounds: number of masks of each of the two kinds.")
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of added Gaussian noise, on the scale of model inputs."
    )

    def augment(self) -> Augment:
        """Return the random changes."""
        return Augment(**self.model_dump(exclude={"data"}))


Source = Literal["private", "generated"]


class LocalAugmentation(Augmentation):
    """Random changes of the inputs that clients train on."""

    data: Annotated[list[Source], Field(min_length=1), OrOne()] = Field(
        ["private", "generated"], description="The parts of a client's data that are changed."
    )

    def of(self, source: Source) -> Augment | None:
        """Return the random changes of a part of clients' data; None if there are none."""
        augment = self.augment()
        return augment if source in self.data and augment != Augment() else None


class Pretraining(Section):
    """Training on synthetic data at the server."""

    epochs: int = Field(20, ge=1, description="Largest number of passes over the synthetic data.")
    batch_size: int = Field(64, ge=1, description="Samples in a step.")
    lr: float = Field(1e-3, gt=0, description="Learning rate at the start.")
    schedule: LrSchedule = Field(
        "cosine",
        description="The learning rate over time. cosine lowers it to zero. exponential multiplies it by"
        " lr_decay after every epoch.",
    )
    weight_decay: float = Field(
        0.3,
        ge=0,
        description="AdamW's decoupled weight decay, or SGD's, which is added to the gradient. If not set, it"
        " is 0 for SGD.",
    )
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of synthetic data that is held back to decide when to stop."
    )
    patience: int = Field(
        5, ge=1, description="Epochs without a better held-back loss after which training stops."
    )
    init: str | None = Field(
        None,
        description="An existing model to start from: a file of weights (.safetensors, or torchvision's"
        " .pth), or imagenet for torchvision's file in the folder of torch.hub. If not set, random weights.",
    )
    augment: Augmentation = Field(Augmentation(), description=_AUGMENT)
    optimizer: PretrainOptimizer = Field("adamw", description="adamw, or sgd with momentum.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of SGD. AdamW has none.")
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the learning rate after every epoch. Only for schedule exponential.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_weight_decay_of_sgd(cls, content: Any) -> Any:
        """Set SGD's default weight decay: AdamW's is far too strong for it."""
        if isinstance(content, dict) and content.get("optimizer") == "sgd":
            return {"weight_decay": 0.0, **content}
        return content

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problem := recipe_problem(self.optimizer, self.momentum, self.schedule, self.lr_decay):
            raise ValueError(problem)
        return self


class LocalTraining(Section):
    """Local training: the work of a client in a round."""

    steps: int | None = Field(
        None, ge=1, description="Number of SGD steps per round. If not set, epochs counts."
    )
    epochs: int = Field(1, ge=1, description="Passes over the client's data per round, if steps is not set.")
    batch_size: int = Field(32, ge=1, description="Samples in a step.")
    lr: float = Field(0.05, gt=0, description="Learning rate of SGD.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of SGD. It starts at zero in every round.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of SGD.")
    augment: LocalAugmentation = Field(LocalAugmentation(), description=_AUGMENT)
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the learning rate of SGD after every round: in round t, it is"
        " lr × lr_decay^(t − 1).",
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs != 1:
            raise ValueError("set steps or epochs, not both")
        return self


class SecureUploads(Section):
    """The secure sum of the uploads of a round."""

    threshold: int | None = Field(
        None,
        ge=2,
        description="Fewest clients of a cohort whose sum may be opened, more than half of them. If not set,"
        " two thirds of them, and one more.",
    )
    limit: float = Field(
        2.0**20,
        gt=0,
        description="Largest absolute value in an upload. Larger ones are refused, never clipped.",
    )
    precision: float = Field(
        2.0**-20,
        gt=0,
        description="Largest step of the fixed-point numbers. Words have 32 bits if they suffice for limit,"
        " precision and clients_per_round, else 64.",
    )

    def problem(self, cohort: int) -> str | None:
        """Return what does not fit cohorts of this size: field, value and fix. None if all does."""
        if cohort < 2:
            return "secure: a sum of one client hides nothing; raise clients_per_round, or set it to false"
        if self.threshold is not None and not cohort < 2 * self.threshold <= 2 * cohort:
            return (
                f"secure.threshold: {self.threshold}, but of {cohort} clients it is {cohort // 2 + 1} to"
                f" {cohort}; set one of these, or leave it out"
            )
        return None


class Federation(Section):
    """The federated rounds. They are the same for every method."""

    rounds: int = Field(100, ge=1, description="Number of rounds.")
    clients_per_round: int = Field(10, ge=1, description="Number of clients in the cohort of a round.")
    local: LocalTraining = Field(LocalTraining(), description="Local training of a client in a round.")
    evaluate_every: int = Field(5, ge=1, description="Rounds between evaluations.")
    checkpoint_every: int = Field(5, ge=1, description="Rounds between checkpoints.")
    heterogeneity: bool = Field(
        False,
        description="Whether to measure how alike clients are, by the features of extractor. In every round,"
        " this also measures the divergence of local models from their mean, and their accuracy before"
        " averaging.",
    )
    engine: Annotated[RunEngineName, BeforeValidator(_present_engine)] = Field(
        "auto",
        description="How clients run. sequential: one by one in one process. parallel: one by one in several"
        " processes, bit-identical to sequential. vectorized: in batches, equal to sequential up to rounding."
        " auto: vectorized if steps are short and alike and every core (at most four) has a batch, else"
        " parallel. flower-inprocess: one by one over Flower's messages in one process, bit-identical to"
        " sequential; it needs genfl[flower]. flower: set by genfl deploy and genfl server.",
    )
    fast: bool = Field(
        True,
        description="Whether steps may be recorded and replayed, which is faster. The results of clients that"
        " run one by one have the same bits. In batches, the last bits may differ.",
    )
    extractor: str = Field(
        "projection",
        min_length=1,
        description="What heterogeneity compares clients' data by. projection: a fixed random projection of"
        " the inputs, or of the counts of a text's tokens; it needs nothing. imagenet: torchvision's file of"
        " ResNet-18 in the folder of torch.hub. Else a file of weights of the downstream model, or MODEL:FILE"
        " for those of another model with default options.",
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        description="Rounds between global models that are kept besides the final one, for use and for"
        " audits. If not set, final models alone are kept.",
    )
    quorum: int = Field(
        1,
        ge=1,
        description="Flower: fewest clients of a cohort that must answer with a valid upload. If fewer do,"
        " the others are asked again, and then the run stops. It can be resumed.",
    )
    deadline: float = Field(
        3600.0,
        gt=0,
        description="Flower: seconds that the server waits for the clients of a round. Those that are late"
        " are left out of the round. With secure, it counts for each of the five messages of a sum.",
    )
    secure: Annotated[SecureUploads | None, OrFlag()] = Field(
        None,
        description="Whether a secure sum adds the uploads, so that the server sees their sum alone. true, or"
        " its settings. Over Flower, it also adds the tables of label names, and the census. Numbers are"
        " rounded to fixed point. In other engines, it is simulated.",
    )
