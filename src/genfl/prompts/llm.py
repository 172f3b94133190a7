"""Prompts by a chat model: asked for until there are enough usable ones of every label."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from genfl.data.media import Modality
from genfl.errors import GenflError
from genfl.llm import answers
from genfl.llm.chat import Chat
from genfl.prompts.templates import Templates
from genfl.rng import Key

log = logging.getLogger(__name__)

Asked = Literal["llm", "scenes"]

ASKED: tuple[Asked, ...] = ("llm", "scenes")
"""The styles that need a chat model."""

A_THING: dict[Modality, str] = {"image": "an image", "audio": "a sound", "text": "a text"}

MOST_WORDS = 40
"""A prompt's. The text encoders of Stable Diffusion read 77 tokens, and a word may be two."""


class Described:
    """Texts to draw a label's prompts from.

    Args:
        texts: Those of each label.
    """

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts = texts

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draws a prompt for a label."""
        texts = self.texts[label]
        return texts[int(rng.integers(len(texts)))]


def query(
    style: Asked, label: str, others: Sequence[str], count: int, modality: Modality, known: Sequence[str] = ()
) -> str:
    """Returns what a chat model is asked for a label's prompts.

    Args:
        style: ``llm`` is GPT-FL's (arXiv 2306.02210): a sentence around the label, to be filled in.
            ``scenes`` is FedGC's (arXiv 2312.05807): scenes with the label, and without the others.
        label: The name of the class.
        others: The names of the others.
        count: How many prompts are wanted.
        modality: What the prompts are to make.
        known: Prompts that there are already.
    """
    if style == "llm":
        task = (
            f'Q: "_ _ _ _ {label} _ _ _ _" Please fill in the blanks and make it a prompt to generate'
            f" {A_THING[modality]}. Give {count} different answers. Each contains the words"
            f' "{label}" as they are.'
        )
    else:
        without = f" None of them mentions any of: {', '.join(others)}." if others else ""
        task = (
            f"Describe {count} different scenes for {A_THING[modality]} of {label}, in one sentence each."
            f' Each contains the words "{label}" as they are.{without}'
        )
    again = f" These are known already, so give others: {'; '.join(known)}." if known else ""
    return f"{task}{again} Write one on each line, and nothing else."


def problem(style: Asked, text: str, label: str, labels: Sequence[str]) -> str | None:
    """Says why a line of an answer is no prompt for a label; None where it is one."""
    named = answers.names(text, labels)
    if answers.refusal(text):
        return "a refusal"
    if "_ _" in text or "__" in text:
        return "its blanks are not filled in"
    if answers.folded(label) not in named:
        return "it does not name the label"
    if style == "scenes" and answers.names(text, labels, inflected=True) != {answers.folded(label)}:
        return "it names another label"
    if answers.words(text) == answers.words(label):
        return "it is the label and nothing more"
    if len(text.split()) > MOST_WORDS:
        return f"more than {MOST_WORDS} words"
    return None


def describe(
    chat: Chat,
    style: Asked,
    label: str,
    labels: Sequence[str],
    modality: Modality,
    *,
    distinct: int,
    attempts: int,
    key: Key,
    fallback: Templates | None = None,
) -> list[str]:
    """Returns different prompts for a label.

    Args:
        chat: Who is asked.
        style: How; see `query`.
        label: The name of the class.
        labels: The names of all.
        modality: What the prompts are to make.
        distinct: How many prompts are wanted.
        attempts: The most queries.
        key: The random stream of this label.
        fallback: What fills up the prompts if too few are usable; None for an error.

    Returns:
        ``distinct`` prompts; fewer if the fallback has too few as well.

    Raises:
        GenflError: Too few are usable, and there is no fallback; or there is no answer.
    """
    others = [other for other in labels if other != label]
    found: dict[str, str] = {}
    unusable = ""
    for attempt in range(attempts):
        missing = distinct - len(found)
        if not missing:
            break
        asked = query(style, label, others, missing, modality, list(found.values()))
        for line in answers.lines(chat.ask(asked, key.fold(attempt).integer() % 2**31)):
            if wrong := problem(style, line, label, labels):
                unusable = unusable or f"; unusable, for example: {line[:100]!r}, {wrong}"
            elif len(found) < distinct:
                found.setdefault(answers.words(line), line)
    if len(found) == distinct:
        return list(found.values())
    if fallback:
        filled = found.copy()
        for line in fallback.all(label):
            if len(filled) < distinct:
                filled.setdefault(answers.words(line), line)
        made = len(filled) - len(found)
        log.warning("prompts: %d of %d of %r are templates%s", made, len(filled), label, unusable)
        return list(filled.values())
    raise GenflError(
        f"prompts.llm: {len(found)} of {distinct} prompts for {label!r} after {attempts} queries{unusable};"
        " lower distinct, raise attempts, take another model, or set fallback to multiple"
    )
