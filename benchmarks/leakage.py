"""How much of a real image an attacker reconstructs, beside a real and beside a generated image.

FedGC (arXiv 2312.05807, Figure 10) attacks the gradient of two images: both real, or one of them generated.
Here the same attack, from the same start, reconstructs both. The generated image has the class of the real
one whose place it takes. In a third case, the attacker has the generated image, as a server does that sends
it to clients.

With ``--setting run``, the attack is on the whole upload of a client of `examples/fedgc_digits.yaml` in round
1: all its local steps, on its own data alone, and mixed with its generated data. The attacker knows the
labels, the batches, and the learning rate.

``python benchmarks/leakage.py --help`` lists the options.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

import genfl
from genfl.data.plans import plan
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS, DIGIT_NAMES, DataSet
from genfl.experiment.context import RunContext, class_indices
from genfl.generators.image import StableDiffusion
from genfl.learning.inspect import InputRange
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, classification
from genfl.models import CNN, ConvNet
from genfl.privacy.attacks.leakage import Respond, batch_gradient, dlg, invert_gradients, local_update
from genfl.privacy.attacks.resemblance import matched, psnr, ssim, unit_range
from genfl.rng import Key
from genfl.trees import Tree

GREY_LEVEL = 48.13
"""The PSNR of an error of one of 255 grey levels. Larger values count as this one."""

RECOVERED = 25.0
"""The PSNR from which an image counts as recovered."""

REAL, GENERATED, KNOWN = "two real images", "a real and a generated one", "the same, generated one known"
ALONE, MIXED, GUESS = (
    "its own data",
    "its own and generated data",
    "no attack: a generated image of the class",
)

HEADER = """| upload of | real images | PSNR, dB | median | SSIM | recovered |
|---|---:|---:|---:|---:|---:|"""


class Images(NamedTuple):
    """Real and generated images as inputs of a model, with their class indices."""

    real: Tensor
    real_y: Tensor
    generated: Tensor
    generated_y: Tensor
    input_range: InputRange | None


class Score(NamedTuple):
    """How much a reconstruction resembles the true image: PSNR in dB, at most `GREY_LEVEL`, and SSIM."""

    psnr: float
    ssim: float


def load(args: argparse.Namespace) -> Images:
    """Return the images of a data set, and generated ones."""
    if args.data == "digits":
        data, names = DATASETS["digits"].load(), DIGIT_NAMES
        generated, y = miniature(data, args.per_label)
    else:
        data = DATASETS["cifar10"].load(path=args.path)
        others = DATASETS["cifar10"].load(path=args.generated)
        names = tuple(sorted(set(data.train.labels)))
        rows = some_rows(others, "generated")
        generated, y = data.prepare(others.train.x[rows]), class_indices(others.train, names)[rows]
    rows = some_rows(data, "real")
    real, real_y = data.prepare(data.train.x[rows]), class_indices(data.train, names)[rows]
    return Images(real, real_y, generated, y, data.input_range)


def some_rows(data: DataSet, name: str) -> Tensor:
    return torch.from_numpy(Key(0).fold(name).numpy().permutation(len(data.train.x))[:1000])


def miniature(data: DataSet, per_label: int) -> tuple[Tensor, Tensor]:
    """Return digits that the embedded model draws, and what they should show."""
    prompts = [
        Prompt(name, f"a handwritten {name}", 3.0, 1000 * label + nth)
        for label, name in enumerate(DIGIT_NAMES)
        for nth in range(per_label)
    ]
    samples = StableDiffusion("miniature", steps=15).generate(prompts)
    x = torch.stack([data.encode(sample.content) for sample in samples])
    return x, torch.arange(10).repeat_interleave(per_label)


def sigmoid_lenet(shape: tuple[int, ...]) -> nn.Module:
    """Return the kind of model that the authors of DLG attack: sigmoids, weights in [−0.5, 0.5]."""
    model = nn.Sequential(
        *(nn.Conv2d(shape[0], 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid()),
        nn.Flatten(),
        nn.Linear(12 * (shape[1] // 2) * (shape[2] // 2), 10),
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def victim(args: argparse.Namespace, images: Images) -> Task:
    """Return the task whose model is attacked."""
    shape = tuple(images.real.shape[1:])

    def build() -> nn.Module:
        if args.attack == "dlg":
            return sigmoid_lenet(shape)
        return CNN(shape, 10) if args.data == "digits" else ConvNet(shape, 10, width=args.width)

    return classification(build, shape, input_range=images.input_range)


def attacked(
    args: argparse.Namespace, task: Task, client: Respond, observed: Tree, y: Tensor, key: Key
) -> Tensor:
    """Return the images that the attack reconstructs."""
    if args.attack == "dlg":
        return dlg(task, client, observed, key, examples=len(y), steps=args.steps).x
    weight = args.total_variation
    return invert_gradients(task, client, observed, y, key, steps=args.steps, total_variation=weight).x


def with_known(client: Respond, known: Tensor, label: Tensor) -> Respond:
    """Return a client that has images which the attacker knows, besides those that it looks for."""
    return lambda x, y: client(torch.cat([x, known]), torch.cat([y, label]))


def score(image: Tensor, truth: Tensor) -> Score:
    return Score(min(psnr(image, truth), GREY_LEVEL), ssim(image, truth))


def pairs(images: Images, count: int, key: Key) -> Iterator[tuple[int, int, int]]:
    """Yield rows of two real images of different classes, and of a generated one of the second's class."""
    rng = key.numpy()
    for _ in range(count):
        first = int(rng.integers(len(images.real)))
        second = int(rng.choice(np.flatnonzero(images.real_y.numpy() != int(images.real_y[first]))))
        same = np.flatnonzero(images.generated_y.numpy() == int(images.real_y[second]))
        yield first, second, int(rng.choice(same))


