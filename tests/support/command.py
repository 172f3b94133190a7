"""The command line and other programs, in processes that have imported already what they need.

A process that starts anew imports for seconds. These are forked from one that has imported, and has done
nothing else. What is about the start of a process, its imports or its streams needs `python -m genfl`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "genfl.cli",
        "genfl.pipeline",
        "genfl.catalogue",
        "genfl.report.page",
        "datasets",
        "flwr_datasets.partitioner",
        "sklearn.datasets",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.schedulers.scheduling_ddim",
        "matplotlib.backends.backend_svg",
    ]
)


class Ended(NamedTuple):
    """What a process that has ended leaves: its exit code, its output, and its errors."""

    code: int
    stdout: str
    stderr: str


class Command:
    """A process that runs ``genfl ARGS``.

    Args:
        *args: The arguments.
        cwd: The folder in which it runs; None for that of this process.
        program: Python code that runs in place of the command, with these arguments.
    """

    def __init__(self, *args: Any, cwd: Path | None = None, program: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [str(Path(self._folder.name, name)) for name in ("out", "err")]
        for stream in self._streams:
            Path(stream).touch()
        self._process = _PROCESSES.Process(
            target=_main,
            args=([*map(str, args)], str(cwd or Path.cwd()), dict(os.environ), self._streams, program),
        )
        self._process.start()

    def poll(self) -> int | None:
        """Returns its exit code; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it at once, as kill -9 does."""
        self._process.kill()
        self._process.join()

    def ended(self) -> Ended:
        """Waits for its end."""
        self._process.join()
        written = (Path(stream).read_text(encoding="utf-8") for stream in self._streams)
        return Ended(self._process.exitcode, *written)


def run_command(*args: Any, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """Runs the command; returns its standard output and error."""
    ended = Command(*args, cwd=cwd).ended()
    assert ended.code == code, ended.stdout + ended.stderr
    return ended.stdout, ended.stderr


def run_program(program: str, *args: Any, cwd: Path | None = None) -> tuple[str, str]:
    """Runs Python code as ``python -c`` does; returns its standard output and error."""
    ended = Command(*args, cwd=cwd, program=program).ended()
    assert ended.code == 0, ended.stdout + ended.stderr
    return ended.stdout, ended.stderr


def _main(
    args: list[str], folder: str, environment: dict[str, str], streams: list[str], program: str | None
) -> None:
    gc.freeze()  # of what was imported, nothing becomes garbage
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        file = os.open(stream, os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["genfl" if program is None else "-c", *args]
    if program is not None:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        return
    from genfl.cli import main

    main()
