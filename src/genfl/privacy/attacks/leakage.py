"""Gradient leakage: reconstruct a client's examples from what the client sends.

An attack looks for examples whose simulated upload resembles the observed one. The attacker knows the model,
its weights before the upload, and how the client trains. `batch_gradient` and `local_update` simulate a
client. `dlg`, `idlg` and `invert_gradients` search. `genfl.privacy.attacks.resemblance` says how good a
reconstruction is.

Example:
    >>> from torch import nn
    >>> from genfl.learning.task import classification
    >>> layers = [nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)]
    >>> task = classification(lambda: nn.Sequential(nn.Flatten(), *layers), (1, 2, 2))
    >>> client = batch_gradient(task, task.init(Key(0)))
    >>> secret = torch.tensor([[[[0.9, 0.1], [0.2, 0.7]]]])
    >>> stolen = idlg(task, client, client(secret, torch.tensor([2])), Key(1))
    >>> int(stolen.y), torch.allclose(stolen.x, secret, atol=0.01)
    (2, True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.learning.local import Context, LocalSGD, batched
from genfl.learning.task import Task, Weights
from genfl.options import Count, NonNegative, Positive, range_checked
from genfl.rng import Key
from genfl.trees import Tree

Respond = Callable[[Tensor, Tensor], Tree]
"""``(x, y) -> tree like the weights' params``: what a client with these examples sends, differentiable.

