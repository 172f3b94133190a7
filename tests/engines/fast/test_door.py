"""The door of the fast path: its switch, its guard, its bound, and the check that a recording still holds."""

import ast
import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.parameters import mostly_slow
from torch.overrides import _get_current_function_mode_stack

import genfl.engines.fast
from genfl.algorithms.base import ClientProgram
from genfl.data.clients import ClientData
from genfl.data.plans import Batches
from genfl.engines import fast
from genfl.engines.auto import engine
from genfl.engines.fast import operations, replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask
from genfl.engines.vmapped import VmapRunner
from genfl.errors import InputError
from genfl.rng import Key

SOURCES = Path(genfl.engines.fast.__file__).parent


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Record after five steps, and check again after twenty replays."""
    monkeypatch.delenv(fast.VARIABLE, raising=False)
    monkeypatch.setattr(replays, "AFTER", 5)
    monkeypatch.setattr(replays, "CHECK_EVERY", 20)


@pytest.fixture
def clients():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return ClientData(x, torch.zeros(60).long(), list(torch.arange(60).view(6, 10).numpy()), 1)


def program(factor=lambda: 1.0):
    """A step that adds its batch's mean, times a number that Python keeps elsewhere."""

    def step(carry, batch, key):
        return {**carry, "w": carry["w"] + factor() * batch["x"].mean(0)}

    def start(message, memory, client_info, key):
        return {"w": torch.zeros(4), "m": message["m"]}

    return ClientProgram(start, step, lambda carry: ({"w": carry["w"]}, {}), {"w": "each"})


def tasks(steps=5, batch=5):
    message = {"m": torch.ones(2)}
    return [ClientTask(k, message, {}, Batches(batch, steps, 1, Key(k)), Key(9).fold(k)) for k in range(6)]


def assert_same(result, other):
    for mine, theirs in zip(result.aggregate["w"], other.aggregate["w"], strict=True):
        assert torch.equal(mine, theirs)


# --- the check that a recording still holds


@pytest.mark.parametrize("kind", ["per client", "vmapped"])
def test_a_step_that_reads_changed_python_state_is_noticed_and_replayed_no_more(clients, kind, caplog):
    factor = [1.0]
    runner = PerClientRunner(clients) if kind == "per client" else VmapRunner(clients)
    run, chosen = InProcess(runner), program(lambda: factor[0])
    for _ in range(2):
        run.run(chosen, tasks())
    trusted = run.stats().fast
    assert trusted.replayed > 0
    assert (trusted.disagreements, trusted.reasons) == (0, ())
    factor[0] = 2.0
    for _ in range(3):  # the first of them replays what was frozen, until the next check
        result = run.run(chosen, tasks())
    stats = run.stats().fast
    assert stats.disagreements == 1
    (reason,) = stats.reasons
    assert "program.<locals>.step is no longer replayed" in reason
    assert "Python variable" in reason
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [reason]
    assert run.stats().fast.replayed == stats.replayed
    factor[0] = 3.0
    result = run.run(chosen, tasks())
    torch.testing.assert_close(
        torch.stack(result.aggregate["w"]),
        torch.stack(sequential(clients).run(chosen, tasks()).aggregate["w"]),
    )
    assert run.stats().fast.replayed == stats.replayed, "given up for good"


def test_a_difference_in_the_last_bit_is_noticed(clients):
    """A replay is bit for bit the step, or it is not believed; NaN and NaN are the same."""
    carry, batch = {"w": torch.zeros(4), "m": torch.ones(2)}, clients.batch(0, torch.arange(5))
    factor = [1.0]
    step = fast.accelerate(program(lambda: factor[0])).step
    for count in range(12):
        factor[0] = 1.0 if count < 6 else 1 + 2**-23  # recorded after five steps, then compared
        step(carry, batch, Key(0))
    stats = step.stats()
    assert (stats.recordings, stats.replayed) == (1, 0)
    assert "leaf w of a replay differs" in stats.reasons[0]
    step = fast.accelerate(program(lambda: math.nan)).step
    for _ in range(12):
        step(carry, batch, Key(0))
    assert (step.stats().replayed, step.stats().reasons) == (4, ())


def test_tensors_that_lie_otherwise_in_memory_have_a_recording_of_their_own():
    """What is recorded for one layout may be wrong, or impossible, for another of the same shape."""

    def read(carry, batch, key):
        return {"w": carry["w"] + batch["x"].reshape(-1)}  # a view of some layouts, a copy of others

    nothing = ClientProgram(lambda *_: {}, read, lambda carry: (carry, {}), {"w": "sum"})
    step = fast.accelerate(nothing).step
    flat, turned = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2).T
    for x in [flat] * 12 + [turned] * 12:
        assert torch.equal(step({"w": torch.zeros(6)}, {"x": x}, Key(0))["w"], x.reshape(-1))
    stats = step.stats()
    assert (stats.recordings, stats.replayed, stats.reasons) == (2, 8, ())


