"""MOON: a contrastive loss pulls a client's features to the global model's, away from its last model's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.algorithms.base import NonNegative, Positive
from genfl.learning.local import Context, LocalHook, Memory
from genfl.learning.task import Aux, Batch, Weights
from genfl.options import range_checked
from genfl.trees import Tree


@range_checked
def moon(*, mu: NonNegative = 1.0, temperature: Positive = 0.5) -> LocalHook:
    """Return the hook that adds the model-contrastive loss of the features z of the trained model.

    The loss is the mean over the batch of
    ``μ · −log( exp(cos(z, z_glob)/τ) / (exp(cos(z, z_glob)/τ) + exp(cos(z, z_prev)/τ)) )``.

    z_glob are the features of the global model. z_prev are those of the client's model after its last counted
    round. Both models are in evaluation mode. For a client that never took part, z_prev is from the initial
    model.

    Source: Li et al., CVPR 2021 (arXiv 2103.16257), Equation 3.

    The features are the inputs of the model's linear head. With a model that has a projection head, such as
    ``model: {name: resnet50, stem: cifar, projection: 256}``, they are its output. This is the paper's loss.

    Deviation: without a projection head, the features are the encoder's. Models have none by default.

    Args:
        mu: Weight μ of the contrastive loss, non-negative. The paper tunes it over 0.1, 1, 5, 10.
        temperature: The temperature τ, positive.
    """

    def contrast(params: Tree, aux: Aux, batch: Batch, context: Context) -> Tensor:
        z = aux.feature_matrix()
        with torch.no_grad():
            z_glob, _ = context.task.forward(context.message["weights"], batch["x"])
            z_prev, _ = context.task.forward(context.memory, batch["x"])
        near = F.cosine_similarity(z, z_glob) / temperature
        far = F.cosine_similarity(z, z_prev) / temperature
        return mu * F.softplus(far - near).mean()  # −log(e^a / (e^a + e^b)) = log(1 + e^(b − a))

    def last(state: Tree) -> Weights:
        return {name: state[name] for name in ("params", "buffers")}

    return LocalHook(contrast, memory=Memory(lambda weights: weights, last), name="moon")
