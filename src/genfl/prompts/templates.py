"""Prompts from templates: sentences with the label, and with blanks to fill in."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from genfl.data.media import Modality
from genfl.errors import InputError

Style = Literal["label", "single", "multiple", "fill"]
"""A style that needs no chat model, see `Templates`."""

LABEL = "label"
"""The blank for the label's name."""

SINGLE: dict[Modality, str] = {
    "image": "a photo of {label}",
    "audio": "a sound of {label}",
    "text": "a text about {label}",
}
"""The sentence of the style ``single`` for each modality; FedGC's for images has no article."""

MULTIPLE: dict[Modality, tuple[str, ...]] = {
    "image": (
        "{label}",
        "a photo of {label}",
        "an image of {label}",
        "a picture of {label}",
        "a photo of one {label}",
        "a close-up photo of {label}",
        "a bright photo of {label}",
        "a dark photo of {label}",
        "a photo of a small {label}",
        "a photo of a large {label}",
        "a good photo of {label}",
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
"""The sentences of the style ``multiple`` for each modality.

As in FedGC, the bare label is one of those for images. They have no article before the label, which would be
"a" before "airplane". Except for the bare label and the first sentence, their wording is ours.
"""


class Templates:
    """Sentences that a label's prompts are drawn from.

    Styles:
        label: The label's name alone.
        single: One sentence for all samples, that of the modality (FedGC's "single" prompt).
        multiple: One of several sentences (FedGC's "multiple" prompts).
        fill: A sentence with the label and blanks, such as ``a {look} {label}`` (GPT-FL's query form). Each
            blank is filled with one of its words, drawn anew for each prompt.

    Args:
        style: One of the above.
        template: The sentence of the style ``fill``, with ``{label}`` and every blank.
        blanks: The words for each blank of the style ``fill``; an empty word leaves no gap.
        modality: The modality of the samples that the prompts describe.

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
            raise InputError(
                f"prompts: style {style!r} takes no template or blanks; leave them out, or use style 'fill'"
            )
        if style == "fill":
            self.templates: Sequence[str] = (_checked(template, self.blanks),)
        else:
            sentences = {"label": ("{label}",), "single": (SINGLE[modality],), "multiple": MULTIPLE[modality]}
            self.templates = sentences[style]

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draw a prompt of a label."""
        template = self.templates[int(rng.integers(len(self.templates)))]
        words = {blank: fills[int(rng.integers(len(fills)))] for blank, fills in self.blanks.items()}
        return " ".join(template.format(label=label, **words).split())

    def all(self, label: str) -> list[str]:
        """Return every sentence for a label, for a style without blanks."""
        return [template.format(label=label) for template in self.templates]


def _checked(template: str | None, blanks: Mapping[str, Sequence[str]]) -> str:
    if template is None:
        raise InputError("prompts.template: style 'fill' needs one; give for example 'a {look} {label}'")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise InputError(f"prompts.template: {template!r} is not a template ({error}); correct it") from error
    if LABEL not in fields:
        raise InputError(f"prompts.template: {template!r} must name {{label}}; add it")
    if LABEL in blanks:
        raise InputError(
            "prompts.blanks: 'label' is filled with the label itself; give the blank another name"
        )
    for blank in sorted(fields - {LABEL} - set(blanks)):
        raise InputError(f"prompts.blanks: the template's blank {{{blank}}} has no words; give some")
    for blank in sorted(set(blanks) - fields):
        raise InputError(f"prompts.blanks: {blank!r} is not named in the template; leave it out")
    try:
        template.format(**dict.fromkeys(fields, "word"))
    except (ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"prompts.template: {template!r} has a blank that is more than {{name}} ({error}); write the name"
            " only"
        ) from error
    for blank, words in blanks.items():
        if not words:
            raise InputError(f"prompts.blanks.{blank}: it has no words; give at least one")
    return template
