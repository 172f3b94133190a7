"""Which samples a client's local steps use, drawn before the first step."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from genfl.rng import Key

Order = Literal["mixed", "p2g", "g2p"]
"""How private and generated samples take turns in a round: together, or one after the other."""

ORDERS: tuple[Order, ...] = get_args(Order)


class Keep(NamedTuple):
    """Which of its generated samples a client trains on: those that the global model finds most plausible.

    Source: "Federated Learning with Generative Content" (NeurIPS 2024 submission 6501), Appendix L.

    Attributes:
        share: The share of them that is kept, those of least loss, and one at least; in (0, 1].
        by_class: Whether of each class so many are kept, or of all together.
    """

    share: float
    by_class: bool

    def choose(self, losses: Tensor, labels: Tensor) -> np.ndarray:
        """Returns the places of the samples that are kept, ascending, given each one's loss and class."""
        groups = labels if self.by_class else torch.zeros_like(labels)
        kept = []
        for group in groups.unique():
            places = torch.nonzero(groups == group)[:, 0]
            best = losses[places].argsort(stable=True)
            kept.append(places[best[: max(1, int(self.share * len(places) + 0.5))]])
        return torch.cat(kept).sort().values.numpy()


class Batches(NamedTuple):
    """How the batches of a client's round are drawn, wherever the client runs.

    Attributes:
        batch_size: Samples in a batch, at least 1.
        steps: How many batches; None to count in epochs.
        epochs: How many passes over the data, where `steps` is None.
        key: The random stream.
        order: How private and generated samples take turns. One after the other, each gets all the epochs, or
            its half of the steps.
        keep: Which generated samples are trained on; None for all.
    """

    batch_size: int
    steps: int | None
    epochs: int
    key: Key
    order: Order = "mixed"
    keep: Keep | None = None

    def draw(self, private: np.ndarray, generated: np.ndarray) -> list[Tensor]:
        """Returns each step's rows, drawn from the rows of a client's private and generated samples."""
        rng, rows = self.key.numpy(), np.concatenate([private, generated])
        drawn: list[Tensor] = []
        for (first, last), steps in self._phases(len(private), len(generated)):
            drawn += plan(rows[first:last], self.batch_size, steps, self.epochs, rng)
        return drawn

    def length(self, private: int, generated: int) -> int:
        """Returns how many steps a client with so many samples takes."""
        return sum(
            self.epochs * ((last - first) // min(self.batch_size, last - first)) if steps is None else steps
            for (first, last), steps in self._phases(private, generated)
        )

    def _phases(self, private: int, generated: int) -> list[tuple[tuple[int, int], int | None]]:
        """Returns what is trained on in turn, as a range of places, and for how many steps."""
        total = private + generated
        parts = [(0, private), (private, total)] if self.order != "mixed" else [(0, total)]
        parts = [part for part in parts if part[0] < part[1]]
        if self.order == "g2p":
            parts.reverse()
        n = len(parts)
        return [
            (part, None if self.steps is None else (self.steps + n - 1 - place) // n)
            for place, part in enumerate(parts)
        ]


def plan(
    rows: np.ndarray, batch_size: int, steps: int | None, epochs: int, rng: np.random.Generator
) -> list[Tensor]:
    """Draws the batches of a client's round.

    Every pass over the data is shuffled anew. A batch is full, or the client's whole set where that is
    smaller: the rest of a pass that does not fill a batch is left out, because padded or odd-sized batches
    would disturb batch norm.

    Args:
        rows: The client's samples, int64.
        batch_size: Samples in a batch, at least 1.
        steps: How many batches; None to count in epochs.
        epochs: How many passes over the data, where `steps` is None.
        rng: The random stream.

    Returns:
        For each step some of the rows, int64 [min(batch_size, samples)].
    """
    size = min(batch_size, len(rows))
    if size == 0:
        return []
    a_pass = len(rows) // size
    total = epochs * a_pass if steps is None else steps
    drawn: list[Tensor] = []
    while len(drawn) < total:
        order = torch.from_numpy(rng.permutation(rows))
        drawn += order[: a_pass * size].view(a_pass, size).unbind()
    return drawn[:total]
