"""The stage pretrain: the server trains the downstream model on synthetic data alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from genfl import progress
from genfl.config import Config, Model
from genfl.config.training import Pretraining
from genfl.data.texts import GENERATED_TOKENIZER
from genfl.engines.device import exact
from genfl.errors import InputError
from genfl.experiment.context import RunContext, initial_key
from genfl.experiment.folder import AUDIT, VOCABULARY
from genfl.learning.pretrain import Recipe, train_with_holdout
from genfl.learning.task import (
    Precision,
    Task,
    Weights,
    from_state_dict,
    load_weights,
    state_dict,
    weights_of,
)
from genfl.models import MODELS
from genfl.models.pretrained import load_pretrained, locate
from genfl.rng import Key
from genfl.stages.audit import generated_digests, read_generated, unread
from genfl.stages.base import IGNORED, FormatInputs, Stage, StageRun, Upstream, Without, digest_of
from genfl.stages.vocabulary import readable
from genfl.storage import load_tensors, remove, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInputs:
    """The downstream model, and the existing model that it may start from.

    Attributes:
        model: Its architecture and options.
        precision: The precision of its arithmetic.
        device_type: The type of the device. The last bits of results depend on it.
        code: The digest of the model's code by its name, if it is a user's own.
        initial: The digest of the existing model's file; None without an existing model.
        path: The path of that file.
        device: The device that computes.
    """

    model: Model
    precision: Precision
    device_type: str
    code: dict[str, str]
    initial: str | None
    path: Annotated[Path | None, IGNORED]
    device: Annotated[str, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> ModelInputs:
        """Return the model inputs of a config.

        Raises:
            InputError: The file of the existing model is missing.
        """
        path = _existing(config.pretrain.init, config.model)
        initial = context.file_digest(path) if path else None
        return cls(
            config.model,
            config.precision,
            config.device_type,
            config.model_code,
            initial,
            path,
            config.device,
        )

    def weights(self, task: Task, seed: int) -> tuple[Weights, list[str]]:
        """Return the weights that training starts from: the existing model, or random weights without one.

        The head stays random if the existing model has no head, or one for another number of classes.

        Returns:
            The weights, and the names of those that are random.

        Raises:
            InputError: The existing model does not fit the config's model.
        """
        weights = task.init(initial_key(seed))
        if self.path is None:
            return weights, list(state_dict(weights))
        form = task.shapes()
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
            model = MODELS[self.model.name].build(form.input, form.classes, **self.model.options())
        load_weights(model, weights)
        try:
            fresh = load_pretrained(model, self.path)
        except (OSError, ValueError) as error:
            raise InputError(f"pretrain.init: {error}") from error
        changed = [n for n, p in task.frozen.items() if not torch.equal(model.get_parameter(n), p)]
        if changed:
            raise InputError(
                f"pretrain.init: {self.path} has other values for {changed[0]}, which the model freezes"
                " (requires_grad=False); load the file in the model's builder"
            )
        return weights_of(model), fresh

    def check(self, task: Task, seed: int) -> None:
        """Check that the existing model fits, if there is one.

        Raises:
            InputError: It does not fit.
        """
        if self.path is not None:
            _, fresh = self.weights(task, seed)
            head = f", with a new head ({', '.join(fresh)})" if fresh else ""
            log.info("pretrain.init: the weights of %s%s", self.path, head)


@dataclass(frozen=True)
class PretrainInputs:
    """The inputs of pre-training, besides the synthetic data.

    Attributes:
        data: The input format of the private data, in which synthetic samples are encoded.
        model: The downstream model.
        recipe: The settings of the training.
        seeds: The seeds. One model is trained for each.
    """

    data: FormatInputs
    model: ModelInputs
    recipe: Annotated[Pretraining, Without({"init"})]
    seeds: list[int]


@dataclass(frozen=True)
class SeedInputs:
    """The inputs of the pre-trained model of one seed; see `PretrainInputs`."""

    data: FormatInputs
    model: ModelInputs
    recipe: Annotated[Pretraining, Without({"init"})]
    labels: list[str]
    seed: int


def pretrain_inputs(config: Config, context: RunContext) -> PretrainInputs:
    """Return the inputs of pre-training of a config."""
    data = FormatInputs.of(config, context)
    return PretrainInputs(data, ModelInputs.of(config, context), config.pretrain, config.seeds)


def _run(inputs: PretrainInputs, work: StageRun) -> dict[str, Any]:
    section = readable(inputs.data.section, work.upstream)
    data, labels = work.context.data_set(section), work.upstream.labels
    x, y = read_generated(work.upstream, data)
    options = inputs.recipe.model_dump(exclude={"init"})
    recipe = Recipe(**{**options, "augment": inputs.recipe.augment.augment()})
    task = work.context.classify(section, inputs.model.model, len(labels), inputs.model.precision)
    device = torch.device(inputs.model.device)
    results = {}
    _discard(work.folder, inputs.seeds)
    with (
        progress.bar("pretrain", inputs.recipe.epochs * len(inputs.seeds), "epochs") as advance,
        exact(device),
    ):
        for seed in inputs.seeds:
            start, _ = inputs.model.weights(task, seed)
            checkpoint = seed_folder(work.folder, seed) / "checkpoint.safetensors"
            digest = seed_digest(inputs, work.upstream, seed)
            work.take_checkpoint(checkpoint, digest)
            trained = train_with_holdout(
                task,
                start,
                x,
                y,
                recipe,
                Key(seed).fold("pretrain"),
                checkpoint=checkpoint,
                checkpoint_digest=digest,
                prepare=data.prepare,
                device=device,
                on_epoch=advance,
            )
            tensors = task.state_dict(trained.weights)
            save_tensors(seed_folder(work.folder, seed) / "model.safetensors", tensors)
            results[str(seed)] = {"best_epoch": trained.epoch, "history": trained.history}
    return {"seeds": results}


def _discard(folder: Path, seeds: list[int]) -> None:
    """Delete the models of seeds that the config no longer has."""
    current = {seed_folder(folder, seed) for seed in seeds}
    for old in folder.glob("seed-*"):
        if old not in current:
            log.info("pretrain: deleted the model of %s, which is no longer in the config", old.name)
            remove(old, folder)


def seed_digest(inputs: PretrainInputs, upstream: Upstream, seed: int) -> str:
    """Return the digest of everything that the model of one seed depends on."""
    digests = generated_digests(upstream)
    if inputs.data.section.tokenizer == GENERATED_TOKENIZER:
        digests[VOCABULARY] = upstream.digest(VOCABULARY)
    seed_inputs = SeedInputs(inputs.data, inputs.model, inputs.recipe, upstream.labels, seed)
    return digest_of(STAGE.name, STAGE.version, seed_inputs, digests)


def read_weights(folder: Path, task: Task, seed: int) -> Weights:
    """Return the model that this stage trained for a seed.

    Args:
        folder: The stage's folder.
        task: The learning task.
        seed: The seed.
    """
    tensors, _ = load_tensors(seed_folder(folder, seed) / "model.safetensors")
    return from_state_dict(tensors, like=task.init(initial_key(seed)))


def _existing(init: str | None, model: Model) -> Path | None:
    if init is None:
        return None
    try:
        return locate(init, model.name)
    except ValueError as error:
        raise InputError(f"pretrain.init: {error}") from error


def _check(inputs: PretrainInputs, context: RunContext) -> None:
    data = context.data_set(inputs.data.section)
    if problem := inputs.recipe.augment.augment().problem(data.modality, data.shape):
        raise InputError(f"pretrain.augment.{problem}")


def seed_folder(folder: Path, seed: int) -> Path:
    """Return the folder of one seed's model."""
    return folder / f"seed-{seed}"


STAGE = Stage(
    "pretrain",
    "pretrain",
    3,
    ("labels", "generate", AUDIT, VOCABULARY),
    pretrain_inputs,
    _run,
    check=_check,
    keeps=True,
    wanted=lambda config: config.generates,
    unread=unread,
)
