"""FedDecorr: a penalty that keeps features from collapsing into few dimensions."""

from __future__ import annotations

from torch import Tensor

from genfl.algorithms.base import NonNegative
from genfl.learning.local import Context, LocalHook
from genfl.learning.task import Aux, Batch
from genfl.options import range_checked
from genfl.trees import Tree

EPSILON = 1e-8
"""Added to the variance of features. So a feature that is constant over a batch has zero correlations."""


@range_checked
def feddecorr(*, beta: NonNegative = 0.1) -> LocalHook:
    """Return the hook that adds ``β/d² ‖K‖_F²``, where K is the correlation matrix of the batch's d features.

    A batch of one sample has no correlations and adds nothing. The diagonal of K is constant, 1 for every
    feature that varies. So the gradient only depends on correlations between different features.

    Source: Shi et al., ICLR 2023 (arXiv 2210.00226), Equation 3.

    Args:
        beta: Weight β, non-negative; 0 is plain local training.
    """

    def correlation(params: Tree, aux: Aux, batch: Batch, context: Context) -> Tensor:
        z = aux.feature_matrix()
        n, d = z.shape
        if n == 1:
            return 0 * z.sum()
        centred = z - z.mean(0)
        standard = centred / (centred.square().mean(0) + EPSILON).sqrt()
        # ‖ZᵀZ/n‖ = ‖ZZᵀ/n‖: the smaller of the two matrices is enough.
        gram = standard @ standard.T if n < d else standard.T @ standard
        return beta * (gram / n).square().sum() / d**2

    return LocalHook(penalty=correlation, name="feddecorr")
