"""The settings on which `genfl advise` is validated: full configs over eight data sets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METHODS = {
    "fedavg": {"algorithm": "fedavg"},
    "gptfl": {"algorithm": "fedavg", "start": "pretrained"},
    "fedgc": {"algorithm": "fedavg", "data": "mixed"},
    "both": {"algorithm": "fedavg", "start": "pretrained", "data": "mixed"},
}
"""The methods whose gains are predicted, and what they are compared with."""

STROKES = {
    "style": "fill",
    "template": "{opening} {look} handwritten {label}",
    "blanks": {
        "opening": ["a", "a photo of a", "an image of a", "a picture of a", "a scan of a"],
        "look": ["", "thin", "bold", "slanted", "upright", "wide", "narrow"],
    },
    "block_size": 50,
}

NEWS = {
    "World": "government minister troops election president peace talks border rebels united nations crisis"
    " war iraq",
    "Sports": "coach team season game win league final cup match olympic champion player goal record",
    "Business": "shares profit company market stocks oil prices quarter deal bank investors sales billion"
    " dollar",
    "Sci/Tech": "software internet microsoft computer scientists space nasa phone technology network users"
    " web search",
}
MOODS = {
    "negative": "delayed cancelled worst hours hold lost bag never rude terrible stuck waiting customer"
    " service",
    "neutral": "what when how flight number change seat question please dm fleet policy tomorrow gate",
    "positive": "thanks thank great love awesome amazing best crew helpful appreciate kind good job",
}
"""Words of each label, from which texts are made."""

PATTERNS = (
    "{a} and {b} over {c}",
    "{a} says {b} will {c} this week",
    "New {a} {b}: {c}, {d}",
    "{a}, {b} and {c} in the news",
    "@airline {a} {b} {c} {d}",
)


def digits(per_label: int = 100, alpha: float = 0.1, **more: Any) -> dict[str, Any]:
    """Return a config of handwritten digits, with the embedded generator."""
    return merged(
        {
            "data": {"name": "digits", "partition": split(alpha, 20)},
            "labels": {"max_bytes": 64},
            "prompts": {**STROKES, "per_label": per_label},
            "generator": {"kind": "image", "model": "miniature", "steps": 15},
            "model": {"name": "cnn"},
            "pretrain": {
                "epochs": 20,
                "batch_size": 32,
                "lr": 0.002,
                "patience": 10,
                "augment": {"noise": 0.05, "crop": 1},
            },
            "federate": {
                "rounds": 60,
                "clients_per_round": 4,
                "local": {"steps": 10, "batch_size": 32, "lr": 0.05},
            },
        },
        more,
    )


def mnist(per_label: int = 60, alpha: float = 0.1, **more: Any) -> dict[str, Any]:
    """Return a config of a part of MNIST, with the embedded generator."""
    base = digits(per_label, alpha)
    base["data"] = {
        "name": "mnist",
        "path": "{data}/mnist",
        "partition": split(alpha, 20) | {"samples": 2000},
    }
    base["model"] = {"name": "mlp"}
    base["federate"] |= {"rounds": 40, "clients_per_round": 5}
    return merged(base, more)


def cifar10(
    per_label: int = 100, alpha: float = 0.1, path: str = "{data}/cifake_sd14", **more: Any
) -> dict[str, Any]:
    """Return a config of a part of CIFAR-10, with images of Stable Diffusion 1.4 that exist."""
    return merged(
        {
            "data": {"name": "cifar10", "path": "{work}/cifar10", "partition": split(alpha, 10)},
            "prompts": {"per_label": per_label},
            "generator": {"kind": "files", "path": path},
            "model": {"name": "cnn"},
            "pretrain": {
                "epochs": 8,
                "batch_size": 32,
                "lr": 0.003,
                "weight_decay": 0.05,
                "augment": {"flip": True},
            },
            "federate": {
                "rounds": 24,
                "clients_per_round": 4,
                "local": {"steps": 5, "batch_size": 16, "lr": 0.1},
            },
        },
        more,
    )


def speech(per_label: int = 60, **more: Any) -> dict[str, Any]:
    """Return a config of nine spoken words by 127 people, with a speech synthesiser."""
    return merged(
        {
            "data": {
                "name": "speech_commands_9",
                "path": "{data}/speech_commands_9",
                "partition": {"kind": "natural", "clients": 127},
            },
            "prompts": {"per_label": per_label},
            "generator": {"kind": "speech", "model": "espeak"},
            "model": {"name": "fedaudio", "norm": "group"},
            "pretrain": {"epochs": 8, "batch_size": 32, "lr": 0.001, "augment": {"time_shift": 20}},
            "federate": {"rounds": 30, "clients_per_round": 8, "local": {"batch_size": 16, "lr": 0.05}},
        },
        more,
    )


def spoken_digits(per_label: int = 40, alpha: float = 0.3, **more: Any) -> dict[str, Any]:
    """Return a config of spoken digits, with a speech synthesiser."""
    return merged(
        {
            "data": {"name": "spoken_digits", "path": "{data}/fsdd", "partition": split(alpha, 20)},
            "prompts": {"per_label": per_label},
            "generator": {"kind": "speech", "model": "espeak", "seconds": 0, "snr": [10, 50]},
            "model": {"name": "fedaudio", "norm": "group"},
            "pretrain": {"epochs": 8, "batch_size": 32, "lr": 0.001},
            "federate": {
                "rounds": 30,
                "clients_per_round": 5,
                "local": {"steps": 3, "batch_size": 16, "lr": 0.05},
            },
        },
        more,
    )


def esc10(alpha: float = 0.5, **more: Any) -> dict[str, Any]:
    """Return a config of sounds around us, with a generator that only speaks their names: a useless one."""
    return merged(
        {
            "data": {
                "name": "esc10",
                "path": "{data}/esc10",
                "partition": split(alpha, 8) | {"min_size": 8},
            },
            "prompts": {"per_label": 20},
            "generator": {"kind": "speech", "model": "espeak", "seconds": 5},
            "model": {"name": "fedaudio", "norm": "group"},
            "pretrain": {"epochs": 10, "batch_size": 16, "lr": 0.001},
            "federate": {
                "rounds": 16,
                "clients_per_round": 4,
                "local": {"steps": 2, "batch_size": 8, "lr": 0.03},
            },
        },
        more,
    )


def texts(name: str, path: str, per_label: int = 60, alpha: float = 0.1, **more: Any) -> dict[str, Any]:
    """Return a config of short texts, with texts from templates."""
    return merged(
        {
            "data": {
                "name": name,
                "path": "{data}/" + path,
                "length": 32,
                "tokenizer": "hashed",
                "partition": split(alpha, 10) | {"samples": 3000},
            },
            "prompts": {"per_label": per_label},
            "generator": {"kind": "files", "path": "{work}/texts/" + name},
            "model": {"name": "lstm", "embedding": 32, "width": 32, "pool": "mean"},
            "pretrain": {"epochs": 10, "batch_size": 32, "lr": 0.002},
            "federate": {
                "rounds": 50,
                "clients_per_round": 5,
                "local": {"steps": 4, "batch_size": 16, "lr": 1.0},
            },
            "methods": {name: method | {"algorithm": "fedavgm"} for name, method in METHODS.items()},
        },
        more,
    )


def split(alpha: float, clients: int) -> dict[str, Any]:
    """Return a Dirichlet split."""
    return {"kind": "dirichlet", "alpha": alpha, "clients": clients, "min_size": 4}


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with other values of some fields: names of nested fields have ``__`` between them."""
    content = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for name, value in more.items():
        *sections, field = name.split("__")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[field] = value
    return content


