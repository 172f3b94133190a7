"""The random streams of noise: nothing else draws from them, and no two trials share one."""

from __future__ import annotations

from typing import TypeVar

from genfl.rng import Key, Stream

NOISE = "dp noise"
"""The name of every stream of noise, below the stream of a client's step or of the server's round."""

StreamKind = TypeVar("StreamKind", Key, Stream)


def noise_stream(stream: StreamKind, trial: str) -> StreamKind:
    """Return the random stream of noise below another one.

    Args:
        stream: The stream of a client's step, or of the server's round. Methods with the same seed share it.
        trial: What distinguishes the trial's noise from that of others with the same seed, such as the digest
            of everything that the trial depends on. Noise that two trials share would cancel out in the
            difference of their models.
    """
    # An address holds 32 bits of a name: of a digest of 64 digits, eight names hold all.
    return stream.fold(NOISE, *(trial[part::8] for part in range(8)))
