"""What a run's config stands for: its data sets, splits and tasks."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from genfl.config import Config, Data, Model, Partition, validate
from genfl.data.clients import ClientData
from genfl.data.partition import OWN, hold_back, partition, subset
from genfl.data.sources import DATASETS, DataSet, Examples
from genfl.data.texts import GENERATED
from genfl.errors import InputError
from genfl.experiment.folder import VOCABULARY, Run
from genfl.labels.iblt import MAX_CLIENTS
from genfl.learning.task import Task, classification
from genfl.models import MODELS
from genfl.rng import Key

log = logging.getLogger(__name__)


def data_of(run: Run) -> DataSet:
    """Return the private data as the stages after `VOCABULARY` read it: texts by the words of generated ones."""
    data = run.config.data
    if data.tokenizer == GENERATED:
        made = run.folder / VOCABULARY / run.result(VOCABULARY)["folder"]
        data = data.model_copy(update={"tokenizer": str(made)})
    return data_set(data)


def data_set(data: Data) -> DataSet:
    """Loads a data set once for all stages."""
    return _load(data.name, **data.options())


@lru_cache(maxsize=2)  # texts before and after the run has a vocabulary
def _load(name: str, **options: Any) -> DataSet:
    return DATASETS[name].load(**options)


def data_digest(data: Data) -> list[Any]:
    """Returns what decides the examples: their content and form, wherever they are."""
    return [data.model_dump(exclude={"path", "partition", "tokenizer"}), data_set(data).digest]


def resolved(config: Config) -> Config:
    """Returns a config that says how many clients and tokens there are, where it left that to the data.

    It warns of samples that the split gives to nobody.

    Raises:
        InputError: There is no such split, or too few clients for a cohort.
    """
    models = [_reading(config.data, model) for model in (config.model, *config.client_models)]
    config = config.model_copy(update={"model": models[0], "client_models": models[1:]})
    split = config.data.partition
    if split.kind not in OWN:
        return config
    train = data_set(config.data).train
    rows, found = subset(train.labels, split.samples), parts(config, config.seeds[0])
    if len(found) < 2:
        raise InputError(
            f"data.partition.kind: {split.kind}, but the data has a single client of its own; use another"
            " kind, or lower min_size"
        )
    spare = len(rows) - sum(map(len, found))
    if spare:
        owners = len({train.keys[row] for row in rows} if train.keys else ())
        log.warning(
            "data.partition.min_size: %d of %d clients have fewer than %d samples and are left out, with %d"
            " samples in all",
            owners - len(found),
            owners,
            split.min_size,
            spare,
        )
    if len(found) > MAX_CLIENTS:
        raise InputError(
            f"data.partition.min_size: {len(found)} clients have so many samples, and label discovery counts"
            f" {MAX_CLIENTS} at most; raise it"
        )
    content = config.model_dump(mode="json")
    content["data"]["partition"]["clients"] = len(found)
    return validate(content)


def _reading(data: Data, model: Model) -> Model:
    """Returns a model whose vocabulary is, unless it is set, that of the data's tokenizer."""
    if "vocabulary" not in model.options().keys() - model.model_fields_set:
        return model
    tokens = data_set(data).vocabulary
    return model.model_copy(update={"vocabulary": tokens}) if tokens else model


def parts(config: Config, seed: int) -> list[Any]:
    """Returns the rows of the training set that are each client's own."""
    data = config.data
    return list(_parts(data.partition, seed, data.name, **data.options()))


@lru_cache(maxsize=8)  # every stage asks, for one seed after the other
def _parts(split: Partition, seed: int, name: str, **options: Any) -> tuple[Any, ...]:
    train = _load(name, **options).train
    rows = subset(train.labels, split.samples)
    found = partition(
        [train.labels[row] for row in rows],
        clients=split.known,
        seed=Key(seed).fold("partition").integer() % 2**32,
        keys=[train.keys[row] for row in rows] if train.keys else None,
        **split.model_dump(exclude={"clients", "test", "samples"}),
    )
    return tuple(rows[part] for part in found)


def train_test_rows(config: Config, seed: int) -> tuple[list[Any], list[Any]]:
    """Returns the rows that each client trains on, and those that it holds back for testing."""
    return hold_back(parts(config, seed), config.data.partition.test, Key(seed).fold("client test"))


def private_data(run: Run, seed: int) -> ClientData:
    """Returns what clients train on for a seed, with classes numbered as discovered."""
    data = data_of(run)
    y = indices(data.train, run.labels)
    augment = run.config.federate.local.augment.of("private")
    kept, _ = train_test_rows(run.config, seed)
    return ClientData(data.train.x, y, kept, len(run.labels), data.prepare, augment)


def held_back_data(run: Run, seed: int) -> tuple[list[int], ClientData] | None:
    """Returns the clients that hold samples back, and these samples; None where nobody does.

    The data of the n-th of these clients has the number n.
    """
    if not run.config.data.partition.test:
        return None
    _, held = train_test_rows(run.config, seed)
    testing = [client for client, rows in enumerate(held) if len(rows)]
    rows, data = [held[client] for client in testing], data_of(run)
    return testing, ClientData(
        data.train.x, indices(data.train, run.labels), rows, len(run.labels), data.prepare
    )


def indices(examples: Examples, labels: Sequence[str]) -> torch.Tensor:
    """Returns the class index of each example, int64."""
    number = {name: index for index, name in enumerate(labels)}  # discovery brings names to NFC
    return torch.tensor([number[unicodedata.normalize("NFC", name)] for name in examples.labels])


def task_of(run: Run) -> Task:
    """Returns the learning task of a run: its downstream model on the discovered classes."""
    return classify(run.config, run.config.model, len(run.labels))


def classify(config: Config, model: Model, classes: int) -> Task:
    """Returns the task of classifying a config's data with one of its models.

    Raises:
        ValueError: The model does not fit the data.
    """
    data, options = data_set(config.data), model.options()
    if data.vocabulary and "vocabulary" not in options:
        raise ValueError("token ids are names, not numbers to compute with; use lstm")
    if data.vocabulary > options.get("vocabulary", 0) and config.data.tokenizer != GENERATED:
        raise ValueError(
            f"its vocabulary has {options['vocabulary']} tokens, and the tokenizer {data.vocabulary}; leave"
            " vocabulary out"
        )
    build = partial(MODELS[model.name].build, data.shape, classes, **options)
    return classification(build, data.shape, config.precision)


def initial_key(seed: int) -> Key:
    """Where a seed's randomly initialised model comes from: the same for every method."""
    return Key(seed).fold("model")
