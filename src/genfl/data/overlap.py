"""Near-duplicates between data sets: test examples among the training data, or among generated samples.

Inputs are compared as models get them, so neither the size nor the encoding of a file matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.data.media import Modality
from genfl.data.quality import BANDS, COMPARED_ROWS, GREY, MEASURES, WORDS

CANDIDATE = 0.95
"""The smallest correlation of the coarse averages of two inputs that are compared in detail."""

DETAIL = 0.95
"""The smallest correlation of the inputs themselves, at most `WIDEST` wide, that makes a near-duplicate."""

FEW_NUMBERS, DETAIL_OF_FEW = 256, 0.98
"""Inputs of fewer numbers than this resemble each other more, and need this correlation."""

NEIGHBOURS, CLOSER = 10, 0.3
"""A near-duplicate's distance is at most this share of that to the farthest of the nearest neighbours.

All pictures of a thin vertical line resemble each other. So resemblance alone is no sign of a copy.
"""

WIDEST = 32
"""Inputs are averaged to this width and height, if they are larger, before they are compared in detail."""

MOST_EXAMPLES = 100_000
"""The largest number of training examples that are compared. Of more, as many are taken at even distances."""

CHUNK_NUMBERS = 4_000_000
"""The largest number of numbers of inputs that are floats at a time: 16 MB of them."""

QUERIES = 250
"""The largest number of inputs whose neighbours are compared in detail at a time."""

TIE = 1e-4
"""Distances that are smaller than this are equal."""

LUMA = (0.299, 0.587, 0.114)
"""The shares of red, green and blue in grey (ITU-R BT.601), as Pillow has them."""


class NearPairs(NamedTuple):
    """Pairs of near-duplicates, the most similar first.

    Attributes:
        rows: For each pair, the row of the first data set and the row of the second, int64 [pairs, 2].
        similarity: The correlation of each pair, or the cosine for texts, float32 [pairs].
        compared: The number of examples of the second data set that were compared.
    """

    rows: np.ndarray
    similarity: np.ndarray
    compared: int


def near_pairs(
    first: Tensor, second: Tensor, modality: Modality, among: np.ndarray | None = None
) -> NearPairs:
    """Return the near-duplicates between two data sets.

    Images and spectrograms are near-duplicates if three conditions hold:

    - Their coarse averages (see `genfl.data.quality.MEASURES`) correlate with `CANDIDATE` or more.
    - They themselves correlate with `DETAIL` or more (`DETAIL_OF_FEW` if they are small).
    - Their distance, 1 − correlation, is at most `CLOSER` times the distance to the farthest of `NEIGHBOURS`
      nearest neighbours in `second`.

    Texts are near-duplicates if the cosine of their sets of word sequences is that of
    `genfl.data.quality.MEASURES` or more. It is exact.

    Blocks of `COMPARED_ROWS` rows are compared at a time: 5,000 images with 50,000 take about 12 seconds
    on one core, and need a few hundred megabytes. Larger images need no more: few are floats at a time.

    Args:
        first: Inputs as they are stored, [n, ...].
        second: Inputs of the same format, [m, ...]. If there are more than `MOST_EXAMPLES`, as many are
            compared, at even distances.
        modality: What the inputs are.
        among: The rows of `second` that count, ascending; None for all.
    """
    among = np.arange(len(second)) if among is None else among
    chosen = among[_evenly(len(among), MOST_EXAMPLES)]
    tokens = modality == "text" and first.ndim == 2 and not first.is_floating_point()
    search = _near_texts if tokens else _near_inputs
    rows, similarity = search(first, second, torch.from_numpy(chosen), modality)
    order = np.lexsort((rows[:, 1], rows[:, 0], -similarity))
    rows[:, 1] = chosen[rows[:, 1]]
    return NearPairs(rows[order], similarity[order], len(chosen))


def means(modality: Modality) -> str:
    """Return the definition of near-duplicates, in words."""
    if modality == "text":
        return MEASURES[modality].means
    return (
        f"{MEASURES[modality].cosine} is {CANDIDATE:g} or more, they themselves correlate with {DETAIL:g} or"
        f" more ({DETAIL_OF_FEW:g} below {FEW_NUMBERS} numbers), and they are much closer than most of the"
        f" {NEIGHBOURS} nearest neighbours"
    )


def _near_inputs(
    first: Tensor, second: Tensor, chosen: Tensor, modality: Modality
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of rows of `first` and positions in `chosen`, and their similarity."""
    coarse_of = partial(_coarse, modality=modality)
    reference = _in_chunks(coarse_of, second, chosen)
    count = min(NEIGHBOURS, len(chosen))
    least = DETAIL if second[0].numel() >= FEW_NUMBERS else DETAIL_OF_FEW
    pairs, similarities = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for start in range(0, len(first), COMPARED_ROWS):
        block = first[start : start + COMPARED_ROWS]
        cosines = _in_chunks(coarse_of, block, torch.arange(len(block))) @ reference.T
        candidates = (cosines.amax(1) >= CANDIDATE).nonzero().squeeze(1)
        for hot in candidates.split(QUERIES):
            coarse, neighbours = cosines[hot].topk(count, 1)
            distinct, number = neighbours.unique(return_inverse=True)
            details = _in_chunks(_detail, second, chosen[distinct])[number]
            detail = (_in_chunks(_detail, block, hot)[:, None] * details).sum(2)
            # Of fewer neighbours than these, the farthest may be a near-duplicate, too.
            farthest = detail.amin(1) if count == NEIGHBOURS else torch.full((len(hot),), -1.0)
            near = (coarse >= CANDIDATE) & (detail >= least)
            near &= 1 - detail <= CLOSER * (1 - farthest)[:, None] + TIE
            query, place = near.nonzero(as_tuple=True)
            pairs.append(torch.stack([start + hot[query], neighbours[query, place]], 1).numpy())
            similarities.append(detail[query, place].float().numpy())
    return np.concatenate(pairs), np.concatenate(similarities)


