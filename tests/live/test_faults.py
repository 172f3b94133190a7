"""Faults in a federation of real processes: clients that are killed, hang or drop out of a sum; a full disk.

One federation has all faults of uploads in the clear, and one those of secure sums. The tests look at what
they left.
"""

import contextlib
import re
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from support.dropping import Dropping
from support.small_disk import fill_disk, mount_small_disk, unmount

pytest.importorskip("flwr")

from support.real_federation import RealFederation

from genfl import config, pipeline
from genfl.engines.in_process import sequential
from genfl.live.processes import Processes

CONFIG = """
name: faults
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, samples: 200}}
generator: none
model: {name: mlp, width: 8}
federate: {evaluate_every: 2, checkpoint_every: 1, engine: sequential, local: {steps: 3}}
methods: {memory: {algorithm: scaffold}}
"""
PLAIN = (4, ["federate.rounds=7", "federate.deadline=100"])
SECURE = (3, ["federate.rounds=5", "federate.secure={threshold: 2}"])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc"),
]


class Ended(NamedTuple):
    """A federation that has ended.

    Attributes:
        config: Its config.
        folder: The server's folder.
        log: The server's log.
        left_out: Why clients did not count, by round and client.
        disk: Whether a disk was full.
    """

    config: config.Config
    folder: Path
    log: str
    left_out: dict[tuple[int, int], str]
    disk: bool = False


def ended(federation, settings, disk=False):
    federation.result()
    left_out = {
        (event["round"], event["client"]): event["reason"]
        for event in federation.events()
        if event["event"] == "left_out" and event["action"] == "train"
    }
    log = (federation.folder / "server.log").read_text()
    return Ended(settings, federation.folder, log, left_out, disk)


def parsed(clients, changes):
    sizes = [f"data.partition.clients={clients}", f"federate.clients_per_round={clients}"]
    return config.parse(CONFIG, [*sizes, *changes])


def stop_at(federation, round_number, *clients, phase=None):
    """Waits until processes of clients are asked for a message of a round, and holds them there."""
    phases = ["keys", "shares", "upload", "confirm", "reveal"]
    if phase is None:
        before = {"action": "train", "round": round_number - 1}
    elif phase == "keys":
        before = {"action": "train", "round": round_number - 1, "phase": "reveal"}
        if round_number == 1:
            before = {"action": "census", "phase": "reveal"}
    else:
        before = {"action": "train", "round": round_number, "phase": phases[phases.index(phase) - 1]}
    gates = [federation.gates[client] for client in clients]
    for client, gate in zip(clients, gates, strict=True):
        federation.wait_for_event(client, event="answered", **before)
        gate.shut()
    for gate in gates:
        federation.wait_for(gate.reached)
    return gates


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """In round 2, three clients are lost, and one is killed after its upload. All of them come back.

    All processes of client 0 stop, as on a machine that sleeps. Client 1 is killed before its upload, client
    2 after it. Client 3 waits for a file until the deadline is over.

    In rounds 5 and 6, the disk of client 3 is full.
    """
    folder, settings = tmp_path_factory.mktemp("plain"), parsed(*PLAIN)
    with contextlib.ExitStack() as opened:
        own = folder / "client-3"
        own.mkdir()
        if disk := mount_small_disk(own, "16m"):
            opened.callback(unmount, own)
        processes = opened.enter_context(Processes(folder / "processes"))
        federation = RealFederation(settings, folder, processes)
        federation.begin()

        stopped, killed, hanging = stop_at(federation, 2, 0, 1, 3)
        federation.signal(0, signal.SIGSTOP)
        federation.signal(1, signal.SIGKILL)
        stopped.open()
        killed.open()
        federation.wait_for_event(event="answered", action="train", round=2, client=2)
        federation.signal(2, signal.SIGKILL)
        federation.wait_for_event(event="round_finished", round=2)
        federation.signal(0, signal.SIGCONT)
        hanging.open()

        (holding,) = stop_at(federation, 4, 3)
        for client in (1, 2):
            federation.wait_until_back(client)
        holding.open()

        if disk:
            (starting,) = stop_at(federation, 5, 3)
            filler = fill_disk(own)
            starting.open()
            federation.wait_for_event(event="round_finished", round=6)
            filler.unlink()
        yield ended(federation, settings, disk)


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """In each round, a client drops out in another phase of the secure sum.

    In the first try of round 1, two clients do, so fewer than the threshold are left.
    """
    folder, settings = tmp_path_factory.mktemp("secure"), parsed(*SECURE)
    with Processes(folder / "processes") as processes:
        federation = RealFederation(settings, folder, processes)
        federation.begin()

        def drop(round_number, *clients, phase):
            gates = stop_at(federation, round_number, *clients, phase=phase)
            for client, gate in zip(clients, gates, strict=True):
                federation.shut_down(client)
                gate.open()

        drop(1, 1, 2, phase="keys")
        for client in (1, 2):
            federation.wait_until_back(client)
        for number, client, phase, connections in (
            (1, 1, "keys", 3),
            (2, 2, "shares", 3),
            (3, 1, "upload", 4),
            (4, 2, "confirm", 4),
        ):
            drop(number, client, phase=phase)
            (holding,) = stop_at(federation, number, 0, phase="reveal")
            federation.wait_until_back(client, connections)
            holding.open()
        drop(5, 1, phase="reveal")
        yield ended(federation, settings)


