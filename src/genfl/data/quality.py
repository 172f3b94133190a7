"""Quality of generated content: unusable samples are left out, and duplicates are counted."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genfl.data.media import Clip, Modality
from genfl.data.samples import Sample
from genfl.data.sounds import RATE, WINDOW, log_mel, resampled
from genfl.data.synthetic import Removed, SyntheticData

SILENCE = 1e-3
"""A sound is silent if its range of values is smaller than this: −60 dB of full scale."""

GREY = (16, 16)
"""Width and height that images are averaged to before they are compared."""

BANDS = (16, 32)
"""Mel bands and spans of time that spectrograms are averaged to before they are compared."""

WORDS, TEXT_VECTOR = 3, 512
"""The length of the word sequences that texts are compared by, and of the vectors that represent them."""

COMPARED_ROWS = 1024
"""The number of vectors that are compared at a time with all vectors before them."""


class QualityMeasure(NamedTuple):
    """The checks of one kind of content.

    Attributes:
        fault: ``(content) -> reason`` why a sample is unusable; None if it is usable.
        vector: ``(content) -> float32 [d]``, the vector of length 1 that represents a sample in comparisons;
            all zeros if there is nothing to compare.
        cosine: What the cosine of two vectors stands for, in words.
        near: The smallest cosine of near-duplicates.
    """

    fault: Callable[[Any], str | None]
    vector: Callable[[Any], np.ndarray]
    cosine: str
    near: float

    @property
    def means(self) -> str:
        """The definition of near-duplicates, in words."""
        return f"{self.cosine} is {self.near:g} or more"


def sift(samples: Sequence[Sample], modality: Modality) -> tuple[list[Sample], Removed]:
    """Separate usable samples from unusable ones.

    Args:
        samples: Generated samples.
        modality: Their kind of content.

    Returns:
        The usable samples, in order, and for each label the number of unusable samples by reason. Reasons are
        ``not finite`` (NaN or infinity), ``blank`` (an image of one colour), ``silent`` (a clip within
        `SILENCE`), ``too short`` (a clip below 64 ms) and ``empty`` (a text).
    """
    kept: list[Sample] = []
    removed: Removed = {}
    for sample in samples:
        reason = MEASURES[modality].fault(sample.content)
        if reason is None:
            kept.append(sample)
        else:
            counts = removed.setdefault(sample.prompt.label, {})
            counts[reason] = counts.get(reason, 0) + 1
    return kept, removed


def survey(data: SyntheticData) -> dict[str, dict[str, Any]]:
    """Count samples and duplicates of each label in a finished data set.

    Args:
        data: The data set.

    Returns:
        For each label, four values. ``samples`` is their number. ``removed`` is the number of samples left
        out, by reason. ``duplicates`` counts samples with the same bytes as an earlier sample of any label.
        ``near_duplicates`` counts samples near an earlier sample of their label, exact duplicates included;
        see `near_duplicates`.

    Raises:
        GenflError: A shard is missing or damaged.
    """
    measure = MEASURES[data.modality]

    def read(cell: Any) -> tuple[bytes, np.ndarray]:
        content = cell.encode() if isinstance(cell, str) else cell["bytes"]
        return hashlib.sha256(content).digest(), measure.vector(data.medium.read(cell))

    samples, names = data.read(read)
    first: set[bytes] = set()
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in data.label_names}
    repeated = dict.fromkeys(data.label_names, 0)
    for (checksum, vector), name in zip(samples, names, strict=True):
        vectors[name].append(vector)
        repeated[name] += checksum in first
        first.add(checksum)
    removed = data.removed()
    return {
        name: {
            "samples": len(of_label),
            "removed": removed.get(name, {}),
            "duplicates": repeated[name],
            "near_duplicates": near_duplicates(torch.from_numpy(np.stack(of_label)), measure.near)
            if of_label
            else 0,
        }
        for name, of_label in vectors.items()
    }


def near_duplicates(vectors: Tensor, near: float) -> int:
    """Count the vectors that are near an earlier vector.

    All pairs are compared: 3,000 vectors of 256 take a tenth of a second.

    Args:
        vectors: Vectors of length 1 or 0, float [n, d].
        near: The smallest cosine of vectors that are near each other.
    """
    count = 0
    for start in range(0, len(vectors), COMPARED_ROWS):
        rows = vectors[start : start + COMPARED_ROWS]
        cosines = (rows @ vectors[: start + len(rows)].T).tril(start - 1)  # only with earlier vectors
        count += int((cosines >= near - 1e-6).any(1).sum())  # rounding must not decide ties
    return count


def _image_fault(image: Image.Image) -> str | None:
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        return "not finite"
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return "blank" if all(low == high for low, high in bands) else None


def _clip_fault(clip: Clip) -> str | None:
    if not np.isfinite(clip.samples).all():
        return "not finite"
    if clip.seconds < WINDOW / RATE:
        return "too short"
    return "silent" if np.ptp(clip.samples) < SILENCE else None


def _text_fault(text: str) -> str | None:
    return None if text.strip() else "empty"


def _image_vector(image: Image.Image) -> np.ndarray:
    return _centred(image.convert("L"), GREY)


def _clip_vector(clip: Clip) -> np.ndarray:
    samples = resampled(clip, RATE).samples
    return _centred(Image.fromarray(log_mel(samples).astype(np.float32)), BANDS)


def _centred(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return the centred averages of an image over a grid; the cosine of two is their correlation."""
    x = np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32).ravel()
    return _unit(x - x.mean())


def _text_vector(text: str) -> np.ndarray:
    """Hash each distinct sequence of words to an index and a sign (Weinberger et al., ICML 2009)."""
    words = re.findall(r"\w+", text.lower())
    count = min(WORDS, len(words))
    sequences = {" ".join(words[n : n + count]) for n in range(len(words) - count + 1)} - {""}
    x = np.zeros(TEXT_VECTOR, np.float32)
    for sequence in sequences:
        bits = zlib.crc32(sequence.encode())
        x[bits % TEXT_VECTOR] += 1 if bits >> 31 else -1
    return _unit(x)


def _unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x)
    return x / length if length > 1e-6 else np.zeros_like(x)


MEASURES: dict[Modality, QualityMeasure] = {
    "image": QualityMeasure(
        _image_fault, _image_vector, "the correlation of their {} × {} grey averages".format(*GREY), 0.98
    ),
    "audio": QualityMeasure(
        _clip_fault,
        _clip_vector,
        "the correlation of their log-mel spectrograms, averaged to {} bands and {} spans,".format(*BANDS),
        0.98,
    ),
    "text": QualityMeasure(
        _text_fault, _text_vector, f"the cosine of their sets of {WORDS} words in a row", 0.8
    ),
}
"""The measure of each kind of content.

The thresholds were tested on real data sets. Near-duplicates are: an image that is slightly compressed,
brightened or noised; a sound at another loudness; a text of a hundred words with five replaced.
"""
