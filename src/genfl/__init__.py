"""genfl: federated learning with generative content (GPT-FL and FedGC), end to end.

Public names are imported when they are first used, so that ``import genfl`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genfl import algorithms as algorithms
    from genfl.algorithms import Algorithm as Algorithm
    from genfl.algorithms import SampleFilter as SampleFilter
    from genfl.algorithms import ServerOptimizer as ServerOptimizer
    from genfl.algorithms import Weighting as Weighting
    from genfl.algorithms import fedadagrad as fedadagrad
    from genfl.algorithms import fedadam as fedadam
    from genfl.algorithms import fedavgm as fedavgm
    from genfl.algorithms import fedyogi as fedyogi
    from genfl.algorithms import filtered as filtered
    from genfl.algorithms.dsfl import dsfl as dsfl
    from genfl.algorithms.dynafed import dynafed as dynafed
    from genfl.algorithms.fedavg import fedavg as fedavg
    from genfl.algorithms.feddecorr import feddecorr as feddecorr
    from genfl.algorithms.feddf import feddf as feddf
    from genfl.algorithms.feddf_logits import feddf_logits as feddf_logits
    from genfl.algorithms.feddisco import feddisco as feddisco
    from genfl.algorithms.feddyn import feddyn as feddyn
    from genfl.algorithms.fedet import fedet as fedet
    from genfl.algorithms.fedftg import fedftg as fedftg
    from genfl.algorithms.fedgen import fedgen as fedgen
    from genfl.algorithms.fednova import fednova as fednova
    from genfl.algorithms.fedprox import fedprox as fedprox
    from genfl.algorithms.fedsam import fedsam as fedsam
    from genfl.algorithms.moon import moon as moon
    from genfl.algorithms.scaffold import scaffold as scaffold
    from genfl.api import Result as Result
    from genfl.api import Simulation as Simulation
    from genfl.api import advise as advise
    from genfl.api import compare as compare
    from genfl.api import load_run as load_run
    from genfl.api import parse_config as parse_config
    from genfl.api import pretrain as pretrain
    from genfl.api import run as run
    from genfl.api import simulate as simulate
    from genfl.api import sweep as sweep
    from genfl.api import task as task
    from genfl.config import Config as Config
    from genfl.console import configure as configure
    from genfl.data import budget as budget
    from genfl.data import partition as partition
    from genfl.data.samples import Prompt as Prompt
    from genfl.data.samples import Sample as Sample
    from genfl.data.sources import DataSet as DataSet
    from genfl.data.sources import LabelledExamples as LabelledExamples
    from genfl.errors import GenflError as GenflError
    from genfl.errors import InputError as InputError
    from genfl.federated import FederatedDataset as FederatedDataset
    from genfl.generation import GeneratedSamples as GeneratedSamples
    from genfl.generation import generate as generate
    from genfl.generators.base import Generator as Generator
    from genfl.learning.augment import Augment as Augment
    from genfl.learning.local import LocalHook as LocalHook
    from genfl.learning.local import LocalSGD as LocalSGD
    from genfl.learning.local import Memory as Memory
    from genfl.learning.task import Task as Task
    from genfl.models import Classifier as Classifier
    from genfl.models import Wrapped as Wrapped
    from genfl.registration import register as register
    from genfl.results.advice import Advice as Advice
    from genfl.results.comparison import Comparison as Comparison

__version__ = "0.1.0"

_NAMES: dict[str, tuple[str, ...]] = {
    "genfl.algorithms": (
        "Algorithm",
        "SampleFilter",
        "ServerOptimizer",
        "Weighting",
        "dsfl",
        "dynafed",
        "fedadagrad",
        "fedadam",
        "fedavg",
        "fedavgm",
        "feddecorr",
        "feddf",
        "feddf_logits",
        "feddisco",
        "feddyn",
        "fedet",
        "fedftg",
        "fedgen",
        "fednova",
        "fedprox",
        "fedsam",
        "fedyogi",
        "filtered",
        "moon",
        "scaffold",
    ),
    "genfl.api": (
        "Result",
        "Simulation",
        "advise",
        "compare",
        "load_run",
        "parse_config",
        "pretrain",
        "run",
        "simulate",
        "sweep",
        "task",
    ),
    "genfl.config": ("Config",),
    "genfl.console": ("configure",),
    "genfl.data.samples": ("Prompt", "Sample"),
    "genfl.data.sources": ("DataSet", "LabelledExamples"),
    "genfl.errors": ("GenflError", "InputError"),
    "genfl.federated": ("FederatedDataset",),
    "genfl.generation": ("GeneratedSamples", "generate"),
    "genfl.generators.base": ("Generator",),
    "genfl.learning.augment": ("Augment",),
    "genfl.learning.local": ("LocalHook", "LocalSGD", "Memory"),
    "genfl.learning.task": ("Task",),
    "genfl.models": ("Classifier", "Wrapped"),
    "genfl.registration": ("register",),
    "genfl.results.advice": ("Advice",),
    "genfl.results.comparison": ("Comparison",),
}
"""The public names, by the module that defines them."""

_MODULES = {
    "algorithms": "genfl.algorithms",
    "budget": "genfl.data.budget",
    "partition": "genfl.data.partition",
}
"""The public modules."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted([*_HOMES, *_MODULES])]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        value: Any = import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'genfl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
