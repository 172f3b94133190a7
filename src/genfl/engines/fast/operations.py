"""The PyTorch operations and internals that the fast path is built on."""

from __future__ import annotations

import importlib

import torch

OPERATIONS = (
    "_log_softmax",
    "_unsafe_view.default",
    "add.Tensor",
    "bmm",
    "clone.default",
    "convolution",
    "detach.default",
    "div.Tensor",
    "expand.default",
    "gather",
    "max_pool2d_with_indices.default",
    "max_pool2d_with_indices_backward.default",
    "mm",
    "mul.Tensor",
    "native_group_norm",
    "native_group_norm_backward",
    "ne",
    "neg",
    "ones_like.default",
    "permute.default",
    "relu.default",
    "scalar_tensor.default",
    "scatter.value",
    "squeeze",
    "sub",
    "sum",
    "t",
    "threshold_backward.default",
    "transpose",
    "unsqueeze",
    "view.default",
    "where.self",
    "zeros_like.default",
)
"""Names below ``torch.ops.aten``, with the overload where only that one is used."""

INTERNALS = (
    "torch._guards.TracingContext",
    "torch._guards.tracing",
    "torch._ops.OpOverload",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.fx.experimental.proxy_tensor.make_fx",
    "torch.native_group_norm",
    "torch.overrides.TorchFunctionMode",
)
"""Functions and classes that PyTorch may change without notice."""


def missing() -> list[str]:
    """Return the operations and internals that this version of PyTorch lacks; none where all is well."""
    absent = []
    for name in OPERATIONS:
        packet, _, overload = name.partition(".")
        if not _has(torch.ops.aten, packet, overload):
            absent.append(f"aten.{name}")
    for path in INTERNALS:
        module, _, name = path.rpartition(".")
        try:
            imported = importlib.import_module(module)
        except ImportError:
            absent.append(path)
        else:
            if not _has(imported, name):
                absent.append(path)
    return absent


def _has(owner: object, *path: str) -> bool:
    for name in filter(None, path):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True