def test_what_differs_is_named(clients):
    factor, step = [1.0], None
    step = fast.accelerate(program(lambda: factor[0])).step
    carry, batch = {"w": torch.zeros(4), "m": torch.ones(2)}, clients.batch(0, torch.arange(5))
    for _ in range(10):
        step(carry, batch, Key(0))
    factor[0] = 2.0
    for _ in range(30):
        step(carry, batch, Key(0))
    (reason,) = step.stats().reasons
    assert "leaf w of a replay differs" in reason


def test_steps_are_compared_as_often_as_said(clients):
    run, chosen = InProcess(PerClientRunner(clients)), program()
    for _ in range(4):
        run.run(chosen, tasks())
    stats = run.stats().fast
    assert stats.recordings == 1
    assert stats.stepped + stats.replayed == 4 * 6 * 5
    # 5 before the recording, 3 trials, and then 1 comparison after every 20 replays
    assert stats.compared == 3 + (120 - 5 - 3) // 21
    assert stats.stepped == 5 + stats.compared
    assert_same(run.run(chosen, tasks()), sequential(clients).run(chosen, tasks()))


def test_workers_check_again_and_their_numbers_travel_with_their_answers(clients, tmp_path, caplog):
    """The state that changes is a file, which forked workers share with their parent."""
    state = tmp_path / "factor"
    state.write_text("1")
    chosen = program(lambda: float(state.read_text()))
    caplog.set_level("INFO")
    with contextlib.closing(WorkerPool(PerClientRunner(clients), workers=1)) as pool:
        for _ in range(3):
            pool.run(chosen, tasks())
        before = pool.stats().fast
        assert before.replayed > 0
        assert before.stepped + before.replayed == 3 * 6 * 5
        assert before.recordings == 1
        assert before.compared == 3 + (90 - 5 - 3) // 21
        state.write_text("2")
        for _ in range(3):
            pool.run(chosen, tasks())
        stats = pool.stats().fast
        assert stats.disagreements == 1
        assert len(stats.reasons) == 1
        assert_same(pool.run(chosen, tasks()), sequential(clients).run(chosen, tasks()))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == list(stats.reasons), "told once"


def test_what_several_workers_say_is_added_up_and_told_once(caplog):
    one = fast.FastStats(1, 10, 5, 3, 1, ("a",))
    both = one + fast.FastStats(2, 20, 6, 4, 0, ("b", "a"))
    assert both == fast.FastStats(3, 30, 11, 7, 1, ("a", "b"))
    with caplog.at_level("INFO"):
        fast.log_changes(fast.FastStats(), one)
        fast.log_changes(one, both)
        fast.log_changes(both, both)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "a"),
        ("INFO", "b"),
    ]


# --- the bound


def test_recordings_are_bounded_and_those_used_last_are_kept(clients, monkeypatch):
    monkeypatch.setattr(replays, "RECORDINGS", 2)
    run, chosen = InProcess(PerClientRunner(clients)), program()
    for batch in (5, 4, 3, 5):
        run.run(chosen, tasks(batch=batch))
        assert_same(run.run(chosen, tasks(batch=batch)), sequential(clients).run(chosen, tasks(batch=batch)))
    kept = [signature[1][0][1][2][0] for signature in run.runner._faster.step.replays.signatures()]
    assert kept == [3, 5]
    assert run.stats().fast.recordings == 4, "that of 5 was made again"


# --- the switch


@pytest.mark.parametrize(
    "name",
    mostly_slow(["auto", "parallel", "vectorized"], "auto"),
)
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_it_can_be_switched_off(clients, monkeypatch, name, how):
    if how == "environment":
        monkeypatch.setenv(fast.VARIABLE, "0")
        assert fast.fast_status() == (False, "GENFL_FAST=0")
    with engine(name, clients, 6, fast=how != "argument") as run:
        for _ in range(4):
            result = run.run(chosen := program(), tasks())
        stats = run.stats().fast
    assert (stats.recordings, stats.replayed) == (0, 0)
    (reason,) = stats.reasons
    assert ("GENFL_FAST=0" in reason) == (how == "environment")
    if name != "vectorized":
        assert_same(result, sequential(clients).run(chosen, tasks()))


