"""The sections of training: the model, pre-training at the server, and the federated rounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from genfl.config.names import OLD_ENGINES, EngineName
from genfl.config.section import Choice, OneOf, OptionSections, Section, as_list, named
from genfl.learning.augment import Augment, Padding
from genfl.options import options

_model_sections = OptionSections("Model", lambda entry: options(entry.build))


def _models() -> dict[str, type[BaseModel]]:
    from genfl.models import MODELS

    return _model_sections(MODELS)


MODEL = OneOf("Model", "name", _models)
Model = Annotated[Choice, MODEL, BeforeValidator(named)]
"""A downstream model: its name in `genfl.models.MODELS`, and its options."""


def _present_engine(value: Any) -> Any:
    """Return the present spelling of an engine's name."""
    return OLD_ENGINES.get(value, value) if isinstance(value, str) else value


class Augmentation(Section):
    """Random changes of inputs during training, drawn anew for each sample in each step."""

    crop: int = Field(
        0,
        ge=0,
        description="Images: padded by so many pixels and cropped at a random place, so that they move.",
    )
    padding: Padding = Field(
        "zeros",
        description="What a crop moves in: zeros, in normalised images the mean colour, or the mirror image.",
    )
    flip: bool = Field(False, description="Images: every second one, at random, is mirrored left to right.")
    cutout: int = Field(0, ge=0, description="Images: side of a square of zeros, in pixels.")
    time_shift: int = Field(0, ge=0, description="Sounds: moved by up to so many frames of 10 ms.")
    time_mask: int = Field(0, ge=0, description="Sounds: most frames that a mask hides (SpecAugment).")
    frequency_mask: int = Field(
        0, ge=0, description="Sounds: most mel bands that a mask hides (SpecAugment)."
    )
    masks: int = Field(1, ge=1, description="Sounds: how many masks of each kind.")
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of noise, on the scale of what models are given."
    )

    def augment(self) -> Augment:
        """Return the changes."""
        return Augment(**self.model_dump(exclude={"data"}))


Source = Literal["private", "generated"]


class LocalAugmentation(Augmentation):
    """Random changes of the inputs that clients train on."""

    data: Annotated[list[Source], BeforeValidator(as_list), Field(min_length=1)] = Field(
        ["private", "generated"], description="Which of a client's data are changed."
    )

    def of(self, source: Source) -> Augment | None:
        """Return the changes of a part of clients' data; None where there are none."""
        augment = self.augment()
        return augment if source in self.data and augment != Augment() else None


class Pretraining(Section):
    """Training on synthetic data at the server."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0, description="AdamW's learning rate at the start.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="cosine lowers it to zero.")
    weight_decay: float = Field(0.3, ge=0, description="AdamW's decoupled weight decay.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of synthetic data that decides when to stop.")
    patience: int = Field(5, ge=1, description="Epochs without a better held-back loss before stopping.")
    init: str | None = Field(
        None,
        description="An existing model to start from: a file of weights (.safetensors, or torchvision's"
        " .pth), or imagenet, torchvision's in the folder of torch.hub. Without it, random weights.",
    )
    augment: Augmentation = Augmentation()


class LocalTraining(Section):
    """What a client of the cohort does in a round."""

    steps: int | None = Field(None, ge=1, description="SGD steps; without it, epochs are counted.")
    epochs: int = Field(1, ge=1, description="Passes over the client's data, where no steps are given.")
    batch_size: int = Field(32, ge=1)
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    augment: LocalAugmentation = LocalAugmentation()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs != 1:
            raise ValueError("give steps or epochs, not both")
        return self


class Federation(Section):
    """The federated rounds, the same for every method."""

    rounds: int = Field(100, ge=1)
    clients_per_round: int = Field(10, ge=1)
    local: LocalTraining = LocalTraining()
    evaluate_every: int = Field(5, ge=1, description="Rounds between evaluations.")
    checkpoint_every: int = Field(5, ge=1, description="Rounds between checkpoints.")
    heterogeneity: bool = Field(
        False,
        description="Whether to measure how alike clients are and what that does to their local models: in"
        " every round, their divergence from the global model, and their accuracy before they are averaged.",
    )
    engine: Annotated[EngineName, BeforeValidator(_present_engine)] = Field(
        "auto",
        description="What executes the work. parallel and sequential run clients one by one and give the same"
        " bits; vectorized runs them in batches and gives the same up to rounding. auto is vectorized where"
        " steps are short, clients take the same ones, and every core, of at most four, has a batch.",
    )
    fast: bool = Field(
        True,
        description="Whether steps may be recorded and replayed. The results have the same bits as without;"
        " only the speed differs.",
    )
