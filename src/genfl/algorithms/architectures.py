"""Clients that train models of several architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ClientInfo,
    ClientProgram,
    decaying,
    head_count,
    trained,
    training_client,
    training_memory,
)
from genfl.errors import InputError
from genfl.learning.local import LocalSGD, nothing
from genfl.learning.task import Batch, Task, Weights
from genfl.rng import Key, Stream
from genfl.trees import Tree


class TrainedModel(NamedTuple):
    """A client's model after its local training.

    Attributes:
        name: The name of its architecture.
        weights: The model.
        samples: The number of samples that it was trained on, a scalar.
    """

    name: str
    weights: Weights
    samples: torch.Tensor


class ClientModels(NamedTuple):
    """Clients that train models of several architectures: client k runs architecture ``k mod U`` of U.

    The server's state has ``models``, a model for each architecture. A client gets that of its own.

    Attributes:
        tasks: The learning tasks, by the names of the architectures.
        client: The client program.
    """

    tasks: Mapping[str, Task]
    client: ClientProgram

    def address(self, message: Tree, client: int) -> Tree:
        """Return the part of a message that a client gets: the model of its architecture."""
        names = list(self.tasks)
        name = names[client % len(names)]
        return {"models": {name: message["models"][name]}}

    def initial(self, key: Key) -> dict[str, Weights]:
        """Return random models of all architectures."""
        return {name: task.init(key.fold(name)) for name, task in self.tasks.items()}

    def cohort(self, aggregate: Tree) -> list[TrainedModel]:
        """Return the models that the cohort uploaded."""
        pairs = (pair for client in aggregate["trained"] for pair in client.items())
        return [TrainedModel(name, model["weights"], model["samples"]) for name, model in pairs]

    def means(self, before: Mapping[str, Weights], cohort: Sequence[TrainedModel]) -> dict[str, Weights]:
        """Return the mean model of each architecture, weighted by samples.

        Args:
            before: The models of the last round. One that no client of the cohort ran stays as it was.
            cohort: The models of the cohort.
        """
        return {
            name: mean_model(same) if (same := [model for model in cohort if model.name == name]) else old
            for name, old in before.items()
        }

    def logits(self, cohort: Sequence[TrainedModel], x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the cohort's models, [clients, m, classes], for inputs [m, ...]."""
        return torch.stack([self.tasks[model.name].predict(model.weights, x) for model in cohort])

    def algorithm(
        self,
        task: Task,
        local: LocalSGD,
        init: Callable[[Weights, Tree, Key], Tree],
        server: Callable[[Tree, Tree, Key], Tree],
    ) -> Algorithm:
        """Return the algorithm of these clients with a server.

        Args:
            task: The learning task of the global model.
            local: Local training.
            init: ``(weights, census, key) -> server state``. The state has ``models``.
            server: ``(state, aggregate, key) -> state``; see `cohort`.
        """
        algorithm = Algorithm(
            census=head_count,
            init=init,
            send=lambda state: {"models": state["models"]},
            client=self.client,
            server=server,
            memory=training_memory(local),
            address=self.address,
            same_form=False,
            task=task,
        )
        return decaying(algorithm, local)


def client_models(method: str, client_tasks: Mapping[str, Task], local: LocalSGD) -> ClientModels:
    """Return clients of several architectures, whose models the server sees.

    Args:
        method: The name of the method, for messages.
        client_tasks: The learning tasks of the clients' models, by name.
        local: Local training, which may keep nothing between rounds.

    Raises:
        InputError: A hook keeps a model between rounds. It may have another architecture in the next round.
    """
    if local.memory is not nothing:
        raise InputError(
            f"{method}: clients train models of several architectures, but a hook keeps a model between"
            " rounds; leave the hook out"
        )

    def upload(carry: Tree) -> Tree:
        return {"weights": trained(carry), "samples": carry["client_info"]["samples"]}

    programs = {
        name: training_client(task, local, upload, {"weights": "each", "samples": "each"})
        for name, task in client_tasks.items()
    }

    # A client's message and carry hold the name of its architecture, so that its program can be looked up.
    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        ((name, weights),) = message["models"].items()
        others = {part: value for part, value in message.items() if part != "models"}
        return {name: programs[name].start({**others, "weights": weights}, memory, client_info, key)}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        ((name, training),) = carry.items()
        return {name: programs[name].step(training, batch, key)}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        ((name, training),) = carry.items()
        model, memory = programs[name].finish(training)
        return {"trained": {name: model}}, memory

    return ClientModels(client_tasks, ClientProgram(start, step, finish, {"trained": "each"}))


def mean_model(models: Sequence[TrainedModel]) -> Weights:
    """Return the mean of models of one architecture, weighted by their numbers of samples."""
    samples = torch.stack([model.samples for model in models])
    shares = samples / samples.sum()
    parts = [trees.scale(p, model.weights) for p, model in zip(shares, models, strict=True)]
    mean: Weights = trees.add(*parts)
    return mean
