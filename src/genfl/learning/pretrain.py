"""Server-side training on synthetic data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.learning.augment import Augment
from genfl.learning.evaluate import evaluate
from genfl.learning.task import CPU, Task, Weights
from genfl.rng import Key
from genfl.storage import load_checkpoint, save_tensors
from genfl.threads import one_thread
from genfl.trees import Tree

LrSchedule = Literal["constant", "cosine", "exponential"]
PretrainOptimizer = Literal["adamw", "sgd"]


class Recipe(NamedTuple):
    """The settings of training on synthetic data. Weight decay and early stopping limit overfitting.

    Attributes:
        epochs: The largest number of passes over the data.
        batch_size: Samples in a step.
        lr: The learning rate at the start.
        schedule: ``cosine`` lowers the learning rate to zero over all epochs; ``constant`` keeps it;
            ``exponential`` multiplies it by `lr_decay` after every epoch.
        weight_decay: AdamW's decoupled weight decay, or SGD's, which is added to the gradient.
        holdout: Share of the synthetic data held back to decide when to stop, in (0, 1).
        patience: Training stops after this many epochs without a better held-back loss.
        augment: Random changes of the inputs.
        optimizer: ``adamw`` or ``sgd``.
        momentum: Momentum of SGD, in [0, 1).
        lr_decay: The factor of the schedule ``exponential``, in (0, 1].
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: LrSchedule
    weight_decay: float
    holdout: float
    patience: int
    augment: Augment
    optimizer: PretrainOptimizer = "adamw"
    momentum: float = 0.0
    lr_decay: float = 1.0


def recipe_problem(
    optimizer: PretrainOptimizer, momentum: float, schedule: LrSchedule, lr_decay: float
) -> str | None:
    """Return which settings of a `Recipe` do not fit together: field and fix. None if all do."""
    if momentum and optimizer != "sgd":
        return f"momentum: {momentum:g}, but {optimizer} has none; set optimizer to sgd, or leave it out"
    if lr_decay != 1 and schedule != "exponential":
        return f"lr_decay: {lr_decay:g} has no effect on schedule {schedule}; set schedule to exponential"
    if lr_decay == 1 and schedule == "exponential":
        return "lr_decay: required with schedule exponential; set a factor below 1, as in 0.95"
    return None


class Pretrained(NamedTuple):
    """The best model by held-back loss, its epoch, and each epoch's figures.

    Attributes:
        weights: The weights.
        epoch: The epoch after which they were best, from 1.
        history: One dict an epoch.
        label_names: The names of the classes in order, if known.
    """

    weights: Weights
    epoch: int
    history: list[dict[str, Any]]
    label_names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        if not self.history:
            return "Pretrained(no epoch)"
        loss = self.history[self.epoch - 1]["held_back_loss"]
        return f"Pretrained(epoch {self.epoch} of {len(self.history)}, held-back loss {loss:.4g})"


