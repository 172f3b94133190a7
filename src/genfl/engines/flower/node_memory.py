"""A client's memory on its own disk, by federation and round."""

from __future__ import annotations

import re
from pathlib import Path

from genfl import trees
from genfl.engines.flower.member import run_folder
from genfl.engines.flower.records import RefusedMessage
from genfl.engines.flower.wire import Request
from genfl.errors import GenflError
from genfl.storage import load_tensors, read_json, remove, save_tensors, write_json
from genfl.trees import Tree

_FILE = re.compile(r"round-(\d+)\.safetensors")

FINISHED = "finished.json"
"""The file with the last round behind which the server does not go back."""


class NodeMemory:
    """A client's memory in one federation: a file for each round whose upload may count.

    A client does not know whether its upload counts, as it may come too late. The server says in the next
    request which round counted. Files of other rounds are deleted then, except the one from which the
    server would go on after an interruption.

    Args:
        folder: The client's folder.
        run: The federation.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = run_folder(folder, run)

    def before(self, request: Request) -> Tree:
        """Return the memory that the client's work begins with, and delete what cannot count any more.

        Raises:
            RefusedMessage: The request is a replay of an earlier one, or the memory is lost.
        """
        self._refuse_replay(request)
        rounds = self._rounds()
        back = max((n for n in rounds if n <= min(request.counted, request.finished)), default=0)
        for number in rounds:
            if number > request.counted or number < back:
                remove(self._file(number), self.folder)
        if request.initial is not None:
            return request.initial
        try:
            return load_tensors(self._file(request.counted))[0]
        except GenflError:
            raise RefusedMessage(
                f"memory: that of round {request.counted} is lost; restore the client's folder, or start a"
                " new federation"
            ) from None

    def after(self, request: Request, memory: Tree) -> None:
        """Store what the client keeps from a round."""
        if trees.leaves(memory):
            save_tensors(self._file(request.round), memory)

    def _refuse_replay(self, request: Request) -> None:
        path = self.folder / FINISHED
        finished = int(read_json(path)) if path.exists() else 0
        if request.finished < finished or request.round <= request.finished:
            raise RefusedMessage(
                f"round: {request.round} is over, as the server had finished round"
                f" {max(finished, request.finished)}; a replay, or the server lost its state"
            )
        if request.counted >= request.round:
            raise RefusedMessage(f"counted: {request.counted}, but the round is {request.round}")
        if request.finished > finished or not path.exists():
            write_json(path, request.finished)

    def _rounds(self) -> list[int]:
        names = [entry.name for entry in self.folder.iterdir()]
        return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)

    def _file(self, number: int) -> Path:
        return self.folder / f"round-{number}.safetensors"
