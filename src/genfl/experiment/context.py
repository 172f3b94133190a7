"""The run context: data sets, splits and tasks that stages read besides their inputs. Each is made once."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from genfl.config import Config, Data, Model, Public, validate
from genfl.config.data import Labels
from genfl.config.training import Federation
from genfl.data.clients import ClientData
from genfl.data.partition import OWN, hold_back, partition, subset
from genfl.data.public import PublicData, public_data
from genfl.data.sources import DATASETS, DataSet, LabelledExamples, read_dataset
from genfl.data.texts import GENERATED_TOKENIZER
from genfl.engines.in_process import sequential
from genfl.engines.protocol import DataView, Engine, ReducerFactory
from genfl.engines.reducers import PlainReducer, secure_reducers
from genfl.errors import InputError
from genfl.labels.discovery import Discovery, discover
from genfl.labels.iblt import MAX_CLIENTS
from genfl.learning.augment import Augment
from genfl.learning.task import Precision, Task, classification
from genfl.models import MODELS
from genfl.privacy.sum_settings import upload_numbers
from genfl.rng import Key
from genfl.storage import digest, sha256
from genfl.trees import Tree

if TYPE_CHECKING:
    from genfl.engines.flower.server import FlowerEngine

log = logging.getLogger(__name__)

MOST_DATA_SETS = 2
"""The largest number of data sets in a context. Texts are read before and after a run has a vocabulary.