def assert_models_of_simulation(ended, folder, monkeypatch):
    """The model has the bits of a simulation whose cohorts are without the clients that were left out."""

    @contextlib.contextmanager
    def dropping(kind, clients, cohort, device, fast, reducer):
        yield Dropping(sequential(clients, reducer), ended.left_out.keys())

    monkeypatch.setattr("genfl.stages.federate.trial.engine", dropping)
    pipeline.execute(ended.config, folder, until="federate")
    name = Path("federate", "memory", "seed-0", "model.safetensors")
    assert (ended.folder / "run" / name).read_bytes() == (folder / name).read_bytes()


def left_out_in_log(log, number, client):
    """The lines of the log that say why a client was left out of a round."""
    return re.findall(rf"round {number}: the upload of client {client} was refused: (.*)", log)


def counts_again(ended, lost, client):
    """Whether a client counts in a round after one in which it was lost."""
    return any((number, client) not in ended.left_out for number in range(lost + 1, 8))


def test_a_client_killed_before_its_upload_is_left_out_and_comes_back(plain):
    (why,) = left_out_in_log(plain.log, 2, 1)
    assert why.startswith("its node failed")
    assert counts_again(plain, 2, 1)


def test_a_client_killed_after_its_upload_counts_and_comes_back(plain):
    assert not left_out_in_log(plain.log, 2, 2)
    assert counts_again(plain, 2, 2)


def test_a_client_that_hangs_is_left_out_at_the_deadline_and_takes_part_again(plain):
    assert left_out_in_log(plain.log, 2, 3) == ["it did not answer within 100 s (federate.deadline)"]
    assert counts_again(plain, 2, 3)


def test_a_client_whose_processes_stop_is_left_out_and_takes_part_again(plain):
    (why,) = left_out_in_log(plain.log, 2, 0)
    assert why.startswith("its node failed")
    assert counts_again(plain, 2, 0)


def test_a_client_whose_disk_is_full_is_left_out_until_it_has_space(plain):
    if not plain.disk:
        pytest.skip("this user may not mount a small disk")
    for number in (5, 6):
        (why,) = left_out_in_log(plain.log, number, 3)
        assert re.match("it failed with OSError|its node failed", why)
    assert counts_again(plain, 6, 3)


def test_killed_and_hanging_clients_and_full_disks_lose_nothing(plain, tmp_path, monkeypatch):
    assert_models_of_simulation(plain, tmp_path, monkeypatch)


def test_fewer_clients_than_the_threshold_repeat_the_round(secure):
    line = "train: 1 of 3 clients answered with a valid upload, and 2 are needed; asking again"
    assert secure.log.count(line) == 1


@pytest.mark.parametrize("number, client", [(1, 1), (2, 2), (3, 1)], ids=["keys", "shares", "upload"])
def test_a_client_that_drops_before_its_masked_upload_is_left_out(secure, number, client):
    (why,) = left_out_in_log(secure.log, number, client)
    assert why.startswith("its node failed")


@pytest.mark.parametrize("number, client", [(4, 2), (5, 1)], ids=["confirm", "reveal"])
def test_a_client_that_drops_after_its_masked_upload_counts(secure, number, client):
    assert not left_out_in_log(secure.log, number, client)


def test_clients_that_drop_out_of_sums_lose_nothing(secure, tmp_path, monkeypatch):
    assert set(secure.left_out) == {(1, 1), (2, 2), (3, 1)}
    assert_models_of_simulation(secure, tmp_path, monkeypatch)
