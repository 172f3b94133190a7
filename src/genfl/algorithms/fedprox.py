"""FedProx: a proximal term pulls clients back to the global model."""

from __future__ import annotations

from torch import Tensor

from genfl import trees
from genfl.algorithms.base import NonNegative
from genfl.learning.local import Context, LocalHook
from genfl.learning.task import Aux, Batch
from genfl.options import range_checked
from genfl.trees import Tree


@range_checked
def fedprox(*, mu: NonNegative = 0.01) -> LocalHook:
    """Return the hook that makes clients minimise ``F_k(w) + μ/2 ‖w − x‖²``, where x is the global model.

    Source: Li et al., MLSys 2020 (arXiv 1812.06127), Equation 2.

    Args:
        mu: Weight μ of the proximal term, non-negative. With 0, this is plain local training.
    """

    def pull(params: Tree, aux: Aux, batch: Batch, context: Context) -> Tensor:
        return mu / 2 * trees.square_norm(trees.sub(params, context.message["weights"]["params"]))

    return LocalHook(penalty=pull, name="fedprox")
