"""Classification with a chat model: by the likelihood of the labels, or by the answers of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genfl.errors import InputError
from genfl.llm import answers
from genfl.llm.answers import Answer
from genfl.llm.chat import CachedChat, map_queries
from genfl.llm.local import LocalChat
from genfl.llm.queries import ChatQuery
from genfl.references import GeneratorClassifier, generator_classifier
from genfl.rng import Key

LABELS_PER_CALL = 32
"""Labels in one call of a local model. Another number changes the last bits."""


def text_label_scores(
    chat: CachedChat,
    texts: Sequence[str],
    labels: Sequence[str],
    examples: Sequence[tuple[str, str]],
    key: Key,
    query: ChatQuery,
    options: GeneratorClassifier,
) -> Tensor:
    """Return how well each label answers the query for a text's class, as logits of the labels.

    A model that runs here gives the log-probability of each label as the whole answer. Without `normalize`,
    their softmax is its posterior with a uniform prior over labels. A server gives answers alone: with v of V
    votes for a label, the logit is ``log((v + 1) / (V + labels))``. An answer that names no label, or more
    than one, is no vote.

    Args:
        chat: The chat model.
        texts: The texts to classify.
        labels: The names of the classes.
        examples: Labelled texts that the query shows: text and label of each (few-shot). Empty for zero-shot.
        key: The random stream of a server's answers.
        query: The query; see `genfl.llm.queries.CLASSIFY_BLANKS`.
        options: The options of the reference.

    Returns:
        [texts, labels], float32.
    """
    queries = [classify_query(query, text, labels, examples) for text in texts]
    if isinstance(chat.chat, LocalChat):
        return torch.stack([_likelihoods(chat.chat, text, labels, options.normalize) for text in queries])

    def judge(answer: Answer) -> Answer:
        """Keep the label alone: the rest of an answer may repeat a text."""
        named = answers.named_labels(answers.answer_text(answer.text), labels)
        return Answer(named.pop()) if len(named) == 1 else Answer("", problem="it does not name one label")

    tasks = [(text, vote) for text in queries for vote in range(options.votes)]
    asked = map_queries(
        chat, lambda task: chat.ask(task[0], key.fold("vote", task[1]).integer() % 2**31, judge), tasks
    )
    row_of = {answers.normalize_case(label): row for row, label in enumerate(labels)}
    votes = torch.zeros(len(texts), len(labels))
    for number, answer in enumerate(asked):
        if answer.text:
            votes[number // options.votes, row_of[answer.text]] += 1
    return ((votes + 1) / (options.votes + len(labels))).log()


def classify_query(
    query: ChatQuery, text: str, labels: Sequence[str], examples: Sequence[tuple[str, str]]
) -> str:
    """Return the query for the class of a text; see `text_label_scores`."""
    shown = [f"Text: {example}\nClass: {label}" for example, label in examples]
    return query.text.format(
        labels=", ".join(labels), text=text, examples="\n".join(["", *shown]) if shown else ""
    )


def _likelihoods(chat: LocalChat, query: str, labels: Sequence[str], normalize: bool) -> Tensor:
    """Return the log-likelihood of each label as the answer, [labels]."""
    scores = []
    for first in range(0, len(labels), LABELS_PER_CALL):
        likely, tokens = chat.log_likelihoods(query, labels[first : first + LABELS_PER_CALL])
        scores.append(likely / tokens if normalize else likely)
    return torch.cat(scores)


def check_text_classifier(settings: Mapping[str, Any], options: GeneratorClassifier, *, public: bool) -> None:
    """Check that a chat model may see the texts that it is to classify.

    Args:
        settings: The fields of `genfl.config.generation.TextGenerator`.
        options: The options of the reference.
        public: Whether anyone may see the test set.

    Raises:
        InputError: A server would see real texts, or an option has no effect.
    """
    server = settings["base_url"] is not None
    if server and not settings["trusted"] and (options.shots or not public):
        texts = "clients' real texts" if options.shots else "the test set"
        raise InputError(
            f"the server at generator.base_url would see {texts}; set generator.trusted to true if the"
            " clients own it, or use a model that runs here"
        )
    if options.samples != generator_classifier().samples:
        raise InputError("samples: it is for images; leave it out")
    if server and options.normalize:
        raise InputError("normalize: a server gives no likelihoods; leave it out")
    if not server and options.votes != 1:
        raise InputError("votes: a model that runs here is asked for likelihoods, not answers; leave it out")
