"""The description of a trained model, ``model.json``: all that its use needs besides the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

import genfl
from genfl.config.section import FolderName
from genfl.data import sounds
from genfl.data.formats import GreyFormat, InputFormat, PixelFormat
from genfl.data.media import Modality
from genfl.data.sounds import LogMelFormat
from genfl.data.texts import HASH_BUCKETS, HASHED_TOKENIZER, TokenFormat
from genfl.errors import InputError, first_line, on_one_line, suggest
from genfl.learning.task import Precision
from genfl.models import MODELS, Classifier
from genfl.results.schema import ResultModel
from genfl.storage import read_json, write_json

DESCRIPTION_FILE = "model.json"
"""The name of the file, beside the weights."""

WEIGHTS_FILE = "model.safetensors"
"""The name of the file of a model's weights."""

TOKENIZER_FILE = "tokenizer.json"
"""The name of the tokenizer's file, beside the weights."""

DESCRIPTION_VERSION: Literal[1] = 1
"""The version of ``model.json``. It is raised whenever a field is added, removed or changes its meaning."""


_Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""A name without control characters."""


class PixelInput(ResultModel):
    """Images of a `PixelFormat`: ``(pixels / 255 - mean) / std``."""

    kind: Literal["pixels"] = Field("pixels", description="Images with normalised pixels.")
    size: tuple[int, int] = Field(description="Height and width, in pixels.")
    channels: int = Field(description="1 for grey, 3 for RGB.")
    mean: list[float] = Field(description="Mean of each channel, in [0, 1], which is subtracted.")
    std: list[float] = Field(description="Standard deviation of each channel, by which is divided.")
    resize: Literal["bicubic, antialiased, stretched"] = Field(
        "bicubic, antialiased, stretched", description="How images of another size are resized."
    )


class GreyInput(ResultModel):
    """Images of a `GreyFormat`: brightness in [0, 1]."""

    kind: Literal["grey"] = Field("grey", description="Grey images in [0, 1].")
    size: tuple[int, int] = Field(description="Height and width, in pixels.")
    resize: Literal["mean over blocks, stretched"] = Field(
        "mean over blocks, stretched", description="How images of another size are resized."
    )


class LogMelInput(ResultModel):
    """Sounds of a `LogMelFormat`: log-mel spectrograms, standardised for each clip."""

    kind: Literal["log_mel"] = Field("log_mel", description="Log-mel spectrograms.")
    seconds: float = Field(description="Length that clips are cut or padded to, in seconds.")
    rate: int = Field(sounds.RATE, description="Sample rate that clips are resampled to, in Hz.")
    window: int = Field(sounds.WINDOW, description="Samples of a frame.")
    hop: int = Field(sounds.HOP, description="Samples between frames.")
    mels: int = Field(sounds.MELS, description="Number of mel bands.")
    floor: float = Field(sounds.FLOOR, description="Lowest power that differs from silence.")
    range: float = Field(sounds.RANGE, description="Dynamic range below the loudest value, in dB.")


class TokenInput(ResultModel):
    """Texts of a `TokenFormat`: token ids, of which 0 is padding at the end."""

    kind: Literal["tokens"] = Field("tokens", description="Token ids from 1, padded with 0.")
    length: int = Field(description="Number of tokens that texts are cut or padded to.")
    tokenizer: Literal["hashed", "tokenizer.json"] = Field(
        description="hashed: a token is a hash of a word. tokenizer.json: that file, beside this one."
    )
    buckets: int | None = Field(description="Number of hashes; null with a tokenizer's file.")


class OwnInput(ResultModel):
    """Inputs of a data set of the user's own, whose code prepares them."""

    kind: Literal["own"] = Field("own", description="Inputs that the data set's own code prepares.")
    data: _Name = Field(description="Name that the data set is registered by.")


InputDescription = Annotated[
    PixelInput | GreyInput | LogMelInput | TokenInput | OwnInput, Field(discriminator="kind")
]
"""The form of a model's inputs."""


class Architecture(ResultModel):
    """A model's architecture: a name, and all of its options."""

    name: _Name = Field(description="Name of the model, as in `genfl list models`.")
    options: dict[str, Any] = Field(description="All options of the builder, defaults included.")
    own: bool = Field(description="Whether it is a model of the user's own, whose code must be registered.")


class ModelFigures(ResultModel):
    """The scores of the model on the run's test set."""

    accuracy: float = Field(description="Accuracy, in [0, 1].")
    macro_f1: float = Field(description="Mean F1 score of the classes, in [0, 1].")
    calibration_error: float | None = Field(
        description="Expected calibration error in 15 bins, in [0, 1]; null if the model diverged."
    )
    loss: float | None = Field(description="Mean cross-entropy, in nats; null if it is not finite.")
    recall: list[float | None] = Field(
        description="Recall of each class, in [0, 1]; null for a class without test examples."
    )
    examples: int = Field(description="Number of test examples.")


