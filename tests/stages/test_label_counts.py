"""The stage labels with noise on the numbers of holders."""

import json

import pytest

from genfl import config, pipeline

CONFIG = """
name: counts
data: {name: digits, partition: {kind: dirichlet, alpha: 0.3, clients: 30, min_size: 1}}
generator: none
model: mlp
labels: {count_epsilon: 1}
federate: {rounds: 1, clients_per_round: 10}
methods: {fedavg: {algorithm: fedavg}}
"""


def labels(folder, *overrides):
    pipeline.execute(config.parse(CONFIG, overrides), folder, until="labels")
    return json.loads((folder / "labels" / "labels.json").read_text())


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return labels(tmp_path_factory.mktemp("exact") / "run", "labels.count_epsilon=null")


@pytest.mark.slow
def test_published_numbers_have_noise_of_a_secret(tmp_path, exact):
    noised = [labels(tmp_path / name) for name in ("one", "two")]
    for result in noised:
        assert result["found"] == exact["found"], "names are exact"
        assert result["holders"] != exact["holders"]
        assert all(1 <= count <= 30 for count in result["holders"].values())
        assert set(result) == set(exact)
    assert noised[0]["holders"] != noised[1]["holders"], "each folder has a secret of its own"
    assert (tmp_path / "one" / "labels" / "noise.key").stat().st_mode & 0o777 == 0o600
    assert labels(tmp_path / "one") == noised[0], "a resumed run does not draw again"


@pytest.mark.slow
def test_weak_noise_leaves_numbers_as_they_are(tmp_path, exact):
    """ε 100 for 10 names: a count keeps its value with probability 0.9999."""
    assert labels(tmp_path / "weak", "labels.count_epsilon=100")["holders"] == exact["holders"]


@pytest.mark.slow
def test_repeatable_noise_comes_from_the_seed(tmp_path):
    repeatable = "privacy={unit: sample, epsilon: 8, repeatable: true}"
    runs = [labels(tmp_path / name, repeatable)["holders"] for name in ("one", "two")]
    assert runs[0] == runs[1]
    assert not (tmp_path / "one" / "labels" / "noise.key").exists()
    other = labels(tmp_path / "other", repeatable, "labels.count_epsilon=1.001")["holders"]
    assert other != runs[0], "another release has noise of its own"
