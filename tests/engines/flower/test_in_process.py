"""The engine over Flower, in one process: the bits of sequential, faults of clients, and its memory."""

import io
import itertools
import json
import time
from functools import partial

import numpy as np
import pytest
import torch
from support.dropping import Dropping
from support.methods import few_steps
from support.parameters import mostly_slow
from support.small_disk import fill_disk, mount_small_disk, unmount

pytest.importorskip("flwr")

from flwr.app import Array, Error, Message

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.evaluation import evaluate_clients
from genfl.engines.flower.in_process import InProcessFlower, InProcessGrid
from genfl.engines.flower.wire import _tree, pack
from genfl.engines.in_process import sequential
from genfl.engines.reducers import PlainReducer, SumEncoding, encoded_reducers
from genfl.errors import GenflError
from genfl.labels.discovery import discover
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP, Stack
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES = (4,), 3


def model():
    """Has what differs between clients: batch norm and dropout."""
    body = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)]
    return Stack(torch.nn.Sequential(*body), torch.nn.Linear(8, CLASSES))


TASK = classification(model, SHAPE)


@pytest.fixture(scope="module")
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, *SHAPE, generator=rng), torch.randint(CLASSES, (70,), generator=rng)
    ends = [0, 5, 20, 24, 40, 70]
    return ClientData(x, y, [torch.arange(70)[a:b].numpy() for a, b in itertools.pairwise(ends)], CLASSES)


def build(name):
    resources = {
        "cohort": 3,
        "shared": torch.linspace(-1, 1, 48).reshape(12, 4),
        "unlabelled": torch.linspace(-1, 1, 48).reshape(12, 4),
        "client_tasks": {str(w): classification(partial(MLP, SHAPE, CLASSES, w), SHAPE) for w in (4, 6)},
    }
    return ALGORITHMS[name].build(TASK, LocalSGD(0.1, momentum=0.9), resources, **few_steps(name))


def play(clients, algorithm, engine, rounds=4, cohort=3, **options):
    census = getattr(engine, "census", None)
    return federate(
        algorithm,
        TASK.init(Key(1)),
        clients,
        engine,
        Schedule(rounds, cohort, batch_size=4, checkpoint_every=options.pop("every", 1)),
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        take_census=census,
        **options,
    )


def flower(clients, algorithm, folder, **options):
    initial = algorithm.memory(TASK.init(Key(1)))
    return InProcessFlower(clients, len(clients), folder, initial, **options)


def assert_same(a, b, unequal=()):
    assert a.evaluations == b.evaluations
    for one, other in zip(a.rounds, b.rounds, strict=True):
        assert {k: v for k, v in one.items() if k not in unequal} == {
            k: v for k, v in other.items() if k not in unequal
        }
    assert all(
        torch.equal(x, y) for x, y in zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True)
    )


FEW = ("fedavg", "scaffold", "feddyn", "fedadam", "fedgen", "fedet")
"""Methods whose clients differ: with memories, with addressed messages, with listed uploads."""


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_every_algorithm_gives_the_bits_of_sequential(clients, tmp_path, name):
    algorithm = build(name)
    assert_same(
        play(clients, algorithm, flower(clients, algorithm, tmp_path)),
        play(clients, algorithm, sequential(clients)),
    )


def test_mixed_and_filtered_samples_give_the_bits_of_sequential(clients, tmp_path):
    """FedGC: generated samples beside private ones, chosen by the global model."""
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, *SHAPE, generator=rng), torch.randint(CLASSES, (40,), generator=rng)
    rows = [torch.arange(40)[a : a + 8].numpy() for a in range(0, 40, 8)]
    mixed = clients.with_part("generated", x, y, rows)
    algorithm = filtered(build("fedavg"), TASK, SampleFilter(0.5, by_class=False), part=1)
    alone = play(mixed, algorithm, sequential(mixed))
    assert_same(play(mixed, algorithm, flower(mixed, algorithm, tmp_path)), alone)


