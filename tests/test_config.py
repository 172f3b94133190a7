from pathlib import Path

import numpy as np
import pytest
import yaml

from genfl import config
from genfl.algorithms import ALGORITHMS
from genfl.errors import LONGEST_LINE, InputError, on_one_line, shorten

BASE = """
name: test
data: {name: digits}
model: {name: cnn}
methods:
  fedavg: {algorithm: fedavg}
  gptfl: {algorithm: {name: fedadam, server_lr: 0.3}, start: pretrained}
"""


def test_defaults_are_filled_in_and_the_resolved_config_reads_back_the_same():
    resolved = config.parse(BASE)
    assert resolved.federate.rounds == 100
    assert resolved.methods["gptfl"].algorithm[0].lr == 0.3
    assert config.parse(config.dump(resolved)) == resolved


PACKAGED = Path(config.__file__).parents[1] / "configs" / "digits.yaml"


def test_every_mistake_is_told_once():
    wrong = ["federate.clients_per_round=99", "seeds=[1, 1]", "data.path=somewhere", "prompts.style=llm"]
    with pytest.raises(InputError) as caught:
        config.load(PACKAGED, wrong)
    fields = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert fields == ["federate.clients_per_round", "seeds", "data.path", "prompts.llm"]
    shared = ["content={guidance: real, by: server}", "methods.a={algorithm: fedavg, data: mixed}"]
    with pytest.raises(InputError) as caught:
        config.load(PACKAGED, [*shared, "methods.b={algorithm: fedprox, data: mixed}"])
    assert str(caught.value) == "content.by: the server has no real examples; use clients, or guidance prompt"


def test_the_packaged_config_is_the_example():
    example = Path(__file__).parents[1] / "examples" / "digits.yaml"
    assert example.read_text() == PACKAGED.read_text()
    assert config.load(example).name == "digits"


