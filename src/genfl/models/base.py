"""The interface of downstream models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn


class Classifier(nn.Module):
    """A classifier in two halves: ``forward(x) = head(features(x))``.

    The head is linear unless a model says otherwise. Methods that work on features (MOON, FedDecorr, FedGen)
    rely on the split.

    Attributes:
        classifier: The module of the head, in models that do not override `head`.
        prefixes: The first parts of parameters' names in files of existing models that have another name
            here, and that name.
    """

    classifier: nn.Module
    prefixes: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the head, [n, d]."""

    def head(self, z: Tensor) -> Tensor:
        """Return the logits [n, classes] of features [n, d]."""
        logits: Tensor = self.classifier(z)
        return logits

    def check(self, x: Tensor) -> None:
        """Check the model on some inputs [n, ...]. By default, nothing is checked.

        Raises:
            ValueError: ``head(features(x))`` is not the model's output.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [n, classes]."""
        return self.head(self.features(x))


class Stack(Classifier):
    """A classifier that consists of two modules, one for each half, with a projection between them or not.

    Args:
        body: Maps inputs [n, ...] to features [n, d].
        classifier: Maps features to logits [n, classes].
        projection: Maps the body's output to the features; None leaves it as it is.
    """

    def __init__(self, body: nn.Module, classifier: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.projection = projection or nn.Identity()
        self.classifier = classifier

    def features(self, x: Tensor) -> Tensor:
        """Return the output of the body and the projection, [n, d]."""
        z: Tensor = self.projection(self.body(x))
        return z
