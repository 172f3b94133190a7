"""Learning tasks: an objective over a tree of weights, independent of algorithms and engines."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from genfl import trees
from genfl.learning.inspect import InputRange, TaskShapes, draws_globally, inspect_classifier
from genfl.learning.inspect import MissingPart as MissingPart
from genfl.models.base import Classifier
from genfl.models.layers import accept_single_values
from genfl.models.wrapped import as_classifier
from genfl.rng import Key, Stream
from genfl.trees import Tree

Weights = dict[str, dict[str, Tensor]]
"""A model's state: ``{"params": trained by gradients, "buffers": running statistics}``."""

Batch = dict[str, Tensor]
"""The examples of one step: inputs ``x`` [n, ...], and ``y``, indices [n] or probabilities [n, classes]."""


class Aux(NamedTuple):
    """The results of a forward pass besides its loss.

    Attributes:
        buffers: The running statistics after the pass.
        features: The inputs of the model's head, [n, d]; None for tasks without a model.
        logits: The head's output, [n, classes]; None for tasks without a model.
        noise: Sums that tell how much of a gradient its noise leaves, [3]; None without such noise. See
            `genfl.privacy.dp.sample.ClippedGradient`.
    """

    buffers: Tree
    features: Tensor | None = None
    logits: Tensor | None = None
    noise: Tensor | None = None

    def feature_matrix(self) -> Tensor:
        """Return the features.

        Raises:
            MissingPart: The task has no features.
        """
        if self.features is None:
            raise MissingPart("features")
        return self.features


