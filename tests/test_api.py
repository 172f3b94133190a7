"""The Python API: what a first notebook does, and what it does wrong."""

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.command import run_program
from torch import nn

import genfl
from genfl import config
from genfl.algorithms import ALGORITHMS
from genfl.config.names import OLD_OPTIONS, REFERENCE_NAMES, SPEECH_VOCODER, UNLABELLED_RESOURCES
from genfl.data.sources import DATASETS
from genfl.engines.in_process import sequential
from genfl.errors import GenflError, InputError
from genfl.generators.registry import GENERATORS
from genfl.learning.evaluate import evaluate
from genfl.rng import Key
from genfl.simulation import federate

ROOT = Path(__file__).parents[1]
BASE = {
    "name": "mine",
    "seeds": [0],
    "data": "digits",
    "generator": "none",
    "model": {"name": "mlp", "width": 8},
    "federate": {"rounds": 2, "clients_per_round": 3, "local": {"steps": 1}, "evaluate_every": 1},
}


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def arrays():
    x, y = digits()
    return x[:1000], y[:1000], x[1000:], y[1000:]


def lines(code):
    return [line for line in textwrap.dedent(code).strip().splitlines() if line.strip()]


FEDADAM = """
    import genfl
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.dirichlet(20, alpha=0.1), (xt, yt))
    task = genfl.task("cnn", data, width=4)
    algorithm = genfl.fedavg(task, genfl.LocalSGD(lr=0.05), genfl.fedadam(lr=0.03))
    result = genfl.simulate(algorithm, data, rounds=3, clients_per_round=4)
"""

FEDGC = """
    import genfl
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.dirichlet(20, alpha=0.1))
    mixed = data.with_generated(x_syn, y_syn, genfl.budget.equal(400))
    task = genfl.task("cnn", mixed, width=4)
    algorithm = genfl.fedavg(task, genfl.LocalSGD(lr=0.05), genfl.fedprox(mu=0.1))
    result = genfl.simulate(algorithm, mixed, rounds=3, clients_per_round=4, test=(xt, yt))
"""

METHOD = """
    import genfl
    from genfl import trees

    @genfl.register("mymethod", paper="nobody 2026")
    def mymethod(*, mu: float = 0.1) -> genfl.LocalHook:
        def penalty(params, aux, batch, context):
            return mu * trees.square_norm(trees.sub(params, context.message["weights"]["params"]))
        return genfl.LocalHook(penalty)
"""


def test_fedadam_on_arrays_is_at_most_8_lines(arrays):
    x, y, xt, yt = arrays
    scope = {"x": x, "y": y, "xt": xt, "yt": yt}
    exec(textwrap.dedent(FEDADAM), scope)
    assert len(lines(FEDADAM)) <= 8 and FEDADAM.count("import") == 1
    result = scope["result"]
    assert sorted(result.accuracy) == [0, 1, 2, 3]
    assert result.accuracy[3] > result.accuracy[0]


def test_fedgc_on_arrays_is_at_most_12_lines(arrays):
    x, y, xt, yt = arrays
    scope = {"x": x[:500], "y": y[:500], "x_syn": x[500:], "y_syn": y[500:], "xt": xt, "yt": yt}
    exec(textwrap.dedent(FEDGC), scope)
    assert len(lines(FEDGC)) <= 12
    assert scope["mixed"].sizes.sum() == 900
    assert scope["mixed"].clients.count("generated") == 400
    assert len(scope["result"].rounds) == 3


@pytest.mark.slow
def test_own_method_is_at_most_10_lines_and_runs_from_yaml_in_this_process(tmp_path, forget):
    assert len(lines(METHOD)) <= 10
    exec(textwrap.dedent(METHOD), {})
    rows = {row["name"]: row for row in importlib.import_module("genfl.catalogue").algorithms()}
    assert rows["mymethod"]["paper"] == "nobody 2026"
    methods = {"own": {"algorithm": {"name": "mymethod", "mu": 2.0}}, "plain": {"algorithm": "fedavg"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**BASE, "methods": methods}))
    result = genfl.run(tmp_path / "own.yaml", out=tmp_path / "run")
    assert result.summary.methods["own"].algorithm.model_dump() == {"name": "mymethod", "mu": 2.0}
    assert list(result.table().index) == ["own", "plain"]
    with pytest.raises(InputError, match=r"algorithm\.nu: unknown key"):
        genfl.parse_config({**BASE, "methods": {"own": {"algorithm": {"name": "mymethod", "nu": 1}}}})
    schema = config.Config.model_json_schema()
    assert schema["$defs"]["Algorithm_mymethod"]["properties"]["mu"]["default"] == 0.1


@pytest.mark.slow
def test_results_of_an_own_method_are_not_reused_after_its_code_changed(tmp_path, forget):
    configured = {**BASE, "methods": {"own": {"algorithm": "factor"}}}
    configured["federate"] = {**BASE["federate"], "local": {"steps": 20, "lr": 0.5}}
    configured["data"] = {"name": "digits", "partition": {"kind": "iid", "clients": 5}}
    curves = []
    for factor in (1.0, 0.0, 0.0):

        @genfl.register("factor")
        def scaled(*, lr: float = 1.0) -> genfl.ServerOptimizer:
            return genfl.algorithms.sgd(lr * factor)  # noqa: B023

        summary = genfl.run(configured, out=tmp_path / "run", update=True).summary
        curves.append([point.mean for point in summary.methods["own"].curve])
    assert curves[0] != curves[1] == curves[2]
    assert len(set(curves[1])) == 1, "a server that never moves"
    assert summary.stages["federate"].skipped


SCALE = 1.0


def test_identity_follows_code_closures_and_globals(monkeypatch):
    from genfl.identity import value_digest

    def scaled(factor):
        return lambda x: SCALE * factor * x

    assert value_digest(scaled(1.0)) == value_digest(scaled(1.0)) != value_digest(scaled(2.0))
    before = value_digest(scaled(1.0), torch.ones(2))
    assert before != value_digest(scaled(1.0), torch.zeros(2))
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert before != value_digest(scaled(1.0), torch.ones(2))


@pytest.mark.slow
def test_own_model_and_data_run_from_yaml(tmp_path, forget):
    x = torch.rand(60, 1, 6, 6)
    names = [f"class {number % 3}" for number in range(60)]

    @genfl.register.model("flat", shape=(1, 6, 6))
    def flat(shape: tuple[int, ...], classes: int, bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, classes, bias=bias))

    @genfl.register.dataset("noise", summary="random images")
    def noise() -> genfl.DataSet:
        return genfl.DataSet(
            genfl.LabelledExamples(x, names), genfl.LabelledExamples(x, names), "image", lambda image: x[0]
        )

    content = {**BASE, "data": {"name": "noise", "partition": {"clients": 4}}}
    content |= {"model": {"name": "flat", "bias": False}, "methods": {"fedavg": {"algorithm": "fedavg"}}}
    result = genfl.run(content, out=tmp_path / "run")
    model = result.model("fedavg", seed=0)
    assert model.label_names == ["class 0", "class 1", "class 2"] and not model.training
    assert model(x).shape == (60, 3)
    assert not genfl.algorithms.ALGORITHMS["fedavg"].code
    assert [row for row in importlib.import_module("genfl.catalogue").models() if row["name"] == "flat"]


