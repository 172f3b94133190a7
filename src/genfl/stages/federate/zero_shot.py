"""The reference that trains nothing: the generator as a classifier of the real test set."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from genfl import progress
from genfl.config import ImageGenerator, Method
from genfl.experiment.context import data_set, indices
from genfl.experiment.folder import Run
from genfl.generators.classify import label_scores
from genfl.generators.image import StableDiffusion
from genfl.learning.evaluate import evaluate
from genfl.learning.task import Task
from genfl.rng import Key
from genfl.stages import prompts
from genfl.stages.federate import trial
from genfl.storage import load_checkpoint, save_tensors, write_json

BLOCK = 32
"""Images that the generator classifies between two checkpoints."""


def classified(run: Run, name: str, method: Method, task: Task) -> dict[str, Any]:
    """Scores the generator as a classifier: the same for every seed, but for the draws."""
    config, labels, data = run.config, run.labels, data_set(run.config.data)
    settings, (part,) = config.generator, method.algorithm
    assert isinstance(settings, ImageGenerator)
    load = cache(partial(StableDiffusion, settings.model, settings.steps, settings.device))
    templates = prompts.templates(config)
    assert data.decode is not None
    images = [data.decode(x) for x in data.test.x]
    results = {}
    with progress.bar(name, len(config.seeds) * len(images), "images") as advance:
        for seed in config.seeds:
            arm, key = run.folder / trial.FOLDER / name / f"seed-{seed}", trial.key(run, method, seed)
            before = load_checkpoint(arm / "checkpoint.safetensors", key)
            logits = before[0]["logits"] if before else torch.zeros(0, len(labels))
            advance(len(logits))
            for first in range(len(logits), len(images), BLOCK):
                block = label_scores(
                    load(),
                    images[first : first + BLOCK],
                    # the same stream for every label, and so the same sentence
                    lambda key: [templates.draw(label, key.numpy()) for label in labels],
                    Key(seed).fold("classify"),
                    **part.options(),
                )
                logits = torch.cat([logits, block])
                save_tensors(arm / "checkpoint.safetensors", {"logits": logits}, {"key": key, "rounds": []})
                advance(len(block))
            given = task._replace(forward=lambda weights, x: (x, x))  # the inputs are the logits
            scores = evaluate(given, {}, logits, indices(data.test, labels))
            results[str(seed)] = {"evaluations": [{"round": 0, **scores}], "rounds": []}
            write_json(arm / "trace.json", results[str(seed)])
    return results
