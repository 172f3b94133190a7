"""Forms: what the examples of a data set are turned into, once, for models to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genfl.data.media import Modality


class Form(Protocol):
    """How content becomes an array, and an array what a model is given.

    It is a frozen dataclass.

    Attributes:
        modality: What the content is.
        options: The names of its fields that a config may set, each a field of `genfl.config.Data`.
    """

    modality: ClassVar[Modality]
    options: ClassVar[tuple[str, ...]]

    def missing(self) -> str | None:
        """Says which option must be set, and how; None where there is none."""
        ...

    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one input."""
        ...

    def dtype(self) -> np.dtype[Any]:
        """Returns the type of what is stored."""
        ...

    def identity(self) -> list[Any]:
        """Returns what decides the stored arrays, as plain values."""
        ...

    def vocabulary(self) -> int:
        """Returns the number of tokens there can be, padding included; 0 where inputs are no tokens."""
        ...

    def encode(self, content: Any) -> np.ndarray:
        """Turns content into what is stored, of this form's shape and dtype."""
        ...

    def prepare(self, x: Tensor) -> Tensor:
        """Turns stored inputs, [n, ...], into floats as models are given them."""
        ...


@dataclass(frozen=True)
class Pixels:
    """Images as uint8 [channels, height, width], given to models as ``(x / 255 − mean) / std``.

    Attributes:
        size: Height and width; None where the user is to say.
        channels: 1 for grey, 3 for RGB.
        mean: Of each channel over the training set, in [0, 1]; all channels get the average where it has
            another number of them.
        std: The standard deviation of each channel.
    """

    modality: ClassVar[Modality] = "image"
    options: ClassVar[tuple[str, ...]] = ("size", "channels")

    size: tuple[int, int] | None
    channels: int
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)

    def missing(self) -> str | None:
        """Says that the size must be set, where it must."""
        return None if self.size else "size: give the images' height and width, as in [32, 32]"

    def shape(self) -> tuple[int, ...]:
        """Returns channels, height and width."""
        assert self.size is not None
        return (self.channels, *self.size)

    def dtype(self) -> np.dtype[Any]:
        """Returns uint8."""
        return np.dtype(np.uint8)

    def identity(self) -> list[Any]:
        """Returns size and channels: the normalisation comes later."""
        return [self.size, self.channels]

    def vocabulary(self) -> int:
        """Returns 0: pixels are no tokens."""
        return 0

    def encode(self, content: Image.Image) -> np.ndarray:
        """Returns an image's pixels; see `pixels`."""
        assert self.size is not None
        return pixels(content, self.size, self.channels)

    def prepare(self, x: Tensor) -> Tensor:
        """Returns normalised images."""
        centre, scale = (_each(values, self.channels).to(x.device) for values in (self.mean, self.std))
        return (x.to(torch.get_default_dtype()) / 255 - centre) / scale


def _each(values: Sequence[float], channels: int) -> Tensor:
    values = values if len(values) == channels else [fmean(values)] * channels
    return torch.tensor(values)[:, None, None]


def pixels(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """Returns an image of any size and mode as uint8 [channels, height, width].

    What is transparent becomes white, and of 16-bit greys the upper 8 bits stay. An image of another size is
    resized (bicubic, with antialiasing), and stretched where its proportions differ. An image that has the
    size and mode already keeps its pixels.

    Args:
        image: The image.
        size: Height and width.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: Its numbers are real, or have 32 bits: it does not say from where to where they go.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("F", "I") and not deep:
        raise ValueError(f"the mode {image.mode} does not say what is black and what is white")
    if deep:  # convert would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, channels).transpose(2, 0, 1)
