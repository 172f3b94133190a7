"""The pipeline: run the stages in order, skip finished ones, and resume interrupted ones."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import filelock

import genfl
from genfl import config as configs
from genfl.config import Config
from genfl.config.tracking import Track
from genfl.errors import GenflError, InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import ANSWERS, Run, Shard, pilot_folder, shard_folders
from genfl.experiment.records import (
    RUN_CONFIG,
    RUN_MARKER,
    SUMMARY_FILE,
    StageStatus,
    finished_status,
    read_record,
    write_record,
)
from genfl.metering import Meter, add_costs, metered
from genfl.privacy.ledger import LEDGER_FILE, check_strict
from genfl.results.names import INFERENCE
from genfl.results.summarise import environment, ledger_result, summarise
from genfl.stages import audit, generate, guided, labels, pretrain, prompts, report, vocabulary
from genfl.stages.base import Stage, StageRun, digest_of
from genfl.stages.federate import stage as federate
from genfl.storage import (
    is_full_disk,
    link,
    locked,
    refuse_links,
    remove,
    sha256,
    write_json,
    write_text,
)
from genfl.tracking.background import BackgroundTracker
from genfl.tracking.events import Events
from genfl.tracking.metrics_file import METRICS_FILE, MetricsFile
from genfl.tracking.mlflow import MLFLOW_STATE
from genfl.tracking.opening import check_trackers, open_trackers
from genfl.tracking.series import STAGE_OF, Ending
from genfl.tracking.tensorboard import TENSORBOARD

log = logging.getLogger(__name__)

STAGES: tuple[Stage[Any], ...] = (
    labels.STAGE,
    prompts.STAGE,
    generate.STAGE,
    guided.STAGE,
    audit.STAGE,
    vocabulary.STAGE,
    pretrain.STAGE,
    federate.STAGE,
    report.STAGE,
)
LOCK = ".lock"
_TRACKED = (METRICS_FILE, TENSORBOARD, MLFLOW_STATE)
"""What a run writes for those who watch it."""


def execute(
    config: Config,
    folder: Path,
    *,
    until: str = STAGES[-1].name,
    fresh: bool = False,
    update: bool = False,
    others: Sequence[Path] = (),
    shard: Shard | None = None,
    context: RunContext | None = None,
) -> dict[str, Any] | None:
    """Run the pipeline in a folder. Stages that are up to date are skipped.

    Args:
        config: The config.
        folder: The run's folder. It is created if absent.
        until: The last stage to run.
        fresh: Delete an earlier run in the folder and start over.
        update: Accept a folder with a run of another config. Everything that does not depend on the changes
            is kept.
        others: Folders of other runs. Their finished stages are taken over if they are the same.
        shard: Generate only this shard, in a folder beside the run's folder. A later run takes over all
            shards beside its folder.
        context: The context that the runs of a sweep share; None for a new one.

    Returns:
        The summary, also written to ``summary.json``; None if the run ends before the report.

    Raises:
        InputError: The folder holds something else, it is in use, or a shard is combined with later stages.
        GenflError: The disk is full.
    """
    if shard and until != generate.STAGE.name:
        raise InputError("--shard: only generation can be split over processes; add --until generate")
    context = context or RunContext()
    with contextlib.ExitStack() as held:
        held.enter_context(explaining_full_disk(folder))
        config = checked(config, context)  # also the stages after `until`, because early errors cost least
        last = next(stage for stage in STAGES if stage.name == until)
        if not last.wanted(config):
            raise InputError(
                f"--until: this config does not need {until}; name another stage, or leave it out"
            )
        shards = [path for path in shard_folders(folder) if (path / RUN_MARKER).exists()]
        target = shard.folder(folder) if shard else folder
        beside = [path for path in (folder, *shards, pilot_folder(folder)) if path != target]
        run = Run(config, target, shard, () if shard else tuple(shards), (*others, *beside))
        for run_folder in (run.folder, *run.shards):
            held.enter_context(holding(run_folder, "run", RUN_MARKER))
        _claim(config, run.folder, fresh=fresh, update=update, remote=context.remote)
        return _execute(run, context, until)


def checked(config: Config, context: RunContext) -> Config:
    """Return the resolved config after the checks of all stages; see `RunContext.resolve`.

    Args:
        config: A config that the schema accepts.
        context: The run's context.

    Raises:
        InputError: A stage cannot work with the config.
    """
    check_trackers(config.track)
    check_strict(config)
    config = context.resolve(config)
    for stage in STAGES:
        if stage.wanted(config):
            stage.check(stage.inputs(config, context), context)
    return config


@contextlib.contextmanager
def holding(folder: Path, what: str, marker: str) -> Iterator[None]:
    """Lock a folder for this process. It is created if absent.

    Args:
        folder: The folder.
        what: The kind of the folder: ``run`` or ``sweep``.
        marker: The name of the file that marks this kind. It is written if absent.

    Raises:
        InputError: The folder holds something else, or is in use.
    """
    with contextlib.ExitStack() as held:
        try:
            refuse_foreign(folder, what, marker)
            refuse_links(folder, [LOCK])
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK))
        except filelock.Timeout:
            raise InputError(
                f"--out: another process is using {folder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise InputError(
                f"--out: {folder} cannot be used ({error.strerror}); choose another folder"
            ) from error
        if not (folder / marker).exists():
            write_text(folder / marker, f"A {what} of genfl {genfl.__version__}.\n")
        yield


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Say where there is no space left, if the block fails for want of it.

    Args:
        folder: The folder that the block writes to.

    Raises:
        GenflError: The disk is full.
    """
    try:
        yield
    except Exception as error:  # some libraries tell it by text alone
        if not is_full_disk(error) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        named = getattr(error, "filename", None)
        full = Path(named).parent if isinstance(named, str) else folder
        raise GenflError(
            f"no space left in {full}; make room, and run the same command again to resume"
        ) from error