@pytest.mark.slow
def test_own_generator_runs_from_yaml(tmp_path, forget):
    from PIL import Image

    class Squares:
        id = "squares"

        def __init__(self, labels, side):
            self.labels, self.side = labels, side

        def check_prompts(self, prompts):
            pass

        def generate(self, prompts):
            for prompt in prompts:
                pixels = np.random.default_rng(prompt.seed).integers(0, 255, (self.side, self.side))
                pixels[0] = 25 * self.labels.index(prompt.label)
                yield genfl.Sample(prompt, Image.fromarray(pixels.astype(np.uint8)))

    @genfl.register.generator("squares", models="none")
    def squares(labels: list[str], *, side: int = 16):
        return Squares(labels, side)

    content = {**BASE, "generator": {"kind": "squares", "side": 8}, "prompts": {"per_label": 3}}
    content["methods"] = {"gptfl": {"algorithm": "fedavg", "start": "pretrained"}}
    content["pretrain"] = {"epochs": 1}
    result = genfl.run(content, out=tmp_path / "run")
    assert result.summary.synthetic.samples == 30
    assert result.report.is_file()
    with pytest.raises(InputError, match=r"generator\.sides: unknown key; did you mean 'side'"):
        genfl.parse_config({**content, "generator": {"kind": "squares", "sides": 8}})
    samples = genfl.generate("squares", kind="squares", labels=["a", "b"], per_label=2, out=tmp_path / "s")
    assert len(samples) == 4


PLUGIN = """
import genfl

@genfl.register("bythem", paper="them 2026")
def bythem(*, lr: float = 0.5) -> genfl.ServerOptimizer:
    return genfl.algorithms.sgd(lr)
"""


@pytest.mark.slow
def test_plugins_register_by_entry_point_and_a_broken_one_is_named(tmp_path):
    for name, code in (("theirs", PLUGIN), ("broken", "import nothing_like_this")):
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[genfl.plugins]\n{name} = {name}\n")
    methods = {"a": {"algorithm": {"name": "bythem", "lr": 0.25}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**BASE, "methods": methods}))
    code = (
        "from genfl import config; from pathlib import Path\n"
        "print(config.load(Path('own.yaml')).methods['a'].algorithm[0].lr)\n"
        "from genfl.algorithms import ALGORITHMS; print('bythem' in ALGORITHMS, len(ALGORITHMS))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0.25", "True", str(len(ALGORITHMS.builtin) + 1)]
    assert done.stderr.count("plugin broken: broken cannot be imported (ModuleNotFoundError") == 1


@pytest.mark.parametrize(
    ("register", "line"),
    [
        (lambda: genfl.register("fedavg")(lambda: None), "'fedavg' is built in"),
        (lambda: genfl.register("x")(lambda *, mu=0.1: None), "must say what it returns"),
        (lambda: genfl.register("")(genfl.fedprox), "is no name"),
        (lambda: genfl.register.model("cnn")(lambda shape, classes: None), "'cnn' is built in"),
    ],
)
def test_what_cannot_be_registered_is_told(register, line, forget):
    with pytest.raises(InputError, match=line):
        register()


