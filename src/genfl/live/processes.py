"""Flower's processes: started with safe settings, and stopped by their ids."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from genfl.errors import GenflError, shorten
from genfl.storage import remove, write_text

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""The environment of every process: nothing is sent to Flower's makers, and nothing is installed."""

_MARK = "GENFL_PROCESSES"
"""The environment variable by which processes that were started by ours are known."""

PATIENCE = 10.0
"""Seconds that processes have to end by themselves."""


class Processes:
    """Processes that end with this object, with all that they started in turn.

    Flower detaches some of its processes. They inherit a mark in their environment, and are found by it. The
    mark is kept in a file, so that processes that outlived a killed parent are stopped by the next one.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self._token = secrets.token_hex(16)
        self._file = file
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, Path] = {}
        self._may_end: set[str] = set()

    def __enter__(self) -> Processes:
        if self._file.exists():
            left = list(_marked(self._file.read_text(encoding="utf-8").strip()))
            for process in left:
                _signal(process, signal.SIGKILL)
        write_text(self._file, self._token + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(patience=0.0 if kind is KeyboardInterrupt else PATIENCE)
        remove(self._file, self._file.parent)

    def _environment(self, home: Path) -> dict[str, str]:
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ours = {"PATH": programs, "FLWR_HOME": str(home), _MARK: self._token}
        return {**os.environ, **SETTINGS, **ours}

    def start(
        self, name: str, command: Sequence[str], log: Path, home: Path, *, may_end: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a process, whose output is appended to a file.

        Args:
            name: What messages call it.
            command: Its command line.
            log: The file.
            home: The folder of what Flower keeps.
            may_end: Whether somebody looks after it, so that `check` lets it end.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(home),
                start_new_session=True,  # Ctrl-C is for this process alone, which stops the others
            )
        self.logs[name] = log
        if may_end:
            self._may_end.add(name)
        return self.running[name]

    def run(self, command: Sequence[str], home: Path, timeout: float = 120.0) -> str:
        """Run a command to its end, and return what it prints; see `start`.

        Raises:
            GenflError: It fails.
        """
        done = subprocess.run(
            command, env=self._environment(home), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            output = " ".join((done.stdout + done.stderr).split())
            raise GenflError(f"{' '.join(command[:3])} failed: {shorten(output, 300)}")
        return done.stdout

    def check(self) -> None:
        """Check that all processes run that must not end.

        Raises:
            GenflError: One has ended.
        """
        for name, process in self.running.items():
            if process.poll() is not None and name not in self._may_end:
                raise GenflError(f"{name} ended with code {process.returncode}; see {self.logs[name]}")

    def ids(self) -> list[int]:
        """Return the ids of all processes that run, those that ours started included."""
        started = {process.pid for process in self.running.values() if process.poll() is None}
        return sorted(started | set(_marked(self._token)))

    def stop(self, patience: float = PATIENCE) -> None:
        """Stop all processes: by a request first, and by force after some seconds."""
        ids = self.ids()
        for process in ids:
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end and any(map(_alive, ids)):
            self._reap()
            time.sleep(0.05)
        for process in self.ids():  # looked up again: an id may belong to somebody else by now
            _signal(process, signal.SIGKILL)
        for running in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=5)

    def _reap(self) -> None:
        for process in self.running.values():
            process.poll()


def _marked(token: str) -> Iterator[int]:
    """Yield the ids of this user's processes with a mark in their environment; none without ``/proc``."""
    wanted = f"{_MARK}={token}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def free_ports(count: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for_port(port: int, processes: Processes, host: str = "127.0.0.1", seconds: float = 90.0) -> None:
    """Wait until somebody listens on a port.

    Raises:
        GenflError: Nobody does, or a process has ended.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        processes.check()
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.2)
    raise GenflError(f"nobody listens on {host}:{port} after {seconds:g} s")
