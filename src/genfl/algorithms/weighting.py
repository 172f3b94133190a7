"""Weightings: how much each client counts in the mean of a cohort."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from genfl.algorithms.base import ClientInfo
from genfl.trees import Tree


class Weighting(NamedTuple):
    """The weight of a client in FedAvg's mean.

    Attributes:
        announce: ``(census sums) -> tree`` that the server sends along with the model.
        weight: ``(client_info, announced) -> scalar``, before normalisation over the cohort.
        name: The name of the weighting in error messages.
    """

    announce: Callable[[Tree], Tree]
    weight: Callable[[ClientInfo, Tree], Tensor]
    name: str = ""


by_samples = Weighting(lambda census: {}, lambda client_info, announced: client_info["samples"], "by_samples")
"""Weights a client by its number of samples."""

uniform = Weighting(
    lambda census: {}, lambda client_info, announced: torch.ones_like(client_info["samples"]), "uniform"
)
"""Gives every client the same weight, for any number of samples."""
