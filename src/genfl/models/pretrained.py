"""Loading weights of existing models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genfl.models.base import Classifier
from genfl.models.wrapped import last_layer

IMAGENET = {
    "resnet18": ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"),
    "resnet50": ("resnet50-11ad3fa6.pth", "resnet50-0676ba61.pth", "resnet50-19c8e357.pth"),
    "vgg19_imagenet": ("vgg19-dcbb9e9d.pth",),
}
"""The file names of torchvision's ImageNet weights by model, newest first."""


def locate(init: str, model: str) -> Path:
    """Return the file with the weights of an existing model. Nothing is downloaded.

    Args:
        init: A path, or ``imagenet`` for torchvision's file in the folder of `torch.hub`.
        model: The model to initialise, by its name in `MODELS`.

    Raises:
        ValueError: There is no such file. The message says which file to put where.
    """
    if init != "imagenet":
        path = Path(init).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path
    if model not in IMAGENET:
        known = ", ".join(IMAGENET)
        raise ValueError(f"imagenet is available for {known}, not for {model}; give a file of weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in IMAGENET[model]:
        if (folder / name).is_file():
            return folder / name
    name = IMAGENET[model][0]
    raise ValueError(
        f"the weights of imagenet are missing; put https://download.pytorch.org/models/{name} in the folder"
        f" {folder}"
    )


def load_pretrained(model: Classifier, path: Path) -> list[str]:
    """Copy a state dict into a model. A head for another number of classes is skipped.

    Everything else must fit. The last layer keeps its initial weights if the file has none for it, or if the
    number of classes differs. A projection head that the file does not have keeps its initial weights, and so
    does the last layer behind it. Integers, such as batch norm's count of batches, are ignored. If this
    raises, the model is unchanged.

    Args:
        model: A model, on any device. Its dtypes are kept.
        path: A ``.safetensors`` file, or a state dict that ``torch.save`` wrote, such as torchvision's
            ``.pth``. It may be inside a checkpoint under ``state_dict``, and it may come from
            `torch.nn.DataParallel`. No code in the file is run.

    Returns:
        The names that were skipped. All of them belong to the last layer, or to a projection head.

    Raises:
        ValueError: The file is not a state dict of this model. The message names what does not fit.
    """
    stored = {
        _renamed(name, model): value for name, value in _read(path).items() if value.is_floating_point()
    }
    current = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    head = last_layer(model)
    weight = f"{head}.weight"
    projection = {name for name in current if name.startswith("projection.")}
    without = bool(projection) and projection.isdisjoint(stored)
    skip = without or weight not in stored or _other_classes(current[weight], stored[weight])
    skipped = [
        name for name in current if (skip and name.startswith(f"{head}.")) or (without and name in projection)
    ]
    wanted = {name: value for name, value in current.items() if name not in skipped}
    problems = [f"{name}: not in the file" for name in wanted if name not in stored]
    problems += [f"{name}: not in the model" for name in stored if name not in current]
    problems += [
        f"{name}: {tuple(stored[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in stored and stored[name].shape != value.shape
    ]
    problems += [f"{name}: not finite" for name, value in stored.items() if not value.isfinite().all()]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(stored[name])
    return skipped


def _renamed(name: str, model: Classifier) -> str:
    """Return the name that a model has for a parameter of a file."""
    for theirs, ours in model.prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _other_classes(current: Tensor, stored: Tensor) -> bool:
    return current.shape[:1] != stored.shape[:1] and current.shape[1:] == stored.shape[1:]


def _read(path: Path) -> dict[str, Tensor]:
    content: Any
    path.open("rb").close()  # a missing or unreadable file raises its own OSError
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file can raise any exception
        raise ValueError(f"{path} is damaged, or holds more than tensors") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is not a state dict: it does not map names to tensors")
    parallel = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if parallel else name: value for name, value in content.items()}
