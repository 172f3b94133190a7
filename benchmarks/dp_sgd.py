"""Compare a step of DP-SGD in genfl and in Opacus, side by side in one run.

One client, batches of 64, flat clipping at norm 1, noise 1: the CNN for digits (`cnn` on 8×8 pixels) and the
ConvNet for CIFAR-sized images. Opacus runs with hooks and with functorch. genfl runs its step as it is, and
replayed from a recording, which is what it does in a federation after 1,000 steps. A step is the whole of it:
gradients of every sample, clipping, noise, and the change of the weights. Both start from tensors in memory.

Contestants take turns, so that a machine's drift hits all, and medians are printed. The peak of memory is
what a process that runs nothing else needs for three steps, besides what it holds before them.

    python benchmarks/dp_sgd.py [--steps 15] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from genfl.algorithms.fedavg import fedavg
from genfl.engines.fast.recording import record
from genfl.learning.local import LocalSGD
from genfl.learning.per_sample import per_sample_gradient
from genfl.learning.task import classification
from genfl.models import MODELS
from genfl.privacy.dp.sample import ClippedGradient
from genfl.rng import Key

BATCH, NORM, NOISE, LR, CLASSES = 64, 1.0, 1.0, 0.05, 10
SHAPES = {"cnn": (1, 8, 8), "convnet": (3, 32, 32)}

Step = Callable[[], object]


def batch_of(model: str) -> dict[str, torch.Tensor]:
    """Return random examples, marked as Poisson sampling marks them."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.rand(BATCH, *SHAPES[model], generator=generator),
        "y": torch.arange(BATCH) % CLASSES,
        "protected": torch.ones(BATCH),
        "free": torch.zeros(BATCH),
        "expected": torch.tensor(float(BATCH)),
    }


def genfl_step(model: str, recorded: bool) -> Step:
    """Return a step of a client of FedAvg."""
    shape = SHAPES[model]
    task = classification(lambda: MODELS[model].build(shape, CLASSES), shape)
    local = LocalSGD(LR, batch_gradient=ClippedGradient(NOISE, NORM, per_sample_gradient(task)))
    client, weights = fedavg(task, local).client, task.init(Key(0))
    info = {"samples": torch.tensor(float(BATCH)), "label_counts": torch.ones(CLASSES)}
    carry = client.start({"weights": weights, "announced": {}}, {"method": {}, "local": {}}, info, Key(0))
    batch = batch_of(model)
    if not recorded:
        return lambda: client.step(carry, batch, Key(1))
    from genfl import trees

    recording = record(client.step, carry, batch, Key(1))
    leaves, examples = trees.leaves(carry), trees.leaves(batch)
    return lambda: recording(
        leaves, examples, lambda path, sampler, inputs, _: Key(1).fold(*path).draw(sampler, *inputs)
    )


def opacus_step(model: str, functorch: bool) -> Step:
    """Return a step of Opacus."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.manual_seed(0)
    module = GradSampleModule(MODELS[model].build(SHAPES[model], CLASSES).train(), force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=LR),
        noise_multiplier=NOISE,
        max_grad_norm=NORM,
        expected_batch_size=BATCH,
    )
    batch = batch_of(model)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(batch["x"]), batch["y"]).backward()
        optimizer.step()

    return step


CONTESTANTS: dict[str, Callable[[str], Step]] = {
    "genfl": lambda model: genfl_step(model, recorded=False),
    "genfl, replayed": lambda model: genfl_step(model, recorded=True),
    "Opacus, hooks": lambda model: opacus_step(model, functorch=False),
    "Opacus, functorch": lambda model: opacus_step(model, functorch=True),
}


def peak(model: str, name: str, steps: int, results: multiprocessing.Queue[float]) -> None:
    """Put the MiB that some steps need at their peak."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    step = CONTESTANTS[name](model)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    for _ in range(steps):
        step()
    results.put((resident("VmHWM") - before) / 1024)


def resident(name: str) -> int:
    """Return a figure of the memory of this process, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def peak_memory(model: str, name: str, steps: int = 3) -> float:
    """Return the MiB that some steps need at their peak, in a new process."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=peak, args=(model, name, steps, results))
    process.start()
    memory = results.get()
    process.join()
    return memory


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=15, help="steps of each contestant")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for model in args.only:
        steps = {name: make(model) for name, make in CONTESTANTS.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(args.steps + 2):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                if number >= 2:  # the first steps warm up
                    times[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        fastest = min(seconds for name, seconds in medians.items() if name.startswith("Opacus"))
        print(f"{model}, batch {BATCH}")
        for name, seconds in medians.items():
            print(
                f"  {name:18} {1000 * seconds:8.1f} ms  {seconds / fastest:5.2f} of the faster Opacus"
                f"  {peak_memory(model, name):7.0f} MiB"
            )


if __name__ == "__main__":
    main()
