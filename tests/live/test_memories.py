"""`genfl memory`: what a client keeps of federations is listed, and deleted for good if its owner says so."""

import json
import shutil

import pytest

pytest.importorskip("flwr")

from support.command import Command

from genfl.engines.flower.member import run_folder
from genfl.engines.flower.node_memory import NodeMemory
from genfl.engines.flower.records import RefusedMessage
from genfl.engines.flower.wire import Request
from genfl.errors import InputError
from genfl.live.folders import MEMORY, PROCESSES
from genfl.live.memories import forget_federations, kept_federations
from genfl.live.policy import ClientPolicy
from genfl.live.processes import Processes
from genfl.live.site import DataSite
from genfl.rng import Key
from genfl.storage import locked


@pytest.fixture
def client(served, tmp_path):
    """A client that answered two rounds of two methods, one of which remembers something."""
    shutil.copytree(served.folder / "client-0", tmp_path / "client-0")
    return tmp_path / "client-0"


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_each_method_is_listed_with_its_last_round_and_its_size(client, served):
    plain, memory = kept_federations(client)
    assert [(one.purpose, one.round) for one in (plain, memory)] == [("plain", 2), ("memory", 2)]
    assert plain.answered < memory.answered < served.end.isoformat()
    kept = [path.stat().st_size for path in (client / MEMORY / memory.name).iterdir()]
    assert memory.bytes == sum(kept) > plain.bytes


def test_a_forgotten_federation_is_deleted_and_its_messages_are_refused(client):
    plain, memory = kept_federations(client)
    other = files(client / MEMORY / plain.name)
    forget_federations(client, [memory.name[:8]])
    assert kept_federations(client) == [plain]
    assert not (client / MEMORY / memory.name).exists()
    assert files(client / MEMORY / plain.name) == other
    with refused():
        NodeMemory(client / MEMORY, memory.name)
    site = DataSite(client / MEMORY, client / "data", ClientPolicy())
    for action in ("census", "train"):
        with refused():
            site.work(Request(memory.name, action, 3, 0, 2, 2, None, Key(0), {}, {}))
    assert run_folder(client / MEMORY, plain.name) == client / MEMORY / plain.name


def refused():
    return pytest.raises(RefusedMessage, match="run: this client was told to forget this federation")


@pytest.mark.parametrize("wrong", ["", "0123", "f" * 32, "../data"])
def test_a_name_that_is_not_that_of_one_federation_deletes_nothing(client, wrong):
    before = files(client)
    with pytest.raises(InputError, match=r"--forget: .* of the 2 federations"):
        forget_federations(client, [kept_federations(client)[0].name, wrong])
    assert files(client) == before


def test_nothing_is_deleted_while_a_process_uses_the_folder(client):
    (name, *_) = (kept.name for kept in kept_federations(client))
    with locked(client / ".lock"), pytest.raises(InputError, match="--forget: a process uses"):
        forget_federations(client, [name])
    with Processes(client.parent / PROCESSES) as processes:  # as of genfl deploy
        processes.start("a process", ["sleep", "60"], client.parent / "log", client.parent)
        with pytest.raises(InputError, match="end genfl client or genfl deploy there first"):
            forget_federations(client, [name])
        processes.stop()
    assert (client / MEMORY / name).exists()


def test_the_command_lists_and_forgets(client, tmp_path):
    ended = Command("memory", client, "--json").ended()
    rows = json.loads(ended.stdout)
    assert [row["purpose"] for row in rows] == ["plain", "memory"]
    ended = Command("memory", client, "--forget", rows[0]["name"]).ended()
    assert (ended.code, rows[0]["name"] in ended.stdout, rows[1]["name"] in ended.stdout) == (0, False, True)
    ended = Command("memory", tmp_path).ended()
    assert (ended.code, "name the folder of a client" in ended.stderr) == (2, True)
