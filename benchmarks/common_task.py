"""Compare one FedAvg task on genfl's engines and on a bare PyTorch loop, side by side in one run.

100 clients of 64 samples, 10 clients a round, one local epoch, batches of 32, plain SGD.
``--side 8 --width 16`` is a CNN for digits, bound by overhead; ``--side 32 --width 32`` one for CIFAR-sized
images, bound by arithmetic; ``--model logistic --cohort 100`` and ``--model mlp --cohort 100`` are models
whose clients it pays to batch. The repetitions of all contestants alternate, so that a machine's drift hits
all, and medians are printed.

``--model resnet20 --side 32 --device cuda`` and ``vgg19``, with ``--batch 32`` and 64, are for a GPU; there
the peak of its memory is printed as well. ``--profile NAME`` says what a contestant's time goes to.

``--peer COMMAND`` is another library on the task: a command that reads SIDE, WIDTH, MODEL, BATCH, COHORT,
DEVICE and ROUNDS from its environment and prints the seconds a round as its last word; one that reads fewer
of them runs another task than it is asked for. ``--only`` picks contestants; under ``taskset -c 1`` all of
them share a core. ``--precision bf16`` is genfl's alone: the others compute in fp32 as ever.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genfl import trees
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.auto import EngineDecision, Name, choose, engine
from genfl.engines.fast import replays
from genfl.engines.pool import refusal
from genfl.learning.local import LocalSGD
from genfl.learning.task import CPU, classification
from genfl.models import MLP, MODELS, Classifier, Stack
from genfl.rng import Key
from genfl.simulation import cohort, federate

CLIENTS, SAMPLES, LR, CLASSES = 100, 64, 0.05, 10


def cnn(shape: tuple[int, ...], width: int) -> Classifier:
    """Return two blocks of convolution, group norm, ReLU and pooling, and a linear head."""
    channels, side, _ = shape
    blocks = [
        layer
        for before, after in ((channels, width), (width, 2 * width))
        for layer in (
            nn.Conv2d(before, after, 3, padding=1),
            nn.GroupNorm(4, after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
    ]
    return Stack(nn.Sequential(*blocks, nn.Flatten()), nn.Linear(2 * width * (side // 4) ** 2, CLASSES))


def bare_loop(
    build: Callable[[], Classifier], x: torch.Tensor, y: torch.Tensor, size: int, rounds: int, batch: int
) -> None:
    """Federated averaging as one would write it without a library; everything is where the data is."""
    model = build().to(x.device)
    weights = copy.deepcopy(model.state_dict())
    rng = np.random.default_rng(0)
    for number in range(rounds):
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in cohort(CLIENTS, size, Key(0).fold("cohort", number)):
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), LR)
            for rows in np.split(rng.permutation(SAMPLES), SAMPLES // batch):
                optimizer.zero_grad()
                F.cross_entropy(model(x[client, rows]), y[client, rows]).backward()
                optimizer.step()
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    total[name] += value / size
        weights = total


def profiled(run: Callable[[], object]) -> str:
    """Return what takes a run's time, as a table."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=50)


