"""The global models of some rounds of a federation, as files beside its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from genfl.learning.task import Task, Weights
from genfl.storage import checkpoint_digest, load_part, load_tensors, remove, save_tensors

ROUNDS = "rounds"
"""The folder of the models, below that of the federation."""


def kept_rounds(rounds: int, every: int | None) -> tuple[int, ...]:
    """Return the rounds after which a model is kept, besides the last one.

    Args:
        rounds: The number of rounds.
        every: The rounds between kept models; None keeps none.
    """
    return () if every is None else tuple(range(every, rounds, every))


class KeptModels(NamedTuple):
    """The global models of some rounds. A file holds a state dict, as ``model.safetensors`` does.

    Attributes:
        home: The folder of the federation's files.
        digest: The digest of everything that the federation depends on.
        rounds: The rounds after which a model is kept, ascending.
    """

    home: Path
    digest: str
    rounds: Sequence[int]

    def file(self, number: int) -> Path:
        """Return the file of a round's model."""
        return self.home / ROUNDS / f"round-{number}.safetensors"

    def save(self, task: Task, number: int, weights: Weights) -> None:
        """Write the global model after a round, if it is to be kept."""
        if number in self.rounds:
            save_tensors(self.file(number), task.state_dict(weights), {"digest": self.digest})

    def state_dict(self, number: int) -> dict[str, Tensor] | None:
        """Return the state dict of a round's model; None if the file is missing or of another federation.

        Raises:
            GenflError: The file is damaged.
        """
        if checkpoint_digest(self.file(number)) != self.digest:
            return None
        tensors: dict[str, Tensor] = load_tensors(self.file(number))[0]
        return tensors

    def resumable(self, checkpoint: Path) -> int:
        """Return after how many rounds a checkpoint can be resumed: 0 if a model before it is missing.

        Args:
            checkpoint: The checkpoint. It may be absent, damaged, or of another federation.
        """
        if checkpoint_digest(checkpoint) != self.digest:
            return 0
        needed = self.beside(checkpoint)
        complete = all(checkpoint_digest(self.home / name) == self.digest for name in needed)
        return _rounds_done(checkpoint) if complete else 0

    def beside(self, checkpoint: Path) -> list[str]:
        """Return the files of models that a checkpoint needs, relative to its folder.

        Args:
            checkpoint: A checkpoint of the federation, of this run or of another.
        """
        done = _rounds_done(checkpoint)
        return [f"{self.file(number).relative_to(self.home)}" for number in self.rounds if number <= done]

    def restart_incomplete(self, checkpoint: Path) -> None:
        """Delete a checkpoint that lacks models of earlier rounds, so that the federation starts over."""
        if checkpoint_digest(checkpoint) == self.digest and not self.resumable(checkpoint):
            remove(checkpoint, self.home)

    def discard_others(self) -> None:
        """Delete the models of rounds that are not to be kept any more."""
        kept, folder = set(map(self.file, self.rounds)), self.home / ROUNDS
        for file in folder.glob("*"):
            if file not in kept:
                remove(file, self.home)
        if not kept:
            remove(folder, self.home)


def _rounds_done(checkpoint: Path) -> int:
    return len(load_part(checkpoint, ())[1]["rounds"])
