"""Texts from a chat model: a query for each sample, and of its answer only what is fit to learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from genfl import hub
from genfl.data.quality import MEASURES
from genfl.data.samples import Prompt, Sample
from genfl.errors import GenflError, InputError
from genfl.generators.base import Generator
from genfl.llm import answers
from genfl.llm.answers import Answer
from genfl.llm.chat import connect, each
from genfl.rng import Key

log = logging.getLogger(__name__)

FIELD = "generator"

ALIKE = 2 / 3
"""Two texts that share so many of their words, in order, are one with words changed."""

HOPELESS = 10
"""In a block of so many texts, one at least must be usable."""


class ChatTexts(Generator):
    """Writes texts of a class: what the prompt says, in the manner of its guides where it has any (FedGC).

    A sample depends on its prompt alone. A text that repeats its query or copies a guide is refused. Of an
    answer to a query with guides, nothing but a usable text is kept: the rest may repeat them.

    Args:
        options: The fields of `genfl.config.generation.TextGenerator`.
        labels: The names of all classes.
        folder: Where answers are kept; None for nowhere.

    Raises:
        InputError: There is no such model, or a library is missing.
    """

    def __init__(self, options: Mapping[str, Any], labels: Sequence[str], folder: Path | None = None) -> None:
        self.chat = connect(options, FIELD, folder)
        self.id = called(options)
        self.labels = labels
        self.words: int = options["words"]
        self.shots: int = options["shots"]
        self.attempts: int = options["attempts"]
        self.unguided = unguided(options)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Writes a text for each prompt; see `genfl.generators.base.Generator`.

        A text is empty where no answer was usable.

        Raises:
            InputError: The prompts have guides, which would be shown to somebody else's server.
            GenflError: There is no answer, or in a block of `HOPELESS` none is usable.
        """
        if self.unguided and self.shots and any(prompt.guides for prompt in prompts):
            raise InputError(f"{FIELD}: {self.unguided}")
        written = each(self.chat, self.write, prompts)
        problems = [answer.problem for answer in written if answer.problem]
        if problems:
            what = f"{len(problems)} of {len(prompts)} texts unusable, each asked for {self.attempts} times"
            log.warning("generate: %s, such as %s", what, problems[0])
            if len(problems) == len(prompts) >= HOPELESS:
                raise GenflError(
                    f"{FIELD}: {what}, such as {problems[0]}; take another model, or other words and attempts"
                )
        for prompt, answer in zip(prompts, written, strict=True):
            yield Sample(prompt, answer.text)

    def write(self, prompt: Prompt) -> Answer:
        """Returns a text; or an empty one, and what is wrong with the last answer."""
        guides, key = prompt.guides[: self.shots], Key(prompt.seed).fold("text")
        query = self.query(prompt, guides)

        def judge(answer: Answer) -> Answer:
            text = answers.whole(answer.text)
            problem = self.problem(answer, text, query, guides)
            if problem is None:
                return Answer(text)
            # no guide may be shown or kept
            return Answer("", problem=problem if guides else f"{text[:100]!r}: {problem}")

        for attempt in range(self.attempts):
            answer = self.chat.ask(query, key.fold(attempt).integer() % 2**31, judge)
            if not answer.problem:
                break
        return answer

    def query(self, prompt: Prompt, guides: Sequence[str] = ()) -> str:
        """Returns what the chat model is asked for a prompt's text."""
        lines = [
            f'Write one text of the class "{prompt.label}". The classes are: {", ".join(self.labels)}.',
            f"What it is: {prompt.text}.",
            f"It has about {self.words} words.",
        ]
        if guides:
            lines += [f'Real examples of the class "{prompt.label}":', *(f"- {guide}" for guide in guides)]
            lines.append("Write a new one in their manner, which copies none of them.")
        return "\n".join([*lines, "Answer with the text alone."])

    def problem(self, answer: Answer, text: str, query: str, guides: Sequence[str] = ()) -> str | None:
        """Says why an answer's text is not usable; None where it is."""
        said = answers.words(text)
        if answer.cut:
            return "cut off, as by max_tokens"
        if not said:
            return "empty"
        if answers.refusal(answer.text):
            return "a refusal"
        if any(copies(text, guide) for guide in guides):
            return "it copies a real example"
        if f" {said} " in f" {answers.words(query)} " or answers.words(query) in said:
            return "it repeats the query"
        words = len(text.split())
        if not self.words / 4 <= words <= 3 * self.words:
            return f"{words} words, and about {self.words} are wanted"
        return None


def called(options: Mapping[str, Any]) -> str:
    """Returns what data sets call the model: what its server calls it, its id, or its folder's name."""
    name: str = options["model"]
    return name if options["base_url"] else hub.model_name(name)


def copies(text: str, guide: str) -> bool:
    """Returns whether a text is a guide with little changed: words around it, words in it, or their order."""
    measure = MEASURES["text"]
    said, real = answers.words(text), answers.words(guide)
    return (
        f" {real} " in f" {said} "
        or SequenceMatcher(None, real.split(), said.split(), autojunk=False).ratio() >= ALIKE
        or float(measure.vector(text) @ measure.vector(guide)) >= measure.near
    )


def unguided(options: Mapping[str, Any]) -> str | None:
    """Says why no real example can guide it, and the fix; None where one can.

    Args:
        options: The fields of `genfl.config.generation.TextGenerator`.
    """
    if not options["shots"]:
        return f"no example is shown where {FIELD}.shots is 0; raise it, or use prompt"
    if options["base_url"] and not options["trusted"]:
        return (
            f"the server at {FIELD}.base_url would be shown clients' real texts; set {FIELD}.trusted to true"
            " if it is the clients' own, or use prompt"
        )
    return None