The inputs x are [n, ...]. The labels y are indices [n] or probabilities [n, classes].
"""

_UNKNOWN = Key(0)  # an attacker does not know the random stream of the client


class Reconstruction(NamedTuple):
    """The result of an attack.

    Attributes:
        x: The reconstructed inputs, [n, ...].
        y: Their labels: indices [n], or the probabilities [n, classes] that `dlg` optimises.
        loss: The attack's objective at the end. The attacker knows it, and chooses between restarts by it.
    """

    x: Tensor
    y: Tensor
    loss: float


def batch_gradient(task: Task, weights: Weights, key: Key = _UNKNOWN) -> Respond:
    """Return the client that sends the gradient of the mean loss of one batch.

    Args:
        task: What is learned.
        weights: Where the client differentiates.
        key: The random stream of the forward pass. It matters for models with dropout only.
    """

    def respond(x: Tensor, y: Tensor) -> Tree:
        context = Context(task, {"weights": weights}, {}, {}, key)
        with batched():  # differentiates by torch.func, so that the result can be differentiated again
            gradient, _ = LocalSGD(lr=1.0).gradient(
                weights["params"], weights["buffers"], {"x": x, "y": y}, context
            )
        return gradient

    return respond


def local_update(
    task: Task, local: LocalSGD, weights: Weights, batches: Sequence[Tensor], key: Key = _UNKNOWN
) -> Respond:
    """Return the client that trains locally, and sends ``w_before − w_after``.

    The sign is that of a gradient: one step of plain SGD sends the learning rate times the gradient. Negate
    an upload that is ``w_after − w_before``.

    Source: Geiping et al., NeurIPS 2020 (arXiv 2003.14053), the attack on federated averaging.

    Args:
        task: What is learned.
        local: The client's local training, with its hooks. Its memory is that of a client's first round.
        weights: The global weights that the client starts from.
        batches: The rows of each step, of n examples: tensors of indices.
        key: The random stream of local training. It matters for models with dropout, and hooks that draw.
    """
    memory = local.memory.initial(weights)

    def respond(x: Tensor, y: Tensor) -> Tree:
        state = local.start(weights)
        with batched():
            for step, rows in enumerate(batches):
                context = Context(task, {"weights": weights}, memory, {}, key.fold(step))
                state = local.step(state, {"x": x[rows], "y": y[rows]}, context)
        return trees.sub(weights["params"], state["params"])

    return respond


@range_checked
def dlg(
    task: Task,
    respond: Respond,
    observed: Tree,
    key: Key,
    *,
    examples: Count = 1,
    steps: Count = 300,
    restarts: Count = 1,
) -> Reconstruction:
    """Reconstruct inputs and labels together by L-BFGS on the squared distance of gradients.

    Source: Zhu et al., NeurIPS 2019 (arXiv 1906.08935), Algorithm 1. Inputs and labels start at N(0, 1);
    labels are the softmax of free variables. Deviations: L-BFGS searches along a line (strong Wolfe
    conditions) where the paper takes steps of 1, which often diverge; and the attack may restart. The model
    must be twice differentiable, as in the paper. The search fails on ReLU networks.

    Args:
        task: What the model classifies.
        respond: Simulates the client.
        observed: What the client sent.
        key: The random stream of the starts.
        examples: How many examples the client used.
        steps: Iterations of L-BFGS.
        restarts: How many starts are tried. The one with the least loss is returned.

    Raises:
        InputError: The upload is not finite, or an option is out of its range.
    """
    shape, classes = task.shapes().learnable_input(), task.shapes().classes

    def search(start: Key) -> Reconstruction:
        x = _normal(start.fold("x"), (examples, *shape), observed)
        y = _normal(start.fold("y"), (examples, classes), observed)
        loss = _match(lambda: respond(x, y.softmax(1)), observed, [x, y], steps)
        return Reconstruction(x.detach(), y.detach().softmax(1), loss)

    return _best(search, observed, key, restarts)


@range_checked
def idlg(
    task: Task, respond: Respond, observed: Tree, key: Key, *, steps: Count = 300, restarts: Count = 1
) -> Reconstruction:
    """Reconstruct one example: its label from the sign of the last layer's gradient, its input as `dlg` does.

    Source: Zhao et al. 2020 (arXiv 2001.02610), Algorithm 1. Deviations: those of `dlg`.

    Args:
        task: What the model classifies. Its head must be linear.
        respond: Simulates the client.
        observed: What a client with one example sent.
        key: The random stream of the starts.
        steps: Iterations of L-BFGS.
        restarts: How many starts are tried. The one with the least loss is returned.

    Raises:
        InputError: The upload is not finite, or an option is out of its range.
    """
    shape = task.shapes().learnable_input()
    y = label_of_gradient(task, observed).reshape(1)

    def search(start: Key) -> Reconstruction:
        x = _normal(start.fold("x"), (1, *shape), observed)
        return Reconstruction(x.detach(), y, _match(lambda: respond(x, y), observed, [x], steps))

    return _best(search, observed, key, restarts)


def label_of_gradient(task: Task, gradient: Tree) -> Tensor:
    """Return the class index of the one example behind a gradient, a scalar.

    The derivative of the cross-entropy by the logits is ``p − onehot(y)``, negative for the label alone. The
    gradient of the head's bias is this vector. Without a bias, the rows of the weight's gradient are
    multiples of one vector by it, so the row of the label has a negative product with every other row.

    Source: Zhao et al. 2020 (arXiv 2001.02610), Section 3.1. With two classes and no bias, the sign of the
    features decides, which is assumed to be positive (after ReLU or a sigmoid).

    Args:
        task: What the model classifies. Its head must be linear.
        gradient: The gradient of the parameters, or a positive multiple of it.
    """
    z = trees.leaves(gradient)[0].new_zeros(1, task.shapes().features)
    variables = trees.map(lambda leaf: torch.ones_like(leaf, requires_grad=True), gradient)
    logits = task.head(variables, z)  # at z = 0, where the weight has a gradient of zeros, but has one
    used = torch.autograd.grad(logits.sum(), trees.leaves(variables), allow_unused=True)
    parts = [part for part, use in zip(trees.leaves(gradient), used, strict=True) if use is not None]
    bias = [part for part in parts if part.dim() == 1]
    if bias:
        return sum(bias[1:], bias[0]).argmin()
    rows = torch.cat([part.flatten(1) for part in parts], 1)
    if len(rows) == 2:
        return rows.sum(1).argmin()
    products = rows @ rows.T
    return products.fill_diagonal_(-torch.inf).amax(1).argmin()


@range_checked
def invert_gradients(
    task: Task,
    respond: Respond,
    observed: Tree,
    y: Tensor,
    key: Key,
    *,
    total_variation: NonNegative = 1e-4,
    lr: Positive = 0.1,
    steps: Count = 4800,
    restarts: Count = 1,
) -> Reconstruction:
    """Reconstruct inputs by the cosine distance of uploads plus total variation, with signed Adam.

    Source: Geiping et al., NeurIPS 2020 (arXiv 2003.14053), Equation 4. Adam gets the sign of the gradient.
    Its learning rate falls to a tenth after 3/8, 5/8 and 7/8 of the steps. After each step, inputs are
    clipped to the range that the task's inputs have. The defaults are those of the authors' program.

    Args:
        task: What the model classifies.
        respond: Simulates the client.
        observed: What the client sent. Its length does not matter.
        y: The labels, which this attacker knows: indices, [n].
        key: The random stream of the starts, N(0, 1).
        total_variation: The weight of the total variation: the mean absolute difference of neighbouring
            pixels, vertical and horizontal. It is left out for inputs that are not images.
        lr: Adam's first learning rate.
        steps: Iterations.
        restarts: How many starts are tried. The one with the least loss is returned.

    Raises:
        InputError: The upload is not finite or zero, or an option is out of its range.
    """
    shapes = task.shapes()
    shape, box = shapes.learnable_input(), shapes.input_range
    length = trees.square_norm(observed).sqrt()
    if not length:
        raise InputError("observed: the upload is zero, which has no direction; observe another one")
    bounds = [torch.tensor(end).to(length).view(-1, *[1] * (len(shape) - 1)) for end in box or ()]

    def objective(x: Tensor) -> Tensor:
        response = respond(x, y)
        product = trees.dot(response, observed)
        distance = 1 - product / (trees.square_norm(response).sqrt() * length).clamp(min=1e-30)
        return distance + total_variation * _total_variation(x) if len(shape) == 3 else distance

    def search(start: Key) -> Reconstruction:
        x = _normal(start.fold("x"), (len(y), *shape), observed)
        optimizer = torch.optim.Adam([x], lr=lr)
        milestones = [steps * part // 8 for part in (3, 5, 7)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(objective(x), x)
            x.grad = gradient.sign()
            optimizer.step()
            scheduler.step()
            if bounds:
                x.data.clamp_(*bounds)
        return Reconstruction(x.detach(), y, float(objective(x).detach()))

    return _best(search, observed, key, restarts)


def _total_variation(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, vertical plus horizontal, of images [n, c, h, w]."""
    parts = [x.diff(dim=dim).abs().mean() for dim in (-2, -1) if x.shape[dim] > 1]
    return sum(parts, x.new_zeros(()))


