"""FedDisco: clients whose classes are balanced count more."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl.algorithms.base import ClientInfo, NonNegative
from genfl.algorithms.weighting import Weighting
from genfl.trees import Tree

SMALLEST = 1e-6
"""Weight that a client's share of the samples keeps in any case: a cohort of nothing but unbalanced clients,
all of weight zero by the paper's formula, is averaged as FedAvg does."""


def feddisco(cohort: int, *, a: NonNegative = 0.5, b: NonNegative = 0.1) -> Weighting:
    """Return the weighting of a client by ``ReLU(s_k − a d_k + b)``, normalised over the cohort.

    s_k is its share of the cohort's samples and d_k the Euclidean distance of its class distribution from the
    uniform one. The share is of the samples that a cohort holds on average, which the server knows from sums
    alone; with all clients in every round it is the paper's share.

    Source: Ye et al., ICML 2023 (arXiv 2305.19229), Equation 7.

    Args:
        cohort: Clients in a round.
        a: Weight of the discrepancy, non-negative.
        b: Weight that every client has in advance, non-negative; ``a = b = 0`` is FedAvg.
    """

    def announce(census: Tree) -> Tree:
        return {"cohort_samples": census["samples"] * cohort / census["clients"]}

    def weight(client_info: ClientInfo, announced: Tree) -> Tensor:
        share: Tensor = client_info["samples"] / announced["cohort_samples"]
        distribution = client_info["label_counts"] / client_info["label_counts"].sum()
        discrepancy = (distribution - 1 / len(distribution)).square().sum().sqrt()
        return torch.relu(share - a * discrepancy + b) + SMALLEST * share

    return Weighting(announce, weight, "feddisco")
