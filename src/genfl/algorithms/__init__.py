"""Federated algorithms, by the names a config uses."""

from genfl.algorithms.base import Algorithm, ClientProgram, run_once
from genfl.algorithms.profile import Profile, profile
from genfl.algorithms.registry import ALGORITHMS, AlgorithmEntry, combine

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmEntry",
    "ClientProgram",
    "Profile",
    "combine",
    "profile",
    "run_once",
]
