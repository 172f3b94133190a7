"""federate: every method trains on the clients' private data, from the same splits, cohorts and budget."""

from __future__ import annotations

import logging
import shutil
from functools import cache, partial
from typing import Any

import torch

from genfl import progress, trees
from genfl.algorithms.registry import UNLABELLED
from genfl.analysis import diversity, heterogeneity
from genfl.config import Config, Content, Method
from genfl.data.clients import GENERATED, ClientData
from genfl.data.sources import DataSet
from genfl.engines.auto import EXACT, engine
from genfl.engines.device import exact
from genfl.engines.evaluation import ClientScores, evaluate_clients
from genfl.engines.in_process import sequential
from genfl.experiment.context import (
    data_digest,
    data_of,
    held_back_data,
    indices,
    initial_key,
    private_data,
    task_of,
)
from genfl.experiment.folder import VOCABULARY, Run
from genfl.learning.evaluate import Scores, evaluate
from genfl.learning.task import Task, Weights, state_dict
from genfl.references import GENERATOR, mean
from genfl.rng import Key
from genfl.simulation import Measure, Trace, federate
from genfl.stages import generate, guided, pretrain
from genfl.stages.base import Stage
from genfl.stages.federate import trial
from genfl.stages.federate.checks import check
from genfl.stages.federate.engine_choice import batched, decide_engine, decide_engine_for
from genfl.stages.federate.generated_content import training_data
from genfl.stages.federate.zero_shot import classified
from genfl.storage import load_tensors, save_tensors, write_json

log = logging.getLogger(__name__)

SYNTHETIC_ONLY = "synthetic_only"
"""The pre-trained model as it is, before any round: a row of every comparison."""

MOST_TESTED = 1000
"""Test examples on which local models are tested before they are averaged."""

MOST_COMPARED = 100
"""Clients that are compared pair by pair; more would fill a page."""


def _run(run: Run) -> dict[str, Any]:
    config, folder = run.config, run.folder / STAGE.folder
    task = task_of(run)
    data = data_of(run)
    scored = task.of_stored(data.prepare)
    test_y = indices(data.test, run.labels)
    device = torch.device(config.device)

    def score(weights: Weights) -> Scores:
        return evaluate(scored, trees.to(weights, device), data.test.x, test_y)

    synthetic = cache(partial(generate.read, run))  # read only if a method wants it
    by_example = cache(partial(guided.read, run))
    unlabelled = cache(lambda: data.prepare(synthetic()[0]))
    resources = trial.resources(config, len(run.labels))
    measures, similar = _measures(config, task, data, test_y), _Similarity(run, task)

    results: dict[str, dict[str, Any]] = {name: {} for name in config.methods}
    if config.generates:
        results[SYNTHETIC_ONLY] = {}
    _discard(run)
    federated = [method for method in config.methods.values() if method.reference is None]
    for name, method in config.methods.items():
        if method.reference == GENERATOR:
            results[name] = classified(run, name, method, task)
    with progress.bar("federate", _rounds(config), "rounds") as advance, exact(device):
        for seed in config.seeds:
            held = held_back_data(run, seed)
            if config.generates:
                warm = pretrain.weights(run, task, seed)
                results[SYNTHETIC_ONLY][str(seed)] = {
                    "evaluations": [{"round": 0, **score(warm)}],
                    "rounds": [],
                    "clients": _tested(task, [warm], held, device),
                }
            own = private_data(run, seed)
            if federated and seed == config.seeds[0]:
                decide_engine(
                    run, task, task.init(initial_key(seed)), own, trial.schedule(config, federated[0])
                )
            for name, method in trial.trained(config).items():
                inputs = {name: unlabelled() for name in method.asks_for & UNLABELLED}
                algorithm = trial.algorithm(config, method, task, resources | inputs)
                clients = training_data(run, name, own, seed, synthetic, by_example)
                federations = trial.federations(config, method, clients, seed)
                traces = []
                for place, federation in zip(trial.places(config, method, seed), federations, strict=True):
                    arm = folder / name / place
                    start = _start(run, task, method, seed)
                    decide_engine_for(run, name, algorithm, start, federation.clients, federation.schedule)
                    kind = "vectorized" if batched(run, method) else config.federate.engine
                    cohort = federation.schedule.clients_per_round
                    with engine(kind, federation.clients, cohort, device) as run_cohort:
                        trace = federate(
                            algorithm,
                            start,
                            federation.clients,
                            run_cohort,
                            federation.schedule,
                            federation.key,
                            score,
                            checkpoint=arm / "checkpoint.safetensors",
                            checkpoint_digest=trial.key(run, method, seed),
                            measures=measures if algorithm.same_form and method.reference is None else {},
                            device=device,
                            on_round=advance,
                        )
                    save_tensors(arm / "model.safetensors", state_dict(trace.weights))
                    write_json(arm / "trace.json", _plain(trace))
                    traces.append(trace)
                results[name][str(seed)] = {
                    **(mean(traces) if method.reference else _plain(traces[0])),
                    "clients": _tested(task, [trace.weights for trace in traces], held, device),
                    "content": clients.count(GENERATED),
                    "similarity": similar(method, clients) if seed == config.seeds[0] else None,
                }
    return {"methods": results}


