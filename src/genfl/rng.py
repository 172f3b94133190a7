"""Random streams addressed by name, so that no result depends on the order in which work is done.

Everything random in genfl is drawn from a `Key`: the run's seed plus the address of the draw, for example
``Key(seed).fold("plan", round, client)``. Two draws with different addresses are independent; the same
address always gives the same numbers, in any order, in any process, before or after an interruption.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_WORD = 2**32

Sampler = Callable[..., Any]
"""``(generator, *tensors) -> tensor, or tuple of them``: something drawn, from the tensors."""


class Stream(Protocol):
    """A client program's random stream, whether the client runs alone or batched with others."""

    def fold(self, *address: int | str) -> Stream:
        """Return the stream of an address below this one."""
        ...

    def draw(self, sampler: Sampler, *inputs: Tensor) -> Any:
        """Return ``sampler(generator, *inputs)`` with a CPU generator at the start of this stream."""
        ...


@dataclass(frozen=True)
class Key:
    """The address of a random stream.

    Attributes:
        seed: The run's seed, a non-negative integer.
        path: Where in the run the stream is used, as non-negative integers.
    """

    seed: int
    path: tuple[int, ...] = ()

    def fold(self, *address: int | str) -> Key:
        """Return the key of an address below this one.

        Args:
            *address: Names and non-negative integers, for example ``"cohort", 3``.
        """
        return Key(self.seed, self.path + tuple(map(_word, address)))

    def numpy(self) -> np.random.Generator:
        """Return a NumPy generator at the start of this stream."""
        return np.random.default_rng(self._sequence())

    def torch(self) -> torch.Generator:
        """Return a CPU torch generator at the start of this stream."""
        return torch.Generator().manual_seed(self.integer())

    def integer(self) -> int:
        """Return the stream's first 63 bits: a seed for whoever wants a plain integer."""
        return int(self._sequence().generate_state(1, np.uint64)[0] >> np.uint64(1))

    def draw(self, sampler: Sampler, *inputs: Tensor) -> Any:
        """Return ``sampler(generator, *inputs)`` with a CPU generator at the start of this stream.

        It draws on the CPU, also in a block of another default device, where the result then is.
        """
        device = default_device()
        if device.type == "cpu":
            return sampler(self.torch(), *(tensor.cpu() for tensor in inputs))
        with torch.device("cpu"):
            return _moved(sampler(self.torch(), *(tensor.cpu() for tensor in inputs)), device)

    def _sequence(self) -> np.random.SeedSequence:
        words = (operator.index(self.seed), 0, 0, 0, *self.path)  # what a spawn key comes to
        if min(words) >= 0 and max(words) < _WORD:
            return np.random.SeedSequence(np.array(words, np.uint32))  # takes half the time
        return np.random.SeedSequence(self.seed, spawn_key=self.path)


class Keys:
    """The keys of clients that `torch.vmap` runs together: each draws what it would draw alone.

    Args:
        keys: Of all clients of the batch.
        index: Inside vmap, the client's position among them: a scalar.
    """

    def __init__(self, keys: Sequence[Key], index: Tensor) -> None:
        self.keys = keys
        self.index = index

    def fold(self, *address: int | str) -> Keys:
        """Return the keys of an address below these; see `Key.fold`."""
        return Keys([key.fold(*address) for key in self.keys], self.index)

    def draw(self, sampler: Sampler, *inputs: Tensor) -> Any:
        """Return what each client draws from its own stream; see `Key.draw`."""
        device = default_device()  # inside, there is none
        return _moved(_Draw.apply(self.index, self.keys, sampler, *inputs), device)  # type: ignore[no-untyped-call]


class _Draw(torch.autograd.Function):
    """Draws client by client under vmap, which supports no generator but the global one."""

    @staticmethod
    def forward(index: Tensor, keys: Sequence[Key], sampler: Sampler, *inputs: Tensor) -> Any:
        return keys[int(index)].draw(sampler, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, index: Tensor, keys: Sequence[Key], sampler: Sampler, *inputs: Tensor
    ) -> Any:
        drawn = []
        for position in range(info.batch_size):
            selected = [
                tensor if dim is None else tensor.select(dim, position)
                for tensor, dim in zip(inputs, in_dims[3:], strict=True)
            ]
            drawn.append(keys[int(index[position])].draw(sampler, *selected))
        if isinstance(drawn[0], tuple):
            together = tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
            return together, (0,) * len(together)
        return torch.stack(drawn), 0


def default_device() -> torch.device:
    """Return the device of new tensors. In torch 2.6, `torch.get_default_device` misses blocks."""
    return torch.empty(0).device


def _moved(drawn: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return drawn
    return tuple(v.to(device) for v in drawn) if isinstance(drawn, tuple) else drawn.to(device)


def _word(part: int | str) -> int:
    if isinstance(part, str):
        return _hashed(part)
    if part < 0:
        raise ValueError(f"a key is made of names and non-negative integers, not {part}")
    return int(part)


@lru_cache
def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
