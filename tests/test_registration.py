"""Registration: names, options, code digests, plugins and threads."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import genfl
from genfl import pipeline
from genfl.algorithms import ALGORITHMS
from genfl.errors import GenflError, InputError
from genfl.experiment.context import RunContext
from genfl.generators.registry import GENERATORS
from genfl.llm.chat import TRANSPORT_OPTIONS
from genfl.models import MODELS
from genfl.models.wrapped import as_classifier
from genfl.registry import Registry

BASE = {
    "name": "mine",
    "seeds": [0],
    "data": "digits",
    "model": "mlp",
    "generator": "none",
    "methods": {"a": {"algorithm": "fedavg"}},
    "federate": {"rounds": 1, "clients_per_round": 2},
}


pytestmark = pytest.mark.usefixtures("forget")


def digests(content):
    """Return the digest of each stage of a config."""
    stages = pipeline.digests(genfl.parse_config(content), RunContext())
    return {stage.name: digest for stage, _, digest in stages}


@pytest.mark.slow
def test_every_option_of_a_registered_generator_counts():
    @genfl.register.generator("mygen", ignored_options=["wait"])
    def mygen(
        *, model: str = "a", path: str = "p", strength: float = 0.5, timeout: float = 1.0, wait: float = 1.0
    ) -> genfl.Generator: ...

    def generate(**options):
        content = {**BASE, "generator": {"kind": "mygen", **options}}
        content["methods"] = {"a": {"algorithm": "fedavg", "start": "pretrained"}}
        return digests(content)["generate"]

    changes = [{}, {"model": "b"}, {"path": "q"}, {"strength": 0.9}, {"timeout": 9.0}]
    assert len({generate(**change) for change in changes}) == len(changes)
    assert generate(wait=9.0) == generate()


def test_a_fingerprint_follows_the_files_that_options_name():
    content = ["first"]

    @genfl.register.generator("mygen", fingerprint=lambda options: [options["path"], content[0]])
    def mygen(*, path: str = "p") -> genfl.Generator: ...

    entry = GENERATORS["mygen"]
    before = entry.fingerprint({"path": "p"}, "image")
    content[0] = "second"
    assert entry.fingerprint({"path": "p"}, "image") != before


def test_ignored_options_are_options():
    with pytest.raises(InputError, match="ignored_options names 'waits'"):

        @genfl.register.generator("mygen", ignored_options=["waits"])
        def mygen(*, wait: float = 1.0) -> genfl.Generator: ...

    assert set(GENERATORS["text"].ignored_options) >= TRANSPORT_OPTIONS


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("def m(*, sizes: tuple = (1, 2)) -> genfl.LocalHook: ...", "m.sizes has the type .*tuple"),
        ("def m(*, mu=0.1) -> genfl.LocalHook: ...", "m.mu has no annotation"),
        ("def m(*, mu: float) -> genfl.LocalHook: ...", "m.mu has no default"),
        ("def m(*, mu: float = 0.1) -> 'gg.LocalHook': ...", "an annotation cannot be resolved .*'gg'"),
        ("def m(*, mu: 'gg.X' = 0.1) -> genfl.LocalHook: ...", "an annotation cannot be resolved .*'gg'"),
        ("def m(*, mu: float = 0.1): ...", "must say what it returns"),
    ],
)
def test_options_that_no_config_can_give_are_named(code, line):
    scope = {"genfl": genfl}
    exec(code, scope)
    with pytest.raises(InputError, match=line):
        genfl.register("mine")(scope["m"])
    assert "mine" not in ALGORITHMS


def test_models_and_generators_name_unsupported_options():
    with pytest.raises(InputError, match=r"net\.widths has the type"):

        @genfl.register.model("mine")
        def net(shape: tuple[int, ...], classes: int, *, widths: list[int] = []) -> torch.nn.Module: ...  # noqa: B006

    with pytest.raises(InputError, match=r"make\.sizes has no annotation"):

        @genfl.register.generator("mine")
        def make(*, sizes=(1, 2)) -> genfl.Generator: ...


def test_registered_builders_check_their_ranges():
    from genfl.options import Positive

    @genfl.register("mine")
    def mine(*, mu: Positive = 0.1) -> "LocalHook":  # noqa: F821
        return genfl.LocalHook()

    assert ALGORITHMS["mine"].make(mu=0.5).name == "mine"
    with pytest.raises(InputError, match=r"mine\.mu: -1 is out of range"):
        ALGORITHMS["mine"].make(mu=-1)


def register_hook(name, factor):
    @genfl.register(name)
    def hook(*, mu: float = 0.1) -> genfl.LocalHook:
        return genfl.LocalHook(name=f"{name} {factor}")


def test_code_of_methods_does_not_depend_on_the_order_of_registration():
    content = {**BASE, "methods": {"a": {"algorithm": ["first", "second"]}}}
    codes = []
    for names in (["first", "second"], ["second", "first"]):
        ALGORITHMS.restore({})
        for name in [*names, "unused"]:
            register_hook(name, 1)
        codes.append(genfl.parse_config(content).methods["a"].code)
    assert codes[0] == codes[1] and list(codes[0]) == ["first", "second"]
    register_hook("first", 2)
    assert genfl.parse_config(content).methods["a"].code != codes[0]


FACTOR = 1.0


def test_code_is_that_of_the_moment(monkeypatch):
    @genfl.register("factor")
    def hook(*, mu: float = 0.1) -> genfl.LocalHook:
        return genfl.LocalHook(penalty=lambda params, aux, batch, context: FACTOR * mu)

    before = ALGORITHMS["factor"].code
    assert ALGORITHMS["factor"].code == before != ""
    monkeypatch.setitem(globals(), "FACTOR", 2.0)  # as a notebook cell does that is edited and run again
    assert ALGORITHMS["factor"].code != before


def register_net(name, layer):
    @genfl.register.model(name, shape=(1, 8, 8))
    def net(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), layer(), torch.nn.Linear(64, classes))


def test_code_of_models_counts_where_the_model_is_used():
    content = {**BASE, "model": "net", "client_models": [{"name": "other"}]}
    register_net("net", torch.nn.ReLU)
    register_net("other", torch.nn.ReLU)
    config = genfl.parse_config(content)
    assert list(config.model_code) == ["net"] and list(config.client_model_code) == ["other"]
    before = digests(content)["federate"]
    register_net("net", torch.nn.Tanh)
    changed = digests(content)["federate"]
    register_net("other", torch.nn.Tanh)
    assert len({before, changed, digests(content)["federate"]}) == 3


def test_registries_check_names_and_are_independent():
    first = Registry("model", {"a": 1}, reserved={"b"})
    second = Registry("model", {})
    for name in ("a", "b", "", 3):
        with pytest.raises(InputError, match="register: "):
            first[name] = 2
    first["c"] = 2
    assert dict(first) == {"a": 1, "c": 2} and not second
    with pytest.raises(KeyError):
        del first["a"]


def run_with_plugin(tmp_path, plugin, code):
    (tmp_path / "theirs.py").write_text(textwrap.dedent(plugin))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[genfl.plugins]\ntheirs = theirs\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )


PLUGIN = """
    import genfl

    @genfl.register("mymethod")
    def mymethod(*, theirs: float = 9.0) -> genfl.LocalHook:
        return genfl.LocalHook()

    @genfl.register.model("theirnet")
    def theirnet(shape: tuple[int, ...], classes: int): ...
