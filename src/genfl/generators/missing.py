"""Generation of the blocks that a data set lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from genfl import progress
from genfl.data import quality
from genfl.data.samples import Prompt
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.generators.base import Generator
from genfl.threads import on_threads

MOST_UNUSABLE = 10
"""If every one of the first samples, at least so many, is unusable, generation stops."""


def generate_missing(
    data: SyntheticData,
    blocks: Sequence[Sequence[Prompt]],
    numbers: Sequence[int],
    make: Callable[[], Generator],
    *,
    prompted: bool,
) -> None:
    """Generate the blocks that a data set lacks, and leave out unusable samples.

    Each finished block is written at once, so that generation resumes after it.

    Args:
        data: The data set, with a shard for each block.
        blocks: The prompts of all blocks.
        numbers: The blocks to generate, if the data set lacks them.
        make: Returns the generator; not called if nothing is missing.
        prompted: Whether samples are generated from prompts.

    Raises:
        InputError: Every one of the first samples is unusable.
    """
    wanted = set(numbers)
    missing = [number for number in data.repair() if number in wanted]
    if not missing:
        return
    total, left = (sum(len(blocks[number]) for number in some) for some in (numbers, missing))
    generator = make()
    generator.check_prompts([prompt for block in blocks for prompt in block])
    threads = generating_threads(generator, data)
    with progress.bar("generate", total, "samples", total - left) as advance, on_threads(threads):
        for number in missing:
            began = time.perf_counter()
            samples = list(generator.generate(blocks[number]))
            seconds = time.perf_counter() - began
            usable, removed = quality.sift(samples, data.modality)
            data.write(number, usable, generator.id, seconds, prompted, removed, threads)
            advance(len(samples))
            if not usable:
                _check_some_usable(data)


def generating_threads(generator: Generator, data: SyntheticData) -> int:
    """Return the number of threads to generate on: if samples exist, the number they were generated on.

    The number changes the last bits of samples. So a set that is resumed on other cores ends the same.

    Args:
        generator: The generator.
        data: The samples so far.
    """
    known = [shard.threads for shard in data.finished().values() if shard.threads]
    wanted: int | None = getattr(generator, "threads", None)  # a user's own may lack it
    return wanted or (known[0] if known else torch.get_num_threads())


def _check_some_usable(data: SyntheticData) -> None:
    """Stop a generator that makes nothing usable before all is generated, and paid for.

    Raises:
        InputError: None of the first `MOST_UNUSABLE` samples or more is usable.
    """
    generated = sum(shard.generated for shard in data.finished().values())
    if generated >= MOST_UNUSABLE and not data.files():
        reasons = sorted({reason for counts in data.removed().values() for reason in counts})
        data.forget()  # the cause may be outside the settings
        raise InputError(
            f"generator: none of the first {generated} samples is usable ({', '.join(reasons)}); change the"
            " generator's settings, or the prompts"
        )
