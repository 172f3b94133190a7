"""Noise that is correlated over rounds, so that it cancels out in part (DP-FTRL by matrix factorisation).

With independent noise, the model after t rounds has the sum of t noises. Let A be the lower triangular
matrix of ones, whose rows are these prefix sums, and C an invertible lower triangular matrix. The server adds
C⁻¹Z to the sums of its rounds, Z being independent noise. The noise of the models is AC⁻¹Z, and the privacy
is that of one release of CX + Z, X being the sums of uploads. It holds for uploads that depend on earlier
rounds (Denisov et al., NeurIPS 2022, arXiv 2202.08312, Theorem 2.1).

C is a buffered linear Toeplitz matrix (BLT): its entry in row t and column s is the coefficient c of t − s,
with c_0 = 1 and c_i = Σ_j α_j λ_j^(i−1). So noise needs no more memory than one buffer for each j. Sources:
Dvijotham, McMahan et al., FOCS 2024 (arXiv 2404.16706); for clients that take part several times, McMahan,
Xu and Zhang, EMNLP 2024 (arXiv 2408.08868), Algorithm 3. DP-FTRL: Kairouz et al., ICML 2021 (arXiv
2103.00039).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from genfl import trees
from genfl.trees import Tree

MOST_BUFFERS = 4
"""The largest number of buffers that the search tries. Each of them has the size of a model."""

LEAST_GAIN = 1e-3
"""Another buffer must lower the error by this part of it, else it is not worth its memory."""

DECIMALS = 6
"""Decimals of the parameters that a search returns. The rest differs between machines."""

SHARPNESS = 1000
"""The power of the mean that stands in for the largest sensitivity while a search follows gradients."""

AT_ONCE = 256
"""Participations whose sensitivity is computed at a time."""

Participations = tuple[tuple[int, ...], ...]
"""The rounds, from 1 and ascending, in which a client takes part: one tuple for each different client."""


@dataclass(frozen=True)
class BufferedToeplitz:
    """A lower triangular matrix C with ones on its diagonal, and its inverse.

    Attributes:
        decays: λ_j, in [0, 1]: what is left of buffer j after a round.
        scales: α_j, non-negative: the part of buffer j that is subtracted from new noise.

    Raises:
        ValueError: A parameter is out of range.
    """

    decays: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.decays) != len(self.scales):
            raise ValueError(f"{len(self.decays)} decays and {len(self.scales)} scales; give one for each")
        if not all(0 <= decay <= 1 for decay in self.decays):
            raise ValueError(f"decays must be 0 to 1, not {self.decays}")
        if not all(0 <= scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be finite and at least 0, not {self.scales}")

    def coefficients(self, rounds: int) -> NDArray[np.float64]:
        """Return the first column of C, [rounds]. Its entries are not negative."""
        coefficients: NDArray[np.float64] = _coefficients(*self.parameters(), rounds).numpy()
        return coefficients

    def inverse_coefficients(self, rounds: int) -> NDArray[np.float64]:
        """Return the first column of C⁻¹, [rounds]."""
        coefficients: NDArray[np.float64] = _inverse_coefficients(*self.parameters(), rounds).numpy()
        return coefficients

    def sensitivities(self, rounds: int, participations: Participations) -> NDArray[np.float64]:
        """Return how far one client of norm 1 can move CX, for the first rounds up to each one, [rounds].

        The coefficients are not negative. So a client moves it farthest by the same upload in all of its
        rounds: by the norm of the sum of their columns (Choquette-Choo et al., ICML 2023, arXiv 2211.06530,
        Corollary 2.1).

        Args:
            rounds: The number of rounds.
            participations: In which rounds clients take part.
        """
        worst = [part.amax(0) for part in _sensitivities(self, rounds, participations)]
        sensitivities: NDArray[np.float64] = torch.stack(worst).amax(0).numpy()
        return sensitivities

    def error(self, rounds: int) -> float:
        """Return the mean over the rounds of the variance of AC⁻¹Z, for noise Z of variance 1."""
        return float(_error(*self.parameters(), rounds))

    def correlate(self, noise: Tree, buffers: Tree) -> tuple[Tree, Tree]:
        """Return the next row of C⁻¹Z, and the buffers after it.

        Args:
            noise: The next row of Z.
            buffers: The buffers of all rows before, each tensor stacked: [buffers, ...]. Zeros at first.
        """
        decays, scales = self.parameters()

        def row(fresh: Tensor, stacked: Tensor) -> Tensor:
            cancelled: Tensor = torch.tensordot(scales.to(stacked.dtype), stacked, dims=1)
            return fresh - cancelled

        def after(stacked: Tensor, correlated: Tensor) -> Tensor:
            return decays.to(stacked.dtype).view(-1, *[1] * correlated.dim()) * stacked + correlated

        correlated = trees.map(row, noise, buffers)
        return correlated, trees.map(after, buffers, correlated)

    def no_noise(self, like: Tree) -> Tree:
        """Return the buffers before the first row.

        Args:
            like: A tree of the form of a row.
        """
        return trees.map(lambda leaf: torch.zeros(len(self.decays), *leaf.shape, dtype=leaf.dtype), like)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Return decays and scales, [buffers] each, in double precision."""
        return torch.tensor(self.decays, dtype=torch.float64), torch.tensor(self.scales, dtype=torch.float64)


