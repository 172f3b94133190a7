"""The protocol: a federated algorithm is a value made of pure functions over trees of tensors.

An algorithm says what clients and server compute. An engine (`genfl.engines`) owns the loops, decides where
clients run and adds up the uploads. The builder of an algorithm closes over its hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from genfl import trees
from genfl.learning.local import Context, LocalSGD
from genfl.learning.task import Batch, Task, Weights
from genfl.options import Count as Count
from genfl.options import Decay as Decay
from genfl.options import NonNegative as NonNegative
from genfl.options import Positive as Positive
from genfl.options import Steps as Steps
from genfl.rng import Key, Stream
from genfl.trees import Tree

ClientInfo = dict[str, Any]
"""What a client knows of its own data before round 0: ``samples`` (scalar), ``label_counts`` [classes]."""

ReductionKind = Literal["sum", "each"]
"""What the server may see of an upload: its sum over the cohort, or every client's own."""


class StartFn(Protocol):
    """The beginning of a client's round."""

    def __call__(self, message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        """Return the carry before the first step.

        Args:
            message: What the server sent this client.
            memory: What the client kept from its last counted round.
            client_info: What it knows of its own data.
            key: The random stream of the start.
        """
        ...


class StepFn(Protocol):
    """One step on one batch."""

    def __call__(self, carry: Tree, batch: Batch, key: Stream) -> Tree:
        """Return the carry after the step; where clients are batched, this runs under `torch.vmap`.

        Args:
            carry: The state of the client's round.
            batch: The step's examples.
            key: The random stream of the step.
        """
        ...


class FinishFn(Protocol):
    """The end of a client's round."""

    def __call__(self, carry: Tree) -> tuple[Tree, Tree]:
        """Return the upload, and the memory, which never leaves the client."""
        ...


class HeldSamples(NamedTuple):
    """What a client holds, for a program that selects the samples to train on.

    Attributes:
        round: The round's number, from 1.
        part_sizes: How many samples it has of each part of the data; rows are numbered in this order.
        examples: ``(rows) -> batch`` of some of them, without random changes.
    """

    round: int
    part_sizes: tuple[int, ...]
    examples: Callable[[Tensor], Batch]


class SelectFn(Protocol):
    """The selection of the samples that a client trains on in a round (FedGC's filter)."""

    def __call__(self, message: Tree, held: HeldSamples) -> Sequence[Tensor]:
        """Return the selected rows of each part, int64 [n], ascending.

        Args:
            message: What the server sent this client.
            held: What the client holds.
        """
        ...


class ClientProgram(NamedTuple):
    """A program that runs on a client. The engine owns the loop over batches.

    Attributes:
        start: ``(message, memory, client_info, key) -> carry``.
        step: ``(carry, batch, key) -> carry``.
        finish: ``(carry) -> (upload, memory)``.
        reductions: For each name of the upload, what the server may see of it.
        select: ``(message, held) -> rows`` to train on; None trains on all.
    """

    start: StartFn
    step: StepFn
    finish: FinishFn
    reductions: Mapping[str, ReductionKind]
    select: SelectFn | None = None


class Algorithm(NamedTuple):
    """A federated algorithm.

    Attributes:
        census: Sums over all clients that the algorithm needs once, before round 0.
        init: ``(weights, census sums, key) -> server state``; ``state["weights"]`` is the global model.
        send: ``(server state) -> message``.
        client: What a client of the cohort does in a round.
        server: ``(server state, aggregate, key) -> server state``.
        memory: ``(weights) -> memory`` of a client that never took part.
        address: ``(message, client number) -> message``: the part that is sent to that client, whose bytes
            are its downlink cost. By default the whole message.
        same_form: Whether clients train models of the global model's architecture.
        task: The learning task of the global model; `genfl.simulate` makes and tests models by it.
        counts: The names of those uploads whose sum is the number of clients in the cohort: every client
            sends the constant 1.
        steps_alone: Whether the server also takes a step in a round in which no upload counts. Its aggregate
            then consists of zeros.
        observe: ``(server state, aggregate, key) -> figures`` of a round, from the arguments of `server`.
            Only a simulation knows them, and they change nothing.
    """

    census: ClientProgram
    init: Callable[[Weights, Tree, Key], Tree]
    send: Callable[[Tree], Tree]
    client: ClientProgram
    server: Callable[[Tree, Tree, Key], Tree]
    memory: Callable[[Weights], Tree]
    address: Callable[[Tree, int], Tree] = lambda message, client: message
    same_form: bool = True
    task: Task | None = None
    counts: tuple[str, ...] = ()
    steps_alone: bool = False
    observe: Callable[[Tree, Tree, Key], dict[str, float | None]] = lambda state, aggregate, key: {}

    def __repr__(self) -> str:
        sees = "sums" if set(self.client.reductions.values()) == {"sum"} else "every client's upload"
        return f"Algorithm({self.task or 'without a task'}, the server sees {sees})"


def statistics(reductions: dict[str, Callable[[ClientInfo], torch.Tensor]]) -> ClientProgram:
    """Return a client program without training whose uploads are functions of client info, to be summed.

    Args:
        reductions: For each upload, what a client contributes to the sum.
    """

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return {name: of(carry) for name, of in reductions.items()}, {}

    return ClientProgram(
        start=lambda message, memory, client_info, key: client_info,
        step=lambda carry, batch, key: carry,
        finish=finish,
        reductions=dict.fromkeys(reductions, "sum"),
    )


def run_once(client: ClientProgram, message: Tree, memory: Tree, client_info: Tree) -> tuple[Tree, Tree]:
    """Return an upload and a memory of the right structure, shapes and dtypes: a round without batches."""
    return client.finish(client.start(message, memory, client_info, Key(0)))


head_count = statistics(
    {"clients": lambda client_info: torch.ones(()), "samples": lambda client_info: client_info["samples"]}
)
"""The default census: how many clients there are, and how many samples they hold together."""


def send_weights(state: Tree) -> Tree:
    """Return the default message: the global model and nothing else."""
    return {"weights": state["weights"]}


def training_client(
    task: Task,
    local: LocalSGD,
    upload: Callable[[Tree], Tree],
    reductions: dict[str, ReductionKind],
    *,
    shift: Callable[[Tree, Tree], Tree] | None = None,
    remember: Callable[[Tree], Tree] = lambda carry: {},
) -> ClientProgram:
    """Return the program of a client that trains the global model by local steps.

    Its carry is ``{"local": the training state, "message", "memory", "client_info", "shift"}``. Its memory is
    ``{"method": what the algorithm keeps, "local": what the hooks of `local` keep}``.

    Args:
        task: What is learned.
        local: How it is trained.
        upload: ``(carry) -> upload`` after the last step.
        reductions: For each name of the upload, what the server may see of it.
        shift: ``(message, the algorithm's memory) -> tree`` added to every gradient; None adds nothing.
        remember: ``(carry) -> memory`` of the algorithm after the last step.
    """

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        return {
            "local": local.start(message["weights"], message.get("lr")),
            "message": message,
            "memory": memory,
            "client_info": client_info,
            "shift": shift(message, memory["method"]) if shift else None,
        }

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        state = local.step(carry["local"], batch, context(task, carry, key), carry["shift"])
        return {**carry, "local": state}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return upload(carry), {"method": remember(carry), "local": local.memory.remember(carry["local"])}

    return ClientProgram(start, step, finish, reductions)


def decaying(algorithm: Algorithm, local: LocalSGD) -> Algorithm:
    """Return the algorithm whose server sends the learning rate of local training, if that decays.

    The message of round t has a scalar more: ``lr``, which is ``local.lr · local.lr_decay^(t − 1)``. Rounds
    in which no upload counts leave the server's state, and so the learning rate, as they were.

    Args:
        algorithm: What clients and server compute. Its clients train by `training_client`.
        local: Local training.
    """
    if not local.decays:
        return algorithm

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {**algorithm.init(weights, census, key), "decays": torch.zeros((), dtype=torch.int64)}

    def send(state: Tree) -> Tree:
        lr = local.lr * local.lr_decay ** int(state["decays"])
        return {**algorithm.send(state), "lr": torch.tensor(lr)}

    def address(message: Tree, client: int) -> Tree:
        return {**algorithm.address(message, client), "lr": message["lr"]}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        return {**algorithm.server(state, aggregate, key), "decays": state["decays"] + 1}

    return algorithm._replace(init=init, send=send, address=address, server=server)


def training_memory(
    local: LocalSGD, method: Callable[[Weights], Tree] = lambda weights: {}
) -> Callable[[Weights], Tree]:
    """Return the function that makes the initial memory of a `training_client`.

    Args:
        local: How the client trains.
        method: ``(weights) -> memory`` of the algorithm.
    """
    return lambda weights: {"method": method(weights), "local": local.memory.initial(weights)}


def context(task: Task, carry: Tree, key: Stream) -> Context:
    """Return what the hooks may read in a step of a `training_client`."""
    return Context(task, carry["message"], carry["memory"]["local"], carry["client_info"], key)


def trained(carry: Tree) -> Weights:
    """Return the local model of a `training_client`."""
    return {"params": carry["local"]["params"], "buffers": carry["local"]["buffers"]}


def model_change(carry: Tree) -> Weights:
    """Return how far the local model is from the global one it started at, buffers included."""
    change: Weights = trees.sub(trained(carry), carry["message"]["weights"])
    return change
