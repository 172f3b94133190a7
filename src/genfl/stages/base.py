"""The definition of a stage: typed inputs, their digest, and the work."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints

from genfl import metering
from genfl.config import Config, Data, Public, Section
from genfl.data.public import PublicData
from genfl.experiment.context import RunContext
from genfl.experiment.folder import ANSWERS, Run, Shard
from genfl.storage import digest, take_checkpoint
from genfl.tracking.events import Events
from genfl.tracking.series import Row, Series

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

In = TypeVar("In", bound="DataclassInstance")
"""A stage's inputs: a frozen dataclass of config sections and plain values."""


class Without(frozenset[str]):
    """A mark for a field of a stage's inputs: these settings of its section do not change the output."""


class IfChanged(frozenset[str]):
    """A mark for a field of a stage's inputs: these settings of its section count only if not their defaults.

    So outputs from before there were such settings are still valid.
    """


IF_SET = object()
"""A mark for a field of a stage's inputs that counts only if it is not None. Without it nothing changes."""

IGNORED = object()
"""A mark for a field of a stage's inputs that does not change the output. It is not part of the digest."""


@lru_cache
def _marks(kind: type) -> dict[str, tuple[Any, ...]]:
    """Return the marks of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(kind)}


def identity(value: Any) -> Any:
    """Return the part of a stage's inputs that changes its output, as plain values.

    Args:
        value: Inputs, a section, or a collection of them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        counted = {}
        for name, marks in _marks(type(value)).items():
            field = getattr(value, name)
            if IF_SET in marks and field is None:
                continue
            without = next((mark for mark in marks if isinstance(mark, Without)), None)
            if without is not None:
                later = next((mark for mark in marks if isinstance(mark, IfChanged)), ())
                defaults = {name for name in later if getattr(field, name) == _default(field, name)}
                counted[name] = field.model_dump(exclude=set(without) | defaults)
            elif IGNORED not in marks:
                counted[name] = identity(field)
        return counted
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    return value


def _default(section: Section, name: str) -> Any:
    return type(section).model_fields[name].default


def digest_of(name: str, version: int, inputs: Any, upstream: Mapping[str, str]) -> str:
    """Return the digest of everything that an output depends on. All digests of outputs are computed here.

    Args:
        name: The name of the output.
        version: The version of the code that produces it.
        inputs: A stage's inputs, or a part of them; see `identity`.
        upstream: The digests of the outputs that it reads, by name.
    """
    return digest([name, version, identity(inputs), dict(upstream)])


@dataclasses.dataclass(frozen=True)
class DataInputs:
    """The private data: its input format and content, but not its path.

    Attributes:
        section: The section of the config.
        content: The digest of the data's content.
    """

    section: Annotated[
        Data, Without({"path", "partition", "tokenizer", "group", "test_from", "test_share"})
    ]  # the content depends on the last three
    content: str

    @classmethod
    def of(cls, config: Config, context: RunContext) -> DataInputs:
        """Return the data inputs of a config."""
        return cls(config.data, context.content_digest(config.data))


@dataclasses.dataclass(frozen=True)
class FormatInputs:
    """The input format of the private data, but none of its content.

    Attributes:
        name: The name of the data set.
        shape: The shape of one input.
        format: The digest of the format.
        section: The section of the config.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    section: Annotated[Data, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> FormatInputs:
        """Return the format inputs of a config."""
        data = context.data_set(config.data)
        return cls(config.data.name, data.shape, data.format_digest, config.data)


@dataclasses.dataclass(frozen=True)
class PublicInputs:
    """The public data: its content, but not its path.

    Attributes:
        content: The digest of the public examples, and of their labels where methods may read them.
        section: The section of the config.
        distinct: Whether near-duplicates of private test examples are left out.
    """

    content: str
    section: Annotated[Public, IGNORED]
    distinct: Annotated[bool, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> PublicInputs | None:
        """Return the public inputs of a config; None without public data."""
        if config.public is None:
            return None
        content = context.public_digest(config.public, config.data, distinct=config.audit.drops)
        return cls(content, config.public, config.audit.drops)

    def read(self, context: RunContext, data: Data) -> PublicData:
        """Return the public data, in the format of the private data.

        Args:
            context: The run's context.
            data: The private data.
        """
        return context.public(self.section, data, distinct=self.distinct)


class Upstream:
    """The finished outputs that a stage may read. These are the outputs of the stages that it declares.

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
        """Return the digest of the part of a stage's output that other stages read."""
        return self._run.output(self._declared(stage))

    @property
    def stages(self) -> list[str]:
        """The names of the stages that may be read and that the config wants."""
        return list(self._stages)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's files."""
        return self._run.folder / self._stages[self._declared(stage)]

    @property
    def labels(self) -> list[str]:
        """The discovered label names. A class index is a position in this list."""
        labels: list[str] = self.result("labels")["found"]
        return labels


