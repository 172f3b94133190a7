"""Separate the answers of reasoning models from their thoughts, and from the marks of chat templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

THOUGHT = "<think>"
"""A tag that opens a thought."""

_NAMES = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|chain_of_thought)"
_OPENS = rf"(?:<{_NAMES}>|\[think\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>)"
_CLOSES = rf"(?:</{_NAMES}>|\[/think\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>)"
_OPENING = re.compile(_OPENS, re.IGNORECASE)
_CLOSING = re.compile(_CLOSES, re.IGNORECASE)
_OPENED = re.compile(rf"{_OPENS}\s*\Z", re.IGNORECASE)
_THOUGHT = re.compile(
    rf"\A.*{_CLOSES}"  # the chat template may have opened the thought
    rf"|{_OPENS}.*\Z"  # the thought was cut off
    r"|\Aanalysis(?-i:(?=[A-Z])).*?(?:assistantfinal|\Z)",  # channels whose marks were removed
    re.DOTALL | re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_FINAL_CHANNEL = "final"
_TEMPLATE_MARK = re.compile(
    r"(?:<[|｜][^<>|｜\n]{1,40}[|｜]>|</?s>|<(?:start|end)_of_turn>|</?(?:eos|bos|pad|answer)>|\[/?INST\])"
    r"(?:(?:assistant|model)(?=\s*(?:\n|<|\Z)))?"
)


def opened_thought(prompt: str) -> str:
    """Return the tag at the end of a model's prompt that opens its thought; empty if there is none.

    Args:
        prompt: The query in the chat template.
    """
    tag = _OPENED.search(prompt)
    return tag.group().strip() if tag else ""


def continues_thought(answer: str) -> bool:
    """Return whether an answer closes a thought that it does not open: the model's prompt opens it.

    Args:
        answer: The answer.
    """
    closing = _CLOSING.search(answer)
    return closing is not None and not _OPENING.search(answer[: closing.start()])


def without_thoughts(answer: str, marks: Sequence[str] = ()) -> str:
    """Return an answer without thoughts and without the marks of the chat template.

    If marks divide the answer, only the first part is returned: the model may have gone on with a question.

    Args:
        answer: The answer.
        marks: Further marks to remove, such as the special tokens of the model's tokenizer.
    """
    channels = _CHANNEL.split(answer)
    if len(channels) > 1:  # the text before the first channel, then the name and the text of each channel
        finals = zip(channels[1::2], channels[2::2], strict=True)
        answer = next((text for name, text in finals if name.lower() == _FINAL_CHANNEL), "")
    parts = _TEMPLATE_MARK.split(_THOUGHT.sub("", answer))
    text = next((part for part in parts if part.strip()), "")
    for mark in marks:
        text = text.replace(mark, "")
    return text
