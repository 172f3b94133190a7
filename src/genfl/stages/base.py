"""What a stage of the pipeline is: typed inputs, a digest of them, and the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints

from genfl.config import Config, Data, Section
from genfl.experiment.context import RunContext
from genfl.experiment.folder import ANSWERS, Run, Shard
from genfl.storage import digest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

In = TypeVar("In", bound="DataclassInstance")
"""A stage's inputs: a frozen dataclass of config sections and plain values."""


class Without(frozenset[str]):
    """Mark a field of a stage's inputs: these settings of its section do not change the stage's output."""


IGNORED = object()
"""Marks a field of a stage's inputs that does not change its output, so it is not in its digest."""


@lru_cache
def _marks(kind: type) -> dict[str, tuple[Any, ...]]:
    """Return what the fields of a dataclass are marked with."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(kind)}


def identity(value: Any) -> Any:
    """Return what counts of a stage's inputs, as plain values.

    Args:
        value: Inputs, a section, or values made of such.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        counted = {}
        for name, marks in _marks(type(value)).items():
            own = getattr(value, name)
            without = next((mark for mark in marks if isinstance(mark, Without)), None)
            if without is not None:
                counted[name] = own.model_dump(exclude=set(without))
            elif IGNORED not in marks:
                counted[name] = identity(own)
        return counted
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(name): identity(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [identity(own) for own in value]
    return value


def digest_of(name: str, version: int, inputs: Any, upstream: Mapping[str, str]) -> str:
    """Return the digest of everything that an output depends on. All digests of outputs are made here.

    Args:
        name: What the output is.
        version: Of the code that makes it.
        inputs: A stage's inputs, or a part of them; see `identity`.
        upstream: The digests of the outputs that it is made from, by name.
    """
    return digest([name, version, identity(inputs), dict(upstream)])


@dataclasses.dataclass(frozen=True)
class DataInputs:
    """The private data: its form and content. Where it lies does not matter.

    Attributes:
        section: The config's section.
        content: The digest of the data's content.
    """

    section: Annotated[Data, Without({"path", "partition", "tokenizer"})]
    content: str

    @classmethod
    def of(cls, config: Config, context: RunContext) -> DataInputs:
        """Return those of a config."""
        return cls(config.data, context.content_digest(config.data))


class Upstream:
    """The finished outputs that a stage may read: those of the stages that it declares, and no others.

    Args:
        run: The run.
        stages: The folders of the declared stages that the config wants, by name.
    """

    def __init__(self, run: Run, stages: Mapping[str, str]) -> None:
        self._run = run
        self._stages = stages

    def _declared(self, stage: str) -> str:
        if stage not in self._stages:
            raise LookupError(f"the stage does not declare that it reads {stage!r}")
        return stage

    def result(self, stage: str) -> dict[str, Any]:
        """Return the figures of a stage."""
        return self._run.result(self._declared(stage))

    def digest(self, stage: str) -> str:
        """Return the digest of a stage's output."""
        return self._run.digest(self._declared(stage))

    @property
    def stages(self) -> list[str]:
        """The stages that it may read, of those that the config wants."""
        return list(self._stages)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's files."""
        return self._run.folder / self._stages[self._declared(stage)]

    @property
    def labels(self) -> list[str]:
        """The discovered label names; a class's index is its place in this list."""
        labels: list[str] = self.result("labels")["found"]
        return labels


class StageRun(NamedTuple):
    """What a stage works with besides its inputs.

    Attributes:
        context: Data sets, splits and tasks.
        upstream: The outputs that it may read.
        folder: The folder of its own files.
        digest: Of everything that its output depends on.
        answers: The folder of language models' answers.
        shard: What it generates, if not everything.
        shards: The runs that generated shards for it.
    """

    context: RunContext
    upstream: Upstream
    folder: Path
    digest: str
    answers: Path
    shard: Shard | None = None
    shards: tuple[Run, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage(Generic[In]):
    """A step of the pipeline. It reads its inputs and what it declares as upstream, and nothing else.

    Attributes:
        name: What ``--until`` and the records call it.
        folder: Where its files go, below the run's folder.
        version: Raised whenever the same inputs would give other files.
        upstream: The stages whose outputs it reads.
        inputs: ``(config, context) -> inputs``: the parts of the config that it reads.
        run: Does the work, and continues what an interrupted run left. It returns plain values for the
            record; None where it did its share of the work and others have yet to do theirs.
        progress: ``(inputs, work) -> (done, total, unit)`` of an unfinished stage, from its files; None if
            the stage is too short to tell.
        keeps: Whether its own files carry digests of what they depend on. They are kept when the config
            changes, and the stage sorts out which are still good.
        check: Raises InputError for what the schema cannot see (files, models, splits), before any stage
            works.
        wanted: Whether a config has any use for it; where not, it is left out.
        gives: What the stages after it read of its output, where the config alone says that; None for all
            of it.
    """

    name: str
    folder: str
    version: int
    upstream: tuple[str, ...]
    inputs: Callable[[Config, RunContext], In]
    run: Callable[[In, StageRun], dict[str, Any] | None]
    progress: Callable[[In, StageRun], tuple[int, int, str]] | None = None
    check: Callable[[In, RunContext], object] = lambda inputs, context: None
    keeps: bool = False
    wanted: Callable[[Config], bool] = lambda config: True
    gives: Callable[[In, RunContext], Any] | None = None

    def work(self, run: Run, context: RunContext, digest: str, folders: Mapping[str, str]) -> StageRun:
        """Return what the stage works with in a run.

        Args:
            run: The run.
            digest: Of everything that the stage's output depends on.
            context: Data sets, splits and tasks.
            folders: The folders of the stages that the config wants, by name.
        """
        upstream = Upstream(run, {name: folders[name] for name in self.upstream if name in folders})
        shards = tuple(Run(run.config, folder) for folder in run.shards)
        return StageRun(
            context, upstream, run.folder / self.folder, digest, run.folder / ANSWERS, run.shard, shards
        )
