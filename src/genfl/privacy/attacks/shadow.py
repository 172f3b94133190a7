"""Shadow models: models like the attacked one, each trained on a known half of the examples.

The examples are those whose membership is asked for: members, which the attacked model was trained on, and
non-members. Each one belongs to a client. So every client has half of its examples in each shadow model, and
labels are as uneven as in the attacked federation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genfl import progress
from genfl.errors import InputError
from genfl.privacy.attacks.scores import FloatArray, Membership
from genfl.rng import Key
from genfl.storage import digest as digest_of
from genfl.storage import load_checkpoint, remove, save_tensors


class TrainShadow(Protocol):
    """Trains one shadow model by the recipe of the attacked model."""

    def __call__(
        self,
        number: int,
        member: NDArray[np.bool_],
        checkpoint: Path,
        digest: str,
        advance: progress.Advance,
    ) -> FloatArray:
        """Train a shadow model, or resume it, and return its confidences, [k, n]: k for each example.

        Args:
            number: The number of the model.
            member: Whether it is trained on each example, bool [n].
            checkpoint: The file to resume from.
            digest: The digest of all that the model depends on.
            advance: Called with the number of rounds just finished.
        """
        ...


def deal_to_clients(owners: NDArray[np.int64], y: NDArray[np.int64], key: Key) -> NDArray[np.int64]:
    """Return the client of every example: members have one, and non-members are dealt out at random.

    A non-member goes to the client of a random member of its class. So a client gets as large a share of the
    non-members of a class as it has of the members. If a class has no members, any member decides.

    Args:
        owners: The clients of the members, which come first, [m].
        y: The classes of all examples, [n].
        key: The random stream.
    """
    rng, members = key.numpy(), y[: len(owners)]
    dealt = rng.choice(owners, len(y))
    dealt[: len(owners)] = owners
    for label in np.unique(members):
        chosen = np.flatnonzero(y[len(owners) :] == label) + len(owners)
        dealt[chosen] = rng.choice(owners[members == label], len(chosen))
    return dealt


def shadow_members(clients: NDArray[np.int64], models: int, key: Key) -> Membership:
    """Draw the examples that each shadow model is trained on: a random half of each client's.

    Models come in pairs. The second one is trained on what the first one is not. So every example is in half
    of an even number of models (Carlini et al., arXiv 2112.03570). More models do not change the first ones.

    Args:
        clients: The client of every example, [n].
        models: The number of shadow models, 2 at least.
        key: The random stream.

    Returns:
        Bool [models, n].

    Raises:
        InputError: A client has a single example, which has no halves, or there are too few models.
    """
    if models < 2:
        raise InputError(f"shadows: {models}, but two are needed, with and without an example; raise it")
    sizes = np.bincount(clients)
    if (sizes < 2).any():
        raise InputError(
            f"attacks: client {int(np.argmin(sizes))} has fewer than two examples, and shadow models train on"
            " halves of each client's; use loss"
        )
    rows = [np.flatnonzero(clients == client) for client in range(len(sizes))]
    member = np.zeros((models, len(clients)), dtype=bool)
    for first in range(0, models, 2):
        rng = key.fold("pair", first // 2).numpy()
        for own in rows:
            half = len(own) // 2 + int(len(own) % 2 and rng.integers(2))
            member[first, rng.permutation(own)[:half]] = True
        if first + 1 < models:
            member[first + 1] = ~member[first]
    return member


def train_shadows(
    member: Membership, train: TrainShadow, folder: Path, digest: str, rounds: int
) -> FloatArray:
    """Return the confidences of shadow models, [models, k, n]. Those in the folder are not trained again.

    Args:
        member: Whether each model is trained on each example, [models, n].
        train: Trains a model.
        folder: The folder of the models' confidences, and of the checkpoint of the model in training.
        digest: The digest of all that the models depend on, besides their examples.
        rounds: The number of rounds of a model, for the progress bar.
    """
    results = []
    with progress.bar("shadow models", len(member) * rounds, "rounds") as advance:
        for number, row in enumerate(member):
            own = digest_of([digest, number, hashlib.sha256(np.packbits(row).tobytes()).hexdigest()])
            file, work = folder / f"shadow-{number}.safetensors", folder / f"shadow-{number}"
            kept = load_checkpoint(file, own)
            if kept is None:
                phi = train(number, row, work / "checkpoint.safetensors", own, advance)
                save_tensors(file, {"confidence": torch.from_numpy(phi)}, {"digest": own})
            else:
                phi = kept[0]["confidence"].numpy()
                advance(rounds)
            remove(work, folder)
            results.append(phi)
    return np.stack(results)
