"""Federated algorithms: their builders, the parts they combine, and their names in configs.

The builders below have the names of the modules they come from. They are imported after all modules, so that
``genfl.algorithms.fedavg`` is the builder.
"""

from genfl.algorithms.base import Algorithm, ClientProgram, run_once
from genfl.algorithms.profile import Profile, profile
from genfl.algorithms.registry import ALGORITHMS, AlgorithmEntry, combine

# isort: split
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
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.algorithms.moon import moon
from genfl.algorithms.scaffold import scaffold
from genfl.algorithms.server_optimizers import ServerOptimizer, fedadagrad, fedadam, fedavgm, fedyogi, sgd
from genfl.algorithms.weighting import Weighting

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmEntry",
    "ClientProgram",
    "Profile",
    "SampleFilter",
    "ServerOptimizer",
    "Weighting",
    "combine",
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
    "profile",
    "run_once",
    "scaffold",
    "sgd",
]
