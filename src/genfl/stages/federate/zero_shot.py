"""The reference without training: the generator classifies the real test set."""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Any

import torch

from genfl import progress
from genfl.config import ImageGenerator, Method
from genfl.generators.classify import label_scores
from genfl.generators.image import StableDiffusion
from genfl.learning.evaluate import evaluate
from genfl.rng import Key
from genfl.stages.federate.inputs import trial_digest
from genfl.stages.federate.setting import Setting
from genfl.stages.prompts import templates
from genfl.storage import load_checkpoint, save_tensors, write_json

BLOCK = 32
"""The number of images between two checkpoints."""


def classify_test_set(setting: Setting, name: str, method: Method) -> dict[str, Any]:
    """Return the scores of the generator as a classifier. Seeds differ only in their random draws.

    Args:
        setting: The setting of all trials.
        name: The reference's name in the config.
        method: The reference.

    Returns:
        The evaluation for each seed, as plain values.
    """
    inputs, labels, data, work = setting.inputs, setting.labels, setting.data, setting.work
    assert inputs.generator is not None
    settings, (part,) = inputs.generator.section, method.algorithm
    assert isinstance(settings, ImageGenerator)
    load = cache(partial(StableDiffusion, settings.model, settings.steps, settings.device))
    sentences = templates(inputs.prompts, data.modality)
    assert data.decode is not None
    images = [data.decode(x) for x in data.test.x]
    results = {}
    with progress.bar(name, len(inputs.seeds) * len(images), "images") as advance:
        for seed in inputs.seeds:
            folder = work.folder / name / f"seed-{seed}"
            digest = trial_digest(inputs, work.upstream, method, seed, batched=False)
            before = load_checkpoint(folder / "checkpoint.safetensors", digest)
            logits = before[0]["logits"] if before else torch.zeros(0, len(labels))
            seconds, timed, parameters = before[1].get("cost", (0.0, 0, 0)) if before else (0.0, 0, 0)
            advance(len(logits))
            for first in range(len(logits), len(images), BLOCK):
                generator = load()
                parameters = _parameters(generator)
                began = time.perf_counter()
                block = label_scores(
                    generator,
                    images[first : first + BLOCK],
                    # every label gets the same stream, so the same sentence
                    lambda key: [sentences.draw(label, key.numpy()) for label in labels],
                    Key(seed).fold("classify"),
                    **part.options(),
                )
                logits = torch.cat([logits, block])
                seconds += time.perf_counter() - began
                timed += len(block)
                meta = {"digest": digest, "rounds": [], "cost": [round(seconds, 3), timed, parameters]}
                save_tensors(folder / "checkpoint.safetensors", {"logits": logits}, meta)
                advance(len(block))
            if timed:  # else a checkpoint of an earlier version had it all
                setting.generator_predicted = parameters, round(1000 * seconds / timed, 3)
            identity = setting.task._replace(forward=lambda weights, x: (x, x))  # the inputs are the logits
            scores = evaluate(identity, {}, logits, setting.test_y)
            results[str(seed)] = {"evaluations": [{"round": 0, **scores}], "rounds": []}
            write_json(folder / "trace.json", results[str(seed)])
    return results


def _parameters(generator: StableDiffusion) -> int:
    """Return the number of parameters of a generator, of all its parts."""
    parts = (part for part in generator.pipeline.components.values() if isinstance(part, torch.nn.Module))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
