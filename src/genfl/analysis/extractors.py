"""Feature extractors by which clients' data are compared: fixed ones, whatever a run trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genfl.models import MODELS, Classifier
from genfl.models.pretrained import load_pretrained, locate
from genfl.rng import Key

PROJECTION, IMAGENET_EXTRACTOR = "projection", "imagenet"

PROJECTED = 256
"""The number of features of a projection."""

LEAST_SIDE = 32
"""The least height and width of an image that ResNet-18 of ImageNet takes."""

BUCKETS = 4096
"""The number of buckets in which the tokens of a text are counted."""

Extract = Callable[[Tensor], Tensor]
"""``inputs, as models are given them [n, ...] -> features [n, d]``."""


class ExtractorChoice(NamedTuple):
    """A feature extractor.

    Attributes:
        model: The name of its model in `MODELS`; None for a projection.
        options: The options of the model.
        path: The file of its weights; None for a projection.
        adapts: Whether images are given the channels and the size that the model needs.
    """

    model: str | None
    options: Mapping[str, Any]
    path: Path | None
    adapts: bool = False


def choose_extractor(name: str, model: str, options: Mapping[str, Any]) -> ExtractorChoice:
    """Return the extractor that a config names.

    Args:
        name: ``projection``, ``imagenet`` (ResNet-18), a file of weights of the downstream model, or
            ``MODEL:FILE`` for a file of weights of another model.
        model: The name of the downstream model.
        options: Its options.

    Raises:
        ValueError: There is no such file.
    """
    if name == PROJECTION:
        return ExtractorChoice(None, {}, None)
    if name == IMAGENET_EXTRACTOR:
        return ExtractorChoice("resnet18", {}, locate(IMAGENET_EXTRACTOR, "resnet18"), True)
    prefix, separator, file = name.partition(":")
    if separator and prefix in MODELS:
        return ExtractorChoice(prefix, {}, locate(file, prefix))
    return ExtractorChoice(model, options, locate(name, model))


def build_extractor(choice: ExtractorChoice, shape: tuple[int, ...], classes: int) -> Extract:
    """Return an extractor for inputs of a shape.

    Args:
        choice: What extracts.
        shape: The shape of one input. For `IMAGENET_EXTRACTOR`, a single channel becomes three equal
            ones, and images are enlarged to `LEAST_SIDE` pixels where they are smaller.
        classes: The number of classes, which a file's head need not have.

    Raises:
        ValueError: The weights do not fit the model, or the model does not fit the inputs.
    """
    if choice.model is None:
        return project
    if choice.adapts and len(shape) != 3:
        raise ValueError(f"{IMAGENET_EXTRACTOR} takes images, not inputs of shape {shape}; use {PROJECTION}")
    adapt = _adapted if choice.adapts else lambda x: x
    module = _load(choice, tuple(adapt(torch.zeros(1, *shape)).shape[1:]), classes)

    def extract(x: Tensor) -> Tensor:
        with torch.no_grad():
            features: Tensor = module.features(adapt(x))
        return features

    try:
        extract(torch.zeros(1, *shape))
    except (RuntimeError, IndexError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{choice.model} does not fit inputs of shape {shape}: {message}") from error
    return extract


def _adapted(x: Tensor) -> Tensor:
    """Return images with three channels and sides of at least `LEAST_SIDE` pixels."""
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    size = [max(side, LEAST_SIDE) for side in x.shape[2:]]
    return x if size == list(x.shape[2:]) else F.interpolate(x, size, mode="bilinear", antialias=True)


def _load(choice: ExtractorChoice, shape: tuple[int, ...], classes: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # only a head that is never used stays random
        module: Classifier = MODELS[str(choice.model)].build(shape, classes, **choice.options)
    assert choice.path is not None, "a model has weights"
    skipped = load_pretrained(module, choice.path)
    if any(name.startswith("projection.") for name in skipped):
        raise ValueError(
            f"{choice.path} has no projection head, so its features would be random; use a"
            f" model without projection, as in {choice.model}:FILE"
        )
    return module.eval()


def project(x: Tensor) -> Tensor:
    """Return a fixed random projection of inputs. It needs no model.

    Distances are kept in the mean (Johnson and Lindenstrauss, 1984), so it compares the inputs themselves.

    Args:
        x: Inputs as models are given them: numbers [n, ...], or the tokens of texts, int64 [n, length]. The
            tokens but padding (0) are counted, in `BUCKETS` buckets.

    Returns:
        [n, `PROJECTED`].
    """
    flat = x.flatten(1) if x.is_floating_point() else token_counts(x)
    return flat.float() @ _projection(flat.shape[1])


@lru_cache(maxsize=1)  # it may have a hundred megabytes
def _projection(numbers: int) -> Tensor:
    rng = Key(0).fold("projection").torch()
    return torch.randn(numbers, PROJECTED, generator=rng) / math.sqrt(PROJECTED)


def token_counts(tokens: Tensor) -> Tensor:
    """Return how often tokens of each bucket occur in texts, float [n, `BUCKETS`].

    Args:
        tokens: int64 [n, length]; 0 is padding, which does not count.
    """
    counts = torch.zeros(len(tokens), BUCKETS)
    return counts.scatter_add_(1, tokens % BUCKETS, (tokens != 0).float())
