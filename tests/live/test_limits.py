"""What real machines cannot run, and what clients do not allow, is refused by name."""

import pytest

pytest.importorskip("flwr")

from genfl import config
from genfl.engines.flower.records import RefusedMessage
from genfl.engines.flower.wire import Request
from genfl.errors import InputError
from genfl.live.limits import problem_of
from genfl.live.local import deploy_local
from genfl.live.policy import ClientPolicy, read_policy
from genfl.live.server import for_machines
from genfl.live.site import DataSite
from genfl.rng import Key

CONFIG = """
name: limits
data: {name: digits, partition: {kind: iid, clients: 3}}
generator: none
model: {name: mlp}
federate: {rounds: 4, clients_per_round: 2}
methods: {plain: {algorithm: fedavg}, memory: {algorithm: scaffold}}
"""


@pytest.mark.parametrize(
    "change, named",
    [
        ("privacy={unit: sample, epsilon: 8}", "privacy: set"),
        ("data.partition.test=0.2", "data.partition.test: 0.2"),
        ("labels.min_holders=2", "labels.min_holders: 2, but federate.secure is not set"),
        (
            "federate.secure={limit: 1.0e+15}",
            "federate.secure: limit 1e+15, precision 9.53674e-07: words of 64 bits have",
        ),
        ("federate.heterogeneity=true", "federate.heterogeneity: true"),
        ("methods.alone={algorithm: local}", "methods.alone: the reference local"),
        ("audit.overlap=drop", "audit.overlap: drop"),
        (
            [
                "data={name: texts, path: x, tokenizer: generated}",
                "model={name: lstm}",
                "generator={kind: files, path: x}",
            ],
            "data.tokenizer: generated",
        ),
    ],
)
def test_what_real_machines_cannot_run_is_refused(change, named):
    changes = [change] if isinstance(change, str) else change
    problem = problem_of(config.parse(CONFIG, changes))
    assert problem is not None
    assert problem.startswith(named)


@pytest.mark.parametrize(
    "change, named",
    [
        (["federate.secure=true", "federate.clients_per_round=1"], "federate.secure: a sum of one client"),
        (["federate.secure={threshold: 3}"], "federate.secure.threshold: 3, but of 2 clients it is 2 to 2"),
        (
            ["federate.secure=true", "privacy={unit: user, epsilon: 8}"],
            "federate.secure: set, but with privacy of unit user",
        ),
    ],
)
def test_a_secure_sum_that_cannot_be_is_refused(change, named):
    with pytest.raises(InputError) as refused:
        config.parse(CONFIG, change)
    assert named in str(refused.value)


def test_a_plain_config_runs_on_real_machines():
    changed = for_machines(config.parse(CONFIG))
    assert problem_of(changed) is None
    assert changed.federate.engine == "flower"
    assert changed.audit.overlap == "ignore"


def test_the_number_of_clients_is_that_of_the_config(tmp_path):
    with pytest.raises(InputError, match=r"--local: 2, but data.partition.clients is 3"):
        deploy_local(config.parse(CONFIG), tmp_path, 2)


def test_a_client_refuses_more_than_it_allows(tmp_path):
    asked = config.parse(CONFIG)
    ClientPolicy().check(asked, "memory")
    strict = tmp_path / "policy.yaml"
    strict.write_text("algorithms: [fedavg]\nmin_cohort: 2\nmax_rounds: 4\n")
    policy = read_policy(strict)
    policy.check(asked, "plain")
    for changes, method, named in [
        ([], "memory", "methods.memory.algorithm: scaffold, but this client allows fedavg"),
        ([], None, "methods.memory.algorithm: scaffold"),  # label discovery serves all methods
        (
            ["federate.clients_per_round=1"],
            "plain",
            "clients_per_round: 1, but this client allows cohorts of 2",
        ),
        (["federate.rounds=5"], "plain", "federate.rounds: 5, but this client allows 4"),
    ]:
        with pytest.raises(RefusedMessage) as refused:
            policy.check(config.parse(CONFIG, changes), method)
        assert named in str(refused.value)


@pytest.mark.parametrize(
    "table, named",
    [
        ([2**21, 4, 64, 0], "table: cells: should be"),
        ([80, 9, 64, 0], "table: hashes: should be"),
        ([80, 4, 10**6, 0], "table: max_bytes: should be"),
        ([8, 8, 64, -1], "table: seed"),
        ([80, 4, 64], "table: four numbers"),
    ],
)
def test_a_client_makes_no_table_beyond_the_ranges(tmp_path, table, named):
    settings = {"config": config.dump(config.parse(CONFIG)), "table": table}
    request = Request("0" * 16, "labels", 1, 0, 0, 0, None, Key(0), settings, {})
    with pytest.raises(RefusedMessage) as refused:
        DataSite(tmp_path, tmp_path, ClientPolicy()).work(request)
    assert str(refused.value).startswith(named)


def test_a_client_answers_no_round_after_the_last(tmp_path):
    settings = {"config": config.dump(config.parse(CONFIG)), "method": "plain", "labels": ["0", "1"]}
    request = Request("0" * 16, "train", 5, 0, 0, 0, None, Key(0), settings, {})
    with pytest.raises(RefusedMessage, match=r"federate.rounds: 4, but the server asks for round 5"):
        DataSite(tmp_path, tmp_path, ClientPolicy()).work(request)


@pytest.mark.parametrize("text", ["algorithm: fedavg", "min_cohort: 0", "a: [", "- 1"])
def test_a_wrong_policy_is_refused(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"policy.yaml"):
        read_policy(path)
