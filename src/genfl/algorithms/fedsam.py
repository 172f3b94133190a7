"""FedSAM: clients search flat minima."""

from __future__ import annotations

from genfl import trees
from genfl.algorithms.base import NonNegative
from genfl.learning.local import Context, Gradient, LocalHook
from genfl.learning.task import Aux
from genfl.options import range_checked
from genfl.trees import Tree


@range_checked
def fedsam(*, rho: NonNegative = 0.05) -> LocalHook:
    """Return the hook that makes clients descend along the gradient at ``w + ρ g/‖g‖``.

    Here g is the gradient at w.

    Source: Qu et al., ICML 2022 (arXiv 2206.02618), Algorithm 1; Caldarola et al., ECCV 2022
    (arXiv 2203.11834); after Foret et al., ICLR 2021 (arXiv 2010.01412).

    Args:
        rho: Radius ρ of the neighbourhood, non-negative. With 0, this is plain local training.
    """

    def sharpest(gradient: Gradient, params: Tree, context: Context) -> tuple[Tree, Aux]:
        ascent, aux = gradient(params)
        radius = rho / (trees.square_norm(ascent).sqrt() + 1e-12)  # no step where the gradient is zero
        return gradient(trees.add(params, trees.scale(radius, ascent)))[0], aux

    return LocalHook(direction=sharpest, name="fedsam")
