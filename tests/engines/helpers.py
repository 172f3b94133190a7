"""Engines that a test looks into."""


class SpyEngine:
    """An engine that keeps each round's tasks and results.

    Args:
        engine: Runs the rounds.
        wrap: Changes the program before it is run.
        on_round: Called with the tasks before a round.
    """

    def __init__(self, engine, wrap=lambda program: program, on_round=lambda program, tasks: None):
        self.engine, self.wrap, self.on_round = engine, wrap, on_round
        self.results = []

    def run(self, program, tasks):
        self.on_round(program, tasks)
        self.results.append(self.engine.run(self.wrap(program), tasks))
        return self.results[-1]

    def stats(self):
        return self.engine.stats()
