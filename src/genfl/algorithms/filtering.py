"""FedGC's filter: clients train on those generated samples that the global model finds most plausible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.algorithms.base import Algorithm, HeldSamples
from genfl.errors import InputError
from genfl.learning.task import Task
from genfl.options import Share, check_fields
from genfl.trees import Tree


@dataclass(frozen=True)
class SampleFilter:
    """A rule for the samples that a client trains on: those of least loss.

    Source: "Federated Learning with Generative Content" (NeurIPS 2024 submission 6501), Appendix L.

    Attributes:
        share: The share of the samples that is kept, one at least; in (0, 1].
        by_class: Whether that share of each class is kept, or of all samples.
    """

    share: Share
    by_class: bool

    def __post_init__(self) -> None:
        check_fields(self)

    def choose(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return the positions of the kept samples, ascending.

        Args:
            losses: Of each sample, [n].
            labels: Their class indices, [n].
        """
        groups = labels if self.by_class else torch.zeros_like(labels)
        chosen = []
        for group in groups.unique():
            members = torch.nonzero(groups == group)[:, 0]
            best = losses[members].argsort(stable=True)
            chosen.append(members[best[: max(1, int(self.share * len(members) + 0.5))]])
        return torch.cat(chosen).sort().values


def filtered(
    algorithm: Algorithm, task: Task, keep: SampleFilter, *, part: int, from_round: int = 1
) -> Algorithm:
    """Return the algorithm whose clients filter one part of their data by its loss under the global model.

    Source: as `SampleFilter`.

    Args:
        algorithm: What clients and server compute; its message holds the global model as ``weights``.
        task: What is learned.
        keep: Which samples are kept.
        part: The number of the part of clients' data that is filtered; FedGC's generated samples.
        from_round: The first round that filters, from 1: early models judge badly.

    Raises:
        InputError: In the first round that filters, if the message holds no global model.
    """

    def select(message: Tree, held: HeldSamples) -> Sequence[Tensor]:
        numbers = torch.arange(sum(held.part_sizes), device="cpu")  # also in a block of another device
        rows = list(numbers.split(list(held.part_sizes)))
        if held.round < from_round or part >= len(rows) or not len(rows[part]):
            return rows
        if "weights" not in message:
            raise InputError("clients cannot filter their samples: the server sends them no global model")
        examples = held.examples(rows[part])
        logits = task.predict(message["weights"], examples["x"])
        losses = F.cross_entropy(logits, examples["y"], reduction="none")
        kept = keep.choose(losses.cpu(), examples["y"].cpu())
        rows[part] = rows[part][kept]
        return rows

    return algorithm._replace(client=algorithm.client._replace(select=select))
