"""Prompts, and the samples that generators make from them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """The description of one sample to generate.

    Attributes:
        label: The name of its class.
        text: The text for the generator.
        guidance_scale: The weight of the text in classifier-free guidance; there is none at 1 or below.
        seed: The seed of the sample's noise, independent of its block.
        nth: The number of the sample among those of its label, from 0.
        guides: Real examples of its class that guide the sample (FedGC), of the same modality. An image
            starts from one; a text is written in the manner of several. Empty if there is only the text.
        guide_labels: The class of each guide, if guides may be of other classes; else empty.
    """

    label: str
    text: str
    guidance_scale: float
    seed: int
    nth: int = 0
    guides: tuple[Any, ...] = ()
    guide_labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A generated sample with its prompt.

    Attributes:
        prompt: The prompt it was made from.
        content: A PIL image, a `genfl.data.media.Clip` or a text, depending on the generator's modality.
    """

    prompt: Prompt
    content: Any
