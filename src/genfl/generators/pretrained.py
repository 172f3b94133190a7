"""What generators share that run somebody's pretrained model: where it is, what it is, and how it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genfl.data.media import Clip
from genfl.data.samples import Prompt
from genfl.data.sounds import RATE, resampled
from genfl.errors import InputError

CACHED_PROMPTS = 512
"""How many prompts' embeddings are kept; those of the largest text encoders take 3 MB each."""

Embeddings = dict[str, Tensor]
"""What a pipeline is given in place of a text, and of the empty one that guidance leads away from, by
argument, without a batch dimension."""


NO_MEMORY = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What errors say that are no `torch.OutOfMemoryError`, and mean it."""


@contextmanager
def in_memory(samples: int, device: str, field: str = "generator.device") -> Iterator[None]:
    """Says how many samples to make at once where a block of them does not fit into memory.

    Raises:
        InputError: It does not.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)):
            raise
        fix = (
            f"set prompts.block_size to {samples // 2}, for which all blocks are made anew"
            if samples > 1
            else "take a smaller model"
        )
        raise InputError(
            f"{field}: the memory of {device} does not do for a block of {samples}; {fix}"
        ) from error


def draws(prompts: Sequence[Prompt], device: str) -> dict[str, Any]:
    """Returns what a pipeline of diffusers is told of a block's guidance and noise.

    Each sample has a random stream of its own, so that its noise does not depend on its block.

    Raises:
        ValueError: The prompts have different guidance scales.
    """
    scales = {prompt.guidance_scale for prompt in prompts}
    if len(scales) != 1:
        raise ValueError(f"a block has one guidance scale, not {sorted(scales)}")
    return {
        "guidance_scale": scales.pop(),
        "generator": [torch.Generator(device).manual_seed(prompt.seed) for prompt in prompts],
    }


def together(texts: Sequence[Embeddings]) -> dict[str, Tensor]:
    """Returns what a pipeline of diffusers is told in place of texts.

    Args:
        texts: Of each, its embeddings, encoded alone: the size of a batch would change the last bits. Those
            of a shorter text end in zeros, which its mask leaves out.
    """
    return {name: pad_sequence([text[name] for text in texts], batch_first=True) for name in texts[0]}


def accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Returns those options that a function takes: pipelines of one task differ in them."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def clip(samples: np.ndarray, rate: int) -> Clip:
    """Returns a model's sound [n] or [channels, n] as a clip of 16 kHz, cut at full scale."""
    mono = np.atleast_2d(samples).mean(0, dtype=np.float32)
    made = resampled(Clip(mono, rate), RATE)
    return made._replace(samples=made.samples.clip(-1, 1))  # what is resampled may overshoot