class StageRun(NamedTuple):
    """Everything that a stage works with, besides its inputs.

    Attributes:
        context: Data sets, splits and tasks.
        upstream: The outputs that it may read.
        folder: The folder of its own files.
        digest: The digest of everything that its output depends on.
        answers: The folder of language models' answers.
        shard: The shard to generate; None for everything.
        shards: The folders of this stage in the runs that generated shards for it.
        others: The folders of this stage in other runs.
        output: The digest of the part of its output that other stages read.
        events: What tells its figures while it works.
    """

    context: RunContext
    upstream: Upstream
    folder: Path
    digest: str
    answers: Path
    shard: Shard | None = None
    shards: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    output: str = ""
    events: Events = Events()

    def take_checkpoint(
        self, path: Path, digest: str, beside: Callable[[Path], Sequence[str]] = lambda checkpoint: ()
    ) -> None:
        """Link a checkpoint in the stage's folder from another run that has done the same work.

        Args:
            path: The checkpoint.
            digest: The digest of everything that the work depends on.
            beside: Returns the files that a checkpoint needs beside it; see `genfl.storage.take_checkpoint`.
        """
        name = path.relative_to(self.folder)
        if take_checkpoint(path, digest, [other / name for other in self.others], beside):
            metering.miss()
            log.info("%s: %s is taken over from another run", self.folder.name, name.parent)


@dataclasses.dataclass(frozen=True)
class Stage(Generic[In]):
    """A stage of the pipeline. It reads only its inputs, and the outputs that it declares as upstream.

    Attributes:
        name: The name in ``--until`` and in the records.
        folder: The folder of its files, below the run's folder.
        version: A number. It must be raised when the same inputs would give other files.
        upstream: The stages whose outputs it reads.
        inputs: ``(config, context) -> inputs``: the parts of the config that it reads.
        run: ``(inputs, work) -> result``: does the work, and resumes an interrupted run. The result is plain
            values for the record. It is None if other processes have yet to generate their shards.
        progress: ``(inputs, work) -> (done, total, unit)`` of an unfinished stage, from its files. None for
            short stages.
        keeps: Whether its files carry digests of what they depend on. If so, they are kept when the config
            changes, and the stage itself decides which are still valid.
        check: Raises InputError for mistakes that the schema cannot see (files, models, splits). It runs
            before any stage works.
        wanted: ``(config) -> bool``: whether the config needs the stage. If not, it is left out.
        gives: ``(inputs, context) -> values``: what decides the part of its output that later stages read,
            besides the outputs that it reads itself. None for all of its inputs.
        unread: ``(config) -> names``: the stages of `upstream` that it does not read with this config.
        figures: ``(result) -> rows``: the figures of each training in its result, for ``metrics.jsonl``. None
            for a stage that trains nothing.
        current: ``(result, work) -> bool``: whether a finished result still shows what lies beside the run.
            If not, the stage runs again.
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
    unread: Callable[[Config], Collection[str]] = lambda config: ()
    figures: Callable[[Mapping[str, Any]], dict[Series, Sequence[Row]]] | None = None
    current: Callable[[Mapping[str, Any], StageRun], bool] = lambda result, work: True

    def reads(self, config: Config) -> list[str]:
        """Return the stages whose outputs it reads with a config, if the config needs these stages."""
        return [name for name in self.upstream if name not in self.unread(config)]

    def work(
        self, run: Run, context: RunContext, digest: str, folders: Mapping[str, str], output: str = ""
    ) -> StageRun:
        """Return the stage run of a run.

        Args:
            run: The run.
            context: Data sets, splits and tasks.
            digest: The digest of everything that the stage's output depends on.
            folders: The folders of the stages that the config wants, by name.
            output: The digest of the part of its output that other stages read; by default `digest`.
        """
        upstream = Upstream(run, {name: folders[name] for name in self.reads(run.config) if name in folders})
        folder, answers = run.folder / self.folder, run.folder / ANSWERS
        shards, others = (tuple(path / self.folder for path in paths) for paths in (run.shards, run.others))
        return StageRun(
            context, upstream, folder, digest, answers, run.shard, shards, others, output or digest
        )
