"""Helpers of the generators that run a pretrained model: prompts, noise, embeddings and clips."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genfl.data.media import Clip
from genfl.data.samples import Prompt
from genfl.data.sounds import RATE, resampled

CACHED_PROMPTS = 512
"""The number of prompts whose embeddings are kept; those of the largest text encoders take 3 MB each."""

Embeddings = dict[str, Tensor]
"""A pipeline's arguments that replace a text and the empty text that guidance leads away from.

Keys are the names of the arguments. The tensors have no batch dimension.
"""


def guidance_and_noise(prompts: Sequence[Prompt], device: str) -> dict[str, Any]:
    """Return the arguments of a diffusers pipeline for a block's guidance scale and noise.

    Each sample has its own random stream, so its noise does not depend on its block.

    Args:
        prompts: One block.
        device: The torch device of the random streams.

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


def stack_embeddings(texts: Sequence[Embeddings]) -> dict[str, Tensor]:
    """Return the arguments of a diffusers pipeline for a batch of encoded texts.

    Shorter texts are padded with zeros, which their mask leaves out.

    Args:
        texts: The embeddings of each text. Each text was encoded alone, because the size of a batch would
            change the last bits.
    """
    return {name: pad_sequence([text[name] for text in texts], batch_first=True) for name in texts[0]}


def accepted_options(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Return the options that a function accepts: pipelines of one task take different ones."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def clip_of(samples: np.ndarray, rate: int) -> Clip:
    """Return a model's sound as a mono clip of 16 kHz, limited to full scale.

    Args:
        samples: [n] or [channels, n]; full scale is [−1, 1].
        rate: Samples per second.
    """
    mono = np.atleast_2d(samples).mean(0, dtype=np.float32)
    resampled_clip = resampled(Clip(mono, rate), RATE)
    # resampling may overshoot full scale
    return resampled_clip._replace(samples=resampled_clip.samples.clip(-1, 1))
