"""Public data: examples that lie outside the clients, read in the format of the private data."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfl.data.folders import first_few
from genfl.data.overlap import near_pairs
from genfl.data.partition import subset
from genfl.data.sources import DataSet, LabelledExamples
from genfl.errors import InputError
from genfl.storage import digest

log = logging.getLogger(__name__)

MOST_PREPARED = 4096
"""The largest number of inputs that are turned into floats at a time."""


class PublicData(NamedTuple):
    """Public examples.

    Attributes:
        x: Inputs as the private data stores them, [n, ...].
        labels: The label name of each example in NFC, [n]; None if methods may not read labels.
        digest: A digest of the inputs and the labels.
        notes: What a user should know of the reading.
    """

    x: Tensor
    labels: Sequence[str] | None
    digest: str
    notes: tuple[str, ...]

    def unlabelled(self, private: DataSet) -> Tensor:
        """Return the inputs of all examples, prepared for models, [n, ...].

        Args:
            private: The private data, whose format the inputs have.
        """
        return torch.cat([private.prepare(part) for part in self.x.split(MOST_PREPARED)])

    def matched(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the examples whose labels clients have: inputs [m, ...] and class indices [m].

        Args:
            names: The label names of the clients in NFC, in the order of the classes.

        Raises:
            InputError: The clients have none of the labels, or the data is not labelled.
        """
        if self.labels is None:
            raise InputError("public.labelled: false, but a method needs labels; set it to true")
        number = {name: index for index, name in enumerate(names)}
        rows = [row for row, label in enumerate(self.labels) if label in number]
        if not rows:
            raise InputError(
                f"public.label: no client has any of its {len(set(self.labels))} labels"
                f" ({first_few(sorted(set(self.labels)))}); the clients have {first_few(list(names))}; rename"
                " them, or use other public data"
            )
        y = torch.tensor([number[self.labels[row]] for row in rows])
        return self.x[torch.tensor(rows)], y

    def unmatched(self, names: Sequence[str]) -> str | None:
        """Return a sentence on the examples whose labels no client has; None if there are none."""
        others = [label for label in self.labels or () if label not in names]
        if not others:
            return None
        return (
            f"{len(others)} of {len(self.x)} public samples have labels that no client has"
            f" ({first_few(sorted(set(others)))}): methods that need labels leave them out"
        )


def public_data(
    private: DataSet,
    public: DataSet | None,
    *,
    held: int | None,
    samples: int | None,
    labelled: bool,
    tested: bool = False,
    distinct: bool = False,
) -> PublicData:
    """Return the public examples that are used.

    These are all examples of a data set, from its training and its test set. No test example is trained on:
    an example whose input is equal to that of a private test example is left out. If the clients test on a
    part of the private training set, so are those whose input is equal to one of the clients' examples.
    Which of these are tests depends on the seed, and the public data does not. With `distinct`, even
    near-duplicates of private test examples are left out.

    Args:
        private: The private data.
        public: The public data, read in the private data's format; None for the rows of the private training
            set that no client gets.
        held: The number of rows of the private training set that clients hold; None for all.
        samples: The number of examples to draw; None for all.
        labelled: Whether methods may read the labels.
        tested: Whether clients hold back some of their examples, and test on them.
        distinct: Whether near-duplicates of private test examples are left out; see
            `genfl.data.overlap.near_pairs`.

    Raises:
        InputError: The inputs do not have the private data's format, or there are fewer examples than asked.
    """
    of_clients = subset(private.train.labels, held)
    if public is None:
        rows = np.setdiff1d(np.arange(len(private.train.labels)), of_clients)
        x, names = _rows(private.train, rows)
    else:
        x, names = _all_examples(private, public)
    contents = [_digest_of(row) for row in x]
    tests = _digests(private.test.x)
    kept = np.array([row for row, content in enumerate(contents) if content not in tests], dtype=np.int64)
    notes = []
    if len(kept) < len(x):
        notes.append(
            f"{len(x) - len(kept)} of {len(x)} public samples are also private test samples and are left out"
        )
    if public is not None or tested:
        trained = {_digest_of(private.train.x[row]) for row in of_clients.tolist()}
        shared = np.array([contents[row] in trained for row in kept], dtype=bool)
        left_out = "; they are left out, because clients test on some (data.partition.test)" if tested else ""
        if shared.any():
            notes.append(
                f"{shared.sum()} of {len(kept)} public samples are also private training samples of clients"
                f"{left_out}"
            )
        if tested:
            kept = kept[~shared]
    if distinct and len(kept):
        near = np.unique(near_pairs(x[torch.from_numpy(kept)], private.test.x, private.modality).rows[:, 0])
        if len(near):
            notes.append(
                f"{len(near)} of {len(kept)} public samples are near-duplicates of private test samples and"
                " are left out (audit.overlap)"
            )
        kept = np.delete(kept, near)
        if not len(kept):
            raise InputError(
                "audit.overlap: drop, but all public samples are near-duplicates of private test samples; use"
                " other public data, or use warn"
            )
    kept = _drawn(kept, [names[row] for row in kept] if labelled else None, samples)
    for note in notes:
        log.warning("public: %s", note)
    x = x[torch.from_numpy(kept)]
    labels = [unicodedata.normalize("NFC", names[row]) for row in kept] if labelled else None
    content = hashlib.sha256(x.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    return PublicData(x, labels, digest([content, str(x.dtype), list(x.shape), labels]), tuple(notes))


def _all_examples(private: DataSet, public: DataSet) -> tuple[Tensor, Sequence[str]]:
    x = public.train.x
    if x.shape[1:] != private.train.x.shape[1:] or x.dtype != private.train.x.dtype:
        raise InputError(
            f"public.name: its inputs are {x.dtype} of shape {tuple(x.shape[1:])}, but those of the private"
            f" data are {private.train.x.dtype} of shape {private.shape}; use data of one format"
        )
    return torch.cat([x, public.test.x]), [*public.train.labels, *public.test.labels]


def _rows(examples: LabelledExamples, rows: np.ndarray) -> tuple[Tensor, Sequence[str]]:
    return examples.x[torch.from_numpy(rows)], [examples.labels[row] for row in rows]


def _digest_of(x: Tensor) -> bytes:
    return hashlib.sha256(x.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def _digests(x: Tensor) -> set[bytes]:
    return {_digest_of(row) for row in x}


def _drawn(rows: np.ndarray, labels: Sequence[str] | None, samples: int | None) -> np.ndarray:
    """Return the rows that are drawn, ascending: with classes as frequent as in all, if labels are given."""
    if samples is None:
        return rows
    if samples > len(rows):
        raise InputError(f"public.samples: {samples}, but there are {len(rows)} public samples; lower it")
    if labels is None or samples < len(set(labels)):
        chosen = np.random.default_rng(0).choice(len(rows), samples, replace=False)
        rows = rows[np.sort(chosen)]
        return rows
    try:
        chosen = subset(labels, samples)
    except InputError as error:
        raise InputError(str(error).replace("data.partition.samples", "public.samples")) from error
    drawn: np.ndarray = rows[chosen]
    return drawn
