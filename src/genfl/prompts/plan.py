"""Plan the samples to generate: text, guidance scale and seed of each, in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from genfl.data.samples import Prompt
from genfl.rng import Key


class PromptSource(Protocol):
    """A source of the texts of prompts."""

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draw the text of a prompt for a label."""
        ...


def plan_prompts(
    labels: Sequence[str],
    per_label: int,
    source: PromptSource,
    guidance_scales: Sequence[float],
    block_size: int,
    key: Key,
    wrong: float = 0.0,
) -> list[list[Prompt]]:
    """Draw the prompts of a synthetic data set.

    Every label gets the same number of samples, so the server need not know how frequent the labels are. A
    diffusion pipeline takes one guidance scale per call. So samples form blocks of one scale, which is drawn
    for each block. A block takes the labels in turn.

    Args:
        labels: The names of the classes.
        per_label: The number of samples of each label, at least 1.
        source: The source of the texts.
        guidance_scales: The scales to draw from.
        block_size: The samples in a block, at least 1; the last block may hold fewer.
        key: The random stream.
        wrong: The share of the samples whose text describes another label, drawn at random, in [0, 1]. It
            simulates a bad generator.

    Returns:
        The blocks, with ``per_label * len(labels)`` prompts in all.
    """
    blocks = []
    total = per_label * len(labels)
    for number, first in enumerate(range(0, total, block_size)):
        rng = key.fold("block", number).numpy()
        scale = guidance_scales[int(rng.integers(len(guidance_scales)))]
        block = []
        for sample in range(first, min(first + block_size, total)):
            label = labels[sample % len(labels)]
            text = source.draw(_described_label(labels, label, wrong, key.fold("wrong", sample)), rng)
            block.append(
                Prompt(label, text, scale, key.fold("sample", sample).integer(), sample // len(labels))
            )
        blocks.append(block)
    return blocks


def _described_label(labels: Sequence[str], label: str, wrong: float, key: Key) -> str:
    """Return the label, or with the probability ``wrong`` another one."""
    rng = key.numpy()
    others = [other for other in labels if other != label]
    return others[int(rng.integers(len(others)))] if wrong and rng.random() < wrong and others else label
