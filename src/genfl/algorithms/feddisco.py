"""FedDisco: clients whose labels are far from balanced weigh less."""

from __future__ import annotations

from torch import Tensor

from genfl.algorithms.base import Algorithm, Facts, head_count
from genfl.algorithms.fedavg import fedavg
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, Weights
from genfl.rng import Key
from genfl.trees import Tree


def feddisco(task: Task, local: LocalSGD, *, a: float = 0.5, b: float = 0.1) -> Algorithm:
    """FedAvg with the weights ``p_k ∝ ReLU(n_k/n − a d_k + b)``.

    n_k/n is the client's share of all clients' samples, and d_k the ℓ2 distance of its label distribution
    from the uniform one. Shares are of all clients, not of the cohort's, so that the server needs sums only;
    with full participation the two are the same. In a round in which every weight is zero the model stays.

    Source: Ye et al., ICML 2023 (arXiv 2305.19229), Equation 5.

    Args:
        task: What is learned.
        local: How a client trains.
        a: Weight of the discrepancy, non-negative.
        b: Added to every weight; a = b = 0 is FedAvg.
    """

    def weight(facts: Facts, message: Tree) -> Tensor:
        share: Tensor = facts["samples"] / message["samples"]
        return (share - a * discrepancy(facts["label_counts"]) + b).relu()

    base = fedavg(task, local, weight=weight)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {**base.init(weights, census, key), "samples": census["samples"]}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        if aggregate["weight"] <= 0:
            return state
        return {**state, **base.server(state, aggregate, key)}

    return base._replace(
        census=head_count,
        init=init,
        send=lambda state: {"weights": state["weights"], "samples": state["samples"]},
        server=server,
    )


def discrepancy(label_counts: Tensor) -> Tensor:
    """Returns the ℓ2 distance of a label distribution from the uniform one, given counts [..., classes]."""
    share = label_counts / label_counts.sum(-1, keepdim=True)
    distance: Tensor = (share - 1 / label_counts.shape[-1]).norm(dim=-1)
    return distance
