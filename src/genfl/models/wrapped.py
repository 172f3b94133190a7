"""Any classifier of PyTorch or transformers, as features and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genfl.models.base import Classifier


class Wrapped(Classifier):
    """A module whose last layer is linear, in two halves: what reaches that layer, and the layer.

    The module is taken over: its last layer moves out of it, under the name ``classifier``, and the rest is
    ``body``. A module that returns an object with ``logits``, as those of transformers do, works as one that
    returns the logits.

    Args:
        model: Maps inputs to logits [n, classes].
        head: Dotted path of its last layer; if None, the last one with parameters of its own that the module
            defines.
        padding: For text models of transformers, the token id of padding: inputs are cast to integers, and
            the module also gets their ``attention_mask``.

    Raises:
        ValueError: The layer is not linear.
    """

    classifier: nn.Linear

    def __init__(self, model: nn.Module, head: str | None = None, *, padding: int | None = None) -> None:
        super().__init__()
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
        """Return what reaches the last layer, [n, d].

        Raises:
            ValueError: It is not the module's last layer.
        """
        z = self._run(x)
        if z.ndim != 2 or z.shape[1] != self.classifier.in_features:
            raise ValueError("the linear layer is not the last; name that by its dotted path")
        return z

    def check(self, x: Tensor) -> None:
        """Refuse a module that does something with what its linear layer gives, as a softmax would.

        Args:
            x: Some inputs, [n, ...].

        Raises:
            ValueError: Its output is another than that of both halves.
        """
        parent, _, name = self._path.rpartition(".")
        place = self.body.get_submodule(parent)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            setattr(place, name, self.classifier)
            try:
                whole = self._run(x)
            finally:
                setattr(place, name, nn.Identity())
            torch.manual_seed(0)
            try:
                same = torch.allclose(self(x), whole, rtol=1e-4, atol=1e-5, equal_nan=True)
            except RuntimeError:  # of a layer after it that cannot take what it would have changed
                same = False
        if not same:
            raise ValueError(
                f"{self._path!r} is not the last thing that the module does; let it return that layer's"
                " logits, without a softmax, or name the last layer by its dotted path"
            )

    def _run(self, x: Tensor) -> Tensor:
        """Return the module's output, [n, ...]; where its last layer is taken out, what reaches that."""
        if self.padding is None:
            output = self.body(x)
        else:
            tokens = x.long()
            output = self.body(tokens, attention_mask=(tokens != self.padding).long())
        whole: Tensor = getattr(output, "logits", output)
        return whole


def as_classifier(model: nn.Module) -> Classifier:
    """Return a model as a classifier; a module of PyTorch or transformers is wrapped.

    Args:
        model: A `Classifier`, or a module whose last layer is linear.

    Raises:
        ValueError: It is no module, or its last layer is not linear.
    """
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {model!r} is no torch.nn.Module; let the builder return one")
    return Wrapped(model)


def last_layer(model: nn.Module) -> str:
    """Return the dotted path of the last module that has parameters of its own, in order of definition."""
    paths: list[str] = [
        path for path, module in model.named_modules() if list(module.parameters(recurse=False))
    ]
    if not paths:
        raise ValueError("the model has no parameters")
    return paths[-1]
