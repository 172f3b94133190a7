"""Random streams addressed by name, so that no result depends on the order in which work is done.

Everything random in genfl is drawn from a `Key`: the run's seed plus the address of the draw, for example
``Key(seed).fold("plan", round, client)``. Two draws with different addresses are independent; the same
address always gives the same numbers, whoever asks first, in which process, before or after an interruption.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Key:
    """The address of a random stream.

    Attributes:
        seed: The run's seed, a non-negative integer.
        path: Where in the run the stream is used, as 32-bit words.
    """

    seed: int
    path: tuple[int, ...] = ()

    def fold(self, *address: int | str) -> Key:
        """Returns the key of a place below this one.

        Args:
            *address: Names and non-negative integers, for example ``"cohort", 3``.
        """
        return Key(self.seed, self.path + tuple(map(_word, address)))

    def numpy(self) -> np.random.Generator:
        """Returns a NumPy generator at the start of this stream."""
        return np.random.default_rng(self._sequence())

    def torch(self) -> torch.Generator:
        """Returns a CPU torch generator at the start of this stream."""
        return torch.Generator().manual_seed(self.integer())

    def integer(self) -> int:
        """Returns the stream's first 63 bits: a seed for whoever wants a plain integer."""
        return int(self._sequence().generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _sequence(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=self.path)


def _word(part: int | str) -> int:
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4).digest(), "little")
    if part < 0:
        raise ValueError(f"a key is made of names and non-negative integers, not {part}")
    return int(part)
