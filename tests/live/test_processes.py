"""Processes that are started and stopped: also those that detach themselves, and those left over."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from genfl.errors import GenflError
from genfl.live.processes import SETTINGS, Processes, free_ports, wait_for_port

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="marks are read from /proc")

DETACHING = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


def python(code):
    return [sys.executable, "-S", "-c", code]


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def alive(process):
    """Whether a process runs: one that has ended, and is not yet reaped, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("error", [None, GenflError, KeyboardInterrupt])
def test_processes_and_what_they_started_end(tmp_path, error):
    ids = []
    try:
        with Processes(tmp_path / "mark") as processes:
            processes.start("parent", python(DETACHING), tmp_path / "log", tmp_path)
            wait_for(lambda: len(processes.ids()) == 2)
            ids += processes.ids()
            if error:
                raise error
    except (GenflError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    wait_for(lambda: not any(map(alive, ids)))
    assert not (tmp_path / "mark").exists()


def test_a_process_that_ignores_the_request_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("genfl.live.processes.PATIENCE", 0.2)
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignoring}; print(1, flush=True); time.sleep(600)"
    with Processes(tmp_path / "mark") as processes:
        process = processes.start("stubborn", python(code), tmp_path / "log", tmp_path)
        wait_for(lambda: (tmp_path / "log").read_text() == "1\n")
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_parent_left_is_stopped_by_the_next(tmp_path):
    parent = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from genfl.live.processes import Processes
        with Processes(Path({str(tmp_path / "mark")!r})) as processes:
            command = {python("import time; time.sleep(600)")!r}
            started = processes.start("p", command, Path(os.devnull), Path())
            print(started.pid, flush=True)
            os.kill(os.getpid(), 9)
        """
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False)
    left = int(done.stdout)
    assert alive(left)
    with Processes(tmp_path / "mark"):
        wait_for(lambda: not alive(left))


def test_a_process_that_ends_is_named(tmp_path):
    with Processes(tmp_path / "mark") as processes:
        processes.start("SuperLink", python("raise SystemExit(3)"), tmp_path / "log", tmp_path)
        with pytest.raises(GenflError, match=r"SuperLink ended with code 3; see .*log"):
            wait_for_port(free_ports(1)[0], processes)
        with pytest.raises(GenflError, match="failed: no such app"):
            processes.run(python("import sys; sys.exit('no such app')"), tmp_path)


def test_nothing_is_sent_to_the_makers_of_flower(tmp_path):
    with Processes(tmp_path / "mark") as processes:
        shown = processes.run(python("import os, json; print(json.dumps(dict(os.environ)))"), tmp_path)
    settings = {**SETTINGS, "FLWR_HOME": str(tmp_path)}
    assert {name: json.loads(shown)[name] for name in settings} == settings
    assert os.environ.get("FLWR_HOME") != str(tmp_path)
