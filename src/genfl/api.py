"""The functions of ``import genfl``: tasks, simulations, pre-training, and runs of configs."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, cast

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from genfl import config as configs
from genfl import hub, trees
from genfl import progress as bars
from genfl.algorithms.base import Algorithm
from genfl.algorithms.profile import take_a_step
from genfl.config.names import OLD_ENGINES, EngineName
from genfl.config.schema import Config
from genfl.data.budget import ORDERS
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.auto import EXACT, ROUNDING, check_engine
from genfl.engines.auto import engine as open_engine
from genfl.engines.device import exact
from genfl.engines.fast import fast_status
from genfl.errors import GenflError, InputError, cause, suggest
from genfl.experiment.records import check_finished
from genfl.federated import Array, FederatedDataset, check_inputs, check_labels
from genfl.generation import Encode, GeneratedSamples
from genfl.identity import value_digest
from genfl.learning.augment import Augment
from genfl.learning.evaluate import evaluate
from genfl.learning.pretrain import (
    LrSchedule,
    Pretrained,
    PretrainOptimizer,
    Recipe,
    recipe_problem,
    train_with_holdout,
)
from genfl.learning.task import MissingPart, Precision, Task, Weights, classification, from_state_dict
from genfl.models import MODELS
from genfl.models.base import Classifier
from genfl.models.wrapped import as_classifier
from genfl.options import Decay, NonNegative, Positive, Share, check_value, whole_number
from genfl.results.comparison import Comparison
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import Summary
from genfl.rng import Key
from genfl.simulation import Trace, federate

if TYPE_CHECKING:
    import pandas

    from genfl.deployment.evaluation import Evaluation
    from genfl.deployment.export import Exported
    from genfl.deployment.trained import RunModel
    from genfl.results.advice import Advice
    from genfl.results.membership import MembershipAudit

ModelLike = str | nn.Module | Callable[..., nn.Module]
"""A model's name, a module, or a function that returns one."""

Start = Union[Weights, Mapping[str, Tensor], nn.Module, Pretrained, "Simulation"]
"""Initial weights: weights, a state dict, a module, or the result of `pretrain` or `simulate`."""


def task(
    model: ModelLike,
    data: FederatedDataset | Sequence[int],
    classes: int | None = None,
    *,
    precision: Precision = "fp32",
    **options: Any,
) -> Task:
    """Return the task of classifying with a model.

    Example:
        >>> import genfl
        >>> from torch import nn
        >>> task = genfl.task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), 10)
        >>> task.shapes().classes
        10
        >>> genfl.task("cnn", (1, 8, 8), 10, width=8).shapes().features
        64

    Args:
        model: A name of ``genfl list models``; a function ``() -> module`` or ``(shape, classes) -> module``;
            or a module, with whose weights every simulation starts. The last layer of a module must be
            linear.
        data: The data, or the shape of one input.
        classes: The number of classes; needed where `data` is a shape.
        precision: ``fp32`` or ``bf16``; see `genfl.learning.task.classification`.
        **options: Options of a named model, or keyword arguments of a function.

    Raises:
        InputError: There is no such model, or it does not fit the data.
    """
    names: tuple[str, ...] | None = None
    if isinstance(data, FederatedDataset):
        shape, classes, names = data.shape, data.classes, tuple(data.label_names)
    else:
        shape = tuple(data)
    if classes is None or classes < 2:
        raise InputError("classes: give the number of classes, 2 at least, where data is a shape")
    try:
        learned = classification(_builder(model, shape, classes, options), shape, precision)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: inputs {shape} and {classes} classes do not fit it: {error}") from error
    outputs = learned.shapes().classes
    if outputs != classes:
        raise InputError(f"model: it has {outputs} outputs for {classes} classes; give it {classes}")
    return learned._replace(label_names=names)


