"""The one door of the fast path: a client's step is recorded once, and then replayed without autograd.

The rest of genfl uses the names of this module only. The fast path changes no result of clients that run one
by one. It is off where ``GENFL_FAST=0`` is set, and where PyTorch lacks an operation that it needs; genfl
then runs every step as it is. `fast_status` says which, and ``engine.stats()`` says what the fast path did.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from genfl.errors import InputError

if TYPE_CHECKING:
    from genfl.algorithms.base import ClientProgram
    from genfl.engines.fast.batches import BatchedSteps as BatchedSteps

log = logging.getLogger(__name__)

VARIABLE = "GENFL_FAST"
"""The environment variable that switches the fast path off everywhere."""


class FastStats(NamedTuple):
    """The numbers of the fast path for a program.

    Attributes:
        recordings: How many recordings were made.
        replayed: How many client steps were replayed from them. Where clients run together, what they do
            after the last step counts as a step as well.
        stepped: How many client steps ran as they are.
        compared: How many replays were compared with the step itself, bit for bit.
        disagreements: How many trusted replays turned out to differ from the step itself; see
            `genfl.engines.fast.replays.CHECK_EVERY`.
        reasons: Why something runs as it is, and is not replayed.
    """

    recordings: int = 0
    replayed: int = 0
    stepped: int = 0
    compared: int = 0
    disagreements: int = 0
    reasons: tuple[str, ...] = ()

    def __add__(self, other: object) -> FastStats:
        """Return the sums of both, and the reasons of both, each once."""
        if not isinstance(other, FastStats):
            return NotImplemented
        return FastStats(
            self.recordings + other.recordings,
            self.replayed + other.replayed,
            self.stepped + other.stepped,
            self.compared + other.compared,
            self.disagreements + other.disagreements,
            tuple(dict.fromkeys(self.reasons + other.reasons)),
        )


class FastStatus(NamedTuple):
    """The state of the fast path.

    Attributes:
        on: Whether it is.
        why: What makes it so, for a person.
    """

    on: bool
    why: str


def fast_status() -> FastStatus:
    """Return whether the fast path is on in this process, and why.

    Raises:
        InputError: ``GENFL_FAST`` is neither 0 nor 1.
    """
    if not _switched_on():
        return FastStatus(False, f"{VARIABLE}={os.environ[VARIABLE]}")
    obstacle = _obstacle()
    return FastStatus(obstacle is None, obstacle or "PyTorch has every operation that it needs")


def why_off(accelerated: bool) -> str | None:
    """Return why steps of an engine are not replayed; None where they may be.

    Args:
        accelerated: Whether the engine was asked to replay.
    """
    if not accelerated:
        return "the fast path is off: this engine runs every step as it is"
    on, why = fast_status()
    return None if on else f"the fast path is off: {why}"


def _switched_on() -> bool:
    switch = os.environ.get(VARIABLE, "").strip().lower()
    if switch in ("0", "false", "no", "off"):
        return False
    if switch in ("", "1", "true", "yes", "on"):
        return True
    raise InputError(f"{VARIABLE}: {switch!r} is neither 0 nor 1; set it to 0 to switch the fast path off")


@functools.cache
def _obstacle() -> str | None:
    """Return what is wrong with this version of PyTorch, and warn of it once; None if nothing is."""
    import torch

    from genfl.engines.fast.operations import missing

    try:
        absent = missing()
        if not absent:
            from genfl.engines.fast import batches, recording  # noqa: F401
    except (ImportError, AttributeError) as error:  # something that the list of operations does not name
        absent = [str(error)]
    if not absent:
        return None
    why = f"PyTorch {torch.__version__} lacks {', '.join(absent)}"
    log.warning("the fast path is off: %s; results are right, and training is slower", why)
    return why


def accelerate(program: ClientProgram) -> ClientProgram:
    """Return a program of the same bits whose step, after many, replays the tensor operations of one.

    What a step draws is no part of the recording: it is drawn anew, from the step's stream. A step that
    cannot be recorded, or whose replays differ from it in one bit, runs as it is.

    Args:
        program: What a client does.

    Returns:
        The program itself where the fast path is off.
    """
    if not fast_status().on:
        return program
    from genfl.engines.fast.recording import RecordedStep

    return program._replace(step=RecordedStep(program.step))


def accelerate_batches(program: ClientProgram) -> BatchedSteps | None:
    """Return the fast path of clients that `torch.vmap` runs together; None where it is off.

    Args:
        program: What each of the clients does.
    """
    if not fast_status().on:
        return None
    from genfl.engines.fast.batches import BatchedSteps

    return BatchedSteps(program)


def stats_of(program: ClientProgram | None) -> FastStats:
    """Return what the fast path did for a program that `accelerate` returned."""
    stats = getattr(program.step if program else None, "stats", None)
    return stats() if stats else FastStats()


@contextlib.contextmanager
def keeping_memory(fast: bool = True) -> Iterator[None]:
    """Keep freed memory for the next tensors for the length of a block; see `genfl.engines.fast.allocator`.

    Args:
        fast: False changes nothing, and neither does ``GENFL_FAST=0``.
    """
    from genfl.engines.fast.allocator import keeping_freed_memory

    with keeping_freed_memory() if fast and _switched_on() else contextlib.nullcontext():
        yield


def leave_logging_to_parent() -> None:
    """Log nothing of what is replayed in this process: its parent does, by `log_changes`."""
    logging.getLogger(f"{__name__}.replays").disabled = True


def log_changes(before: FastStats, after: FastStats) -> None:
    """Log why other processes stopped replaying, as it would have been logged in this one.

    Args:
        before: The stats of an earlier call.
        after: The stats now.
    """
    for reason in after.reasons:
        if reason not in before.reasons:
            log.log(logging.WARNING if after.disagreements > before.disagreements else logging.INFO, reason)
