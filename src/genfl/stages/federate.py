"""federate: every method trains on the clients' private data, from the same splits, cohorts and budget."""

from __future__ import annotations

from functools import partial
from typing import Any

from genfl import progress
from genfl.algorithms import ALGORITHMS, Algorithm
from genfl.analysis import diversity
from genfl.config import Config, Method
from genfl.engines.rounds import Schedule, federate
from genfl.engines.sequential import Sequential
from genfl.learning.evaluate import evaluate
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, state_dict
from genfl.rng import Key
from genfl.run import Run, data_set, indices, initial_key, private_data, task_of
from genfl.stages import pretrain
from genfl.stages.base import Stage
from genfl.storage import load_tensors, save_tensors, write_json

SYNTHETIC_ONLY = "synthetic_only"
"""The pre-trained model as it is, before any round: a row of every comparison."""


def _run(run: Run) -> dict[str, Any]:
    config = run.config
    task = task_of(run)
    test = data_set(config.data.name).test
    score = partial(evaluate, task, x=test.x, y=indices(test, run.labels))
    results: dict[str, dict[str, Any]] = {name: {} for name in (SYNTHETIC_ONLY, *config.methods)}
    rounds = config.federate.rounds * len(config.methods) * len(config.seeds)
    with progress.bar("federate", rounds, "rounds") as advance:
        for seed in config.seeds:
            warm = pretrain.weights(run, task, seed)
            results[SYNTHETIC_ONLY][str(seed)] = {
                "evaluations": [{"round": 0, **score(weights=warm)}],
                "rounds": [],
            }
            clients = private_data(run, seed)
            for name, method in config.methods.items():
                folder = run.folder / STAGE.folder / name / f"seed-{seed}"
                trace = federate(
                    _algorithm(config, method, task),
                    warm if method.start == "pretrained" else task.init(initial_key(seed)),
                    clients,
                    Sequential(clients),
                    _schedule(config),
                    Key(seed).fold("federate"),  # not the method's: all methods see the same cohorts
                    lambda weights: score(weights=weights),
                    checkpoint=folder / "checkpoint.safetensors",
                    measures={diversity.NAME: diversity.gradient_diversity()},
                    on_round=advance,
                )
                save_tensors(folder / "model.safetensors", state_dict(trace.weights))
                result = {"evaluations": trace.evaluations, "rounds": trace.rounds}
                write_json(folder / "trace.json", result)
                results[name][str(seed)] = result
    return {"methods": results}


def _algorithm(config: Config, method: Method, task: Task) -> Algorithm:
    work = config.federate.local
    local = LocalSGD(work.lr, work.momentum, work.weight_decay)
    options = method.algorithm.model_dump()
    return ALGORITHMS[options.pop("name")].build(task, local, **options)


def _schedule(config: Config) -> Schedule:
    federation = config.federate
    return Schedule(
        rounds=federation.rounds,
        clients_per_round=federation.clients_per_round,
        batch_size=federation.local.batch_size,
        local_steps=federation.local.steps,
        local_epochs=federation.local.epochs,
        evaluate_every=federation.evaluate_every,
        checkpoint_every=federation.checkpoint_every,
    )


def _progress(run: Run) -> tuple[int, int, str]:
    config = run.config
    checkpoints = (run.folder / STAGE.folder).glob("*/seed-*/checkpoint.safetensors")
    done = sum(len(load_tensors(path)[1]["rounds"]) for path in checkpoints)
    return done, config.federate.rounds * len(config.methods) * len(config.seeds), "rounds"


def _inputs(config: Config) -> Any:
    methods = {name: method.model_dump() for name, method in config.methods.items()}
    federation = config.federate.model_dump(exclude={"checkpoint_every"})
    return [config.data.model_dump(), federation, methods, config.seeds]


STAGE = Stage("federate", "federate", 2, _inputs, ("labels", "pretrain"), _run, _progress)