def test_import_is_instant_and_lazy():
    code = "import sys, genfl; print('torch' in sys.modules, 'pydantic' in sys.modules, len(dir(genfl)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split()[:2] == ["False", "False"]
    assert dir(genfl) == sorted(genfl.__all__)
    for name in genfl.__all__:
        assert getattr(genfl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fedavgg'"):
        genfl.fedavgg  # noqa: B018


def test_type_checkers_see_what_is_imported_lazily():
    """The imports for type checkers name the values that `__getattr__` returns."""
    import ast

    tree = ast.parse(Path(genfl.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert sorted(["__version__", *seen]) == sorted(genfl.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(genfl, name)


def test_builders_are_not_modules():
    import genfl.algorithms.scaffold
    from genfl.algorithms import fedavg

    importlib.import_module("genfl.algorithms.fedavg")
    for name, entry in ALGORITHMS.builtin.items():
        assert getattr(genfl.algorithms, name) is entry.make
    assert fedavg is ALGORITHMS["fedavg"].make is genfl.fedavg
    assert genfl.algorithms.scaffold is genfl.scaffold


def test_names_in_the_config_are_those_of_the_code():
    from genfl.algorithms.registry import UNLABELLED
    from genfl.config.names import GENERATOR_KINDS
    from genfl.generators.speech import VOCODER
    from genfl.options import options
    from genfl.references import REFERENCES

    assert set(UNLABELLED_RESOURCES) == UNLABELLED
    assert SPEECH_VOCODER == VOCODER
    assert tuple(GENERATORS.builtin) == GENERATOR_KINDS
    assert tuple(REFERENCES) == REFERENCE_NAMES
    sections = config.methods.ALGORITHM.sections()
    for name, build in REFERENCES.items():
        described = {option: default for option, (_, default) in options(build).items()}
        fields = sections[name].model_fields
        assert {field: fields[field].default for field in fields if field != "name"} == described
    for name, renamed in OLD_OPTIONS.items():
        assert set(renamed.values()) <= set(ALGORITHMS[name].options())


@pytest.mark.slow
def test_parts_come_in_any_order_and_rivals_are_refused(arrays):
    task = genfl.task("mlp", (1, 8, 8), 10, width=4)
    local = genfl.LocalSGD(lr=0.05)
    data = genfl.FederatedDataset.from_arrays(*arrays[:2], genfl.partition.iid(5))
    parts = [genfl.fedprox(mu=0.1), genfl.fedadam(lr=0.03), genfl.feddisco(5)]
    weights = [
        genfl.simulate(genfl.fedavg(task, local, *order), data, rounds=2).weights["params"]
        for order in (parts, parts[::-1])
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for rivals, line in (
        ([genfl.fedadam(), genfl.fedyogi()], "fedadam and fedyogi take the same place"),
        ([genfl.fedprox(), genfl.fedprox(mu=1.0)], "fedprox and fedprox take the same place"),
        ([genfl.feddisco(2), genfl.feddisco(3)], "feddisco and feddisco take the same place"),
    ):
        with pytest.raises(InputError, match=line):
            genfl.fedavg(task, local, *rivals)
    with pytest.raises(InputError, match="fedadam is a variant of FedAvg's server, and scaffold has its own"):
        genfl.scaffold(task, local, genfl.fedadam())
    with pytest.raises(InputError, match=r"parts: fedprox is no LocalHook.*call it, as in fedprox\(\)"):
        genfl.fedavg(task, local, genfl.fedprox)


def test_simulate_has_the_bits_of_the_loop(arrays):
    x, y, xt, yt = arrays
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.dirichlet(6, alpha=0.5), (xt, yt))
    task = genfl.task("mlp", data, width=8)
    algorithm = genfl.fedavg(task, genfl.LocalSGD(0.1, momentum=0.5), genfl.moon())
    settings = {"rounds": 3, "clients_per_round": 2, "batch_size": 16, "local_steps": 2}
    result = genfl.simulate(algorithm, data, **settings, seed=3)
    trace = federate(
        algorithm,
        task.init(Key(3).fold("model")),
        data.clients,
        sequential(data.clients),
        genfl.api.Schedule(**settings),
        Key(3).fold("federate"),
        lambda weights: evaluate(task, weights, torch.from_numpy(xt), torch.from_numpy(yt)),
    )
    for name, value in trace.weights["params"].items():
        assert torch.equal(value, result.weights["params"][name])
    assert trace.evaluations == result.evaluations
    predicted = result.model()(torch.from_numpy(xt)).argmax(1).numpy()
    assert (predicted == yt).mean() == pytest.approx(result.accuracy[3])
    table = result.to_pandas()
    assert list(table.index) == [0, 1, 2, 3] and {"accuracy", "uplink_bytes"} <= set(table.columns)


@pytest.mark.slow
def test_distilling_methods_take_arrays(arrays):
    """With ``steps=0``, FedDF is FedAvg; its distillation on unlabelled arrays changes the model."""
    x, y, *test = arrays
    data = genfl.FederatedDataset.from_arrays(x[:600], y[:600], genfl.partition.iid(4), tuple(test))
    task, small = genfl.task("mlp", data, width=8), genfl.task("cnn", data, width=4, hidden=8)
    local, unlabelled = genfl.LocalSGD(0.1), torch.from_numpy(x[600:])
    settings = {"rounds": 2, "clients_per_round": 2, "local_steps": 2}

    def simulated(algorithm):
        return genfl.simulate(algorithm, data, **settings).weights["params"]["classifier.weight"]

    average = simulated(genfl.fedavg(task, local))
    plain = simulated(genfl.feddf(task, local, unlabelled=unlabelled, steps=0))
    torch.testing.assert_close(plain, average)
    distilled = [
        genfl.feddf(task, local, unlabelled=unlabelled, steps=3),
        genfl.feddf_logits(task, local, shared=unlabelled, steps=3),
        genfl.fedet(task, local, unlabelled=unlabelled, client_tasks={"small": small}, steps=3),
    ]
    weights = [simulated(algorithm) for algorithm in distilled]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)  # the same teacher and start
    assert not torch.allclose(weights[0], average, atol=1e-4)
    assert not torch.allclose(weights[2], average, atol=1e-2)


@pytest.mark.slow
def test_simulate_equals_a_run_of_the_same_seed(tmp_path):
    """The API's arrays and the pipeline's data sets go through the same random streams."""

    source = DATASETS["digits"].load()
    parts = [{"name": "fedprox", "mu": 0.5}, {"name": "fedadam", "server_lr": 0.01}]
    methods = {"prox": {"algorithm": parts}}
    run = genfl.run({**BASE, "methods": methods}, out=tmp_path / "run")
    labels = run.label_names
    data = genfl.FederatedDataset.from_arrays(
        source.train.x,
        np.array(source.train.labels),
        genfl.partition.dirichlet(20, alpha=0.1),
        (source.test.x, np.array(source.test.labels)),
        labels,
    )
    task = genfl.task("mlp", data, width=8)
    algorithm = genfl.fedavg(task, genfl.LocalSGD(0.05), genfl.fedadam(lr=0.01), genfl.fedprox(mu=0.5))
    result = genfl.simulate(algorithm, data, rounds=2, clients_per_round=3, local_steps=1)
    curve = run.summary.methods["prox"].curve
    assert [point[1] for point in curve] == list(result.accuracy.values())
    state = run.model("prox").state_dict()
    assert all(torch.equal(state[name], value) for name, value in result.model().state_dict().items())


@pytest.mark.slow
def test_simulate_resumes_and_ignores_checkpoints_of_others(arrays, tmp_path, caplog):
    data = genfl.FederatedDataset.from_arrays(*arrays[:2], genfl.partition.iid(4), arrays[2:])
    task = genfl.task("mlp", data, width=4)

    def train(rounds, mu=0.1, **options):
        algorithm = genfl.fedavg(task, genfl.LocalSGD(0.1), genfl.fedprox(mu=mu))
        return genfl.simulate(algorithm, data, rounds=rounds, **options)

    whole, file = train(4), tmp_path / "state.safetensors"
    with caplog.at_level("INFO", logger="genfl"):
        train(2, checkpoint=file)
        assert "resuming after round 2" not in caplog.text
        resumed = train(4, checkpoint=file)
        assert "resuming after round 2" in caplog.text
        caplog.clear()
        other = train(4, mu=1.0, checkpoint=file)
        assert "resuming" not in caplog.text
    assert resumed.evaluations == whole.evaluations
    assert other.evaluations == train(4, mu=1.0).evaluations != whole.evaluations


@pytest.fixture(scope="module")
def small():
    """Four clients with images of three classes, other images of the same classes, and an algorithm."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3
    other = torch.rand(60, 1, 8, 8, generator=generator)
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(4), (x[:30], y[:30]))
    algorithm = genfl.fedavg(genfl.task("mlp", data, width=4), genfl.LocalSGD(0.3))
    return data, (other, y), algorithm


def same_weights(first, second):
    return all(
        torch.equal(value, second.weights["params"][name]) for name, value in first.weights["params"].items()
    )


BRIEF = {"clients_per_round": 2, "batch_size": 5, "engine": "sequential"}


def test_checkpoint_depends_on_the_order_of_samples(small, tmp_path):
    data, (x, y), algorithm = small
    results = []
    for order in ("mixed", "p2g"):
        mixed = data.with_generated(x, y, genfl.budget.equal(24), order=order)
        file = tmp_path / "state.safetensors"
        results.append(genfl.simulate(algorithm, mixed, rounds=2, checkpoint=file, **BRIEF))
    fresh = genfl.simulate(algorithm, mixed, rounds=2, **BRIEF)
    assert same_weights(results[1], fresh) and not same_weights(results[0], fresh)


def test_checkpoint_depends_on_the_test_set(small, tmp_path):
    data, test, algorithm = small
    file = tmp_path / "state.safetensors"
    first = genfl.simulate(algorithm, data, rounds=2, checkpoint=file, **BRIEF)
    second = genfl.simulate(algorithm, data, rounds=2, checkpoint=file, test=test, **BRIEF)
    assert second.evaluations == genfl.simulate(algorithm, data, rounds=2, test=test, **BRIEF).evaluations
    assert second.evaluations != first.evaluations


def test_checkpoint_depends_on_rounding_where_clients_run_in_batches(small, tmp_path, monkeypatch):
    data, _, algorithm = small
    digests = []
    monkeypatch.setattr(
        genfl.api, "federate", lambda *_, checkpoint_digest, **__: digests.append(checkpoint_digest)
    )
    for rounding in (1, 2):
        monkeypatch.setattr(genfl.api, "ROUNDING", rounding)
        for engine in ("sequential", "vectorized"):
            genfl.simulate(algorithm, data, checkpoint=tmp_path / "s", **{**BRIEF, "engine": engine})
    exact, batched, exact_again, batched_again = digests
    assert exact == exact_again
    assert len({exact, batched, batched_again}) == 3


def test_checkpoint_depends_on_batched_clients_and_the_fast_path(small, tmp_path, monkeypatch):
    data, _, algorithm = small
    names = []
    monkeypatch.setattr(
        genfl.api, "federate", lambda *_, checkpoint_digest, **__: names.append(checkpoint_digest)
    )
    for engine, fast in [
        ("auto", "1"),
        ("sequential", "0"),
        ("parallel", "1"),
        ("vectorized", "1"),
        ("vectorized", "0"),
    ]:
        monkeypatch.setenv("GENFL_FAST", fast)
        genfl.simulate(
            algorithm, data, checkpoint=tmp_path / "state.safetensors", **{**BRIEF, "engine": engine}
        )
    assert names[0] == names[1] == names[2], "clients that run one by one give the same bits"
    assert len(set(names)) == 3


def test_extended_simulation_is_evaluated_like_an_uninterrupted_one(small, tmp_path):
    data, _, algorithm = small
    file = tmp_path / "state.safetensors"
    genfl.simulate(algorithm, data, rounds=2, checkpoint=file, evaluate_every=5, **BRIEF)
    extended = genfl.simulate(algorithm, data, rounds=6, checkpoint=file, evaluate_every=5, **BRIEF)
    whole = genfl.simulate(algorithm, data, rounds=6, evaluate_every=5, **BRIEF)
    assert list(extended.accuracy) == [0, 5, 6] and extended.evaluations == whole.evaluations
    with pytest.raises(InputError, match=r"checkpoint: .* holds 6 rounds, and 2 are asked for"):
        genfl.simulate(algorithm, data, rounds=2, checkpoint=file, evaluate_every=5, **BRIEF)


@pytest.mark.slow
def test_simulate_takes_numpy_numbers_modules_and_state_dicts(small):
    data, _, algorithm = small
    plain = genfl.simulate(algorithm, data, rounds=1, seed=3, **BRIEF)
    again = genfl.simulate(
        algorithm, data, rounds=np.int64(1), seed=np.int64(3), **{**BRIEF, "batch_size": np.int32(5)}
    )
    assert same_weights(plain, again)
    starts = [plain, plain.weights, plain.model(), plain.model().state_dict()]
    results = [genfl.simulate(algorithm, data, rounds=1, start=start, **BRIEF) for start in starts]
    assert all(same_weights(results[0], result) for result in results[1:])
    old = genfl.simulate(algorithm, data, rounds=1, **{**BRIEF, "engine": "vectorised"})
    assert old.rounds


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"engine": "nonsense"}, "engine: there is no 'nonsense'"),
        ({"seed": -1}, "seed: -1 is no whole number from 0"),
        ({"seed": 0.5}, "seed: 0.5 is no whole number"),
        ({"device": "gpu"}, "device: 'gpu' is none; give cpu, cuda"),
        ({"device": "cuda:9"}, "device: 'cuda:9', but torch sees no GPU"),
        ({"start": torch.nn.Linear(4, 3)}, "start: its weights are of another model"),
        ({"start": {"weight": torch.zeros(1)}}, "start: it has no weights 'body"),
        ({"start": 3}, "start: an int holds no weights"),
        ({"test": 3}, "test: give inputs and labels"),
    ],
)
def test_simulate_rejects_wrong_settings(small, change, line):
    data, _, algorithm = small
    with pytest.raises(InputError, match=line):
        genfl.simulate(algorithm, data, rounds=1, **{**BRIEF, **change})


@pytest.mark.parametrize(
    ("shape", "classes", "line"),
    [
        ((1, 8, 8), 5, "its task has 5 classes, and the data 3"),
        ((1, 6, 6), 3, r"the shape \(1, 6, 6\), and the data"),
    ],
)
def test_simulate_compares_task_and_data(small, shape, classes, line):
    algorithm = genfl.fedavg(genfl.task("mlp", shape, classes), genfl.LocalSGD(0.1))
    with pytest.raises(InputError, match=line):
        genfl.simulate(algorithm, small[0], rounds=1)


@pytest.mark.slow
def test_the_order_of_classes_is_compared(samples, small):
    task = genfl.task("mlp", (1, 8, 8), 2, width=4)
    warm = genfl.pretrain(task, samples, epochs=1)
    assert warm.label_names == ("one", "zero")
    algorithm = genfl.fedavg(task, genfl.LocalSGD(0.1))
    x, names = small[0].test[0], ["zero", "one"] * 15
    for labels in (["zero", "one"], ["one", "zero"]):
        data = genfl.FederatedDataset.from_arrays(x, names, IID, labels=labels)
        if labels == list(warm.label_names):
            assert genfl.simulate(algorithm, data, rounds=1, start=warm).rounds
            continue
        with pytest.raises(InputError, match="start: its classes are one, zero, in this order"):
            genfl.simulate(algorithm, data, rounds=1, start=warm)
        trained = genfl.simulate(algorithm, data, rounds=1)
        with pytest.raises(InputError, match="start: its classes are zero, one"):
            genfl.pretrain(task, samples, epochs=1, start=trained)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epochs": 1.5}, "epochs: 1.5 is no whole number"),
        ({"batch_size": 0}, "batch_size: 0 is no whole number"),
        ({"schedule": "cosin"}, "schedule: there is no 'cosin'; give one of 'constant', 'cosine'"),
        ({"holdout": 1.0}, "holdout: 1.0 is out of range; give a number above 0 and below 1"),
        ({"lr": float("nan")}, "lr: nan is out of range"),
        ({"seed": -1}, "seed: -1 is no whole number from 0"),
        ({"device": "gpu"}, "device: 'gpu' is none"),
    ],
)
def test_pretrain_rejects_wrong_settings(small, change, line):
    with pytest.raises(InputError, match=line):
        genfl.pretrain(small[2].task, small[1], **change)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda task: genfl.LocalSGD(lr=-1), "LocalSGD.lr: -1 is out of range; give a number above 0"),
        (lambda task: genfl.LocalSGD(0.1, momentum=1.0), "LocalSGD.momentum: 1.0 is out of range"),
        (lambda task: genfl.fedprox(mu=-1), "fedprox.mu: -1 is out of range; give a number at least 0"),
        (lambda task: genfl.fedadam(lr=float("inf")), "fedadam.lr: inf is out of range"),
        (
            lambda task: genfl.fedgen(task, genfl.LocalSGD(0.1), noise=1.5),
            "fedgen.noise: 1.5 .* whole number",
        ),
        (
            lambda task: genfl.scaffold(task, genfl.LocalSGD(0.1), option="III"),
            "scaffold.option: there is no 'III'",
        ),
        (lambda task: genfl.SampleFilter(2.0, False), "SampleFilter.share: 2.0 is out of range"),
        (lambda task: genfl.fedavg(genfl.LocalSGD(0.1), task), "fedavg.task: a LocalSGD is no Task"),
        (lambda task: genfl.fedavg(task, 0.1), "fedavg.local: a float is no LocalSGD"),
    ],
)
def test_builders_check_ranges_and_kinds(small, build, line):
    with pytest.raises(InputError, match=line):
        build(small[2].task)


def test_builders_take_numpy_numbers():
    assert genfl.fedprox(mu=np.float32(0.5)).name == "fedprox"
    assert genfl.LocalSGD(np.float32(0.5)).lr == 0.5


def test_arrays_are_copied_and_may_run_backwards():
    x, y = X + 1, Y.copy()
    data = genfl.FederatedDataset.from_arrays(x[::-1], y[::-1], IID)
    held, labels = (values.clone() for values in data.client(0))
    x[:], y[:] = 0, 0
    assert torch.equal(data.client(0)[0], held) and torch.equal(data.client(0)[1], labels)
    tensor = torch.ones(6, 2)
    data = genfl.FederatedDataset.from_arrays(tensor, Y, IID)
    tensor.zero_()
    assert data.client(0)[0].all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rounds": 0}, "rounds: 0 is no whole number"),
        ({"clients_per_round": 9}, "clients_per_round: 9, but there are 4 clients"),
        ({"local_steps": 2, "local_epochs": 2}, "local_steps: give steps or epochs"),
        ({"test": (np.zeros((2, 3)), [0, 1])}, r"test\[0\]: inputs have the shape \(3,\)"),
        ({"test": (np.zeros((2, 1, 8, 8)), [0, 99])}, r"test\[1\]: row 1 is of class 99"),
    ],
)
def test_simulate_refuses_what_cannot_be(arrays, change, line):
    data = genfl.FederatedDataset.from_arrays(*arrays[:2], genfl.partition.iid(4))
    algorithm = genfl.fedavg(genfl.task("mlp", data), genfl.LocalSGD(0.1))
    with pytest.raises(InputError, match=line):
        genfl.simulate(algorithm, data, **change)


X, Y = np.zeros((6, 2), dtype=np.float32), np.array([0, 1, 2, 0, 1, 2])
IID = genfl.partition.iid(2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((X, Y[:5], IID), "y: there are 5 labels for 6 inputs"),
        ((X, Y + 1, IID), "y: class 0 has no example"),
        ((X, Y * 2, IID), "y: class 1 has no example"),
        ((X, Y - 1, IID), "y: row 0 is of class -1"),
        ((X, Y * 0, IID), "y: there are 1 classes"),
        ((X, Y / 2, IID), "y: labels are of type float64"),
        ((X, np.eye(6), IID), r"y: its shape is \(6, 6\)"),
        ((X[:, 0], Y, IID), r"x: its shape is \(6,\)"),
        ((X[:0], Y[:0], IID), r"x: its shape is \(0, 2\)"),
        ((np.where(np.arange(12).reshape(6, 2) == 5, np.nan, X), Y, IID), "x: 1 examples hold NaN .* row 2"),
        ((X, Y, IID, None, ["a", "a", "b"]), "labels: .* give two different names"),
        ((X, Y, IID, None, ["a", "b"]), "y: row 2 is of class 2, and classes are 0 to 1"),
        ((X, ["a", "b", "c"] * 2, IID, None, ["a", "b"]), "y: 'c' is no class; known: a, b"),
        ((X, Y, 3), "partition: 3 is no split"),
        ((X, Y, genfl.partition.natural([1, 2])), "partition.client_ids: 2 for 6 samples"),
        ((X, Y, genfl.partition.iid(7)), "7 clients of at least 1 samples need more"),
    ],
)
def test_arrays_that_do_not_fit_are_told(arguments, line):
    with pytest.raises(InputError, match=line):
        genfl.FederatedDataset.from_arrays(*arguments)


def test_arrays_of_every_sort_make_the_same_data():
    names = np.array(["ant", "bee", "cat"])
    made = [
        genfl.FederatedDataset.from_arrays(x, y, genfl.partition.natural([7, 7, 7, 5, 5, 5]), labels=labels)
        for x, y, labels in (
            (X, Y, names),
            (torch.from_numpy(X), torch.from_numpy(Y), list(names)),
            (X.astype(np.float64), names[Y], None),
            (X.astype(np.uint8), list(names[Y]), names),
        )
    ]
    for data in made:
        assert len(data) == 2 and data.label_names == ["ant", "bee", "cat"]
        assert data.label_counts.tolist() == [[1, 1, 1], [1, 1, 1]]
        inputs, targets = data.client(0)
        assert inputs.dtype == torch.float32 and targets.tolist() == [0, 1, 2]
    shown = "FederatedDataset(2 clients, 6 samples of 3 classes, 3 to 3 a client, inputs (2,))"
    assert repr(made[0]) == shown


@pytest.mark.parametrize("kind", ["equal", "inverse", "water_filling"])
def test_generated_samples_are_shared_by_the_budget(kind):
    data = genfl.FederatedDataset.from_arrays(X, Y, genfl.partition.natural([0, 0, 1, 1, 1, 1]))
    more_y = np.arange(60) % 3
    budget = getattr(genfl.budget, kind)(24)
    mixed = data.with_generated(np.ones((60, 2), np.float32), more_y, budget, order="p2g", weight="private")
    assert (mixed.label_counts - data.label_counts == budget.allocate(data.label_counts)).all()
    assert mixed.clients.client_info(0)["samples"] == 2, "generated samples do not weigh"
    for short, line in (((3, 2), "clients get .* and there are 1"), ((60, 3), r"shape \(3,\)")):
        with pytest.raises(InputError, match=line):
            data.with_generated(np.ones(short, np.float32), more_y[: short[0]], budget)
    with pytest.raises(InputError, match="hold generated samples already"):
        mixed.with_generated(X, Y, budget)


NAMED = {"labels": ["ant", "bee", "cat"]}


def test_numbers_of_generated_samples_name_their_classes():
    """A generator may number classes in another order, and nothing would tell."""
    numbers = np.arange(60) % 3
    x = np.stack([numbers, numbers], 1).astype(np.float32)
    turned = ["cat", "bee", "ant"]
    data = genfl.FederatedDataset.from_arrays(X, Y, IID, **NAMED)
    budget = genfl.budget.equal(24)
    with pytest.raises(InputError, match=r"y: its labels are numbers, and the classes have names \(ant, bee"):
        data.with_generated(x, numbers, budget)
    with pytest.raises(InputError, match="labels: 'cow' is no class; known: ant, bee, cat"):
        data.with_generated(x, numbers, budget, labels=["ant", "bee", "cow"])
    with pytest.raises(InputError, match="y: row 2 is of class 2, and classes are 0 to 1"):
        data.with_generated(x, numbers, budget, labels=["cat", "ant"])
    by_name = data.with_generated(x, np.array(turned)[numbers], budget)
    by_number = data.with_generated(x, numbers, budget, labels=turned)
    own = data.with_generated(x, numbers, budget, **NAMED)
    for mixed, first in ((by_name, 2), (by_number, 2), (own, 0)):  # the number of "ant"
        inputs, classes = mixed.client(0)
        assert set(inputs[inputs.any(1) & (classes == 0), 0].tolist()) <= {float(first)}
        assert set(classes[inputs[:, 0] == 2].tolist()) == {2 - first}
    task = genfl.task(lambda: nn.Linear(2, 3), data)
    with pytest.raises(InputError, match=r"samples\[1\]: its labels are numbers"):
        genfl.pretrain(task, (x, numbers), epochs=1)
    warm = [
        genfl.pretrain(task, (x, y), labels=labels, epochs=1).history
        for y, labels in ((numbers, turned), (np.array(turned)[numbers], None))
    ]
    assert warm[0] == warm[1]


def test_numbers_of_a_test_set_are_those_of_the_training_set():
    """Where the data has names alone, genfl numbered the classes, and the caller may have another order."""
    names = np.array(NAMED["labels"])
    numbered = genfl.FederatedDataset.from_arrays(X, Y, IID, (X, Y), **NAMED)
    mixed = numbered.with_generated(X, Y, genfl.budget.equal(2), **NAMED)
    for data in (numbered, mixed):
        assert data.test[1].tolist() == data.check_test((X, names[Y]))[1].tolist() == Y.tolist()
    named = genfl.FederatedDataset.from_arrays(X, names[Y], IID)
    with pytest.raises(InputError, match=r"test\[1\]: its labels are numbers"):
        named.check_test((X, Y))


def test_what_is_printed_is_short(small):
    data, (x, y), algorithm = small
    warm = genfl.pretrain(algorithm.task, (x, y), epochs=2)
    result = genfl.simulate(algorithm, data, rounds=1, **BRIEF)
    shown = {
        "Task(inputs (1, 8, 8), 3 classes, 4 features)": algorithm.task,
        "Algorithm(Task(inputs (1, 8, 8), 3 classes, 4 features), the server sees sums)": algorithm,
        "LocalSGD(lr=0.1)": genfl.LocalSGD(0.1),
        "LocalSGD(lr=0.1, momentum=0.9, with a direction)": genfl.LocalSGD(0.1, 0.9).with_hook(
            genfl.fedsam()
        ),
        f"Pretrained(epoch {warm.epoch} of 2, held-back loss": warm,
        "Trace(1 rounds, 2 evaluations)": result.trace,
    }
    for text, value in shown.items():
        assert repr(value).startswith(text)
        assert len(repr(value)) < 110


def failing_penalty(fails):
    def mine(params, aux, batch, context):
        if fails(batch):
            raise ZeroDivisionError("in the penalty\nof two lines")
        return 0.0

    return genfl.LocalHook(mine)


@pytest.mark.parametrize("engine", ["sequential", "parallel", "vectorized", "auto"])
def test_a_mistake_in_a_method_of_ones_own_is_one_line_before_any_work(small, engine):
    data, _, algorithm = small
    own = genfl.fedavg(algorithm.task, genfl.LocalSGD(0.1), failing_penalty(lambda batch: True))
    with pytest.raises(InputError) as caught:
        genfl.simulate(own, data, rounds=1, engine=engine)
    assert re.fullmatch(
        r"algorithm: its first step fails: ZeroDivisionError: in the penalty \(in mine, test_api\.py:\d+\)",
        str(caught.value),
    )


def test_a_mistake_that_shows_later_is_one_line_with_the_traceback_behind_it(small):
    data, _, algorithm = small
    late = failing_penalty(lambda batch: batch["x"].any())  # not on the zeros of the first try
    own = genfl.fedavg(algorithm.task, genfl.LocalSGD(0.1), late)
    with pytest.raises(GenflError) as caught:
        genfl.simulate(own, data, rounds=1, engine="parallel")
    assert re.fullmatch(
        r"client .* failed in a worker: ZeroDivisionError: in the penalty \(in mine, test_api\.py:\d+\)",
        str(caught.value),
    )
    assert "Traceback" in str(caught.value.__cause__)


def test_a_model_without_a_part_is_refused_before_any_work(small):
    bent = genfl.task(lambda: BentHead(), (1, 8, 8), 3)
    with pytest.raises(
        InputError, match="algorithm: it needs a model with linear head, but the task's has none"
    ):
        genfl.simulate(genfl.fedgen(bent, genfl.LocalSGD(0.1)), small[0], rounds=1)


class BentHead(genfl.Classifier):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def features(self, x):
        return x.flatten(1)


def test_tasks_are_made_of_names_functions_and_modules():
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    module = build()
    tasks = [genfl.task(model, (1, 8, 8), 10) for model in (build, module, lambda shape, classes: build())]
    weights = tasks[1].init(Key(5))["params"]
    assert torch.equal(weights["classifier.weight"], module[1].weight), "a module starts with its weights"
    assert [task.shapes().features for task in tasks] == [64] * 3
    for arguments, line in (
        (("cnnn", (1, 8, 8), 10), "there is no 'cnnn'; did you mean 'cnn'"),
        ((build, (1, 8, 8)), "classes: give the number"),
        ((build, (1, 8, 8), 3), "it has 10 outputs for 3 classes"),
        ((build, (1, 9, 9), 10), "do not fit it"),
        ((lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), (1, 8, 8), 10), "name the linear one"),
    ):
        with pytest.raises(InputError, match=line):
            genfl.task(*arguments)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "samples"
    names = ["one", "zero"]
    return genfl.generate("miniature", labels=names, per_label=4, out=out, block_size=3, steps=2)


@pytest.mark.slow
def test_generation_resumes_with_the_same_samples(samples, tmp_path, caplog):
    asked = {"labels": ["one", "zero"], "per_label": 4, "block_size": 3, "steps": 2}
    assert len(samples) == 8 and repr(samples).startswith("GeneratedSamples(8 samples of 2 classes, image")
    before = [path.read_bytes() for path in sorted(samples.folder.glob("data/*"))]
    manifest = json.loads((samples.folder / "manifest.json").read_text())
    del manifest["shards"]["1"]
    (samples.folder / "manifest.json").write_text(json.dumps(manifest))
    again = genfl.generate("miniature", out=samples.folder, **asked)
    assert [path.read_bytes() for path in sorted(again.folder.glob("data/*"))] == before
    with pytest.raises(InputError, match=r"another request .*per_label: was 4, is now 5"):
        genfl.generate("miniature", out=samples.folder, **{**asked, "per_label": 5})
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        genfl.generate("miniature", out=tmp_path, **asked)


@pytest.mark.slow
def test_generated_samples_warm_up_a_simulation(samples, arrays):
    x, y, xt, yt = arrays
    chosen, tested = y < 2, yt < 2
    names = np.array(["zero", "one"])
    data = genfl.FederatedDataset.from_arrays(
        x[chosen], names[y[chosen]], IID, (xt[tested], names[yt[tested]]), labels=["zero", "one"]
    )
    task = genfl.task("mlp", data, width=8)
    inputs, targets = samples.arrays(data.shape, data.label_names)
    assert inputs.shape == (8, 1, 8, 8) and inputs.min() >= 0 and inputs.max() <= 1
    assert [data.label_names[number] for number in targets] == [label for _, label in samples]
    warm = genfl.pretrain(task, samples, epochs=2, holdout=0.25)
    same = genfl.pretrain(task, (inputs, targets), labels=data.label_names, epochs=2, holdout=0.25)
    assert warm.history == same.history
    result = genfl.simulate(genfl.fedavg(task, genfl.LocalSGD(0.1)), data, rounds=1, start=warm)
    cold = genfl.simulate(genfl.fedavg(task, genfl.LocalSGD(0.1)), data, rounds=1)
    assert result.evaluations[0]["loss"] != cold.evaluations[0]["loss"]
    with pytest.raises(InputError, match="lr: -1 is out of range"):
        genfl.pretrain(task, samples, lr=-1)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"labels": "rain"}, "give a list of different names"),
        ({"labels": ["a", "a"]}, "give a list of different names"),
        ({"per_label": 0}, "per_label: 0 is no whole number"),
        ({"prompts": "a photo"}, "holds no {label}"),
        ({"prompts": "a {look} {label}"}, "has no words"),
        ({"kind": "video"}, "kind: there is no 'video'"),
        ({"stepps": 3}, "generator.stepps: unknown key; did you mean 'steps'"),
        ({"steps": 0}, "generator.steps: should be greater than"),
        ({"guidance_scale": -1}, "guidance_scale: -1"),
        ({"model": str(ROOT)}, "holds no model's settings"),
    ],
)
def test_generate_refuses_what_cannot_be(change, line, tmp_path):
    asked = {"model": "miniature", "labels": ["one"], "per_label": 1, "out": tmp_path / "out", **change}
    with pytest.raises(InputError, match=line):
        genfl.generate(asked.pop("model"), **asked)
    assert not (tmp_path / "out").exists()


def blank_images(calls):
    """Return a generator of images of one colour, which nothing can be learnt from."""
    from PIL import Image

    class Blank:
        id = "blank"

        def check_prompts(self, prompts):
            pass

        def generate(self, prompts):
            calls.append(len(prompts))
            return [genfl.Sample(prompt, Image.new("RGB", (8, 8))) for prompt in prompts]

    return Blank()


def test_generate_stops_where_nothing_is_usable(tmp_path, forget):
    calls = []

    @genfl.register.generator("blank")
    def blank(*, steps: int = 1) -> genfl.Generator:
        return blank_images(calls)

    with pytest.raises(InputError, match="none of the first 10 samples is usable"):
        genfl.generate("blank", labels=["a", "b"], per_label=50, block_size=10, out=tmp_path / "out")
    assert calls == [10]


def test_generate_gives_registered_kinds_their_model(tmp_path, forget):
    models = []

    @genfl.register.generator("loads")
    def loads(*, model: str, steps: int = 1) -> genfl.Generator:
        models.append(model)
        return blank_images([])

    @genfl.register.generator("plain")
    def plain(*, steps: int = 1) -> genfl.Generator:
        return blank_images([])

    asked = {"labels": ["a"], "per_label": 10, "out": tmp_path / "out"}
    with pytest.raises(InputError, match="is usable"):
        genfl.generate("folder", kind="loads", **asked)
    assert models == ["folder"]
    with pytest.raises(InputError, match=r"generator\.model"):
        genfl.generate("loads", **asked)
    with pytest.raises(InputError, match="model: plain has no option for 'folder'; give 'plain'"):
        genfl.generate("folder", kind="plain", **asked)


def test_generate_locks_the_folder_and_takes_numpy_numbers(samples):
    import filelock

    asked = {"labels": np.array(["one", "zero"]), "per_label": np.int64(4), "steps": np.int32(2)}
    asked |= {"block_size": 3, "out": samples.folder, "seed": np.int64(0)}
    with filelock.FileLock(samples.folder / ".lock"), pytest.raises(InputError, match="another process"):
        genfl.generate("miniature", **asked)
    assert len(genfl.generate("miniature", **asked)) == 8
    with pytest.raises(InputError, match=r"another request \(guidance_scale"):
        genfl.generate("miniature", guidance_scale=np.float32(2), **asked)


def test_existing_files_need_their_modality(tmp_path):
    asked = {"kind": "files", "labels": ["a", "b"], "per_label": 1, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"modality: files makes .* None was asked for; give one"):
        genfl.generate(str(tmp_path), **asked)
    with pytest.raises(InputError, match="modality: image makes image, and audio was asked for"):
        genfl.generate("miniature", labels=["a"], per_label=1, out=tmp_path / "out", modality="audio")


@pytest.mark.parametrize(
    ("modality", "contents", "task"),
    [
        ("audio", "sounds", ("fedaudio", (101, 128), 2)),
        ("text", "texts", ("lstm", (25,), 2)),
    ],
)
def test_sounds_and_texts_are_pretrained_on_without_encode(modality, contents, task, tmp_path):
    from genfl.data.media import Clip
    from genfl.data.samples import Prompt
    from genfl.data.synthetic import SyntheticData
    from genfl.generation import GeneratedSamples

    rng = np.random.default_rng(0)
    values = {
        "sounds": lambda: Clip(rng.normal(size=16_000).astype(np.float32) / 9, 16_000),
        "texts": lambda: "some words of a text",
    }
    data = SyntheticData(tmp_path, ["rain", "dog"], 1, modality)
    made = [
        genfl.Sample(Prompt(label, label, 1.0, number), values[contents]())
        for number, label in enumerate(["rain", "dog"] * 4)
    ]
    data.write(0, made, "test", 1.0)
    samples = GeneratedSamples(tmp_path)
    warm = genfl.pretrain(genfl.task(*task), samples, epochs=1)
    assert warm.epoch == 1 and warm.label_names == ("rain", "dog")
    with pytest.raises(InputError, match="does not say how"):
        samples.arrays((3, 8, 8))


def test_overrides_of_a_config_reach_its_methods(tmp_path):
    content = {**BASE, "generator": {"kind": "image"}, "content": {"samples": 40}}
    mixed = {"algorithm": "fedavg", "data": "mixed"}
    content["methods"] = {"inherits": mixed, "sets": {**mixed, "content": {"samples": 40, "clients": 0.5}}}
    parsed = genfl.parse_config(content)
    (tmp_path / "config.yaml").write_text(config.dump(parsed))
    resolved = config.load(tmp_path / "config.yaml")
    assert genfl.parse_config(parsed) == parsed == resolved == genfl.parse_config(resolved)
    for source in (parsed, resolved, content):
        changed = genfl.parse_config(source, {"content.samples": 80})
        assert changed.content.samples == changed.methods["inherits"].content.samples == 80
        assert changed.methods["sets"].content.clients == 0.5
    assert genfl.parse_config(parsed, {"content.samples": 80}).methods["sets"].content.samples == 40


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"federate": {"rounds": 5}}, {"federate": {"rounds": 5, "clients_per_round": 3}}),
        ({"federate": {"local": {"lr": 0.5}}}, {"federate": {"local": {"lr": 0.5, "steps": 2}}}),
        ({"federate.local": {"lr": 0.5}}, {"federate": {"local": {"lr": 0.5, "steps": 2}}}),
        ({"data": {"partition": {"clients": 6}}}, {"data": {"partition": {"clients": 6, "alpha": 0.7}}}),
        ({"data": {"partition": {"kind": "iid"}}}, {"data": {"partition": {"kind": "iid", "alpha": 0.1}}}),
        ({"model": {"width": 8}}, {"model": {"name": "cnn", "width": 8}}),
        ({"model": {"name": "mlp"}}, {"model": {"name": "mlp", "width": 128}}),
        ({"generator": {"steps": 3}}, {"generator": {"model": "somewhere", "steps": 3}}),
        ({"generator": {"kind": "speech"}}, {"generator": {"model": "espeak"}}),
        (
            {"methods.b": {"start": "pretrained"}},
            {"methods": {"b": {"start": "pretrained", "data": "mixed"}}},
        ),
        ({"report": {"target_accuracy": 0.5}}, {"report": {"target_accuracy": 0.5}}),
    ],
)
def test_overrides_of_a_section_keep_its_other_fields(overrides, expected):
    content = {
        "name": "x",
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "alpha": 0.7, "clients": 4}},
        "generator": {"kind": "image", "model": "somewhere"},
        "model": "cnn",
        "federate": {"clients_per_round": 3, "local": {"steps": 2}},
        "methods": {"a": {"algorithm": "fedavg"}, "b": {"algorithm": "fedprox", "data": "mixed"}},
        "report": None,
    }
    before = copy.deepcopy(content)
    resolved = genfl.parse_config(content, overrides).model_dump()
    assert content == before

    def holds(part, whole):
        if isinstance(part, dict):
            return all(holds(value, whole[name]) for name, value in part.items())
        return part == whole

    assert holds(expected, resolved)
    only = genfl.parse_config(content, {"methods": {"c": {"algorithm": "fedavg"}}})
    assert list(only.methods) == ["c"]


def test_messages_name_the_arguments_of_python(tmp_path):
    (tmp_path / "mine.txt").touch()
    content = {**BASE, "methods": {"fedavg": {"algorithm": "fedavg"}}}
    with pytest.raises(InputError, match=r"^out: .* is not empty and holds no run; choose another folder"):
        genfl.run(content, out=tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".genfl").touch()
    (folder / "config.yaml").write_text("name: other\n")
    with pytest.raises(InputError, match=r"^out: .*, update=True to redo .*, or fresh=True to start over$"):
        genfl.run(content, out=folder)
    (folder / "config.yaml").write_text("name: 2026-02-30\n")
    with pytest.raises(InputError, match=r"2026-02-30 is no valid timestamp, line 1.* use fresh=True"):
        genfl.run(content, out=folder)
    with pytest.raises(InputError, match=r"^out: .* cannot be used \(File name too long\)"):
        genfl.run(content, out=tmp_path / ("x" * 300))


def test_kind_is_found_in_a_models_own_files(tmp_path):
    from genfl.generation import kind_of_model

    for name, file, content, kind in (
        ("a", "model_index.json", {"_class_name": "AudioLDMPipeline"}, "sound"),
        ("b", "model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "image"),
        ("c", "config.json", {"architectures": ["LlamaForCausalLM"]}, "text"),
        ("d", "config.json", {"architectures": ["SpeechT5ForTextToSpeech"]}, "speech"),
        ("e", "config.json", {"architectures": ["VitsModel"]}, "speech"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
        assert kind_of_model(str(tmp_path / name)) == kind
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(InputError, match=r"kind: .*BertModel, which does not say what it makes"):
        kind_of_model(str(tmp_path / "f"))
    assert (kind_of_model("miniature"), kind_of_model("espeak")) == ("image", "speech")


@pytest.mark.slow
def test_a_run_is_loaded_again_with_table_and_models(tmp_path):
    methods = {"fedavg": {"algorithm": "fedavg"}, "alone": {"algorithm": "local"}}
    first = genfl.run({**BASE, "methods": methods}, {"federate.rounds": 1}, out=tmp_path / "run")
    result = genfl.load_run(tmp_path / "run")
    assert result.config.federate.rounds == 1
    assert list(result.table().columns) == ["mean", "std", "rounds", "MB"]
    assert result.table().equals(first.table())
    assert result.report.is_file()
    for arguments, line in (
        (("fedavgg",), "did you mean 'fedavg'"),
        (("fedavg", 7), "seed: there is no 7"),
        (("alone",), "has no global model"),
    ):
        with pytest.raises(InputError, match=line):
            result.model(*arguments)
    with pytest.raises(InputError, match="holds no run"):
        genfl.load_run(tmp_path)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_with_new_fields_at_their_defaults(tmp_path):
    content = {**BASE, "methods": {"fedavg": {"algorithm": "fedavg"}}}
    genfl.run(content, out=tmp_path)
    file = tmp_path / "config.yaml"
    old = yaml.safe_load(file.read_text())
    del old["labels"]["min_holders"], old["labels"]["bins"], old["track"]
    file.write_text(yaml.safe_dump(old))
    genfl.run(content, out=tmp_path)
    assert yaml.safe_load(file.read_text())["labels"]["min_holders"] == 1
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(InputError, match=r"another config \(labels.min_holders: was 1, is now 2\)"):
        genfl.run(content, {"labels.min_holders": 2}, out=tmp_path)


@pytest.mark.slow
def test_a_sweep_returns_a_table(tmp_path):
    content = {**BASE, "methods": {"fedavg": {"algorithm": "fedavg"}}, "grid": {"federate.rounds": [1, 2]}}
    table = genfl.sweep(content, out=tmp_path / "sweep")
    assert table["federate.rounds"].tolist() == [1, 2]
    assert genfl.load_run(table["run"][0]).config.federate.rounds == 1


def test_configure_is_a_choice(monkeypatch):
    import logging

    logger = logging.getLogger("genfl")
    before = list(logger.handlers), logger.level
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    try:
        genfl.configure(idle_threads=False)
        assert "OMP_WAIT_POLICY" not in os.environ and len(logger.handlers) == 1
        genfl.configure(logs=False)
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    finally:
        logger.handlers, logger.level = before
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.mark.slow
def test_the_quickstart_runs_and_its_outputs_are_stored(tmp_path):
    notebook = json.loads((ROOT / "docs" / "tutorials" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and any(cell["outputs"] for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    (tmp_path / "quickstart.py").write_text(code, encoding="utf-8")
    run_program("import runpy; runpy.run_path('quickstart.py', run_name='__main__')", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "api",
        "federated",
        "generation",
        "registration",
        "data.partition",
        "data.budget",
        "learning.local",
        "privacy.attacks.canaries",
        "privacy.attacks.leakage",
    ],
)
def test_examples_in_docstrings_run(module, forget):
    import doctest

    found = doctest.testmod(importlib.import_module(f"genfl.{module}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed
