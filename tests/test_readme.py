"""What the README shows works as shown."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from safetensors.torch import load_file
from support.command import run_program

from genfl import config
from genfl.algorithms import ALGORITHMS
from genfl.errors import InputError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA_PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def _blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


WHOLE, SHORT, FIRST_METHODS = _blocks("yaml")
METHODS, CHANGES, TRAINING, PUBLIC, CONTENT = _blocks("yaml", METHODS_PAGE)


def test_the_config_is_valid_and_takes_the_methods_shown():
    assert list(config.parse(WHOLE).methods) == ["fedavg", "gptfl", "gptfl_adam"]
    shown = config.parse(WHOLE[: WHOLE.index("methods:")] + FIRST_METHODS)
    assert shown.methods["fedgc"].content == shown.content
    assert shown.methods["own_style"].content.guidance == "mixed"
    shown = config.parse(WHOLE[: WHOLE.index("methods:")] + METHODS)
    assert shown.methods["prox_adam"].algorithm[0].mu == 0.1
    assert shown.methods["moon_mixed"].data == "mixed"
    shown = config.parse(WHOLE[: WHOLE.index("federate:")] + CONTENT)
    assert shown.methods["own_style"].content.guidance == "mixed"
    assert shown.methods["fedavg+fedgc"].content == shown.content
    for line in CHANGES.splitlines():
        ((section, content),) = yaml.safe_load(line).items()
        assert config.parse(WHOLE, [f"{section}={content}"]) != config.parse(WHOLE)


OWN_IMAGES = "data={name: images, path: own, size: [32, 32], partition: {clients: 20, samples: 900}}"


def test_public_data_is_as_shown():
    shown = config.parse(WHOLE[: WHOLE.index("methods:")] + PUBLIC, [OWN_IMAGES])
    assert [name for name, method in shown.methods.items() if method.source == "public"] == [
        "feddf",
        "public_start",
        "public_content",
    ]
    lines = [line for block in _blocks("yaml", DATA_PAGE) for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("public: {")]
    assert len(lines) == 4
    for line in lines:
        (section,) = yaml.safe_load(line).values()
        taken = ["methods.more={algorithm: dsfl, source: public}", OWN_IMAGES, f"public={section}"]
        assert config.parse(WHOLE, taken).public.model_fields_set == section.keys()


def test_the_options_of_training_are_as_shown():
    options = [f"{section}={json.dumps(content)}" for section, content in yaml.safe_load(TRAINING).items()]
    shown = config.parse(WHOLE, options)
    assert shown.model.options()["projection"] == 256
    assert shown.pretrain.optimizer == "sgd" and shown.pretrain.weight_decay == 0.0005
    assert shown.pretrain.lr_decay == 0.95
    assert shown.federate.local.lr_decay == 0.998
    assert shown.methods["unweighted"].algorithm[0].weighting == "uniform"


def _shown(line):
    """Reads the config of the README with a line in its place, leaving out what speech and texts know not."""
    section, value = line.split(": ", 1)
    return config.parse(re.sub(r"prompts:\n(  .*\n)*", "", WHOLE), [f"{section}={value}"])


@pytest.mark.parametrize("page", ["README.md", "docs/generators.md", "docs/data.md"])
def test_generators_and_data_are_as_shown(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in _blocks("yaml", text) for line in block.splitlines()]
    lines = [line for line in lines if line.startswith(("generator: {", "data: {", "partition: {"))]
    assert len(lines) > 4
    for line in lines:
        kind = next(iter(yaml.safe_load(line).values()))
        if line.startswith("partition"):
            assert config.parse(WHOLE, [f"data.{line.replace(': ', '=', 1)}"]).data.partition.kind in line
        elif line.startswith("data"):
            assert _shown(line).data.name == kind["name"]
        else:
            assert _shown(line).generator.kind == kind["kind"]


def _written_configs():
    """Yield each example and each YAML block of the pages: place, content, and the fields it leaves out."""
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        yield path.name, config.read(path), []
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for block in _blocks("yaml", page.read_text(encoding="utf-8")):
            keys = re.findall(r"^\w+", block, re.MULTILINE)
            once = len(set(keys)) == len(keys)
            for text in [block] if once else block.splitlines():
                content = config.plain(text)
                if "partition" in content:
                    content = {"data": {"name": "digits", **content}}
                yield (
                    f"{page.name}: {text[:40]}",
                    content,
                    [name for name in config.Config.model_fields if name not in content],
                )


def test_schema_accepts_every_written_config():
    schema = config.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    count = 0
    for where, content, left_out in _written_configs():
        required = [name for name in schema["required"] if name not in left_out]
        validator = jsonschema.Draft202012Validator({**schema, "required": required})
        mistakes = [f"{list(error.path)}: {error.message[:200]}" for error in validator.iter_errors(content)]
        assert mistakes == [], where
        count += 1
    assert count > 50


@pytest.mark.parametrize(
    ("content", "fits"),
    [
        ({"generator": "none"}, True),
        ({"generator": {"model": "miniature"}}, True),
        ({"generator": "nothing"}, False),
        ({"model": {"name": "cnn", "width": 8}}, True),
        ({"model": {"name": "cnn", "widht": 8}}, False),
        ({"client_models": ["mlp", {"name": "cnn"}]}, True),
        ({"methods": {"a": {"algorithm": "fedavg"}}}, True),
        ({"methods": {"a": {"algorithm": ["fedprox", {"name": "fedadam", "beta1": 0.5}]}}}, True),
        ({"methods": {"a": {"algorithm": "fedavgg"}}}, False),
        ({"methods": {"a": {"algorithm": {"name": "fedadam", "mu": 1}}}}, False),
        ({"methods": None}, False),
        ({"prompts": {"guidance_scale": 3.0}}, True),
        ({"prompts": {"guidance_scale": []}}, False),
        ({"federate": None, "prompts": {"blanks": None}}, True),
        ({"federate": {"local": {"augment": {"data": "private"}}}}, True),
        ({"federate": {"rounds": 0}}, False),
        ({"grid": {"federate.rounds": [1, 2]}}, True),
        ({"grid": {"federate.rounds": 1}}, False),
        ({"gird": {"federate.rounds": [1, 2]}}, False),
    ],
)
def test_schema_accepts_what_a_config_accepts(content, fits):
    whole = {
        "name": "x",
        "data": "digits",
        "model": "mlp",
        "methods": {"a": {"algorithm": "fedavg"}},
        **content,
    }
    assert jsonschema.Draft202012Validator(config.json_schema()).is_valid(whole) == fits
    if "grid" not in content:
        try:
            config.validate(whole)
        except InputError:
            assert not fits
        else:
            assert fits


def test_schema_describes_every_field():
    missing, count = [], 0

    def look(node, path):
        nonlocal count
        if isinstance(node, dict):
            for name, field in node.get("properties", {}).items():
                count += 1
                if not field.get("description") or field["description"].startswith("An option of"):
                    missing.append(f"{path}.{name}")
            for name, child in node.items():
                look(child, f"{path}.{name}")
        elif isinstance(node, list):
            for number, child in enumerate(node):
                look(child, f"{path}.{number}")

    look(config.json_schema(), "")
    assert count > 200
    assert missing == []


def test_every_method_is_named():
    for page in (README, METHODS_PAGE):
        assert [name for name in ALGORITHMS if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_python_runs_block_after_block(capsys):
    session = {}
    for code in _blocks("python"):
        exec(code, session)
    assert "'round': 5, 'accuracy'" in capsys.readouterr().out
    assert set(session["gptfl"].accuracy) == set(session["fedgc"].accuracy) == set(range(6))
    assert "mymethod" in ALGORITHMS
    del ALGORITHMS["mymethod"]


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_by_the_script_shown(tmp_path):
    (code,) = _blocks("python", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[1:2]
    (tmp_path / "mine.py").write_text(code)
    federate = {"rounds": 1, "clients_per_round": 2, "local": {"steps": 1}}
    settings = {"name": "own", "data": "digits", "generator": "none", "federate": federate}
    settings["methods"] = {"fedavg": {"algorithm": "fedavg"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    program = "import runpy; runpy.run_path('mine.py', run_name='__main__')"
    run_program(program, "run", "own.yaml", "model=perceptron", "model.width=8", cwd=tmp_path)
    weights = load_file(tmp_path / "runs" / "own" / "federate" / "fedavg" / "seed-0" / "model.safetensors")
    assert weights["classifier.weight"].shape == (10, 8)


@pytest.mark.parametrize("page", ["README.md", "docs/generators.md", "docs/data.md", "docs/privacy.md"])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert page != "README.md" or len(targets) > 5
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []
