"""Downstream models, and their names in configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from genfl.identity import value_digest
from genfl.models.base import Classifier, Stack
from genfl.models.cnn import CNN, MLP
from genfl.models.convnet import ConvNet
from genfl.models.recurrent import LSTM, FedAudio
from genfl.models.resnet import resnet18, resnet20, resnet50
from genfl.models.vgg import VGG19, VGG19ImageNet
from genfl.models.wrapped import Wrapped
from genfl.registry import Registry


class ModelEntry(NamedTuple):
    """A model that a config can name.

    Attributes:
        build: ``(shape, classes, **options) -> model``. Its parameters with defaults are the options of the
            config.
        modality: The kind of its inputs: image, audio or text.
        shape: The shape of one input in `genfl list models`.
        classes: The number of classes in `genfl list models`.
        source: The user's own builder, whose code cached results depend on; None for built-in models.
    """

    build: Callable[..., Classifier]
    modality: str
    shape: tuple[int, ...]
    classes: int
    source: Callable[..., Any] | None = None

    @property
    def code(self) -> str:
        """The digest of the code of a user's own builder as it is now; empty for built-in ones."""
        return value_digest(self.source) if self.source else ""


MODELS: Registry[ModelEntry] = Registry(
    "model",
    {
        "cnn": ModelEntry(CNN, "image", (1, 8, 8), 10),
        "mlp": ModelEntry(MLP, "image", (1, 8, 8), 10),
        "convnet": ModelEntry(ConvNet, "image", (3, 32, 32), 10),
        "resnet18": ModelEntry(resnet18, "image", (3, 224, 224), 1000),
        "resnet20": ModelEntry(resnet20, "image", (3, 32, 32), 10),
        "resnet50": ModelEntry(resnet50, "image", (3, 224, 224), 1000),
        "vgg19": ModelEntry(VGG19, "image", (3, 32, 32), 10),
        "vgg19_imagenet": ModelEntry(VGG19ImageNet, "image", (3, 224, 224), 1000),
        "fedaudio": ModelEntry(FedAudio, "audio", (101, 128), 36),
        "lstm": ModelEntry(LSTM, "text", (25,), 2),
    },
)

__all__ = ["CNN", "MLP", "MODELS", "Classifier", "ModelEntry", "Stack", "Wrapped"]
