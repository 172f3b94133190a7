"""What every generator takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from genfl.data.samples import Prompt, Sample


class Generator(Protocol):
    """Makes labelled samples from prompts.

    Attributes:
        id: What is written beside every sample: the model's id.
    """

    id: str

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts of which it cannot make samples, before any is made.

        Args:
            prompts: Those of all blocks.

        Raises:
            InputError: There is one; it says what is wrong.
        """
        return

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Makes one sample for each prompt of a block, in order.

        Args:
            prompts: A block: all of one guidance scale and all with equally many guides, made in one call of
                the model.
        """
        ...
