"""Secure sums over Flower, in one process: the bits of the simulation, and clients that fail in a phase."""

import dataclasses
import json
import re
import stat

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from support.dropping import Dropping
from support.parameters import mostly_slow

pytest.importorskip("flwr")

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.engines.flower.in_process import InProcessFlower, InProcessGrid
from genfl.engines.flower.member import GROUP_KEY, STATE, SumMember
from genfl.engines.flower.records import RefusedMessage
from genfl.engines.flower.sum_messages import SumName, SumRequest, read_sum_request, sum_request_records
from genfl.engines.flower.work import CANNOT
from genfl.engines.in_process import sequential
from genfl.engines.protocol import InfoOnly
from genfl.engines.reducers import SumEncoding, encoded_reducers
from genfl.errors import GenflError
from genfl.labels.discovery import discover
from genfl.privacy.secure_sum import (
    Advertisement,
    Confirmation,
    Delivery,
    MaskedInput,
    NodeSigner,
    NodeVerifier,
    Reveal,
    SealedShares,
    Segment,
    SumParameters,
    end_phase,
    from_bytes,
    open_sum,
    receive,
    to_bytes,
    unmask,
)
from genfl.privacy.secure_sum.fixed_point import FixedPoint, SumRange
from genfl.rng import Key

from .test_in_process import Faulty, assert_same, build, clients, flower, play, spoil

pytestmark = pytest.mark.slow

__all__ = ["clients"]

NUMBERS = SumRange(2.0**20, 2.0**-20)
PHASES = ["keys", "shares", "train", "confirm", "reveal"]


def secure(clients, algorithm, folder, threshold=None, **options):
    return flower(clients, algorithm, folder, secure=(NUMBERS, threshold), **options)


def simulated(clients, cohort=3):
    return sequential(clients, encoded_reducers(Key(0), SumEncoding(NUMBERS, cohort)))


def phase_of(message):
    """The phase of a secure sum that a message belongs to; None for other actions than training."""
    about = message.content["about"]
    return about.get("phase", "train") if about["action"] == "train" else None


def grid_of(fault):
    """A Grid whose nodes fail as ``fault(phase, round, client)`` says."""

    asked = []

    class Failing(Faulty):
        @staticmethod
        def fault(message, client):
            phase, number = phase_of(message), message.content["about"]["round"]
            asked.append((phase, number, client))
            return fault(phase, number, client) if phase else None

    Failing.asked = asked
    return Failing


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("fedavg", "scaffold") else pytest.param(name, marks=pytest.mark.slow)
        for name in ALGORITHMS
        if set(build(name).client.reductions.values()) == {"sum"}
    ],
)
def test_every_algorithm_has_the_bits_of_the_simulation(clients, tmp_path, name):
    algorithm = build(name)
    assert_same(
        play(clients, algorithm, secure(clients, algorithm, tmp_path)),
        play(clients, algorithm, simulated(clients)),
    )


def test_a_federation_differs_from_plain_sums_by_the_fixed_point_error_alone(clients, tmp_path):
    """One round, so that training does not enlarge the difference."""
    algorithm = build("fedavg")
    one = play(clients, algorithm, secure(clients, algorithm, tmp_path), rounds=1, cohort=5)
    other = play(clients, algorithm, sequential(clients), rounds=1, cohort=5)
    bound = FixedPoint.fitting(NUMBERS.limit, 5, NUMBERS.precision).error_bound(5)
    for a, b in zip(trees.leaves(one.weights), trees.leaves(other.weights), strict=True):
        assert ((a - b).abs() <= bound + 4 * torch.finfo(torch.float32).eps * b.abs()).all()


def test_an_algorithm_whose_server_sees_single_uploads_is_refused(clients):
    with pytest.raises(ValueError, match="a secure sum cannot carry uploads the server must see one by one"):
        play(clients, build("feddf"), simulated(clients))


@pytest.mark.parametrize("when", ["killed before", "killed after"])
@pytest.mark.parametrize("phase", mostly_slow(PHASES, "train"))
def test_a_client_that_drops_in_a_phase_is_left_out_or_counted(clients, tmp_path, phase, when):
    """Once its words are in the sum, a client counts, though it is not heard of any more."""
    counted = phase in ("confirm", "reveal")
    grid = grid_of(lambda at, number, client: when if (at, number, client) == (phase, 2, 1) else None)
    algorithm = build("scaffold")
    engine = secure(clients, algorithm, tmp_path, grid=grid, deadline=0.3)
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    without = Dropping(simulated(clients, 5), set() if counted else {(2, 1)})
    assert_same(trace, play(clients, algorithm, without, rounds=3, cohort=5), unequal={"samples"})
    assert [row["refused"] for row in trace.rounds] == [0, 0 if counted else 1, 0]


