"""The stage pretrain: the server trains the downstream model on synthetic data alone, or on public data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from genfl import progress
from genfl.config import Config, Model
from genfl.config.methods import AuxiliarySource
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
from genfl.stages.base import (
    IGNORED,
    FormatInputs,
    PublicInputs,
    Stage,
    StageRun,
    Upstream,
    Without,
    digest_of,
)
from genfl.stages.vocabulary import readable
from genfl.storage import checkpoint_digest, load_tensors, remove, save_tensors
from genfl.tracking.events import Follower
from genfl.tracking.series import Row, Series

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
        seeds: The seeds. One model is trained for each, and for each source.
        sources: The sources of training data: generated, public, or both.
        public: The public data; None if no model is trained on it.
    """

    data: FormatInputs
    model: ModelInputs
    recipe: Annotated[Pretraining, Without({"init"})]
    seeds: list[int]
    sources: list[AuxiliarySource]
    public: PublicInputs | None


@dataclass(frozen=True)
class SeedInputs:
    """The inputs of the pre-trained model of one seed; see `PretrainInputs`."""

    data: FormatInputs
    model: ModelInputs
    recipe: Annotated[Pretraining, Without({"init"})]
    labels: list[str]
    seed: int


def pretrain_inputs(config: Config, context: RunContext) -> PretrainInputs:
    """Return the inputs of pre-training for a config."""
    data = FormatInputs.of(config, context)
    sources: list[AuxiliarySource] = ["generated"] if config.generates else []
    public = PublicInputs.of(config, context) if config.pretrains_on_public else None
    if public is not None:
        sources.append("public")
    model = ModelInputs.of(config, context)
    return PretrainInputs(data, model, config.pretrain, config.seeds, sources, public)


def _run(inputs: PretrainInputs, work: StageRun) -> dict[str, Any]:
    section = readable(inputs.data.section, work.upstream)
    data, labels = work.context.data_set(section), work.upstream.labels
    options = inputs.recipe.model_dump(exclude={"init"})
    recipe = Recipe(**{**options, "augment": inputs.recipe.augment.augment()})
    task = work.context.classify(section, inputs.model.model, len(labels), inputs.model.precision)
    device = torch.device(inputs.model.device)
    results: dict[str, dict[str, Any]] = {source: {} for source in inputs.sources}
    _discard(work.folder, inputs)
    work.events.keep("epoch", _up_to_date(inputs, work))
    epochs = inputs.recipe.epochs * len(inputs.seeds) * len(inputs.sources)
    with progress.bar("pretrain", epochs, "epochs") as advance, exact(device):
        for source in inputs.sources:
            if source == "public":
                assert inputs.public is not None
                x, y = inputs.public.read(work.context, section).matched(labels)
            else:
                x, y = read_generated(work.upstream, data)
            for seed in inputs.seeds:
                start, _ = inputs.model.weights(task, seed)
                folder = seed_folder(work.folder, seed, source)
                checkpoint = folder / "checkpoint.safetensors"
                digest = seed_digest(inputs, work.upstream, seed, source)
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
                    on_history=Follower(work.events, Series("epoch", source, seed)),
                )
                save_tensors(folder / "model.safetensors", task.state_dict(trained.weights))
                results[source][str(seed)] = {"best_epoch": trained.epoch, "history": trained.history}
    return {"seeds": results.get("generated", {}), "public": results.get("public", {})}


def _up_to_date(inputs: PretrainInputs, work: StageRun) -> list[Series]:
    """Return the trainings with a checkpoint of the current inputs."""
    return [
        Series("epoch", source, seed)
        for source in inputs.sources
        for seed in inputs.seeds
        if checkpoint_digest(seed_folder(work.folder, seed, source) / "checkpoint.safetensors")
        == seed_digest(inputs, work.upstream, seed, source)
    ]


def _figures(result: Mapping[str, Any]) -> dict[Series, Sequence[Row]]:
    """Return the epochs of each training, from the stage's result."""
    models = {"generated": result["seeds"], "public": result.get("public", {})}
    return {
        Series("epoch", source, int(seed)): model["history"]
        for source, seeds in models.items()
        for seed, model in seeds.items()
    }


def _discard(folder: Path, inputs: PretrainInputs) -> None:
    """Delete the models of seeds and sources that the config no longer has."""
    current = {seed_folder(folder, seed, source) for seed in inputs.seeds for source in inputs.sources}
    for old in (*folder.glob("seed-*"), *folder.glob("public-seed-*")):
        if old not in current:
            log.info("pretrain: deleted the model of %s, which is no longer in the config", old.name)
            remove(old, folder)


def seed_digest(
    inputs: PretrainInputs, upstream: Upstream, seed: int, source: AuxiliarySource = "generated"
) -> str:
    """Return the digest of everything that the model of one seed and source depends on."""
    if source == "public":
        assert inputs.public is not None
        digests = {"public": inputs.public.content}
    else:
        digests = generated_digests(upstream)
    if inputs.data.section.tokenizer == GENERATED_TOKENIZER:
        digests[VOCABULARY] = upstream.digest(VOCABULARY)
    seed_inputs = SeedInputs(inputs.data, inputs.model, inputs.recipe, upstream.labels, seed)
    return digest_of(STAGE.name, STAGE.version, seed_inputs, digests)


def read_weights(folder: Path, task: Task, seed: int, source: AuxiliarySource = "generated") -> Weights:
    """Return the model that this stage trained for a seed.

    Args:
        folder: The stage's folder.
        task: The learning task.
        seed: The seed.
        source: The data that it was trained on.
    """
    tensors, _ = load_tensors(seed_folder(folder, seed, source) / "model.safetensors")
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


def seed_folder(folder: Path, seed: int, source: AuxiliarySource = "generated") -> Path:
    """Return the folder of the model of one seed and source."""
    return folder / f"{'public-' if source == 'public' else ''}seed-{seed}"


STAGE = Stage(
    "pretrain",
    "pretrain",
    3,
    ("labels", "generate", AUDIT, VOCABULARY),
    pretrain_inputs,
    _run,
    check=_check,
    keeps=True,
    wanted=lambda config: config.generates or config.pretrains_on_public,
    unread=unread,
    figures=_figures,
)
