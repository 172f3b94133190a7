"""Folders of results outside of runs: checked before the work, and held while its results are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from genfl import pipeline
from genfl.errors import InputError
from genfl.experiment.records import RUN_MARKER
from genfl.storage import check_target, explaining_target, refuse_links


def check_output(folder: Path, what: str, marker: str, names: Iterable[str]) -> None:
    """Check that results may be written to a folder. Nothing is written.

    Args:
        folder: The folder: a new or empty one, or that of earlier results of the same kind.
        what: The kind of the results, such as ``comparison``.
        marker: The name of the file that marks the folders of this kind.
        names: The names of the files of the results.

    Raises:
        InputError: The folder holds something else or links, belongs to a run, or cannot be written.
    """
    check_target(folder, "--out", folder=True)
    if any((above / RUN_MARKER).exists() for above in folder.resolve().parents):
        raise InputError(f"--out: {folder} is in the folder of a run; name another folder")
    pipeline.refuse_foreign(folder, what, marker)
    refuse_links(folder, [marker, *names])


@contextlib.contextmanager
def writing_output(folder: Path, what: str, marker: str, names: Iterable[str]) -> Iterator[None]:
    """Lock a folder while the block writes results to it. It is created if it is absent, and marked.

    Args:
        folder: The folder, as in `check_output`.
        what: The kind of the results.
        marker: The name of the file that marks the folders of this kind.
        names: The names of the files of the results.

    Raises:
        InputError: The folder holds something else or links, belongs to a run, is in use, or cannot be
            written.
        GenflError: The disk is full.
    """
    check_output(folder, what, marker, names)
    with (
        pipeline.explaining_full_disk(folder),
        explaining_target(folder, "--out"),
        pipeline.holding(folder, what, marker),
    ):
        yield