def _builder(
    model: ModelLike, shape: tuple[int, ...], classes: int, options: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    if isinstance(model, str):
        if model not in MODELS:
            raise InputError(f"model: there is no {model!r}; {suggest(model, list(MODELS))}")
        return partial(MODELS[model].build, shape, classes, **options)
    if isinstance(model, nn.Module):
        original = copy.deepcopy(_inner(model))
        return lambda: copy.deepcopy(original)
    if not callable(model):
        raise InputError(f"model: {model!r} is no name, module or function that returns one")
    required = [
        parameter
        for parameter in inspect.signature(model).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return partial(model, *((shape, classes) if len(required) >= 2 else ()), **options)


@dataclass(frozen=True)
class Simulation:
    """The result of `simulate`.

    Attributes:
        trace: The final weights, evaluations and rounds, as `genfl.simulation.federate` returns them.
        task: The learning task.
        label_names: The names of the classes, in order.
    """

    trace: Trace
    task: Task
    label_names: list[str]

    @property
    def weights(self) -> Weights:
        """The final global model's weights."""
        return self.trace.weights

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One dict an evaluation: ``round``, ``accuracy``, ``macro_f1``, ``loss``, ...; see `Scores`."""
        return self.trace.evaluations

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """One dict a round: ``round``, ``uplink_bytes``, ``downlink_bytes``, ``refused`` (uploads)."""
        return self.trace.rounds

    @property
    def accuracy(self) -> dict[int, float]:
        """The test accuracy, in [0, 1], after each evaluated round; empty without a test set."""
        return {row["round"]: row["accuracy"] for row in self.evaluations if "accuracy" in row}

    def model(self) -> Classifier:
        """Return the final global model as a module in evaluation mode, with its ``label_names``."""
        return _predictor(self.task, self.weights, self.label_names)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row a round, from round 0, and the columns of `rounds` and `evaluations`."""
        import pandas

        evaluated = pandas.DataFrame(self.evaluations).set_index("round")
        trained = pandas.DataFrame(self.rounds, columns=None).set_index("round") if self.rounds else None
        return evaluated if trained is None else evaluated.join(trained, how="outer")

    def __repr__(self) -> str:
        last = list(self.accuracy.values())[-1:]
        scored = f", accuracy {last[0]:.3f}" if last else ""
        return f"Simulation({len(self.rounds)} rounds{scored})"


def simulate(
    algorithm: Algorithm,
    data: FederatedDataset,
    *,
    rounds: int = 50,
    clients_per_round: int | None = None,
    batch_size: int = 32,
    test: tuple[Array, Array] | None = None,
    seed: int = 0,
    local_steps: int | None = None,
    local_epochs: int = 1,
    engine: EngineName = "auto",
    evaluate_every: int = 1,
    start: Start | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    progress: bool = False,
    device: str = "cpu",
) -> Simulation:
    """Simulate federated learning on this machine.

    The results have the same bits as those of `genfl.simulation.federate` with the same seed, whatever the
    number of processes.

    Example:
        >>> import torch, genfl
        >>> x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
        >>> data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(4), test=(x, y))
        >>> algorithm = genfl.fedavg(genfl.task("mlp", data), genfl.LocalSGD(lr=0.1))
        >>> result = genfl.simulate(algorithm, data, rounds=2, clients_per_round=2, batch_size=5)
        >>> sorted(result.accuracy)
        [0, 1, 2]

    Args:
        algorithm: The computation of clients and server, such as ``genfl.fedavg(task, ...)``.
        data: The clients' examples.
        rounds: Number of rounds.
        clients_per_round: Clients drawn for each round; all of them by default.
        batch_size: Samples in a step's batch; a client with fewer uses all it has.
        test: Test inputs and labels; by default those of `data`. Without any, nothing is evaluated.
        seed: Decides initial weights, cohorts, batches and dropout.
        local_steps: SGD steps of a client in a round; by default, epochs count.
        local_epochs: Passes over a client's data in a round.
        engine: ``auto``, ``sequential`` and ``parallel`` give the same bits; ``vectorized`` trains clients in
            batches, with the same results up to rounding.
        evaluate_every: Rounds between evaluations; round 0 and the last are always evaluated.
        start: Initial weights, a module or its state dict, or the result of `pretrain` or of another
            simulation; random by default.
        checkpoint: A file to keep the state in. An interrupted simulation resumes from it, and one of more
            `rounds` continues it. A checkpoint of another algorithm, data or setting is ignored.
        checkpoint_every: Rounds between checkpoints.
        progress: Whether to show a progress bar.
        device: Where clients compute and models are tested: cpu, cuda or cuda:1.

    Raises:
        InputError: An argument is out of range, the algorithm names no task or that of other data, or the
            checkpoint holds more rounds.
    """
    if not isinstance(algorithm, Algorithm):
        raise InputError(f"algorithm: {_type(algorithm)} is no Algorithm; give one, as in genfl.fedavg(...)")
    if not isinstance(data, FederatedDataset):
        raise InputError(f"data: {_type(data)} is no FederatedDataset; give one, as from_arrays makes it")
    learned = algorithm.task
    if learned is None:
        raise InputError("algorithm: it names no task; set one, as in algorithm._replace(task=task)")
    _check_task(learned, data)
    cohort = len(data) if clients_per_round is None else clients_per_round
    schedule = Schedule(
        whole_number("rounds", rounds),
        whole_number("clients_per_round", cohort),
        whole_number("batch_size", batch_size),
        None if local_steps is None else whole_number("local_steps", local_steps),
        whole_number("local_epochs", local_epochs),
        whole_number("evaluate_every", evaluate_every),
        whole_number("checkpoint_every", checkpoint_every),
        ORDERS[data.order],
    )
    if cohort > len(data):
        raise InputError(f"clients_per_round: {cohort}, but there are {len(data)} clients; lower it")
    if local_steps is not None and local_epochs != 1:
        raise InputError("local_steps: give steps or epochs, not both")
    seed = whole_number("seed", seed, 0)
    _try_a_step(algorithm, learned)
    name = cast(EngineName, OLD_ENGINES.get(engine, engine))
    check_engine(name)
    tested = data.test if test is None else data.check_test(test)
    place = _device(device)
    weights = _initial_weights(learned, start, data.label_names, seed)

    def score(current: Weights) -> Mapping[str, Any]:
        return evaluate(learned, trees.to(current, place), *tested) if tested else {}

    with (
        _progress(progress),
        bars.bar("simulate", rounds, "rounds") as advance,
        exact(place),
        open_engine(name, data.clients, schedule.clients_per_round, place) as opened,
    ):
        trace = federate(
            algorithm,
            weights,
            data.clients,
            opened,
            schedule,
            Key(seed).fold("federate"),
            score,
            checkpoint=Path(checkpoint) if checkpoint else None,
            checkpoint_digest=(
                _identity(algorithm, weights, data.clients, schedule, tested, name, place, seed)
                if checkpoint
                else ""
            ),
            device=place,
            on_round=advance,
        )
    return Simulation(trace, learned, data.label_names)


def _identity(
    algorithm: Algorithm,
    weights: Weights,
    clients: ClientData,
    schedule: Schedule,
    tested: tuple[Tensor, Tensor] | None,
    engine: EngineName,
    device: torch.device,
    seed: int,
) -> str:
    """Return a digest of what a simulation depends on, so that a checkpoint of another one is ignored."""
    plan = replace(schedule, rounds=1, checkpoint_every=1)  # a simulation may be extended
    # The engines that run clients one by one give the same bits, with the fast path and without it.
    bits: Any = "exact" if engine in EXACT or engine == "auto" else [engine, ROUNDING, fast_status().on]
    held = [clients.x, clients.y, clients.rows, clients.ends, clients.parts, clients.prepare]
    return value_digest(algorithm, weights, held, plan, tested, bits, device.type, seed)


def _try_a_step(algorithm: Algorithm, learned: Task) -> None:
    """Run a client for one step on zeros, so that mistakes of a user's own method show before any work.

    Raises:
        InputError: The step fails.
    """
    if learned.form is None:
        return
    try:
        take_a_step(algorithm, learned)
    except MissingPart as error:
        raise InputError(
            f"algorithm: it needs a model with {error}, but the task's has none; use another model or"
            " algorithm"
        ) from error
    except Exception as error:  # a method or model of the user's own can raise anything
        raise InputError(f"algorithm: its first step fails: {cause(error)}") from error


def _type(value: Any) -> str:
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def _check_task(learned: Task, data: FederatedDataset) -> None:
    """Check that a task is about the data.

    Raises:
        InputError: Inputs, the number of classes, or their names differ.
    """
    if learned.form is not None:
        if learned.form.classes != data.classes:
            raise InputError(
                f"algorithm: its task has {learned.form.classes} classes, and the data {data.classes}; make"
                " the task of the data, as in genfl.task(model, data)"
            )
        if tuple(learned.form.input) != data.shape:
            raise InputError(
                f"algorithm: its task has inputs of the shape {tuple(learned.form.input)}, and the data"
                f" {data.shape}; make the task of the data, as in genfl.task(model, data)"
            )
    _check_names("algorithm", learned.label_names, data.label_names)


def _check_names(field: str, names: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    """Check that classes are numbered in the same way; nothing is checked if either has no names.

    Raises:
        InputError: The names, or their order, differ.
    """
    if names is None or wanted is None or list(names) == list(wanted):
        return
    first, second = (", ".join(some[:10]) for some in (names, wanted))
    raise InputError(
        f"{field}: its classes are {first}, in this order, and the data's are {second}; give both the same"
        " names in the same order, as in FederatedDataset.from_arrays(..., labels=[...])"
    )


def _device(device: str) -> torch.device:
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", device):
        raise InputError(f"device: {device!r} is none; give cpu, cuda or cuda:1")
    hub.check_device(device, "device")
    return torch.device(device)


@contextmanager
def _progress(shown: bool) -> Iterator[None]:
    token = bars.enabled.set(shown)
    try:
        yield
    finally:
        bars.enabled.reset(token)


def _initial_weights(
    learned: Task, start: Start | None, label_names: Sequence[str] | None, seed: int
) -> Weights:
    """Return the weights that training starts from.

    Args:
        learned: The learning task.
        start: Where they come from; None draws them.
        label_names: The names of the classes, if known.
        seed: Decides random weights.

    Raises:
        InputError: They are of another model, or of other classes.
    """
    drawn = learned.init(Key(seed).fold("model"))
    if start is None:
        return drawn
    names: Sequence[str] | None = None
    if isinstance(start, Pretrained | Simulation):
        names, weights = start.label_names, start.weights
    elif isinstance(start, nn.Module):
        known = getattr(start, "label_names", None)
        names = list(known) if isinstance(known, list | tuple) else None
        model = as_classifier(_inner(start))
        named = [*model.named_parameters(), *model.named_buffers()]
        flat = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
        if flat.keys() != learned.state_dict(drawn).keys():
            raise InputError("start: its weights are of another model; give those of the task's model")
        weights = _unfrozen(learned, flat, drawn)
    elif isinstance(start, Mapping) and start.keys() == drawn.keys():
        weights = cast(Weights, start)
    elif isinstance(start, Mapping):
        absent = sorted({name for part in drawn.values() for name in part} - start.keys())
        if absent:
            raise InputError(
                f"start: it has no weights {absent[0]!r} of the task's model; give those of the same model,"
                " or the module itself"
            )
        flat = {name: value.detach().cpu() for name, value in cast(Mapping[str, Tensor], start).items()}
        weights = _unfrozen(learned, flat, drawn)
    else:
        raise InputError(f"start: {_type(start)} holds no weights; give weights, a module or a result")
    _check_names("start", names, label_names)
    for part, tensors in drawn.items():
        if tensors.keys() != weights[part].keys():
            raise InputError("start: its weights are of another model; give those of the task's model")
        for name, tensor in tensors.items():
            if tensor.shape != weights[part][name].shape:
                raise InputError(
                    f"start: {name} has the shape {tuple(weights[part][name].shape)}, and the task's"
                    f" {tuple(tensor.shape)}; give weights of the task's model"
                )
    return {part: {name: weights[part][name] for name in tensors} for part, tensors in drawn.items()}


def _inner(module: nn.Module) -> nn.Module:
    """Return the model that a run trained, without what reads its inputs; other modules unchanged."""
    from genfl.deployment.trained import RunModel

    return module.inner if isinstance(module, RunModel) else module


def _unfrozen(learned: Task, tensors: Mapping[str, Tensor], like: Weights) -> Weights:
    """Return the weights among the tensors of a state dict.

    Raises:
        InputError: A frozen parameter differs from the task's, which nothing can change.
    """
    for name, value in learned.frozen.items():
        if name in tensors and not torch.equal(tensors[name].cpu(), value):
            raise InputError(
                f"start: {name} is frozen in the task, and has other values; make the task of the module that"
                " holds them, as in genfl.task(module, data)"
            )
    return from_state_dict(dict(tensors), like)


def _predictor(learned: Task, weights: Weights, label_names: Sequence[str]) -> Classifier:
    model = learned.module(weights)
    model.label_names = list(label_names)  # type: ignore[assignment]
    return model


def pretrain(
    task: Task,
    samples: GeneratedSamples | tuple[Array, Array],
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-3,
    schedule: LrSchedule = "cosine",
    weight_decay: float | None = None,
    holdout: float = 0.1,
    patience: int = 5,
    augment: Augment | None = None,
    encode: Encode | None = None,
    labels: Sequence[str] | None = None,
    start: Start | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    device: str = "cpu",
    optimizer: PretrainOptimizer = "adamw",
    momentum: float = 0.0,
    lr_decay: float = 1.0,
) -> Pretrained:
    """Train a model on generated samples at the server: GPT-FL's warm start.

    Source: GPT-FL (arXiv 2306.02210).

    Example:
        >>> import torch, genfl
        >>> task = genfl.task("mlp", (1, 8, 8), 3)
        >>> warm = genfl.pretrain(task, (torch.rand(60, 1, 8, 8), torch.arange(60) % 3), epochs=1)
        >>> warm.epoch
        1

    Args:
        task: The learning task.
        samples: The result of `generate`, or inputs [n, ...] and label names or numbers from 0 [n].
        epochs: Passes over the samples at most.
        batch_size: Samples in a step.
        lr: Learning rate at the start.
        schedule: ``cosine`` lowers it to zero, ``constant`` keeps it, ``exponential`` multiplies it by
            `lr_decay` after every epoch.
        weight_decay: AdamW's decoupled weight decay, or SGD's, which is added to the gradient. By default,
            0.3 for AdamW and 0 for SGD.
        holdout: Share of the samples that decides when to stop, in (0, 1).
        patience: Epochs without a better held-back loss before stopping.
        augment: Random changes of the inputs; see `genfl.learning.augment.Augment`.
        encode: Turns generated content into an input; by default as `GeneratedSamples.arrays` does.
        labels: The names that numbers among the labels count, in order. Needed for arrays where the task's
            classes have names: ``labels=task.label_names`` is the task's own order.
        start: Weights to start from, as in `simulate`; random by default.
        seed: Decides initial weights, batches and dropout.
        checkpoint: A file to keep the state in; training that is interrupted resumes from it.
        progress: Whether to show a progress bar.
        device: Where to compute: cpu, cuda or cuda:1.
        optimizer: ``adamw`` or ``sgd``.
        momentum: Momentum of SGD, in [0, 1).
        lr_decay: The factor of the schedule ``exponential``, in (0, 1].

    Returns:
        The best weights by held-back loss, their epoch, and the history; `simulate` takes it as ``start``.

    Raises:
        InputError: An argument is out of range, the samples do not fit the task, or training diverged.
    """
    if not isinstance(task, Task):
        raise InputError(f"task: {_type(task)} is no Task; give one, as in genfl.task(model, data)")
    chosen = check_value("optimizer", optimizer, PretrainOptimizer)
    if weight_decay is None:
        weight_decay = 0.0 if chosen == "sgd" else 0.3
    recipe = Recipe(
        whole_number("epochs", epochs),
        whole_number("batch_size", batch_size),
        check_value("lr", lr, Positive),
        check_value("schedule", schedule, LrSchedule),
        check_value("weight_decay", weight_decay, NonNegative),
        check_value("holdout", holdout, Annotated[float, Gt(0), Lt(1)]),
        whole_number("patience", patience),
        augment or Augment(),
        chosen,
        check_value("momentum", momentum, Decay),
        check_value("lr_decay", lr_decay, Share),
    )
    if problem := recipe_problem(recipe.optimizer, recipe.momentum, recipe.schedule, recipe.lr_decay):
        raise InputError(problem)
    seed = whole_number("seed", seed, 0)
    x, y = _examples(task, samples, encode, labels)
    names = task.label_names
    if names is None and isinstance(samples, GeneratedSamples):
        names = tuple(samples.label_names)
    weights = _initial_weights(task, start, names, seed)
    place = _device(device)
    with _progress(progress), bars.bar("pretrain", recipe.epochs, "epochs") as advance, exact(place):
        trained = train_with_holdout(
            task,
            weights,
            x,
            y,
            recipe,
            Key(seed).fold("pretrain"),
            checkpoint=Path(checkpoint) if checkpoint else None,
            checkpoint_digest=value_digest(task, weights, recipe, x, y, seed) if checkpoint else "",
            device=place,
            on_epoch=advance,
        )
    return trained._replace(label_names=names)


def _examples(
    task: Task,
    samples: GeneratedSamples | tuple[Array, Array],
    encode: Encode | None,
    labels: Sequence[str] | None,
) -> tuple[Tensor, Tensor]:
    shapes = task.shapes()
    names = list(task.label_names or map(str, range(shapes.classes)))
    if isinstance(samples, GeneratedSamples):
        x, y = samples.arrays(shapes.input, task.label_names, encode=encode)
        if len(samples.label_names) != shapes.classes:
            raise InputError(
                f"samples: they are of {len(samples.label_names)} classes, and the task has {shapes.classes}"
            )
    else:
        x = check_inputs("samples[0]", samples[0])
        y = check_labels("samples[1]", samples[1], names, len(x), labels)
    return check_inputs("samples", x, shapes.input).to(torch.get_default_dtype()), y


class Result:
    """The result of a run, read from its folder.

    `run` and `load_run` return one.

    Attributes:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def config(self) -> Config:
        """The resolved config.

        Raises:
            InputError: It names a model, method or data set that is not registered in this process.
        """
        try:
            return configs.load(self.folder / "config.yaml")
        except InputError as error:
            mistakes = "; ".join(str(error).splitlines())
            raise InputError(
                f"folder: the config of {self.folder} has names that are not known here ({mistakes}); import"
                " the module that registers them first"
            ) from error

    @cached_property
    def summary(self) -> Summary:
        """All figures of the run, as in ``summary.json``."""
        return Summary.read(self.folder / "summary.json")

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.folder / "report" / "index.html"

    @property
    def label_names(self) -> list[str]:
        """The names of the classes, in the order in which models number them."""
        return list(self.summary.labels.found)

    def table(self) -> pandas.DataFrame:
        """Return a row for each method: accuracy (mean and std over seeds), rounds and MB to the target.

        ``rounds`` and ``MB`` are missing where the target accuracy of the report was not reached.
        """
        import pandas

        rows = {
            name: {
                "mean": figures.accuracy.mean,
                "std": figures.accuracy.std,
                "rounds": figures.rounds_to_target,
                "MB": None if figures.bytes_to_target is None else figures.bytes_to_target / 1e6,
            }
            for name, figures in self.summary.methods.items()
        }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("method").astype(float)

    def model(self, method: str, seed: int | None = None) -> RunModel:
        """Return a method's final global model as a module in evaluation mode, which also predicts files.

        It needs the run's folder alone, not the private data. A model or data set of the user's own must be
        registered, because its code is no part of the run.

        Example:
            >>> import genfl
            >>> result = genfl.load_run("runs/demo")  # doctest: +SKIP
            >>> result.model("gptfl", seed=0).predict(["seven.png"], top=3)  # doctest: +SKIP

        Args:
            method: Its name in the config, or ``synthetic_only`` for the pre-trained model.
            seed: One of the run's seeds; by default the first.

        Raises:
            InputError: There is no such method or seed, it trains no global model, an earlier version wrote
                the run, or its model is not registered in this process.
        """
        from genfl.deployment.runs import trained_folder
        from genfl.deployment.trained import RunModel

        return RunModel.load(trained_folder(self.folder, self.summary, method, seed))

    def evaluate(
        self,
        path: str | Path,
        *,
        method: str | None = None,
        seed: int | None = None,
        split: str | None = None,
        label: str | None = None,
        input: str | None = None,
        out: str | Path | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """Test a method's models on other labelled data. Nothing is written into the run.

        The data is read with the options of the run's own data, such as columns, words and client ids.

        Example:
            >>> import genfl
            >>> result = genfl.load_run("runs/demo")  # doctest: +SKIP
            >>> result.evaluate("held-out", method="gptfl").accuracy.mean  # doctest: +SKIP

        Args:
            path: A folder as ``data.path`` takes it, or ``hf://datasets/owner/name``. It may hold a single
                split, or only class folders.
            method: The method; by default the federated one with the best mean accuracy in the run.
            seed: The seed; by default all of them.
            split: The split; by default the test set, or else the validation set, or else the only split.
            label: The column of the classes; by default that of the run's data.
            input: The column of the inputs; by default that of the run's data.
            out: A folder for ``evaluation.json``, ``evaluation.csv``, ``confusion.csv`` and ``index.html``:
                a new or empty one, or that of an earlier evaluation, outside of the folders of runs.
            progress: Whether to show a progress bar.

        Raises:
            InputError: There is no such method or seed, the data cannot be read, the model knows none of its
                labels, or the folder holds something else.
        """
        from genfl.deployment.evaluation import EVALUATION_FILES, EVALUATION_MARKER, Evaluation
        from genfl.deployment.labelled import DataColumns, LabelledFolder
        from genfl.output import check_output, writing_output

        if out is not None:
            with _naming_arguments():
                check_output(Path(out), "evaluation", EVALUATION_MARKER, EVALUATION_FILES)
        name = self.best_method if method is None else method
        models = [self.model(name, each) for each in ([seed] if seed is not None else self.summary.seeds)]
        modality = models[0].description.modality
        columns = DataColumns.of_run(self.folder, modality)
        columns = columns._replace(label=label or columns.label, input=input or columns.input)
        data = LabelledFolder(str(path), modality, columns, split)
        with _progress(progress):
            evaluation = Evaluation.of(models, data, run=self.summary.name, chosen=method is None)
        if out is not None:
            with (
                _naming_arguments(),
                writing_output(Path(out), "evaluation", EVALUATION_MARKER, EVALUATION_FILES),
            ):
                evaluation.write(Path(out))
        return evaluation

    def audit(
        self,
        *,
        method: str | None = None,
        seed: int | None = None,
        attacks: Sequence[str] = ("loss",),
        shadows: int = 16,
        uploads: bool = False,
        canaries: int = 0,
        out: str | Path | None = None,
        progress: bool = False,
    ) -> MembershipAudit:
        """Attack a method's final model: can it tell which examples it was trained on?

        It needs the run's private data. The run is not changed, and none of its models is trained again.

        Example:
            >>> import genfl
            >>> result = genfl.load_run("runs/demo")  # doctest: +SKIP
            >>> result.audit(attacks=["loss", "rmia"], shadows=8).attacks[0].auc.value  # doctest: +SKIP

        Args:
            method: The method; by default the federated one with the best mean accuracy in the run.
            seed: One of the run's seeds; by default the first.
            attacks: Some of ``loss``, ``lira`` and ``rmia``.
            shadows: The number of shadow models that ``lira`` and ``rmia`` train.
            uploads: Whether to attack single uploads, too: what a server sees without a secure sum.
            canaries: The number of canaries in one more training, which gives a lower bound on epsilon; 0 for
                no such training.
            out: The folder for ``audit.json``, the page and the shadow models; by default
                ``RUN.audit-METHOD-seed-SEED`` beside the run.
            progress: Whether to show a progress bar.

        Raises:
            InputError: There is no such method, seed or attack, the private data is not that of the run, or
                the folder holds something else.
        """
        from genfl.auditing import audit_run

        with _progress(progress), _naming_arguments():
            audit, _ = audit_run(
                self.folder,
                method=method,
                seed=seed,
                attacks=attacks,
                shadows=shadows,
                uploads=uploads,
                canaries=canaries,
                out=None if out is None else Path(out),
            )
        return audit

    @property
    def best_method(self) -> str:
        """The federated method of the best mean accuracy among those with a global model."""
        from genfl.deployment.runs import best_trained

        return best_trained(self.folder, self.summary)

    def export(
        self,
        folder: str | Path,
        *,
        method: str | None = None,
        seed: int | None = None,
        onnx: bool = False,
        push_to_hub: str | None = None,
    ) -> Exported:
        """Export a trained model to a folder that torch and safetensors alone can load.

        The folder gets the weights, ``model.json``, ``load.py`` with the source of the model, and a model
        card. An earlier export in it is replaced.

        Args:
            folder: The folder to write, outside of the run.
            method: The method that trained the model; by default the federated one with the best mean
                accuracy.
            seed: One of the config's seeds; by default the first.
            onnx: Whether to write ``model.onnx``, too, and to check it against PyTorch.
            push_to_hub: The Hugging Face repository to upload the folder to, ``owner/name``. A new one is
                private.

        Raises:
            InputError: There is no such model, the folder holds other files, or the Hub refuses the upload.
            GenflError: The ONNX file fails its check. Nothing is written then.
        """
        from genfl.deployment.export import export_model

        with _naming_arguments():
            return export_model(
                self.folder, Path(folder), method=method, seed=seed, onnx=onnx, push_to_hub=push_to_hub
            )

    def __repr__(self) -> str:
        methods = len(self.summary.methods.keys() - {SYNTHETIC_ONLY})
        return f"Result({self.summary.name!r}, {methods} methods, in {str(self.folder)!r})"


ConfigLike = str | Path | Mapping[str, Any] | Config
"""A YAML file, a config as plain values, or a config."""


def _content(config: ConfigLike, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a config as plain values, with overrides."""
    if isinstance(config, Config):
        content = configs.plain_without_inherited(config)
    elif isinstance(config, Mapping):
        content = configs.plain_copy(config)
    else:
        content = configs.read(Path(config))
    for path, value in (overrides or {}).items():
        configs.merge(content, path, value)
    return dict(content)


_ARGUMENTS = {
    "--out": "out",
    "--update": "update=True",
    "--fresh": "fresh=True",
    "--baseline": "baseline",
    "--to": "folder",
    "--method": "method",
    "--seed": "seed",
    "--onnx": "onnx",
    "--push-to-hub": "push_to_hub",
    "--per-label": "per_label",
    "--rounds": "rounds",
    "--no-federation": "federation=False",
}
"""The arguments of Python, by the options of the command line."""


@contextmanager
def _naming_arguments() -> Iterator[None]:
    """Name Python's arguments in messages, where the pipeline names options of the command line."""
    try:
        yield
    except GenflError as error:
        text = re.sub(r"(?<!\S)--[\w-]+", lambda option: _ARGUMENTS.get(option[0], option[0]), str(error))
        raise type(error)(text) from error


def parse_config(config: ConfigLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return a checked config, with defaults for all that it does not set.

    Args:
        config: A YAML file, plain values, or a config.
        overrides: Fields to replace, as in ``{"federate.rounds": 50}``, or ``{"federate": {"rounds": 50}}``,
            which keeps the section's other fields.

    Raises:
        InputError: One line for each mistake, naming the field.
    """
    return configs.validate(_content(config, overrides))


def run(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    update: bool = False,
    progress: bool = False,
) -> Result:
    """Run a config, or resume an interrupted run.

    Finished stages that do not depend on a change are not run again.

    Args:
        config: A YAML file, plain values, or a config.
        overrides: Fields to replace, as in ``{"federate.rounds": 50}``, or ``{"federate": {"rounds": 50}}``,
            which keeps the section's other fields.
        out: The run's folder; ``runs/NAME`` by default.
        fresh: Delete an earlier run in the folder, and start over.
        update: Take over the folder of another config, and redo what the changes affect.
        progress: Whether to show progress bars.

    Raises:
        InputError: The config is wrong, or the folder holds something else.
    """
    from genfl import pipeline

    parsed = parse_config(config, overrides)
    folder = Path(out) if out is not None else Path("runs") / parsed.name
    with _progress(progress), _naming_arguments():
        pipeline.execute(parsed, folder, fresh=fresh, update=update)
    return Result(folder)


def advise(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    per_label: int = 20,
    rounds: int | None = None,
    federation: bool = True,
    out: str | Path | None = None,
    progress: bool = False,
) -> Advice:
    """Say whether the generator of a config will help, before the run: by a pilot of about a tenth of it.

    A run in the folder `run` takes over the pilot's samples.

    Example:
        >>> advice = genfl.advise("digits.yaml")  # doctest: +SKIP
        >>> advice.methods["gptfl"].gain  # doctest: +SKIP
        Likely(value=0.0412, low=0.0105, high=0.0935)

    Args:
        config: A YAML file, plain values, or a config.
        overrides: Fields to replace, as in `run`.
        run: The folder that the run has or will have; ``runs/NAME`` by default.
        per_label: Generated samples of each label in the pilot.
        rounds: Rounds of each method of the pilot; by default 7 % of the run's, all methods together.
        federation: Whether the pilot trains on clients' data. If not, clients only test models, and intervals
            are wider.
        out: The folder of the advice; by default ``NAME.advice`` beside the run's.
        progress: Whether to show progress bars.

    Raises:
        InputError: The config is wrong, there can be no advice on it, or the folder holds something else.
    """
    from genfl.advising import advise_config

    parsed = parse_config(config, overrides)
    folder = Path(run) if run is not None else Path("runs") / parsed.name
    with _progress(progress), _naming_arguments():
        advice, _ = advise_config(
            parsed,
            folder,
            per_label=per_label,
            rounds=rounds,
            federation=federation,
            out=None if out is None else Path(out),
        )
    return advice


def sweep(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    update: bool = False,
    progress: bool = False,
) -> pandas.DataFrame:
    """Run a config at every point of its grid, or resume an interrupted sweep.

    Args:
        config: A YAML file or plain values, with a ``grid`` of fields and lists of their values.
        overrides: Fields to replace.
        out: The folder of the runs; ``runs/NAME`` by default.
        fresh: Delete earlier runs at the grid's points, and start over.
        update: Take over runs of other configs, and redo what the changes affect.
        progress: Whether to show progress bars.

    Returns:
        A row for each run and method, as in ``sweep.csv``; the column ``run`` names the folder, for
        `load_run`.

    Raises:
        InputError: The config is wrong, or the folder holds something else.
    """
    import pandas

    from genfl import grid

    content = _content(config, overrides)
    with _progress(progress), _naming_arguments():
        folder = grid.sweep_folder(content, None if out is None else Path(out))
        points = grid.run_sweep(content, folder, fresh=fresh, update=update)
    return pandas.DataFrame(
        [
            {
                **point.settings,
                "method": method,
                "mean": figures.accuracy.mean,
                "std": figures.accuracy.std,
                "rounds": figures.rounds_to_target,
                "run": str(folder / point.run),
            }
            for point in points
            for method, figures in point.methods.items()
        ]
    )


def load_run(folder: str | Path) -> Result:
    """Return the result of a finished run.

    Args:
        folder: The run's folder.

    Raises:
        InputError: The folder holds no finished run.
    """
    check_finished(Path(folder), "folder")
    return Result(folder)


def compare(
    runs: Sequence[str | Path | Result], baseline: str | None = None, *, out: str | Path | None = None
) -> Comparison:
    """Compare every method of several finished runs with a baseline.

    Example:
        >>> comparison = genfl.compare(["runs/demo", "runs/other"])  # doctest: +SKIP
        >>> comparison.table()  # doctest: +SKIP

    Args:
        runs: Results, or folders of finished runs. The folder of a sweep stands for its runs.
        baseline: ``METHOD``: that method of the same run or, where the run lacks it, of the first run that
            has it. ``RUN:METHOD``: that one. By default, the method of the same name in the first run.
        out: A folder for the page and the tables; nothing is written by default.

    Raises:
        InputError: A folder holds no finished run, there is one run only, or no such baseline.
    """
    from genfl.comparison import compare_folders, write_comparison

    if isinstance(runs, str | Path | Result):
        runs = [runs]
    folders = [run.folder if isinstance(run, Result) else Path(run) for run in runs]
    with _naming_arguments():
        comparison = compare_folders(folders, baseline)
        if out is not None:
            write_comparison(comparison, Path(out))
    return comparison
