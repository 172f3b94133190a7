"""A run's folder: its config, the records of its stages, and the shards generated beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from genfl.config import Config
from genfl.errors import InputError
from genfl.storage import read_json

ANSWERS = "answers"


VOCABULARY = "vocabulary"
"""The stage that makes the tokenizer `genfl.data.texts.GENERATED`, and its folder."""


class Shard(NamedTuple):
    """What one of several processes generates: blocks ``number``, ``number + of``, ``number + 2 of``, ..."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads ``0/4``.

        Raises:
            InputError: It is something else.
        """
        match text.split("/"):
            case [number, of] if number.isdecimal() and of.isdecimal() and int(number) < int(of):
                return cls(int(number), int(of))
        raise InputError(f"--shard: say which of how many, counted from 0, as in 0/4 to 3/4; not {text!r}")

    def folder(self, run: Path) -> Path:
        """Returns where it is made: beside the folder of the run that it is for."""
        run = run.resolve()
        return run.with_name(f"{run.name}.shard-{self.number}-of-{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_folders(run: Path) -> list[Path]:
    """Returns the folders of the shares that were made for a run, or begun."""
    run = run.resolve()
    return [path for path in sorted(run.parent.glob("*")) if path.name.startswith(f"{run.name}.shard-")]


@dataclass(frozen=True)
class Run:
    """A run of the pipeline.

    Attributes:
        config: Its resolved config.
        folder: Its folder.
        share: What it generates, if not everything.
        shares: Folders of runs that generated shares for it.
    """

    config: Config
    folder: Path
    share: Shard | None = None
    shares: tuple[Path, ...] = ()

    def record(self, stage: str) -> Path:
        """The file that says what a finished stage gave."""
        return self.folder / "stages" / f"{stage}.json"

    def key(self, stage: str) -> str:
        """Returns the digest of all that a finished stage's output depends on."""
        key: str = read_json(self.record(stage))["key"]
        return key

    def result(self, stage: str) -> dict[str, Any]:
        """Returns what a finished stage gave."""
        result: dict[str, Any] = read_json(self.record(stage))["result"]
        return result

    @property
    def labels(self) -> list[str]:
        """The discovered label names; a class's index is its place in this list."""
        found: list[str] = self.result("labels")["found"]
        return found

    @property
    def answers(self) -> Path:
        """Where the answers of language models are kept, so that nothing is asked twice."""
        return self.folder / ANSWERS
