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

import filelock

from genfl.errors import GenflError, InputError, on_one_line, shorten
from genfl.storage import locked, refuse_links, remove, write_text

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""The environment of every process: nothing is sent to Flower's makers, and nothing is installed."""

_MARK = "GENFL_PROCESSES"
"""The environment variable by which processes that were started by ours are known."""

_LOCK = ".lock"

PATIENCE = 10.0
"""Seconds that processes have to end by themselves."""

KILLING = 5.0
"""Seconds for ending processes by force, the new ones of these processes included."""


class Processes:
    """Processes that end with this object, with all that they started in turn.

    Flower detaches some of its processes. They inherit a mark in their environment, and are found by it. The
    mark is kept in a file, so that processes that outlived a killed parent are stopped by the next one. The
    file's folder is locked. What the processes write can be read by this user alone.

    Args:
        file: The file.

    Raises:
        InputError: On entry, another process uses the folder.
    """

    def __init__(self, file: Path) -> None:
        self._token = secrets.token_hex(16)
        self._file = file
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, Path] = {}
        self._may_end: set[str] = set()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Processes:
        folder = self._file.parent
        private_folder(folder)
        refuse_links(folder, [_LOCK])
        try:
            self._held.enter_context(locked(folder / _LOCK))
        except filelock.Timeout:
            raise InputError(
                f"--out: another process uses {on_one_line(folder, 300)}; wait for it, or take another folder"
            ) from None
        if self._file.exists():
            _kill_marked(self._file.read_text(encoding="utf-8").strip())
        write_text(self._file, self._token + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            self.stop(patience=0.0 if kind is KeyboardInterrupt else PATIENCE)
            remove(self._file, self._file.parent)

    def _environment(self, home: Path) -> dict[str, str]:
        return {**flower_environment(home), _MARK: self._token}

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
        private_folder(log.parent)
        log.touch(mode=0o600)
        with log.open("ab") as output:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(home),
                start_new_session=True,  # Ctrl-C is for this process alone, which stops the others
                umask=0o077,
            )
        self.logs[name] = log
        if may_end:
            self._may_end.add(name)
        return self.running[name]

    def run(self, command: Sequence[str], home: Path, timeout: float = 360.0) -> str:
        """Run a command to its end, and return what it prints; see `run_to_end`."""
        return run_to_end(command, self._environment(home), timeout)

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
        """Stop all processes: by a request first, and by force after some seconds; 0 asks for nothing."""
        try:
            if patience:
                self._request_end(patience)
        finally:  # also if Ctrl-C cuts the patience short
            for running in self.running.values():
                if running.poll() is None:
                    running.kill()
            _kill_marked(self._token)
            for running in self.running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(timeout=KILLING)

    def _request_end(self, patience: float) -> None:
        ids = self.ids()
        for process in ids:
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end and any(map(_alive, ids)):
            self._reap()
            time.sleep(0.05)

    def _reap(self) -> None:
        for process in self.running.values():
            process.poll()


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs.

    Args:
        home: The folder of what Flower keeps.
    """
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **SETTINGS, "PATH": programs, "FLWR_HOME": str(home)}


def run_to_end(command: Sequence[str], environment: dict[str, str], timeout: float = 360.0) -> str:
    """Run a command to its end, and return what it prints.

    Raises:
        GenflError: It fails, or lasts longer than `timeout` seconds.
    """
    name = " ".join(command[:3])
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            umask=0o077,
        )
    except subprocess.TimeoutExpired:
        raise GenflError(f"{name} has not ended after {timeout:g} s") from None
    if done.returncode:
        output = " ".join((done.stdout + done.stderr).split())
        raise GenflError(f"{name} failed: {shorten(output, 300)}")
    return done.stdout


def processes_run(file: Path) -> bool:
    """Return whether processes with the mark in a file run; see `Processes`.

    Without ``/proc``, a file that was left over counts, too.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return not Path("/proc/self").exists() or any(True for _ in _marked(token))


def _marked(token: str) -> Iterator[int]:
    """Yield the ids of this user's processes with a mark in their environment; none without ``/proc``."""
    wanted = f"{_MARK}={token}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _kill_marked(token: str) -> None:
    """Kill all processes with a mark, also those that they start meanwhile."""
    end = time.monotonic() + KILLING
    while (ids := list(_marked(token))) and time.monotonic() < end:
        for process in ids:
            _signal(process, signal.SIGKILL)
        time.sleep(0.02)


def _alive(process: int) -> bool:
    """Whether a process of this user has this id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # or the id belongs to another user by now
        return False
    return True


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def start_of(process: int) -> str:
    """Return when a process started, to tell it from a later one with its id.

    Returns:
        Clock ticks since the machine started. Empty if it has ended, or without ``/proc``.
    """
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


def runs(process: int, start: str) -> bool:
    """Return whether a process runs; see `start_of`. Without ``/proc``, its id may be another's by now."""
    return start_of(process) == start if start else _alive(process)


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can read, and the folders above it, where they are missing."""
    for path in reversed([folder, *folder.parents]):
        path.mkdir(mode=0o700, exist_ok=True)


def free_ports(count: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for_port(port: int, processes: Processes, host: str = "127.0.0.1", seconds: float = 270.0) -> None:
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
