"""A client of a real federation: its data, and the programs that it builds from the server's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from genfl import config as configs
from genfl.config import Config, Data
from genfl.config.data import Labels
from genfl.config.mistakes import explain
from genfl.data.clients import ClientData
from genfl.data.sources import DATASETS, DataSet, LabelledExamples, as_stored
from genfl.engines.flower.member import GROUP_KEY, run_folder
from genfl.engines.flower.records import RefusedMessage, RefusedUpload
from genfl.engines.flower.wire import Request
from genfl.engines.flower.work import NodeWork
from genfl.engines.protocol import InfoOnly
from genfl.errors import InputError, on_one_line
from genfl.experiment.context import RunContext, class_indices
from genfl.labels.bins import HolderBins
from genfl.labels.discovery import bin_marks, label_table
from genfl.labels.iblt import IBLT
from genfl.live.limits import problem_of
from genfl.live.policy import ClientPolicy
from genfl.privacy.sum_settings import COUNT_NUMBERS, upload_numbers
from genfl.stages.federate.methods import build_algorithm, federation_resources
from genfl.storage import load_tensors, save_tensors

EXAMPLES = "examples.safetensors"
"""The file with the examples of a client of a federation on one machine, in place of a data folder."""


def write_examples(folder: Path, data: DataSet, rows: np.ndarray) -> None:
    """Write one client's share of a data set.

    Args:
        folder: The client's data folder.
        data: The data set.
        rows: The client's rows of the training set.
    """
    labels = [data.train.labels[row] for row in rows]
    about = {
        "labels": labels,
        "modality": data.modality,
        "input_range": data.input_range,
        "plain": data.prepare is as_stored,
    }
    save_tensors(folder / EXAMPLES, {"x": data.train.x[torch.from_numpy(rows)]}, about)


class _SiteContext(RunContext):
    """The context of a client, whose training set is all that the client holds."""

    remote = True

    def __init__(self, path: Path, policy: ClientPolicy) -> None:
        super().__init__()
        self.path = path
        self.policy = policy

    def data_set(self, data: Data) -> DataSet:
        """Return the client's data, in the format of the config.

        Raises:
            RefusedMessage: The client does not allow the format.
        """
        return self.once("client's data", lambda: _read(data, self.path, self.policy))


def _read(data: Data, path: Path, policy: ClientPolicy) -> DataSet:
    file = path / EXAMPLES
    if not file.exists():
        policy.check_tokenizer(data)
        options = data.options()
        if DATASETS[data.name].recipe is None:
            raise InputError(
                f"--data: {data.name} is no folder of data; set data.name in the server's config"
            )
        return DATASETS[data.name].load(**{**options, "path": str(path)})
    tree, about = load_tensors(file)
    train = LabelledExamples(tree["x"], about["labels"])
    if not about["plain"]:  # the format is that of the data set
        return DATASETS[data.name].load(**data.options())._replace(train=train)
    nothing = LabelledExamples(tree["x"][:0], ())
    limits = about["input_range"]
    known = None if limits is None else (tuple(limits[0]), tuple(limits[1]))
    return DataSet(train, nothing, about["modality"], _no_encoder, input_range=known)


def _no_encoder(content: Any) -> torch.Tensor:
    raise ValueError("a client of a federation encodes no generated samples")


@dataclasses.dataclass(frozen=True)
class DataSite:
    """A client with data on its own disk; see `genfl.engines.flower.node.Site`.

    Attributes:
        folder: Where its memories are kept.
        data: The folder of its data.
        policy: What it allows.
    """

    folder: Path
    data: Path
    policy: ClientPolicy

    @cached_property
    def _context(self) -> _SiteContext:
        return _SiteContext(self.data, self.policy)

    def work(self, request: Request) -> NodeWork:
        """Return what the node needs to answer a request.

        Raises:
            RefusedMessage: The client does not allow it, was told to forget the federation, or the server's
                config cannot be used here.
        """
        run_folder(self.folder, request.run)  # refused if it was forgotten, also where nothing is kept
        config = _config(request.settings)
        self.policy.check(config, request.settings.get("method"), request.round)
        if config.federate.secure and request.delivery is None:  # before the data is looked at
            raise RefusedMessage("federate.secure: the server asks for an upload in the clear")
        if request.action in ("labels", "bins"):
            return self._in_sum(self._naming(request, config), config, request.action)
        if request.action not in ("census", "train"):
            raise RefusedMessage(f"action: {request.action} is not for clients on other machines yet")
        return self._training(request, config)

    def _naming(self, request: Request, config: Config) -> NodeWork:
        """Return the work of label discovery: a table of label names, or the marks of their bins."""
        bins = None
        if config.labels.min_holders > 1 or request.action == "bins":
            bins = self._bins(request, config.labels)
        table = None if request.action == "bins" else _table(request.settings)
        names = sorted(set(self._context.data_set(config.data).train.labels))
        if table is None:
            assert bins is not None
            return NodeWork(bin_marks(bins), InfoOnly([{"label_names": names}]), 0)
        if bins is not None:
            enough = request.message.get("enough")
            if not isinstance(enough, torch.Tensor) or enough.shape != (bins.rows, bins.bins):
                raise RefusedMessage(
                    "labels.min_holders: the server does not say which bins enough clients have"
                )
            names = bins.shared(names, enough.numpy().astype(bool))
        return NodeWork(label_table(table), InfoOnly([{"label_names": names}]), 0)

    def _bins(self, request: Request, labels: Labels) -> HolderBins:
        file = run_folder(self.folder, request.run) / GROUP_KEY
        if not file.exists():
            raise RefusedMessage("labels.min_holders: the clients have not agreed on a key")
        return HolderBins(labels.bins, file.read_bytes())

    def _training(self, request: Request, config: Config) -> NodeWork:
        method = config.methods.get(str(request.settings.get("method")))
        labels = request.settings.get("labels")
        if (
            method is None
            or not isinstance(labels, list)
            or not all(isinstance(name, str) for name in labels)
        ):
            raise RefusedMessage("settings: no method of the config, or no list of labels")
        data = self._context.data_set(config.data)
        y = class_indices(data.train, labels)
        rows = np.flatnonzero(y.numpy() >= 0)
        if not len(rows):
            raise RefusedUpload("data: the client holds no example of the discovered labels")
        augment = config.federate.local.augment.of("private")
        clients = ClientData(data.train.x, y, [rows], len(labels), data.prepare, augment)
        task = self._context.classify(config.data, config.model, len(labels), config.precision)
        resources = federation_resources(config.federate, {})
        algorithm = build_algorithm(config.federate, method, task, resources)
        program = algorithm.census if request.action == "census" else algorithm.client
        work = NodeWork(program, clients, 0, config.federate.fast)
        return self._in_sum(work, config, request.action)

    def _in_sum(self, work: NodeWork, config: Config, action: str) -> NodeWork:
        """Return the work with what the config says of secure sums."""
        secure = config.federate.secure
        if secure is None:
            return work
        numbers = upload_numbers(secure) if action == "train" else COUNT_NUMBERS
        return work._replace(range=numbers, check_sum=partial(self.policy.check_sum, config))


def _config(settings: Mapping[str, Any]) -> Config:
    try:
        config = configs.parse(str(settings.get("config")))
    except InputError as error:
        raise RefusedMessage(f"config: {on_one_line(error, 200)}") from None
    if problem := problem_of(config):
        raise RefusedMessage(problem)
    return config


def _table(settings: Mapping[str, Any]) -> IBLT:
    match settings.get("table"):
        case [int(cells), int(hashes), int(max_bytes), int(seed)]:
            try:
                Labels(cells=cells, hashes=hashes, max_bytes=max_bytes)  # the ranges bound the memory
                return IBLT(cells, hashes, max_bytes, seed=seed)
            except ValidationError as error:
                raise RefusedMessage(f"table: {on_one_line(explain(error), 200)}") from None
            except ValueError as error:
                raise RefusedMessage(f"table: {on_one_line(error)}") from None
    raise RefusedMessage("table: four numbers are expected")
