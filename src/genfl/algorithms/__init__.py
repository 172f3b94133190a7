"""Federated algorithms, by the names a config uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch

from genfl import trees
from genfl.algorithms import fedavg as _fedavg
from genfl.algorithms.base import Algorithm, Client
from genfl.algorithms.feddyn import feddyn
from genfl.algorithms.fednova import fednova
from genfl.algorithms.fedprox import fedprox
from genfl.algorithms.fedsam import fedsam
from genfl.algorithms.scaffold import scaffold
from genfl.learning.local import LocalSGD
from genfl.learning.task import Aux, Task
from genfl.rng import Key
from genfl.trees import Tree


class AlgorithmEntry(NamedTuple):
    """An algorithm a config can name.

    Attributes:
        build: ``(task, local, **options) -> algorithm``; its keyword-only numbers, booleans and strings are
            the options a config may set.
        paper: Where it was published.
        needs: What it needs of the model beyond logits, for example ``features``; usually nothing.
    """

    build: Callable[..., Algorithm]
    paper: str
    needs: str = ""

    def options(self) -> dict[str, tuple[Any, Any]]:
        """Returns each option's type, with its range, and its default."""
        hints = get_type_hints(self.build, include_extras=True)  # with the ranges that annotations give
        parameters = inspect.signature(self.build).parameters.values()
        return {
            p.name: (hints[p.name], p.default)
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
            and getattr(hints[p.name], "__origin__", hints[p.name]) in (int, float, bool, str)
        }


ALGORITHMS: dict[str, AlgorithmEntry] = {
    "fedavg": AlgorithmEntry(_fedavg.fedavg, "McMahan et al. 2017, arXiv 1602.05629"),
    "fedavgm": AlgorithmEntry(_fedavg.fedavgm, "Hsu et al. 2019, arXiv 1909.06335"),
    "fedadam": AlgorithmEntry(_fedavg.fedadam, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedyogi": AlgorithmEntry(_fedavg.fedyogi, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedadagrad": AlgorithmEntry(_fedavg.fedadagrad, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedprox": AlgorithmEntry(fedprox, "Li et al. 2020, arXiv 1812.06127"),
    "scaffold": AlgorithmEntry(scaffold, "Karimireddy et al. 2020, arXiv 1910.06378"),
    "fednova": AlgorithmEntry(fednova, "Wang et al. 2020, arXiv 2007.07481"),
    "feddyn": AlgorithmEntry(feddyn, "Acar et al. 2021, arXiv 2111.04263"),
    "fedsam": AlgorithmEntry(fedsam, "Qu et al. 2022, arXiv 2206.02618"),
}


class Profile(NamedTuple):
    """What an algorithm costs and shows, in multiples of the model's size where it is a size.

    Attributes:
        sees: ``sum`` if the server sees only sums of uploads (a secure sum can carry it), else ``each``.
        uplink: Bytes a client sends a round / bytes of the model.
        downlink: Bytes a client receives a round / bytes of the model.
        memory: Bytes a client keeps between rounds / bytes of the model.
    """

    sees: str
    uplink: float
    downlink: float
    memory: float


def profile(entry: AlgorithmEntry) -> Profile:
    """Measures an algorithm's value on a toy model: nothing in the result is typed in by hand."""
    size = 10_000  # large against the few scalars that algorithms send along
    task = Task(
        init=lambda key: {"params": {"w": torch.zeros(size)}, "buffers": {}},
        loss=lambda params, buffers, batch, key: (params["w"].square().sum(), Aux(buffers)),
        predict=lambda weights, x: x,
    )
    algorithm = entry.build(task, LocalSGD(lr=0.1))
    facts = {"samples": torch.ones(()), "label_counts": torch.ones(1)}
    weights = task.init(Key(0))
    census = run_once(algorithm.census, {}, {}, facts)[0]
    message = algorithm.send(algorithm.init(weights, census, Key(0)))
    upload, memory = run_once(algorithm.client, message, algorithm.memory(weights), facts)
    model = trees.num_bytes(weights)
    return Profile(
        sees="each" if "each" in algorithm.client.reductions.values() else "sum",
        uplink=round(trees.num_bytes(upload) / model, 2),
        downlink=round(trees.num_bytes(message) / model, 2),
        memory=round(trees.num_bytes(memory) / model, 2),
    )


def run_once(client: Client, message: Tree, memory: Tree, facts: Tree) -> tuple[Tree, Tree]:
    """Runs a client program without a single batch: what it would upload and remember, in form."""
    return client.finish(client.start(message, memory, facts))


__all__ = ["ALGORITHMS", "Algorithm", "AlgorithmEntry", "Client", "Profile", "profile", "run_once"]
