"""Differential privacy of single samples: DP-SGD at each client."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.learning.local import Context, Penalty, mean_gradient, no_penalty
from genfl.learning.per_sample import PerSampleGradient, by_vmap_or_loop
from genfl.learning.task import Aux, Batch
from genfl.options import NonNegative, Positive, check_value
from genfl.privacy.dp.streams import noise_stream
from genfl.rng import Stream
from genfl.trees import Tree

MOST_NUMBERS = 2**27
"""The largest number of per-sample gradient entries in memory at a time: half a gigabyte in fp32."""

NORM_BLOCK, NORM_MARGIN = 256, 1e-5
"""Numbers whose squares are added in single precision, and the part of the norm that is kept for rounding."""


@dataclass(frozen=True)
class ClippedGradient:
    """The gradient of DP-SGD: ``(Σ_protected clip(g_n, C) + Σ_free g_n + σ C ξ) / B``, ξ standard normal.

    g_n is the gradient of sample n, and ``clip(g, C) = g · min(1, C / ‖g‖)`` with the norm over all
    parameters together (flat clipping). B is the mean size of a batch. It depends on how many samples a
    client holds, which counts as public. A sample whose gradient is not finite counts as zero.

    Batches come from `genfl.data.plans.PoissonSampling`, which marks the samples. All samples of another
    batch are protected, and B is its size; the guarantee of Poisson sampling does not hold for such batches.

    With an infinite norm and no noise, this is the gradient of the mean loss, bit for bit.

    Source: Abadi et al., CCS 2016 (arXiv 1607.00133), Algorithm 1. Deviation: free samples, which are public.

    Attributes:
        noise_multiplier: σ, non-negative.
        max_grad_norm: C, positive; infinite only without noise.
        per_sample: The way to the gradients of single samples, without penalties.
        stream: What distinguishes this federation's noise from that of others with the same seed; see
            `genfl.privacy.dp.streams.noise_stream`.
        measured: Whether to return, in ``Aux.noise``, the squared norms of the sum of clipped gradients and
            of its noise, and their dot product. It changes no gradient.
    """

    noise_multiplier: float
    max_grad_norm: float
    per_sample: PerSampleGradient
    stream: str = ""
    measured: bool = False

    def __post_init__(self) -> None:
        check_value("ClippedGradient.noise_multiplier", self.noise_multiplier, NonNegative)
        if self.max_grad_norm != math.inf:
            check_value("ClippedGradient.max_grad_norm", self.max_grad_norm, Positive)
        elif self.noise_multiplier:
            raise InputError("ClippedGradient.max_grad_norm: inf, so no noise is enough; give a finite norm")

    def __call__(
        self, params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty
    ) -> tuple[Tree, Aux]:
        """Return the gradient; see `genfl.learning.local.BatchGradient`."""
        if "protected" not in batch and math.isinf(self.max_grad_norm):
            return mean_gradient(params, buffers, batch, context, penalty)
        examples = {"x": batch["x"], "y": batch["y"]}
        count = len(batch["y"])
        protected = batch.get("protected", torch.ones(count))
        free = batch.get("free", torch.zeros(count))
        expected = batch.get("expected", torch.tensor(float(count)))
        gradient_of = self.per_sample if penalty is no_penalty else by_vmap_or_loop
        at_once = max(1, MOST_NUMBERS // sum(leaf.numel() for leaf in trees.leaves(params)))
        sums: list[Tensor] | None = None
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            some = {name: value[part] for name, value in examples.items()}
            key = (
                context.key.fold("part", first) if first else context.key
            )  # each part has dropout of its own
            gradients = trees.leaves(gradient_of(params, buffers, some, context._replace(key=key), penalty))
            clipped = clipped_sum(gradients, protected[part], free[part], self.max_grad_norm)
            sums = clipped if sums is None else [a + b for a, b in zip(sums, clipped, strict=True)]
        assert sums is not None
        leaves, figures = trees.leaves(params), None
        if self.noise_multiplier:
            scale = self.noise_multiplier * self.max_grad_norm
            noise = _noise(leaves, noise_stream(context.key, self.stream))
            if self.measured:
                figures = _squares(sums, noise, scale)
            sums = [a + scale * b for a, b in zip(sums, noise, strict=True)]
        mean = (value.view_as(leaf) / expected for value, leaf in zip(sums, leaves, strict=True))
        return trees.map(lambda _: next(mean), params), Aux(buffers, noise=figures)


def _squares(sums: list[Tensor], noise: list[Tensor], scale: float) -> Tensor:
    """Return the squared norm of sums, that of their noise, and their dot product, [3].

    In double precision they are finite: a measure refuses no upload.

    Args:
        sums: The sums, flat.
        noise: The noise before it is scaled, flat.
        scale: The factor on the noise.
    """
    clean, error = torch.cat(sums).double(), scale * torch.cat(noise).double()
    return torch.stack([(clean * clean).sum(), (error * error).sum(), (clean * error).sum()])


def clipped_sum(
    gradients: list[Tensor], protected: Tensor, free: Tensor, max_grad_norm: float
) -> list[Tensor]:
    """Return the sum over samples: of protected ones clipped, of free ones as they are.

    Args:
        gradients: The gradients of every sample: for each parameter, [n, ...]. Those that are not finite
            are changed in place.
        protected: 1 for samples to clip, else 0; [n].
        free: 1 for samples that count as they are, else 0; [n].
        max_grad_norm: The largest norm over all parameters together.

    Returns:
        For each parameter its sum, flat.
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    norms = torch.stack([_norms(rows) for rows in flat]).norm(dim=0)
    # A little less than the norm, so that rounding never exceeds it.
    clip = (max_grad_norm * (1 - NORM_MARGIN) / norms).clamp(max=1).to(protected.dtype)
    finite = norms.isfinite()
    weights = torch.where(finite, protected * clip + free, 0)
    # In place: a copy of all gradients would take longer than the rest of this function.
    return [weights @ rows.masked_fill_(~finite[:, None], 0) for rows in flat]


def _norms(rows: Tensor) -> Tensor:
    """Return the norm of each row in double precision, [n], without a copy of the rows in it.

    Sums of many squares in single precision lose digits. Those of `NORM_BLOCK` numbers do not lose more than
    `NORM_MARGIN`.
    """
    whole = rows.shape[1] // NORM_BLOCK * NORM_BLOCK
    blocks = rows[:, :whole].reshape(len(rows), -1, NORM_BLOCK)
    parts = [
        torch.linalg.vector_norm(blocks, dim=2),
        torch.linalg.vector_norm(rows[:, whole:], dim=1)[:, None],
    ]
    norms: Tensor = torch.cat(parts, 1).double().norm(dim=1)
    return norms


def _noise(leaves: list[Tensor], stream: Stream) -> list[Tensor]:
    """Return standard normal noise for each parameter, flat: one draw of the stream."""
    sizes, dtype = [leaf.numel() for leaf in leaves], leaves[0].dtype
    drawn: Tensor = stream.draw(lambda generator: torch.randn(sum(sizes), generator=generator, dtype=dtype))
    return list(drawn.split(sizes))