def _normal(key: Key, shape: tuple[int, ...], like: Tree) -> Tensor:
    """Return a start of a search: N(0, 1), in the dtype and on the device of the upload."""
    leaf = trees.leaves(like)[0]
    return torch.randn(shape, generator=key.torch(), dtype=leaf.dtype).to(leaf.device).requires_grad_()


def _match(respond: Callable[[], Tree], observed: Tree, variables: Iterable[Tensor], steps: int) -> float:
    """Minimise the squared distance of a response to the upload by L-BFGS; return it."""
    variables = list(variables)
    optimizer = torch.optim.LBFGS(
        variables,
        max_iter=steps,
        max_eval=4 * steps,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def distance() -> Tensor:
        return trees.square_norm(trees.sub(respond(), observed))

    def closure() -> Tensor:
        loss = distance()
        for variable, gradient in zip(variables, torch.autograd.grad(loss, variables), strict=True):
            variable.grad = gradient
        return loss.detach()

    optimizer.step(closure)
    return float(distance().detach())


def _best(search: Callable[[Key], Reconstruction], observed: Tree, key: Key, restarts: int) -> Reconstruction:
    """Return the best of some searches. A loss that is not a number counts as the worst."""
    if not trees.is_finite(observed):
        raise InputError("observed: the upload has values that are not finite; observe another one")
    tries = [search(key.fold("restart", number)) for number in range(restarts)]
    return min(tries, key=lambda result: (result.loss != result.loss, result.loss))
