"""The commands of real federations: keys, and what is missing is named before anything starts."""

import json
import sys

import pytest

pytest.importorskip("flwr")

from support.command import Command

from genfl.engines.flower import check_flower
from genfl.errors import InputError

CONFIG = """
name: commands
data: {name: digits, partition: {kind: iid, clients: 2}}
generator: none
model: {name: mlp}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""


def genfl(*args):
    return Command(*args).ended()


@pytest.mark.slow
def test_keys_are_made_and_listed(tmp_path):
    ended = genfl("keys", "server", "--host", "localhost", "--out", tmp_path / "server", "--json")
    assert ended.code == 0
    assert sorted(json.loads(ended.stdout)) == ["authority", "authority_key", "certificate", "key"]
    ended = genfl("keys", "node", "--out", tmp_path / "node")
    assert ended.code == 0
    assert str(tmp_path / "node" / "node.pub") in ended.stdout
    again = genfl("keys", "node", "--out", tmp_path / "node")
    assert (again.code, again.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_what_is_missing_is_named(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    made = genfl("keys", "node", "--out", tmp_path / "node")
    assert made.code == 0
    public = tmp_path / "node" / "node.pub"
    keys = tmp_path / "server" / "keys"
    assert genfl("keys", "server", "--host", "localhost", "--out", keys).code == 0
    server = ("server", config, "--out", tmp_path / "server")
    client = ("client", "--data", tmp_path, "--server")
    for args, named in [
        (("deploy", config, "--local", "3"), "--local: 3, but data.partition.clients is 2"),
        ((*server, "--node", public), "--node names 1 clients"),
        (
            ("server", config, "--out", tmp_path / "b", "--node", public, "--node", public),
            "genfl keys server",
        ),
        ((*client, "localhost:1", "--ca", public, "--out", tmp_path / "b"), "run: genfl keys node"),
        ((*client, "localhost", "--ca", public, "--out", tmp_path / "node"), "--server: 'localhost'"),
        ((*client, "localhost:1", "--ca", tmp_path / "c", "--out", tmp_path / "node"), "--ca: there is no"),
    ]:
        ended = genfl(*args)
        assert (ended.code, named in ended.stderr) == (2, True), ended.stderr
        assert len(ended.stderr) < 700


def test_flower_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(InputError, match=r"genfl deploy: Flower is not installed; run: pip install"):
        check_flower("genfl deploy")