class ModelDescription(ResultModel):
    """All that the use of a trained model needs besides its weights, as in ``model.json``."""

    format: Literal[1] = Field(DESCRIPTION_VERSION, description="Version of this file.")
    genfl: str = Field(genfl.__version__, description="Version of genfl that wrote it.")
    method: FolderName = Field(description="Method that trained the model, as the config calls it.")
    seed: int = Field(description="Seed that it was trained with.")
    client: int | None = Field(
        None, description="Client that trained it alone; null for a model of all clients."
    )
    rounds: int = Field(description="Number of federated rounds; 0 for a model that was only pre-trained.")
    model: Architecture = Field(description="Architecture.")
    shape: list[int] = Field(description="Shape of one prepared input.")
    precision: Precision = Field(description="Precision of the arithmetic, fp32 or bf16.")
    modality: Modality = Field(description="Kind of content: image, audio or text.")
    input: InputDescription = Field(description="How content becomes a prepared input.")
    label_names: list[str] = Field(description="Names of the classes, in the order of the outputs.")
    figures: ModelFigures | None = Field(description="Scores on the run's test set; null if not tested.")
    config_digest: str = Field(
        description="Digest of all that the model depends on: settings, data and code."
    )
    weights_sha256: str = Field(description="SHA-256 of `model.safetensors`.")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the description in a file.

        Args:
            path: A ``model.json``.

        Raises:
            InputError: There is no such file, or another version of genfl wrote it.
            GenflError: The file is damaged.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the config again, which writes it without training")
        content = read_json(path)
        version = content.get("format") if isinstance(content, dict) else None
        if version != DESCRIPTION_VERSION:
            raise InputError(
                f"{path}: format {version!r}, but this version of genfl reads format {DESCRIPTION_VERSION};"
                " use the version that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            field = on_one_line(".".join(map(str, problem["loc"])))
            raise InputError(f"{path}: {field}: {problem['msg']}; restore the file") from error

    def write(self, path: Path) -> None:
        """Write the description as JSON.

        Args:
            path: The file, replaced if it exists.
        """
        write_json(path, self.to_dict())

    def build(self) -> Classifier:
        """Return a new module of the architecture, with random weights.

        Raises:
            InputError: The model is not registered in this process, or its code changed.
        """
        name = self.model.name
        if name not in MODELS and not self.model.own:
            raise InputError(f"model: there is no {on_one_line(name)!r}; {suggest(name, list(MODELS))}")
        if name not in MODELS:
            raise InputError(
                f"model: {name} is a model of your own, whose code is not at hand; import the module that"
                " registers it"
            )
        try:
            return MODELS[name].build(tuple(self.shape), len(self.label_names), **self.model.options)
        except Exception as error:  # of options that are not its own, a model can raise anything
            options = on_one_line(self.model.options, 200)
            raise InputError(
                f"model: {name} does not take {options} ({first_line(error)}); use the version that trained"
                " it"
            ) from error


def describe_input(data: str, encoding: InputFormat | None) -> InputDescription:
    """Return the description of an input format.

    Args:
        data: The name of the data set in configs.
        encoding: The format; None for data whose code alone knows it. A format of a user's own counts as
            such code.
    """
    match encoding:
        case PixelFormat(size=size, channels=channels) if size is not None:
            mean, std = encoding.normalisation()
            return PixelInput(size=size, channels=channels, mean=list(mean), std=list(std))
        case GreyFormat(size=size):
            return GreyInput(size=size)
        case LogMelFormat(seconds=seconds) if seconds is not None:
            return LogMelInput(seconds=seconds)
        case TokenFormat(length=length, tokenizer=tokenizer):
            hashed = tokenizer == HASHED_TOKENIZER
            return TokenInput(
                length=length,
                tokenizer="hashed" if hashed else "tokenizer.json",
                buckets=HASH_BUCKETS if hashed else None,
            )
    return OwnInput(data=data)


def input_format(described: InputDescription, folder: Path) -> InputFormat | None:
    """Return the format that a description stands for; None for data of a user's own.

    Args:
        described: The description.
        folder: The folder of the tokenizer's file.

    Raises:
        InputError: Another version of genfl computes other features.
    """
    match described:
        case PixelInput():
            return PixelFormat(
                described.size, described.channels, tuple(described.mean), tuple(described.std)
            )
        case GreyInput():
            return GreyFormat(described.size)
        case LogMelInput():
            if described != LogMelInput(seconds=described.seconds):
                raise _other_version("spectrograms")
            return LogMelFormat(described.seconds)
        case TokenInput(tokenizer="hashed"):
            if described.buckets != HASH_BUCKETS:
                raise _other_version("tokens")
            return TokenFormat(described.length)
        case TokenInput():
            return TokenFormat(described.length, str(folder / TOKENIZER_FILE))
    return None


def _other_version(features: str) -> InputError:
    return InputError(f"model: it was trained on other {features}; use the version of genfl that trained it")


def figures_of(evaluations: Sequence[Mapping[str, Any]], examples: int) -> ModelFigures | None:
    """Return the figures of the last evaluation; None if there is none.

    Args:
        evaluations: The evaluations of a model, in order; see `genfl.learning.evaluate.Scores`.
        examples: The number of test examples.
    """
    if not evaluations:
        return None
    last = evaluations[-1]
    scores = {name: last[name] for name in ModelFigures.model_fields if name != "examples"}
    return ModelFigures(**scores, examples=examples)
