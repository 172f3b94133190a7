"""Prompts from templates: a sentence with the label and blanks to fill in."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from genfl.data.media import Modality
from genfl.errors import InputError

Style = Literal["label", "single", "multiple", "fill"]

LABEL = "label"
SINGLE: dict[Modality, str] = {
    "image": "a photo of a {label}",
    "audio": "a sound of {label}",
    "text": "a text about {label}",
}
MULTIPLE: dict[Modality, tuple[str, ...]] = {
    "image": (
        "a photo of a {label}",
        "an image of a {label}",
        "a picture of a {label}",
        "a photo of one {label}",
        "a close-up photo of a {label}",
        "a bright photo of a {label}",
        "a dark photo of a {label}",
        "a photo of a small {label}",
        "a photo of a large {label}",
        "a good photo of a {label}",
    ),
    "audio": (
        "a sound of {label}",
        "a recording of {label}",
        "the sound of {label} nearby",
        "the sound of {label} in the distance",
        "a loud sound of {label}",
        "a soft sound of {label}",
        "{label} outdoors",
        "{label} in a room",
        "{label} in a city",
        "{label} in nature",
    ),
    "text": (
        "a text about {label}",
        "a short text about {label}",
        "a report about {label}",
        "a headline about {label}",
        "a comment about {label}",
        "a question about {label}",
        "an opinion about {label}",
        "a story about {label}",
        "a conversation about {label}",
        "a message about {label}",
    ),
}
"""The texts around a label's name, by what is to be generated."""


class Templates:
    """Sentences to draw a label's prompts from.

    Styles:
        label: the label's name alone.
        single: one sentence for all (FedGC's "single" prompt), that of the modality.
        multiple: one of several sentences (FedGC's "multiple" prompts).
        fill: GPT-FL's query form, the label in a sentence whose blanks are filled in: ``a {look} {label}``.
            Each blank is filled with one of its words, drawn anew for each prompt.

    Args:
        style: One of the above.
        template: The sentence of the style ``fill``; it names ``{label}`` and every blank.
        blanks: The words for each blank of the style ``fill``; an empty word leaves no gap.
        modality: What is to be generated.

    Raises:
        InputError: The template and the blanks do not fit together.
    """

    def __init__(
        self,
        style: Style,
        template: str | None = None,
        blanks: Mapping[str, Sequence[str]] | None = None,
        modality: Modality = "image",
    ) -> None:
        self.blanks = dict(blanks or {})
        if style != "fill" and (template or blanks):
            raise InputError(f"prompts: style {style!r} takes no template and no blanks; style 'fill' does")
        if style == "fill":
            self.templates: Sequence[str] = (_checked(template, self.blanks),)
        else:
            several = {"label": ("{label}",), "single": (SINGLE[modality],), "multiple": MULTIPLE[modality]}
            self.templates = several[style]

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draws a prompt for a label."""
        template = self.templates[int(rng.integers(len(self.templates)))]
        words = {blank: fills[int(rng.integers(len(fills)))] for blank, fills in self.blanks.items()}
        return " ".join(template.format(label=label, **words).split())

    def all(self, label: str) -> list[str]:
        """Returns every sentence for a label; of a style without blanks."""
        return [template.format(label=label) for template in self.templates]


def _checked(template: str | None, blanks: Mapping[str, Sequence[str]]) -> str:
    if template is None:
        raise InputError("prompts.template: style 'fill' needs one, for example 'a {look} {label}'")
    try:
        named = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise InputError(f"prompts.template: {error}") from error
    if LABEL not in named:
        raise InputError("prompts.template: it must name {label}")
    if LABEL in blanks:
        raise InputError(
            "prompts.blanks: 'label' is filled with the label itself; give the blank another name"
        )
    for blank in sorted(named - {LABEL} - set(blanks)):
        raise InputError(f"prompts.blanks: the template's blank {{{blank}}} has no words")
    for blank in sorted(set(blanks) - named):
        raise InputError(f"prompts.blanks: {blank!r} is not named in the template")
    try:
        template.format(**dict.fromkeys(named, "word"))
    except (ValueError, LookupError, AttributeError) as error:
        raise InputError(f"prompts.template: a blank is {{name}} and nothing more ({error})") from error
    for blank, words in blanks.items():
        if not words:
            raise InputError(f"prompts.blanks.{blank}: give at least one word")
    return template