SETTINGS: dict[str, dict[str, Any]] = {
    "digits": digits(),
    "digits_even": digits(alpha=1.0, federate__rounds=100),
    "digits_poor": digits(generator__steps=2),
    "digits_wrong": digits(alpha=0.3, prompts__wrong=0.6),
    "mnist": mnist(),
    "mnist_even": mnist(alpha=1.0, federate__local__lr=0.1),
    "mnist_poor": mnist(alpha=0.3, generator__steps=2),
    "mnist_few": mnist(per_label=30, alpha=0.2, federate__rounds=30),
    "cifar10": cifar10(),
    "cifar10_even": cifar10(alpha=1.0, federate__rounds=36),
    "cifar10_few": cifar10(per_label=40, alpha=0.3),
    "cifar10_wrong": cifar10(path="{work}/shuffled", alpha=0.3),
    "speech": speech(),
    "speech_few": speech(per_label=30, federate__rounds=40),
    "speech_wrong": speech(prompts__wrong=0.6, federate__rounds=40),
    "spoken_digits": spoken_digits(),
    "spoken_digits_even": spoken_digits(alpha=5.0),
    "spoken_digits_wrong": spoken_digits(prompts__wrong=0.7, federate__rounds=50),
    "esc10": esc10(),
    "esc10_skewed": esc10(alpha=0.1),
    "ag_news": texts("ag_news", "ag_news_7600"),
    "ag_news_even": texts("ag_news", "ag_news_7600", alpha=1.0, federate__rounds=80),
    "ag_news_few": texts("ag_news", "ag_news_7600", per_label=30, alpha=0.3),
    "airline_tweets": texts("airline_tweets", "airline_tweets", alpha=0.5),
    "airline_tweets_skewed": texts("airline_tweets", "airline_tweets", alpha=0.2, federate__rounds=40),
}
"""The settings by name, without what all of them share. ``{data}`` is the folder of real data sets, and
``{work}`` that of what `write_generated` writes."""


