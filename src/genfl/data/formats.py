"""Input formats: the arrays that the examples of a data set are encoded as, once, to train models on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genfl.data.media import Modality, is_deep_grey


class InputFormat(Protocol):
    """An encoding of content as arrays, and its preparation for models.

    Implementations are frozen dataclasses.

    Attributes:
        modality: The kind of content.
        options: The names of the fields that a config may set; each is a field of `genfl.config.Data`.
    """

    modality: ClassVar[Modality]
    options: ClassVar[tuple[str, ...]]

    def missing(self) -> str | None:
        """Return which required option is not set, and how to set it; None if none is missing."""
        ...

    def shape(self) -> tuple[int, ...]:
        """Return the shape of one input."""
        ...

    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored arrays."""
        ...

    def identity(self) -> list[Any]:
        """Return plain values that determine the stored arrays, besides the content."""
        ...

    def vocabulary(self) -> int:
        """Return the number of distinct tokens, padding included; 0 if inputs are not tokens."""
        ...

    def input_range(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the smallest and the largest value of prepared inputs, by channel; None if unknown."""
        ...

    def encode(self, content: Any) -> np.ndarray:
        """Encode content as an array of this format's shape and dtype."""
        ...

    def prepare(self, x: Tensor) -> Tensor:
        """Turn stored inputs, [n, ...], into the floats that models take."""
        ...


@dataclass(frozen=True)
class PixelFormat:
    """Images as uint8 [channels, height, width]; models get ``(x / 255 − mean) / std``.

    Attributes:
        size: Height and width in pixels; None if the user has to set it.
        channels: 1 for grey, 3 for RGB.
        mean: The mean of each channel over the training set, in [0, 1]. If `channels` differs from the
            number of means, their average is used for all channels.
        std: The standard deviation of each channel; averaged in the same case.
    """

    modality: ClassVar[Modality] = "image"
    options: ClassVar[tuple[str, ...]] = ("size", "channels")

    size: tuple[int, int] | None
    channels: int
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)

    def missing(self) -> str | None:
        """Return that the size must be set, if it is not; else None."""
        return None if self.size else "size: give the images' height and width, as in [32, 32]"

    def shape(self) -> tuple[int, ...]:
        """Return channels, height and width."""
        assert self.size is not None
        return (self.channels, *self.size)

    def dtype(self) -> np.dtype[Any]:
        """Return uint8."""
        return np.dtype(np.uint8)

    def identity(self) -> list[Any]:
        """Return size and channels; the normalisation changes no stored array."""
        return [self.size, self.channels]

    def vocabulary(self) -> int:
        """Return 0: pixels are not tokens."""
        return 0

    def input_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the normalised values of black and of white, for each channel."""
        extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        low, high = self.prepare(extremes.expand(2, self.channels, 1, 1)).flatten(1).tolist()
        return tuple(low), tuple(high)

    def encode(self, content: Image.Image) -> np.ndarray:
        """Return the pixels of an image; see `image_pixels`."""
        assert self.size is not None
        return image_pixels(content, self.size, self.channels)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each channel."""
        mean, std = (_per_channel(values, self.channels) for values in (self.mean, self.std))
        return tuple(mean), tuple(std)

    def prepare(self, x: Tensor) -> Tensor:
        """Return normalised images."""
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in self.normalisation())
        return (x.to(torch.get_default_dtype()) / 255 - mean) / std


@dataclass(frozen=True)
class GreyFormat:
    """Grey images as float32 [1, height, width] in [0, 1], averaged over blocks of pixels.

    Attributes:
        size: Height and width in pixels.
    """

    modality: ClassVar[Modality] = "image"
    options: ClassVar[tuple[str, ...]] = ()

    size: tuple[int, int]

    def missing(self) -> str | None:
        """Return None: there are no options."""
        return None

    def shape(self) -> tuple[int, ...]:
        """Return 1, height and width."""
        return (1, *self.size)

    def dtype(self) -> np.dtype[Any]:
        """Return float32."""
        return np.dtype(np.float32)

    def identity(self) -> list[Any]:
        """Return the size, and what distinguishes the arrays from those of `PixelFormat`."""
        return ["grey", self.size]

    def vocabulary(self) -> int:
        """Return 0: pixels are not tokens."""
        return 0

    def input_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the values of black and of white."""
        return (0.0,), (1.0,)

    def encode(self, content: Image.Image) -> np.ndarray:
        """Return the brightness of an image's blocks."""
        small = content.convert("L").resize(self.size[::-1], Image.Resampling.BOX)
        return (np.asarray(small, dtype=np.float32) / 255)[None]

    def prepare(self, x: Tensor) -> Tensor:
        """Return the images unchanged."""
        return x


def _per_channel(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) == channels else [fmean(values)] * channels


def image_pixels(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """Return an image of any size and mode as uint8 [channels, height, width].

    Transparent pixels become white. Greys of 16 bits keep their upper 8 bits. An image of another size is
    resized (bicubic, with antialiasing), and stretched if its proportions differ. An image that already has
    the size and mode keeps its pixels.

    Args:
        image: The image.
        size: Height and width.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: The image holds real or 32-bit numbers, whose range is unknown.
    """
    image = plain_image(image, channels)
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, channels).transpose(2, 0, 1)


def plain_image(image: Image.Image, channels: int = 3) -> Image.Image:
    """Return an image of any mode as a grey or RGB image of 8 bits and the same size; see `image_pixels`.

    Args:
        image: The image.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: The image holds real or 32-bit numbers, whose range is unknown.
    """
    deep = is_deep_grey(image)
    if image.mode in ("F", "I") and not deep:
        raise ValueError(f"mode {image.mode} does not define which value is black and which is white")
    if deep:  # convert would clip the values
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
