"""Load the model in this folder, with torch and safetensors alone.

from load import load, prepare

model, description = load()
logits = model(prepare(inputs, description))
names = [description["label_names"][index] for index in logits.argmax(1)]
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def load(folder: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in evaluation mode, and the content of its ``model.json``.

    Args:
        folder: The folder of the model; by default that of this file.
    """
    path = Path(__file__).parent if folder is None else Path(folder)
    description = json.loads((path / "model.json").read_text(encoding="utf-8"))
    build = _architecture(path.resolve() / "architecture").build
    model = build(
        tuple(description["shape"]), len(description["label_names"]), **description["model"]["options"]
    )
    tensors = load_file(path / "model.safetensors")
    counts = [name for name, value in model.state_dict().items() if not value.is_floating_point()]
    model.load_state_dict({**{name: torch.tensor(0) for name in counts}, **tensors})  # counts of batches
    return model.eval(), description


def prepare(inputs: Any, description: Mapping[str, Any], folder: str | Path | None = None) -> Tensor:
    """Return inputs in the form that the model takes, float32 [n, ...].

    Args:
        inputs: What ``description["input"]["kind"]`` says. ``pixels``: images in the size of the model,
            uint8 [n, channels, height, width]. ``grey``: brightness in [0, 1], float [n, 1, height, width].
            ``log_mel``: sound at the model's sample rate, in [-1, 1], float [n, samples]. ``tokens``: a list
            of texts; a tokenizer's file needs the library tokenizers.
        description: The content of ``model.json``.
        folder: The folder of the model; by default that of this file.

    Raises:
        ValueError: The inputs have another shape or dtype, or only code of the data set can prepare them.
    """
    form = description["input"]
    match form["kind"]:
        case "pixels":
            _check(inputs, inputs.dtype == torch.uint8, description["shape"], "uint8")
            mean, std = (torch.tensor(form[name]).view(-1, 1, 1) for name in ("mean", "std"))
            normalised: Tensor = (inputs.float() / 255 - mean) / std
            return normalised
        case "grey":
            _check(inputs, inputs.is_floating_point(), description["shape"], "float")
            brightness: Tensor = inputs.float()
            return brightness
        case "log_mel":
            _check(inputs, inputs.is_floating_point() and inputs.ndim == 2, inputs.shape[1:], "float")
            return torch.stack([_log_mel(clip.double(), form) for clip in inputs])
        case "tokens":
            return torch.stack([_tokens(text, form, folder) for text in inputs])
    raise ValueError(f"the code of the data set {form['data']} prepares its inputs; this loader has none")


def _check(inputs: Tensor, fits: bool, shape: Sequence[int], dtype: str) -> None:
    if not fits or list(inputs.shape[1:]) != list(shape):
        size = ", ".join(map(str, ("n", *shape)))
        raise ValueError(
            f"the model takes {dtype} [{size}], not {inputs.dtype} {list(inputs.shape)}; convert the inputs"
        )


def _architecture(folder: Path) -> ModuleType:
    """Import the package in a folder, under a name that no other folder has."""
    name = f"architecture_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _log_mel(clip: Tensor, form: Mapping[str, Any]) -> Tensor:
    """Return the standardised log-mel spectrogram of a clip, [time, mels]; constant sound is all zeros."""
    rate, window, hop, mels = (form[name] for name in ("rate", "window", "hop", "mels"))
    samples = round(form["seconds"] * rate)
    if len(clip) < window or not clip.isfinite().all():
        raise ValueError(f"a clip needs {window} samples at least, all of them finite")
    padded = torch.zeros(samples, dtype=torch.float64)
    padded[: len(clip)] = clip[:samples]
    hann = torch.hann_window(window, dtype=torch.float64)
    spectrum = torch.stft(padded, window, hop, window=hann, pad_mode="reflect", return_complex=True)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, 1 + window // 2, dtype=torch.float64)[:, None]
    widths = edges.diff()
    rising, falling = (frequencies - edges[:-2]) / widths[:-1], (edges[2:] - frequencies) / widths[1:]
    bands = torch.minimum(rising, falling).clamp(min=0)
    decibels = 10 * (spectrum.abs().square().T @ bands).clamp(min=form["floor"]).log10()
    limited = decibels.clamp(min=decibels.max() - form["range"])
    deviation = limited.std(correction=0).clamp(min=1e-6)
    return ((limited - limited.mean()) / deviation).half().float()  # half, as in training


def _tokens(text: str, form: Mapping[str, Any], folder: str | Path | None) -> Tensor:
    """Return the tokens of a text from 1, as floats [length]; 0 is padding."""
    if form["tokenizer"] == "hashed":
        words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFC", text).lower())
        hashes = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
        ids = [int.from_bytes(value, "big") % form["buckets"] for value in hashes]
    else:
        from tokenizers import Tokenizer

        path = Path(__file__).parent if folder is None else Path(folder)
        tokenizer = Tokenizer.from_file(str(path / form["tokenizer"]))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = ids[: form["length"]]
    return torch.tensor([*(1.0 + number for number in ids), *[0.0] * (form["length"] - len(ids))])
