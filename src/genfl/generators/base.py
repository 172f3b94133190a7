"""The interface of all generators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from genfl.data.samples import Prompt, Sample


class Generator(Protocol):
    """A source of labelled samples that are made from prompts.

    Attributes:
        id: The model's name, which is written beside every sample.
        threads: The number of threads to compute on; None for those of the process.
    """

    id: str
    threads: int | None = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check the prompts before any sample is made.

        Args:
            prompts: The prompts of all blocks.

        Raises:
            InputError: The generator cannot make a sample from one of them; the message says why.
        """
        return

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Make one sample for each prompt of a block, in order.

        Args:
            prompts: One block. All its prompts have the same guidance scale and the same number of guides,
                so one call of the model makes all samples.
        """
        ...
