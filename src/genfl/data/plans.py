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

    def choose(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Returns the places of the samples that are kept, ascending, given each one's loss and class."""
        groups = labels if self.by_class else torch.zeros_like(labels)
        kept = []
        for group in groups.unique():
            places = torch.nonzero(groups == group)[:, 0]
            best = losses[places].argsort(stable=True)
            kept.append(places[best[: max(1, int(self.share * len(places) + 0.5))]])
        return torch.cat(kept).sort().values


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

    def draw(self, private: int, generated: int) -> list[Tensor]:
        """Returns each step's samples: their places, private ones first, of a client that has so many."""
        rng = self.key.numpy()
        drawn: list[Tensor] = []
        for first, samples, steps in self._phases(private, generated):
            batches = plan(samples, self.batch_size, steps, self.epochs, rng)
            drawn += [first + places for places in batches] if first else batches
        return drawn

    def length(self, private: int, generated: int) -> int:
        """Returns how many steps a client with so many samples takes."""
        return sum(
            self.epochs * (samples // min(self.batch_size, samples)) if steps is None else steps
            for _, samples, steps in self._phases(private, generated)
        )

    def _phases(self, private: int, generated: int) -> list[tuple[int, int, int | None]]:
        """Returns what is trained on in turn: the first place, how many samples, and for how many steps."""
        if self.order == "mixed" or not (private and generated):
            total = private + generated
            return [(0, total, self.steps)] if total else []
        both = [(0, private), (private, generated)]
        if self.order == "g2p":
            both.reverse()
        halves = (None, None) if self.steps is None else ((self.steps + 1) // 2, self.steps // 2)
        return [(first, samples, steps) for (first, samples), steps in zip(both, halves, strict=True)]


def plan(
    samples: int, batch_size: int, steps: int | None, epochs: int, rng: np.random.Generator
) -> list[Tensor]:
    """Draws the batches of a client's round.

    Every pass over the data is shuffled anew. A batch is full, or the client's whole set where that is
    smaller: the rest of a pass that does not fill a batch is left out, because padded or odd-sized batches
    would disturb batch norm.

    Args:
        samples: How many the client has.
        batch_size: Samples in a batch, at least 1.
        steps: How many batches; None to count in epochs.
        epochs: How many passes over the data, where `steps` is None.
        rng: The random stream.

    Returns:
        For each step the places of some of the samples, int64 [min(batch_size, samples)].
    """
    size = min(batch_size, samples)
    if size == 0:
        return []
    a_pass = samples // size
    total = epochs * a_pass if steps is None else steps
    drawn: list[Tensor] = []
    while len(drawn) < total:
        order = torch.from_numpy(rng.permutation(samples))
        drawn += order[: a_pass * size].view(a_pass, size).unbind()
    return drawn[:total]
