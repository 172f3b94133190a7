"""Federated methods by the names a config uses, and how several make one algorithm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from genfl import options
from genfl.algorithms.base import Algorithm
from genfl.algorithms.dsfl import dsfl
from genfl.algorithms.dynafed import dynafed
from genfl.algorithms.fedavg import Weighting, fedavg
from genfl.algorithms.feddecorr import feddecorr
from genfl.algorithms.feddf import feddf
from genfl.algorithms.feddisco import feddisco
from genfl.algorithms.feddyn import feddyn
from genfl.algorithms.fedet import fedet
from genfl.algorithms.fedftg import fedftg
from genfl.algorithms.fedgen import fedgen
from genfl.algorithms.fednova import fednova
from genfl.algorithms.fedprox import fedprox
from genfl.algorithms.fedsam import fedsam
from genfl.algorithms.moon import moon
from genfl.algorithms.scaffold import scaffold
from genfl.algorithms.server_optimizers import ServerOptimizer, fedadagrad, fedadam, fedavgm, fedyogi
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task

RESOURCES: dict[str, str] = {
    "cohort": "",
    "rounds": "",
    "shared": "synthetic data",
    "unlabelled": "synthetic data",
    "client_tasks": "client_models",
}
"""What a builder may ask for by the name of a parameter, and what a user must have for it, if anything:
``cohort`` and ``rounds`` (int) the clients of a round and how many rounds there are, ``shared`` [m, ...]
inputs that server and clients hold, ``unlabelled`` the same for the server alone, ``client_tasks`` the tasks
of clients whose models differ, by name."""

UNLABELLED = {name for name, what in RESOURCES.items() if what == "synthetic data"}
"""The resources that are synthetic inputs."""


class AlgorithmEntry(NamedTuple):
    """A method a config can name.

    Attributes:
        make: The builder. What it returns says what the method is: an `Algorithm`, a `ServerOptimizer` or a
            `Weighting` for FedAvg, or, of a `LocalSGD` it is given, one with another hook. Its parameters
            with defaults are the options a config may set; those named in `RESOURCES` are provided.
        paper: Where it was published.
    """

    make: Callable[..., Any]
    paper: str

    @property
    def part(self) -> type:
        """What the builder returns."""
        kind: type = get_type_hints(self.make)["return"]
        return kind

    @property
    def resources(self) -> list[str]:
        """The names of what the builder must be given besides task and local training."""
        return [name for name in inspect.signature(self.make).parameters if name in RESOURCES]

    def options(self) -> dict[str, tuple[Any, Any]]:
        """Returns each option's type, with its range, and its default."""
        return options.options(self.make)

    def build(
        self, task: Task, local: LocalSGD, resources: Mapping[str, Any] | None = None, **chosen: Any
    ) -> Algorithm:
        """Returns the algorithm this method makes alone; see `combine`."""
        return combine(task, local, [(self, chosen)], resources or {})


def combine(
    task: Task,
    local: LocalSGD,
    parts: Sequence[tuple[AlgorithmEntry, Mapping[str, Any]]],
    resources: Mapping[str, Any],
) -> Algorithm:
    """Makes one algorithm of several methods.

    Hooks of local training add up; at most one of the others is an algorithm of its own, and FedAvg is where
    there is none.

    Args:
        task: What is learned.
        local: How a client trains, before the methods' hooks.
        parts: The methods and their options.
        resources: What builders may ask for; see `RESOURCES`.

    Raises:
        ValueError: The combination has no meaning, or a resource is missing.
    """
    made: dict[type, list[Any]] = {LocalSGD: [], ServerOptimizer: [], Weighting: [], Algorithm: []}
    for entry, chosen in parts:
        made[entry.part].append((entry, chosen))

    def given(entry: AlgorithmEntry, chosen: Mapping[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(entry.make).parameters
        required = [name for name in entry.resources if parameters[name].default is inspect.Parameter.empty]
        missing = [name for name in required if resources.get(name) is None]
        if missing:
            raise ValueError(f"{entry.make.__name__} needs {RESOURCES[missing[0]] or missing[0]}")
        return {**{name: resources.get(name) for name in entry.resources}, **chosen}

    for part, several in made.items():
        names = [entry.make.__name__ for entry, _ in several]
        if (part is not LocalSGD and len(several) > 1) or len(set(names)) < len(names):
            raise ValueError(f"{' and '.join(names)} take the same place; keep one")
    for entry, chosen in made[LocalSGD]:
        try:
            local = entry.make(local, **given(entry, chosen))
        except ValueError as error:
            raise ValueError(f"{entry.make.__name__}: {error}") from error
    extras = {
        name: entry.make(**given(entry, chosen))
        for name, part in (("server_opt", ServerOptimizer), ("weighting", Weighting))
        for entry, chosen in made[part]
    }
    if not made[Algorithm]:
        return fedavg(task, local, **extras)
    ((entry, chosen),) = made[Algorithm]
    if extras and entry.make is not fedavg:
        other = (made[ServerOptimizer] + made[Weighting])[0][0]
        raise ValueError(
            f"{other.make.__name__} is a variant of FedAvg's server, and {entry.make.__name__} has its own;"
            " keep one"
        )
    algorithm: Algorithm = entry.make(task, local, **given(entry, chosen), **extras)
    return algorithm


ALGORITHMS: dict[str, AlgorithmEntry] = {
    "fedavg": AlgorithmEntry(fedavg, "McMahan et al. 2017, arXiv 1602.05629"),
    "fedavgm": AlgorithmEntry(fedavgm, "Hsu et al. 2019, arXiv 1909.06335"),
    "fedadam": AlgorithmEntry(fedadam, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedyogi": AlgorithmEntry(fedyogi, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedadagrad": AlgorithmEntry(fedadagrad, "Reddi et al. 2021, arXiv 2003.00295"),
    "fedprox": AlgorithmEntry(fedprox, "Li et al. 2020, arXiv 1812.06127"),
    "scaffold": AlgorithmEntry(scaffold, "Karimireddy et al. 2020, arXiv 1910.06378"),
    "fednova": AlgorithmEntry(fednova, "Wang et al. 2020, arXiv 2007.07481"),
    "moon": AlgorithmEntry(moon, "Li et al. 2021, arXiv 2103.16257"),
    "feddyn": AlgorithmEntry(feddyn, "Acar et al. 2021, arXiv 2111.04263"),
    "feddecorr": AlgorithmEntry(feddecorr, "Shi et al. 2023, arXiv 2210.00226"),
    "fedsam": AlgorithmEntry(fedsam, "Qu et al. 2022, arXiv 2206.02618"),
    "feddisco": AlgorithmEntry(feddisco, "Ye et al. 2023, arXiv 2305.19229"),
    "feddf": AlgorithmEntry(feddf, "Lin et al. 2020, arXiv 2006.07242"),
    "dsfl": AlgorithmEntry(dsfl, "Itahara et al. 2021, arXiv 2008.06180"),
    "fedet": AlgorithmEntry(fedet, "Cho et al. 2022, arXiv 2204.12703"),
    "fedgen": AlgorithmEntry(fedgen, "Zhu et al. 2021, arXiv 2105.10056"),
    "fedftg": AlgorithmEntry(fedftg, "Zhang et al. 2022, arXiv 2203.09249"),
    "dynafed": AlgorithmEntry(dynafed, "Pi et al. 2023, arXiv 2211.10878"),
}
