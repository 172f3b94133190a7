"""How much Fed-ET's server model learns of its clients' consensus, beside FedAvg, on a part of CIFAR-10.

The clients hold a part of the training photos, and the server another part, unlabelled. For each variant and
seed, a line gives test accuracies at the end (mean of the last five evaluations): of the server's model, of
the mean model of each architecture, and the consensus' accuracy on the public photos, whose labels the server
does not see. A variant is a name and options, as in ``et:models=small,steps=50,lr=0.001,share=1``. The
models are ``same`` (every client has the server's model) or ``small`` (two architectures, in turn).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import genfl
from genfl.algorithms import Algorithm, fedavg, feddf, fedet
from genfl.algorithms.architectures import TrainedModel
from genfl.algorithms.fedet import confident_consensus
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.experiment.context import RunContext, class_indices, initial_key
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task
from genfl.rng import Key
from genfl.simulation import federate
from genfl.trees import Tree

SMALL = (8, 12)
"""The widths of the small models. The server's model has a width of 16; all have a hidden layer of 128."""


def settings(args: argparse.Namespace) -> genfl.Config:
    """Return the config of the data and the models."""
    return genfl.parse_config(
        {
            "name": "ensemble_transfer",
            "data": {
                "name": "cifar10",
                "path": args.path,
                "size": [args.size, args.size],
                "partition": {"alpha": args.alpha, "clients": args.clients, "samples": args.samples},
            },
            "generator": "none",
            "public": {"samples": args.public},
            "model": {"name": "cnn", "width": 16, "hidden": 128},
            "client_models": [{"name": "cnn", "width": width, "hidden": 128} for width in SMALL],
            "federate": {"clients_per_round": args.cohort},
            "methods": {"a": {"algorithm": "dsfl", "source": "public"}},
        }
    )


def variant(
    text: str, task: Task, small: dict[str, Task], local: LocalSGD, x: Tensor
) -> tuple[Algorithm, dict[str, Task]]:
    """Return the algorithm of a variant, and its clients' tasks."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = dict(part.split("=") for part in rest.split(",") if part)
    clients = {"same": task} if options.pop("models", "small") == "same" else small
    numbers = {key: float(value) if "." in value else int(value) for key, value in options.items()}
    if "share" in numbers:
        numbers["share"] = bool(numbers["share"])
    if name == "fedavg":
        return fedavg(task, local), {}
    if name == "feddf":
        return feddf(task, local, unlabelled=x, **numbers), {}
    return fedet(task, local, unlabelled=x, client_tasks=clients, **numbers), clients


def main() -> None:
    """Run all variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="a folder with CIFAR-10")
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--size", type=int, default=16, help="height and width of the photos, in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--cohort", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--public", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config, context = settings(args), RunContext()
    data = context.data_set(config.data)
    labels = sorted(set(data.train.labels))
    assert config.public is not None
    public = context.public(config.public, config.data)
    x, (_, public_y) = public.unlabelled(data), public.matched(labels)
    test_x, test_y = data.prepare(data.test.x), class_indices(data.test, labels)
    task, *others = (
        context.classify(config.data, model, len(labels), "fp32")
        for model in (config.model, *config.client_models)
    )
    small = {f"width {width}": other for width, other in zip(SMALL, others, strict=True)}

    def accuracy(of: Task, weights: Any) -> float:
        return 100 * float((of.predict(weights, test_x).argmax(1) == test_y).float().mean())

    every = max(1, args.rounds // 10)
    print("variant, seed: server's model, each architecture's mean, consensus on public photos; seconds")
    for text in args.variants:
        for seed in args.seeds:
            algorithm, client_tasks = variant(text, task, small, LocalSGD(args.lr), x)
            latest: dict[str, list[float]] = {name: [] for name in ("consensus", *client_tasks)}
            rounds = itertools.count(1)

            def server(
                state: Tree,
                aggregate: Tree,
                key: Key,
                algorithm: Algorithm = algorithm,
                tasks: dict[str, Task] = client_tasks,
                latest: dict[str, list[float]] = latest,
                rounds: Iterator[int] = rounds,
            ) -> Tree:
                after, number = algorithm.server(state, aggregate, key), next(rounds)
                if tasks and number % every == 0 and number > args.rounds - 5 * every:
                    cohort = [pair for client in aggregate["trained"] for pair in client.items()]
                    trained = [TrainedModel(n, m["weights"], m["samples"]) for n, m in cohort]
                    logits = torch.stack([tasks[m.name].predict(m.weights, x) for m in trained])
                    hits = confident_consensus(logits, 0.0).argmax(1) == public_y
                    latest["consensus"].append(100 * float(hits.float().mean()))
                    for name, weights in after["models"].items():
                        latest[name].append(accuracy(tasks[name], weights))
                return after

            clients = context.private_data(config.data, labels, seed)
            schedule = Schedule(args.rounds, args.cohort, 32, local_epochs=args.epochs, evaluate_every=every)
            began = time.perf_counter()
            trace = federate(
                algorithm._replace(server=server),
                task.init(initial_key(seed)),
                clients,
                sequential(clients),
                schedule,
                Key(seed).fold("federate"),
                lambda weights: {"accuracy": accuracy(task, weights)},
            )
            last = [evaluation["accuracy"] for evaluation in trace.evaluations[-5:]]
            means = {name: sum(v[-5:]) / len(v[-5:]) for name, v in latest.items() if v}
            shown = ", ".join(f"{name} {value:.1f}" for name, value in means.items())
            print(
                f"{text}, {seed}: {sum(last) / len(last):.1f}; {shown}; {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
