"""pretrain: the server trains the downstream model on synthetic data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genfl import progress
from genfl.config import Config
from genfl.learning.augment import Augment
from genfl.learning.pretrain import Recipe, pretrain
from genfl.learning.task import Task, Weights, from_state_dict, state_dict
from genfl.rng import Key
from genfl.run import Run, data_key, data_set, initial_key, task_of
from genfl.stages import generate
from genfl.stages.base import Stage
from genfl.storage import load_tensors, save_tensors


def _run(run: Run) -> dict[str, Any]:
    config = run.config
    x, y = generate.read(run)
    x = data_set(config.data).prepare(x)
    options = config.pretrain.model_dump()
    recipe = Recipe(**{**options, "augment": Augment(**options["augment"])})
    task = task_of(run)
    results = {}
    with progress.bar("pretrain", config.pretrain.epochs * len(config.seeds), "epochs") as advance:
        for seed in config.seeds:
            trained = pretrain(
                task,
                task.init(initial_key(seed)),
                x,
                y,
                recipe,
                Key(seed).fold("pretrain"),
                checkpoint=_folder(run, seed) / "checkpoint.safetensors",
                on_epoch=advance,
            )
            save_tensors(_folder(run, seed) / "model.safetensors", state_dict(trained.weights))
            results[str(seed)] = {"best_epoch": trained.epoch, "history": trained.history}
    return {"seeds": results}


def weights(run: Run, task: Task, seed: int) -> Weights:
    """Returns the model that this stage trained for a seed."""
    tensors, _ = load_tensors(_folder(run, seed) / "model.safetensors")
    return from_state_dict(tensors, like=task.init(initial_key(seed)))


def _folder(run: Run, seed: int) -> Path:
    return run.folder / STAGE.folder / f"seed-{seed}"


def _inputs(config: Config) -> Any:
    model = [config.precision, config.model.model_dump()]
    return [config.pretrain.model_dump(), model, data_key(config.data), config.seeds]


STAGE = Stage("pretrain", "pretrain", 2, _inputs, ("labels", "generate"), _run)