class Faulty(InProcessGrid):
    """A Grid whose nodes fail as `fault` says: ``(message, client) -> what happens``."""

    fault = staticmethod(lambda message, client: None)

    def deliver(self, message):
        client = self.contexts[message.metadata.dst_node_id].node_config["client"]
        kind = self.fault(message, client)
        if kind == "killed before":
            return None
        reply = super().deliver(message)
        return None if kind == "killed after" else reply


def faulty(fault):
    return type("Faulty", (Faulty,), {"fault": staticmethod(fault)})


def round_of(message):
    return message.content["about"]["round"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["killed before", "killed after"])
def test_a_lost_client_is_dropped_and_keeps_its_memory(clients, tmp_path, when):
    """A client that did the work but was not heard must not remember it."""
    lost = {(2, 1), (3, 4)}
    grid = faulty(lambda message, client: when if (round_of(message), client) in lost else None)
    algorithm = build("scaffold")
    engine = flower(clients, algorithm, tmp_path, grid=grid, deadline=0.05)
    trace = play(clients, algorithm, engine, rounds=5, cohort=5)
    expected = play(clients, algorithm, Dropping(sequential(clients), lost), rounds=5, cohort=5)
    assert_same(trace, expected, unequal={"samples"})  # lost clients do not say how many
    assert [row["refused"] for row in trace.rounds] == [0, 1, 1, 0, 0]


@pytest.mark.slow
def test_an_interrupted_federation_resumes_with_the_same_bits(clients, tmp_path):
    """The server goes back behind rounds that clients have finished: they go back, too."""
    algorithm, checkpoint = build("scaffold"), tmp_path / "checkpoint.safetensors"

    def start(**options):
        engine = flower(clients, algorithm, tmp_path / "nodes", checkpoint_every=2)
        return play(clients, algorithm, engine, rounds=6, every=2, checkpoint=checkpoint, **options)

    class Killed(Exception):
        pass

    def kill(rounds, evaluations):
        if len(rounds) == 5:
            raise Killed

    with pytest.raises(Killed):
        start(on_history=kill)
    assert_same(start(), play(clients, algorithm, sequential(clients), rounds=6, every=2))
    files = [len(list(folder.rglob("round-*"))) for folder in (tmp_path / "nodes").iterdir()]
    assert max(files) <= 4  # two rounds between checkpoints, the one before, and the new one


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after, checkpoint, killed", [(1, 5, 3, 4), (5, 3, 5, 7)], ids=["1 to 5", "5 to 3"]
)
def test_a_resume_with_other_checkpoints_has_the_same_bits(
    clients, tmp_path, before, after, checkpoint, killed
):
    """Clients know of the last checkpoint, which need not be at a multiple of the new `checkpoint_every`."""
    algorithm, file = build("scaffold"), tmp_path / "checkpoint.safetensors"

    def start(every, **options):
        engine = flower(clients, algorithm, tmp_path / "nodes", checkpoint_every=every)
        return play(clients, algorithm, engine, rounds=8, every=every, checkpoint=file, **options)

    class Killed(Exception):
        pass

    def kill(rounds, evaluations):
        if len(rounds) == killed:
            raise Killed

    resumed = []
    with pytest.raises(Killed):
        start(before, on_history=kill)
    trace = start(after, on_round=resumed.append)
    assert resumed[0] == checkpoint
    assert [row["refused"] for row in trace.rounds] == [0] * 8
    assert_same(trace, play(clients, algorithm, sequential(clients), rounds=8))


def test_a_lost_memory_is_refused_by_name(clients, tmp_path, caplog):
    algorithm = build("scaffold")

    def lose(rounds, evaluations):
        if len(rounds) == 2:
            next((tmp_path / "client-3").rglob("round-2.safetensors")).unlink()

    engine = flower(clients, algorithm, tmp_path)
    trace = play(clients, algorithm, engine, cohort=5, on_history=lose)
    assert [row["refused"] for row in trace.rounds] == [0, 0, 1, 1]
    assert "round 3: the upload of client 3 was refused: memory: that of round 2 is lost" in caplog.text


