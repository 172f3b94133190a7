"""A run of the pipeline: its config, its folder, and what every stage asks of them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genfl.config import Config, Data, Model
from genfl.data.clients import ClientData
from genfl.data.partition import partition, subset
from genfl.data.sources import DATASETS, DataSet, Examples
from genfl.learning.task import Task, classification
from genfl.models import MODELS
from genfl.rng import Key
from genfl.storage import read_json


@dataclass(frozen=True)
class Run:
    """A run of the pipeline: its resolved config and its folder."""

    config: Config
    folder: Path

    def record(self, stage: str) -> Path:
        """The file that says what a finished stage gave."""
        return self.folder / "stages" / f"{stage}.json"

    def key(self, stage: str) -> str:
        """Returns the digest of all that a finished stage's output depends on."""
        key: str = read_json(self.record(stage))["key"]
        return key

    def result(self, stage: str) -> dict[str, Any]:
        """Returns what a finished stage gave."""
        result: dict[str, Any] = read_json(self.record(stage))["result"]
        return result

    @property
    def labels(self) -> list[str]:
        """The discovered label names; a class's index is its place in this list."""
        found: list[str] = self.result("labels")["found"]
        return found


def data_set(data: Data) -> DataSet:
    """Loads a data set once for all stages."""
    return _load(data.name, **data.options())


@lru_cache(maxsize=2)
def _load(name: str, **options: Any) -> DataSet:
    return DATASETS[name].load(**options)


def data_key(data: Data) -> list[Any]:
    """Returns what decides the examples: their content and form, wherever they are."""
    return [data.model_dump(exclude={"path", "partition"}), data_set(data).digest]


def parts(config: Config, seed: int) -> list[Any]:
    """Returns the rows of the training set that are each client's own."""
    split, train = config.data.partition, data_set(config.data).train
    rows = subset(train.labels, split.samples)
    found = partition(
        [train.labels[row] for row in rows],
        split.kind,
        split.clients,
        alpha=split.alpha,
        min_size=split.min_size,
        seed=Key(seed).fold("partition").integer() % 2**32,
        keys=[train.keys[row] for row in rows] if train.keys else None,
    )
    return [rows[part] for part in found]


def private_data(run: Run, seed: int) -> ClientData:
    """Returns the clients' data for a seed, with classes numbered as discovered."""
    data = data_set(run.config.data)
    y = indices(data.train, run.labels)
    return ClientData(data.train.x, y, parts(run.config, seed), len(run.labels), data.prepare)


def generated_data(run: Run, seed: int, synthetic: tuple[torch.Tensor, torch.Tensor]) -> ClientData:
    """Returns clients that hold an equal share of the synthetic inputs and labels each, and nothing else."""
    x, y = synthetic
    order = Key(seed).fold("mixed").numpy().permutation(len(x))
    shares = np.array_split(order, run.config.data.partition.clients)
    return ClientData(x, y, shares, len(run.labels), data_set(run.config.data).prepare)


def mixed_data(run: Run, seed: int, synthetic: tuple[torch.Tensor, torch.Tensor]) -> ClientData:
    """Returns clients that hold their private data and what `generated_data` gives them."""
    return private_data(run, seed).beside(generated_data(run, seed, synthetic))


def indices(examples: Examples, labels: list[str]) -> torch.Tensor:
    """Returns the class index of each example, int64."""
    number = {name: index for index, name in enumerate(labels)}  # discovery brings names to NFC
    return torch.tensor([number[unicodedata.normalize("NFC", name)] for name in examples.labels])


def task_of(run: Run) -> Task:
    """Returns the learning task of a run: its downstream model on the discovered classes."""
    return classify(run.config, run.config.model, len(run.labels))


def prepared(task: Task, data: DataSet) -> Task:
    """Returns a task that evaluates on inputs as the data set stores them."""
    return task._replace(forward=lambda weights, x: task.forward(weights, data.prepare(x)))


def classify(config: Config, model: Model, classes: int) -> Task:
    """Returns the task of classifying a config's data with one of its models."""
    shape = data_set(config.data).shape
    build = partial(MODELS[model.name].build, shape, classes, **model.options())
    return classification(build, shape, config.precision)


def initial_key(seed: int) -> Key:
    """Where a seed's randomly initialised model comes from: the same for every method."""
    return Key(seed).fold("model")
