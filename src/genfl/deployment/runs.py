"""The trained models in the folder of a finished run."""

from __future__ import annotations

from pathlib import Path

from genfl.deployment.description import DESCRIPTION_FILE, TOKENIZER_FILE, WEIGHTS_FILE
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
        InputError: There is no such method or seed, the method trains no global model, or the folder or a
            file of the model lies outside of the run.
    """
    seed = summary.seeds[0] if seed is None else seed
    if seed not in summary.seeds:
        raise InputError(f"seed: there is no {seed}; known: {', '.join(map(str, summary.seeds))}")
    method = best_trained(run, summary) if method is None else method
    names = list(summary.methods)
    if method not in names:
        known = [on_one_line(name) for name in names]
        raise InputError(f"method: there is no {on_one_line(method)!r}; {suggest(method, known)}")
    folder = run / "federate" / method / f"seed-{seed}"
    _check_inside(run, folder)
    # of the pre-trained model, the description says what an earlier version lacks
    if not (folder / WEIGHTS_FILE).is_file() and method != SYNTHETIC_ONLY:
        others = ", ".join(map(on_one_line, trained_methods(run, summary))) or "those of another run"
        raise InputError(f"method: {on_one_line(method)} has no global model; name one of {others}")
    return folder


def _check_inside(run: Path, folder: Path) -> None:
    """Check that a model's folder and files lie in the run, wherever names and links lead.

    Raises:
        InputError: One of them lies elsewhere.
    """
    home = run.resolve() / "federate"
    for path in (folder, *(folder / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE, TOKENIZER_FILE))):
        if not path.resolve().is_relative_to(home):
            raise InputError(
                f"method: {on_one_line(path, 200)} leads out of the run's folder; replace it by a copy, or"
                " name another method"
            )


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
