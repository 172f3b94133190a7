"""Gradient diversity: do the clients of a round pull in the same direction?"""

from __future__ import annotations

import math

import torch

from genfl import trees
from genfl.algorithms.base import ClientProgram, model_change
from genfl.simulation import Measure
from genfl.trees import Tree

DIVERSITY = "diversity"


def gradient_diversity() -> Measure:
    """Measure ``Σ_k ‖Δ_k‖² / ‖Σ_k Δ_k‖²`` over a cohort's model changes Δ_k.

    It lies between 1/m, when all m clients move alike, and infinity, when they cancel out; m orthogonal
    changes give 1. It is None in a round in which they cancel out exactly, or nobody moves. Both sums are
    sums over clients, so that measuring it would not defeat a secure sum.

    Source: Yin et al., AISTATS 2018 (arXiv 1706.05699), Definition 1; GPT-FL (arXiv 2306.02210), Equation 1.
    """

    def wrap(client: ClientProgram) -> ClientProgram:
        def finish(carry: Tree) -> tuple[Tree, Tree]:
            upload, memory = client.finish(carry)
            change = model_change(carry)["params"]
            # In double precision the square of a finite change is finite: a measure refuses no upload.
            square_norm = trees.square_norm(trees.map(torch.Tensor.double, change))
            measured = {"square_norm": square_norm, "change": change}
            return {**upload, DIVERSITY: measured}, memory

        return client._replace(finish=finish, reductions={**client.reductions, DIVERSITY: "sum"})

    def value(aggregate: Tree) -> float | None:
        total = trees.map(torch.Tensor.double, aggregate["change"])
        ratio = float(aggregate["square_norm"] / trees.square_norm(total))
        return ratio if math.isfinite(ratio) else None

    return Measure(wrap, value)
