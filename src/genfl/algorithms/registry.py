"""Federated methods by their names in configs, and how several make one algorithm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from genfl import options
from genfl.algorithms.base import Algorithm
from genfl.algorithms.dsfl import dsfl
from genfl.algorithms.dynafed import dynafed
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.feddecorr import feddecorr
from genfl.algorithms.feddf import feddf
from genfl.algorithms.feddf_logits import feddf_logits
from genfl.algorithms.feddisco import feddisco
from genfl.algorithms.feddyn import feddyn
from genfl.algorithms.fedet import fedet
from genfl.algorithms.fedftg import fedftg
from genfl.algorithms.fedgen import fedgen
from genfl.algorithms.fednova import fednova
from genfl.algorithms.fedprox import fedprox
from genfl.algorithms.fedsam import fedsam
from genfl.algorithms.moon import moon
from genfl.algorithms.parts import Part
from genfl.algorithms.scaffold import scaffold
from genfl.algorithms.server_optimizers import ServerOptimizer, fedadagrad, fedadam, fedavgm, fedyogi
from genfl.algorithms.weighting import Weighting
from genfl.errors import InputError
from genfl.identity import value_digest
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task
from genfl.registry import Registry

RESOURCES: dict[str, str] = {
    "cohort": "",
    "rounds": "",
    "shared": "synthetic or public data",
    "unlabelled": "synthetic or public data",
    "client_tasks": "client_models",
}
"""The parameters that a builder is given by name, and what a user must provide for them, if anything.

``cohort`` (int) is the number of clients in a round, and ``rounds`` (int) the number of rounds. ``shared``
[m, ...] are inputs that server and clients hold, ``unlabelled`` [m, ...] inputs that the server alone holds.
``client_tasks`` are the tasks of clients whose models differ, by name."""

UNLABELLED = {"shared", "unlabelled"}
"""The resources that are synthetic or public inputs."""

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (LocalHook, ServerOptimizer, Weighting, Algorithm)}
"""The kinds of methods, by the name of what their builders return."""


class AlgorithmEntry(NamedTuple):
    """A method that a config can name.

    Attributes:
        make: The builder. Its return annotation says which kind of method it is; see `KINDS`. The builder of
            an `Algorithm` takes ``(task, local, *hooks)`` first. Its parameters with defaults are the options
            of the config. Its parameters named in `RESOURCES` are provided.
        paper: The publication.
        source: The user's own builder, whose code cached results depend on; None for built-in ones.
    """

    make: Callable[..., Any]
    paper: str
    source: Callable[..., Any] | None = None

    @property
    def code(self) -> str:
        """The digest of the code of a user's own builder as it is now; empty for built-in ones."""
        return value_digest(self.source) if self.source else ""

    @property
    def kind(self) -> type:
        """The type that the builder returns.

        Raises:
            NameError: The annotation names a type that is not to be found.
            KeyError: There is no annotation.
        """
        kind: type = get_type_hints(inspect.unwrap(self.make), localns=KINDS)["return"]
        return kind

    @property
    def resources(self) -> list[str]:
        """The names of the resources that the builder takes."""
        return [name for name in inspect.signature(self.make).parameters if name in RESOURCES]

    @property
    def required(self) -> list[str]:
        """The names of the resources that the builder cannot do without."""
        parameters = inspect.signature(self.make).parameters
        return [name for name in self.resources if parameters[name].default is inspect.Parameter.empty]

    def options(self) -> dict[str, tuple[Any, Any]]:
        """Return each option's type, with its range, and its default."""
        known = options.options(self.make, KINDS)
        return {name: option for name, option in known.items() if name not in RESOURCES}

    def build(
        self, task: Task, local: LocalSGD, resources: Mapping[str, Any] | None = None, **chosen: Any
    ) -> Algorithm:
        """Return the algorithm of this method alone; see `combine`."""
        return combine(task, local, [(self, chosen)], resources or {})


def combine(
    task: Task,
    local: LocalSGD,
    parts: Sequence[tuple[AlgorithmEntry, Mapping[str, Any]]],
    resources: Mapping[str, Any],
) -> Algorithm:
    """Return the algorithm that several methods make together.

    At most one of the methods is an algorithm of its own; without one, the others are parts of FedAvg.

    Args:
        task: The learning task.
        local: Local training, before the methods' hooks.
        parts: The methods and their options.
        resources: The values of resources; see `RESOURCES`.

    Raises:
        InputError: The combination has no meaning, or a resource is missing.
    """
    whole = [part for part in parts if part[0].kind is Algorithm]
    if len(whole) > 1:
        names = " and ".join(entry.make.__name__ for entry, _ in whole)
        raise InputError(f"{names} take the same place; keep one")
    pieces: list[Part] = [
        entry.make(**_provided(entry, resources), **chosen)
        for entry, chosen in parts
        if entry.kind is not Algorithm
    ]
    if not whole:
        return fedavg(task, local, *pieces)
    ((entry, chosen),) = whole
    algorithm: Algorithm = entry.make(task, local, *pieces, **_provided(entry, resources), **chosen)
    return algorithm


def _provided(entry: AlgorithmEntry, resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resources of a builder.

    Raises:
        InputError: One without a default is missing.
    """
    missing = [name for name in entry.required if resources.get(name) is None]
    if missing:
        raise InputError(f"{entry.make.__name__} needs {RESOURCES[missing[0]] or missing[0]}")
    return {name: resources.get(name) for name in entry.resources}


ALGORITHMS: Registry[AlgorithmEntry] = Registry(
    "algorithm",
    {
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
        "feddf_logits": AlgorithmEntry(feddf_logits, "Lin et al. 2020, arXiv 2006.07242"),
        "dsfl": AlgorithmEntry(dsfl, "Itahara et al. 2021, arXiv 2008.06180"),
        "fedet": AlgorithmEntry(fedet, "Cho et al. 2022, arXiv 2204.12703"),
        "fedgen": AlgorithmEntry(fedgen, "Zhu et al. 2021, arXiv 2105.10056"),
        "fedftg": AlgorithmEntry(fedftg, "Zhang et al. 2022, arXiv 2203.09249"),
        "dynafed": AlgorithmEntry(dynafed, "Pi et al. 2023, arXiv 2211.10878"),
    },
)