@one_thread()
def train_with_holdout(
    task: Task,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    key: Key,
    *,
    checkpoint: Path | None = None,
    checkpoint_digest: str = "",
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    device: torch.device = CPU,
    on_epoch: Callable[[int], None] = lambda epochs: None,
    on_history: Callable[[list[dict[str, Any]]], None] = lambda history: None,
) -> Pretrained:
    """Train a model with AdamW or SGD, and return the one with the smallest loss on held-back synthetic data.

    No private data is used. It computes on one thread, because the number of threads changes the last bits.

    Source: GPT-FL (arXiv 2306.02210): small learning rate, large weight decay.

    Args:
        task: The learning task.
        weights: The weights to start from.
        x: Synthetic inputs, [n, ...].
        y: Their class indices, [n].
        recipe: The settings of the training.
        key: The random stream.
        checkpoint: The file to resume from. It is rewritten after each epoch.
        checkpoint_digest: A digest of everything that the training depends on. A checkpoint with another
            digest is ignored.
        prepare: Turns rows of `x` into model inputs; see `genfl.data.sources.DataSet`.
        device: The device that computes. Arguments and results are on the CPU.
        on_epoch: Called with the number of epochs just finished.
        on_history: Called with the figures of all epochs so far: before the first epoch, and after each one.

    Raises:
        InputError: The loss became NaN or infinite.
    """
    order = torch.from_numpy(key.fold("holdout").numpy().permutation(len(x)))
    held = order[: max(1, round(recipe.holdout * len(x)))]
    train = order[len(held) :]
    if len(train) == 0:
        raise InputError("pretrain.holdout: no sample is left to train on; lower it or generate more samples")
    scored = task.of_stored(prepare)
    best, best_epoch, history = weights, 0, []
    start: Tree = {"weights": weights, "optimizer": {}}
    before = load_checkpoint(checkpoint, checkpoint_digest)
    if before:
        tree, meta = before
        start, best = tree["now"], tree["best"]
        best_epoch, history = meta["best_epoch"], meta["history"]
        on_epoch(len(history))

    params = trees.map(lambda p: p.to(device, copy=True).requires_grad_(), start["weights"]["params"])
    buffers = trees.to(start["weights"]["buffers"], device)
    optimizer = _optimizer(recipe, trees.leaves(params))
    _restore(optimizer, start["optimizer"])

    on_history(history)
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        if epoch - 1 - best_epoch >= recipe.patience:
            break
        drawn = key.fold("epoch", epoch)
        shuffled = train[torch.from_numpy(drawn.numpy().permutation(len(train)))]
        noise = drawn.fold("augment").torch()
        total = 0.0
        batches = shuffled.split(recipe.batch_size)
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = _lr(recipe, epoch - 1 + step / len(batches))
            inputs = recipe.augment(prepare(x[rows]), noise)
            batch = {"x": inputs.to(device), "y": y[rows].to(device)}
            with nullcontext() if device == CPU else device:
                loss, aux = task.loss(params, buffers, batch, drawn.fold("step", step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            buffers = trees.map(torch.detach, aux.buffers)
            total += loss.item() * len(rows)
        now: Weights = {"params": trees.map(lambda p: p.detach().clone(), params), "buffers": buffers}
        scores = evaluate(scored, now, x[held], y[held])
        if scores["loss"] is None or not math.isfinite(total):
            raise InputError(
                f"pretrain: training diverged in epoch {epoch}, with lr {recipe.lr:g}, weight_decay"
                f" {recipe.weight_decay:g} and augment.noise {recipe.augment.noise:g}; lower what is large"
            )
        if not history or scores["loss"] < history[best_epoch - 1]["held_back_loss"]:
            best, best_epoch = trees.to(now, CPU), epoch
        history.append(
            {
                "epoch": epoch,
                "loss": total / len(train),
                "held_back_loss": scores["loss"],
                "held_back_accuracy": scores["accuracy"],
            }
        )
        on_history(history)
        if checkpoint:
            tree = {"now": {"weights": now, "optimizer": _tensors(optimizer)}, "best": best}
            meta = {"digest": checkpoint_digest, "best_epoch": best_epoch, "history": history}
            save_tensors(checkpoint, tree, meta)
        on_epoch(1)
    return Pretrained(best, best_epoch, history)


def _optimizer(recipe: Recipe, params: list[Tensor]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            params, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(params, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _lr(recipe: Recipe, epochs: float) -> float:
    """Return the learning rate after `epochs`. It has no state, so a resume needs none."""
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "exponential":
        return recipe.lr * recipe.lr_decay ** int(epochs)
    return recipe.lr * (1 + math.cos(math.pi * epochs / recipe.epochs)) / 2


def _tensors(optimizer: torch.optim.Optimizer) -> Tree:
    states = optimizer.state_dict()["state"].items()
    return {  # without momentum, SGD keeps None
        str(index): {name: value for name, value in state.items() if value is not None}
        for index, state in states
    }


def _restore(optimizer: torch.optim.Optimizer, state: Tree) -> None:
    if state:
        groups = optimizer.state_dict()["param_groups"]
        state = {int(index): tensors for index, tensors in state.items()}
        optimizer.load_state_dict({"state": state, "param_groups": groups})
