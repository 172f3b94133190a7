"""The page of a sweep: its table, its charts, and its LaTeX table."""

import re
from pathlib import Path

import pytest
from support.pages import BROWSER, Reader, seen
from support.summaries import compared, method

from genfl.report import sweep_page
from genfl.report.sweep_page import MOST_CHARTS, sweep_tex
from genfl.results.comparison import ComparedRun, compare_runs
from genfl.results.schema import Figure, MethodResult
from genfl.results.sweep import PointResult

NASTY = '<b>&"x$_'


def point(settings, run="run", **accuracies):
    methods = {
        name: MethodResult.model_construct(
            accuracy=Figure(mean=mean, std=0.01, per_seed=[mean]), reference=name == "synthetic_only"
        )
        for name, mean in accuracies.items()
    }
    return PointResult.model_construct(settings=settings, run=run, methods=methods)


def render_sweep(name, results, planned):
    """The page, with the comparison of the same runs: each has two seeds about its accuracy."""
    runs = []
    for number, result in enumerate(results):
        methods = {
            name: method([m.accuracy.mean - 0.01, m.accuracy.mean + 0.01], 10, 0.1, reference=m.reference)
            for name, m in result.methods.items()
        }
        summary = compared(generator="none", **methods).model_copy(update={"seeds": [0, 1]})
        runs.append(ComparedRun(result.run, Path(f"{number}"), summary, {}))
    return sweep_page.render_sweep(name, results, planned, compare_runs(runs))


def test_page_has_a_row_for_each_run_and_marks_the_best():
    results = [
        point({"rounds": 10}, "rounds=10", synthetic_only=0.9, fedavg=0.5, gptfl=0.7),
        point({"rounds": 20}, "rounds=20", synthetic_only=0.9, fedavg=0.8, gptfl=0.75),
    ]
    page = render_sweep("speed", results, planned=3)
    assert "2 of 3 runs are finished" in page
    assert re.findall(r"<strong>(.*?)</strong>", page) == ["70.0 ± 1.0", "80.0 ± 1.0"]
    links = [f"rounds%3D{rounds}/report/index.html" for rounds in (10, 20)]
    # the table of runs, that of their methods, and that of their costs
    assert re.findall(r'href="([^"]*/report/index.html)"', page) == 3 * links
    assert page.count('role="img"') == 1


def test_a_method_that_some_runs_lack_has_a_dash():
    page = render_sweep("x", [point({"a": 1}, one=0.5), point({"a": 2}, two=0.5)], planned=2)
    table = page[page.index('<section id="runs">') : page.index("</section>")]
    assert table.count("<td>–</td>") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "charts"),
    [
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "x"}], 1),
        ([{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 2, "b": 2}], 4),
        ([{"a": None}, {"a": True}, {"a": [1, 2]}], 1),
        ([{"a": 1}], 0),
        ([{"a": a, "b": b} for a in range(9) for b in range(9)], MOST_CHARTS),
    ],
)
def test_each_field_that_varies_is_drawn_for_each_setting_of_the_others(grid, charts):
    page = render_sweep("x", [point(settings, fedavg=0.5) for settings in grid], planned=len(grid))
    assert page.count('role="img"') == charts
    assert ("6 more charts" in page) == (charts == MOST_CHARTS)


def test_numbers_lie_where_they_belong():
    """Of 1 to 5, 3 lies in the middle; of 1 to 100, 10 does, as that axis is logarithmic."""
    for values, middle in (([1, 3, 5], 0.5), ([1, 10, 100], 0.5), ([1, 2, 9], 0.125)):
        page = render_sweep("x", [point({"a": value}, fedavg=0.5) for value in values], planned=3)
        line = re.findall(r'd="M ([\d.]+) [\d.]+\s+L ([\d.]+) [\d.]+\s+L ([\d.]+) [\d.]+\s*"', page)
        first, second, third = map(float, line[-1])
        assert (second - first) / (third - first) == pytest.approx(middle, abs=1e-3)


def test_names_cannot_leave_their_place():
    results = [point({NASTY: NASTY}, NASTY, **{NASTY: 0.5}), point({NASTY: "y"}, "y", **{NASTY: 0.5})]
    page = render_sweep(NASTY, results, planned=2)
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    table = sweep_tex(NASTY, results)
    assert r"\textless{}b\textgreater{}\&" in table
    assert table.count(r"50.0 $\pm$ 1.0 \\") == 2


def test_page_says_which_methods_differ_from_those_of_the_first_run():
    results = [
        point({"rounds": 10}, "rounds=10", fedavg=0.5, gptfl=0.7),
        point({"rounds": 20}, "rounds=20", fedavg=0.8, gptfl=0.7),
    ]
    page = render_sweep("speed", results, planned=2)
    section = page[page.index('<section id="differences">') :]
    rows = [
        re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r'<tr><th scope="row">.*?</tr>', section)[:4]
    ]
    assert [re.sub(" <span.*", "", row[2]) for row in rows] == [
        "baseline",
        "baseline",
        "higher *",
        "no clear difference",
    ]
    assert rows[2][1].startswith("+30.0 ")
    assert [row[3] for row in rows] == ["10"] * 4
    assert "from the method of the same name in rounds=10" in page
    reader = Reader(page)
    assert reader.tags.count("table") == reader.tags.count("caption") == 3


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_phone_shows_the_sweep_whole(tmp_path):
    names = [f"federate.local.lr={n / 100},federate.clients_per_round={n}" for n in (1, 2)]
    results = [point({"lr": n}, name, a=0.5, b=0.6) for n, name in enumerate(names)]
    page = seen(render_sweep("wide", results, planned=2), tmp_path)
    assert (page["width"], page["overflow"], page["headings"]) == (390, 0, 4)
    assert page["requests"] == page["console"] == []