@pytest.mark.slow
def test_a_round_with_too_few_clients_is_done_again(clients, tmp_path):
    """Two of five are lost in the first try. Nothing was opened, so another sum takes all of them."""
    tries = []

    def fault(phase, number, client):
        if phase == "keys" and client == 0:
            tries.append(number)
        return "killed before" if number == 2 and tries.count(2) == 1 and client > 2 else None

    algorithm = build("fedavg")
    engine = secure(clients, algorithm, tmp_path, grid=grid_of(fault), deadline=0.3)
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    assert_same(trace, play(clients, algorithm, simulated(clients, 5), rounds=3, cohort=5))
    assert tries == [1, 2, 2, 3]


@pytest.mark.slow
def test_a_sum_that_was_being_opened_is_opened_of_the_same_clients_again(clients, tmp_path):
    """Client 4 drops before its upload, and three others when they reveal. It must not be in the next sum."""
    tries = []

    def fault(phase, number, client):
        if phase == "keys" and client == 0:
            tries.append(number)
        first = number == 2 and tries.count(2) == 1
        lost = (phase == "train" and client == 4) or (phase == "reveal" and client in (1, 2, 3))
        return "killed after" if first and lost else None

    algorithm, grid = build("fedavg"), grid_of(fault)
    engine = secure(clients, algorithm, tmp_path, threshold=3, grid=grid, deadline=0.3)
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    assert [row["refused"] for row in trace.rounds] == [0, 1, 0]
    assert grid.asked.count(("keys", 2, 4)) == 1
    assert grid.asked.count(("keys", 2, 0)) == 2


@pytest.mark.slow
def test_an_opened_sum_is_not_asked_for_again_after_an_interruption(clients, tmp_path):
    """The server was killed between the sum of round 3 and its checkpoint, and one client is gone since."""
    algorithm, checkpoint = build("scaffold"), tmp_path / "checkpoint.safetensors"
    gone, grid = [], grid_of(lambda phase, number, client: "killed before" if client in gone else None)

    def start(**options):
        engine = secure(
            clients, algorithm, tmp_path / "nodes", grid=grid, deadline=0.3, checkpoint_every=2, threshold=3
        )
        return play(clients, algorithm, engine, rounds=4, cohort=5, every=2, checkpoint=checkpoint, **options)

    class Killed(Exception):
        pass

    def kill(rounds, evaluations):
        if len(rounds) == 3:
            raise Killed

    with pytest.raises(Killed):
        start(on_history=kill)
    asked = len(grid.asked)
    trace = start()
    assert {number for phase, number, _ in grid.asked[asked:] if phase} == {4}
    assert_same(trace, play(clients, algorithm, simulated(clients, 5), rounds=4, cohort=5))
    engine = secure(clients, algorithm, tmp_path / "nodes")
    kept = {file.name for file in (tmp_path / "nodes").glob("opened-*")}
    assert kept == {"opened-3.safetensors", "opened-4.safetensors"}
    engine.end()
    assert not list((tmp_path / "nodes").glob("opened-*"))


@pytest.mark.parametrize("phase", mostly_slow(PHASES, "train"))
def test_an_altered_message_of_a_client_is_refused_by_name(clients, tmp_path, caplog, phase):
    class Altered(Faulty):
        def deliver(self, message):
            reply = super().deliver(message)
            about = reply.content["about"]
            if phase_of(message) == phase and about["round"] == 2 and about["client"] == 2:
                if phase == "train":
                    data = reply.content["sum"]["data"]
                    words = data.numpy().copy()
                    words[7] ^= 1  # of the digest
                    reply.content["sum"]["data"] = type(data)(words)
                else:
                    payload = bytearray(about["payload"])
                    payload[-1] ^= 1
                    about["payload"] = bytes(payload)
            return reply

    algorithm = build("fedavg")
    engine = secure(clients, algorithm, tmp_path, threshold=3, grid=Altered, deadline=0.3)
    trace = play(clients, algorithm, engine, rounds=3, cohort=5)
    left_out = {"keys": 2, "shares": 4, "train": 2}.get(phase)  # the altered share was for client 4
    assert [row["refused"] for row in trace.rounds] == [0, 0 if left_out is None else 1, 0]
    if left_out is not None:
        assert f"round 2: the upload of client {left_out} was refused: secure sum: " in caplog.text


