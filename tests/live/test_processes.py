"""Processes that are started and stopped: also those that detach themselves, and those left over."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from genfl.errors import GenflError, InputError
from genfl.live import processes as module
from genfl.live.processes import SETTINGS, Processes, free_ports, runs, start_of, wait_for_port

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


def test_a_second_command_in_a_folder_leaves_the_first_alone(tmp_path):
    with Processes(tmp_path / "mark") as first:
        process = first.start("p", python("import time; time.sleep(600)"), tmp_path / "log", tmp_path)
        with pytest.raises(InputError) as refused, Processes(tmp_path / "mark"):
            pass
        message = f"--out: another process uses {tmp_path}; wait for it, or take another folder"
        assert str(refused.value) == message
        assert process.poll() is None
        assert (tmp_path / "mark").exists()
    with Processes(tmp_path / "mark"):
        pass


COMMAND = """
import sys, time
from pathlib import Path
from genfl import cli
from genfl.live.processes import Processes

@cli.app.command("wait")
def wait() -> None:
    cli._prepare_federation("genfl wait")
    with Processes(Path({mark!r})) as processes:
        processes.start("parent", {command!r}, Path({log!r}), Path())
        while len(processes.ids()) < 2:
            time.sleep(0.02)
        try:
            print(*processes.ids(), flush=True)
            time.sleep(600)
        finally:
            time.sleep(1)  # more than other commands have
            print("cleaned", flush=True)

sys.argv = ["genfl", "wait"]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_command_that_is_told_to_end_takes_its_processes_with_it(tmp_path, number):
    pytest.importorskip("flwr")
    files = {"mark": str(tmp_path / "mark"), "log": str(tmp_path / "log")}
    code = COMMAND.format(command=python(DETACHING), **files)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as command:
        ids = [int(each) for each in command.stdout.readline().split()]
        command.send_signal(number)
        if number != signal.SIGINT:
            time.sleep(0.2)
            command.send_signal(number)  # one is enough, and a second cuts nothing short
        stdout, stderr = command.communicate()
    assert (command.returncode, stdout) == (130, "cleaned\n")
    assert stderr == "interrupted; run the same command again to resume\n"
    assert len(ids) == 2
    assert not any(map(alive, ids))
    assert not (tmp_path / "mark").exists()


def test_a_process_of_another_user_is_left_alone():
    if os.getuid():
        assert not module._alive(1)
        module._signal(1, signal.SIGTERM)
        return
    code = """if True:
        import os, signal
        from genfl.live import processes
        os.setuid(65534)
        processes._signal(os.getppid(), signal.SIGTERM)
        print(processes._alive(os.getppid()), processes._alive(os.getpid()))
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_a_process_is_told_from_a_later_one_with_its_id():
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as process:
        start = start_of(process.pid)
        assert runs(process.pid, start)
        assert not runs(process.pid, str(int(start) - 1))
        process.stdin.close()
        wait_for(lambda: not runs(process.pid, start))  # ended, though not yet reaped


def test_only_the_user_reads_what_processes_write(tmp_path):
    folder = tmp_path / "above" / "folder"
    with Processes(folder / "mark") as processes:
        code = "from pathlib import Path; Path('memory').write_text('private')"
        code = f"import os; os.chdir({str(folder)!r}); {code}"
        processes.start("p", python(code), folder / "log", folder).wait()
        processes.run(python(code.replace("memory", "state")), folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes.pop("folder") == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert {modes[name] for name in ("memory", "state", "log")} == {0o600}


def test_a_process_that_ends_is_named(tmp_path):
    with Processes(tmp_path / "mark") as processes:
        processes.start("SuperLink", python("raise SystemExit(3)"), tmp_path / "log", tmp_path)
        with pytest.raises(GenflError, match=r"SuperLink ended with code 3; see .*log"):
            wait_for_port(free_ports(1)[0], processes)
        with pytest.raises(GenflError, match="failed: no such app"):
            processes.run(python("import sys; sys.exit('no such app')"), tmp_path)
        with pytest.raises(GenflError, match=r"-c has not ended after 0.2 s"):
            processes.run(python("import time; time.sleep(600)"), tmp_path, timeout=0.2)


def test_nothing_is_sent_to_the_makers_of_flower(tmp_path):
    with Processes(tmp_path / "mark") as processes:
        shown = processes.run(python("import os, json; print(json.dumps(dict(os.environ)))"), tmp_path)
    settings = {**SETTINGS, "FLWR_HOME": str(tmp_path)}
    assert {name: json.loads(shown)[name] for name in settings} == settings
    assert os.environ.get("FLWR_HOME") != str(tmp_path)
