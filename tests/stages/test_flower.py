"""Whole runs whose clients get Flower's messages: the models of sequential, after kills as well."""

import pytest

pytest.importorskip("flwr")

from genfl import config, pipeline
from genfl.errors import InputError

CONFIG = """
name: over flower
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 4, samples: 200}}
public: {samples: 40}
generator: none
model: {name: mlp, width: 8}
pretrain: {epochs: 1}
federate: {rounds: 3, clients_per_round: 3, evaluate_every: 3, engine: sequential, local: {steps: 2}}
content: {samples: 40}
methods:
  memory: {algorithm: scaffold}
  dynamic: {algorithm: feddyn}
  mixed: {algorithm: fedavg, data: mixed, source: public}
  warm: {algorithm: fedavg, start: pretrained, source: public}
  together: {algorithm: centralised}
"""


def run(folder, *changes):
    pipeline.execute(config.parse(CONFIG, list(changes)), folder, until="federate")
    return {
        path.parts[-3]: path.read_bytes() for path in sorted(folder.glob("federate/*/*/model.safetensors"))
    }


@pytest.mark.slow
def test_models_over_flower_are_those_of_sequential(tmp_path):
    expected = run(tmp_path / "a")
    assert len(expected) == 5
    assert run(tmp_path / "b", "federate.engine=flower-inprocess") == expected


def test_a_quorum_above_the_cohort_is_refused():
    with pytest.raises(InputError, match=r"federate.quorum: 4, but federate.clients_per_round is 3"):
        config.parse(CONFIG, ["federate.quorum=4"])