@pytest.mark.parametrize(
    "change",
    mostly_slow(["nan", "shape", "run", "round", "client", "layout", "bytes", "format"], "nan", "run"),
)
def test_a_wrong_upload_is_refused_by_name(clients, tmp_path, caplog, change):
    """Replies are changed on the way, after the client's own checks."""
    names = {
        "nan": "tree: it holds NaN",
        "shape": "shape (8,) where (3,) is expected",
        "run": "run: the reply is to fedcba98",
        "round": "round: the reply is to 1, not to 2",
        "client": "client: the reply is to 4, not to 2",
        "layout": "tree_layout: it is none of a tree",
        "bytes": "tree: 3 bytes, but its layout has",
        "format": "format: version 99, but 1 is expected",
    }

    class Changed(Faulty):
        def deliver(self, message):
            reply = super().deliver(message)
            about = reply.content["about"]
            if (about["action"], about["round"], about["client"]) == ("train", 2, 2):
                wrong(reply.content, change)
            return reply

    algorithm = build("fedavg")
    trace = play(clients, algorithm, flower(clients, algorithm, tmp_path, grid=Changed), cohort=5)
    assert [row["refused"] for row in trace.rounds] == [0, 1, 0, 0]
    assert f"round 2: the upload of client 2 was refused: {names[change]}" in caplog.text


def wrong(records, change):
    about = records["about"]
    upload = _tree(records, about)
    if change == "nan":
        next(leaf for leaf in trees.leaves(upload) if leaf.is_floating_point())[...] = float("nan")
    elif change == "shape":
        upload = trees.map(lambda leaf: leaf.new_zeros(8) if leaf.shape == (3,) else leaf, upload)
    elif change in ("round", "client"):
        about[change] = {"round": 1, "client": 4}[change]
    elif change == "run":
        about["run"] = "fedcba98" * 4
    elif change == "layout":
        about["tree_layout"] = '{"weights": ["object", 3]}'
    elif change == "format":
        about["format"] = 99
    if change in ("nan", "shape"):
        packed = pack(upload)
        about["tree_layout"], records["tree"]["data"] = packed.layout, packed.array
    if change == "bytes":
        records["tree"]["data"] = Array(np.zeros(3, np.uint8))