def family(setting: str) -> str:
    """Return the data set of a setting: predictions for it never rest on runs on it."""
    name: str = SETTINGS[setting]["data"]["name"]
    return name


def config_of(setting: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the config of a setting.

    Args:
        setting: Its name.
        data: The folder of the real data sets.
        work: The folder of what `write_generated` writes.
    """
    shared = {"name": setting, "seeds": [0, 1, 2], "methods": METHODS, "audit": {"overlap": "ignore"}}
    content = shared | merged(SETTINGS[setting], {})
    content["federate"] |= {"evaluate_every": max(content["federate"]["rounds"] // 10, 1)}
    filled: dict[str, Any] = _filled(content, {"{data}": str(data.resolve()), "{work}": str(work.resolve())})
    return filled


def _filled(value: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, folders) for key, item in value.items()}
    for blank, folder in folders.items():
        if isinstance(value, str) and value.startswith(blank):
            return folder + value.removeprefix(blank)
    return value


def write_generated(data: Path, work: Path) -> None:
    """Write what no generator makes: texts from templates, images with wrong labels, and a part of CIFAR-10.

    Args:
        data: The folder of the real data sets.
        work: The folder to write to. What is there stays.
    """
    import pandas as pd
    import pyarrow.parquet

    for name, topics in (("ag_news", NEWS), ("airline_tweets", MOODS)):
        target = work / "texts" / name / "texts.csv"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(_texts(topics), columns=["text", "label"]).to_csv(target, index=False)
    for name, count in (("train", 3000), ("test", 1000)):
        target = work / "cifar10" / f"{name}.parquet"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            files = sorted((data / "cifar10" / "data").glob(f"{name}-*.parquet"))
            table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
            rows = random.Random(0).sample(range(len(table)), count)
            pyarrow.parquet.write_table(table.take(sorted(rows)), target)
    target = work / "shuffled" / "images.parquet"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.parquet.read_table(data / "cifake_sd14" / "data")
        rng = random.Random(0)
        labels = [rng.randrange(10) if rng.random() < 0.6 else label for label in table["label"].to_pylist()]
        number = table.schema.get_field_index("label")
        column = pyarrow.array(labels, table.schema.field("label").type)
        pyarrow.parquet.write_table(table.set_column(number, table.schema.field("label"), column), target)


def _texts(topics: Mapping[str, str], per_label: int = 200) -> Iterator[tuple[str, str]]:
    rng = random.Random(0)
    for label, words in topics.items():
        for _ in range(per_label):
            chosen = rng.sample(words.split(), 4)
            yield rng.choice(PATTERNS).format(**dict(zip("abcd", chosen, strict=True))), label
