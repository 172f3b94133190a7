"""The bytes of generated samples that the server sends to clients: inputs as models are given them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def encode_samples(x: Tensor, y: Tensor | None, classes: int) -> bytes:
    """Return the message with samples: their stored inputs, then their class indices.

    Nothing is compressed, like model weights. So the bytes depend on no library. Receivers know shape and
    dtype of an input, because they are those of their own data.

    Args:
        x: Stored inputs, [n, ...]: pixels of `data.size`, spectrograms, or tokens.
        y: Class indices, [n]; None for unlabelled samples.
        classes: The number of classes.
    """
    inputs = x.contiguous().numpy().tobytes()
    return inputs if y is None else inputs + y.numpy().astype(_label_dtype(classes)).tobytes()


def decode_samples(
    message: bytes, shape: Sequence[int], dtype: torch.dtype, classes: int, *, labelled: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the inputs [n, ...] and class indices [n] of a message; see `encode_samples`.

    Args:
        message: The message.
        shape: The shape of one input.
        dtype: The dtype of the inputs.
        classes: The number of classes.
        labelled: Whether the message holds class indices. If not, None is returned for them.
    """
    size = sample_bytes(shape, dtype, classes, labelled=labelled)
    samples = len(message) // size
    inputs = samples * sample_bytes(shape, dtype, classes, labelled=False)
    x = torch.from_numpy(np.frombuffer(message[:inputs], torch.empty(0, dtype=dtype).numpy().dtype).copy())
    y = torch.from_numpy(np.frombuffer(message[inputs:], _label_dtype(classes)).astype(np.int64))
    return x.reshape(samples, *shape), y if labelled else None


def sample_bytes(shape: Sequence[int], dtype: torch.dtype, classes: int, *, labelled: bool = True) -> int:
    """Return the bytes of one sample in a message of `encode_samples`.

    Args:
        shape: The shape of one input.
        dtype: The dtype of the inputs.
        classes: The number of classes.
        labelled: Whether the message holds class indices.
    """
    return math.prod(shape) * dtype.itemsize + labelled * _label_dtype(classes).itemsize


def _label_dtype(classes: int) -> np.dtype[Any]:
    """Return the smallest type that holds all class indices."""
    return np.min_scalar_type(max(classes - 1, 0))
