"""The simulated secure sum of training uploads: the plain sum up to the bound, and the protocol's bits."""

import re

import torch

from genfl import trees
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Batches
from genfl.engines.in_process import sequential
from genfl.engines.protocol import ClientTask
from genfl.engines.reducers import PlainReducer, SumEncoding, encoded_reducers
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec
from genfl.rng import Key

from . import helpers

CLIENTS = 5
NUMBERS = SumRange(1000.0, 2.0**-20)
ENCODING = SumEncoding(NUMBERS, CLIENTS)


def upload(client):
    generator = torch.Generator().manual_seed(client)
    params = {"w": torch.randn(3, 2, generator=generator), "b": torch.randn(2, generator=generator)}
    return {
        "weight": torch.tensor(10.0 + client),
        "delta": {"params": trees.scale(10.0 + client, params), "buffers": {}},
    }


def stacked(clients):
    return trees.map(lambda *leaves: torch.stack(leaves), *map(upload, clients))


def sum_by(reducer):
    reducer.add([0, 1], stacked([0, 1]))
    reducer.add([2, 3, 4], stacked([2, 3, 4]))
    return reducer.aggregate()


REDUCTIONS = {"weight": "sum", "delta": "sum"}


def test_secure_sum_of_floats_is_the_plain_sum_up_to_the_bound():
    plain = sum_by(PlainReducer(REDUCTIONS))
    secure = sum_by(encoded_reducers(Key(0), ENCODING)(REDUCTIONS))
    assert trees.mismatch(secure, plain) is None
    codec = UploadCodec(upload(0), CLIENTS, NUMBERS)
    for part in REDUCTIONS:
        bound = codec.fixed_point.error_bound(CLIENTS)
        for a, b in zip(trees.leaves(secure[part]), trees.leaves(plain[part]), strict=True):
            rounding = CLIENTS * torch.finfo(torch.float32).eps * b.abs().clamp(min=100)
            assert ((a - b).abs() <= bound + rounding).all()


def test_simulation_has_the_bits_of_the_protocol():
    codec = UploadCodec(upload(0), CLIENTS, NUMBERS)
    agreed = ss.SumParameters(b"simulated", tuple(range(CLIENTS)), 4, codec.segments)
    federation = helpers.Federation(agreed)
    federation.words = lambda client: codec.encode(upload(client))
    by_protocol = codec.decode(federation.run())
    simulated = sum_by(encoded_reducers(Key(3), ENCODING)(REDUCTIONS))
    assert all(map(torch.equal, trees.leaves(by_protocol), trees.leaves(simulated)))


def test_secrets_do_not_change_the_sum():
    one, other = (sum_by(encoded_reducers(Key(seed), ENCODING)(REDUCTIONS)) for seed in (1, 2))
    assert all(map(torch.equal, trees.leaves(one), trees.leaves(other)))


def test_an_upload_with_a_value_beyond_the_limit_is_refused_by_name():
    reducer = encoded_reducers(Key(0), SumEncoding(SumRange(18.5, 2.0**-20), CLIENTS))(REDUCTIONS)
    refused = reducer.add(list(range(CLIENTS)), stacked(range(CLIENTS)))
    assert refused
    for client, why in refused.items():
        assert max(leaf.abs().max() for leaf in trees.leaves(upload(client))) > 18.5
        assert re.fullmatch(r"upload: delta: a value of \S+ is beyond the limit of 18\.5 \(.*\)", why)
    others = [client for client in range(CLIENTS) if client not in refused]
    assert reducer.aggregate()["weight"] == sum(upload(client)["weight"] for client in others)


def test_measures_are_added_beside_the_secure_sum():
    """They may be beyond the limit, and their bytes are as they are."""
    reductions = {**REDUCTIONS, "measure": "sum"}
    reducer = encoded_reducers(Key(0), ENCODING, REDUCTIONS)(reductions)
    for client in range(CLIENTS):
        measure = {"measure": torch.tensor([1e9 * client])}
        assert reducer.add([client], stacked([client]) | measure) == {}
    total = reducer.aggregate()
    assert total["measure"] == 1e10


def test_a_round_of_fedavg_under_a_secure_sum():
    """An engine with the secure reducer: clients train; the aggregate is the plain one up to the bound."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(33, 4, generator=generator), torch.arange(33) % 2
    clients = ClientData(x, y, [list(range(10)), list(range(10, 21)), list(range(21, 33))], 2)
    task = classification(lambda: torch.nn.Sequential(torch.nn.Linear(4, 2)), (4,))
    algorithm = fedavg(task, LocalSGD(lr=0.1))
    weights = task.init(Key(0))
    state = algorithm.init(weights, {"clients": torch.tensor(3.0)}, Key(0))
    message = algorithm.address(algorithm.send(state), 0)
    tasks = [
        ClientTask(k, message, algorithm.memory(weights), Batches(4, 5, 1, Key(k)), Key(k)) for k in range(3)
    ]
    plain = sequential(clients).run(algorithm.client, tasks)
    reducers = encoded_reducers(Key(0), SumEncoding(NUMBERS, 3))
    secure = sequential(clients, reducers).run(algorithm.client, tasks)
    assert secure.aggregate["weight"] == plain.aggregate["weight"] == 33.0
    assert secure.uplink_bytes == {name: 2 * sent for name, sent in plain.uplink_bytes.items()}  # 64 bits
    one = {"weight": plain.aggregate["weight"], "delta": plain.aggregate["delta"]}
    bound = UploadCodec(one, 3, NUMBERS).fixed_point.error_bound(3)
    secure_delta, delta = (trees.leaves(result.aggregate["delta"]) for result in (secure, plain))
    assert max(leaf.abs().max() for leaf in delta) > 0.1
    for a, b in zip(secure_delta, delta, strict=True):
        assert ((a - b).abs() <= bound + 1e-5).all()
