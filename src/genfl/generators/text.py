"""Texts from a chat model. Of its answers, only usable texts are kept."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
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
from genfl.llm.chat import connect, map_queries
from genfl.llm.queries import TEXT_QUERIES, ChatQuery, chat_query
from genfl.rng import Key

log = logging.getLogger(__name__)

FIELD = "generator"
"""The section of the config, for messages."""

COPIED_WORDS = 2 / 3
"""A text that shares this part of its words with an example, in the same order, is a copy of it."""

UNUSABLE_BLOCK = 10
"""In a block of at least this many texts, an error is raised if none is usable."""


class ChatTexts(Generator):
    """A chat model that writes texts of a class from a prompt, in the manner of its guides if any (FedGC).

    By default, each sample has a query of its own, and depends on its prompt alone. With ``texts_per_label``,
    a query asks for so many texts of every label, and serves as many samples of its block (FedGC, Figure 9).

    A text that repeats its query or copies a guide is rejected. Of an answer to a query with guides, only
    usable texts are kept, because the rest may repeat the guides.

    Args:
        options: The fields of `genfl.config.generation.TextGenerator`.
        labels: The names of all classes.
        folder: The folder of the cached answers; None to keep none.

    Raises:
        InputError: The model does not exist, or a library is missing.
    """

    form: ChatQuery = TEXT_QUERIES["single"]

    def __init__(self, options: Mapping[str, Any], labels: Sequence[str], folder: Path | None = None) -> None:
        self.form = text_query(options)
        self.chat = connect({**options, "system": self.form.system}, FIELD, folder)
        self.id = chat_model_name(options)
        self.labels = labels
        self.words: int = options["words"]
        self.shots: int = options["shots"]
        self.attempts: int = options["attempts"]
        self.guidance_problem = text_guidance_problem(options)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Write a text for each prompt; see `genfl.generators.base.Generator`.

        A text is empty if no answer was usable.

        Raises:
            InputError: The prompts have guides, which a server of somebody else would see.
            GenflError: The model does not answer, or none of `UNUSABLE_BLOCK` or more texts is usable.
        """
        if self.guidance_problem and self.shots and any(prompt.guides for prompt in prompts):
            raise InputError(f"{FIELD}: {self.guidance_problem}")
        if self.form.texts_per_label:
            written = self._write_groups(prompts, self.form.texts_per_label)
        else:
            written = map_queries(self.chat, self.write, prompts)
        problems = [answer.problem for answer in written if answer.problem]
        if problems:
            count = (
                f"{len(problems)} of {len(prompts)} texts are unusable after {self.attempts} attempts each"
            )
            log.warning("generate: %s, for example %s", count, problems[0])
            if len(problems) == len(prompts) >= UNUSABLE_BLOCK:
                raise GenflError(
                    f"{FIELD}: {count}, for example {problems[0]}; use another model, or change words or"
                    " attempts"
                )
        for prompt, answer in zip(prompts, written, strict=True):
            yield Sample(prompt, answer.text)

    def write(self, prompt: Prompt) -> Answer:
        """Return a usable text for a prompt, or an empty text and the problem of the last answer."""
        guides, key = prompt.guides[: self.shots], Key(prompt.seed).fold("text")
        query = self.query(prompt, guides)

        def judge(answer: Answer) -> Answer:
            text = answers.answer_text(answer.text)
            problem = self.problem(answer, text, query, guides)
            if problem is None:
                return Answer(text)
            # an unusable answer may repeat a guide, so it is neither shown nor kept
            return Answer("", problem=problem if guides else f"{text[:100]!r}: {problem}")

        for attempt in range(self.attempts):
            answer = self.chat.ask(query, key.fold(attempt).integer() % 2**31, judge)
            if not answer.problem:
                break
        return answer

    def _write_groups(self, prompts: Sequence[Prompt], count: int) -> list[Answer]:
        """Return the texts of a block, whose queries ask for `count` texts of every label."""
        groups: dict[int, list[int]] = defaultdict(list)
        seen: Counter[str] = Counter()
        for row, prompt in enumerate(prompts):
            groups[seen[prompt.label] // count].append(row)
            seen[prompt.label] += 1
        tasks = [[prompts[row] for row in rows] for rows in groups.values()]
        texts: dict[int, Answer] = {}
        for rows, written in zip(
            groups.values(), map_queries(self.chat, self.write_jointly, tasks), strict=True
        ):
            texts.update(zip(rows, written, strict=True))
        return [texts[row] for row in range(len(prompts))]

    def write_jointly(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return a usable text for each prompt, all from the same query; see `write`.

        Args:
            prompts: Prompts of one client, at most ``texts_per_label`` of each label. The query shows the
                guides of the first one.
        """
        guides, labels = prompts[0].guides[: self.shots], prompts[0].guide_labels[: self.shots]
        query, key = self.joint_query(guides, labels), Key(prompts[0].seed).fold("text")

        def judge(answer: Answer) -> Answer:
            """Keep the usable lines alone: the others may repeat a guide."""
            kept, problem = [], ""
            for label, text in labelled_lines(answer, self.labels):
                wrong = self.problem(Answer(text), text, query, guides)
                if wrong is None:
                    kept.append(f"{label}: {text}")
                else:
                    problem = problem or (wrong if guides else f"{text[:100]!r}: {wrong}")
            return Answer("\n".join(kept), problem=problem or "no line begins with a label and a colon")

        texts: dict[str, list[str]] = defaultdict(list)
        wanted = Counter(prompt.label for prompt in prompts)
        problem = ""
        for attempt in range(self.attempts):
            if all(len(texts[label]) >= count for label, count in wanted.items()):
                break
            answer = self.chat.ask(query, key.fold(attempt).integer() % 2**31, judge)
            problem = answer.problem
            for label, text in labelled_lines(answer, self.labels):
                texts[label].append(text)
        parts = {label: iter(found) for label, found in texts.items()}
        written = (next(parts.get(prompt.label, iter(())), "") for prompt in prompts)
        return [Answer(text, problem="" if text else problem) for text in written]

    def joint_query(self, guides: Sequence[str] = (), labels: Sequence[str] = ()) -> str:
        """Return the query for texts of every label.

        Args:
            guides: Real examples to show to the model.
            labels: The class of each of them.
        """
        shown = [f"- {label}: {guide}" for label, guide in zip(labels, guides, strict=True)]
        manner = "Write in their manner, and copy none of them."
        return self.form.text.format(
            labels=", ".join(self.labels),
            count=self.form.texts_per_label,
            words=self.words,
            examples="\n".join(["", "Real examples:", *shown, manner]) if shown else "",
        )

    def query(self, prompt: Prompt, guides: Sequence[str] = ()) -> str:
        """Return the query for a prompt's text.

        Args:
            prompt: The prompt.
            guides: Real examples of the class to show to the model.
        """
        shown = [f'Real examples of the class "{prompt.label}":', *(f"- {guide}" for guide in guides)]
        manner = "Write a new one in their manner, which copies none of them."
        return self.form.text.format(
            label=prompt.label,
            labels=", ".join(self.labels),
            prompt=prompt.text,
            words=self.words,
            examples="\n".join(["", *shown, manner]) if guides else "",
        )

    def problem(self, answer: Answer, text: str, query: str, guides: Sequence[str] = ()) -> str | None:
        """Return why an answer's text is not usable; None if it is usable.

        Args:
            answer: The answer.
            text: Its text, see `genfl.llm.answers.answer_text`.
            query: The query.
            guides: The real examples in the query.
        """
        normalized, normalized_query = answers.normalize_words(text), answers.normalize_words(query)
        if answer.cut:
            return "cut off, for example by max_tokens"
        if not normalized:
            return "empty"
        if answers.is_refusal(answer.text):
            return "a refusal"
        if answers.is_json(text):
            return "it is JSON"
        if any(is_copy(text, guide) for guide in guides):
            return "it copies a real example"
        if f" {normalized} " in f" {normalized_query} " or normalized_query in normalized:
            return "it repeats the query"
        count = len(text.split())
        if not self.words / 4 <= count <= 3 * self.words:
            return f"it has {count} words instead of about {self.words}"
        return None


def text_query(options: Mapping[str, Any]) -> ChatQuery:
    """Return the query of a config, with its system prompt.

    Args:
        options: The fields of `genfl.config.generation.TextGenerator`.
    """
    query = chat_query(options["query"], TEXT_QUERIES, options["system"])
    return query._replace(texts_per_label=options["texts_per_label"])


def labelled_lines(answer: Answer, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the texts of an answer whose lines begin with a label and a colon, with their labels."""
    names = sorted(labels, key=len, reverse=True)  # one may be the beginning of another
    texts = []
    for line in answers.answer_lines(answer):
        for name in names:
            if line.casefold().startswith(f"{name.casefold()}:"):
                texts.append((name, answers.answer_text(line[len(name) + 1 :])))
                break
    return texts


def chat_model_name(options: Mapping[str, Any]) -> str:
    """Return a chat model's name for data cards: the server's name of it, its id, or its folder's name."""
    name: str = options["model"]
    return name if options["base_url"] else hub.model_name(name)


def is_copy(text: str, guide: str) -> bool:
    """Return whether a text is a real example with a few words added, changed or moved."""
    measure = MEASURES["text"]
    normalized, example = answers.normalize_words(text), answers.normalize_words(guide)
    return (
        f" {example} " in f" {normalized} "
        or SequenceMatcher(None, example.split(), normalized.split(), autojunk=False).ratio() >= COPIED_WORDS
        or float(measure.vector(text) @ measure.vector(guide)) >= measure.near
    )


def text_guidance_problem(options: Mapping[str, Any]) -> str | None:
    """Return why real examples cannot guide the texts, and the fix; None if they can.

    Args:
        options: The fields of `genfl.config.generation.TextGenerator`.
    """
    if not options["shots"]:
        return f"{FIELD}.shots is 0, so no real example is shown; raise it, or use prompt"
    if options["base_url"] and not options["trusted"]:
        return (
            f"the server at {FIELD}.base_url would see clients' real texts; set {FIELD}.trusted to true if"
            " the clients own it, or use prompt"
        )
    return None
