"""Clean the answers of chat models, and detect unusable ones: whatever passes is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from genfl.llm.thoughts import without_thoughts

_JSON = re.compile(r'[\[{]\s*(?:["\[{]|\Z)|"\w+"\s*:\s*["\[{]')
_FENCE = re.compile(r"^```.*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|__|`)(.+?)\1")
_MARK = re.compile(r"^(?:#+|>|[-*•–]|\(?\d{1,3}[.):])\s+")
_NAME = re.compile(r"^(?:A|Answer|Prompt|Scene|Text|Output)\s*(?:\d{1,3}\s*)?:\s*", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[^\n:]{0,40}?)?"
    r"\bhere(?:'s|’s| is| are)\b[^\n:]{0,120}:",
    re.IGNORECASE,
)
_CHATTER = re.compile(r"^(?:sure|certainly|of course|absolutely|okay|ok)[!,.]?\s*$", re.IGNORECASE)
_NOT = r"(?:can(?:not|'t|’t| not)|won['’]t|will not|(?:am |['’]m )?(?:unable|not able) to) (?:\w+ )?"
_REFUSAL = re.compile(
    # after an excuse, a refusal need not name what is refused
    r"^(?:i(?:['’]m| am)?\s+)?(?:sorry|apolog\w+|unfortunately)\b[^.\n]{0,40}\bi\s?(?:"
    rf"{_NOT}(?:(?:help|assist)(?! but)|write|create|generate|provide|produce|fulfil|fulfill|comply|continue"
    r"|discuss|engage|answer|respond|complete|do (?:this|that|so))\b"
    r"|(?:must|have to) decline\b|(?:don['’]t|do not) feel comfortable\b)"
    # without an excuse, customers decline things, too: to write home, to create a fuss, to help themselves
    rf"|^i\s?{_NOT}(?:(?:help|assist)(?: you)? with\b|(?:help|assist|do (?:this|that|so))\W*$"
    r"|fulfill?\b|comply\b|(?:write|create|generate|provide|produce) (?:(?:this|that|such|about)\b"
    r"|(?:[\w-]+ ){0,4}(?:texts?|reviews?|tweets?|content|prompts?|examples?|scenes?|messages?|responses?"
    r"|descriptions?|stor(?:y|ies)|advice|language)\b))"
    r"|\bas an? (?:ai|language model)\b",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}


class Answer(NamedTuple):
    """An answer of a chat model.

    Attributes:
        text: The text.
        cut: Whether the answer is incomplete, because of a limit of tokens or a server's filter.
        problem: Why the text is left out; empty if it is not.
    """

    text: str
    cut: bool = False
    problem: str = ""


def answer_lines(answer: Answer) -> list[str]:
    """Return the lines of an answer without list marks, Markdown, quotes and preambles.

    If the answer was cut off, its last line is left out.
    """
    text = answer.text.rpartition("\n")[0] if answer.cut else answer.text
    text = _visible(text)
    lines = [_bare(part) for line in _json_texts(text) or text.splitlines() for part in _line_texts(line)]
    return [line for line in lines if line and not _PREAMBLE.match(line) and not _CHATTER.match(line)]


def answer_text(answer: str) -> str:
    """Return an answer as one text on one line, without preamble, Markdown and quotes."""
    lines = [line for line in _visible(answer).splitlines() if not _CHATTER.match(line.strip())]
    text = _PREAMBLE.sub("", " ".join(" ".join(lines).split())).strip()
    texts = _json_texts(text)
    return _bare(texts[0] if len(texts) == 1 else text)


def is_json(text: str) -> bool:
    """Return whether a text, or a line of one, is JSON that `answer_lines` and `answer_text` cannot read."""
    return bool(_JSON.match(text))


def named_labels(text: str, labels: Sequence[str], inflected: bool = False) -> set[str]:
    """Return the labels that a text names as words, after `normalize_case`.

    If one label is part of another, as truck is of fire truck, the longer one does not name the shorter one.

    Args:
        text: Any text.
        labels: The names of the classes.
        inflected: Whether regular English plurals and genitives of a label name it, too.
    """
    names = map(normalize_case, labels)
    forms = {form: name for name in names for form in (_inflections(name) if inflected else [name])}
    alternatives = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    matches = re.findall(rf"(?<!\w)(?:{alternatives})(?!\w)", normalize_case(text))
    return {forms[form] for form in matches}


def _inflections(name: str) -> list[str]:
    """Return a word, its genitive, and possible plurals: cats, foxes, flies, wolves."""
    bases = [name, f"{name}e", re.sub("y$", "ie", name), re.sub("fe?$", "ve", name)]
    return [*(f"{base}s" for base in bases), f"{name}'s", f"{name}’s", name]


def normalize_case(text: str) -> str:
    """Return a text in one case with single spaces: equal for texts that differ only in case and spaces."""
    return " ".join(text.casefold().split())


def normalize_words(text: str) -> str:
    """Return the words of a text: equal for texts that differ only in case, spaces and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def is_refusal(answer: str) -> bool:
    """Return whether a chat model declines to answer."""
    return bool(_REFUSAL.search(_visible(answer).strip()))


def _visible(answer: str) -> str:
    """Return an answer without thoughts, marks of the template, fences and unprintable characters."""
    text = _FENCE.sub("", without_thoughts(answer))
    return "".join(char for char in text if char.isprintable() or char.isspace())


def _line_texts(line: str) -> list[str]:
    """Return the texts of a line: those of its JSON, or the line itself."""
    return _json_texts(line.strip().removesuffix(",")) or [line]


def _json_texts(text: str) -> list[str]:
    """Return the texts in JSON; none if it is not JSON, or does not say which of several fields is meant."""
    try:
        return _leaves(json.loads(text)) or []
    except (ValueError, RecursionError):
        return []


def _leaves(value: Any) -> list[str] | None:
    """Return the texts in a JSON value; None if an object has several fields with texts."""
    if isinstance(value, str):
        return [" ".join(value.split())]
    if isinstance(value, dict | list):
        parts = [_leaves(part) for part in (value.values() if isinstance(value, dict) else value)]
        texts = [part for part in parts if part]
        if None not in parts and (isinstance(value, list) or len(texts) <= 1):
            return [text for part in texts for text in part]
        return None
    return []


def _bare(text: str) -> str:
    text = text.strip()
    before = None
    while text != before:
        before = text
        text = _NAME.sub("", _MARK.sub("", _EMPHASIS.sub(r"\2", text))).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return text
