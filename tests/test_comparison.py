"""`genfl compare` and `genfl.compare`, on real runs in small."""

import json
import re
import shutil
from urllib.parse import unquote

import pytest
from support.command import run_command
from support.small_runs import SMALL_RUN

import genfl
from genfl import config, pipeline
from genfl.comparison import compare_folders, sweep_runs, write_comparison
from genfl.errors import InputError

pytestmark = pytest.mark.slow

CONTENT = {**SMALL_RUN, "methods": {"fedavg": {"algorithm": "fedavg"}, "prox": {"algorithm": "fedprox"}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two finished runs, the second of a larger learning rate, and one that is not finished."""
    folder = tmp_path_factory.mktemp("compared") / "runs"
    for name, lr in (("slow", 0.001), ("fast", 0.5)):
        content = config.plain_copy(CONTENT)
        config.put(content, "federate.local.lr", lr)
        pipeline.execute(config.validate(content), folder / name)
    pipeline.execute(config.validate(CONTENT), folder / "begun", until="labels")
    return folder


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_two_runs_are_compared_from_python(runs):
    before = files_of(runs)
    comparison = genfl.compare([runs / "slow", genfl.load_run(runs / "fast")])
    table = comparison.table()
    assert list(table.index) == [(run, name) for run in ("slow", "fast") for name in ("fedavg", "prox")]
    result = genfl.load_run(runs / "fast")
    assert table.loc[("fast", "prox"), "mean"] == result.table().loc["prox", "mean"]
    assert comparison.rows[2].difference.test == "paired"
    assert comparison.rows[2].difference.pairs == 2
    assert comparison.warnings == ()
    assert list(comparison.settings) == ["federate.local.lr"]
    assert (table["seconds"] > 0).all()
    assert isinstance(comparison, genfl.Comparison)
    assert files_of(runs) == before


def test_page_and_tables_are_written_and_links_survive_a_move(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "old" / "runs")
    before = files_of(tmp_path / "old" / "runs")
    folder = tmp_path / "old" / "runs"
    genfl.compare([folder / "slow", folder / "fast"], "prox", out=tmp_path / "old" / "page")
    assert files_of(folder) == before
    assert sorted(path.name for path in (tmp_path / "old" / "page").iterdir()) == [
        ".genfl-comparison",
        ".lock",
        "comparison.csv",
        "comparison.tex",
        "index.html",
    ]
    (tmp_path / "old").rename(tmp_path / "new")
    page = tmp_path / "new" / "page"
    links = re.findall('<a href="([^#"]*)"', (page / "index.html").read_text())
    assert len(links) == 6
    assert all((page / unquote(link)).is_file() for link in links)
    again = write_comparison(compare_folders([tmp_path / "new/runs/slow", tmp_path / "new/runs/fast"]), page)
    assert again == page / "index.html"


@pytest.mark.parametrize(
    ("folders", "baseline", "message"),
    [
        (["slow"], None, "slow: one run, and there is nothing to compare it with; name two runs or more"),
        (["slow", "slow"], None, "slow: it is named twice"),
        (["slow", "begun"], None, "begun is not finished, as it has no summary.json; resume it with"),
        (["slow", "."], None, " holds no run, as it has no config.yaml; name the folder"),
        (["slow", "absent"], None, "absent holds no run"),
        (["slow", "fast"], "fedavgm", "baseline: there is no 'fedavgm'; did you mean 'fedavg'?"),
        ([], None, "no folder: no finished run, and there is nothing to compare it with"),
    ],
)
def test_a_mistake_is_one_line(runs, folders, baseline, message):
    with pytest.raises(InputError) as caught:
        genfl.compare([runs / name for name in folders], baseline)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_summary_is_one_line(runs, tmp_path):
    shutil.copytree(runs / "fast", tmp_path / "cut")
    whole = (runs / "fast" / "summary.json").read_text()
    for content, word in (
        (whole[:100], "is damaged"),
        (
            whole.replace('"schema": 8', '"schema": 7', 1),
            "schema 7, but this version of genfl reads schema 8",
        ),
    ):
        (tmp_path / "cut" / "summary.json").write_text(content)
        with pytest.raises(InputError, match=word) as caught:
            genfl.compare([runs / "slow", tmp_path / "cut"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["slow", "slow/page", "../runs"])
def test_nothing_is_written_into_other_folders(runs, out):
    before = files_of(runs)
    comparison = compare_folders([runs / "slow", runs / "fast"])
    with pytest.raises(InputError, match=r"^--out: "):
        write_comparison(comparison, runs / out)
    assert files_of(runs) == before


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(runs / "slow", tmp_path / name / "demo")
    comparison = genfl.compare([tmp_path / "a" / "demo", tmp_path / "b" / "demo"])
    assert [run.run for run in comparison.runs] == ["a/demo", "b/demo"]
    assert comparison.rows[2].finding == "no clear difference"
    assert comparison.rows[2].difference.points == 0
    pinned = genfl.compare([tmp_path / "a" / "demo", tmp_path / "b" / "demo"], "b/demo:prox")
    assert {row.against for row in pinned.rows} == {"b/demo:prox"}


def test_a_sweep_stands_for_its_finished_runs(runs, tmp_path):
    sweep = tmp_path / "sweep"
    for name, source in (("lr=10", "slow"), ("lr=9", "fast"), ("lr=11", "begun")):
        shutil.copytree(runs / source, sweep / name)
    (sweep / ".genfl-sweep").touch()
    assert [path.name for path in sweep_runs(sweep)[0]] == ["lr=9", "lr=10"]  # as people count
    (sweep / "sweep.json").write_text(json.dumps([{"run": "lr=10"}, {"run": "lr=9"}]))
    comparison = genfl.compare([sweep])
    assert [run.run for run in comparison.runs] == ["lr=10", "lr=9"]  # in the order of the grid
    assert comparison.warnings == (f"1 run of {sweep} is not finished, so it is left out.",)
    (sweep / "lr=9" / "summary.json").unlink()
    with pytest.raises(InputError, match="one run, and there is nothing to compare it with"):
        genfl.compare([sweep])


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(runs):
    def called(*args, code=0):
        return run_command("compare", *args, code=code, cwd=runs)

    before = files_of(runs)
    lines = called("slow", "fast")[0].splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("run "))
    assert [line.split()[0] for line in lines[header + 1 : header + 5]] == ["slow", "prox", "fast", "prox"]
    assert "add --out DIR" in lines[-1]
    content = json.loads(called("slow", "fast", "--json", "--baseline", "slow:prox")[0])
    assert [row["against"] for row in content["methods"]] == ["slow:prox"] * 4
    assert content["settings"] == {"federate.local.lr": {"slow": 0.001, "fast": 0.5}}
    assert called("slow", "fast", "--baseline", "x", code=2)[1] == (
        "error: --baseline: there is no 'x'; known: fedavg, prox\n"
    )
    assert files_of(runs) == before
