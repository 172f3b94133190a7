"""pretrain: the server trains the downstream model on synthetic data alone."""

from __future__ import annotations

import logging
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from genfl import progress
from genfl.config import Config, Model
from genfl.data.texts import GENERATED
from genfl.engines.device import exact
from genfl.errors import InputError
from genfl.experiment.context import classify, data_digest, data_of, data_set, initial_key, task_of
from genfl.experiment.folder import VOCABULARY, Run
from genfl.learning.pretrain import Recipe, pretrain
from genfl.learning.task import Task, Weights, from_state_dict, load_weights, state_dict, weights_of
from genfl.models import MODELS
from genfl.models.pretrained import load_pretrained, locate
from genfl.rng import Key
from genfl.stages import generate
from genfl.stages.base import Stage
from genfl.storage import digest, load_tensors, save_tensors, sha256

log = logging.getLogger(__name__)


def _run(run: Run) -> dict[str, Any]:
    config = run.config
    x, y = generate.read(run)
    options = config.pretrain.model_dump(exclude={"init"})
    recipe = Recipe(**{**options, "augment": config.pretrain.augment.augment()})
    task, device = task_of(run), torch.device(config.device)
    results = {}
    _discard(run)
    with (
        progress.bar("pretrain", config.pretrain.epochs * len(config.seeds), "epochs") as advance,
        exact(device),
    ):
        for seed in config.seeds:
            trained = pretrain(
                task,
                initial(config, task, seed),
                x,
                y,
                recipe,
                Key(seed).fold("pretrain"),
                checkpoint=_folder(run, seed) / "checkpoint.safetensors",
                checkpoint_digest=key(run, seed),
                prepare=data_of(run).prepare,
                device=device,
                on_epoch=advance,
            )
            save_tensors(_folder(run, seed) / "model.safetensors", state_dict(trained.weights))
            results[str(seed)] = {"best_epoch": trained.epoch, "history": trained.history}
    return {"seeds": results}


def _discard(run: Run) -> None:
    """Deletes the models of seeds that the config no longer has."""
    kept = {_folder(run, seed) for seed in run.config.seeds}
    for folder in (run.folder / STAGE.folder).glob("seed-*"):
        if folder not in kept:
            log.info("pretrain: the config has no %s any more: its model is deleted", folder.name)
            shutil.rmtree(folder)


def key(run: Run, seed: int) -> str:
    """Returns a digest of all that the model of one seed depends on, and of nothing else."""
    upstream = [generate.STAGE.name]
    if run.config.data.tokenizer == GENERATED:
        upstream.append(VOCABULARY)
    keys = {name: run.key(name) for name in upstream}
    return digest([STAGE.version, _recipe(run.config), run.labels, seed, keys])


def weights(run: Run, task: Task, seed: int) -> Weights:
    """Returns the model that this stage trained for a seed."""
    tensors, _ = load_tensors(_folder(run, seed) / "model.safetensors")
    return from_state_dict(tensors, like=task.init(initial_key(seed)))


def initial(config: Config, task: Task, seed: int) -> Weights:
    """Returns where pre-training starts: the existing model, if there is one, else random weights.

    Its head stays random where the existing model has none, or one of another number of classes.

    Raises:
        InputError: The existing model is not there, or not one of the config's.
    """
    return _initial(config, task, seed)[0]


def _initial(config: Config, task: Task, seed: int) -> tuple[Weights, list[str]]:
    """Returns where pre-training starts, and the names of what an existing model did not give."""
    weights = task.init(initial_key(seed))
    path = _existing(config)
    if path is None:
        return weights, list(state_dict(weights))
    form = task.shapes()
    with torch.random.fork_rng(devices=[]):  # what building draws is overwritten
        model = MODELS[config.model.name].build(form.input, form.classes, **config.model.options())
    load_weights(model, weights)
    try:
        fresh = load_pretrained(model, path)
    except (OSError, ValueError) as error:
        raise InputError(f"pretrain.init: {error}") from error
    return weights_of(model), fresh


def initial_digest(config: Config) -> str | None:
    """Returns a digest of the existing model; None where there is none."""
    path = _existing(config)
    return _checksum(path, path.stat().st_mtime_ns) if path else None


def _existing(config: Config) -> Path | None:
    if config.pretrain.init is None:
        return None
    try:
        return locate(config.pretrain.init, config.model.name)
    except ValueError as error:
        raise InputError(f"pretrain.init: {error}") from error


@lru_cache(maxsize=1)
def _checksum(path: Path, modified: int) -> str:
    return sha256(path)


def fitting(field: str, config: Config, model: Model, classes: int) -> Task:
    """Returns the task with a model.

    Raises:
        InputError: The model does not fit the inputs.
    """
    try:
        return classify(config, model, classes)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{field}: {model.name} does not fit inputs of shape {data_set(config.data).shape}: {error}"
        ) from error


def _check(config: Config) -> None:
    data = data_set(config.data)
    if problem := config.pretrain.augment.augment().problem(data.modality, data.shape):
        raise InputError(f"pretrain.augment.{problem}")


def check_initial(config: Config, task: Task) -> None:
    """Sees that the existing model is there and fits, where there is to be one.

    Raises:
        InputError: It is not, or does not.
    """
    if config.pretrain.init is not None:
        _, fresh = _initial(config, task, config.seeds[0])
        but = f", but for a new head ({', '.join(fresh)})" if fresh else ""
        log.info("pretrain.init: the weights of %s%s", _existing(config), but)


def _folder(run: Run, seed: int) -> Path:
    return run.folder / STAGE.folder / f"seed-{seed}"


def _inputs(config: Config) -> Any:
    return [*_recipe(config), config.seeds]


def _recipe(config: Config) -> list[Any]:
    """Returns what the models of all seeds depend on."""
    model = [config.precision, config.device_type, config.model.model_dump()]
    recipe = [config.pretrain.model_dump(exclude={"init"}), initial_digest(config)]
    return [recipe, model, data_digest(config.data)]


STAGE = Stage(
    "pretrain",
    "pretrain",
    2,
    _inputs,
    ("labels", "generate", VOCABULARY),
    _run,
    check=_check,
    keeps=True,
    wanted=lambda config: config.generates,
)
