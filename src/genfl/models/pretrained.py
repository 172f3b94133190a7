"""Weights trained elsewhere."""

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
}
"""The names of torchvision's files of weights trained on ImageNet, the newest first, by model."""


def locate(init: str, model: str) -> Path:
    """Return the file of an existing model. Nothing is downloaded.

    Args:
        init: A path; or ``imagenet``, torchvision's file in the folder where `torch.hub` keeps it.
        model: The model that is to be initialised, by its name in `MODELS`.

    Raises:
        ValueError: There is none; it says which file to put where.
    """
    if init != "imagenet":
        path = Path(init).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path
    if model not in IMAGENET:
        known = " and ".join(IMAGENET)
        raise ValueError(f"imagenet is there for {known}, not for {model}; give a file of weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in IMAGENET[model]:
        if (folder / name).is_file():
            return folder / name
    name = IMAGENET[model][0]
    raise ValueError(f"imagenet needs https://download.pytorch.org/models/{name} in the folder {folder}")


def load_pretrained(model: Classifier, path: Path) -> list[str]:
    """Copy a state dict into a model, but for a head of other classes.

    Everything must fit, except that the last layer keeps its initial weights where the file has none for it
    or the number of classes differs. Integers (batch norm's count of batches) are ignored. The model stays as
    it was if this raises.

    Args:
        model: A model, on any device; its dtypes are kept.
        path: A ``.safetensors`` file, or a state dict that ``torch.save`` wrote, such as torchvision's
            ``.pth``, as it is or in a checkpoint that calls it ``state_dict``, from a model in
            `torch.nn.DataParallel` or not. No code in it is run.

    Returns:
        The names that were skipped, all of the last layer.

    Raises:
        ValueError: The file is no state dict, or not one of this model; it names what does not fit.
    """
    given = {name: value for name, value in _read(path).items() if value.is_floating_point()}
    own = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    head = last_layer(model)
    weight = f"{head}.weight"
    skip = weight not in given or _other_classes(own[weight], given[weight])
    skipped = [name for name in own if skip and name.startswith(f"{head}.")]
    wanted = {name: value for name, value in own.items() if name not in skipped}
    problems = [f"{name}: not in the file" for name in wanted if name not in given]
    problems += [f"{name}: not in the model" for name in given if name not in own]
    problems += [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    problems += [f"{name}: not finite" for name, value in given.items() if not value.isfinite().all()]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])
    return skipped


def _other_classes(own: Tensor, given: Tensor) -> bool:
    return own.shape[:1] != given.shape[:1] and own.shape[1:] == given.shape[1:]


def _read(path: Path) -> dict[str, Tensor]:
    content: Any
    path.open("rb").close()  # a file that is missing, or may not be read, says so itself
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading garbage as a pickle raises anything
        raise ValueError(f"{path} is damaged, or holds more than tensors") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is not a state dict: it does not map names to tensors")
    parallel = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if parallel else name: value for name, value in content.items()}