def test_switching_it_off_changes_no_bit_of_clients_that_run_one_by_one(clients):
    results = []
    for on in (True, False):
        run, chosen = InProcess(PerClientRunner(clients, accelerated=on)), program()
        results.append([run.run(chosen, tasks()) for _ in range(4)])
        assert (run.stats().fast.replayed > 0) == on
    for mine, other in zip(*results, strict=True):
        assert_same(mine, other)


def test_switched_off_layers_are_those_of_vmap(clients):
    modes = []

    def watch():
        modes.append([type(mode).__name__ for mode in _get_current_function_mode_stack()])
        return 1.0

    for on in (True, False):
        InProcess(VmapRunner(clients, accelerated=on)).run(program(watch), tasks(steps=1))
        assert ("Folding" in modes[-1]) == on


def test_a_switch_that_is_neither_on_nor_off_is_an_error(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "perhaps")
    with pytest.raises(InputError, match="GENFL_FAST: 'perhaps'"):
        fast.fast_status()


def test_it_is_on_by_itself():
    assert fast.fast_status().on


# --- the guard


# A PyTorch that lacks something does not miss it itself: torch._dynamo, which it loads late, comes first.
RUN = """
import torch, torch._dynamo
{before}
import logging
import math, sys
logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(levelname)s %(message)s")
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines import fast
from genfl.engines.auto import engine
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.rng import Key
from genfl.simulation import federate

shape = (1, 8, 8)
x = torch.randn(60, *shape, generator=torch.Generator().manual_seed(0))
data = ClientData(x, torch.arange(60) % 3, list(torch.arange(60).view(6, 10).numpy()), 3)
task = classification(lambda: CNN(shape, 3, width=4), shape)
for name in ("auto", "vectorized"):
    with engine(name, data, 6) as run:
        schedule = Schedule(2, 6, 5)
        method, start = fedavg(task, LocalSGD(0.1)), task.init(Key(0))
        trace = federate(method, start, data, run, schedule, Key(0), lambda weights: {{}})
        print(name, sum(leaf.double().sum().item() for leaf in trace.weights["params"].values()))
print(fast.fast_status().on, fast.fast_status().why)
"""

HIDE_OPERATION = """
vars(torch.ops.aten).pop("max_pool2d_with_indices_backward", None)
packet = type(torch.ops.aten)
whole = packet.__getattr__
def without(self, name):
    if name == "max_pool2d_with_indices_backward":
        raise AttributeError(f"no {name}")
    return whole(self, name)
packet.__getattr__ = without
"""

HIDE_MAKE_FX = """
import torch.fx.experimental.proxy_tensor as module
del module.make_fx
"""


def run_script(text, **environment):
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def switched_off():
    return run_script(RUN.format(before=""), GENFL_FAST="0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hide", "name"),
    [
        (HIDE_OPERATION, "aten.max_pool2d_with_indices_backward.default"),
        (HIDE_MAKE_FX, "torch.fx.experimental.proxy_tensor.make_fx"),
    ],
    ids=["operation", "make_fx"],
)
def test_where_pytorch_lacks_something_genfl_runs_without_and_says_so_once(hide, name, switched_off):
    lines = run_script(RUN.format(before=hide))
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert name in warnings[0]
    assert [line for line in lines if line.startswith(("auto", "vectorized"))] == switched_off[:2]
    assert lines[-1].startswith("False PyTorch")
    assert name in lines[-1]
    assert switched_off[2:] == ["False GENFL_FAST=0"]


def test_importing_the_door_imports_nothing_heavy():
    (line,) = run_script(
        "import sys, genfl.engines.fast; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert line == "[]"


@pytest.mark.slow
def test_nothing_outside_goes_past_the_door():
    inside = {f"genfl.engines.fast.{path.stem}" for path in SOURCES.glob("*.py")}
    outside = [path for path in SOURCES.parents[1].rglob("*.py") if SOURCES not in path.parents]
    assert len(outside) > 50
    assert [path.name for path in outside if imported(path) & inside] == []


def imported(path):
    """Every module that a file may import, and every name that it imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_operation_that_is_used_is_looked_for():
    used = set()
    for path in (SOURCES / "rewrites.py", SOURCES / "vmap_layers.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names = dotted(node)
                if names[0] == "_aten":
                    used.add(".".join(names[1:]))
    known = set(operations.OPERATIONS)
    packets = {name.partition(".")[0] for name in known}
    assert used <= known | packets
    assert known <= used


def dotted(node):
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [getattr(node, "id", ""), *reversed(names)]
