"""The readable reference: one client after the other, one step after the other."""

from __future__ import annotations

from collections.abc import Sequence

from genfl.algorithms.base import Client
from genfl.engines.base import Data, Forms, OneByOne, Outcome, Reduce, Tally, Work, one_thread
from genfl.engines.reductions import Plain


class Sequential:
    """Runs clients in the order of their numbers, on one thread.

    The number of threads changes the order in which floating-point numbers are added, and so the last bits
    of a result; one thread is what every CPU engine can agree on.

    Args:
        data: What the clients hold.
        reduce: How uploads are added up.
    """

    def __init__(self, data: Data, reduce: Reduce = Plain) -> None:
        self.data = data
        self.reduce = reduce
        self._run = OneByOne(data)
        self._forms: Forms | None = None

    def __call__(self, program: Client, work: Sequence[Work]) -> Outcome:
        """Runs the program for each client of the cohort; see `genfl.engines.base.Engine`."""
        if self._forms is None or self._forms.program is not program:
            self._forms = Forms(program, self.data)
        tally = Tally(self.reduce(dict(program.reductions)), program)
        with one_thread():
            in_order = sorted(work, key=lambda job: job.client)
            for done in self._run(program, in_order, self._forms):
                tally.add(done)
        return tally.outcome()
