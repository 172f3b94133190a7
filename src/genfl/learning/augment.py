"""Data augmentation: random changes of inputs during training, batched on tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.data.media import Modality

Padding = Literal["zeros", "reflect"]

OPTIONS: dict[Modality, tuple[str, ...]] = {
    "image": ("crop", "padding", "flip", "cutout", "noise"),
    "audio": ("time_shift", "time_mask", "frequency_mask", "masks", "noise"),
    "text": (),
}
"""The changes that each modality supports."""


@dataclass(frozen=True)
class Augment:
    """Random changes of inputs, drawn independently for each sample of a batch. All are off by default.

    Inputs are changed after normalisation. A zero is therefore the data set's mean colour, or the mean of a
    standardised spectrogram. The result for a sample depends on the random stream and on its position in the
    batch.

    Source: masks in time and frequency: SpecAugment (Park et al. 2019, arXiv 1904.08779), without its time
    warping; cutout: DeVries and Taylor 2017 (arXiv 1708.04552).

    Attributes:
        crop: Images are padded by this many pixels on each side, then cropped to their size at a random
            position. So they move by up to this many pixels each way. Less than height and width.
        padding: The pixels that a crop adds: ``zeros``, or the mirror image (``reflect``).
        flip: Images are mirrored left to right, each with probability ½.
        cutout: The side of a square of zeros, centred anywhere in the image. Less than height and width.
        time_shift: Spectrograms move by up to this many frames each way. Zeros fill the gap.
        time_mask: The largest number of frames that a mask sets to zero. Its length is uniform from 0, and
            its position is uniform.
        frequency_mask: The largest number of mel bands that a mask sets to zero.
        masks: The number of masks of each of the two kinds.
        noise: Standard deviation of Gaussian noise added to each number.
    """

    crop: int = 0
    padding: Padding = "zeros"
    flip: bool = False
    cutout: int = 0
    time_shift: int = 0
    time_mask: int = 0
    frequency_mask: int = 0
    masks: int = 1
    noise: float = 0.0

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed inputs: images [n, channels, height, width] or spectrograms [n, time, mels]."""
        n, height, width = len(x), x.shape[-2], x.shape[-1]
        if self.crop:
            x = _moved(x, self.crop, self.crop, self.padding, generator)
        if self.flip:
            flipped = torch.rand(n, generator=generator) < 0.5
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        if self.cutout:
            top, left = (
                torch.randint(side, (n,), generator=generator) - self.cutout // 2 for side in (height, width)
            )
            rows, columns = _span(top, self.cutout, height), _span(left, self.cutout, width)
            x = torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, x)
        if self.time_shift:
            x = _moved(x[:, None], self.time_shift, 0, "zeros", generator)[:, 0]
        if self.time_mask or self.frequency_mask:
            frames = _masked(n, height, self.time_mask, self.masks, generator)
            bands = _masked(n, width, self.frequency_mask, self.masks, generator)
            x = torch.where(frames[:, :, None] | bands[:, None, :], 0.0, x)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return x

    def problem(self, modality: Modality, shape: tuple[int, ...]) -> str | None:
        """Return what is wrong with an option: field and fix. None if all options fit.

        Args:
            modality: The kind of the examples.
            shape: The shape of one input.
        """
        active = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        known = OPTIONS[modality]
        for name in active:
            if name not in known:
                fix = f"use one of: {', '.join(known)}" if known else "leave augment out"
                return f"{name}: not available for {modality}; {fix}"
        if not active:
            return None
        height, width = shape[-2:]
        sides = {"crop": min(height, width), "cutout": min(height, width), "frequency_mask": width}
        sides |= {"time_shift": height, "time_mask": height}
        for name, side in sides.items():
            if active.get(name, 0) >= side:
                return f"{name}: {active[name]} of {side} leaves nothing to learn from; lower it"
        return None


def _moved(x: Tensor, down: int, right: int, padding: Padding, generator: torch.Generator) -> Tensor:
    """Return images, each moved at random by up to `down` and `right` pixels each way."""
    mode = "constant" if padding == "zeros" else padding
    padded = F.pad(x, (right, right, down, down), mode)
    windows = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    rows, columns = (torch.randint(2 * most + 1, (len(x),), generator=generator) for most in (down, right))
    return windows[torch.arange(len(x)), :, rows, columns]


def _masked(n: int, size: int, widest: int, masks: int, generator: torch.Generator) -> Tensor:
    """Draw masks for n samples, and return which of 0 ... size − 1 they hide, [n, size]."""
    hidden = torch.zeros(n, size, dtype=torch.bool)
    for _ in range(masks if widest else 0):
        length = torch.randint(widest + 1, (n,), generator=generator)
        first = (torch.rand(n, generator=generator) * (size - length + 1)).long()
        hidden |= _span(first, length, size)
    return hidden


def _span(first: Tensor, length: Tensor | int, size: int) -> Tensor:
    """Return which of 0 ... size − 1 lie in each sample's span, [n, size]."""
    position = torch.arange(size)
    return (first[:, None] <= position) & (position < (first + length)[:, None])