def picture(rows: list[list[Tensor]], path: Path, zoom: int) -> None:
    """Save images [channels, height, width] in [0, 1] in rows."""
    gap = torch.ones_like(rows[0][0][:, :, :1])
    lines = [torch.cat([part for image in row for part in (image, gap)], 2) for row in rows]
    rule = torch.ones_like(lines[0][:, :1])
    sheet = torch.cat([part for line in lines for part in (line, rule)], 1)
    pixels = (255 * sheet).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = image.width * zoom, image.height * zoom
    image.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)


def mean_and_spread(values: list[float], digits: int = 1) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def print_table(scores: dict[str, list[Score]]) -> None:
    print(HEADER)
    for name, values in scores.items():
        recovered = sum(one.psnr >= RECOVERED for one in values)
        decibels = [one.psnr for one in values]
        print(
            f"| {name} | {len(values)} | {mean_and_spread(decibels)} | {statistics.median(decibels):.1f} |"
            f" {mean_and_spread([one.ssim for one in values], 2)} | {recovered} |"
        )


def compare_pairs(args: argparse.Namespace) -> None:
    """Attack gradients of pairs of images, and print a table."""
    images = load(args)
    task = victim(args, images)
    scores: dict[str, list[Score]] = {name: [] for name in (REAL, GENERATED, KNOWN)}
    sheet: list[list[Tensor]] = []
    for seed in args.seeds:
        weights = task.init(Key(seed).fold("initial model"))
        client = batch_gradient(task, weights)
        for nth, (a, b, g) in enumerate(pairs(images, args.pairs, Key(seed).fold("pairs"))):
            real, generated = images.real[[a, b]], images.generated[[g]]
            mixed = torch.cat([real[:1], generated])
            y = one_hot(images.real_y[[a, b]], 10).float()
            row: list[Tensor] = []
            for name, x, respond, unknown in (
                (REAL, real, client, 2),
                (GENERATED, mixed, client, 2),
                (KNOWN, mixed, with_known(client, generated, y[1:]), 1),
            ):
                start = Key(seed).fold("attack", nth)
                result = attacked(args, task, respond, client(x, y), y[:unknown], start)
                truth = unit_range(x[:unknown], images.input_range)
                result = matched(unit_range(result, images.input_range), truth)
                scores[name].append(score(result[0], truth[0]))
                row += [*(truth if unknown == 2 else ()), *result]
            if nth < args.shown:
                sheet.append(row)
        means = (f"{n}: {statistics.mean([s.psnr for s in v[-args.pairs :]]):.1f}" for n, v in scores.items())
        print(f"seed {seed}, PSNR in dB: " + ", ".join(means), flush=True)
    print_table(scores)
    for name in (GENERATED, KNOWN):
        lost = [one.psnr - other.psnr for one, other in zip(scores[REAL], scores[name], strict=True)]
        positive, negative = sum(x > 0 for x in lost), sum(x < 0 for x in lost)
        print(f"{REAL} − {name}: {mean_and_spread(lost)} dB; larger in {positive}, smaller in {negative}")
    shown = unit_range(images.real, images.input_range)
    guesses = [score(shown.mean(0), x).psnr for x in shown[:200]]
    print(f"no attack, the mean of the real images: {mean_and_spread(guesses)} dB")
    if args.picture:
        picture(sheet, args.picture, args.zoom)


