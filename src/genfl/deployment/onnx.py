"""Models as ONNX files, each checked against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from genfl.deployment.description import ModelDescription
from genfl.errors import GenflError, InputError, cause

ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
"""The libraries of the extra ``export``."""

MOST_DIFFERENCE = 1e-5
"""The largest difference between the logits of PyTorch and onnxruntime that passes the check."""

CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes of the check."""


def require_onnx() -> None:
    """Check that the libraries of the extra ``export`` are installed, without importing them.

    Raises:
        InputError: One of them is missing.
    """
    for library in ONNX_LIBRARIES:
        if find_spec(library) is None:
            raise InputError(
                f"--onnx: it needs {library}, which is not installed; run pip install 'genfl[export]'"
            )


def write_onnx(model: nn.Module, description: ModelDescription, path: Path) -> float:
    """Write a model as an ONNX file with an input ``x`` [batch, ...] and an output ``logits``, and check it.

    Args:
        model: The model, in evaluation mode.
        description: Its description.
        path: The file. If the check fails, it is not complete.

    Returns:
        The measured difference; see `logits_difference`.

    Raises:
        InputError: A library is missing, or the model cannot be traced.
        GenflError: The logits of onnxruntime differ from those of PyTorch by more than `MOST_DIFFERENCE`.
    """
    require_onnx()
    batch = torch.export.Dim("batch")
    example = random_inputs(description, 2)
    try:
        with _quiet():
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                external_data=False,
                verbose=False,
            )
        difference = logits_difference(model, description, path)
    except Exception as error:  # the exporter and the runtime raise many types
        raise InputError(
            f"--onnx: {description.model.name} cannot be written as ONNX ({cause(error)}); leave it out"
        ) from error
    if not difference <= MOST_DIFFERENCE:
        raise GenflError(
            f"--onnx: the logits of onnxruntime differ from those of PyTorch by {difference:.2g}, more than"
            f" {MOST_DIFFERENCE:g}; leave it out"
        )
    return difference


def logits_difference(model: nn.Module, description: ModelDescription, path: Path) -> float:
    """Return how much the logits of onnxruntime differ from those of PyTorch, on random inputs.

    Args:
        model: The model, in evaluation mode.
        description: Its description.
        path: Its ONNX file.

    Returns:
        The largest absolute difference over all `CHECKED_BATCHES`. Where logits are larger than 1, it is
        divided by the largest. It is NaN if a logit is not finite.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for size in CHECKED_BATCHES:
        x = random_inputs(description, size)
        with torch.no_grad():
            expected = model(x)
        (logits,) = session.run(["logits"], {"x": x.numpy()})
        gap = (torch.from_numpy(logits) - expected).abs().max()
        differences.append(gap / expected.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


def random_inputs(description: ModelDescription, size: int) -> Tensor:
    """Return random prepared inputs, float32 [size, ...], the same in every call."""
    generator = torch.Generator().manual_seed(size)
    shape = (size, *description.shape)
    if description.modality != "text":
        return torch.randn(shape, generator=generator)
    tokens = description.model.options.get("vocabulary") or 2
    return torch.randint(tokens, shape, generator=generator).float()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the notes of the exporter, which are about its own code."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
