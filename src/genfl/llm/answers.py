"""What of a chat model's answer is usable: strict, because what is not would be trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
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
    # with an excuse, what is not done need not be named
    r"^(?:i(?:['’]m| am)?\s+)?(?:sorry|apolog\w+|unfortunately)\b[^.\n]{0,40}\bi\s?(?:"
    rf"{_NOT}(?:(?:help|assist)(?! but)|write|create|generate|provide|produce|fulfil|fulfill|comply|continue"
    r"|discuss|engage|answer|respond|complete|do (?:this|that|so))\b"
    r"|(?:must|have to) decline\b|(?:don['’]t|do not) feel comfortable\b)"
    # without one, customers decline as well: to write home, to create a fuss, to help themselves
    rf"|^i\s?{_NOT}(?:(?:help|assist)(?: you)? with\b|(?:help|assist|do (?:this|that|so))\W*$"
    r"|fulfill?\b|comply\b|(?:write|create|generate|provide|produce) (?:(?:this|that|such|about)\b"
    r"|(?:[\w-]+ ){0,4}(?:texts?|reviews?|tweets?|content|prompts?|examples?|scenes?|messages?|responses?"
    r"|descriptions?|stor(?:y|ies)|advice|language)\b))"
    r"|\bas an? (?:ai|language model)\b",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}


class Answer(NamedTuple):
    """What a chat model answered.

    Attributes:
        text: Its words.
        cut: Whether it did not come to its end: the limit of tokens, or a server's filter, cut it off.
        problem: What is wrong with it, if its words are left out because something is.
    """

    text: str
    cut: bool = False
    problem: str = ""


def lines(answer: Answer) -> list[str]:
    """Returns the lines of an answer without list marks, Markdown, quotes and what only leads up to them.

    Where it was cut off, the last line is no whole one, and is left out.
    """
    text = answer.text.rpartition("\n")[0] if answer.cut else answer.text
    found = [_bare(line) for line in _said(text).splitlines()]
    return [line for line in found if line and not _PREAMBLE.match(line) and not _CHATTER.match(line)]


def whole(answer: str) -> str:
    """Returns an answer as one text on one line, without preamble, Markdown and quotes."""
    said = [line for line in _said(answer).splitlines() if not _CHATTER.match(line.strip())]
    return _bare(_PREAMBLE.sub("", " ".join(" ".join(said).split())))


def names(text: str, labels: Sequence[str], inflected: bool = False) -> set[str]:
    """Returns the labels that a text names as words, `folded`.

    Where one is part of another, as truck is of fire truck, the longer one's words do not name the shorter.

    Args:
        text: Any.
        labels: The labels there are.
        inflected: Whether its regular English plurals and genitive name a label, too.
    """
    names = map(folded, labels)
    forms = {form: name for name in names for form in (_inflections(name) if inflected else [name])}
    anyone = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    return {forms[form] for form in re.findall(rf"(?<!\w)(?:{anyone})(?!\w)", folded(text))}


def _inflections(name: str) -> list[str]:
    """Returns a word, its genitive, and what may be its plural: cats, foxes, flies, wolves."""
    bases = [name, f"{name}e", re.sub("y$", "ie", name), re.sub("fe?$", "ve", name)]
    return [*(f"{base}s" for base in bases), f"{name}'s", f"{name}’s", name]


def folded(text: str) -> str:
    """Returns what texts share that differ in case and spaces alone."""
    return " ".join(text.casefold().split())


def words(text: str) -> str:
    """Returns what texts share that differ in case, spaces and punctuation alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def refusal(answer: str) -> bool:
    """Returns whether an answer declines to give one."""
    return bool(_REFUSAL.search(_said(answer).strip()))


def _said(answer: str) -> str:
    """Returns an answer without a reasoning model's thoughts, fences and unprintable characters."""
    text = _FENCE.sub("", _THOUGHT.sub("", answer))
    return "".join(char for char in text if char.isprintable() or char.isspace())


def _bare(text: str) -> str:
    text = text.strip()
    before = None
    while text != before:
        before = text
        text = _NAME.sub("", _MARK.sub("", _EMPHASIS.sub(r"\2", text))).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return text
