"""The trained models in the folder of a finished run."""

from __future__ import annotations

from pathlib import Path

from genfl.deployment.description import WEIGHTS_FILE
from genfl.errors import InputError, on_one_line, suggest
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import Summary


def trained_folder(run: Path, summary: Summary, method: str | None = None, seed: int | None = None) -> Path:
    """Return the folder of a trained model.

    Args:
        run: The run's folder.
        summary: Its summary.
        method: The method; by default the federated one of the best mean accuracy. Without a federated one,
            the best of all.
        seed: The seed; by default the first.

    Raises:
        InputError: There is no such method or seed, or the method trains no global model.
    """
    seed = summary.seeds[0] if seed is None else seed
    if seed not in summary.seeds:
        raise InputError(f"seed: there is no {seed}; known: {', '.join(map(str, summary.seeds))}")
    method = best_trained(run, summary) if method is None else method
    names = list(summary.methods)
    if method not in names:
        raise InputError(f"method: there is no {on_one_line(method)!r}; {suggest(method, names)}")
    folder = run / "federate" / method / f"seed-{seed}"
    # of the pre-trained model, the description says what an earlier version lacks
    if not (folder / WEIGHTS_FILE).is_file() and method != SYNTHETIC_ONLY:
        others = ", ".join(trained_methods(run, summary)) or "those of another run"
        raise InputError(f"method: {method} has no global model; name one of {others}")
    return folder


def trained_methods(run: Path, summary: Summary) -> list[str]:
    """Return the methods with a global model, in the order of the summary."""
    seed = summary.seeds[0]
    return [
        name
        for name in summary.methods
        if (run / "federate" / name / f"seed-{seed}" / WEIGHTS_FILE).is_file()
    ]


def best_trained(run: Path, summary: Summary) -> str:
    """Return the federated method of the best mean accuracy among those with a global model.

    Raises:
        InputError: No method has one.
    """
    trained = trained_methods(run, summary)
    federated = [name for name in trained if name in summary.federated and name != SYNTHETIC_ONLY]
    if not trained:
        raise InputError(f"method: no method of {run} has a global model; name another run")
    return max(federated or trained, key=lambda name: summary.methods[name].accuracy.mean)
