"""A trained model as a module that reads files: the code that reads them is that of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from genfl.data.media import Clip
from genfl.data.sources import DATASETS
from genfl.deployment.description import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    ModelDescription,
    OwnInput,
    input_format,
)
from genfl.deployment.prediction import Prediction, predictions
from genfl.errors import InputError, cause
from genfl.models import Classifier
from genfl.options import whole_number
from genfl.storage import load_tensors, sha256

BATCH = 512
"""The number of inputs of a forward pass, as in the tests of a run."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model and its parts to evaluation mode in the block."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _to_inner(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    """Rename the entries of a state dict from a `RunModel` in another module to those of its inner model."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}inner.{name.removeprefix(prefix)}"] = state_dict.pop(name)


class InputCode(NamedTuple):
    """The two steps from content to a model's input.

    Attributes:
        encode: ``(content) -> x``: the stored form of one example.
        prepare: ``(stored [n, ...]) -> floats [n, ...]``.
    """

    encode: Callable[[Any], Tensor]
    prepare: Callable[[Tensor], Tensor]


class RunModel(Classifier):
    """A trained model of a run.

    As a module, it maps prepared inputs [n, ...] to logits [n, classes]. Its state dict is that of the inner
    model, also as a part of another module.

    Example:
        >>> import genfl
        >>> model = genfl.load_run("runs/demo").model("gptfl")  # doctest: +SKIP
        >>> model.predict(["seven.png"])[0].label  # doctest: +SKIP
        'seven'

    Args:
        inner: The module of the architecture, with its weights.
        description: What the model was trained on, and how.
        folder: The folder of the model's files.
    """

    def __init__(self, inner: Classifier, description: ModelDescription, folder: Path) -> None:
        super().__init__()
        self.inner = inner.eval()
        self.description = description
        self.folder = folder
        self.training = False
        self.register_load_state_dict_pre_hook(_to_inner)  # type: ignore[no-untyped-call]

    @classmethod
    def load(cls, folder: str | Path) -> RunModel:
        """Return the model in a folder with ``model.safetensors`` and ``model.json``.

        Args:
            folder: The folder, such as ``RUN/federate/METHOD/seed-0``.

        Raises:
            InputError: There is no model, its files do not fit each other, or its code is not registered.
            GenflError: The weights are damaged.
        """
        folder = Path(folder)
        description = ModelDescription.read(folder / DESCRIPTION_FILE)
        file = folder / WEIGHTS_FILE
        if not file.is_file() or sha256(file) != description.weights_sha256:
            raise InputError(f"model: {file} is not the file that {DESCRIPTION_FILE} describes; restore it")
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
            model = description.build()
        tensors, _ = load_tensors(file)
        counts = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
        try:
            absent = model.load_state_dict(tensors, strict=False)
            wrong = [*({*absent.missing_keys} - counts), *absent.unexpected_keys]
            if wrong:
                raise KeyError(wrong[0])
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"method: {file} does not fit the model {description.model.name} ({cause(error)}); register"
                " the model that the run trained"
            ) from error
        return cls(model, description, folder)

    @property
    def label_names(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return list(self.description.label_names)

    @cached_property
    def inputs(self) -> InputCode:
        """The code that turns content into inputs, as in training.

        Raises:
            InputError: It belongs to a data set of the user's own that is not registered.
        """
        described = self.description.input
        if isinstance(described, OwnInput):
            if described.data not in DATASETS:
                raise InputError(
                    f"data: {described.data} is a data set of your own, whose code is not at hand; import the"
                    " module that registers it"
                )
            data = DATASETS[described.data].load()
            return InputCode(data.encode, data.prepare)
        encoding = input_format(described, self.folder)
        assert encoding is not None, "only data of the user's own has none"
        return InputCode(
            lambda content: torch.from_numpy(np.array(encoding.encode(content))), encoding.prepare
        )

    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the head, [n, d]."""
        return self.inner.features(x)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits [n, classes] of features [n, d]."""
        return self.inner.head(z)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [n, classes] of prepared inputs [n, ...], in the precision of training."""
        if self.description.precision == "fp32":
            return super().forward(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = super().forward(x)
        return logits.float()

    def logits(self, stored: Tensor) -> Tensor:
        """Return the logits [n, classes] of encoded inputs [n, ...] on the CPU.

        They have no gradients, and are those of evaluation mode, whatever the mode of the module.
        """
        device = next(self.parameters()).device
        with torch.no_grad(), _evaluating(self):
            parts = [self(self.inputs.prepare(part.to(device))).cpu() for part in stored.split(BATCH)]
        return torch.cat(parts)

    def predict(self, files: Any, top: int = 3) -> list[Prediction]:
        """Return the likeliest classes of each file or content, in order.

        Args:
            files: Paths of files, or contents: PIL images, `genfl.data.media.Clip` of sounds, texts. For a
                model of texts, a str is a text and a `Path` is a file. For other models, both are files. A
                single path or content stands for a list of it.
            top: The number of classes of each prediction, at most, from 1.

        Raises:
            InputError: A file or content cannot be read; the message names it. Or `top` is no such number.
        """
        top = whole_number("top", top)
        if isinstance(files, str | Path | bytes | Clip | Mapping) or not isinstance(files, Iterable):
            files = [files]
        by_path = self.description.modality != "text"
        contents = [Path(item) if by_path and isinstance(item, str) else item for item in files]
        items = [
            (str(item) if isinstance(item, Path) else f"item {number}", item)
            for number, item in enumerate(contents)
        ]
        predicted = []
        for prediction in predictions(self, items, top):
            if not isinstance(prediction, Prediction):
                raise InputError(
                    f"files: {prediction.input} cannot be read ({prediction.reason}); leave it out"
                )
            predicted.append(prediction)
        return predicted

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of the inner model."""
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of the inner model."""
        return self.inner.load_state_dict(state_dict, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without `inputs`, whose functions cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "inputs"}
