"""The run context of a server whose private data is at its clients."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.serverapp import Grid

from genfl import config as configs
from genfl.algorithms.base import ClientInfo
from genfl.config import Config, Data
from genfl.config.data import Labels
from genfl.config.training import Federation
from genfl.data.clients import ClientData
from genfl.data.sources import DataSet
from genfl.engines.flower.secure import SumRules
from genfl.engines.flower.server import RETRY_AFTER, FlowerEngine, RemoteClients, RunName
from genfl.engines.protocol import DataView, ReducerFactory
from genfl.engines.reducers import PlainReducer
from genfl.errors import GenflError, InputError
from genfl.experiment.context import RunContext
from genfl.labels.discovery import Discovery, discover
from genfl.learning.augment import Augment
from genfl.live.limits import problem_of
from genfl.privacy.secure_sum import NodeVerifier
from genfl.privacy.sum_settings import upload_numbers
from genfl.rng import Key
from genfl.storage import digest
from genfl.trees import Tree

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""The file with the name of a federation, beside the server's checkpoint."""

ONLINE = 600.0
"""Seconds that the server waits for its clients to come online at the start."""


class RemoteContext(RunContext):
    """The context of a server: test set and input format are here, and the training data is at the clients.

    Args:
        grid: Flower's Grid.
        nodes: The node of each client, by its number.
        folder: The server's folder.
        keys: The public keys of the clients' nodes, by number; without them there are no secure sums.
        patience: Seconds before clients are asked again; see `RemoteClients`.
    """

    remote = True

    def __init__(
        self,
        grid: Grid,
        nodes: Sequence[int],
        folder: Path,
        keys: Sequence[EllipticCurvePublicKey] = (),
        patience: float = RETRY_AFTER,
    ) -> None:
        super().__init__()
        self.verifiers = {number: NodeVerifier(key) for number, key in enumerate(keys)}
        self.grid = grid
        self.nodes = list(nodes)
        self.folder = folder
        self.patience = patience
        self._config: Config | None = None
        self._labels: list[str] = []

    @property
    def config(self) -> Config:
        """The config that `resolve` has checked."""
        assert self._config is not None, "the config is resolved before anything else"
        return self._config

    @property
    def _sums(self) -> SumRules | None:
        """How clients add their uploads up; None if they send them in the clear."""
        secure = self.config.federate.secure
        if secure is None:
            return None
        return SumRules(self.verifiers, upload_numbers(secure), secure.threshold)

    @property
    def _sent_config(self) -> str:
        return configs.dump(self.config, without=("track",))

    def wait_for_clients(self, seconds: float = ONLINE) -> None:
        """Wait until all clients are online.

        Raises:
            GenflError: Some are not, after so many seconds.
        """
        end = time.monotonic() + seconds
        missing = set(self.nodes)
        while missing := set(self.nodes) - set(self.grid.get_node_ids()):
            if time.monotonic() > end:
                clients = sorted(self.nodes.index(node) for node in missing)
                raise GenflError(
                    f"clients {clients[:10]} are not online after {seconds:g} s; start them, and run the same"
                    " command again"
                )
            time.sleep(0.5)
        log.info("all %d clients are online", len(self.nodes))

    def resolve(self, config: Config) -> Config:
        """Return the config after checks of what real machines can run.

        Raises:
            InputError: They cannot run it, or it has another number of clients.
        """
        if problem := problem_of(config):
            raise InputError(problem)
        clients = config.data.partition.clients
        if clients != len(self.nodes):
            raise InputError(
                f"data.partition.clients: {clients}, but {len(self.nodes)} clients are registered; set it to"
                " their number"
            )
        self._config = config
        return config

    def data_set(self, data: Data) -> DataSet:
        """Return the server's data set: its test set and its format. It has no training examples."""
        whole = super().data_set(data)
        return whole._replace(train=whole.train._replace(x=whole.train.x[:0], labels=()))

    def content_digest(self, data: Data) -> str:
        """Return a digest of what the server knows: its test set, its clients, and how many hold each label.

        The clients are asked for their label names once in each process. If these have changed, nothing that
        was trained on the old ones is up to date.
        """
        return self.once(("remote", data.model_dump_json()), lambda: self._digest(data))

    def _digest(self, data: Data) -> str:
        holders = self.discover_labels(data, self.config.labels, self.config.seeds[0]).holders
        return digest([self.test_digest(data), self.nodes, holders])

    def discover_labels(self, data: Data, options: Labels, seed: int) -> Discovery:
        """Return the result of label discovery, for which each client sends its table."""
        name = ("discovery", options.model_dump_json(), seed)
        return self.once(name, lambda: self._discover(options, seed))

    def _discover(self, options: Labels, seed: int) -> Discovery:
        attempts, key = itertools.count(0 if options.min_holders > 1 else 1), Key(seed).fold("labels")
        run = RunName(self.folder / "labels" / RUN_FILE)
        run.begin()

        info: ClientInfo = {"label_names": []}
        clients = RemoteClients(
            self.grid,
            self.nodes,
            run,
            info,
            deadline=self.config.federate.deadline,
            patience=self.patience,
            sums=self._sums,
        )

        def engine(known: DataView, stream: Key) -> FlowerEngine:
            attempt = next(attempts)
            if not attempt:
                bins = FlowerEngine(clients, "bins", settings={"config": self._sent_config})
                bins.agree_on_key()
                return bins
            cells = options.cells * 2 ** (attempt - 1)
            hashed = key.fold("hashes", attempt).integer()
            table = [cells, options.hashes, options.max_bytes, hashed]
            return FlowerEngine(clients, "labels", settings={"config": self._sent_config, "table": table})

        return discover([()] * len(self.nodes), engine, key, **options.model_dump(exclude={"count_epsilon"}))

    def discovered(self, config: Config) -> list[str]:
        """Return the label names that the clients hold."""
        self._labels = list(self.discover_labels(config.data, config.labels, config.seeds[0]).holders)
        return self._labels

    def flower_engine(
        self,
        federation: Federation,
        clients: ClientData,
        folder: Path,
        initial: Tree,
        settings: dict[str, Any],
        reducer: ReducerFactory = PlainReducer,
    ) -> FlowerEngine:
        """Return the engine over Flower of a trial; see `RunContext.flower_engine`."""
        info = {"samples": torch.zeros(()), "label_counts": torch.zeros(len(self._labels))}
        remote = RemoteClients(
            self.grid,
            self.nodes,
            RunName(folder / RUN_FILE),
            info,
            federation.quorum,
            federation.deadline,
            federation.checkpoint_every,
            patience=self.patience,
            sums=self._sums,
        )
        all_settings = {**settings, "config": self._sent_config, "labels": self._labels}
        return FlowerEngine(remote, "train", initial, all_settings, reducer)

    def private_data(
        self,
        data: Data,
        labels: Sequence[str],
        seed: int,
        augment: Augment | None = None,
        most: int | None = None,
    ) -> ClientData:
        """Return clients whose data cannot be read here."""
        return cast(ClientData, _Elsewhere(len(self.nodes)))

    def held_back_data(
        self, data: Data, labels: Sequence[str], seed: int
    ) -> tuple[list[int], ClientData] | None:
        """Return None: clients hold no samples back."""
        return None

    def client_rows(self, data: Data, seed: int) -> NoReturn:
        """Refuse: the training data is at the clients."""
        raise InputError("data: the training data is at the clients, and this needs it here")

    def train_test_rows(self, data: Data, seed: int) -> NoReturn:
        """Refuse: the training data is at the clients."""
        self.client_rows(data, seed)

    def label_counts(self, data: Data, labels: Sequence[str], seed: int) -> np.ndarray:
        """Refuse: the training data is at the clients."""
        self.client_rows(data, seed)


class _Elsewhere:
    """Clients of which the server knows the number alone."""

    def __init__(self, clients: int) -> None:
        self._clients = clients

    def __len__(self) -> int:
        return self._clients

    def count(self, name: str) -> int:
        """Return 0: clients hold no generated samples."""
        return 0
