"""The shares of the clients of a federation on one machine: those of the config, also after it changed."""

import pytest
import torch

pytest.importorskip("flwr")

from genfl import config
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.live.folders import PROCESSES
from genfl.live.keys import node_keys
from genfl.live.local import SPLIT, deploy_local, prepare_parties
from genfl.live.processes import Processes
from genfl.live.site import EXAMPLES
from genfl.storage import load_tensors

CONFIG = """
name: shares
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 2, samples: 60}}
generator: none
model: {name: mlp, width: 8}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""


def shares(tmp_path, *changes):
    """Prepares the parties, and returns when each client's share was written. Each is that of the config."""
    settings, folders = config.parse(CONFIG, list(changes)), [tmp_path / "client-0", tmp_path / "client-1"]
    prepare_parties(settings, tmp_path / "keys", folders)
    context = RunContext()
    inputs = context.data_set(settings.data).train.x
    for folder, rows in zip(folders, context.client_rows(settings.data, settings.seeds[0]), strict=True):
        assert torch.equal(load_tensors(folder / "data" / EXAMPLES)[0]["x"], inputs[torch.from_numpy(rows)])
    return [(folder / "data" / EXAMPLES).stat().st_mtime_ns for folder in folders]


@pytest.mark.parametrize("change", ["data.partition.alpha=5", "seeds=[1]", "data.partition.samples=80"])
def test_shares_are_those_of_the_config(tmp_path, change):
    first = shares(tmp_path)
    key = node_keys(tmp_path / "client-0").key.read_bytes()
    assert shares(tmp_path, "federate.rounds=7") == first  # written once
    assert shares(tmp_path, change) != first
    assert node_keys(tmp_path / "client-0").key.read_bytes() == key


def test_shares_that_were_not_finished_are_written_again(tmp_path):
    first = shares(tmp_path)
    (tmp_path / "client-1" / "data" / SPLIT).unlink()
    assert shares(tmp_path) != first


def test_two_federations_do_not_begin_in_one_folder(tmp_path):
    """The second one ends before it makes keys, which the first one may be writing."""
    with Processes(tmp_path / PROCESSES), pytest.raises(InputError, match="--out: another process uses"):
        deploy_local(config.parse(CONFIG), tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
