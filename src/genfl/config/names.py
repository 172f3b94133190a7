"""Names that a config can contain. This module imports nothing of genfl."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["auto", "parallel", "sequential", "vectorized"]

RunEngineName = Literal["auto", "parallel", "sequential", "vectorized", "flower-inprocess", "flower"]
"""The engines of whole runs: those of simulations in Python, and those over Flower."""

FLOWER = "flower"
"""The engine of clients on other machines, or in other processes."""

FLOWER_IN_PROCESS = "flower-inprocess"
"""The engine that sends clients Flower's messages in one process, to try a federation out."""

OLD_ENGINES = {"vectorised": "vectorized"}
"""Old spellings of engines, with the current ones."""

GENERATOR_KINDS = ("image", "speech", "sound", "text", "files")
"""The kinds of generators that come with genfl."""

NO_GENERATOR = "none"

ESPEAK = "espeak"
"""The speech generator without a model: the program espeak-ng."""

SPEECH_VOCODER = "microsoft/speecht5_hifigan"
"""The default vocoder of SpeechT5."""

ASKED_STYLES = ("llm", "scenes")
"""The styles of prompts that a language model writes."""

REFERENCE_NAMES = ("local", "centralised", "generator")
"""The references: methods that are not federated."""

GENERATOR_REFERENCE = "generator"
"""The reference that classifies with the generator itself."""

RESERVED_METHODS = {
    "synthetic_only": "the pre-trained model",
    "engine.json": "a file of the run",
    "noise.key": "a file of the run",
}
"""The names that methods cannot have, and what they stand for in results or a run's folder."""

UNLABELLED_RESOURCES = ("shared", "unlabelled")
"""The resources of algorithms that are synthetic or public inputs."""

OLD_OPTIONS = {
    name: {"server_lr": "lr"} for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold")
}
"""Old names of options, with the current ones, by algorithm."""