def _missing(part: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise MissingPart(part)

    return refuse


class Task(NamedTuple):
    """A learning problem as pure functions, all of them differentiable.

    Attributes:
        init: ``(key) -> weights``.
        loss: ``(params, buffers, batch, key) -> (loss, aux)``: the mean loss over the batch, a scalar, in
            training mode. Batch norm uses the batch, and dropout draws from the key.
        forward: ``(weights, x) -> (features [n, d], logits [n, classes])``, in evaluation mode.
        head: ``(params, z) -> logits`` [n, classes] of features z [n, d]. Only for models with a linear head.
        form: The shapes of inputs, features and classes.
        build: Returns a new model of the task as a module; None for tasks without one.
        label_names: The names of the classes in order, if known.
        frozen: The parameters that never change (``requires_grad=False``), by name. They are no part of the
            weights: clients have them as they have the model's code, and nobody sends them.
    """

    init: Callable[[Key], Weights]
    loss: Callable[[Tree, Tree, Batch, Stream], tuple[Tensor, Aux]]
    forward: Callable[[Weights, Tensor], tuple[Tensor, Tensor]] = _missing("features")
    head: Callable[[Tree, Tensor], Tensor] = _missing("linear head")
    form: TaskShapes | None = None
    build: Callable[[], Classifier] | None = None
    label_names: tuple[str, ...] | None = None
    frozen: dict[str, Tensor] = {}  # noqa: RUF012 (the default of a named tuple, never changed)

    def __repr__(self) -> str:
        if self.form is None:
            return "Task()"
        form, frozen = self.form, f", {len(self.frozen)} frozen parameters" if self.frozen else ""
        return f"Task(inputs {form.input}, {form.classes} classes, {form.features} features{frozen})"

    def predict(self, weights: Weights, x: Tensor, batch_size: int = 512) -> Tensor:
        """Return the logits of all inputs, [n, classes], without gradients, on the weights' device."""
        device = next(iter(trees.leaves(weights)), x).device
        with torch.no_grad():
            return torch.cat([self.forward(weights, part.to(device))[1] for part in x.split(batch_size)])

    def of_stored(self, prepare: Callable[[Tensor], Tensor]) -> Task:
        """Return the task that evaluates stored inputs. `prepare` turns them into floats."""
        return self._replace(forward=lambda weights, x: self.forward(weights, prepare(x)))

    def shapes(self) -> TaskShapes:
        """Return the shapes of inputs, features and classes.

        Raises:
            MissingPart: The task has no shapes.
        """
        if self.form is None:
            raise MissingPart("input and class shapes")
        return self.form

    def module(self, weights: Weights) -> Classifier:
        """Return a PyTorch module with these weights, in evaluation mode.

        Args:
            weights: Weights of this task. They are copied.

        Raises:
            MissingPart: The task has no model.
        """
        if self.build is None:
            raise MissingPart("a model")
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            model = self.build()
        model.load_state_dict(self.state_dict(weights), strict=False)
        return model.eval()

    def state_dict(self, weights: Weights) -> dict[str, Tensor]:
        """Return weights in the form of PyTorch's ``load_state_dict``, frozen parameters included."""
        return state_dict(weights) | self.frozen


class _Forward(nn.Module):
    """A model that returns features and logits of one forward pass."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.features(x)
        return features, self.model.head(features)


class _Head(nn.Module):
    """The head alone, with the parameter names of the whole model."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.head(z)


Precision = Literal["fp32", "bf16"]

CPU = torch.device("cpu")
"""The device of all tensors unless they are moved."""


def classification(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    precision: Precision = "fp32",
    input_range: InputRange | None = None,
) -> Task:
    """Return the task of classifying with cross-entropy.

    Integer buffers, such as batch norm's count of batches, are not part of the weights. They cannot be
    averaged, and no supported layer reads them. Parameters with ``requires_grad=False`` are not part of the
    weights either. They keep the values of the first model that is built here, for every seed and client.

    Args:
        build: Returns a freshly initialised model. It may draw from torch's global generator. A model that is
            not a `Classifier` is wrapped; its last layer must then be linear.
        shape: The shape of one input.
        precision: With ``bf16``, the operations that `torch.autocast` selects are computed in bfloat16.
            Weights, losses and the model's outputs stay fp32.
        input_range: The smallest and the largest value of inputs, for each channel, if known.

    Raises:
        ValueError: The model is not a classifier with a linear last layer, all its parameters are frozen, or
            its batch norm counts batches.
    """

    def new_model() -> Classifier:
        return as_classifier(build())

    with _global_generator(Key(0)):  # only shapes matter here; the caller's generator must not change
        model = copy.deepcopy(new_model())  # a builder may return one module again and again
        scales = torch.linspace(0, 2, 5).view(
            -1, *(1 for _ in shape)
        )  # 0, 0.5, ..., 2: valid token ids as well
        model.eval().check(scales * torch.ones(shape))
        frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
        if len(frozen) == len(list(model.parameters())):
            raise ValueError("no parameter of the model can be trained; set requires_grad of some to True")
        training = _Forward(model).train().requires_grad_(False)
    accept_single_values(training)
    evaluation = copy.deepcopy(training).eval()
    noise = _Noise()
    _replace_dropout(training, noise)
    for module in (*training.modules(), *evaluation.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.momentum is None:
                raise ValueError("batch norm with momentum=None counts its batches; give it a momentum")
            module.num_batches_tracked = None  # not part of the weights, and vmap may not write to it
    head_of = _Head(evaluation.model)

    @functools.cache
    def constants(device: torch.device) -> dict[str, Tensor]:
        """Return what is no part of the weights, on another device than the modules here."""
        buffers = {n: b for n, b in evaluation.model.named_buffers() if not b.is_floating_point()}
        return {} if device == CPU else trees.to(frozen | buffers, device)

    def init(key: Key) -> Weights:
        with _global_generator(key):
            return weights_of(new_model())

    def forward(module: nn.Module, params: Tree, buffers: Tree, x: Tensor) -> Any:
        values = constants(x.device) | params | buffers
        tree = {f"model.{name}": value for name, value in values.items()}
        if precision == "fp32":
            return functional_call(module, tree, (x,))
        with torch.autocast(x.device.type, torch.bfloat16):
            outputs = functional_call(module, tree, (x,))
        return tuple(output.float() for output in outputs)

    def loss(params: Tree, buffers: Tree, batch: Batch, key: Stream) -> tuple[Tensor, Aux]:
        buffers = trees.map(torch.clone, buffers)  # batch norm changes its buffers in place
        with noise.of(key), _global_generator(key) if draws else nullcontext():
            features, logits = forward(training, params, buffers, batch["x"])
        return F.cross_entropy(logits, batch["y"]), Aux(buffers, features, logits)

    def evaluated(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = forward(evaluation, weights["params"], weights["buffers"], x)
        return features, logits

    def head(params: Tree, z: Tensor) -> Tensor:
        values = constants(z.device) | params
        logits: Tensor = functional_call(head_of, {f"model.{n}": p for n, p in values.items()}, (z,))
        return logits

    with _global_generator(Key(0)):
        with noise.of(Key(0)):
            draws = draws_globally(copy.deepcopy(training), shape)
        form, linear = inspect_classifier(evaluation, head_of, shape)
    form = form._replace(input_range=input_range)
    head_or_none = head if linear else _missing("linear head")
    return Task(init, loss, evaluated, head_or_none, form, new_model, frozen=frozen)


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of a model's trainable parameters and floating-point buffers, by state-dict names."""
    return {
        "params": {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad},
        "buffers": {n: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()},
    }


def state_dict(weights: Weights) -> dict[str, Tensor]:
    """Return weights in the form of PyTorch's ``load_state_dict`` (with ``strict=False`` for batch norm)."""
    return weights["params"] | weights["buffers"]


def from_state_dict(tensors: dict[str, Tensor], like: Weights) -> Weights:
    """Return the weights of a state dict, with the structure of `like`. Inverts `state_dict`."""
    return {part: {name: tensors[name] for name in names} for part, names in like.items()}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy weights into a model that the same builder returned."""
    model.load_state_dict(state_dict(weights), strict=False)


class _Noise:
    """The random stream of the current step, for a model's dropout layers."""

    def __init__(self) -> None:
        self.stream: Stream = Key(0)
        self.drawn = 0

    @contextlib.contextmanager
    def of(self, stream: Stream) -> Iterator[None]:
        """Make the layers draw from a stream. Each call draws from its own address."""
        before = self.stream, self.drawn
        self.stream, self.drawn = stream, 0
        try:
            yield
        finally:
            self.stream, self.drawn = before

    def __deepcopy__(self, memo: Any) -> _Noise:
        return self  # a copy of the model shares the current step's stream


class _Dropout(nn.Module):
    """Dropout that draws from a step's stream. Batched clients draw separately."""

    def __init__(self, p: float, noise: _Noise) -> None:
        super().__init__()
        self.p = p
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        kept, shape = 1 - self.p, x.shape
        stream = self.noise.stream.fold("dropout", self.noise.drawn)
        self.noise.drawn += 1
        mask = stream.draw(lambda rng: torch.empty(shape).bernoulli_(kept, generator=rng))
        scaled: Tensor = x * (mask / kept if kept else mask).to(x)
        return scaled


def _replace_dropout(module: nn.Module, noise: _Noise) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, _Dropout(child.p, noise) if child.p else nn.Identity())
        else:
            _replace_dropout(child, noise)


class _global_generator:
    """Seed torch's global CPU generator from a key inside a block, then restore its state.

    Module initialisation, and the dropout inside recurrent layers, use only that generator.
    """

    def __init__(self, key: Stream) -> None:
        if not isinstance(key, Key):
            raise ValueError(
                "the model draws from torch's global generator, which batched clients cannot share"
            )
        self.key = key

    def __enter__(self) -> None:
        self.before = torch.get_rng_state()
        torch.manual_seed(self.key.integer())

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.before)