def _start(run: Run, task: Task, method: Method, seed: int) -> Weights:
    """Returns the global model that a method starts from."""
    if method.start == "pretrained":
        return pretrain.weights(run, task, seed)
    if method.start == "init":
        return pretrain.initial(run.config, task, seed)
    return task.init(initial_key(seed))


def _measures(config: Config, task: Task, data: DataSet, test_y: torch.Tensor) -> dict[str, Measure]:
    """Returns what is measured on cohorts whose clients train models of the global model's form."""
    measures = {diversity.NAME: diversity.gradient_diversity()}
    if config.federate.heterogeneity:
        some = torch.from_numpy(Key(0).fold("generality").numpy().permutation(len(test_y))[:MOST_TESTED])
        x = data.prepare(data.test.x[some])
        measures[heterogeneity.DIVERGENCE] = heterogeneity.divergence()
        measures[heterogeneity.GENERALITY] = heterogeneity.generality(task, x, test_y[some])
    return measures


class _Similarity:
    """How alike clients' data are to the model trained on generated data, once for each kind of content."""

    def __init__(self, run: Run, task: Task) -> None:
        self.run, self.task = run, task
        self.known: dict[tuple[bool, Content | None], dict[str, Any]] = {}

    def __call__(self, method: Method, clients: ClientData) -> dict[str, Any] | None:
        """Returns it for the first seed.

        None where nobody asked, for too many clients for a page, or where there is no such model.
        """
        config = self.run.config
        if not (config.federate.heterogeneity and config.generates) or len(clients) > MOST_COMPARED:
            return None
        kind = method.data == "generated", method.content
        if kind not in self.known:
            extractor = pretrain.weights(self.run, self.task, config.seeds[0])
            features = heterogeneity.mean_features(self.task, extractor, clients)
            self.known[kind] = heterogeneity.similarity(features)
        return self.known[kind]


def _plain(trace: Trace) -> dict[str, Any]:
    return {"evaluations": trace.evaluations, "rounds": trace.rounds}


def _tested(
    task: Task, models: list[Weights], held: tuple[list[int], ClientData] | None, device: torch.device
) -> ClientScores | None:
    """Returns how good the final models are for the clients: one for all, or each client's own."""
    if held is None:
        return None
    testing, data = held
    own = [models[client if len(models) > 1 else 0] for client in testing]
    return evaluate_clients(task, own, data, sequential(data), device)


def _rounds(config: Config) -> int:
    """Returns how many rounds all federations have together."""
    federations = (
        trial.places(config, m, seed) for m in trial.trained(config).values() for seed in config.seeds
    )
    return config.federate.rounds * sum(map(len, federations))


def _discard(run: Run) -> None:
    """Deletes the folders of methods, seeds and clients that the config no longer has."""
    config = run.config
    kept = {
        (name, place)
        for name, method in config.methods.items()
        for seed in config.seeds
        for place in trial.places(config, method, seed)
    }
    for folder in (run.folder / STAGE.folder).glob("*/seed-*"):
        if (folder.parent.name, folder.name) not in kept:
            log.info("federate: the config has no %s, %s any more: deleted", folder.parent.name, folder.name)
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()


def _progress(run: Run) -> tuple[int, int, str]:
    config, done = run.config, 0
    for name, method in trial.trained(config).items():
        for seed in config.seeds:
            for place in trial.places(config, method, seed):
                path = run.folder / STAGE.folder / name / place / "checkpoint.safetensors"
                meta = load_tensors(path)[1] if path.exists() else {}
                if meta.get("key") == trial.key(run, method, seed):  # an older config's rounds do not count
                    done += len(meta["rounds"])
    return done, _rounds(config), "rounds"


def _inputs(config: Config) -> Any:
    methods = {name: method.model_dump() for name, method in config.methods.items()}
    kind = config.federate.engine
    federation = [trial.training(config), "exact" if kind in EXACT else [kind, trial.ROUNDING]]
    models = [
        *(config.precision, config.device_type),
        *(model.model_dump() for model in (config.model, *config.client_models)),
    ]
    data = [data_digest(config.data), config.data.partition.model_dump()]
    return [data, federation, methods, models, pretrain.initial_digest(config), config.seeds]


STAGE = Stage(
    "federate",
    trial.FOLDER,
    trial.VERSION,
    _inputs,
    ("labels", "generate", "guided", VOCABULARY, "pretrain"),
    _run,
    _progress,
    check,
    keeps=True,
)
