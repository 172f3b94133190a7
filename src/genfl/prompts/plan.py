"""Which samples to generate: text, guidance scale and seed of each, in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from genfl.data.samples import Prompt
from genfl.rng import Key


class Source(Protocol):
    """Where prompts' texts come from."""

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draws a prompt for a label."""
        ...


def plan(
    labels: Sequence[str],
    per_label: int,
    source: Source,
    guidance_scales: Sequence[float],
    block_size: int,
    key: Key,
    wrong: float = 0.0,
) -> list[list[Prompt]]:
    """Draws the prompts of a synthetic data set.

    Every label gets the same number, so that the server need not know how frequent the labels are. Diffusion
    pipelines take one guidance scale a call, so samples form blocks of one scale, drawn for each block; a
    block holds all labels in turn.

    Args:
        labels: The names of the classes.
        per_label: Samples of each.
        source: Where the texts come from.
        guidance_scales: The scales to draw from.
        block_size: Samples in a block; the last may hold fewer.
        key: The random stream.
        wrong: Share of the samples whose text is that of another label, drawn at random: a bad generator.

    Returns:
        The blocks, together ``per_label * len(labels)`` prompts.
    """
    blocks = []
    total = per_label * len(labels)
    for number, first in enumerate(range(0, total, block_size)):
        rng = key.fold("block", number).numpy()
        scale = guidance_scales[int(rng.integers(len(guidance_scales)))]
        block = []
        for sample in range(first, min(first + block_size, total)):
            label = labels[sample % len(labels)]
            text = source.draw(_told(labels, label, wrong, key.fold("wrong", sample)), rng)
            block.append(
                Prompt(label, text, scale, key.fold("sample", sample).integer(), sample // len(labels))
            )
        blocks.append(block)
    return blocks


def _told(labels: Sequence[str], label: str, wrong: float, key: Key) -> str:
    """Returns the label, or in a share of the cases another one."""
    rng = key.numpy()
    others = [other for other in labels if other != label]
    return others[int(rng.integers(len(others)))] if wrong and rng.random() < wrong and others else label