"""


@pytest.mark.slow
def test_a_users_entry_replaces_a_plugins(tmp_path):
    code = """
        import genfl

        @genfl.register("mymethod")
        def mine(*, mine: float = 0.1) -> genfl.LocalHook:
            return genfl.LocalHook()

        from genfl.algorithms import ALGORITHMS
        from genfl.models import MODELS
        print(*ALGORITHMS["mymethod"].options(), "theirnet" in MODELS)
    """
    assert run_with_plugin(tmp_path, PLUGIN, code).stdout.split() == ["mine", "True"]


@pytest.mark.slow
def test_a_plugin_that_raises_midway_registers_nothing(tmp_path):
    code = """
        from genfl.algorithms import ALGORITHMS
        from genfl.models import MODELS
        print("mymethod" in ALGORITHMS, "theirnet" in MODELS)
    """
    done = run_with_plugin(tmp_path, PLUGIN + "    raise RuntimeError('boom')\n", code)
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr.count("plugin theirs: theirs cannot be imported (RuntimeError: boom)") == 1


@pytest.mark.slow
def test_threads_wait_for_plugins(tmp_path):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from genfl.algorithms import ALGORITHMS
        with ThreadPoolExecutor(4) as pool:
            print(*pool.map(lambda _: "mymethod" in ALGORITHMS, range(4)))
    """
    done = run_with_plugin(tmp_path, "import time; time.sleep(0.3)\n" + textwrap.dedent(PLUGIN), code)
    assert done.stdout.split() == ["True"] * 4


