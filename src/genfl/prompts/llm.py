"""Prompts from a chat model, which is asked until each label has enough usable ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from genfl.data.media import Modality
from genfl.errors import GenflError
from genfl.llm import answers
from genfl.llm.chat import Chat
from genfl.llm.queries import MAX_WORDS, PROMPT_QUERIES, ChatQuery
from genfl.prompts.templates import Templates
from genfl.rng import Key

log = logging.getLogger(__name__)

Asked = Literal["llm", "scenes"]
"""A style that needs a chat model."""

ASKED: tuple[Asked, ...] = ("llm", "scenes")
"""The styles that need a chat model."""

CONTENT_NAMES: dict[Modality, str] = {"image": "an image", "audio": "a sound", "text": "a text"}
"""The content of a modality, as queries name it."""

DEFAULT_QUERIES: dict[Asked, str] = {"llm": "gptfl", "scenes": "scenes"}
"""The preset of each style."""


class PromptLists:
    """A fixed list of prompts for each label.

    Args:
        texts: The prompts of each label.
    """

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts = texts

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draw a prompt of a label."""
        texts = self.texts[label]
        return texts[int(rng.integers(len(texts)))]


def prompt_query(
    query: ChatQuery,
    label: str,
    others: Sequence[str],
    count: int,
    modality: Modality,
    known: Sequence[str] = (),
) -> str:
    """Return the query that asks a chat model for prompts of a label.

    Args:
        query: The query with its blanks; see `genfl.llm.queries.PROMPT_BLANKS`.
        label: The name of the class.
        others: The names of the other classes.
        count: The number of prompts wanted.
        modality: The modality of the samples that the prompts describe.
        known: Prompts that are not wanted again.
    """
    return query.text.format(
        label=label,
        others=", ".join(others),
        avoid=f" None of them mentions any of: {', '.join(others)}." if others else "",
        count=count,
        content=CONTENT_NAMES[modality],
        known=f" These are known already, so give others: {'; '.join(known)}." if known else "",
    )


def prompt_problem(
    style: Asked, text: str, label: str, labels: Sequence[str], max_words: int = MAX_WORDS
) -> str | None:
    """Return why a line of an answer is not a prompt for a label; None if it is one.

    Args:
        style: The style of the query.
        text: The line.
        label: The name of the class.
        labels: The names of all classes.
        max_words: The most words of a prompt.
    """
    if answers.is_refusal(text):
        return "a refusal"
    if answers.is_json(text):
        return "it is JSON"
    if "_ _" in text or "__" in text:
        return "its blanks are not filled in"
    name = answers.normalize_case(label)
    if name not in answers.named_labels(text, labels):
        return "it does not name the label"
    if style == "scenes" and answers.named_labels(text, labels, inflected=True) != {name}:
        return "it names another label"
    if answers.normalize_words(text) == answers.normalize_words(label):
        return "it has no word besides the label"
    if len(text.split()) > max_words:
        return f"it has more than {max_words} words"
    return None


def write_prompts(
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
    query: ChatQuery | None = None,
) -> list[str]:
    """Return distinct prompts for a label that a chat model writes.

    Args:
        chat: The chat model.
        style: The style. It decides which lines are usable, see `prompt_problem`.
        label: The name of the class.
        labels: The names of all classes.
        modality: The modality of the samples that the prompts describe.
        distinct: The number of prompts wanted, at least 1.
        attempts: The most queries.
        key: The random stream of this label.
        fallback: The templates that fill up the prompts if too few are usable; None for an error.
        query: The query; None for that of the style. The chat model has its system prompt already.

    Returns:
        ``distinct`` prompts, or fewer if the fallback has too few as well.

    Raises:
        GenflError: The model does not answer, or too few prompts are usable and there is no fallback.
    """
    query = query or PROMPT_QUERIES[DEFAULT_QUERIES[style]]
    others = [other for other in labels if other != label]
    prompts: dict[str, str] = {}
    unusable = ""
    for attempt in range(attempts):
        missing = distinct - len(prompts)
        if not missing:
            break
        text = prompt_query(query, label, others, missing, modality, list(prompts.values()))
        answer = chat.ask(text, key.fold(attempt).integer() % 2**31)
        lines = answers.answer_lines(answer)
        if answer.cut and not lines:
            unusable = unusable or " (an answer was cut off before its first prompt; raise max_tokens)"
        for line in lines:
            if problem := prompt_problem(style, line, label, labels, query.max_words):
                unusable = unusable or f" (unusable: {line[:100]!r}, {problem})"
            elif len(prompts) < distinct:
                prompts.setdefault(answers.normalize_words(line), line)
    if len(prompts) == distinct:
        return list(prompts.values())
    if fallback:
        filled = prompts.copy()
        for line in fallback.all(label):
            if len(filled) < distinct:
                filled.setdefault(answers.normalize_words(line), line)
        count = len(filled) - len(prompts)
        log.warning("prompts: %d of %d prompts for %r are templates%s", count, len(filled), label, unusable)
        return list(filled.values())
    raise GenflError(
        f"prompts.llm: {len(prompts)} of {distinct} prompts for {label!r} after {attempts} queries{unusable};"
        " lower distinct, raise attempts, use another model, or set fallback to multiple"
    )
