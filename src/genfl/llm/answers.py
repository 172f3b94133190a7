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
_DECLINES = (
    r"\bi\s?(?:cannot|can't|can’t|can not|won't|won’t|will not|am unable to|am not able to"
    r"|['’]m unable to|['’]m not able to) (?:\w+ )?"
    r"(?:(?:help|assist)(?: you)? with\b|(?:help|assist)\W*$|fulfill?\b|comply\b"
    r"|do (?:this|that|so)\b(?! any| again)"
    r"|(?:write|create|generate|provide|produce) (?:(?:this|that|such|about)\b|(?:\w+ ){0,4}"
    r"(?:texts?|reviews?|tweets?|content|prompts?|examples?|scenes?|messages?|responses?)\b))"
)
"""What is said by a model that does not write, and not by a customer who waits: these are sorry, too."""

_REFUSAL = re.compile(
    rf"^{_DECLINES}"
    rf"|^(?:i(?:['’]m| am)?\s+)?(?:sorry|apolog\w+|unfortunately)\b[^.\n]{{0,40}}{_DECLINES}"
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
        inflected: Whether a plural or a genitive, in English, names a label, too.
    """
    longest_first = sorted(map(folded, labels), key=len, reverse=True)
    anyone = "|".join(map(re.escape, longest_first))
    ending = r"(?:e?s|['’]s)?" if inflected else ""
    return set(re.findall(rf"(?<!\w)({anyone}){ending}(?!\w)", folded(text)))


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