def frozen_body(shape, classes, width: int = 4):
    """A model whose first layer is not to be trained."""
    body = nn.Linear(64, width).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(width, classes))


def wider_body(shape, classes, width: int = 4):
    return frozen_body(shape, classes, width + 1)


@pytest.mark.slow
def test_a_run_saves_frozen_parameters_and_leaves_them(tmp_path):
    genfl.register.model("frozen")(frozen_body)
    config = genfl.parse_config({**BASE, "seeds": [0, 1], "model": "frozen"})
    pipeline.execute(config, tmp_path / "run")
    files = [tmp_path / "run" / "federate" / "a" / f"seed-{seed}" / "model.safetensors" for seed in (0, 1)]
    saved = [load_file(file) for file in files]
    assert list(saved[0]) == ["body.1.bias", "body.1.weight", "classifier.bias", "classifier.weight"]
    for name in saved[0]:
        assert torch.equal(saved[0][name], saved[1][name]) == name.startswith("body.")
    model = genfl.Result(tmp_path / "run").model("a", seed=1)
    assert all(torch.equal(value, saved[1][name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_run_of_unregistered_names_says_what_to_import(tmp_path):
    """As in a new process: the figures are there, the model needs its builder."""
    genfl.register.model("frozen")(frozen_body)
    config = genfl.parse_config({**BASE, "model": "frozen"})
    pipeline.execute(config, tmp_path / "run")
    MODELS.restore({})
    result = genfl.Result(tmp_path / "run")
    line = r"model: frozen is a model of your own, whose code is not at hand; import the module that"
    with pytest.raises(InputError, match=line):
        result.model("a")
    genfl.register.model("frozen")(wider_body)
    with pytest.raises(
        InputError, match=r"does not fit the model frozen .*; register the model that the run"
    ):
        result.model("a")
    genfl.register.model("frozen")(frozen_body)
    assert result.model("a").label_names == result.label_names


@pytest.mark.slow
def test_a_run_names_the_method_of_ones_own_that_fails(tmp_path):
    @genfl.register("mine")
    def mine() -> genfl.LocalHook:
        def wrong(params, aux, batch, context):
            return params["absent"] if batch["x"].any() or always else 0.0

        return genfl.LocalHook(wrong)

    content = {**BASE, "methods": {"b": {"algorithm": "mine"}}}
    always = True
    with pytest.raises(
        InputError, match=r"methods\.b\.algorithm: its first step fails: KeyError: 'absent' \(in w"
    ):
        genfl.run(content, out=tmp_path / "early")
    always = False
    for engine in ("sequential", "parallel"):
        federate = {**BASE["federate"], "engine": engine}
        with pytest.raises(
            GenflError, match=r"methods\.b: .*KeyError: 'absent' \(in wrong, test_reg"
        ) as caught:
            genfl.run({**content, "federate": federate}, out=tmp_path / engine)
        assert "\n" not in str(caught.value)


def test_a_file_with_other_frozen_values_is_refused(tmp_path):
    genfl.register.model("frozen")(frozen_body)
    torch.save(as_classifier(frozen_body((1, 8, 8), 10)).state_dict(), tmp_path / "old.pth")
    content = {**BASE, "model": "frozen", "pretrain": {"init": str(tmp_path / "old.pth")}}
    with pytest.raises(
        InputError, match=r"old.pth has other values for body.1.weight, which the model freezes"
    ):
        genfl.run(
            {**content, "methods": {"a": {"algorithm": "fedavg", "start": "init"}}}, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
