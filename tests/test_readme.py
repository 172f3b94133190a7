"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from genfl import config
from genfl.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


WHOLE, SHORT, METHODS, CHANGES, CONTENT = _blocks("yaml")


def test_the_config_is_valid_and_takes_the_methods_shown():
    assert list(config.parse(WHOLE).methods) == ["fedavg", "gptfl", "gptfl_adam"]
    shown = config.parse(WHOLE[: WHOLE.index("methods:")] + METHODS)
    assert shown.methods["prox_adam"].algorithm[0].mu == 0.1
    assert shown.methods["moon_mixed"].data == "mixed"
    shown = config.parse(WHOLE[: WHOLE.index("federate:")] + CONTENT)
    assert shown.methods["own_style"].content.guidance == "mixed"
    assert shown.methods["fedavg+fedgc"].content == shown.content
    for line in CHANGES.splitlines():
        ((section, content),) = yaml.safe_load(line).items()
        assert config.parse(WHOLE, [f"{section}={content}"]) != config.parse(WHOLE)


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


def test_every_method_is_named():
    assert [name for name in ALGORITHMS if f"`{name}`" not in README] == []


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
    command = [sys.executable, "mine.py", "run", "own.yaml", "model=perceptron", "model.width=8"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    weights = load_file(tmp_path / "runs" / "own" / "federate" / "fedavg" / "seed-0" / "model.safetensors")
    assert weights["classifier.weight"].shape == (10, 8)


@pytest.mark.parametrize("page", ["README.md", "docs/generators.md", "docs/data.md"])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert page != "README.md" or len(targets) > 5
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []
