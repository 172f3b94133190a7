"""Wrapping any classifier of PyTorch or transformers as features and a head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from genfl.models.base import Classifier


class Wrapped(Classifier):
    """A module with a linear last layer, in two halves: the body before that layer, and the layer.

    The module itself is changed: its last layer becomes ``classifier``, and the rest becomes ``body``. The
    module may return logits, or an object with ``logits`` as the models of transformers do.

    Args:
        model: Maps inputs to logits [n, classes].
        head: Dotted path of its last layer. If None, the last module with parameters, in order of definition.
        padding: The token id of padding, for text models of transformers. Inputs are then cast to integers,
            and the module also gets their ``attention_mask``.

    Raises:
        ValueError: The layer is not linear.
    """

    classifier: nn.Linear

    def __init__(self, model: nn.Module, head: str | None = None, *, padding: int | None = None) -> None:
        super().__init__()
        if isinstance(model, nn.Linear):  # it has no body to take it from
            model = nn.Sequential(model)
        path = last_layer(model) if head is None else head
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            kind = type(layer).__name__
            raise ValueError(f"the last layer, {path!r}, is a {kind}; name the linear one by its dotted path")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
        self._path = path
        self.body = model
        self.classifier = layer
        self.padding = padding

    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer, [n, d].

        Raises:
            ValueError: The layer is not the module's last layer.
        """
        z = self._run(x)
        if z.ndim != 2 or z.shape[1] != self.classifier.in_features:
            raise ValueError("the linear layer is not the last layer; name the last one by its dotted path")
        return z

    def check(self, x: Tensor) -> None:
        """Check that the module does nothing after its linear layer, such as a softmax.

        Args:
            x: Some inputs, [n, ...].

        Raises:
            ValueError: The module's output differs from that of the two halves.
        """
        path, _, name = self._path.rpartition(".")
        parent = self.body.get_submodule(path)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            setattr(parent, name, self.classifier)
            try:
                whole = self._run(x)
            finally:
                setattr(parent, name, nn.Identity())
            torch.manual_seed(0)
            try:
                same = torch.allclose(self(x), whole, rtol=1e-4, atol=1e-5, equal_nan=True)
            except RuntimeError:  # a later layer needs the output of the linear one, so shapes do not fit
                same = False
        if not same:
            raise ValueError(
                f"{self._path!r} is not the last operation of the module; let it return that layer's"
                " logits, without a softmax, or name the last layer by its dotted path"
            )

    def _run(self, x: Tensor) -> Tensor:
        """Return the module's output, [n, ...]. Without its last layer, that is the layer's input."""
        if self.padding is None:
            output = self.body(x)
        else:
            tokens = x.long()
            output = self.body(tokens, attention_mask=(tokens != self.padding).long())
        whole: Tensor = getattr(output, "logits", output)
        return whole


def as_classifier(model: nn.Module) -> Classifier:
    """Return a model as a `Classifier`. Of a module of PyTorch or transformers, a copy is wrapped.

    Args:
        model: A `Classifier`, or a module whose last layer is linear.

    Raises:
        ValueError: It is not a module, or its last layer is not linear.
    """
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {model!r} is not a torch.nn.Module; let the builder return one")
    return Wrapped(copy.deepcopy(model))


def last_layer(model: nn.Module) -> str:
    """Return the dotted path of the last module with its own parameters, in order of definition.

    Raises:
        ValueError: The model has no parameters.
    """
    paths: list[str] = [
        path for path, module in model.named_modules() if list(module.parameters(recurse=False))
    ]
    if not paths:
        raise ValueError("the model has no parameters")
    return paths[-1]
