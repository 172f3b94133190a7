"""Small runs on files, and the files."""

from __future__ import annotations

import csv
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import genfl

SHADES = {"dark": 50, "middle": 128, "light": 205}
"""The mean grey of the images of each class."""


SMALL_RUN: dict[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0}},
    "generator": "none",
    "model": "mlp",
    "federate": {"rounds": 1, "clients_per_round": 2, "local": {"steps": 1}, "engine": "sequential"},
}
"""A config of a second, but for its methods."""


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


TONES = {"low": 300, "high": 1900}
"""The frequency of the clips of each class, in Hz."""


def sound_folder(folder: Path, each: int, seed: int = 0) -> Path:
    """Write noisy tones of half a second as WAV files, a folder for each class, and return the folder."""
    rng = np.random.default_rng(seed)
    time = np.arange(8000) / 16_000
    for name, frequency in TONES.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            sound = np.sin(2 * np.pi * frequency * time) + 2 * rng.normal(size=len(time))
            with wave.open(str(folder / name / f"{number:03}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16_000)
                file.writeframes((6000 * sound).clip(-32768, 32767).astype("<i2").tobytes())
    return folder


def text_file(path: Path, each: int, seed: int = 0) -> Path:
    """Write a table of texts with the columns text, label and user, and return its folder."""
    rng = np.random.default_rng(seed)
    words = {"positive": ["good", "fine", "warm"], "negative": ["bad", "cold", "poor"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "user"])
        for number in range(2 * each):
            name = [*words][number % 2]
            some = [*words[name], *words[[*words][1 - number % 2]][:1], "the", "film", "is"]
            writer.writerow([" ".join(rng.choice(some, 6)), name, f"user {number % 3}"])
    return path.parent


def small_run(data: dict[str, Any], model: Any, out: Path, **changes: Any) -> genfl.Result:
    """Run FedAvg without a generator on two clients."""
    content = {
        "name": "small",
        "generator": "none",
        "seeds": [0],
        "data": {**data, "partition": {"kind": "iid", "clients": 2}},
        "model": model,
        "methods": {"fedavg": {"algorithm": "fedavg"}},
        "federate": {
            "rounds": 2,
            "clients_per_round": 2,
            "engine": "sequential",
            "local": {"lr": 0.1, "batch_size": 8},
        },
    }
    return genfl.run({**content, **changes}, out=out)


def image_run(private: Path, out: Path, **changes: Any) -> genfl.Result:
    """Run FedAvg on a folder of images."""
    data = {"name": "images", "path": str(private), "size": [8, 8]}
    return small_run(data, {"name": "mlp", "width": 8}, out, **changes)