def npy(shape):
    """Return NumPy's header of an array of bytes, and no content."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


CRAFTED = {
    "no bytes": ("data", b"", "cannot be read (EOFError"),
    "no zip": ("data", b"PK\x03\x04" + 60 * b"x", "cannot be read (BadZipFile"),
    "an empty zip": ("data", b"PK\x05\x06" + 18 * b"\0", "cannot be read (AttributeError"),
    "a pickle": ("data", b"\x80\x04N.", "cannot be read (ValueError"),
    "a huge shape": ("data", npy((2**60,)), "cannot be read ("),
    "an overflowing shape": ("data", npy((2**70,)), "cannot be read ("),
    "no content": ("data", npy((12,)), "cannot be read (ValueError"),
    "many bytes": ("data", npy((10**6,)) + bytes(10**6), "1000128 bytes, but its layout has"),
    "another kind": ("stype", "torch", "cannot be read (TypeError"),
    "an overflowing layout": ("layout", '["float32", 0, 1180591620717411303424]', "cannot be read ("),
    "many dimensions": ("layout", json.dumps(["uint8", 0, *[1] * 32]), "tree_layout: it is none of a tree ("),
    "a deep layout": ("layout", '{"a":' * 300 + "{}" + "}" * 300, "it is deeper than 32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind, content, why", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_upload_does_not_stop_the_server(clients, tmp_path, caplog, kind, content, why):
    def craft(asked, records):
        if asked[-1] == ("train", 2, 2):
            array = records["tree"]["data"]
            if kind == "layout":
                records["about"]["tree_layout"], array = content, Array(np.zeros(0, np.uint8))
            elif kind == "stype":
                array = Array(array.dtype, array.shape, content, array.data)
            else:
                array = Array("uint8", (4,), array.stype, content)
            records["tree"]["data"] = array

    algorithm = build("fedavg")
    engine = flower(clients, algorithm, tmp_path, grid=recording([], craft))
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    assert [row["refused"] for row in trace.rounds] == [0, 1, 0]
    assert "round 2: the upload of client 2 was refused: tree" in caplog.text
    assert why in caplog.text


def test_a_client_refuses_to_send_what_is_not_finite(clients, tmp_path, caplog):
    spoiled = spoil(clients, 22)  # of client 2
    algorithm = build("scaffold")
    trace = play(spoiled, algorithm, flower(spoiled, algorithm, tmp_path), cohort=5)
    assert [row["refused"] for row in trace.rounds] == [1, 1, 1, 1]
    assert "client 2 was refused: upload: it holds NaN or infinite values" in caplog.text
    assert not list((tmp_path / "client-2").rglob("round-*"))
    assert_same(trace, play(spoiled, algorithm, sequential(spoiled), cohort=5))


def test_a_replayed_request_is_refused(clients, tmp_path):
    """A request of a round that is over changes nothing at the client, and gets no second upload."""
    recorded = []

    class Recording(Faulty):
        def deliver(self, message):
            recorded.append(message)
            return super().deliver(message)

    algorithm = build("scaffold")
    engine = flower(clients, algorithm, tmp_path, grid=Recording)
    play(clients, algorithm, engine, cohort=5)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for number, why in [(1, "round: 1 is over"), (3, "round: 3 is over")]:
        (message,) = [m for m in recorded[5:] if (round_of(m), m.content["about"]["client"]) == (number, 0)]
        about = Faulty.deliver(engine.clients.grid, message).content["about"]
        assert why in about["refused"]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == files


@pytest.mark.slow
def test_too_few_clients_are_asked_again_and_then_named(clients, tmp_path):
    algorithm, asked = build("fedavg"), []

    def fault(message, client):
        asked.append((message.content["about"]["action"], round_of(message), client))
        return "killed before" if asked[-1] == ("train", 2, 1) and len(asked) < limit else None

    limit = 13
    grid = faulty(fault)
    engine = flower(clients, algorithm, tmp_path / "a", grid=grid, deadline=0.05, quorum=5)
    trace = play(clients, algorithm, engine, cohort=5)
    assert asked.count(("train", 2, 1)) == 2  # the first time in vain
    assert asked.count(("train", 2, 0)) == 1  # those that answered are not asked again
    assert_same(trace, play(clients, algorithm, sequential(clients), cohort=5))

    asked.clear()
    limit = 1000
    engine = flower(clients, algorithm, tmp_path / "b", grid=grid, deadline=0.05, quorum=5)
    with pytest.raises(GenflError, match=r"federate.quorum: 4 of 5 clients answered in round 2.*client 1"):
        play(clients, algorithm, engine, cohort=5)
    assert asked.count(("train", 2, 1)) == 3


def spoil(clients, rows):
    """Return the clients with NaN in some rows: a client that holds one refuses to send its upload."""
    x = clients.x.clone()
    x[rows] = float("nan")
    parts = [part.numpy() for part in clients.rows.split(np.diff(clients.ends, prepend=0).tolist())]
    return ClientData(x, clients.y, parts, CLASSES)


def recording(asked, change=lambda asked, records: None):
    """Return a Grid that notes who is asked for what, and changes replies on the way."""

    class Recording(Faulty):
        def deliver(self, message):
            reply = super().deliver(message)
            about = reply.content["about"]
            asked.append((about["action"], about["round"], about["client"]))
            change(asked, reply.content)
            return reply

    return Recording


def test_a_federation_whose_clients_all_refuse_stops(clients, tmp_path):
    """No round is over without an upload that counts. Refusals are no answers, whatever the quorum."""
    spoiled, asked = spoil(clients, slice(None)), []
    engine = flower(spoiled, build("fedavg"), tmp_path, grid=recording(asked))
    why = (
        r"federate.quorum: 0 of 5 clients answered in round 1 with a valid upload, and 1 are needed"
        r" \(client 0: upload: it holds NaN or infinite values; client 1: upload.*; client 2"
    )
    with pytest.raises(GenflError, match=why):
        play(spoiled, build("fedavg"), engine, cohort=5)
    assert asked[5:] == 3 * [("train", 1, client) for client in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("change", mostly_slow(["nan", "shape", "bytes", "layout"], "nan"))
def test_a_refused_upload_does_not_count_for_the_quorum(clients, tmp_path, change):
    algorithm, asked, times = build("scaffold"), [], 1

    def spoiled(asked, records):
        if asked[-1] == ("train", 2, 1) and asked.count(asked[-1]) <= times:
            wrong(records, change)

    engine = flower(clients, algorithm, tmp_path / "a", grid=recording(asked, spoiled), quorum=5)
    trace = play(clients, algorithm, engine, cohort=5)
    assert [asked.count(("train", 2, client)) for client in range(5)] == [1, 2, 1, 1, 1]
    assert_same(trace, play(clients, algorithm, sequential(clients), cohort=5))

    asked.clear()
    times = 3
    engine = flower(clients, algorithm, tmp_path / "b", grid=recording(asked, spoiled), quorum=5)
    why = r"federate.quorum: 4 of 5 clients answered in round 2.*and 5 are needed \(client 1: "
    with pytest.raises(GenflError, match=why):
        play(clients, algorithm, engine, cohort=5)
    assert asked.count(("train", 2, 1)) == 3


def test_a_census_names_the_client_that_refuses(clients, tmp_path):
    def refuse(asked, records):
        if asked[-1][2] == 3:
            records["about"]["refused"] = "policy: not allowed"

    engine = flower(clients, build("fedavg"), tmp_path, grid=recording([], refuse))
    with pytest.raises(GenflError, match="census: every client is needed, and client 3: policy: not"):
        play(clients, build("fedavg"), engine)


def test_an_offline_client_and_a_failing_one_are_dropped_at_once(clients, tmp_path, caplog):
    class Away(Faulty):
        def get_node_ids(self):
            nodes = super().get_node_ids()
            return nodes if len(self._replies) or not self.gone else nodes[:-1]

        def deliver(self, message):
            if round_of(message) == 2:
                type(self).gone = True
                if message.metadata.dst_node_id == super().get_node_ids()[0]:
                    raise_away = Message(Error(code=2, reason="node unavailable"), reply_to=message)
                    return raise_away
            return super().deliver(message)

        gone = False

    algorithm = build("fedavg")
    engine = flower(clients, algorithm, tmp_path, grid=Away, deadline=30)
    began = time.monotonic()
    trace = play(clients, algorithm, engine, cohort=5)
    assert time.monotonic() - began < 15
    assert [row["refused"] for row in trace.rounds] == [0, 1, 1, 1]
    assert "round 2: the upload of client 0 was refused: its node failed: node unavailable" in caplog.text
    assert "round 3: the upload of client 4 was refused: it is offline" in caplog.text


@pytest.mark.parametrize("code", [3, 4])
def test_a_message_whose_time_is_over_is_told_as_the_deadline(clients, tmp_path, caplog, code):
    """A SuperLink answers with an error by itself, at the moment of the deadline."""

    class Expiring(Faulty):
        def deliver(self, message):
            if round_of(message) == 2 and message.metadata.dst_node_id == 1003:
                time.sleep(message.metadata.ttl)
                return Message(Error(code=code, reason="Message Unavailable"), reply_to=message)
            return super().deliver(message)

    algorithm = build("fedavg")
    engine = flower(clients, algorithm, tmp_path, grid=Expiring, deadline=0.3)
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    assert [row["refused"] for row in trace.rounds] == [0, 1, 0]
    why = "round 2: the upload of client 3 was refused: it did not answer within 0.3 s (federate.deadline)"
    assert why in caplog.text


def test_labels_are_discovered_over_flower(tmp_path):
    names = [["dog", "cat"], ["cat"], ["Maus", "cat", "dog"]]
    found = discover(names, lambda data, key: over_flower(data, tmp_path, 3), Key(0))
    assert found == discover(names, lambda data, key: sequential(data), Key(0))
    assert found.holders == {"Maus": 1, "cat": 3, "dog": 2}
    wide = discover(names, lambda data, key: over_flower(data, tmp_path, 3), Key(0), min_holders=2)
    assert wide.holders == {"cat": 3, "dog": 2}


def over_flower(data, folder, count):
    engine = InProcessFlower(data, count, folder, action="labels")
    engine.clients.run.begin()
    return engine


def test_models_are_tested_on_clients_over_flower(clients, tmp_path):
    weights = [TASK.init(Key(1))] * len(clients)
    engine = InProcessFlower(clients, len(clients), tmp_path, action="evaluate")
    engine.clients.run.begin()
    expected = evaluate_clients(TASK, weights, clients, sequential(clients))
    assert evaluate_clients(TASK, weights, clients, engine) == expected
    assert expected["samples"] == 70


def test_what_fails_at_a_client_stays_in_its_log(clients, tmp_path, caplog):
    """The text of an error may name private data. The server learns its type."""
    replies = []

    class Recording(Faulty):
        def deliver(self, message):
            replies.append(super().deliver(message).content["about"]["refused"])
            return super().deliver(message)

    class Private(ClientData):
        def batch(self, client, rows, key=None):
            raise ValueError("patient 17 is too large")

    clients.__class__, before = Private, clients.__class__
    try:
        engine = flower(clients, build("fedavg"), tmp_path, grid=Recording)
        with pytest.raises(GenflError, match="client 0: it failed with ValueError; the client's log"):
            play(clients, build("fedavg"), engine, rounds=1)
    finally:
        clients.__class__ = before
    assert replies[-1] == "it failed with ValueError; the client's log says why"
    assert "patient 17" in caplog.text


@pytest.fixture
def onto_small_disk():
    """Moves a folder onto a file system of 64 KiB: ``(folder) -> None``."""
    mounted = []

    def move(folder):
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if not mount_small_disk(folder):
            pytest.skip("this user may not mount a small disk")
        mounted.append(folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    yield move
    for folder in mounted:
        unmount(folder)


@pytest.mark.slow
@pytest.mark.parametrize("sums", [None, (SumRange(2.0**20, 2.0**-20), 3)], ids=["plain", "secure"])
def test_a_client_whose_disk_is_full_loses_nothing(clients, tmp_path, onto_small_disk, caplog, sums):
    """Full in rounds 2 and 3, and free again: its memory is that of round 1, as if it had been offline."""
    algorithm, folder = build("scaffold"), tmp_path / "client-1"

    def fill(rounds, evaluations):
        if len(rounds) == 1:
            onto_small_disk(folder)
            fill_disk(folder)
        elif len(rounds) == 3:
            (folder / "filler").unlink()

    engine = flower(clients, algorithm, tmp_path, secure=sums)
    trace = play(clients, algorithm, engine, rounds=5, cohort=5, on_history=fill)
    assert [row["refused"] for row in trace.rounds] == [0, 1, 1, 0, 0]
    assert "client 1 was refused: it failed with OSError; the client's log says why" in caplog.text
    reducer = encoded_reducers(Key(0), SumEncoding(sums[0], 5)) if sums else PlainReducer
    without = Dropping(sequential(clients, reducer), {(2, 1), (3, 1)})
    expected = play(clients, algorithm, without, rounds=5, cohort=5)
    assert_same(trace, expected, unequal={"samples"})
