"""Run a cohort in this process, on one thread."""

from __future__ import annotations

from collections.abc import Sequence

from genfl.algorithms.base import ClientProgram
from genfl.engines.per_client import PerClientRunner
from genfl.engines.protocol import (
    Aggregator,
    ClientTask,
    DataView,
    EngineStats,
    ReducerFactory,
    ResultTemplates,
    RoundResult,
    Runner,
)
from genfl.engines.reducers import PlainReducer
from genfl.threads import one_thread


class InProcess:
    """An engine that runs a cohort in this process, on one thread.

    The number of threads changes the order in which floating-point numbers are added, and so the last bits
    of a result. One thread is what all engines can agree on.

    Args:
        runner: How clients are run: one by one, or many at a time.
        reducer: Makes what adds up the uploads of a round.
    """

    where = "in process"

    def __init__(self, runner: Runner, reducer: ReducerFactory = PlainReducer) -> None:
        self.runner = runner
        self.reducer = reducer
        self._templates: ResultTemplates | None = None

    def run(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Run the program for each client of the cohort; see `genfl.engines.protocol.Engine`."""
        if self._templates is None or self._templates.program is not program:
            self._templates = ResultTemplates(program, self.runner.data)
        aggregator = Aggregator(self.reducer(program.reductions), program)
        with one_thread():
            for results in self.runner.run_cohort(program, tasks, self._templates):
                aggregator.add(results)
        return aggregator.round_result()

    def stats(self) -> EngineStats:
        """Return what the engine is, and what its fast path did; see `genfl.engines.protocol.Engine`."""
        return EngineStats(self.where, self.runner.how, 1, self.runner.stats())


def sequential(data: DataView, reducer: ReducerFactory = PlainReducer) -> InProcess:
    """Return the reference engine: one client after the other, and nothing is recorded.

    Args:
        data: What the clients hold.
        reducer: Makes what adds up the uploads of a round.
    """
    return InProcess(PerClientRunner(data, accelerated=False), reducer)
