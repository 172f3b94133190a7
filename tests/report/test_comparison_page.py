"""The page of a comparison and its tables, seen by a real browser."""

import csv
import io
import re
from pathlib import Path

import pytest
from support.pages import BROWSER, Reader, seen
from support.summaries import compared, method

from genfl.report import comparison_page
from genfl.report.comparison_page import (
    MOST_CURVES,
    comparison_csv,
    comparison_tex,
    explanations,
    headline,
    page_link,
    render_comparison,
    statements,
)
from genfl.results.comparison import ComparedRun, compare_runs

NASTY = '<b>&"x$_'


def run(name, folder=Path("runs"), config=None, **accuracies):
    """A run without a generator, of as many seeds as accuracies; it may have a page."""
    summary = compared(generator="none", **{n: method(values, 10, 0.1) for n, values in accuracies.items()})
    seeds = range(len(next(iter(accuracies.values()))))
    return ComparedRun(
        name,
        folder / name,
        summary.model_copy(update={"seeds": list(seeds)}),
        {"name": name, **(config or {})},
    )


def two(folder=Path("runs")):
    return compare_runs(
        [
            run("base", folder, fedavg=[0.90, 0.92, 0.91], prox=[0.90, 0.91, 0.92]),
            run("new", folder, fedavg=[0.95, 0.96, 0.955], prox=[0.91, 0.91, 0.91]),
        ]
    )


@pytest.fixture(scope="module")
def source():
    return render_comparison(two(), Path("out"))


def test_page_says_what_differs(source):
    text = " ".join(" ".join(Reader(source).text).split())
    assert "1 of 2 comparisons differs clearly: new:fedavg is 4.5 points higher than base:fedavg." in text
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", source)[:4]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert [row[0] for row in cells] == ["91.0 ± 1.0", "91.0 ± 1.0", "95.5 ± 0.5", "91.0 ± 0.0"]
    assert [row[1].split()[0] for row in cells] == ["–", "–", "+4.5", "0.0"]
    assert cells[2][2].startswith("higher")
    assert "paired, 3 seeds" in cells[2][2]
    assert cells[3][2].startswith("no clear difference")


def test_headline_names_what_holds_for_all_lines_together():
    base = [0.90, 0.92, 0.91, 0.90]
    planted = {"far": [0.70, 0.72, 0.71, 0.70], "near": [0.93, 0.932, 0.945, 0.91], "same": base[::-1]}
    runs = [run("base", Path("runs"), fedavg=base)]
    runs += [run(name, Path("runs"), fedavg=values) for name, values in planted.items()]
    comparison = compare_runs(runs)
    assert [row.finding for row in comparison.rows] == [
        "baseline",
        "lower",
        "higher",
        "no clear difference",
    ]
    assert [row.holds for row in comparison.rows] == [False, True, False, False], "p is 0.041 of the third"
    assert headline(comparison) == (
        "1 of 3 comparisons differs clearly: far:fedavg is 20.0 points lower than base:fedavg."
        " 1 more only by itself."
    )
    alone = compare_runs([runs[0], runs[2], runs[3]])
    assert headline(alone) == (
        "No clear difference over the seeds, in 2 comparisons with the method of the same name in base."
        " 1 more only by itself."
    )


def test_page_needs_nothing_from_outside(source):
    reader = Reader(source)
    links = set(reader.values("src", "href", "xlink:href"))
    assert {link for link in links if not link.startswith(("#", "data:"))} == {
        "comparison.csv",
        "comparison.tex",
    }
    assert not {"script", "iframe", "object", "embed"} & set(reader.tags)
    assert "default-src 'none'" in source


