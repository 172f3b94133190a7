"""Texts from a chat model: a query for each sample, and of its answer only what is fit to learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genfl.errors import GenflError, InputError
from genfl.generators.base import Prompt, Sample
from genfl.llm import answers
from genfl.llm.chat import connect, each
from genfl.rng import Key

log = logging.getLogger(__name__)

FIELD = "generator"

HOPELESS = 10
"""In a block of so many texts, one at least must be usable."""


class ChatTexts:
    """Writes texts of a class: what the prompt says, in the manner of its guides where it has any (FedGC).

    A sample depends on its prompt alone. A text that repeats its query, or a guide in it, is refused.

    Args:
        options: The fields of `genfl.config.TextGenerator`.
        labels: The names of all classes.
        folder: Where answers are kept; None for nowhere.

    Raises:
        InputError: There is no such model, or a library is missing.
    """

    def __init__(self, options: Mapping[str, Any], labels: Sequence[str], folder: Path | None = None) -> None:
        self.chat = connect(options, FIELD, folder)
        self.id: str = options["model"]
        self.labels = labels
        self.words: int = options["words"]
        self.shots: int = options["shots"]
        self.attempts: int = options["attempts"]
        self.sees_guides = options["base_url"] is None or options["trusted"]

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Writes a text for each prompt; see `genfl.generators.base.Generator`.

        A text is empty where no answer was usable.

        Raises:
            InputError: The prompts have guides, which would be shown to somebody else's server.
            GenflError: There is no answer, or in a block of `HOPELESS` none is usable.
        """
        if self.shots and not self.sees_guides and any(prompt.guides for prompt in prompts):
            raise InputError(
                f"{FIELD}.base_url: the server would be shown clients' real texts; set shots to 0, trusted to"
                " true if it is the clients' own, or leave base_url out for a model that runs here"
            )
        written = each(self.chat, self.write, prompts)
        problems = [wrong for text, wrong in written if not text]
        if problems:
            what = f"{len(problems)} of {len(prompts)} texts unusable, each asked for {self.attempts} times"
            log.warning("generate: %s, such as %s", what, problems[0])
            if len(problems) == len(prompts) >= HOPELESS:
                raise GenflError(
                    f"{FIELD}: {what}, such as {problems[0]}; take another model, or other words and attempts"
                )
        for prompt, (text, _) in zip(prompts, written, strict=True):
            yield Sample(prompt, text)

    def write(self, prompt: Prompt) -> tuple[str, str]:
        """Returns a text; or an empty one, and an unusable answer with what is wrong with it."""
        guides, key = prompt.guides[: self.shots], Key(prompt.seed).fold("text")
        query, wrong = self.query(prompt, guides), ""
        for attempt in range(self.attempts):
            answer = self.chat.ask(query, key.fold(attempt).integer() % 2**31)
            text = answers.whole(answer)
            problem = self.problem(answer, text, query)
            if problem is None:
                return text, ""
            wrong = problem if guides else f"{text[:100]!r}: {problem}"  # it may be a guide that is repeated
        return "", wrong

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

    def problem(self, answer: str, text: str, query: str) -> str | None:
        """Says why an answer's text is not usable; None where it is."""
        said = answers.words(text)
        if not said:
            return "empty"
        if answers.refusal(answer):
            return "a refusal"
        if f" {said} " in f" {answers.words(query)} " or answers.words(query) in said:
            return "it repeats the query"
        words = len(text.split())
        if not self.words / 4 <= words <= 3 * self.words:
            return f"{words} words, and about {self.words} are wanted"
        return None
