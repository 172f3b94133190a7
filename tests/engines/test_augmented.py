"""Random changes of clients' inputs: the same whoever runs the client, and after whatever interruption."""

import itertools

import numpy as np
import pytest
import torch
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Schedule
from genfl.engines.in_process import sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask, run_client
from genfl.learning.augment import Augment
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.rng import Key
from genfl.simulation import federate

SHAPE = (1, 8, 8)
PRIVATE = Augment(crop=2, flip=True, noise=0.1)
GENERATED = Augment(crop=1, padding="reflect", cutout=3)


ROWS = [np.arange(a, b) for a, b in itertools.pairwise([0, 9, 30, 34, 60])]


def part(seed, augment):
    rng = Key(seed).torch()
    x, y = torch.randn(60, *SHAPE, generator=rng), torch.randint(3, (60,), generator=rng)
    return ClientData(x, y, ROWS, 3, augment=augment)


def mixed(private=PRIVATE, generated=GENERATED):
    made = part(1, None)
    return part(0, private).with_part("generated", made.x, made.y, ROWS, generated)


def run(clients, engine, rounds=4, **options):
    task = classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)
    return federate(
        ALGORITHMS["scaffold"].build(task, LocalSGD(0.1, momentum=0.9), {}),
        task.init(Key(1)),
        clients,
        engine,
        Schedule(rounds, 3, batch_size=8, local_epochs=2),
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        **options,
    )


def run_sequential(clients, **options):
    return run(clients, sequential(clients), **options)


def same(a, b):
    pairs = zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True)
    return a.evaluations == b.evaluations and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("workers", mostly_slow([1, 2, 5], 2))
def test_both_engines_give_the_same_bits(workers):
    clients = mixed()
    engine = WorkerPool(PerClientRunner(clients, accelerated=False), workers=workers)
    try:
        assert same(run(clients, engine), run_sequential(mixed()))
    finally:
        engine.close()


@pytest.mark.slow
def test_what_is_changed_matters_and_nothing_changed_is_as_without():
    plain = run_sequential(mixed(None, None))
    assert same(run_sequential(mixed(Augment(), Augment())), plain)
    traces = [
        plain,
        *(run_sequential(mixed(*on)) for on in ((PRIVATE, None), (None, GENERATED), (PRIVATE, GENERATED))),
    ]
    assert not any(same(a, b) for a, b in itertools.combinations(traces, 2))


class Interrupted(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_bit_identical(tmp_path, after):
    done = []

    def interrupt(rounds):
        done.append(rounds)
        if sum(done) == after:
            raise Interrupted

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        run_sequential(mixed(), checkpoint=checkpoint, on_round=interrupt)
    assert same(run_sequential(mixed(), checkpoint=checkpoint), run_sequential(mixed()))


def test_round_client_and_step_each_have_changes_of_their_own():
    """A client that holds one image sees it changed differently every time."""
    x = torch.rand(2, *SHAPE, generator=Key(3).torch())
    one = ClientData(x[:1].repeat(2, 1, 1, 1), torch.zeros(2).long(), [[0], [1]], 1, augment=PRIVATE)
    watch = ClientProgram(
        start=lambda message, memory, client_info, key: [],
        step=lambda carry, batch, key: [*carry, batch["x"]],
        finish=lambda carry: ({"seen": torch.cat(carry)}, {}),
        reductions={"seen": "each"},
    )

    def seen(client, number):
        key = Key(5).fold("client", number, client)
        return run_client(watch, one, ClientTask(client, {}, {}, Batches(1, 3, 1, key), key))[0]["seen"]

    found = torch.cat([seen(client, number) for client in (0, 1) for number in (1, 2)])
    assert len({image.numpy().tobytes() for image in found}) == 2 * 2 * 3
    assert torch.equal(seen(1, 2), seen(1, 2))