def test_overrides_are_yaml_at_dotted_paths():
    resolved = config.parse(
        BASE,
        [
            "federate.rounds=7",
            "seeds=[4, 5]",
            "prompts.guidance_scale=3",
            "methods.fedavg.algorithm=fedyogi",
            "methods.fedavg.algorithm.tau=0.01",
            "methods.other={algorithm: fedavgm}",
        ],
    )
    assert resolved.federate.rounds == 7
    assert resolved.seeds == [4, 5]
    assert resolved.prompts.guidance_scale == [3.0]
    (part,) = resolved.methods["fedavg"].algorithm
    assert (part.name, part.tau) == ("fedyogi", 0.01)
    assert list(resolved.methods) == ["fedavg", "gptfl", "other"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("federate.round=3", "federate.round: unknown key; did you mean 'rounds'?"),
        ("fedarate.rounds=3", "fedarate: unknown key; did you mean 'federate'?"),
        (
            "methods.gptfl.algorithm.betta1=0.5",
            "methods.gptfl.algorithm.betta1: unknown key; did you mean 'beta1'?",
        ),
        (
            "methods.fedavg.algorithm.server_lr=1",
            "methods.fedavg.algorithm.server_lr: unknown key; known: name",
        ),
        (
            "methods.fedavg.algorithm=fedavgg",
            "methods.fedavg.algorithm.name: there is no 'fedavgg'; did you mean",
        ),
        (
            "methods.fedavg.algorithm=[fedprox, {name: fedadam, betta1: 0.5}]",
            "methods.fedavg.algorithm.1.betta1: unknown key; did you mean 'beta1'?",
        ),
        ("methods.fedavg.algorithm=[]", "methods.fedavg.algorithm: value should have at least 1 item"),
        ("methods.fedavg.algorithm.3.mu=1", "methods.fedavg.algorithm.3: unknown key"),
        ("model.width=5", "model.width: should be a multiple of 4, not 5"),
        ("model={name: mlp, norm: batch}", "model.norm: unknown key"),
        ("model.name=cnnn", "model.name: there is no 'cnnn'; did you mean 'cnn'?"),
        (
            "client_models=[{name: mlp, width: 0}]",
            "client_models.0.width: should be greater than",
        ),
        ("methods.new.start=random", "methods.new.algorithm: required, but missing"),
        ("methods={}", "methods: "),
        ("methods.synthetic_only={algorithm: fedavg}", "choose another name"),
        ("federate.rounds=many", "federate.rounds: should be a valid integer"),
        ("federate.rounds=2.5", "federate.rounds: should be a valid integer"),
        ("data.partition.alpha=0", "data.partition.alpha: should be greater than 0, not 0"),
        ("data.partition.alpha=-1", "data.partition.alpha: should be greater than 0, not -1"),
        ("data.partition.alpha=.nan", "data.partition.alpha: should be"),
        ("data.partition=3", "data.partition: should be a mapping of keys to values, not 3"),
        ("federate.clients_per_round=30", "federate.clients_per_round: 30 clients a round, but"),
        ("data.name=digit", "data.name: there is no 'digit'; did you mean 'digits'?"),
        ("model.name=zzz", "model.name: there is no 'zzz'; known: cnn, "),
        (f"name={'x' * 256}", "name: becomes the name of a folder: at most 200 bytes, not 'xxx"),
        (f"name={'é' * 101}", "name: becomes the name of a folder: at most 200 bytes"),
        (
            f"methods={{{'m' * 300}: {{algorithm: fedavg}}}}",
            "becomes the name of a folder: at most 200 bytes",
        ),
        ('name="a\\nb"', "name: becomes the name of a folder: no slash, no control character"),
        (
            "methods={engine.json: {algorithm: fedavg}}",
            "methods: engine.json is reserved for a file",
        ),
        ("federate=7", "federate: should be a mapping of keys to values, not 7"),
        ("methods=", "methods: should be a mapping of keys to values, not null"),
        ("methods.fedavg=", "methods.fedavg: should be a mapping of keys to values, not null"),
        ("federate.rounds=", "federate.rounds: should be a valid integer, not null"),
        ("name=2026-02-28", "name: should be a valid string, not 2026-02-28"),
        ("name=2026-02-30", "name: '2026-02-30' is not a YAML value (2026-02-30 is no valid timestamp; put"),
        ("model.width=0x" + "f" * 5000, "model.width: the number has 20000 bits; use at most 63"),
        ("seeds=[9999999999999999999]", "seeds.0: the number has 64 bits; use at most 63"),
        (f"seeds={list(range(1001))}", "seeds: value should have at most 1000 items, not 1001"),
        (f"federate.{'x' * 5000}=1", "xxx: unknown key"),
        (f"federate.rounds={'x' * 5000}", "federate.rounds: should be a valid integer, not 'xxx"),
        (f"model.name={'x' * 5000}", "model.name: there is no 'xxx"),
        ("methods.fedavg.²=1", "methods.fedavg.²: unknown key"),
        ("name=../x", "name: becomes the name of a folder: no slash"),
        ("methods={a/b: {algorithm: fedavg}}", "methods.a/b: becomes the name of a folder: no slash"),
        ("methods.fedavg.algorithm={name: fedadam, server_lr: -1}", "algorithm.lr: should be greater than 0"),
        ("methods.fedavg.algorithm={name: fedadam, server_lr: 1, lr: 1}", "server_lr: unknown key"),
        ("methods.fedavg.algorithm={name: feddyn, alpha: 0}", "alpha: should be greater than 0"),
        ("federate.rounds=true", "federate.rounds: should be a valid integer"),
        ("generator.device=gpu", "generator.device: "),
        ("federate.local={steps: 3, epochs: 2}", "federate.local: set steps or epochs, not both"),
        ("generator.kind=zzz", "generator.kind: there is no 'zzz'; known: image, speech, sound, text, files"),
        ("generator={kind: files}", "generator.path: required, but missing"),
        ("generator.path=x", "generator.path: unknown key; known: device, kind, model, safety"),
        ("data.size=[8, 8]", "data.size: digits takes no options; leave it out"),
        ("precision=half", "precision: should be 'fp32' or 'bf16', not 'half'"),
        ("prompts.guidance_scale=-3", "prompts.guidance_scale.0: should be greater than or equal to 0"),
        ("labels.cells=1000000000", "labels.cells: should be less than"),
        ("seeds=[1, 1]", "seeds: give different non-negative integers"),
        ("seeds=[-1]", "seeds: give different non-negative integers"),
        ("seeds=[]", "seeds: "),
        ("labels.max_bytes=2000", "labels.max_bytes: should be less than or equal to 1024"),
        ("prompts.guidance_scale=much", "prompts.guidance_scale.0: should be a valid number"),
        ("rounds", "'rounds': an override is key=value"),
        ("=3", "'=3': an override is key=value"),
        ("name.x=3", "name.x: 'name' has no keys"),
        ("federate.rounds=[", "federate.rounds: '[' is not a YAML value"),
    ],
)
def test_mistakes_are_one_clear_line(override, line):
    with pytest.raises(InputError) as caught:
        config.parse(BASE, [override])
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) <= LONGEST_LINE


