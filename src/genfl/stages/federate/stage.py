"""The stage federate: train every method, with the same splits, cohorts and local work."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genfl import progress
from genfl.deployment.description import WEIGHTS_FILE
from genfl.engines.device import exact
from genfl.experiment.folder import AUDIT, VOCABULARY
from genfl.references import GENERATOR
from genfl.results.names import INFERENCE, SYNTHETIC_ONLY
from genfl.stages.audit import unread
from genfl.stages.base import Stage, StageRun
from genfl.stages.federate.checks import check
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.inputs import FEDERATE, FOLDER, VERSION, FederateInputs, trial_digest
from genfl.stages.federate.model_files import describe_model
from genfl.stages.federate.setting import Setting
from genfl.stages.federate.trial import CHECKPOINT, Trial, trained_trials
from genfl.stages.federate.zero_shot import classify_test_set
from genfl.stages.pretrain import seed_digest
from genfl.storage import remove, save_tensors
from genfl.tracking.events import rows_of
from genfl.tracking.series import Row, Series

log = logging.getLogger(__name__)


def _run(inputs: FederateInputs, work: StageRun) -> dict[str, Any]:
    setting, choice = Setting(inputs, work), EngineChoice(inputs, work)
    _discard(inputs, work)
    results: dict[str, dict[str, Any]] = {name: {} for name in inputs.methods}
    for name, method in inputs.methods.items():
        if method.reference == GENERATOR:
            results[name] = classify_test_set(setting, name, method)
    with progress.bar("federate", _rounds(inputs), "rounds") as advance, exact(setting.device):
        if inputs.generator is not None:
            results[SYNTHETIC_ONLY] = {str(seed): _untrained(setting, seed) for seed in inputs.seeds}
        choice.decide(setting)
        tested = _figures({"methods": results})
        work.events.keep("round", [*tested, *_up_to_date(inputs, work, choice)])
        for series, rows in tested.items():
            work.events.history(series, rows)
        for trial in trained_trials(inputs):
            results[trial.name][str(trial.seed)] = trial.run(setting, choice, advance)
    return {"methods": results, INFERENCE: setting.inference_cost()}


def _up_to_date(inputs: FederateInputs, work: StageRun, choice: EngineChoice) -> list[Series]:
    """Return the trials with checkpoints of the current inputs."""
    current = []
    for trial in trained_trials(inputs):
        digest = trial_digest(inputs, work.upstream, trial.method, trial.seed, choice.batched(trial.method))
        folders = trial.folders(work.folder, inputs.partition.clients)
        if all(
            trial.kept_models(inputs, folder, digest).resumable(folder / CHECKPOINT) for folder in folders
        ):
            current.append(trial.series)
    return current


def _figures(result: Mapping[str, Any]) -> dict[Series, Sequence[Row]]:
    """Return the rounds of each trial, from the stage's result."""
    return {
        Series("round", name, int(seed)): rows_of(trace)
        for name, traces in result["methods"].items()
        for seed, trace in traces.items()
    }


def _untrained(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the figures of the pre-trained model before any round, and keep it like a method's model."""
    weights, work, pretraining = setting.pretrained(seed), setting.work, setting.inputs.pretrained
    assert pretraining is not None
    evaluations = [{"round": 0, **setting.score(weights)}]
    folder = _untrained_folder(work.folder, seed)
    save_tensors(folder / WEIGHTS_FILE, setting.task.state_dict(weights))
    digest = seed_digest(pretraining, work.upstream, seed)
    describe_model(setting, folder, SYNTHETIC_ONLY, seed, digest, evaluations, rounds=0)
    return {
        "evaluations": evaluations,
        "rounds": [],
        "clients": setting.test_on_clients([weights], seed),
    }


def _untrained_folder(folder: Path, seed: int) -> Path:
    return folder / SYNTHETIC_ONLY / f"seed-{seed}"


def _rounds(inputs: FederateInputs) -> int:
    """Return the total number of rounds of all federations."""
    clients = inputs.partition.clients
    federations = (len(trial.folders(Path(), clients)) for trial in trained_trials(inputs))
    return inputs.federation.rounds * sum(federations)


def _discard(inputs: FederateInputs, work: StageRun) -> None:
    """Delete the folders of methods, seeds and clients that the config no longer has."""
    current = {
        folder
        for name, method in inputs.methods.items()
        for seed in inputs.seeds
        for folder in Trial(name, method, seed).folders(work.folder, inputs.partition.clients)
    }
    if inputs.generator is not None:
        current |= {_untrained_folder(work.folder, seed) for seed in inputs.seeds}
    for old in work.folder.glob("*/seed-*"):
        if old not in current:
            log.info("federate: deleted %s, %s, not in the config any more", old.parent.name, old.name)
            remove(old, work.folder)
            if not any(old.parent.iterdir()):
                remove(old.parent, work.folder)


def _progress(inputs: FederateInputs, work: StageRun) -> tuple[int, int, str]:
    done, choice = 0, EngineChoice(inputs, work)
    for trial in trained_trials(inputs):
        batched = choice.batched(trial.method)
        digest = trial_digest(inputs, work.upstream, trial.method, trial.seed, batched)
        for folder in trial.folders(work.folder, inputs.partition.clients):
            done += trial.kept_models(inputs, folder, digest).resumable(folder / CHECKPOINT)
    return done, _rounds(inputs), "rounds"


STAGE = Stage(
    FEDERATE,
    FOLDER,
    VERSION,
    ("labels", "prompts", "generate", "guided", AUDIT, VOCABULARY, "pretrain"),
    FederateInputs.of,
    _run,
    _progress,
    check,
    keeps=True,
    unread=unread,
    figures=_figures,
)