def _claim(config: Config, folder: Path, *, fresh: bool, update: bool, remote: bool) -> None:
    """Prepare a folder for a run of this config; see `execute`. The caller holds the lock."""
    refuse_links(folder, [*_subfolders(), *_TRACKED])
    existing = folder / RUN_CONFIG
    if fresh:
        _delete_run(folder)
    elif existing.exists():
        try:
            old = configs.settings_of(existing)
        except InputError as error:
            raise InputError(f"--out: {existing} is damaged ({error}); use --fresh to start over") from None
        new = configs.plain(configs.dump(config, without=("track",)))
        # the fields of an earlier version have their defaults
        changes = configs.differences(old, new) and configs.differences(configs.with_defaults(old), new)
        if changes and not update:
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            advice = (
                "choose another folder, or delete this one to start over"
                if remote
                else "choose another folder, --update to redo the stages that depend on the changes, or"
                " --fresh to start over"
            )
            raise InputError(f"--out: {folder} holds a run of another config ({changes[0]}{more}); {advice}")
        if changes:
            remove(folder / SUMMARY_FILE, folder)
            remove(folder / LEDGER_FILE, folder)
    write_text(folder / RUN_CONFIG, configs.dump(config))


def refuse_foreign(folder: Path, what: str, marker: str) -> None:
    """Check that a folder is empty or of a kind. Even --fresh deletes nothing else.

    Args:
        folder: The folder. It may be absent.
        what: The kind, as in `holding`.
        marker: The name of the file that marks this kind.

    Raises:
        InputError: The folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out: {folder} is a file; name a folder")
    if folder.exists() and not (folder / marker).exists():
        # a process that was killed at the start leaves only these files
        others = [path for path in folder.iterdir() if path.name not in (LOCK, f".{marker}.tmp")]
        if others:
            raise InputError(f"--out: {folder} is not empty and holds no {what}; choose another folder")


def _delete_run(folder: Path) -> None:
    """Delete the files of a run, and nothing else. The marker stays, in case the process is killed."""
    for name in (*_subfolders(), *_TRACKED, SUMMARY_FILE, LEDGER_FILE, RUN_CONFIG):
        remove(folder / name, folder)


def _subfolders() -> list[str]:
    """Return the names of the folders that a run writes to."""
    return ["stages", ANSWERS, *(stage.folder for stage in STAGES)]


def _execute(run: Run, context: RunContext, until: str) -> dict[str, Any] | None:
    events = Events(MetricsFile(run.folder / METRICS_FILE), _trackers(run, context))
    summary: dict[str, Any] | None = None
    ending: Ending = "killed"
    try:
        summary = _execute_stages(run, context, until, events)
        ending = "finished"
    except Exception:
        ending = "failed"
        raise
    finally:
        events.finish(summary, ending)
    return summary


def _trackers(run: Run, context: RunContext) -> list[BackgroundTracker]:
    """Open the trackers of a run. A shard has none: it trains nothing."""
    if run.config.track == Track() or run.shard:
        return []
    identity = next(digest for stage, _, digest in digests(run.config, context) if stage is federate.STAGE)
    return open_trackers(run.config, run.folder, identity)


def _execute_stages(run: Run, context: RunContext, until: str, events: Events) -> dict[str, Any] | None:
    skipped: dict[str, bool] = {}
    for kind, name in STAGE_OF.items():
        if not any(stage.name == name and stage.wanted(run.config) for stage in STAGES):
            events.keep(kind, ())
    names = [stage.name for stage in STAGES]
    last = names.index(until)
    for step in steps(run, context):
        if step.stage in STAGES[: last + 1]:
            skipped[step.stage.name] = _bring_up_to_date(step, run, events)
            _settle(step.stage, run, events)
    if names.index(federate.STAGE.name) <= last:
        trained = ledger_result(run.config, run.result(federate.STAGE.name)["methods"])
        write_json(run.folder / LEDGER_FILE, trained.to_dict())
    if STAGES[last] is not STAGES[-1]:
        return None
    summary = summarise(run, context, skipped)
    summary.write(run.folder / SUMMARY_FILE)  # the last file, as it says that the run is finished
    return summary.to_dict()


def _settle(stage: Stage[Any], run: Run, events: Events) -> None:
    """Tell the figures in the result of a stage that trains, also if it was skipped or taken over."""
    record = read_record(run.record(stage.name)) if stage.figures else None
    if stage.figures and record and record["done"]:
        kind = next(kind for kind, name in STAGE_OF.items() if name == stage.name)
        events.settle(kind, stage.figures(record["result"]))


class Step(NamedTuple):
    """A stage of a run with its inputs.

    Attributes:
        stage: The stage.
        inputs: Its inputs.
        work: Everything else that it works with.
    """

    stage: Stage[Any]
    inputs: Any
    work: StageRun


def steps(run: Run, context: RunContext) -> Iterator[Step]:
    """Yield the stages that the config needs, with their inputs and the digests of their outputs."""
    wanted = [stage for stage in STAGES if stage.wanted(run.config)]
    folders = {stage.name: stage.folder for stage in wanted}
    for stage, inputs, digest, output in _digests(run.config, context):
        yield Step(stage, inputs, stage.work(run, context, digest, folders, output))


def digests(config: Config, context: RunContext) -> Iterator[tuple[Stage[Any], Any, str]]:
    """Yield the stages that a config needs, their inputs, and the digests of their outputs.

    Args:
        config: The resolved config.
        context: The run's context.
    """
    for stage, inputs, digest, _ in _digests(config, context):
        yield stage, inputs, digest


def _digests(config: Config, context: RunContext) -> Iterator[tuple[Stage[Any], Any, str, str]]:
    """Yield what `digests` does, and the digest of what later stages read of the output."""
    outputs: dict[str, str] = {}
    for stage in STAGES:
        if not stage.wanted(config):
            continue
        inputs = stage.inputs(config, context)
        upstream = {name: outputs[name] for name in stage.reads(config) if name in outputs}
        digest = output = digest_of(stage.name, stage.version, inputs, upstream)
        if stage.gives:
            output = digest_of(stage.name, stage.version, stage.gives(inputs, context), upstream)
        outputs[stage.name] = output
        yield stage, inputs, digest, output


def _bring_up_to_date(step: Step, run: Run, events: Events) -> bool:
    """Run a stage unless its output is up to date and intact. Return whether it was skipped."""
    stage, digest = step.stage, step.work.digest
    record, folder = run.record(stage.name), step.work.folder
    old = read_record(record)
    earlier = old.get("cost") if old else None
    unknown = bool(old and old["done"] and earlier is None)  # a version without counters ran it
    if old and old["digest"] != digest:
        old = None
    if old and old["done"]:
        damaged = [path for path, checksum in old["files"].items() if not _intact(folder / path, checksum)]
        if not damaged and stage.current(old["result"], step.work):
            log.info("%s: up to date", stage.name)
            return True
        for path in damaged:
            log.warning("%s: %s is damaged and will be regenerated", stage.name, folder / path)
            remove(folder / path, run.folder)
    for file in (SUMMARY_FILE, LEDGER_FILE):  # until the run is finished again
        remove(run.folder / file, run.folder)
    if old is None:
        if not stage.keeps:
            remove(folder, run.folder)
        if any(_take_over(step, run, Run(run.config, other)) for other in run.others):
            return True
    about = {"stage": stage.name, "digest": digest, "output": step.work.output}
    write_record(record, {**about, "done": False, **({"cost": earlier} if earlier else {})})
    log.info("%s: running", stage.name)
    events.stage(stage.name, "started")
    began = time.perf_counter()
    with metered(Meter(earlier, lambda cost: _save_cost(record, about, cost))) as meter:
        if unknown:
            meter.miss()
        result = stage.run(step.inputs, step.work._replace(events=events))
    seconds, cost = time.perf_counter() - began, meter.cost()
    if result is None:
        _save_cost(record, about, cost)
        return False
    if stage.name == generate.STAGE.name and not (old and old["done"]):
        cost = add_costs([cost, *_costs_of_shards(run, digest)])
    files = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    write_record(
        record,
        {
            **about,
            "done": True,
            "seconds": round(seconds, 3),
            "cost": {**cost, "inference": result.pop(INFERENCE, None)},
            "environment": environment(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "result": result,
            "files": files,
        },
    )
    log.info("%s: done in %.1f s", stage.name, seconds)
    events.stage(stage.name, "finished", seconds)
    return False


def _save_cost(record: Path, about: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    """Write what an unfinished stage has cost so far into its record, so that a later start adds to it."""
    write_record(record, {**about, "done": False, "cost": cost})


def _costs_of_shards(run: Run, digest: str) -> list[dict[str, Any]]:
    """Return what the processes spent that generated shards of a run."""
    records = (read_record(Run(run.config, folder).record(generate.STAGE.name)) for folder in run.shards)
    return [
        record["cost"] for record in records if record and record["digest"] == digest and record.get("cost")
    ]


def _take_over(step: Step, run: Run, other: Run) -> bool:
    """Link a stage's files from another run, if its digest is the same and the files are intact."""
    stage, digest = step.stage, step.work.digest
    record = read_record(other.record(stage.name))
    if not record or record["digest"] != digest or not record["done"]:
        return False
    source, target = other.folder / stage.folder, run.folder / stage.folder
    if not all(_intact(source / path, checksum) for path, checksum in record["files"].items()):
        return False
    remove(target, run.folder)  # an older config may have left more files
    for path in record["files"]:
        link(source / path, target / path)
    write_record(run.record(stage.name), record)
    log.info("%s: taken over from %s", stage.name, other.folder)
    return True