The same number of public data sets is held beside them."""

MOST_VALUES = 64
"""The largest number of other values in a context, such as splits. A sweep may have many of them."""

_T = TypeVar("_T")


class RunContext:
    """Data sets, splits, tasks and checksums of a run, or of a sweep's runs. Each is made once.

    Nothing outlives the context. The next run reads everything again, so it sees changes.
    """

    remote = False
    """Whether the private data is on other machines."""

    def __init__(self) -> None:
        self._data_sets: OrderedDict[str, DataSet] = OrderedDict()
        self._public: OrderedDict[str, PublicData] = OrderedDict()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def once(self, name: Hashable, make: Callable[[], _T]) -> _T:
        """Return the cached value of a name.

        Args:
            name: The name.
            make: Returns the value. It is called on first use, and again if many other names were used since.
        """
        if name not in self._values:
            self._values[name] = make()
            if len(self._values) > MOST_VALUES:
                self._values.popitem(last=False)
        self._values.move_to_end(name)
        value: _T = self._values[name]
        return value

    def data_set(self, data: Data) -> DataSet:
        """Return a data set.

        Args:
            data: The section of the config that names it. Its split is ignored.
        """
        name = _name_of(data)
        if name not in self._data_sets:
            if len(self._data_sets) >= MOST_DATA_SETS:
                self._data_sets.popitem(last=False)
            self._data_sets[name] = DATASETS[data.name].load(**data.options())
        self._data_sets.move_to_end(name)
        return self._data_sets[name]

    def content_digest(self, data: Data) -> str:
        """Return the digest of a data set's content. It does not depend on the path."""
        return self.once(("content", _name_of(data)), lambda: self.data_set(data).digest)

    def test_digest(self, data: Data) -> str:
        """Return the digest of the test examples: their labels, and their inputs in the config's format."""
        return self.once(("test", _name_of(data)), lambda: _digest_of(self.data_set(data).test))

    def data_notes(self, data: Data) -> tuple[str, ...]:
        """Return what a user should know of the reading of a data set; see `DataSet.notes`."""
        return self.once(("notes", _name_of(data)), lambda: self.data_set(data).notes)

    def public(self, public: Public, data: Data, *, distinct: bool) -> PublicData:
        """Return the public data, in the format of the private data.

        Args:
            public: The section of the config that names it.
            data: The private data.
            distinct: Whether near-duplicates of private test examples are left out.

        Raises:
            InputError: It cannot be read, or it is the private data itself.
        """
        name = digest([*_beside_public(data), public.model_dump(), distinct])
        if name not in self._public:
            if len(self._public) >= MOST_DATA_SETS:
                self._public.popitem(last=False)
            self._public[name] = self._read_public(public, data, distinct)
        self._public.move_to_end(name)
        return self._public[name]

    def _read_public(self, public: Public, data: Data, distinct: bool) -> PublicData:
        private = self.data_set(data)
        read = partial(
            public_data,
            private,
            samples=public.samples,
            labelled=public.labelled,
            tested=data.partition.test > 0,
            distinct=distinct,
        )
        if public.is_rest:
            return read(None, held=data.partition.samples)
        if public.path and data.path and Path(public.path).resolve() == Path(data.path).resolve():
            raise InputError(
                f"public.path: {public.path} is the private data; name other data, or leave path out and set"
                " data.partition.samples"
            )
        try:
            examples = _load_public(public, data)
        except InputError as error:
            raise InputError(re.sub(r"^data\.", "public.", str(error))) from error
        if examples.digest and examples.digest == private.digest:
            raise InputError(
                f"public.path: {public.path} is a copy of the private data; name other data, or leave path"
                " out and set data.partition.samples"
            )
        chosen = read(examples, held=None)
        return chosen._replace(notes=(*(f"public data: {note}" for note in examples.notes), *chosen.notes))

    def public_digest(self, public: Public, data: Data, *, distinct: bool) -> str:
        """Return the digest of the public data's content. It does not depend on the path."""
        name = ("public", *_beside_public(data), public.model_dump_json(), distinct)
        return self.once(name, lambda: self.public(public, data, distinct=distinct).digest)

    def public_notes(self, config: Config) -> tuple[str, ...]:
        """Return what a user should know of the public data; nothing if there is none."""
        if config.public is None:
            return ()
        public = self.public(config.public, config.data, distinct=config.audit.drops)
        others = public.unmatched(self.discovered(config))
        return (*public.notes, *([others] if others else []))

    def file_digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's content."""
        return self.once(("file", str(path)), lambda: sha256(path))

    def client_rows(self, data: Data, seed: int) -> Sequence[np.ndarray]:
        """Return each client's rows of the training set.

        Args:
            data: The data and its split.
            seed: The seed of the split.
        """
        name = ("rows", _name_of(data), data.partition.model_dump_json(), seed)
        return self.once(name, lambda: self._client_rows(data, seed))

    def _client_rows(self, data: Data, seed: int) -> list[np.ndarray]:
        train, split = self.data_set(data).train, data.partition
        rows = subset(train.labels, split.samples)
        parts = partition(
            [train.labels[row] for row in rows],
            clients=split.known,
            seed=Key(seed).fold("partition").integer() % 2**32,
            client_ids=[train.client_ids[row] for row in rows] if train.client_ids else None,
            min_size=data.least_in_train,
            **split.model_dump(exclude={"clients", "test", "samples", "min_size"}),
        )
        return [rows[part] for part in parts]

    def discover_labels(self, data: Data, options: Labels, seed: int) -> Discovery:
        """Return the result of label discovery, with a simulated secure sum.

        Args:
            data: The data and its split.
            options: The settings of the table.
            seed: The seed of the split.
        """
        train = self.data_set(data).train
        label_sets = [sorted({train.labels[row] for row in rows}) for rows in self.client_rows(data, seed)]

        def engine(known: DataView, key: Key) -> Engine:
            return sequential(known, secure_reducers(key))

        settings = options.model_dump(exclude={"count_epsilon"})
        return discover(label_sets, engine, Key(seed).fold("labels"), **settings)

    def flower_engine(
        self,
        federation: Federation,
        clients: ClientData,
        folder: Path,
        initial: Tree,
        settings: dict[str, Any],
        reducer: ReducerFactory = PlainReducer,
    ) -> FlowerEngine:
        """Return the engine over Flower of a trial. Here, its clients are in this process.

        Args:
            federation: The section of the config.
            clients: The clients' data.
            folder: Where the clients keep their memories.
            initial: The memory of a client that never took part.
            settings: What clients on other machines must know of the trial.
            reducer: Makes what adds up the uploads of a round.
        """
        from genfl.engines.flower.in_process import InProcessFlower

        return InProcessFlower(
            clients,
            len(clients),
            folder,
            initial,
            quorum=federation.quorum,
            deadline=federation.deadline,
            checkpoint_every=federation.checkpoint_every,
            reducer=reducer,
            secure=((upload_numbers(secure), secure.threshold) if (secure := federation.secure) else None),
        )

    def discovered(self, config: Config) -> list[str]:
        """Return the label names that discovery finds, in NFC, sorted: those that enough clients hold."""
        data, least, seed = config.data, config.labels.min_holders, config.seeds[0]
        name = ("discovered", _name_of(data), data.partition.model_dump_json(), least, seed)
        return self.once(name, lambda: self._discovered(data, least, seed))

    def _discovered(self, data: Data, least: int, seed: int) -> list[str]:
        labels, holders = self.data_set(data).train.labels, Counter[str]()
        for rows in self.client_rows(data, seed):
            holders.update({unicodedata.normalize("NFC", name) for name in {labels[row] for row in rows}})
        return sorted(name for name, count in holders.items() if count >= least)

    def train_test_rows(self, data: Data, seed: int) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """Return each client's rows for training, and its held-back rows for testing.

        Raises:
            InputError: A client would have no row left to train on, or no client holds a row back.
        """
        name = ("train and test", _name_of(data), data.partition.model_dump_json(), seed)
        share, key = data.partition.test, Key(seed).fold("client test")
        groups = self.data_set(data).train.groups
        return self.once(name, lambda: hold_back(list(self.client_rows(data, seed)), share, key, groups))

    def private_data(
        self,
        data: Data,
        labels: Sequence[str],
        seed: int,
        augment: Augment | None = None,
        most: int | None = None,
    ) -> ClientData:
        """Return the clients' private training data. Class indices are positions in the discovered labels.

        Examples of other names are left out.

        Args:
            data: The data and its split.
            labels: The discovered label names.
            seed: The seed of the split.
            augment: Random changes of the inputs, in batches.
            most: The most examples of a client, drawn at random; None for all.

        Raises:
            InputError: A client has no example of a discovered name.
        """
        examples = self.data_set(data)
        y = class_indices(examples.train, labels)
        rows = _discovered(self.train_test_rows(data, seed)[0], y)
        if most is not None:
            drawn = Key(seed).fold("some examples")
            rows = [
                np.sort(drawn.fold(n).numpy().permutation(own)[:most]) if len(own) > most else own
                for n, own in enumerate(rows)
            ]
        return ClientData(examples.train.x, y, rows, len(labels), examples.prepare, augment)

    def held_back_data(
        self, data: Data, labels: Sequence[str], seed: int
    ) -> tuple[list[int], ClientData] | None:
        """Return the clients that hold samples back, and these samples. None if no client does.

        In the returned data, the n-th of these clients has the number n.
        """
        if not data.partition.test:
            return None
        examples = self.data_set(data)
        y = class_indices(examples.train, labels)
        rows = _discovered(self.train_test_rows(data, seed)[1], y)
        testing = [client for client, held_back in enumerate(rows) if len(held_back)]
        return testing, ClientData(
            examples.train.x, y, [rows[client] for client in testing], len(labels), examples.prepare
        )

    def label_counts(self, data: Data, labels: Sequence[str], seed: int) -> np.ndarray:
        """Return each client's number of training samples of each class, [clients, classes]."""
        y = class_indices(self.data_set(data).train, labels)
        rows = _discovered(self.train_test_rows(data, seed)[0], y)
        return np.stack([np.bincount(y.numpy()[own], minlength=len(labels)) for own in rows])

    def test_rows(self, data: Data, labels: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows and the class indices of the test examples of discovered names, both int64 [n]."""
        y = class_indices(self.data_set(data).test, labels)
        rows = torch.nonzero(y >= 0)[:, 0]
        return rows, y[rows]

    def classify(self, data: Data, model: Model, classes: int, precision: Precision) -> Task:
        """Return the task of classifying a data set with a model.

        Raises:
            ValueError: The model does not fit the data.
        """
        examples, options = self.data_set(data), model.options()
        if examples.vocabulary and "vocabulary" not in options:
            raise ValueError("the inputs are token ids, which the model cannot embed; use lstm")
        if examples.vocabulary > options.get("vocabulary", 0) and data.tokenizer != GENERATED_TOKENIZER:
            raise ValueError(
                f"its vocabulary has {options['vocabulary']} tokens, but the tokenizer has"
                f" {examples.vocabulary}; leave vocabulary out"
            )
        build = partial(MODELS[model.name].build, examples.shape, classes, **options)
        return classification(build, examples.shape, precision, examples.input_range)

    def resolve(self, config: Config) -> Config:
        """Return the config with the numbers of clients and tokens that it leaves to the data.

        A warning says how many samples the split leaves out.

        Raises:
            InputError: There is no such split, or there are too few clients for a cohort.
        """
        models = [self.sized_model(config.data, model) for model in (config.model, *config.client_models)]
        config = config.model_copy(update={"model": models[0], "client_models": models[1:]})
        split = config.data.partition
        if split.kind not in OWN:
            return config
        train = self.data_set(config.data).train
        rows, parts = subset(train.labels, split.samples), self.client_rows(config.data, config.seeds[0])
        if len(parts) < 2:
            raise InputError(
                f"data.partition.kind: {split.kind}, but the data names a single client; use another kind, or"
                " lower min_size"
            )
        spare = len(rows) - sum(map(len, parts))
        owners = len({train.client_ids[row] for row in rows} if train.client_ids else ())
        if split.kind == "natural" and split.known is not None:
            for seed in config.seeds[1:]:  # each draws others, who must hold all labels
                self.client_rows(config.data, seed)
            log.info("data.partition.clients: %d of %d clients are drawn for each seed", len(parts), owners)
        elif spare:
            log.warning(
                "data.partition.min_size: %d of %d clients have fewer than %d samples and are left out, with"
                " %d samples in total",
                owners - len(parts),
                owners,
                split.min_size,
                spare,
            )
        if len(parts) > MAX_CLIENTS:
            raise InputError(
                f"data.partition.min_size: {len(parts)} clients have enough samples, but label discovery"
                f" supports at most {MAX_CLIENTS}; raise it"
            )
        content = config.model_dump(mode="json")
        content["data"]["partition"]["clients"] = len(parts)
        return validate(content)

    def sized_model(self, data: Data, model: Model) -> Model:
        """Return the model. If its vocabulary is not set, it is that of the data's tokenizer."""
        if "vocabulary" not in model.options().keys() - model.model_fields_set:
            return model
        tokens = self.data_set(data).vocabulary
        return model.model_copy(update={"vocabulary": tokens}) if tokens else model


def _name_of(data: Data) -> str:
    """Return a text that is equal for sections with the same data set and input format."""
    return digest([data.name, {name: str(value) for name, value in data.options().items()}])


def _digest_of(examples: LabelledExamples) -> str:
    """Return the digest of inputs and labels."""
    stored = examples.x.contiguous().reshape(-1).view(torch.uint8).numpy()
    inputs = hashlib.sha256(stored.data).hexdigest()
    return digest([inputs, str(examples.x.dtype), list(examples.x.shape), list(examples.labels)])


def _beside_public(data: Data) -> tuple[Any, ...]:
    """Return what decides which public data is used, besides its own section."""
    return _name_of(data), data.partition.samples, data.partition.test > 0


def _load_public(public: Public, data: Data) -> DataSet:
    """Return a public data set, read in the private data's format."""
    entry, private = DATASETS[public.name or data.name], DATASETS[data.name]
    if entry.recipe is None or private.recipe is None:
        return entry.load()
    recipe = entry.recipe._replace(format=private.recipe.format)
    return read_dataset(public.name or data.name, recipe, **public.options(data))


def class_indices(examples: LabelledExamples, labels: Sequence[str]) -> torch.Tensor:
    """Return the class index of each example, int64; -1 for a name that was not discovered."""
    number = {name: index for index, name in enumerate(labels)}  # discovered names are in NFC
    return torch.tensor([number.get(unicodedata.normalize("NFC", name), -1) for name in examples.labels])


def _discovered(rows: Sequence[np.ndarray], y: torch.Tensor) -> list[np.ndarray]:
    """Return those of each client's rows whose class was discovered."""
    known = y.numpy() >= 0
    return list(rows) if known.all() else [own[known[own]] for own in rows]


def initial_key(seed: int) -> Key:
    """Return the random stream of a seed's initial weights. It is the same for every method."""
    return Key(seed).fold("model")
