"""Prompts, and the samples that generators make from them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """What one sample is made from.

    Attributes:
        label: The name of its class.
        text: What the generator is told.
        guidance_scale: Weight of the prompt in classifier-free guidance; at 1 or below there is none.
        seed: Decides the sample's noise, whatever else is in its block.
        nth: Its place among the samples of its label, from 0.
        guides: Real examples of its class that guide the sample (FedGC), contents of its own kind: an image
            starts from one, a text is written in the manner of several. Empty for the prompt alone.
    """

    label: str
    text: str
    guidance_scale: float
    seed: int
    nth: int = 0
    guides: tuple[Any, ...] = ()


class Sample(NamedTuple):
    """A generated sample and what it was made from.

    Attributes:
        prompt: What it was made from.
        content: A PIL image, a `genfl.data.media.Clip` or a text, as the generator's modality says.
    """

    prompt: Prompt
    content: Any
