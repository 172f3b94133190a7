"""The reference without training: the generator classifies the real test set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from genfl import progress
from genfl.config import ImageGenerator, Method
from genfl.config.generation import TextGenerator
from genfl.experiment.context import class_indices
from genfl.generators.classify import label_scores
from genfl.generators.classify_text import text_label_scores
from genfl.generators.image import StableDiffusion
from genfl.generators.text import FIELD
from genfl.learning.evaluate import evaluate
from genfl.llm.chat import connect
from genfl.llm.local import LocalChat
from genfl.llm.queries import CLASSIFY_QUERIES, chat_query
from genfl.references import GENERATOR, REFERENCES, GeneratorClassifier
from genfl.rng import Key
from genfl.stages.federate.inputs import trial_digest
from genfl.stages.federate.setting import Setting
from genfl.stages.guided import rows_of_all_classes
from genfl.stages.prompts import templates
from genfl.storage import load_checkpoint, save_tensors, write_json

BLOCK = 32
"""The number of examples between two checkpoints."""

NO_COST = (0.0, 0, None)
"""Seconds, examples and parameters of a generator that has not classified yet."""

Load = Callable[[], Any]
"""``() -> the generator``, loaded at the first call."""

Score = Callable[[Any, Sequence[int], int], Tensor]
"""``(generator, rows of the test set, seed) -> logits [rows, labels]``."""


def classify_test_set(setting: Setting, name: str, method: Method) -> dict[str, Any]:
    """Return the scores of the generator as a classifier. Seeds differ only in their random draws.

    Args:
        setting: The setting of all trials.
        name: The reference's name in the config.
        method: The reference.

    Returns:
        The evaluation for each seed, as plain values.
    """
    inputs, labels, work = setting.inputs, setting.labels, setting.work
    assert inputs.generator is not None
    options: GeneratorClassifier = REFERENCES[GENERATOR](**method.algorithm[0].options())
    by_text = isinstance(inputs.generator.section, TextGenerator)
    load, score = _score_texts(setting, options) if by_text else _score_images(setting, options)
    total, unit = len(setting.test_y), "texts" if by_text else "images"
    results = {}
    with progress.bar(name, len(inputs.seeds) * total, unit) as advance:
        for seed in inputs.seeds:
            folder = work.folder / name / f"seed-{seed}"
            digest = trial_digest(inputs, work.upstream, method, seed, batched=False)
            before = load_checkpoint(folder / "checkpoint.safetensors", digest)
            logits = before[0]["logits"] if before else torch.zeros(0, len(labels))
            seconds, timed, parameters = before[1].get("cost", NO_COST) if before else NO_COST
            advance(len(logits))
            for first in range(len(logits), total, BLOCK):
                generator = load()
                parameters = _parameters(generator)
                began = time.perf_counter()
                block = score(generator, range(first, min(first + BLOCK, total)), seed)
                logits = torch.cat([logits, block])
                seconds += time.perf_counter() - began
                timed += len(block)
                meta = {"digest": digest, "rounds": [], "cost": [round(seconds, 3), timed, parameters]}
                save_tensors(folder / "checkpoint.safetensors", {"logits": logits}, meta)
                advance(len(block))
            if timed and parameters:  # not of a server, nor of a checkpoint of an earlier version
                setting.generator_predicted = parameters, round(1000 * seconds / timed, 3)
            identity = setting.task._replace(forward=lambda weights, x: (x, x))  # the inputs are the logits
            scores = evaluate(identity, {}, logits, setting.test_y)
            results[str(seed)] = {"evaluations": [{"round": 0, **scores}], "rounds": []}
            write_json(folder / "trace.json", results[str(seed)])
    return results


def _score_images(setting: Setting, options: GeneratorClassifier) -> tuple[Load, Score]:
    """Return functions that load a diffusion model and classify images with it."""
    assert setting.inputs.generator is not None
    settings, labels, data = setting.inputs.generator.section, setting.labels, setting.data
    assert isinstance(settings, ImageGenerator)
    load = cache(partial(StableDiffusion, settings.model, settings.steps, settings.device))
    sentences = templates(setting.inputs.prompts, data.modality)
    assert data.decode is not None
    decode = data.decode

    def score(generator: Any, numbers: Sequence[int], seed: int) -> Tensor:
        return label_scores(
            generator,
            [decode(data.test.x[setting.test_rows[n]]) for n in numbers],
            # every label gets the same stream, so the same sentence
            lambda key: [sentences.draw(label, key.numpy()) for label in labels],
            Key(seed).fold("classify"),
            samples=options.samples,
        )

    return load, score


def _score_texts(setting: Setting, options: GeneratorClassifier) -> tuple[Load, Score]:
    """Return functions that load a chat model and classify texts with it."""
    assert setting.inputs.generator is not None
    generator, data = setting.inputs.generator.options, setting.data
    query = chat_query(options.query, CLASSIFY_QUERIES, None)
    chat_options = {**generator, "system": query.system}  # not that of the query for texts
    load = cache(lambda: connect(chat_options, FIELD, setting.work.answers))
    texts = data.test_originals(setting.test_rows.tolist())
    examples = cache(partial(_examples_of_a_client, setting, options.shots))

    def score(generator: Any, numbers: Sequence[int], seed: int) -> Tensor:
        wanted = [texts[n] for n in numbers]
        key = Key(seed).fold("classify")
        return text_label_scores(generator, wanted, setting.labels, examples(seed), key, query, options)

    return load, score


def _examples_of_a_client(setting: Setting, shots: int, seed: int) -> list[tuple[str, str]]:
    """Return labelled texts of one client, drawn for each seed: of its classes in turn.

    A client may show its own texts, but no other client's. So the model sees what one client could show it.
    """
    if not shots:
        return []
    parts, _ = setting.context.train_test_rows(setting.section, seed)
    key = Key(seed).fold("shots")
    rows = key.numpy().permutation(parts[int(key.fold("client").numpy().integers(len(parts)))])
    y = class_indices(setting.data.train, setting.labels).numpy()[rows]
    rows, y = rows[y >= 0], y[y >= 0]
    of_class = {number: rows[y == number] for number in range(len(setting.labels))}
    shown = rows_of_all_classes(of_class, min(shots, len(rows)))
    names = class_indices(setting.data.train, setting.labels)[torch.tensor(shown)].tolist()
    contents = setting.data.originals(shown)
    return [(contents[n], setting.labels[name]) for n, name in enumerate(names)]


def _parameters(generator: Any) -> int | None:
    """Return the number of parameters of a generator, of all its parts; None if it runs on a server."""
    if isinstance(generator, StableDiffusion):
        parts = [p for p in generator.pipeline.components.values() if isinstance(p, torch.nn.Module)]
    elif isinstance(generator.chat, LocalChat):
        parts = [generator.chat.model]
    else:
        return None
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
