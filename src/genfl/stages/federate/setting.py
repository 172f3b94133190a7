"""The setting of a run's trials: task, data, scores, and measures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.analysis import diversity, heterogeneity
from genfl.analysis.extractors import Extract, build_extractor
from genfl.config import Content, Method, Model
from genfl.config.methods import AuxiliarySource
from genfl.data.clients import ClientData
from genfl.data.public import PublicData
from genfl.data.sources import DataSet
from genfl.engines.evaluation import ClientScores, evaluate_clients
from genfl.engines.in_process import sequential
from genfl.experiment.context import initial_key
from genfl.learning.evaluate import Scores, evaluate
from genfl.learning.task import Task, Weights
from genfl.privacy.ledger import measures_rounds
from genfl.rng import Key
from genfl.simulation import Measure
from genfl.stages.audit import read_generated
from genfl.stages.base import StageRun
from genfl.stages.federate.inputs import FederateInputs
from genfl.stages.federate.methods import federation_resources
from genfl.stages.guided import content_folder, kind_digest, read_guided
from genfl.stages.pretrain import read_weights
from genfl.stages.vocabulary import readable

MOST_TESTED = 1000
"""The largest number of test examples for local models."""

MOST_TIMED = 200
"""The largest number of test examples of which the predictions are timed."""

MOST_COMPARED = 100
"""The largest number of clients that are compared pair by pair. More would not fit on a page."""


class Setting:
    """The setting that all trials of a run share.

    Args:
        inputs: The stage's inputs.
        work: The stage run.
    """

    def __init__(self, inputs: FederateInputs, work: StageRun) -> None:
        self.inputs = inputs
        self.work = work
        self.context = work.context
        self.labels = work.upstream.labels
        self.section = readable(inputs.data.section, work.upstream)
        self.data: DataSet = self.context.data_set(self.section)
        self.device = torch.device(inputs.model.device)
        self.task = self._classify(inputs.model.model)
        self.test_rows, self.test_y = self.context.test_rows(self.section, self.labels)
        self._scored = self.task.of_stored(self.data.prepare)
        self._private: tuple[int, ClientData] | None = None
        self._guided: dict[Path, tuple[Tensor, Tensor, list[np.ndarray]]] = {}
        self.generator_predicted: tuple[int, float] | None = None  # its parameters, seconds per 1,000
        self._similarities: dict[
            tuple[bool, Content | None, AuxiliarySource, int], dict[str, Any] | None
        ] = {}

    def _classify(self, model: Model) -> Task:
        return self.context.classify(self.section, model, len(self.labels), self.inputs.model.precision)

    def inference_cost(self) -> dict[str, Any]:
        """Return the cost of predictions: of the downstream model, and of the generator if it predicted."""
        weights = self.task.init(initial_key(self.inputs.seeds[0]))
        x, y = self._test_x[:MOST_TIMED], self.test_y[:MOST_TIMED]
        on_device = trees.to(weights, self.device)
        evaluate(self._scored, on_device, x, y)  # the first batch of a process is slow
        began = time.perf_counter()
        evaluate(self._scored, on_device, x, y)
        seconds = time.perf_counter() - began
        return {
            "parameters": sum(p.numel() for p in trees.leaves(weights["params"])) + self._frozen,
            "seconds_per_1000": round(1000 * seconds / len(x), 4),
            "generator_parameters": self.generator_predicted[0] if self.generator_predicted else None,
            "generator_seconds_per_1000": self.generator_predicted[1] if self.generator_predicted else None,
        }

    @property
    def _frozen(self) -> int:
        return sum(parameter.numel() for parameter in self.task.frozen.values())

    @cached_property
    def _test_x(self) -> Tensor:
        """The test inputs of discovered labels, [n, ...]; without a copy if these are all."""
        x = self.data.test.x
        return x if len(self.test_rows) == len(x) else x[self.test_rows]

    def score(self, weights: Weights) -> Scores:
        """Return the scores of a model on the test set."""
        return evaluate(self._scored, trees.to(weights, self.device), self._test_x, self.test_y)

    @cached_property
    def synthetic(self) -> tuple[Tensor, Tensor]:
        """The synthetic inputs [m, ...] and their class indices [m]. They are read when first needed."""
        return read_generated(self.work.upstream, self.data)

    @cached_property
    def _public(self) -> PublicData:
        assert self.inputs.public is not None
        return self.inputs.public.read(self.context, self.section)

    @cached_property
    def _matched(self) -> tuple[Tensor, Tensor]:
        return self._public.matched(self.labels)

    def labelled(self, source: AuxiliarySource) -> tuple[Tensor, Tensor]:
        """Return the inputs [m, ...] and class indices [m] of the synthetic or the public data."""
        return self._matched if source == "public" else self.synthetic

    @cached_property
    def _unlabelled_generated(self) -> Tensor:
        return self.data.prepare(self.synthetic[0])

    @cached_property
    def _unlabelled_public(self) -> Tensor:
        return self._public.unlabelled(self.data)

    def unlabelled(self, source: AuxiliarySource) -> Tensor:
        """Return the inputs of the synthetic or the public data, prepared for models, [m, ...]."""
        return self._unlabelled_public if source == "public" else self._unlabelled_generated

    def guided(self, content: Content, seed: int) -> tuple[Tensor, Tensor, list[np.ndarray]]:
        """Return the samples that clients generated from their own examples; see `read_guided`."""
        assert self.inputs.guided is not None
        digest = kind_digest(self.inputs.guided, self.work.upstream, content)
        folder = content_folder(self.work.upstream.folder("guided"), digest, content, seed)
        if folder not in self._guided:
            clients = self.inputs.partition.clients
            self._guided[folder] = read_guided(folder, self.data, self.labels, clients)
        return self._guided[folder]

    def private(self, seed: int) -> ClientData:
        """Return the private training data of clients. The data of the last seed is cached."""
        if self._private is None or self._private[0] != seed:
            augment = self.inputs.federation.local.augment.of("private")
            self._private = seed, self.context.private_data(self.section, self.labels, seed, augment)
        return self._private[1]

    def pretrained(self, seed: int, source: AuxiliarySource = "generated") -> Weights:
        """Return the model that was trained on synthetic data alone, or on public data alone."""
        return read_weights(self.work.upstream.folder("pretrain"), self.task, seed, source)

    def start(self, method: Method, seed: int) -> Weights:
        """Return the initial global model of a method."""
        if method.start == "pretrained":
            return self.pretrained(seed, method.source)
        if method.start == "init":
            return self.inputs.model.weights(self.task, seed)[0]
        return self.task.init(initial_key(seed))

    @cached_property
    def resources(self) -> Mapping[str, Any]:
        """The resources of builders, except the synthetic data; see `genfl.algorithms.registry`."""
        return federation_resources(
            self.inputs.federation,
            {f"{n}-{model.name}": self._classify(model) for n, model in self._client_models},
        )

    @property
    def _client_models(self) -> list[tuple[int, Model]]:
        return list(enumerate(self.inputs.client_models))

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The measures of cohorts whose clients train the global model's architecture."""
        if self.context.remote or not measures_rounds(self.inputs.privacy):
            return {}
        measures = {diversity.DIVERSITY: diversity.gradient_diversity()}
        if self.inputs.federation.heterogeneity:
            order = Key(0).fold("generality").numpy().permutation(len(self.test_y))
            tested = torch.from_numpy(order[:MOST_TESTED])
            x, y = self.data.prepare(self._test_x[tested]), self.test_y[tested]
            measures[heterogeneity.DIVERGENCE] = heterogeneity.divergence()
            measures[heterogeneity.GENERALITY] = heterogeneity.generality(self.task, x, y)
        return measures

    @cached_property
    def _extract(self) -> Extract:
        assert self.inputs.extractor is not None, "else nothing is compared"
        return build_extractor(self.inputs.extractor.choice, self.data.shape, len(self.labels))

    def similarity(self, method: Method, clients: ClientData, seed: int) -> dict[str, Any] | None:
        """Return the similarity of clients' data by the features of the config's extractor.

        It is computed once for each kind of content and seed. It is None if the config does not ask for it,
        if there are too many clients for a page, or if fewer than two hold samples.
        """
        if self.inputs.extractor is None or len(clients) > MOST_COMPARED:
            return None
        kind = method.data == "generated", method.content, method.source, seed
        if kind not in self._similarities:
            features = heterogeneity.mean_features(self._extract, clients)
            alike = heterogeneity.client_similarity(features) if len(features) > 1 else None
            self._similarities[kind] = alike
        return self._similarities[kind]

    def test_on_clients(self, models: list[Weights], seed: int) -> ClientScores | None:
        """Return the scores of final models on the clients' held-back samples. None if there are none.

        Args:
            models: One model for all clients, or one model per client.
            seed: The seed of the split.
        """
        held_back = self.context.held_back_data(self.section, self.labels, seed)
        if held_back is None:
            return None
        testing, data = held_back
        tested = [models[client if len(models) > 1 else 0] for client in testing]
        return evaluate_clients(self.task, tested, data, sequential(data), self.device)
