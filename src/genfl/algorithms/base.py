"""The protocol: a federated algorithm is a value made of pure functions over trees of tensors.

An algorithm says what clients and server compute; an engine (`genfl.engines`) owns the loops, decides where
the work runs and adds the uploads up. Hyper-parameters are closed over by the builder that makes the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt

from genfl import trees
from genfl.learning.local import Context, LocalSGD
from genfl.learning.task import Batch, Task, Weights
from genfl.rng import Key, Stream
from genfl.trees import Tree

Facts = dict[str, Any]
"""What a client knows of its own data before round 0: ``samples`` (scalar), ``label_counts`` [classes]."""

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
Steps = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]

Reduction = Literal["sum", "each"]
"""What the server may see of an upload: its sum over the cohort, or every client's own."""


def no_losses(message: Tree, examples: Batch) -> torch.Tensor:
    """What programs have that cannot judge examples: it refuses."""
    raise ValueError("the program cannot choose among generated samples: nothing in its message says how")


class Client(NamedTuple):
    """A program that runs on a client. The engine owns the loop over batches.

    Attributes:
        start: ``(message, memory, facts, key) -> carry``.
        step: ``(carry, batch, key) -> carry``; where clients are batched, under `torch.vmap`.
        finish: ``(carry) -> (upload, memory)``; the memory never leaves the client.
        reductions: For each name of the upload, what the server may see of it.
        losses: ``(message, examples) -> loss`` of each under the global model, [n]; by it clients choose
            among their generated samples.
    """

    start: Callable[[Tree, Tree, Facts, Key], Tree]
    step: Callable[[Tree, Batch, Stream], Tree]
    finish: Callable[[Tree], tuple[Tree, Tree]]
    reductions: dict[str, Reduction]
    losses: Callable[[Tree, Batch], torch.Tensor] = no_losses


class Algorithm(NamedTuple):
    """A federated algorithm.

    Attributes:
        census: One-off sums over all clients the algorithm needs before round 0.
        init: ``(weights, census sums, key) -> server state``; ``state["weights"]`` is the global model.
        send: ``(server state) -> message``.
        client: What a client of the cohort does in a round.
        server: ``(server state, aggregate, key) -> server state``.
        memory: ``(weights) -> memory`` of a client that never took part.
        address: ``(message, client number) -> message``: the part that is sent to that client, whose bytes
            are its downlink cost. All of it, unless clients differ in more than their data.
        same_form: Whether clients train models of the global model's form.
    """

    census: Client
    init: Callable[[Weights, Tree, Key], Tree]
    send: Callable[[Tree], Tree]
    client: Client
    server: Callable[[Tree, Tree, Key], Tree]
    memory: Callable[[Weights], Tree]
    address: Callable[[Tree, int], Tree] = lambda message, client: message
    same_form: bool = True


def statistics(reductions: dict[str, Callable[[Facts], torch.Tensor]]) -> Client:
    """Returns a client program without training whose uploads are sums of the clients' facts.

    Args:
        reductions: For each upload, what a client contributes to the sum.
    """

    def finish(facts: Tree) -> tuple[Tree, Tree]:
        return {name: of(facts) for name, of in reductions.items()}, {}

    return Client(
        start=lambda message, memory, facts, key: facts,
        step=lambda carry, batch, key: carry,
        finish=finish,
        reductions=dict.fromkeys(reductions, "sum"),
    )


def run_once(client: Client, message: Tree, memory: Tree, facts: Tree) -> tuple[Tree, Tree]:
    """Runs a client program without a single batch: what it would upload and remember, in form."""
    return client.finish(client.start(message, memory, facts, Key(0)))


head_count = statistics({"clients": lambda facts: torch.ones(()), "samples": lambda facts: facts["samples"]})
"""The default census: how many clients there are, and how many samples they hold together."""


def send_weights(state: Tree) -> Tree:
    """The default message: the global model and nothing else."""
    return {"weights": state["weights"]}


def training_client(
    task: Task,
    local: LocalSGD,
    upload: Callable[[Tree], Tree],
    reductions: dict[str, Reduction],
    *,
    shift: Callable[[Tree, Tree], Tree] | None = None,
    remember: Callable[[Tree], Tree] = lambda carry: {},
) -> Client:
    """Returns the program of a client that trains the global model by local steps.

    Its carry is ``{"local": the training state, "message", "memory", "facts", "shift"}``, and its memory
    ``{"method": what the algorithm keeps, "local": what the hooks of `local` keep}``.

    Args:
        task: What is learned.
        local: How it is trained.
        upload: ``(carry) -> upload`` after the last step.
        reductions: For each name of the upload, what the server may see of it.
        shift: ``(message, the algorithm's memory) -> tree`` added to every gradient; None adds nothing.
        remember: ``(carry) -> memory`` of the algorithm after the last step.
    """

    def start(message: Tree, memory: Tree, facts: Facts, key: Key) -> Tree:
        return {
            "local": local.start(message["weights"]),
            "message": message,
            "memory": memory,
            "facts": facts,
            "shift": shift(message, memory["method"]) if shift else None,
        }

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        state = local.step(carry["local"], batch, context(task, carry, key), carry["shift"])
        return {**carry, "local": state}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return upload(carry), {"method": remember(carry), "local": local.memory.remember(carry["local"])}

    def losses(message: Tree, examples: Batch) -> torch.Tensor:
        logits = task.predict(message["weights"], examples["x"])
        return F.cross_entropy(logits, examples["y"], reduction="none")

    return Client(start, step, finish, reductions, losses)


def training_memory(
    local: LocalSGD, method: Callable[[Weights], Tree] = lambda weights: {}
) -> Callable[[Weights], Tree]:
    """Returns the initial memory of a `training_client`, given that of the algorithm."""
    return lambda weights: {"method": method(weights), "local": local.memory.initial(weights)}


def context(task: Task, carry: Tree, key: Stream) -> Context:
    """Returns what the hooks may read in a step of a `training_client`."""
    return Context(task, carry["message"], carry["memory"]["local"], carry["facts"], key)


def trained(carry: Tree) -> Weights:
    """Returns the local model of a `training_client`."""
    return {"params": carry["local"]["params"], "buffers": carry["local"]["buffers"]}


def model_change(carry: Tree) -> Weights:
    """Returns how far the local model is from the global one it started at, buffers included."""
    change: Weights = trees.sub(trained(carry), carry["message"]["weights"])
    return change