def compare_uploads(args: argparse.Namespace) -> None:
    """Attack a client's whole upload of a round, and print a table."""
    config = genfl.parse_config(Path(__file__).parents[1] / "examples" / "fedgc_digits.yaml")
    context, local = RunContext(), config.federate.local
    data = context.data_set(config.data)
    task = context.classify(config.data, config.model, 10, "fp32")
    drawn, drawn_y = miniature(data, args.per_label)
    scores: dict[str, list[Score]] = {name: [] for name in (ALONE, MIXED, GUESS)}
    sheet: list[list[Tensor]] = []
    for seed in args.seeds:
        parts, _ = context.train_test_rows(config.data, seed)
        number = sorted(range(len(parts)), key=lambda n: len(parts[n]))[len(parts) // 2]
        x, y = data.train.x[parts[number]], class_indices(data.train, DIGIT_NAMES)[parts[number]]
        together = torch.cat([x, drawn]), torch.cat([y, drawn_y])
        weights = task.init(Key(seed).fold("initial model"))
        sheet.append([x[n] for n in range(args.shown)])
        for name, (inputs, labels) in ((ALONE, (x, y)), (MIXED, together)):
            draw = Key(seed).fold("batches").numpy()
            batches = plan(len(inputs), local.batch_size, local.steps, 1, draw)
            client = local_update(task, LocalSGD(local.lr), weights, batches)
            began = time.process_time()
            result = attacked(args, task, client, client(inputs, labels), labels, Key(seed))
            used = torch.cat(batches).unique().tolist()
            scores[name] += [score(result[n], x[n]) for n in used if n < len(x)]
            sheet.append([result[n] for n in range(args.shown)])
            print(
                f"seed {seed}, client {number}, {name}: {len(used)} of {len(inputs)} images in {len(batches)}"
                f" steps; attacked for {time.process_time() - began:.0f} s of CPU time",
                flush=True,
            )
        guesses = [drawn[int((drawn_y == label).nonzero()[0])] for label in y]
        scores[GUESS] += [score(image, truth) for image, truth in zip(guesses, x, strict=True)]
    print_table(scores)
    if args.picture:
        picture(sheet, args.picture, args.zoom)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=["pair", "run"], default="pair")
    parser.add_argument("--data", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--path", help="a folder with CIFAR-10")
    parser.add_argument("--generated", help="a folder with generated images of its classes")
    parser.add_argument("--attack", choices=["dlg", "invert"], default="dlg")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--total-variation", type=float, default=1e-4)
    parser.add_argument("--width", type=int, default=32, help="channels of ConvNet, for CIFAR-10")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of images for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--per-label", type=int, default=4, help="generated digits of each class")
    parser.add_argument("--picture", type=Path, help="where to save a picture")
    parser.add_argument("--shown", type=int, default=2, help="images of each seed in the picture: the first")
    parser.add_argument("--zoom", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.setting == "run":
        args.attack = "invert"  # DLG is for smooth models
        compare_uploads(args)
    else:
        compare_pairs(args)


if __name__ == "__main__":
    main()
