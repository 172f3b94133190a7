"""How good models are for the clients themselves: a client program, and one pass of it over all of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F

from genfl.algorithms.base import ClientInfo, ClientProgram, ReductionKind
from genfl.data.clients import ClientData
from genfl.data.plans import Batches
from genfl.engines.device import on_device
from genfl.engines.protocol import ClientTask, Engine
from genfl.learning.task import CPU, Batch, Task, Weights
from genfl.rng import Key, Stream
from genfl.trees import Tree

SUMS = ("correct", "samples", "diverged", "loss")
"""Uploads of which the server needs the sum; ``diverged`` counts clients whose loss overflows."""

QUANTILES = 21
"""Quantiles of the clients' accuracies, at 0, 5, ..., 100 %: as many for ten clients as for a million."""


class ClientScores(TypedDict):
    """The scores of a classifier on the samples that clients hold back for testing.

    Attributes:
        clients: How many clients hold samples back.
        samples: How many samples they hold back together.
        accuracy: The accuracy over all these samples, in [0, 1].
        loss: The mean cross-entropy over all these samples in nats; None if a diverged model's overflows.
        quantiles: `QUANTILES` quantiles of the clients' accuracies, evenly spaced from the worst client to
            the best one.
    """

    clients: int
    samples: int
    accuracy: float
    loss: float | None
    quantiles: list[float]


def evaluation(task: Task) -> ClientProgram:
    """Return the program of a client that tests the message's model on its samples.

    Sums are enough for the accuracy and the loss over all samples. They do not tell how clients differ, so
    the server sees every client's accuracy as well.

    Args:
        task: The classification task.
    """

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        zeros = dict.fromkeys(SUMS, torch.zeros((), dtype=torch.int64))
        return {**zeros, "loss": torch.zeros((), dtype=torch.float64), "weights": message["weights"]}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        logits, y = task.predict(carry["weights"], batch["x"]), batch["y"]
        loss = F.cross_entropy(logits.double(), y, reduction="sum")
        finite = torch.isfinite(loss)
        return {
            "correct": carry["correct"] + (logits.argmax(1) == y).sum(),
            "samples": carry["samples"] + len(y),
            "diverged": carry["diverged"] + ~finite,  # an upload that is not finite would not count
            "loss": carry["loss"] + torch.where(finite, loss, 0),
            "weights": carry["weights"],
        }

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        sums = {name: carry[name] for name in SUMS}
        return {**sums, "accuracy": carry["correct"].double() / carry["samples"]}, {}

    reductions: dict[str, ReductionKind] = {**dict.fromkeys(SUMS, "sum"), "accuracy": "each"}
    return ClientProgram(start, step, finish, reductions)


def evaluate_clients(
    task: Task, models: Sequence[Weights], clients: ClientData, engine: Engine, device: torch.device = CPU
) -> ClientScores:
    """Test models on what clients hold back.

    Args:
        task: The classification task.
        models: For each client, the model it tests.
        clients: What they hold back.
        engine: What executes the clients' work on `clients`.
        device: Where clients compute.
    """
    whole = Batches(sys.maxsize, None, 1, Key(0))  # one batch of all that a client holds: nothing is drawn
    client_tasks = [ClientTask(k, {"weights": model}, {}, whole, Key(0)) for k, model in enumerate(models)]
    total = engine.run(on_device(evaluation(task), device), client_tasks).aggregate
    assert total is not None
    loss = float(total["loss"] / total["samples"])
    shares = np.linspace(0, 1, QUANTILES)
    return {
        "clients": len(clients),
        "samples": int(total["samples"]),
        "accuracy": int(total["correct"]) / int(total["samples"]),
        "loss": loss if not total["diverged"] and math.isfinite(loss) else None,
        "quantiles": np.quantile([float(value) for value in total["accuracy"]], shares).tolist(),
    }