def test_page_is_well_formed(source):
    reader = Reader(source)
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    references = {value[1:] for value in reader.values("href", "xlink:href") if value.startswith("#")}
    assert references <= set(ids)
    assert reader.tags.count("table") == reader.tags.count("caption") == 3
    charts = [value for tag, key, value in reader.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(charts) == source.count('role="img"') == 1
    assert "new:fedavg" in charts[0]


def test_page_is_the_same_again(source):
    assert render_comparison(two(), Path("out")) == source


def test_links_lead_to_pages_that_move_along(tmp_path):
    comparison = two(tmp_path / "my runs")
    assert "index.html" not in render_comparison(comparison, tmp_path / "out")  # there are no pages yet
    for one in comparison.runs:
        page = one.folder / "report" / "index.html"
        page.parent.mkdir(parents=True)
        page.touch()
    source = render_comparison(comparison, tmp_path / "out")
    links = sorted({link for link in Reader(source).values("href") if link.endswith("index.html")})
    assert links == [f"../my%20runs/{name}/report/index.html" for name in ("base", "new")]
    assert page_link(comparison.runs[0].folder, comparison.runs[0].folder) == "report/index.html"


def test_names_cannot_leave_their_place():
    comparison = compare_runs(
        [run(NASTY, config={NASTY: NASTY}, **{NASTY: [0.5, 0.6]}), run("b", a=[0.5, 0.6])]
    )
    source = render_comparison(comparison, Path("out"))
    assert "<b>" not in source
    assert "".join(Reader(source).text).count(NASTY) >= 5
    tex = comparison_tex(comparison)
    assert r"\textless{}b\textgreater{}\&" in tex
    assert all(line.count(" & ") == 9 for line in tex.splitlines() if line.endswith(r" \\"))


@pytest.mark.parametrize(
    "runs",
    [
        [run("one", a=[0.5]), run("two", a=[0.6])],
        [run("one", a=[0.5, 0.6]), run("two", b=[0.6, 0.6])],
        [run("one", a=[0.5, 0.6])],
        [
            run(f"run {n} {'of a long name ' * 5}", **{f"m{i}": [n / 20, 0.5] for i in range(6)})
            for n in range(20)
        ],
    ],
    ids=["one seed", "nothing in common", "one run", "many"],
)
def test_page_copes_with(runs):
    comparison = compare_runs(runs)
    source = render_comparison(comparison, Path("out"))
    text = " ".join(Reader(source).text)
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", text)
    assert len(source) < 1_500_000
    if len(runs) == 20:
        assert f"{120 - MOST_CURVES} more curves would follow" in text
        assert source.count("var(--rest)") >= MOST_CURVES - 8


def test_headlines():
    assert headline(compare_runs([run("one", a=[0.5]), run("two", a=[0.6])])).startswith("With one seed,")
    nothing = compare_runs([run("one", a=[0.5, 0.6]), run("two", b=[0.6, 0.6])])
    assert headline(nothing) == "No two methods can be compared."
    same = compare_runs([run("one", a=[0.5, 0.6]), run("two", a=[0.6, 0.5])])
    assert headline(same) == (
        "No clear difference over the seeds, in 1 comparison with the method of the same name in one."
    )


def test_statements_count_what_chance_would_find():
    notes = " ".join([*statements(two()), *explanations(two())])
    assert "Each interval is at 95 % by itself." in notes
    assert "Here, 1 of 2 is." in notes
    assert "holds for all 2 lines together" in notes
    assert "Where it says paired" in notes
    assert "Where it says Welch" not in notes


def test_a_long_table_ends_and_says_so(monkeypatch):
    monkeypatch.setattr(comparison_page, "MOST_ROWS", 5)
    comparison = compare_runs([run(f"r{n}", a=[0.5, 0.6]) for n in range(7)])
    source = render_comparison(comparison, Path("out"))
    assert source.count('<tr class="group">') == 5
    assert "2 more rows would follow; comparison.csv has them all." in " ".join(Reader(source).text)


def test_csv_has_unrounded_figures():
    rows = list(csv.DictReader(io.StringIO(comparison_csv(two()))))
    assert [(row["run"], row["method"]) for row in rows] == [
        ("base", "fedavg"),
        ("base", "prox"),
        ("new", "fedavg"),
        ("new", "prox"),
    ]
    assert float(rows[2]["difference_points"]) == pytest.approx(4.5, abs=1e-9)
    assert rows[2]["statement"] == "higher"
    assert (rows[2]["test"], rows[2]["paired_seeds"], rows[2]["seeds"]) == ("paired", "3", "0 1 2")
    assert rows[0]["difference_points"] == rows[0]["holds_for_all"] == ""


def test_tex_has_a_row_for_each_method():
    tex = comparison_tex(two())
    assert r"\toprule" in tex
    assert r"new & fedavg & 95.5 $\pm$ 0.5 & 3 & +4.5 &" in tex
    assert not re.search("[±–−’]", tex)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_phone_shows_the_comparison_whole(tmp_path, source):
    page = seen(source, tmp_path)
    assert page["headings"] == 4
    assert (page["width"], page["overflow"], page["broken"]) == (390, 0, 0)
    assert page["requests"] == page["console"] == []