def _in_chunks(convert: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """Return the converted rows of inputs. `CHUNK_NUMBERS` numbers or one row are floats at a time."""
    most = max(1, CHUNK_NUMBERS // max(1, math.prod(x.shape[1:])))
    return torch.cat([convert(x[part]) for part in rows.split(most)])


def _coarse(x: Tensor, modality: Modality) -> Tensor:
    """Return the centred coarse averages of inputs, of length 1 or 0, [n, d]."""
    x = _pictures(x)
    if x.shape[1] == len(LUMA):
        x = (x * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    width, height = GREY if modality == "image" else BANDS
    return _units(F.interpolate(x, (height, width), mode="area"))


def _detail(x: Tensor) -> Tensor:
    """Return centred inputs of length 1 or 0, averaged to `WIDEST` if they are larger, [n, d]."""
    x = _pictures(x)
    size = tuple(min(WIDEST, length) for length in x.shape[2:])
    return _units(x if size == tuple(x.shape[2:]) else F.interpolate(x, size, mode="area"))


def _pictures(x: Tensor) -> Tensor:
    """Return inputs as float [n, channels, height, width]. Of other shapes, all numbers are one line."""
    x = x.float()
    if x.ndim == 3:  # spectrograms, [n, time, bands]
        return x[:, None]
    return x if x.ndim == 4 else x.reshape(len(x), 1, 1, -1)


def _units(x: Tensor) -> Tensor:
    x = x.flatten(1)
    x = x - x.mean(1, keepdim=True)
    length = x.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-3, x / length.clamp(min=1e-3), torch.zeros_like(x))


def _near_texts(
    first: Tensor, second: Tensor, chosen: Tensor, modality: Modality
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of rows of `first` and positions in `chosen`, and their similarity."""
    from scipy import sparse  # it takes half a second to import, and few runs need it

    second = second[chosen]
    sequences = [_sequences(x.numpy()) for x in (first, second)]
    values, numbers = np.unique(np.concatenate([codes for _, codes in sequences]), return_inverse=True)
    split, matrices = len(sequences[0][0]), []
    for (rows, _), columns, x in zip(
        sequences, (numbers[:split], numbers[split:]), (first, second), strict=True
    ):
        sizes = np.bincount(rows, minlength=len(x))
        entries = (1 / np.sqrt(sizes[rows])).astype(np.float32)
        matrices.append(sparse.csr_array((entries, (rows, columns)), shape=(len(x), len(values))))
    transposed = matrices[1].T.tocsr()
    pairs, similarities = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for start in range(0, len(first), COMPARED_ROWS):
        cosines = (matrices[0][start : start + COMPARED_ROWS] @ transposed).tocoo()
        near = cosines.data >= MEASURES[modality].near - 1e-6  # rounding must not decide ties
        pairs.append(np.stack([start + cosines.row[near], cosines.col[near]], 1).astype(np.int64))
        similarities.append(cosines.data[near].astype(np.float32))
    return np.concatenate(pairs), np.concatenate(similarities)


def _sequences(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct sequences of `WORDS` tokens of texts: the row and a 64-bit hash of each.

    A text of fewer tokens is one sequence. Token 0 is padding.

    Args:
        tokens: Token numbers, [n, length].
    """
    ids = np.pad(tokens.astype(np.uint64), ((0, 0), (0, WORDS - 1)))
    length = tokens.shape[1]
    codes = np.zeros(tokens.shape, np.uint64)
    for offset in range(WORDS):
        codes = codes * np.uint64(0x9E3779B97F4A7C15) + ids[:, offset : offset + length] + np.uint64(1)
        codes ^= codes >> np.uint64(29)
    lengths = (tokens != 0).sum(1)
    starts = np.arange(length) < np.maximum(lengths - WORDS + 1, np.minimum(lengths, 1))[:, None]
    rows, _ = np.nonzero(starts)
    distinct = np.unique(np.stack([rows.astype(np.uint64), codes[starts]], 1), axis=0)
    return distinct[:, 0].astype(np.int64), distinct[:, 1]


def _evenly(count: int, most: int) -> np.ndarray:
    """Return the rows of at most so many examples, at even distances."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