def test_nothing_of_one_client_travels_in_the_clear(clients, tmp_path):
    replies = []

    class Watching(Faulty):
        def deliver(self, message):
            reply = super().deliver(message)
            replies.append((phase_of(message), reply.content))
            return reply

    algorithm = build("scaffold")
    play(clients, algorithm, secure(clients, algorithm, tmp_path, grid=Watching), rounds=1, cohort=3)
    masked = [content for phase, content in replies if phase == "train"]
    assert len(masked) == 3
    for content in masked:
        assert content["about"]["samples"] == 0
        assert content["about"]["tree_layout"] == "{}"
        assert len(content["tree"]["data"].numpy()) == 0
    census = [content for phase, content in replies if "sum" in content and phase is None]
    assert len(census) == len(clients)


def test_secrets_are_readable_by_this_user_alone_and_gone_at_the_end(clients, tmp_path):
    modes = set()

    class Looking(Faulty):
        def deliver(self, message):
            reply = super().deliver(message)
            modes.update(stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob(STATE))
            return reply

    algorithm = build("fedavg")
    play(clients, algorithm, secure(clients, algorithm, tmp_path, grid=Looking), rounds=1, cohort=5)
    assert modes == {0o600}
    assert not list(tmp_path.rglob(STATE))


@pytest.mark.slow
def test_values_that_a_sum_cannot_carry_stay_at_the_client(clients, tmp_path, caplog):
    spoiled = spoil(clients, slice(0, 5))
    algorithm = build("fedavg")
    play(spoiled, algorithm, secure(clients=spoiled, algorithm=algorithm, folder=tmp_path), cohort=5)
    assert f"round 1: the upload of client 0 was refused: {CANNOT}" in caplog.text
    assert "upload: it holds NaN" in caplog.text  # in the client's log, which is this one here
    engine = flower(clients, algorithm, tmp_path / "small", secure=(SumRange(0.5, 2.0**-20), None))
    with pytest.raises(GenflError, match=f"round 1 with a valid upload.*{re.escape(CANNOT)}") as refused:
        play(clients, algorithm, engine)
    assert "beyond" not in str(refused.value)
    assert "refused: upload: a value of 30 is beyond the limit of 0.5" in caplog.text