def main() -> None:
    """Print seconds a round for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--model", choices=["cnn", "mlp", "logistic", "resnet20", "vgg19"], default="cnn")
    parser.add_argument("--batch", type=int, choices=[16, 32, 64], default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of genfl's engines")
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--cohort", type=int, default=10, help="clients a round, at most 100")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peer", help="a command that runs another library on the task")
    parser.add_argument("--only", nargs="+", help="contestants, by name")
    parser.add_argument("--profile", help="a contestant")
    chosen = parser.parse_args()
    shape = (1 if chosen.side == 8 else 3, chosen.side, chosen.side)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((CLIENTS * SAMPLES, *shape), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, CLASSES, CLIENTS * SAMPLES))
    data = ClientData(x, y, np.arange(len(x)).reshape(CLIENTS, SAMPLES), CLASSES)

    def build() -> Classifier:
        match chosen.model:
            case "cnn":
                return cnn(shape, chosen.width)
            case "mlp":
                return MLP(shape, CLASSES, width=chosen.width)
            case "logistic":
                return Stack(nn.Flatten(), nn.Linear(x[0].numel(), CLASSES))
            case name:
                return MODELS[name].build(shape, CLASSES)

    task = classification(build, shape, chosen.precision)
    algorithm = fedavg(task, LocalSGD(LR))
    weights = task.init(Key(0))
    by_client = (
        x.view(CLIENTS, SAMPLES, *shape).to(chosen.device),
        y.view(CLIENTS, SAMPLES).to(chosen.device),
    )

    ended: dict[str, torch.Tensor] = {}
    peaks: dict[str, int] = {}

    def seconds(name: str, run: Callable[[], object]) -> float:
        if chosen.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        run()
        if chosen.device.type == "cuda":
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_allocated()
        return (time.perf_counter() - began) / chosen.rounds

    def bare(threads: int) -> None:
        torch.set_num_threads(threads)
        bare_loop(build, *by_client, chosen.cohort, chosen.rounds, chosen.batch)

    def peer() -> float:
        asked = ("side", "width", "model", "batch", "cohort", "device", "rounds")
        told = {name.upper(): str(getattr(chosen, name)) for name in asked}
        said = subprocess.run(
            shlex.split(chosen.peer), env=os.environ | told, capture_output=True, check=True
        )
        return float(said.stdout.split()[-1])

    schedule = Schedule(chosen.rounds, chosen.cohort, chosen.batch, evaluate_every=10**9)
    on_cpu = chosen.device == CPU
    choice = choose(task, weights, data, schedule) if on_cpu else EngineDecision(False, "it is no CPU")
    print(f"auto runs clients {'in batches' if choice.batched else 'one by one'}: {choice.why}")
    replays.AFTER = 10  # as in a long federation; recording is part of no repetition
    with contextlib.ExitStack() as stack:

        def ours(name: str, kind: Name) -> Callable[[], None]:
            runner = stack.enter_context(engine(kind, data, chosen.cohort, chosen.device))

            def run() -> None:
                trace = federate(
                    algorithm,
                    weights,
                    data,
                    runner,
                    schedule,
                    Key(0),
                    lambda weights: {},
                    device=chosen.device,
                )
                ended[name] = torch.cat([leaf.flatten() for leaf in trees.leaves(trace.weights)])

            return run

        works: dict[str, Callable[[], None]] = {
            "bare loop, 1 thread": lambda: bare(1),
            "bare loop, 2 threads": lambda: bare(2),
            "sequential": ours("sequential", "sequential"),
            "vectorized": ours("vectorized", "vectorized"),
            "auto": ours("auto", "vectorized" if choice.batched else "auto"),
        }
        if refusal() is None:
            works["parallel"] = ours("parallel", "parallel")
        contestants = {name: partial(seconds, name, work) for name, work in works.items()}
        if chosen.peer:
            contestants["peer"] = peer
        if chosen.only:
            contestants = {name: contestants[name] for name in chosen.only}
        for run in contestants.values():
            run()  # forks, first allocations
        runs = [{name: run() for name, run in contestants.items()} for _ in range(chosen.repetitions)]
        if chosen.profile:
            print(profiled(works[chosen.profile]))
    for name in ended:
        if name != "sequential" and "sequential" in ended:
            far = (ended[name] - ended["sequential"]).abs().max().item()
            print(f"{name} ends at most {far:.1e} from sequential, in a weight")
    for name in contestants:
        others = (statistics.median(row[name] / row[other] for row in runs) for other in contestants)
        against = ", ".join(
            f"{ratio:.2f} of {other}" for ratio, other in zip(others, contestants, strict=True)
        )
        print(f"{name}: {statistics.median(row[name] for row in runs):.4f} s a round; {against}")
        if name in peaks:
            print(f"{name}: {peaks[name] / 2**20:.0f} MiB of the GPU's memory at most")
    if "auto" in contestants:
        print(f"genfl seconds_per_round {statistics.median(row['auto'] for row in runs):.5f}")


if __name__ == "__main__":
    main()