def test_a_position_is_a_plain_number():
    with pytest.raises(InputError, match=r"client_models\.²\.width: '²' has no keys"):
        config.parse(BASE, ["client_models=[cnn]", "client_models.².width=8"])


def test_every_mistake_has_its_line():
    with pytest.raises(InputError) as caught:
        config.parse(BASE, ["federate.rounds=x", "labels.max_bytes=0", "oops=1"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["", "- a", "just words", "a: [", "{"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(InputError, match="config: "):
        config.parse(text)


def test_a_key_given_twice_and_what_is_no_text_are_refused(tmp_path):
    with pytest.raises(InputError, match="'seeds' is given twice"):
        config.parse(BASE + "seeds: [1]\nseeds: [2]\n")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8"):
        config.load(tmp_path / "latin.yaml")


def test_aliases_do_not_share_what_they_stand_for():
    text = BASE.replace(
        "methods:", "methods:\n  base: &m {algorithm: fedavg}\n  warm: *m\n  warmer: {<<: *m}"
    )
    resolved = config.parse(text, ["methods.warm.start=pretrained", "methods.warmer.data=mixed"])
    starts = {name: resolved.methods[name].start for name in ("base", "warm", "warmer")}
    assert starts == {"base": "random", "warm": "pretrained", "warmer": "random"}
    assert resolved.methods["base"].data == "private"


def test_merged_keys_can_be_replaced_at_several_places():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, y: 3}\nd: {<<: [*a, *b]}\n"
    content = config.plain(text)
    assert content["b"] == {"x": 1, "y": 2}
    assert content["c"] == {"x": 1, "y": 3}
    assert content["d"] == {"x": 1, "y": 1}


LISTS = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "x0: &x0 {a: b}\n" + "".join(
    f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 3000))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LISTS + BASE.replace("name: test", "name: *x8"), "more than 100000 values, line "),
        (MERGES + BASE, "more than 100000 values, line "),
        (CHAIN + BASE, "nested more than 40 levels deep, line 38"),
        ("name: " + "[" * 20_000 + "]" * 20_000, "nested more than 40 levels deep, line 1"),
        ("name: " + "{a: " * 20_000, "nested more than 40 levels deep, line 1"),
        ("name: &a [*a]", "an alias stands for what it is a part of, line 1"),
        ("name: &a {b: *a}", "an alias stands for what it is a part of, line 1"),
        ("a: 1\nprompts:\n  template: {{label}}", "a key is no plain text, line 3; put what has braces into"),
        ("a: 1\n{[1, 2]: 3}", "line 2"),
        ("name: {? {a: 1} : 2}", "a key is no plain text, line 1"),
        ("\nname: 2026-02-30", "2026-02-30 is no valid timestamp, line 2; put a text into quotes"),
        ("name: 2026-13-01T00:00:00", "2026-13-01T00:00:00 is no valid timestamp, line 1"),
        ("name: 0b_", "0b_ is no valid int, line 1"),
        ("name: !!int abc", "abc is no valid int, line 1"),
        ("name: !!float abc", "abc is no valid float, line 1"),
        ("name: !!bool maybe", "maybe is no valid bool, line 1"),
        ("name: !!timestamp x", "x is no valid timestamp, line 1"),
        ("name: !!binary not-base64!!", "failed to decode base64 data"),
        ("name: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("name: " + "9" * 5000, "is no valid int, line 1"),
        ("name: *nothing", "found undefined alias 'nothing', line 1"),
        ("name: a\0b", "special characters are not allowed"),
        ("name: 'a", "found unexpected end of stream, line 1"),
        ("x" * 1000 + ": 1\n" + "x" * 1000 + ": 1", "is given twice, line 2"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_line_with_its_place(text, line, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        config.load(tmp_path / "bad.yaml")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bad.yaml'}: not YAML: ")
    assert line in message
    assert "\n" not in message
    assert len(message) <= LONGEST_LINE


@pytest.mark.parametrize("section", ["labels", "prompts", "pretrain", "federate", "content", "report"])
def test_a_section_without_lines_has_its_defaults(section):
    assert config.parse(f"{BASE}{section}:\n  # nothing: set\n") == config.parse(BASE)


def test_sections_within_sections_can_be_empty():
    empty = ["data.partition=", "federate.local=", "federate.local.augment=", "prompts.blanks="]
    assert config.parse(BASE, empty) == config.parse(BASE)
    rounds = config.parse(f"{BASE}federate:\n  # rounds: 7\n", ["federate.local.steps=3"])
    assert rounds.federate.local.steps == 3


def test_messages_do_not_name_classes_of_python():
    wrong = {"data": 1, "labels": [1], "prompts": "x", "model": {}, "federate": 3, "methods": {"a": "b"}}
    with pytest.raises(InputError) as caught:
        config.validate({"name": 3, **wrong})
    fields = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert fields == ["name", "data", "labels", "prompts", "model.name", "federate", "methods.a"]
    for word in ("instance of", "dictionary", "Federation", "Prompts", "<class"):
        assert word not in str(caught.value)


def test_of_many_mistakes_the_first_are_told():
    with pytest.raises(InputError) as caught:
        config.parse(BASE, [f"methods={{{', '.join(f'm{i}: {{algorithm: x}}' for i in range(100))}}}"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 31
    assert lines[0].startswith("methods.m0.algorithm.name: there is no 'x'")
    assert lines[-1] == "config: 70 more mistakes; mend these first"


def test_numbers_arrays_and_paths_of_python_are_plain_values():
    content = yaml.safe_load(BASE)
    content["seeds"] = np.arange(2)
    content["data"] = {"name": "digits", "partition": {"alpha": np.float32(0.5), "clients": np.int64(20)}}
    content["federate"] = {"rounds": np.int32(7), "fast": np.bool_(False)}
    content["prompts"] = {"guidance_scale": (1.0, 2.0)}
    content["pretrain"] = {"init": Path("weights") / "model.pth"}
    resolved = config.validate(content)
    assert (resolved.seeds, resolved.federate.rounds, resolved.federate.fast) == ([0, 1], 7, False)
    assert resolved.prompts.guidance_scale == [1.0, 2.0]
    assert resolved.pretrain.init == "weights/model.pth"
    assert config.parse(config.dump(resolved)) == resolved


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seeds": [10**5000]}, "seeds.0: the number has 16610 bits; use at most 63"),
        ({"name": "a\ud800"}, "name: a\\ud800 is not Unicode text"),
        ({1: 2}, "1: keys should be strings"),
    ],
)
def test_values_of_python_that_no_file_can_hold(change, line):
    with pytest.raises(InputError) as caught:
        config.validate({**yaml.safe_load(BASE), **change})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_contain_themselves_are_refused():
    content = yaml.safe_load(BASE)
    content["prompts"] = content
    with pytest.raises(InputError, match="config: its values are nested too deeply, or contain themselves"):
        config.validate(content)


def test_shortened_texts_keep_both_ends():
    assert shorten("abc", 10) == "abc"
    assert shorten("0123456789" * 10, 25) == "0123456789 ... 0123456789"
    assert on_one_line("a\nb\u2028c") == "a\\nb\\u2028c"
    assert on_one_line(7) == "7"
    error = InputError("field: " + "x" * 10_000 + "; fix it\nsecond")
    first, second = str(error).splitlines()
    assert first.startswith("field: xxx") and first.endswith("xxx; fix it") and len(first) <= LONGEST_LINE
    assert second == "second"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*absent\.yaml"):
        config.load(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=r"there is no file absent\.yaml; check the path"):
        config.load("absent.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        config.load(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        config.load(tmp_path / ("x" * 300))


def test_a_file_can_be_named_by_a_text(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    assert config.load("small.yaml") == config.parse(BASE) == config.load(Path("small.yaml"))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_can_be_named_with_all_its_options(name):
    options = {option: default for option, (_, default) in ALGORITHMS[name].options().items()}
    content = yaml.safe_load(BASE)
    content["methods"] = {"only": {"algorithm": {"name": name, **options}}}
    (part,) = config.validate(content).methods["only"].algorithm
    assert part.model_dump() == {"name": name, **options}


def test_several_methods_make_one_algorithm_and_their_options_are_reached_by_place():
    resolved = config.parse(
        BASE,
        ["methods.fedavg.algorithm=[fedprox, {name: fedadam, tau: 0.1}]", "methods.fedavg.algorithm.0.mu=3"],
    )
    first, second = resolved.methods["fedavg"].algorithm
    assert (first.name, first.mu, second.name, second.tau) == ("fedprox", 3, "fedadam", 0.1)


def test_a_model_takes_its_own_options():
    resolved = config.parse(
        BASE, ["model=cnn", "model.width=8", "client_models=[mlp, {name: cnn, width: 4}]"]
    )
    assert resolved.model.options() == {"width": 8, "norm": "group", "hidden": 0, "projection": 0}
    assert [model.options()["width"] for model in resolved.client_models] == [128, 4]


def test_an_engines_old_spelling_is_accepted_and_steps_are_fast_unless_told_otherwise():
    resolved = config.parse(BASE, ["federate.engine=vectorised"])
    assert resolved.federate.engine == "vectorized" and resolved.federate.fast is True
    assert config.parse(BASE, ["federate.fast=false"]).federate.fast is False
    with pytest.raises(InputError, match=r"federate\.engine: should be 'auto', 'parallel', 'sequential', "):
        config.parse(BASE, ["federate.engine=vectorise"])


def test_the_schema_follows_the_registry(monkeypatch):
    """An entry that is added after the schema was built is known, and one that is gone is not."""
    entry = ALGORITHMS["fedprox"]
    assert config.parse(BASE).methods["fedavg"].algorithm[0].name == "fedavg"
    with monkeypatch.context() as patch:
        patch.setitem(ALGORITHMS, "later", entry)
        assert config.parse(BASE, ["methods.fedavg.algorithm=later"]).methods["fedavg"].asks_for == set()
        assert "Algorithm_later" in config.Config.model_json_schema()["$defs"]
    with pytest.raises(InputError, match="there is no 'later'"):
        config.parse(BASE, ["methods.fedavg.algorithm=later"])


def test_config_imports_no_engine_and_no_generator():
    folder = Path(config.__file__).parent
    lines = [line for file in folder.glob("*.py") for line in file.read_text().splitlines()]
    imports = [line for line in lines if "import" in line and "genfl." in line]
    assert imports
    assert not [line for line in imports if "genfl.engines" in line or "genfl.generators" in line]


def test_differences_name_the_path_and_both_values():
    old, new = config.parse(BASE), config.parse(BASE, ["federate.rounds=7", "methods.x={algorithm: fedavg}"])
    lines = config.differences(yaml.safe_load(config.dump(old)), yaml.safe_load(config.dump(new)))
    assert lines[0] == "federate.rounds: was 100, is now 7"
    assert lines[1] == "methods.x: added"
    assert len(lines) == 2


def test_scientific_notation_needs_no_point():
    text = (
        "{name: x, data: digits, model: cnn, federate: {local: {lr: 1e-3}}, methods: {a: {algorithm: moon}}}"
    )
    found = config.parse(text, ["pretrain.lr=5E-4", "data.partition.alpha=1e3"])
    assert (found.federate.local.lr, found.pretrain.lr, found.data.partition.alpha) == (1e-3, 5e-4, 1e3)
    assert found.data.name == "digits"
    assert config.parse(text, ["name=1e3x"]).name == "1e3x"
    quoted = config.parse(text, ["name='1e5'", "methods={'2e3': {algorithm: fedavg}}"])
    assert (quoted.name, *quoted.methods) == ("1e5", "2e3")
    assert config.parse(config.dump(quoted)) == quoted