@pytest.mark.parametrize("action", ["labels", "census"])
@pytest.mark.parametrize("asked, threshold", [((0, 1), 2), ((0, 1, 2), 2)])
def test_a_client_takes_part_in_sums_of_labels_and_census_with_all_others_alone(
    tmp_path, action, asked, threshold
):
    """Else the difference of two sums would tell the names of one client."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(3)]
    peers = {number: NodeVerifier(key.public_key()) for number, key in enumerate(keys)}
    member, run = SumMember(tmp_path, 0, NodeSigner(keys[0]), peers), "ab" * 16

    def ask(members, least):
        session = SumName(run, action, 1, "content").session("x")
        parameters = SumParameters(session, members, least, (Segment(32, 4),))
        return member.answer(SumRequest(run, action, 1, 0, "keys", to_bytes(parameters)))

    assert from_bytes(ask((0, 1, 2), 3), Advertisement).client == 0
    with pytest.raises(RefusedMessage, match=f"sum: {action} takes all 3 clients of --peers"):
        ask(asked, threshold)


def test_a_key_of_all_clients_needs_all_of_them(tmp_path):
    names = InfoOnly([{"label_names": []}] * 3)

    class Late(Faulty):
        @staticmethod
        def fault(message, client):
            return "killed after" if client == 2 else None

    for grid, why in (
        (InProcessGrid, None),
        (Late, "labels.min_holders: every client is needed, and client 2"),
    ):
        engine = InProcessFlower(names, 3, tmp_path, secure=(NUMBERS, None), grid=grid, deadline=0.1)
        engine.clients.run.begin()
        if why is None:
            engine.agree_on_key()
            keys = {file.read_bytes() for file in tmp_path.rglob(GROUP_KEY)}
            assert len(keys) == 1
        else:
            with pytest.raises(GenflError, match=why):
                engine.agree_on_key()


def test_label_discovery_needs_every_client(clients, tmp_path):
    names = [("cat", "dog"), ("dog",), ("Tiger", "cat")]

    def engines(**options):
        return lambda known, key: secure_labels(known, tmp_path, **options)

    def secure_labels(known, folder, **options):
        from genfl.engines.flower.in_process import InProcessFlower

        engine = InProcessFlower(known, 3, folder, action="labels", secure=(NUMBERS, None), **options)
        engine.clients.run.begin()
        return engine

    found = discover(names, engines(), Key(0))
    assert found.holders == {"Tiger": 1, "cat": 2, "dog": 2}
    late = type(
        "Late", (Faulty,), {"fault": staticmethod(lambda m, client: "killed after" if client == 2 else None)}
    )
    with pytest.raises(GenflError, match=r"labels: every client is needed, and client 2: it did not answer"):
        discover(names, engines(grid=late, deadline=0.1), Key(0))


# --- a server that does not follow the protocol


RUN = "ab" * 16


class Clients:
    """Members of secure sums, and a server that asks them as it likes."""

    def __init__(self, folder, count=5):
        keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(count)]
        self.peers = {number: NodeVerifier(key.public_key()) for number, key in enumerate(keys)}
        self.members = [
            SumMember(folder / str(n), n, NodeSigner(key), self.peers) for n, key in enumerate(keys)
        ]
        self.x = {n: np.array([10**n], np.uint64) for n in range(count)}

    def parameters(self, name, clients, threshold=3, nonce="1", **changes):
        session = name.session(nonce)
        return SumParameters(session, tuple(clients), threshold, (Segment(64, 1),), **changes)

    def ask(self, name, client, phase, message):
        request = SumRequest(*name[:3], client, phase, to_bytes(message))
        return self.members[client].answer(read_sum_request(sum_request_records(request)))

    def mask(self, name, client, message, words_of=None):
        words_of = words_of or (lambda parameters: (self.x[client],))
        return self.members[client].mask(name, to_bytes(message), words_of)

    def until(self, phase, parameters, name):
        """The server's state and messages when a phase is due."""
        state, messages = open_sum(parameters), dict.fromkeys(parameters.clients, parameters)
        for due, kind in (
            ("keys", Advertisement),
            ("shares", SealedShares),
            (None, MaskedInput),
            ("confirm", Confirmation),
        ):
            if due == phase:
                return state, messages
            for client, message in messages.items():
                answer = self.ask(name, client, due, message) if due else self.mask(name, client, message)
                state = receive(state, from_bytes(answer, kind), self.peers)
            state, messages = end_phase(state)
        return state, messages

    def sum(self, parameters, name):
        state, messages = self.until("reveal", parameters, name)
        for client, message in messages.items():
            state = receive(state, from_bytes(self.ask(name, client, "reveal", message), Reveal), self.peers)
        return int(unmask(state)[0][0])


NAME = SumName(RUN, "train", 1, "content")


def test_a_round_is_opened_once(tmp_path):
    clients = Clients(tmp_path)
    everybody, fewer = range(5), range(4)
    assert clients.sum(clients.parameters(NAME, everybody), NAME) == 11111
    assert clients.sum(clients.parameters(NAME, everybody, nonce="2"), NAME) == 11111  # the same again
    for name, members in ((NAME, fewer), (NAME._replace(content="other"), everybody)):
        with pytest.raises(RefusedMessage, match="sum: round 1 was opened already, with other clients or"):
            clients.sum(clients.parameters(name, members, nonce="3"), name)


@pytest.mark.parametrize("name", [NAME._replace(action="train/1/x", round=2), NAME._replace(action="other")])
def test_an_action_that_is_none_is_refused(tmp_path, name):
    clients = Clients(tmp_path)
    with pytest.raises(RefusedMessage, match="action: there is no"):
        clients.sum(clients.parameters(name, range(5)), name)


def test_a_sum_under_the_name_of_another_is_refused(tmp_path):
    clients = Clients(tmp_path)
    parameters, other = clients.parameters(NAME, range(5)), NAME._replace(round=2)
    with pytest.raises(RefusedMessage, match="sum: its name is that of another round"):
        clients.ask(other, 0, "keys", parameters)
    _, messages = clients.until("shares", parameters, NAME)
    with pytest.raises(RefusedMessage, match="sum: the one that is under way is of another round"):
        clients.ask(other, 0, "shares", messages[0])
    _, messages = clients.until(None, parameters, NAME)
    for wrong in (other, NAME._replace(content="other")):
        with pytest.raises(RefusedMessage, match="sum: the one that is under way is of something else"):
            clients.mask(wrong, 0, messages[0])