def _intact(path: Path, checksum: str) -> bool:
    return path.is_file() and sha256(path) == checksum


def run_status(folder: Path) -> list[StageStatus]:
    """Return the status of each stage of a run, from the files in its folder.

    Raises:
        InputError: The folder holds no run.
    """
    if rows := finished_status(folder):
        return rows
    file, rows = folder / RUN_CONFIG, []
    try:
        config = configs.load(file)
    except InputError as error:
        if not file.is_file():
            raise InputError(
                f"{folder} holds no run: there is no {RUN_CONFIG} in it; name a run's folder"
            ) from None
        lines = [line.removeprefix(f"{file}: ") for line in str(error).splitlines()]
        raise InputError("\n".join(f"{file}: {line}" for line in lines)) from error
    run = Run(config, folder)
    for stage, inputs, work in steps(run, RunContext()):
        record = read_record(run.record(stage.name))
        if record is None or record["digest"] != work.digest:
            rows.append(StageStatus(stage.name, "missing", None, ""))
        elif record["done"] and all((work.folder / path).is_file() for path in record["files"]):
            rows.append(StageStatus(stage.name, "done", record["seconds"], ""))
        else:
            progress = ""
            if stage.progress and all(row.state == "done" for row in rows):
                done, total, unit = stage.progress(inputs, work)
                progress = f"{done} of {total} {unit}"
            rows.append(StageStatus(stage.name, "partial", None, progress))
    return rows
