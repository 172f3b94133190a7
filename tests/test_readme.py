"""What the README shows works as shown."""

import re
from pathlib import Path

import pytest

from genfl import config

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("text", _blocks("yaml"))
def test_configs_are_valid(text):
    assert list(config.parse(text).methods) == ["fedavg", "gptfl", "gptfl_adam"]


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_runs(code, capsys):
    exec(code, {})
    assert "'round': 5, 'accuracy'" in capsys.readouterr().out


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (Path(__file__).parents[1] / target).exists()] == []
