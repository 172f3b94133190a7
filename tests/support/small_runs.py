"""Small runs on files, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import genfl

SHADES = {"dark": 50, "middle": 128, "light": 205}
"""The mean grey of the images of each class."""


def image_folder(folder: Path, each: int, seed: int = 0, clients: int = 0) -> Path:
    """Write noisy images, a folder for each class, or for each client and class, and return the folder."""
    rng = np.random.default_rng(seed)
    for number in range(each):
        for name, shade in SHADES.items():
            part = folder / f"client-{number % clients}" / name if clients else folder / name
            part.mkdir(parents=True, exist_ok=True)
            pixels = rng.normal(shade, 70, (9, 11, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(part / f"{number:03}.png")
    return folder


def image_run(private: Path, out: Path, **changes: Any) -> genfl.Result:
    """Run FedAvg on a folder of images."""
    content = {
        "name": "images",
        "generator": "none",
        "seeds": [0],
        "data": {
            "name": "images",
            "path": str(private),
            "size": [8, 8],
            "partition": {"kind": "iid", "clients": 2},
        },
        "model": {"name": "mlp", "width": 8},
        "methods": {"fedavg": {"algorithm": "fedavg"}},
        "federate": {
            "rounds": 2,
            "clients_per_round": 2,
            "engine": "sequential",
            "local": {"lr": 0.1, "batch_size": 8},
        },
    }
    return genfl.run({**content, **changes}, out=out)
