"""When a recording is made, when its replays are trusted, and when they are checked again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from genfl import trees
from genfl.engines.fast import VARIABLE, FastStats

log = logging.getLogger(__name__)

AFTER = 1000
"""Client steps of one signature that a process takes before it records one, which costs it about a second."""

TRIALS = 3
"""Replays that are compared with the step itself before they are trusted."""

CHECK_EVERY = 10_000
"""Client steps that are replayed from a recording between two comparisons with the step itself.

A step may read something besides its arguments, such as a Python variable, and a recording freezes what it
read. A comparison of one step in 10,000 notices it, and costs less than a thousandth of the time.
"""

RECORDINGS = 32
"""Signatures of steps that are kept, those used last: each may hold a recording."""

_T = TypeVar("_T")


class Replays:
    """The replays of one program, by the signature of what is replayed.

    Args:
        name: What is replayed, for a person.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.recordings = self.replayed = self.stepped = self.compared = self.disagreements = 0
        self.reasons: dict[str, None] = {}  # in the order in which they came
        self.distrusted = False
        self._by_signature: OrderedDict[Hashable, Replay] = OrderedDict()

    def of(self, signature: Hashable) -> Replay:
        """Return the replays of a signature, and forget those of the signature used longest ago."""
        replay = self._by_signature.get(signature)
        if replay is None:
            replay = self._by_signature[signature] = Replay(self)
            if len(self._by_signature) > RECORDINGS:
                self._by_signature.popitem(last=False)
        else:
            self._by_signature.move_to_end(signature)
        return replay

    def signatures(self) -> list[Hashable]:
        """Return the signatures that are kept, that used last at the end."""
        return list(self._by_signature)

    def stats(self) -> FastStats:
        """Return what was recorded, replayed and compared."""
        return FastStats(
            self.recordings,
            self.replayed,
            self.stepped,
            self.compared,
            self.disagreements,
            tuple(self.reasons),
        )

    def note(self, reason: str) -> None:
        """Log why something runs as it is, unless that is known already."""
        if reason not in self.reasons and len(self.reasons) < RECORDINGS:
            self.reasons[reason] = None
            log.info(reason)

    def distrust(self, leaf: str) -> None:
        """Give up all replays for good: one that was trusted differed from the step itself.

        Args:
            leaf: What differed.
        """
        self.disagreements += 1
        self.distrusted = True
        self._by_signature.clear()
        reason = (
            f"{self.name} is no longer replayed: {leaf} of a replay differs from that of the step itself. The"
            " step reads something that changes besides its arguments, such as a Python variable. Up to"
            f" {CHECK_EVERY:,} replayed steps may be wrong; set {VARIABLE}=0 and run again"
        )
        self.reasons[reason] = None
        log.warning(reason)


class Replay:
    """The replays of what clients do with one signature: their steps, or what comes after the last one.

    Args:
        program: The program's replays, this one among them.
    """

    def __init__(self, program: Replays) -> None:
        self.program = program
        self.recording: Any = None
        self.rejected = False
        self._seen = 0  # client steps
        self._trials = 0
        self._unchecked = 0  # client steps that were replayed since the last comparison

    @property
    def trusted(self) -> bool:
        """Whether enough replays agreed with the step itself."""
        return self._trials >= TRIALS and not self.rejected

    def run(
        self, record: Callable[[], Any], play: Callable[[Any], _T], step: Callable[[], _T], clients: int = 1
    ) -> _T:
        """Return what a step gives: from the recording where it is trusted, and else from the step itself.

        Args:
            record: Records the step; it may raise anything.
            play: Plays the recording; gives a tree, or a list of leaves.
            step: The step itself.
            clients: How many clients take it.
        """
        program = self.program
        self._seen += clients
        if self.rejected or program.distrusted or self._seen <= AFTER:
            program.stepped += clients
            return step()
        try:
            if self.recording is None:
                self.recording = record()
                program.recordings += 1
            replayed = play(self.recording)
        except Exception as error:  # whatever it is, the step itself can do without
            first_line = str(error).partition("\n")[0] or type(error).__name__
            self._reject(first_line)
            program.stepped += clients
            return step()
        if self._trials >= TRIALS and self._unchecked + clients <= CHECK_EVERY:
            self._unchecked += clients
            program.replayed += clients
            return replayed
        result = step()
        program.stepped += clients
        program.compared += 1
        self._unchecked = 0
        difference = _difference(replayed, result)
        if difference is not None and self._trials < TRIALS:
            self._reject(f"{difference} of a replay differs from its own")
        elif difference is not None:
            program.distrust(difference)
        self._trials += 1
        return result

    def _reject(self, why: str) -> None:
        self.rejected, self.recording = True, None
        self.program.note(f"{self.program.name} runs as it is, not recorded and replayed: {why}")


def _difference(replayed: Any, result: Any) -> str | None:
    """Return the name of the first leaf that is not the same, bit for bit; None if all are."""
    if isinstance(result, list):
        pairs = list(zip(map(str, range(len(result))), replayed, result, strict=True))
    elif trees.names(replayed) != trees.names(result):
        return "the structure"
    else:
        pairs = list(zip(_paths(result), trees.leaves(replayed), trees.leaves(result), strict=True))
    return next((f"leaf {path}" for path, mine, other in pairs if not _same(mine, other)), None)


def _paths(tree: Any, path: str = "") -> list[str]:
    """Return a name for each leaf, such as ``local.params.weight``."""
    if type(tree) is not dict:
        return [path or "it"]
    return [name for key, branch in tree.items() for name in _paths(branch, f"{path}.{key}" if path else key)]


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return a is b
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True))
