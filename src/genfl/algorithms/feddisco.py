"""FedDisco: clients with balanced classes get more weight."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl.algorithms.base import ClientInfo, NonNegative
from genfl.algorithms.weighting import Weighting
from genfl.options import range_checked
from genfl.trees import Tree

SMALLEST = 1e-6
"""The smallest weight per share of samples. In a cohort of only unbalanced clients, the paper's formula gives
every client the weight zero. This constant makes their average that of FedAvg."""


@range_checked
def feddisco(cohort: int, *, a: NonNegative = 0.5, b: NonNegative = 0.1) -> Weighting:
    """Return the weighting of a client by ``ReLU(s_k − a d_k + b)``, normalised over the cohort.

    s_k is the client's share of the cohort's samples. d_k is the Euclidean distance of its class distribution
    from the uniform one.

    Source: Ye et al., ICML 2023 (arXiv 2305.19229), Equation 7.

    Deviation: s_k is the share of the samples that a cohort holds on average. The server knows this average
    from sums alone. If all clients take part in every round, it is the paper's share.

    Args:
        cohort: Clients in a round.
        a: Weight of the distance d_k, non-negative.
        b: A constant weight of every client, non-negative. ``a = b = 0`` is FedAvg.
    """

    def announce(census: Tree) -> Tree:
        return {"cohort_samples": census["samples"] * cohort / census["clients"]}

    def weight(client_info: ClientInfo, announced: Tree) -> Tensor:
        share: Tensor = client_info["samples"] / announced["cohort_samples"]
        distribution = client_info["label_counts"] / client_info["label_counts"].sum()
        discrepancy = (distribution - 1 / len(distribution)).square().sum().sqrt()
        return torch.relu(share - a * discrepancy + b) + SMALLEST * share

    return Weighting(announce, weight, "feddisco")
