"""What a federation is compared with whose clients were lost in some rounds."""


class Dropping:
    """An engine that leaves out clients in some rounds, as if they had not been asked.

    Args:
        engine: The engine of the others.
        lost: The rounds and clients: ``(round, client)``.
    """

    def __init__(self, engine, lost):
        self.engine, self.lost = engine, lost

    def run(self, program, tasks):
        lost = {task.client for task in tasks if (task.round, task.client) in self.lost}
        result = self.engine.run(program, [task for task in tasks if task.client not in lost])
        return result._replace(refused=dict.fromkeys(lost, ""))