@lru_cache(64)
def least_error(rounds: int, participations: Participations) -> BufferedToeplitz:
    """Return the matrix whose prefix sums have the least mean squared error for the same privacy.

    It minimises the error times the squared sensitivity by L-BFGS. A buffer is added as long as it pays.

    Args:
        rounds: The number of rounds.
        participations: In which rounds clients take part; not empty.
    """

    def cost(matrix: BufferedToeplitz) -> float:
        return matrix.error(rounds) * float(matrix.sensitivities(rounds, participations)[-1]) ** 2

    best = BufferedToeplitz((), ())  # independent noise
    hardest = {max(participations, key=len)}
    for buffers in range(1, MOST_BUFFERS + 1):
        matrix = _search(rounds, buffers, hardest, participations)
        if cost(matrix) > (1 - LEAST_GAIN) * cost(best):
            break
        best = matrix
    return best


def separation(participations: Participations) -> int | None:
    """Return the least number of rounds from one participation of a client to its next; None without any."""
    gaps = [b - a for rounds in participations for a, b in itertools.pairwise(rounds)]
    return min(gaps, default=None)


def _search(
    rounds: int, buffers: int, hardest: set[tuple[int, ...]], participations: Participations
) -> BufferedToeplitz:
    """Return the best matrix with so many buffers.

    Few participations decide on the sensitivity. The search begins with some, and adds the one that is worst
    for the matrix that it ends with, until that is none that it does not know.

    Args:
        rounds: The number of rounds.
        buffers: The number of buffers.
        hardest: Participations to begin with; those that are added stay.
        participations: All of them.
    """
    while True:
        matrix = _descend(_marks(rounds, sorted(hardest)), buffers)
        totals = torch.cat([part[:, -1] for part in _sensitivities(matrix, rounds, participations)])
        worst = participations[int(totals.argmax())]
        if worst in hardest:
            return matrix
        hardest.add(worst)


def _descend(marks: Tensor, buffers: int) -> BufferedToeplitz:
    """Return the best matrix with so many buffers for participations, [participations, rounds]."""
    rounds = marks.shape[1]

    def parameters(point: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(point[:buffers]), torch.exp(point[buffers:])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        point = torch.tensor(values, requires_grad=True)
        decays, scales = parameters(point)
        squares = _squared_sensitivities(decays, scales, marks)[:, -1]
        largest = torch.logsumexp(SHARPNESS * squares.log(), 0) / SHARPNESS
        total = _error(decays, scales, rounds).log() + largest
        (gradient,) = torch.autograd.grad(total, point)
        return total.item(), gradient.numpy()

    # Decays from far below 1 up to a memory of all rounds. The best c_1 for one participation is 1/2.
    rest = 0.5 * max(rounds, 2) ** (-np.arange(1, buffers + 1) / buffers)
    start = np.concatenate([np.log(1 / rest - 1), np.log(0.5 * rest / rest.sum())])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    decays, scales = (values.numpy().round(DECIMALS) for values in parameters(torch.tensor(found.x)))
    return BufferedToeplitz(tuple(decays.tolist()), tuple(scales.tolist()))


def _marks(rounds: int, participations: Sequence[tuple[int, ...]]) -> Tensor:
    """Return a row for each participation, 1 in its rounds and else 0, [participations, rounds]."""
    marks = torch.zeros(len(participations), rounds, dtype=torch.float64)
    for row, taken in zip(marks, participations, strict=True):
        row[torch.tensor(taken, dtype=torch.int64) - 1] = 1
    return marks


def _coefficients(decays: Tensor, scales: Tensor, rounds: int) -> Tensor:
    powers = decays ** torch.arange(rounds - 1, dtype=torch.float64)[:, None]
    return torch.cat([torch.ones(1, dtype=torch.float64), powers @ scales])


def _inverse_coefficients(decays: Tensor, scales: Tensor, rounds: int) -> Tensor:
    """Return the first column of C⁻¹: −αᵀMⁱ⁻¹1 with M = diag(λ) − 1αᵀ, which steps the buffers."""
    step = torch.diag(decays) - scales
    rows = scales[None]  # αᵀMⁱ, of which each pass doubles the number
    while len(rows) < rounds - 1:
        rows = torch.cat([rows, rows @ step])
        step = step @ step
    return torch.cat([torch.ones(1, dtype=torch.float64), -rows[: rounds - 1].sum(1)])


def _sensitivities(matrix: BufferedToeplitz, rounds: int, participations: Participations) -> Iterator[Tensor]:
    """Yield the sensitivity to some clients after each round, [at most `AT_ONCE`, rounds]."""
    for first in range(0, len(participations), AT_ONCE):
        marks = _marks(rounds, participations[first : first + AT_ONCE])
        yield _squared_sensitivities(*matrix.parameters(), marks).sqrt()


def _squared_sensitivities(decays: Tensor, scales: Tensor, marks: Tensor) -> Tensor:
    """Return the squared norm of the first rows of C times each participation, [participations, rounds]."""
    rounds = marks.shape[1]
    coefficients = _coefficients(decays, scales, rounds)
    spectrum = torch.fft.rfft(coefficients, 2 * rounds) * torch.fft.rfft(marks, 2 * rounds)
    moved: Tensor = torch.fft.irfft(spectrum, 2 * rounds)[:, :rounds]
    return moved.square().cumsum(1)


def _error(decays: Tensor, scales: Tensor, rounds: int) -> Tensor:
    """Return ‖AC⁻¹‖²_F / rounds. Row t of AC⁻¹ has the first t prefix sums of the column of C⁻¹."""
    column = _inverse_coefficients(decays, scales, rounds).cumsum(0)
    return (column.square() * torch.arange(rounds, 0, -1, dtype=torch.float64)).sum() / rounds
