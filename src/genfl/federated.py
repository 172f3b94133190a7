"""Federated data sets made of arrays: labelled examples, split over clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genfl.data.budget import ORDERS, Budget, deal
from genfl.data.clients import GENERATED, PRIVATE, ClientData
from genfl.data.partition import Partitioner
from genfl.errors import InputError
from genfl.options import whole_number

Array = Tensor | np.ndarray | Sequence[Any]
"""A torch tensor, a numpy array, or nested lists."""

Order = Literal["mixed", "p2g", "g2p"]
"""How private and generated samples take turns in a client's round."""


class FederatedDataset:
    """The labelled examples of all clients, and optionally a test set.

    `from_arrays` makes one. ``len(data)`` is the number of clients.

    Attributes:
        clients: The examples by client, as `genfl.simulation.federate` takes them.
        label_names: The names of the classes, in order.
        test: Test inputs [m, ...] and their class indices [m]; None without a test set.
        order: How private and generated samples take turns in a client's round: ``mixed``, ``p2g`` (private
            ones first) or ``g2p``.
    """

    def __init__(
        self,
        clients: ClientData,
        label_names: Sequence[str],
        test: tuple[Tensor, Tensor] | None = None,
        order: Order = "mixed",
    ) -> None:
        self._numbered = False  # whether its labels were numbers, so that those of a test set may be
        self.clients = clients
        self.label_names = list(label_names)
        self.test = test
        self.order: Order = order

    @classmethod
    def from_arrays(
        cls,
        x: Array,
        y: Array,
        partition: Partitioner,
        test: tuple[Array, Array] | None = None,
        labels: Sequence[str] | None = None,
        *,
        seed: int = 0,
    ) -> FederatedDataset:
        """Split labelled examples over clients.

        Example:
            >>> import torch, genfl
            >>> x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
            >>> genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(clients=4))
            FederatedDataset(4 clients, 60 samples of 3 classes, 15 to 15 a client, inputs (1, 8, 8))

        Args:
            x: Inputs, [n, ...]. Floats become torch's default dtype. Integers are stored as they are, and
                given to models as floats, unscaled.
            y: Class indices [n] from 0, or label names [n].
            partition: The split, such as ``genfl.partition.dirichlet(clients=20, alpha=0.1)``.
            test: Inputs and labels of a test set, in the same form.
            labels: The names of the classes, in order. Without it, classes are numbered as in `y`, or in
                alphabetical order of the names in `y`.
            seed: Decides the split, as in a config.

        Raises:
            InputError: Shapes, lengths or values are wrong, or there is no such split.
        """
        inputs = check_inputs("x", x)
        names = _label_names(y, labels)
        targets = check_labels("y", y, names, len(inputs), names)
        if not isinstance(partition, Partitioner):
            raise InputError(
                f"partition: {partition!r} is no split; give one, as in"
                " genfl.partition.dirichlet(clients=20, alpha=0.1)"
            )
        rows = partition.split([names[number] for number in targets.tolist()], whole_number("seed", seed, 0))
        clients = ClientData(inputs, targets, rows, len(names), as_floats)
        data = cls(clients, names)
        data._numbered = _flat("y", y).dtype.kind == "i"
        data.test = None if test is None else data.check_test(test)
        return data

    def __len__(self) -> int:
        return len(self.clients)

    def __repr__(self) -> str:
        sizes = self.sizes
        generated = self.clients.count(GENERATED)
        held = f"{int(sizes.sum())} samples of {len(self.label_names)} classes"
        more = f" ({generated} generated, {self.order})" if generated else ""
        tested = f", {len(self.test[1])} test samples" if self.test else ""
        return (
            f"FederatedDataset({len(self)} clients, {held}{more}, {sizes.min()} to {sizes.max()} a client,"
            f" inputs {self.shape}{tested})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.client(0)[0].shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    @property
    def sizes(self) -> np.ndarray:
        """The number of samples of each client, [clients] int64, generated ones included."""
        return np.asarray(self.label_counts.sum(1))

    @property
    def label_counts(self) -> np.ndarray:
        """The number of samples of each client and class, [clients, classes] int64."""
        counts = self.clients.client_info_table["label_counts"]
        table: np.ndarray = counts.numpy().astype(np.int64)
        return table

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the inputs [n, ...] and class indices [n] of one client.

        Args:
            number: The client, from 0.

        Raises:
            IndexError: There is no such client.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"client {number} of {len(self)}")
        batch = self.clients.batch(number, torch.arange(self.clients.samples(number)))
        return batch["x"], batch["y"]

    def with_generated(
        self,
        x: Array,
        y: Array,
        budget: Budget,
        *,
        order: Order = "mixed",
        weight: Literal["merged", "private"] = "merged",
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> FederatedDataset:
        """Return the clients with generated samples added (FedGC).

        Source: Ye et al., "Federated Learning with Generative Content" (arXiv 2312.05807).

        Example:
            >>> import torch, genfl
            >>> x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
            >>> data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(clients=4))
            >>> data.with_generated(x, y, genfl.budget.equal(24)).sizes.tolist()
            [21, 21, 21, 21]

        Args:
            x: Generated inputs, [m, ...], of the shape and scale of the private ones.
            y: Their label names, [m], or numbers from 0; see `labels`.
            budget: How many samples all clients get together, and how they share them, such as
                ``genfl.budget.equal(1440)``.
            order: How private and generated samples take turns in a client's round.
            weight: The samples that count when models are averaged: all of them, or private ones alone.
            labels: The names that numbers in `y` count, in order. Needed where classes have names, as a
                generator may number them in another order. ``labels=data.label_names`` is the data's own.
            seed: Decides which samples go to which client, as in a config.

        Raises:
            InputError: Shapes, lengths or values are wrong, or a class has too few samples for the budget.
        """
        if len(self.clients.parts) > 1:
            raise InputError("with_generated: the clients hold generated samples already; add all at once")
        inputs = check_inputs("x", x, self.shape)
        if inputs.dtype != _dtype(self):
            raise InputError(
                f"x: its type is {inputs.dtype}, and the private inputs' {_dtype(self)}; convert one of them"
            )
        targets = check_labels("y", y, self.label_names, len(inputs), labels)
        if not isinstance(budget, Budget):
            raise InputError(f"budget: {budget!r} is none; give one, as in genfl.budget.equal(1440)")
        if order not in ORDERS:
            raise InputError(f"order: there is no {order!r}; known: {', '.join(ORDERS)}")
        if weight not in ("merged", PRIVATE):
            raise InputError(f"weight: there is no {weight!r}; known: merged, private")
        counts = budget.allocate(self.label_counts)
        available = targets.bincount(minlength=self.classes).numpy()
        short = int(np.argmax(counts.sum(0) - available))
        if counts.sum(0)[short] > available[short]:
            raise InputError(
                f"budget: clients get {counts.sum(0)[short]} generated samples of"
                f" {self.label_names[short]!r}, and there are {available[short]}; lower the budget, or"
                " generate more"
            )
        rows = deal(targets, counts, whole_number("seed", seed, 0))
        clients = self.clients.with_part(GENERATED, inputs, targets, rows, weighs=weight == "merged")
        mixed = FederatedDataset(clients, self.label_names, self.test, order)
        mixed._numbered = self._numbered
        return mixed

    def check_test(self, test: tuple[Array, Array]) -> tuple[Tensor, Tensor]:
        """Return test inputs, as models are given them, and class indices.

        Args:
            test: Inputs and labels.

        Raises:
            InputError: They do not fit the data.
        """
        if not isinstance(test, tuple | list) or len(test) != 2:
            raise InputError("test: give inputs and labels, as in test=(x, y)")
        inputs = as_floats(check_inputs("test[0]", test[0], self.shape))
        numbered = self.label_names if self._numbered else None
        return inputs, check_labels("test[1]", test[1], self.label_names, len(inputs), numbered)


def _dtype(data: FederatedDataset) -> torch.dtype:
    """Return the type in which a data set's inputs are stored."""
    x = data.clients.x
    assert isinstance(x, Tensor)
    return x.dtype


def as_floats(x: Tensor) -> Tensor:
    """Return inputs as models are given them: in torch's default dtype."""
    return x.to(torch.get_default_dtype())


def check_inputs(field: str, x: Array, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a copy of inputs as a tensor [n, ...].

    Args:
        field: Their name in messages.
        x: The inputs.
        shape: The shape that each must have, if known.

    Raises:
        InputError: There are none, they are of another shape, or they are not finite numbers.
    """
    try:
        # The caller's array is copied, as it may change later, or run backwards.
        inputs = x.detach().cpu().clone() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    except (TypeError, ValueError) as error:
        raise InputError(f"{field}: it is no array of numbers ({error}); give a tensor or array") from error
    if inputs.ndim < 2 or len(inputs) == 0:
        raise InputError(
            f"{field}: its shape is {tuple(inputs.shape)}; give examples in the first dimension, as in"
            " [n, channels, height, width] or [n, features]"
        )
    if shape is not None and tuple(inputs.shape[1:]) != shape:
        raise InputError(
            f"{field}: inputs have the shape {tuple(inputs.shape[1:])}, and the data's {shape}; reshape them"
        )
    if inputs.is_complex():
        raise InputError(f"{field}: its numbers are complex; give real ones")
    if not inputs.is_floating_point():
        return inputs
    bad = (~inputs.isfinite()).flatten(1).any(1).nonzero()[:, 0]
    if len(bad):
        raise InputError(
            f"{field}: {len(bad)} examples hold NaN or infinite values, the first in row {int(bad[0])};"
            " remove or replace them"
        )
    return as_floats(inputs)


def check_labels(
    field: str, y: Array, names: Sequence[str], length: int, numbered: Sequence[str] | None = None
) -> Tensor:
    """Return labels as class indices, int64 [n].

    Args:
        field: Their name in messages.
        y: Label names, or numbers from 0.
        names: The names of the classes, in order.
        length: How many there must be.
        numbered: The names that numbers count, in order. If None, numbers are accepted only where they are
            the names of the classes: another order would exchange classes without a word.

    Raises:
        InputError: There are more or fewer, one of them is no class, or numbers have no known names.
    """
    values = _flat(field, y)
    if len(values) != length:
        raise InputError(f"{field}: there are {len(values)} labels for {length} inputs; give one for each")
    if values.dtype.kind == "i":
        if numbered is None and list(names) != [str(number) for number in range(len(names))]:
            raise InputError(
                f"{field}: its labels are numbers, and the classes have names ({_some(names)}); give names,"
                " or say which names the numbers count, as in labels=data.label_names"
            )
        counted = list(names if numbered is None else numbered)
        if strange := sorted(set(counted) - set(names)):
            raise InputError(f"labels: {strange[0]!r} is no class; known: {_some(names)}")
        outside = np.flatnonzero((values < 0) | (values >= len(counted)))
        if len(outside):
            raise InputError(
                f"{field}: row {outside[0]} is of class {values[outside[0]]}, and classes are 0 to"
                f" {len(counted) - 1}; number them so"
            )
        return torch.tensor([list(names).index(name) for name in counted])[torch.from_numpy(values)]
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted({str(value) for value in values} - numbers.keys())
    if unknown:
        raise InputError(f"{field}: {unknown[0]!r} is no class; known: {_some(names)}")
    return torch.tensor([numbers[str(value)] for value in values])


def _some(names: Sequence[str]) -> str:
    """Return the first of some names."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _flat(field: str, y: Array) -> np.ndarray:
    """Return labels as int64 or text, [n]."""
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.ndim != 1:
        raise InputError(
            f"{field}: its shape is {values.shape}; give one class index or name for each example, [n]"
        )
    if values.dtype.kind in "US":
        return values.astype(str)
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        return values.astype(str)
    if values.dtype.kind in "iu":
        return values.astype(np.int64)  # a copy
    raise InputError(f"{field}: labels are of type {values.dtype}; give whole numbers or names")


def _label_names(y: Array, labels: Sequence[str] | None) -> list[str]:
    """Return the names of the classes, in order."""
    values = _flat("y", y)
    if labels is not None:
        names = [str(name) for name in labels]
        if len(set(names)) < len(names) or len(names) < 2:
            raise InputError(f"labels: {names}; give two different names at least")
        return names
    present = np.unique(values)
    if values.dtype.kind != "i":
        names = [str(name) for name in present]
    else:
        missing = np.setdiff1d(np.arange(max(0, int(present[-1])) + 1), present) if len(present) else present
        if len(missing):
            raise InputError(
                f"y: class {missing[0]} has no example; number classes from 0 without gaps, or name all of"
                " them in labels"
            )
        names = [str(number) for number in range(int(present[-1]) + 1)] if len(present) else []
    if len(names) < 2:
        raise InputError(f"y: there are {len(names)} classes; give two at least, or name them in labels")
    return names
