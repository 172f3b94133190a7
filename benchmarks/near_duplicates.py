"""Count near-duplicates in real data: clean data, and test images that were re-encoded.

``python benchmarks/near_duplicates.py FOLDER``, where FOLDER holds cifar10, cifake_sd14, fsdd, ... as Parquet
files. Without it, the folder of real data beside the repository is read, if there is one.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from genfl.data.overlap import near_pairs
from genfl.data.sources import DATASETS, DataSet, digits

OTHERS = {
    "pacs": "pacs64",
    "eurosat": "eurosat_rgb",
    "mnist": "mnist",
    "spoken_digits": "fsdd",
    "esc10": "esc10",
    "speech_commands_9": "speech_commands_9",
    "ag_news": "ag_news_7600",
    "airline_tweets": "airline_tweets",
    "newsgroups20": "newsgroups20",
}


def count(name: str, first: torch.Tensor, second: torch.Tensor, data: DataSet) -> None:
    """Print how many examples of the first have a near-duplicate in the second, and the time it took."""
    began = time.perf_counter()
    pairs = near_pairs(first, second, data.modality)
    near = len({row for row, _ in pairs.rows.tolist()})
    seconds = time.perf_counter() - began
    print(
        f"| {name} | {len(first):,} | {len(second):,} | {len(pairs.rows)} | {near} | {seconds:.1f} |",
        flush=True,
    )


def reencoded(data: DataSet, rows: int, size: int, quality: int) -> torch.Tensor:
    """Return test images after they were resized, saved as JPEG, and read as inputs again."""
    assert data.decode is not None
    changed = []
    for x in data.test.x[:rows]:
        file = io.BytesIO()
        data.decode(x).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
        changed.append(data.encode(Image.open(file)))
    return torch.stack(changed)


def main(folder: Path) -> None:
    """Print a table of all comparisons."""
    torch.set_num_threads(1)
    print("| compared | first | second | pairs | near-duplicates in the first | seconds |")
    print("|---|---|---|---|---|---|")
    cifar = DATASETS["cifar10"].load(path=str(folder / "cifar10"))
    generated = DATASETS["cifar10"].load(path=str(folder / "cifake_sd14"))
    images = torch.cat([generated.train.x, generated.test.x])
    count("Stable Diffusion 1.4, CIFAR-10 test", images, cifar.test.x, cifar)
    for size, quality in ((224, 75), (48, 75), (32, 75), (24, 75), (24, 50), (16, 75)):
        name = f"CIFAR-10 test as JPEG of {size}×{size}, quality {quality}, CIFAR-10 test"
        count(name, reencoded(cifar, 1000, size, quality), cifar.test.x, cifar)
    count("CIFAR-10 test, train", cifar.test.x, cifar.train.x, cifar)
    count("Stable Diffusion 1.4, CIFAR-10 train", images, cifar.train.x, cifar)
    own = digits()
    count("digits test, train", own.test.x, own.train.x, own)
    for name, part in OTHERS.items():
        data = DATASETS[name].load(path=str(folder / part))
        count(f"{name} test, train", data.test.x, data.train.x, data)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[2] / "shared" / "data"
    if chosen.is_dir():
        main(chosen)
    else:
        print(f"no real data: {chosen} is absent")
