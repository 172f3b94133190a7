"""Queries to chat models: texts with blanks, and the presets that a config can name."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from typing import NamedTuple

MAX_WORDS = 40
"""The most words of a prompt. The text encoders of Stable Diffusion read 77 tokens; a word may take two."""


class ChatQuery(NamedTuple):
    """A query with blanks.

    Attributes:
        text: The query. A blank is a name in braces; ``{{`` and ``}}`` stand for single braces.
        system: The system prompt; empty for none. It has no blanks.
        max_words: The most words of a line that counts as a prompt. Only queries for prompts have it.
        texts_per_label: The number of texts of every label that the query asks for; None if it asks for one
            text of one label. Only queries for texts have it.
        list_length: The number of prompts that the query asks for, however many are wanted; None if it asks
            for those that are wanted. Only queries for prompts have it.
    """

    text: str
    system: str = ""
    max_words: int = MAX_WORDS
    texts_per_label: int | None = None
    list_length: int | None = None


PROMPT_BLANKS = ("label", "others", "avoid", "count", "content", "known")
"""The blanks of a query for prompts.

``label`` is the label, ``others`` are the other labels, ``count`` is the number of prompts that are still
wanted, and ``content`` is "an image", "a sound" or "a text". ``avoid`` is a sentence that forbids the other
labels, and ``known`` one that lists the prompts so far. Both begin with a space, and are empty without labels
or prompts to name.
"""

PROMPT_QUERIES: dict[str, ChatQuery] = {
    "gptfl": ChatQuery(
        'Q: "_ _ _ _ {label} _ _ _ _" Please fill in the blanks and make it a prompt to generate {content}.'
        ' Give {count} different answers. Each contains the words "{label}" as they are.{known} Write one on'
        " each line, and nothing else."
    ),
    "scenes": ChatQuery(
        "Describe {count} different scenes for {content} of {label}, in one sentence each. Each contains the"
        ' words "{label}" as they are.{avoid}{known} Write one on each line, and nothing else.'
    ),
    "fedgc": ChatQuery(
        "Two examples show what is wanted. For the class horse: 'a brown horse drinks from a mountain lake'."
        " For the class bicycle: 'an old bicycle leans on a brick wall'. Write a list of 10 different prompts"
        ' for {content} of the class {label}. Each has at most 10 words and contains the words "{label}" as'
        " they are.{known} Write one on each line, and nothing else.",
        system="You write prompts for generative models. A prompt describes one scene in a few plain words,"
        " and the scenes differ in place, light, weather and action.",
        max_words=10,
        list_length=10,
    ),
}
"""The presets of queries for prompts, by name.

``gptfl`` is GPT-FL's (arXiv 2306.02210): a sentence around the label whose blanks are filled in. ``scenes``
describes scenes with the label and without other labels. ``fedgc`` has the parts of Table 7 of FedGC (arXiv
2312.05807): a system prompt, examples, and the request for a list of ten, each within ten words. Its wording
is ours.
"""

SINGLE_BLANKS = ("label", "labels", "prompt", "words", "examples")
"""The blanks of a query for one text.

``label`` is its label, ``labels`` are all labels, ``prompt`` is its prompt, and ``words`` is the number of
words. ``examples`` is a paragraph with real examples; it begins with a line break, and is empty without them.
"""

JOINT_BLANKS = ("labels", "count", "words", "examples")
"""The blanks of a query for texts of every label; see `SINGLE_BLANKS`. ``count`` is the number per label."""

TEXT_QUERIES: dict[str, ChatQuery] = {
    "single": ChatQuery(
        'Write one text of the class "{label}". The classes are: {labels}.\nWhat it is: {prompt}.\n'
        "It has about {words} words.{examples}\nAnswer with the text alone."
    ),
    "fewshot": ChatQuery(
        "The classes are: {labels}.{examples}\nWrite {count} new texts of each class, with about {words}"
        " words each.\nWrite one on each line, and begin the line with its class and a colon. Write nothing"
        " else.",
        system="You write texts for a data set. Every text clearly belongs to its class.",
        texts_per_label=2,
    ),
}
"""The presets of queries for texts, by name.

``single`` asks for one text of one label. ``fewshot`` has the parts of Figure 9 of FedGC (arXiv 2312.05807):
four labelled examples of both classes, and the request for two texts of each label. Its wording is ours.
"""

CLASSIFY_BLANKS = ("labels", "text", "examples")
"""The blanks of a query that has a text classified.

``labels`` are all labels, and ``text`` is the text. ``examples`` is a paragraph with labelled texts. It
begins with a line break, and is empty without them.
"""

CLASSIFY_QUERIES: dict[str, ChatQuery] = {
    "classify": ChatQuery(
        "To which class does the text belong? The classes are: {labels}.{examples}\nText: {text}\n"
        "Answer with the name of the class alone."
    ),
}
"""The presets of queries that have a text classified, by name."""

FEWSHOT_EXAMPLES = 4
"""The number of real examples of the preset ``fewshot``."""


def query_problem(
    text: str, presets: Mapping[str, ChatQuery], blanks: Collection[str], needed: Collection[str] = ()
) -> str | None:
    """Return why a config's query cannot be used, and the fix; None if it can.

    Args:
        text: The name of a preset, or a query with blanks.
        presets: The presets.
        blanks: The blanks that a query may have.
        needed: The blanks that it must have.
    """
    if text in presets:
        return None
    known = ", ".join(f"{{{blank}}}" for blank in blanks)
    try:
        fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        return f"not a query with blanks ({error}); write {{{{ and }}}} for braces that are no blank"
    for _, name, spec, conversion in fields:
        if name not in blanks or spec or conversion:
            return f"the blank {{{str(name)[:40]}}} is unknown; use {known}, or {{{{ for a brace"
    for blank in needed:
        if blank not in [name for _, name, _, _ in fields]:
            return f"it lacks the blank {{{blank}}}; add it, or name a preset ({', '.join(presets)})"
    return None


def shows_examples(text: str, presets: Mapping[str, ChatQuery]) -> bool:
    """Return whether a config's query has the blank ``{examples}``. All presets with examples have it.

    Args:
        text: The name of a preset, or a query that `query_problem` finds nothing wrong with.
        presets: The presets.
    """
    query = presets.get(text) or ChatQuery(text)
    return "examples" in [name for _, name, _, _ in string.Formatter().parse(query.text)]


def chat_query(text: str, presets: Mapping[str, ChatQuery], system: str | None) -> ChatQuery:
    """Return the query of a config.

    Args:
        text: The name of a preset, or a query with blanks.
        presets: The presets.
        system: The system prompt; None for the preset's.
    """
    query = presets.get(text) or ChatQuery(text)
    return query if system is None else query._replace(system=system)
