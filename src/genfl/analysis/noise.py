"""What the noise of DP-SGD leaves of the gradients in a round."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genfl.algorithms.base import ClientInfo, ClientProgram, ReductionKind
from genfl.learning.local import NOISE_SUMS
from genfl.privacy.dp.user import NOISED_COSINE, SIGNAL_TO_NOISE
from genfl.rng import Key
from genfl.simulation import Measure
from genfl.trees import Tree


def noise_measures() -> dict[str, Measure]:
    """Return the measures of what the noise of DP-SGD leaves in a round, by name.

    They are made of the sums of clipped gradients s and their noise e, over all steps of all clients:
    ``(Σ‖s‖² / Σ‖e‖²)^½``, and the cosine ``Σ s·(s + e) / (Σ‖s‖² Σ‖s + e‖²)^½``. Only a simulation knows
    them. They need a `genfl.privacy.dp.sample.ClippedGradient` that is measured.
    """

    def wrap(client: ClientProgram) -> ClientProgram:
        def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
            carry = client.start(message, memory, client_info, key)
            if not isinstance(carry.get("local"), dict):  # a user's own algorithm may have another carry
                return carry
            return {**carry, "local": {**carry["local"], NOISE_SUMS: torch.zeros(3, dtype=torch.float64)}}

        def finish(carry: Tree) -> tuple[Tree, Tree]:
            measured = torch.zeros(3, dtype=torch.float64)
            if isinstance(carry.get("local"), dict):
                local = dict(carry["local"])
                measured = local.pop(NOISE_SUMS, measured)
                carry = {**carry, "local": local}
            upload, memory = client.finish(carry)
            return {**upload, **dict.fromkeys((SIGNAL_TO_NOISE, NOISED_COSINE), measured)}, memory

        sums: dict[str, ReductionKind] = dict.fromkeys((SIGNAL_TO_NOISE, NOISED_COSINE), "sum")
        return client._replace(start=start, finish=finish, reductions={**client.reductions, **sums})

    def ratio(aggregate: Tensor) -> float | None:
        clean, error, _ = aggregate.tolist()
        return math.sqrt(clean / error) if clean and error else None

    def cosine(aggregate: Tensor) -> float | None:
        clean, error, both = aggregate.tolist()
        noised = clean + 2 * both + error
        return (clean + both) / math.sqrt(clean * noised) if clean and noised > 0 else None

    return {
        SIGNAL_TO_NOISE: Measure(wrap, ratio),
        NOISED_COSINE: Measure(lambda client: client, cosine),
    }
