"""Configs to start from: `genfl init` and `genfl examples`, in a checkout and in a wheel."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genfl import cli, config, pipeline, starters
from genfl.errors import InputError

ROOT = Path(__file__).parents[1]


def genfl(monkeypatch, capsys, *args):
    """Runs the command in this process; returns its exit code, output and error."""
    monkeypatch.setattr(sys, "argv", ["genfl", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    streams = capsys.readouterr()
    return end.value.code, streams.out, streams.err


def write_images(folder):
    """Bright and dark images of two classes, twenty each."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 50)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.normal(level, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_sounds(folder):
    """High and low tones, twenty each."""
    soundfile = pytest.importorskip("soundfile")
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    for name, pitch in (("high", 2000), ("low", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            wave = np.sin(2 * np.pi * pitch * time * rng.uniform(0.9, 1.1)) + 0.01 * rng.normal(size=16_000)
            soundfile.write(folder / name / f"{number}.wav", 0.3 * wave, 16_000)


def write_texts(folder):
    """Texts of two classes, twenty each."""
    for name, words in (("glad", "what a good day"), ("sad", "this is so bad")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            (folder / name / f"{number}.txt").write_text(f"{words} number {number}")


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        pytest.param("images", write_images, marks=pytest.mark.slow),
        pytest.param("sounds", write_sounds, marks=pytest.mark.slow),
        ("texts", write_texts),
    ],
)
def test_new_config_runs_once_its_path_is_set(tmp_path, monkeypatch, capsys, kind, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine")
    code, out, _ = genfl(monkeypatch, capsys, "init", kind)
    assert code == 0
    assert out == f"{kind}.yaml: set data.path, then genfl run {kind}.yaml\n"
    text = (tmp_path / f"{kind}.yaml").read_text()
    (tmp_path / f"{kind}.yaml").write_text(re.sub(r"PATH/TO/[A-Z]+  ", "mine  ", text, count=1))
    short = ["federate.rounds=1", "seeds=[0]"]  # the rest is as it was written
    pipeline.execute(config.load(Path(f"{kind}.yaml"), short), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["methods"]) == ["fedavg", "fedprox"]
    assert len(summary["labels"]["found"]) == 2


@pytest.mark.parametrize("kind", ["images", "sounds", "texts"])
def test_what_a_new_config_proposes_is_valid(tmp_path, kind):
    """Each generator of its comments fits, with the methods that need one."""
    text = starters.new_config(kind, tmp_path / "new.yaml").read_text()
    methods = text.replace("  # gptfl:", "  gptfl:").replace("  # fedgc:", "  fedgc:")
    proposed = re.findall(r"^#   (generator: \{.*?\})(?:  |$)", text, re.MULTILINE)
    assert len(proposed) >= 2
    for line in proposed:
        chosen = config.parse(methods.replace("\ngenerator: none\n", f"\n{line}\n"))
        assert list(chosen.methods) == ["fedavg", "fedprox", "gptfl", "fedgc"]
        assert chosen.generates


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, name in (
        (["init", "texts", "--out", "a/b.yaml"], "a/b.yaml"),
        (["examples", "digits"], None),
    ):
        assert genfl(monkeypatch, capsys, *command)[0] == 0
        path = tmp_path / (name or "examples/digits.yaml")
        path.write_text("mine")
        code, _, error = genfl(monkeypatch, capsys, *command)
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "exists, and is not overwritten; name another, or delete it" in error
        assert path.read_text() == "mine"


def test_examples_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    code, out, _ = genfl(monkeypatch, capsys, "examples", "--json")
    rows = {row["name"]: row["summary"] for row in json.loads(out)}
    assert code == 0
    assert len(rows) == len(list((ROOT / "examples").rglob("*.yaml")))
    assert all(10 < len(summary) < 130 for summary in rows.values())
    names = list(rows)
    assert names.index("zoo") < names.index("paper/gptfl_table4") < names.index("paper/small/fedgc_cost")

    monkeypatch.chdir(tmp_path)
    for name in ("digits", "paper/gptfl_table4"):
        assert genfl(monkeypatch, capsys, "examples", name)[0] == 0
        copy = tmp_path / "examples" / f"{name}.yaml"
        assert copy.read_bytes() == (ROOT / "examples" / f"{name}.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^NAME: there is no example 'digit'; did you mean 'digits'\?$"):
        starters.copy_example("digit", tmp_path)
    with pytest.raises(InputError, match=r"^NAME: there is no example '\.\./pyproject'"):
        starters.copy_example("../pyproject", tmp_path)


def test_commands_import_nothing_heavy(tmp_path):
    code = """
import sys
import genfl.cli

for args in (["examples"], ["examples", "digits"], ["init", "texts"]):
    sys.argv = ["genfl", *args]
    try:
        genfl.cli.main()
    except SystemExit as end:
        assert not end.code
print([m for m in ("torch", "numpy", "pydantic", "datasets", "yaml") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.slow
def test_wheel_holds_the_examples(tmp_path):
    pytest.importorskip("pip")
    isolated = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", *isolated, "-w", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr and not isolated:
        pytest.skip("pip cannot fetch hatchling, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("genfl-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.yaml")}
    assert {
        p.relative_to(site / "genfl").as_posix() for p in (site / "genfl/examples").rglob("*.yaml")
    } == files
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import genfl, genfl.starters as s\n"
        f"assert genfl.__file__.startswith({str(site)!r})\n"
        "from pathlib import Path\n"
        f"s.copy_example('paper/gptfl_table4', Path({str(tmp_path)!r}))\n"
        f"s.new_config('sounds', Path({str(tmp_path / 'sounds.yaml')!r}))\n"
        "from genfl.deployment import export\n"
        f"Path({str(tmp_path / 'm')!r}).mkdir()\n"
        f"export._write_loader('cnn', Path({str(tmp_path / 'm')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    for name in ("paper/gptfl_table4.yaml", "sounds.yaml", "m/load.py", "m/architecture/layers.py"):
        assert (tmp_path / name).is_file()
