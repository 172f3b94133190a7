"""A run's folder: its config, the records of its stages, and the shards generated beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from genfl.config import Config
from genfl.errors import InputError
from genfl.experiment.records import record_file
from genfl.storage import read_json

ANSWERS = "answers"
"""The folder of language models' answers. No query is sent twice."""

VOCABULARY = "vocabulary"
"""The stage that builds the tokenizer `genfl.data.texts.GENERATED_TOKENIZER`, and the name of its folder."""

AUDIT = "audit"
"""The stage that looks for near-duplicates of test examples, and the name of its folder."""

PAIRS = "pairs.json"
"""The audit's file of all pairs: for each comparison, lists of two rows and their similarity."""


ADVICE_INFIX, PILOT = ".advice", "pilot"
"""What follows the name of a run's folder in that of its advice's folder, and the pilot's folder in there."""


class Shard(NamedTuple):
    """The share of one of several processes: blocks ``number``, ``number + of``, ``number + 2 of``, ..."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as ``0/4``.

        Raises:
            InputError: The text is not of this form.
        """
        match text.split("/"):
            case [number, of] if number.isdecimal() and of.isdecimal() and int(number) < int(of):
                return cls(int(number), int(of))
        raise InputError(f"--shard: {text!r} is not a shard; use I/N, as in 0/4 to 3/4 (I counts from 0)")

    def folder(self, run: Path) -> Path:
        """Return the shard's folder, which is beside the run's folder."""
        run = run.resolve()
        return run.with_name(f"{run.name}.shard-{self.number}-of-{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def advice_folder(run: Path) -> Path:
    """Return the folder of the advice on a run unless another is named. It lies beside the run's folder."""
    run = run.resolve()
    return run.with_name(f"{run.name}{ADVICE_INFIX}")


def pilot_folder(run: Path) -> Path:
    """Return the folder of the pilot of a run's advice. The run takes over its samples."""
    return advice_folder(run) / PILOT


def shard_folders(run: Path) -> list[Path]:
    """Return the folders of all shards of a run, finished or not."""
    run = run.resolve()
    return [path for path in sorted(run.parent.glob("*")) if path.name.startswith(f"{run.name}.shard-")]


@dataclass(frozen=True)
class Run:
    """A run's config and folder.

    Attributes:
        config: The resolved config.
        folder: Its folder.
        shard: The shard that it generates; None for everything.
        shards: Folders of the runs that generated shards for it.
        others: Folders of other runs. Results that are the same are taken over from them.
    """

    config: Config
    folder: Path
    shard: Shard | None = None
    shards: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()

    def record(self, stage: str) -> Path:
        """Return the path of a stage's record."""
        return record_file(self.folder, stage)

    def digest(self, stage: str) -> str:
        """Return the digest of everything that a finished stage's output depends on."""
        digest: str = read_json(self.record(stage))["digest"]
        return digest

    def output(self, stage: str) -> str:
        """Return the digest of the part of a finished stage's output that other stages read."""
        record = read_json(self.record(stage))
        output: str = record.get("output", record["digest"])
        return output

    def result(self, stage: str) -> dict[str, Any]:
        """Return the figures of a finished stage."""
        result: dict[str, Any] = read_json(self.record(stage))["result"]
        return result

    @property
    def labels(self) -> list[str]:
        """The discovered label names. A class index is a position in this list."""
        labels: list[str] = self.result("labels")["found"]
        return labels

    @property
    def answers(self) -> Path:
        """The folder of language models' answers."""
        return self.folder / ANSWERS