def test_few_neighbours_are_refused(tmp_path):
    clients = Clients(tmp_path)
    with pytest.raises(RefusedMessage, match="sum: 2 neighbours, but it is 100"):
        clients.sum(clients.parameters(NAME, range(5), neighbours=2), NAME)


def test_a_state_gives_one_masked_upload(tmp_path):
    """Another message of the same sum comes while the client trains: one of the two must not be answered."""
    clients = Clients(tmp_path)
    _, messages = clients.until(None, clients.parameters(NAME, range(5)), NAME)
    less = Delivery(messages[2].digest, 2, messages[2].shares[:3])

    def training(parameters):
        clients.mask(NAME, 2, less)
        return (clients.x[2],)

    with pytest.raises(RefusedMessage, match="sum: the client's state has changed since it began to work"):
        clients.mask(NAME, 2, messages[2], training)
    with pytest.raises(RefusedMessage, match="sum: the client's upload is not due"):
        clients.mask(NAME, 2, messages[2])


@pytest.mark.parametrize("change", ["batches", "settings", "message"])
def test_clients_that_are_asked_for_other_things_make_no_sum(clients, tmp_path, change):
    """If the others added zeros, the sum would be the upload of client 0."""

    class Unequal(Faulty):
        def deliver(self, message):
            about = message.content["about"]
            if phase_of(message) == "train" and about["client"] != 0:
                if change == "batches":
                    batches = json.loads(about["batches"])
                    batches[1], batches[2] = 1, 1
                    about["batches"] = json.dumps(batches)
                elif change == "settings":
                    about["settings"] = json.dumps({"config": "another"})
                else:
                    data = message.content["tree"]["data"]
                    message.content["tree"]["data"] = type(data)(np.zeros_like(data.numpy()))
            return super().deliver(message)

    algorithm = build("fedavg")
    engine = secure(clients, algorithm, tmp_path, threshold=3, grid=Unequal, deadline=0.3)
    with pytest.raises(
        GenflError, match=r"1 of 5 clients .* sum: the one that is under way is of something else"
    ):
        play(clients, algorithm, engine, cohort=5)


@pytest.mark.parametrize("late", mostly_slow([False, True], True))
def test_a_server_killed_while_a_sum_is_opened_goes_on_with_the_same_clients(clients, tmp_path, late):
    """Client 4 drops out of round 2. While its sum is opened, the server is killed. Client 4 comes back."""
    algorithm, killed = build("scaffold"), []

    def fault(phase, number, client):
        if number == 2 and not killed:
            if phase == "reveal" and client == 3:
                killed.append(True)
                raise KeyboardInterrupt
            return "killed before" if phase == "train" and client == 4 else None
        if late and number == 2 and phase == "train" and client == 3 and len(killed) < 2:
            killed.append(True)  # in the first try after the kill
            return "killed before"
        return None

    def start():
        engine = secure(
            clients, algorithm, tmp_path / "nodes", threshold=3, grid=grid_of(fault), deadline=0.3
        )
        return play(
            clients, algorithm, engine, rounds=3, cohort=5, checkpoint=tmp_path / "checkpoint.safetensors"
        )

    with pytest.raises(KeyboardInterrupt):
        start()
    trace = start()
    assert [row["refused"] for row in trace.rounds] == [0, 1, 0]
    without = Dropping(simulated(clients, 5), {(2, 4)})
    expected = play(clients, algorithm, without, rounds=3, cohort=5)
    assert_same(trace, expected, unequal={"samples"})


def test_a_false_share_does_not_stop_a_sum_that_others_can_open(tmp_path):
    clients = Clients(tmp_path)
    state, messages = clients.until("reveal", clients.parameters(NAME, range(5)), NAME)
    for client, message in messages.items():
        answer = from_bytes(clients.ask(NAME, client, "reveal", message), Reveal)
        if client == 4:
            (owner, share), *rest = answer.self_shares
            answer = dataclasses.replace(answer, self_shares=((owner, share ^ 1), *rest))
        state = receive(state, answer, clients.peers)
    assert int(unmask(state)[0][0]) == 11111
