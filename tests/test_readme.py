"""What the README shows works as shown."""

import re
from pathlib import Path

import pytest
import yaml

from genfl import config
from genfl.algorithms import ALGORITHMS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_config_is_valid_and_takes_the_methods_shown():
    whole, generators, data, splits, methods, changes, content = _blocks("yaml")
    before, after = whole[: whole.index("data:")], whole[whole.index("prompts:") :]
    for line in data.splitlines():
        assert config.parse(f"{before}{line}\n{after}").data.name in line
    for line in splits.splitlines():
        kind = yaml.safe_load(line)["partition"]["kind"]
        assert config.parse(whole, [f"data.{line.replace(': ', '=', 1)}"]).data.partition.kind == kind
    assert list(config.parse(whole).methods) == ["fedavg", "gptfl", "gptfl_adam"]
    shown = config.parse(whole[: whole.index("methods:")] + methods)
    assert shown.methods["prox_adam"].algorithm[0].mu == 0.1
    assert shown.methods["moon_mixed"].data == "mixed"
    for line in generators.splitlines():
        assert config.parse(whole, [line.replace(": ", "=", 1)]).generator.kind in line
    shown = config.parse(whole[: whole.index("federate:")] + content)
    assert shown.methods["own_style"].content.guidance == "mixed"
    assert shown.methods["fedavg+fedgc"].content == shown.content
    for line in changes.splitlines():
        ((section, content),) = yaml.safe_load(line).items()
        assert config.parse(whole, [f"{section}={content}"]) != config.parse(whole)


def test_every_method_is_named():
    assert [name for name in ALGORITHMS if f"`{name}`" not in README] == []


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_runs(code, capsys):
    exec(code, {})
    assert "'round': 5, 'accuracy'" in capsys.readouterr().out


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (Path(__file__).parents[1] / target).exists()] == []
