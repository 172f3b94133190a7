"""The page of a run, made from a small folder written by hand, and seen by a real browser."""

import csv
import html
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.pages import BROWSER, Reader, seen

from genfl import config
from genfl.data.recipes import RECIPES
from genfl.data.samples import Prompt, Sample
from genfl.data.sources import DATASETS, DataEntry, DataSet, LabelledExamples, grey_image
from genfl.data.synthetic import SyntheticData
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.natural_order import in_natural_order
from genfl.report import page, pictures, plots, style, tables, text
from genfl.report.charts import KEY_HEIGHT, svg_file
from genfl.results.evidence import collect
from genfl.results.schema import CurvePoint, StageTime
from genfl.results.summarise import environment, summarise
from genfl.stages import report
from genfl.storage import write_json

NASTY = '<b>&"x'  # as a label, a method, a prompt and a name of a run
LABELS = [NASTY, "plain", "$two$"]


@pytest.fixture(scope="module", autouse=True)
def tiny_data():
    """A data set of three labels, one of which is no friend of HTML."""
    generator = torch.Generator().manual_seed(0)
    names = [LABELS[n % 3] for n in range(30)]
    examples = LabelledExamples(torch.rand(30, 1, 4, 4, generator=generator), names)
    entry = DataEntry(
        lambda: DataSet(examples, examples, "image", grey_image(4, 4)), "image", "", public=True
    )
    DATASETS["tiny for pages"] = entry
    yield
    del DATASETS["tiny for pages"]


OTHERS = {"loss": 1.0, "calibration_error": 0.125, "recall": [0.25, 1.0, None]}
"""Scores besides accuracy and macro-F1."""

STAGES = ("labels", "prompts", "generate", "pretrain", "federate")
"""The stages before the report, of runs with a generator."""

CURVE = [CurvePoint(0, 0.1, 0.01), CurvePoint(5, 0.9, 0.02)]


def make(
    folder,
    methods=("fedavg", "gptfl", NASTY),
    seeds=(0, 1),
    accuracy=0.95,
    uplinks=(1000,),
    clients=5,
    test=0.0,
):
    """Writes what the stages of a finished run leave, and returns the run."""
    quantiles = [0.3 + 0.03 * n for n in range(21)]
    tested = {"clients": clients, "samples": 7, "accuracy": 0.75, "loss": 1.0, "quantiles": quantiles}
    tested = tested if test else None
    content = {
        "name": f"run {NASTY}",
        "seeds": list(seeds),
        "data": {"name": "tiny for pages", "partition": {"kind": "iid", "clients": clients, "test": test}},
        "model": {"name": "cnn"},
        "federate": {"rounds": 6, "clients_per_round": 3, "evaluate_every": 1},
        "methods": {name: {"algorithm": "fedavg"} for name in methods},
    }
    for name in methods[1:]:
        content["methods"][name]["start"] = "pretrained"
    run = Run(config.validate(content), folder)

    def trace(number, start):
        evaluations = [
            {"round": n, "accuracy": start + (accuracy - start) * n / 6, "macro_f1": 0.5, **OTHERS}
            for n in range(7)
        ]
        rounds = [
            {
                "round": n + 1,
                "uplink_bytes": uplinks[number % len(uplinks)],
                "downlink_bytes": 1000,
                "refused": 0,
                "diversity": 0.5 + 0.1 * n,
            }
            for n in range(6)
        ]
        return {"evaluations": evaluations, "rounds": rounds, "clients": tested}

    evaluated = {"round": 0, "accuracy": 0.4, "macro_f1": 0.3, **OTHERS}
    alone = {"evaluations": [evaluated], "rounds": [], "clients": tested}
    history = [
        {"epoch": n, "loss": 1 / n, "held_back_loss": 1 / n, "held_back_accuracy": 1 - 1 / n}
        for n in (1, 2, 3)
    ]
    results = {
        "labels": {
            "found": LABELS,
            "cells": 80,
            "bytes_per_client": 11840,
            "attempts": 1,
            "holders": dict.fromkeys(LABELS, clients),
        },
        "prompts": {"samples": 9, "blocks": 1, "distinct": 3, "examples": LABELS},
        "generate": {
            "samples": 9,
            "removed": 2,
            "duplicates": 1,
            "near_duplicates": 3,
            "bytes": 1000,
            "seconds": 4.5,
            "samples_per_second": 2.0,
            "labels": {
                label: {
                    "samples": 3,
                    "removed": {"blank": 2} if label == NASTY else {},
                    "duplicates": 0,
                    "near_duplicates": 1,
                }
                for label in LABELS
            },
        },
        "pretrain": {"seeds": {str(seed): {"best_epoch": 2, "history": history} for seed in seeds}},
        "federate": {
            "methods": {
                "synthetic_only": {str(seed): alone for seed in seeds},
                **{
                    name: {str(seed): trace(n, 0.4 if n else 0.1) for seed in seeds}
                    for n, name in enumerate(methods)
                },
            }
        },
    }
    for stage, result in results.items():
        record = {"stage": stage, "digest": "", "done": True, "seconds": 1.25, "sha256": ""}
        write_json(run.record(stage), {**record, "environment": environment(), "result": result, "files": {}})
    samples = [
        Sample(Prompt(LABELS[n % 3], f"a {LABELS[n % 3]}", 2.0, n), Image.new("RGB", (8, 8), (10 * n, 0, 0)))
        for n in range(9)
    ]
    SyntheticData(folder / "synthetic", LABELS, 1).write(0, samples, "test", 1.0)
    return run


def written(run):
    folders = {name: "synthetic" if name == "generate" else name for name in STAGES}
    work = report.STAGE.work(run, RunContext(), "", folders)
    report.STAGE.run(report.STAGE.inputs(run.config, work.context), work)
    return (run.folder / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def source(run):
    return written(run)


@pytest.fixture(scope="module")
def summary(run):
    return summarise(run, RunContext(), dict.fromkeys(STAGES, False))


def test_it_needs_nothing_from_outside(source):
    reader = Reader(source)
    links = reader.values("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    assert len([link for link in links if link.startswith("data:image/")]) > 20
    others = {link for link in links if not link.startswith(("#", "data:", "figures/"))}
    tables = {"methods.csv", "methods.tex", "recall.csv", "per_seed.csv", "learning_curves.csv"}
    assert others == tables  # links to follow, beside the page
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?(.)", source))
    assert "@import" not in source
    assert not {"script", "iframe", "object", "embed"} & set(reader.tags)


def test_names_are_escaped(source):
    assert "<b>" not in source
    reader = Reader(source)
    text = "".join(reader.text)
    assert text.count(NASTY) > 8
    assert f"“a {NASTY}”, guidance scale 2" in reader.values("title")
    assert "$two$" in text  # nor is it a formula


def test_what_was_left_out_and_what_repeats_is_beside_the_samples(source):
    samples = re.search(r'<section id="samples">.*?</section>', source, re.DOTALL)[0]
    text = "".join(Reader(samples).text)
    assert "2 samples of 11 were left out because nothing can be learned from them." in text
    assert "1 repeats an earlier one byte by byte. 3 (33.3 %) are so close to an earlier one" in text
    rows = re.findall(r"<tr><th.*?</tr>", samples)[1:]
    assert len(rows) == len(LABELS)
    assert [row.count("<td>2 blank</td>") for row in rows] == [0, 1, 0], "in natural order"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "asked", "shown", "says"),
    [
        (None, None, True, "only because the data set is public"),
        ("cifar10", None, True, "only because the data set is public"),
        ("cifar10", False, False, "and are not shown (report.real_examples)"),
        ("images", None, False, "and are not shown (report.real_examples)"),
        ("images", True, True, "because the config says so (report.real_examples)"),
    ],
)
def test_private_examples_are_shown_only_where_that_is_asked_for(
    tmp_path, monkeypatch, recipe, asked, shown, says
):
    entry = DATASETS["tiny for pages"]
    if recipe:
        entry = entry._replace(recipe=RECIPES[recipe], public=RECIPES[recipe].public)
    monkeypatch.setattr("genfl.results.evidence.DATASETS", {"tiny for pages": entry})
    run = make(tmp_path)
    wanted = run.config.report.model_copy(update={"real_examples": asked})
    run = replace(run, config=run.config.model_copy(update={"report": wanted}))
    rows = pictures.picture_rows(collect(run, RunContext()).examples, "image")
    real = {picture.source for row in rows for picture in row.real}
    assert bool(real) == shown
    samples = re.search(r'<section id="samples">.*?</section>', written(run), re.DOTALL)[0]
    assert says in samples
    assert all(picture.source in samples for row in rows for picture in [*row.real, *row.encoded])
    assert ("real: plain" in samples) == shown
    assert samples.count('<span class="what">') == (9 if shown else 6)


@pytest.mark.parametrize("name", ["images", "sounds", "texts"])
def test_what_a_user_brings_is_not_public(name):
    assert not RECIPES[name].public
    assert all(
        recipe.public for other, recipe in RECIPES.items() if other not in ("images", "sounds", "texts")
    )


def test_the_cost_of_generating_is_told_in_terms_of_training(source):
    text = "".join(Reader(source).text)
    assert (
        "Generation made 9 samples (1 kB) in 4.5 s, 2 a second, once for all seeds. That is 3.6 times as long"
        in text
    )


def test_every_method_is_in_the_table(source):
    table = re.search(r'<table class="figures">.*?</table>', source, re.DOTALL)[0]
    rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]
    names = ["synthetic_only", "fedavg", "gptfl", NASTY]
    assert len(rows) == len(names)
    for row, name in zip(rows, names, strict=True):
        assert html.escape(name, quote=False).replace('"', "&#34;") in row
    # rounds 2 to 6 of 0.1 … 0.95: the mean of the last five is that of round 4
    assert f"{100 * (0.1 + 0.85 * 4 / 6):.1f} " in rows[1]
    # 0.4 + 0.55 n/6 is 0.9 after 5.45 rounds, so at the sixth evaluation
    assert "<td>6</td>" in rows[2]


def test_identifiers_are_unique_and_references_lead_somewhere(source):
    reader = Reader(source)
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    references = {value[1:] for value in reader.values("href", "xlink:href") if value.startswith("#")}
    references |= set(re.findall(r"url\(#([^)]+)\)", source))
    assert references
    assert references <= set(ids)


def test_pictures_and_charts_have_alternatives(source):
    reader = Reader(source)
    assert reader.tags.count("img") == len(
        [v for tag, key, v in reader.attributes if (tag, key) == ("img", "alt") and v]
    )
    charts = [value for tag, key, value in reader.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(charts) == 6
    assert reader.tags.count("table") == reader.tags.count("caption")


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(run, source, summary):
    assert page.render(collect(run, RunContext()), summary) == source


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"seeds": (7,), "methods": ("fedavg",)},
        {"accuracy": 0.5},  # never at the target
        {"accuracy": 0.4, "methods": ("a",), "seeds": (1,)},
        {"uplinks": (1000, 5000)},
        {"methods": tuple(f"method {n} {'of a long name ' * (n % 3)}" for n in range(20))},
        {"clients": 30},
        {"test": 0.5},
        {"test": 0.5, "seeds": (7,), "methods": tuple(f"method {n}" for n in range(20))},
    ],
    ids=[
        "one seed, one method",
        "never",
        "flat",
        "different uploads",
        "twenty methods",
        "many clients",
        "tests on clients",
        "tests of twenty methods on clients",
    ],
)
def test_it_copes_with(tmp_path, options):
    source = written(make(tmp_path, **options))
    text = " ".join(Reader(source).text)
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", text)
    methods = len(options.get("methods", ("fedavg", "gptfl", NASTY)))
    never = 1 if options.get("accuracy", 0.95) >= 0.9 else 1 + methods  # the synthetic data alone never does
    assert source.count('class="value never"') == 2 * never
    assert ("learning-bytes-" in source) == ("uplinks" in options)
    assert len(source) < 1_500_000


def crowd(folder, methods):
    """A run of many methods, each a little less accurate than the one before, and of references."""
    run = make(folder, methods=("fedavg",))
    content = run.config.model_dump(mode="json")
    content["methods"] = {
        **{f"method {n}": {"algorithm": "fedavg"} for n in range(methods)},
        "warm": {"algorithm": "fedavg", "start": "pretrained"},
        "alone": {"algorithm": "local"},
        "together": {"algorithm": "centralised"},
        "reader": {"algorithm": "generator"},
    }
    run = Run(config.validate(content), folder)
    record = json.loads(run.record("federate").read_text())
    traces = record["result"]["methods"]

    def trace(accuracy, sends, last=6):
        rows = [{"uplink_bytes": sends, "downlink_bytes": sends, "refused": 0} for _ in range(last)]
        scores = {"accuracy": accuracy, "macro_f1": 0.5, **OTHERS}
        evaluations = [{"round": n, **scores} for n in range(last + 1)]
        rounds = [{"round": n, "diversity": 0.5 if sends else None, **row} for n, row in enumerate(rows, 1)]
        return {str(seed): {"evaluations": evaluations, "rounds": rounds} for seed in run.config.seeds}

    traces |= {f"method {n}": trace(0.8 - n / 100, 1000) for n in range(methods)}
    traces |= {"warm": trace(0.5, 2000), "alone": trace(0.2, 0), "together": trace(0.99, 0)}
    traces["reader"] = trace(0.3, 0, last=0)
    write_json(run.record("federate"), record)
    return run


@pytest.mark.slow
def test_of_many_methods_the_compared_and_the_best_are_drawn(tmp_path):
    run = crowd(tmp_path, 40)
    source = written(run)
    legend = re.search(r'<ul class="legend">.*?</ul>', source, re.DOTALL)[0]
    drawn = [name.strip() for name in re.findall(r"</svg>([^<\n]+)", legend)]
    assert drawn[:-1] == [
        *(f"method {n}" for n in range(6)),
        "warm",
        "together",
        "the others",
        "synthetic_only",
    ]
    assert "(upper bound, not allowed in practice)" in legend
    assert "in grey the others (35)" in source
    learning = re.search(
        r'<svg[^>]*aria-label="Line chart of test accuracy against round.*?</svg>', source, re.S
    )
    assert learning[0].count("var(--rest)") == 35
    names = re.findall(r"</svg>([^<]+) <span", re.search(r"<tbody>.*?</tbody>", source, re.DOTALL)[0])
    # "warm" has the accuracy of "method 30"
    federated = [f"method {n}" for n in range(40)]
    assert [name for name in names if name != "warm"] == [
        "synthetic_only",
        *federated,
        "together",
        "reader",
        "alone",
    ]
    assert names.index("warm") in (31, 32)
    assert "each of method 0, method 1, method 2 and 37 others" in source
    assert "upper bound, not allowed in practice: all data in one place" in source


@pytest.mark.slow
def test_few_methods_are_all_drawn_in_the_order_of_the_config(tmp_path):
    run = crowd(tmp_path, 3)
    source = written(run)
    assert "the others" not in source
    names = re.findall(r"</svg>([^<]+) <span", re.search(r"<tbody>.*?</tbody>", source, re.DOTALL)[0])
    assert names == [
        "synthetic_only",
        *(f"method {n}" for n in range(3)),
        "warm",
        "alone",
        "together",
        "reader",
    ]
    assert "<td>–</td>" in source
    assert "each of method 0, method 1 and method 2" in source
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", " ".join(Reader(source).text))


def test_tables_for_spreadsheets_and_papers(run, source):
    folder = run.folder / "report"
    rows = list(csv.DictReader(io.StringIO((folder / "methods.csv").read_text(encoding="utf-8"))))
    assert [row["method"] for row in rows] == ["synthetic_only", "fedavg", "gptfl", NASTY]
    assert float(rows[1]["accuracy_mean"]) == pytest.approx(0.1 + 0.85 * 4 / 6)
    assert rows[0]["rounds_to_target"] == ""
    assert rows[2]["bytes_to_target"] == str(6 * 2000 + 20 * 2960)  # and a table from each client
    tex = (folder / "methods.tex").read_text(encoding="utf-8")
    assert r"synthetic\_only & 40.0 $\pm$ 0.0 & 30.0 $\pm$ 0.0 & -- & -- & 0 & 0 & 12.5 $\pm$ 0.0 \\" in tex
    assert r'\textless{}b\textgreater{}\&"x & ' in tex
    assert tex.count(" & ") == 7 * 5


def test_latex_escapes_every_special_character():
    assert tables.latex(r"\a~b^c&%$#_{}") == (
        r"\textbackslash{}a\textasciitilde{}b\textasciicircum{}c\&\%\$\#\_\{\}"
    )


def test_accuracy_rule_names_the_rounds_it_is_the_mean_of(summary):
    def rule(rounds):
        curve = [CurvePoint(number, 0.5, 0.0) for number in rounds]
        return text.accuracy_rule({"a": summary.methods["fedavg"].model_copy(update={"curve": curve})})

    assert rule(range(0, 35, 5)) == "the mean of the last 5 evaluations, of rounds 10 to 30"
    assert rule((0, 5, 10)) == "the mean of all 2 evaluations, of rounds 5 to 10"
    assert rule((0, 3)) == "those of round 3, the only evaluation"


def test_time_of_generation_counts_all_of_its_starts(summary):
    stages = {name: StageTime(seconds=1.0, skipped=False, cost=None) for name in ("labels", "generate")}
    synthetic = summary.synthetic.model_copy(update={"seconds": 3.0})
    rows = page._time(summary.model_copy(update={"stages": stages, "synthetic": synthetic}))
    assert [(bar.name, bar.value, bar.share) for bar in rows] == [
        ("labels", "1.0 s · 25 %", 0.25),
        ("generate", "3.0 s · 75 %", 0.75),
    ]


def test_thirty_methods_look_different():
    names = list(map(str, range(30)))
    assert len(set(style.looks(["synthetic_only", *names], names).values())) == 31


def test_only_what_is_drawn_has_a_look_of_its_own():
    look = style.looks(["a", "synthetic_only", "b", "c"], ["a", "c"])
    assert look["b"] is style.REST
    assert [look[name].colour.name for name in ("a", "c")] == ["series-0", "series-1"]
    chart = plots.plot_diversity(dict.fromkeys("abc", CURVE), look, 4)
    assert chart.count("var(--rest)") == 1
    assert "for a, c and, in grey, 1 other." in chart


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", [style.PAGE, style.SURFACE], ids=lambda colour: colour.name)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(ground, mode):
    for colour in (style.INK, style.MUTED):  # text: WCAG 2, 1.4.3
        assert contrast(getattr(colour, mode), getattr(ground, mode)) >= 4.5
    for colour in (*style.SERIES, style.SYNTHETIC, style.ACCENT):  # graphics: 1.4.11
        assert contrast(getattr(colour, mode), getattr(ground, mode)) >= 3


def test_charts_take_their_colours_from_the_page():
    chart = plots.plot_diversity({"a": CURVE}, style.looks(["a"], ["a"]), 4)
    assert "var(--series-0)" in chart
    assert not re.search(r"#[0-9a-f]{6}", chart)


def test_recall_is_shown_for_each_class_and_method(source):
    chart = re.search(r'<svg[^>]*aria-label="Heat map of the recall.*?</svg>', source, re.DOTALL)[0]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert texts.count("25") == texts.count("100") == texts.count("–") == 4
    assert {"synthetic_only", "gptfl", "plain", "$two$"} <= set(texts)


@pytest.mark.slow
def test_the_accuracy_on_clients_is_shown_where_they_are_tested(tmp_path, source):
    assert "client-accuracy" not in source
    tested = written(make(tmp_path, test=0.5))
    section = re.search(r'<section id="client-accuracy">.*?</section>', tested, re.DOTALL)[0]
    assert "Tested are 5 clients with 7 samples in all, for seed 0" in section
    assert "<td>75.0 ± 0.0</td><td>30.0 ± 0.0</td><td>60.0</td>" in section
    reader = Reader(tested)
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert reader.tags.count("table") == reader.tags.count("caption")
    assert '<a href="#client-accuracy">' in tested


def test_statistics_of_the_split_are_told(source):
    """30 samples of three labels, 10 of each, dealt out evenly to five clients."""
    text = "".join(Reader(source).text)
    assert re.search(r"A client holds 6 to 6 \(median 6\) samples of \d to 3 \(median \d\) labels", text)


def test_a_spread_is_the_least_the_most_and_the_middle():
    assert page._spread(torch.tensor([4, 1, 2000, 3]).numpy()) == "1 to 2,000 (median 3.5)"


def test_labels_are_listed_as_people_count():
    numbers = [str(number) for number in (0, 1, 10, 11, 2, 9)]
    assert in_natural_order(numbers) == ["0", "1", "2", "9", "10", "11"]
    assert in_natural_order(["grade 10", "grade 9b", "grade 9a", "b", "a", "7"]) == [
        "7",
        "a",
        "b",
        "grade 9a",
        "grade 9b",
        "grade 10",
    ]
    odd = ["²", "٣", "01", "1", ""]  # digits that are no plain numbers, and two spellings of one
    assert sorted(in_natural_order(odd)) == sorted(odd)
    assert in_natural_order(odd) == in_natural_order(odd[::-1])


def test_figures_follow_their_labels_into_another_order(source):
    """Class indices are in the order of `LABELS`; the page lists ``$two$`` first, which has no examples."""
    recall = source.partition('aria-label="Heat map of the recall')[2].partition("</svg>")[0]
    written = [html.unescape(text) for text in re.findall(r">([^<>]+)</text>", recall)]
    rows = written[written.index("$two$") :]  # the columns are named before, also by a method NASTY
    assert [text for text in rows if text in LABELS] == ["$two$", NASTY, "plain"]
    cells = [text for text in written if text in ("–", "25", "100")]
    assert cells == sorted(cells, key=["–", "25", "100"].index)
    counts = re.findall(r'<th scope="row">([^<]*)</th><td>3</td><td>([^<]*)</td>', source)
    assert [(html.unescape(label), removed) for label, removed in counts] == [
        ("$two$", "–"),
        (NASTY, "2 blank"),
        ("plain", "–"),
    ]


def test_a_label_in_a_chart_is_no_formula():
    chart = plots.plot_label_counts(torch.ones(2, 1).numpy(), ["$x_1$"])
    assert ">$x_1$<" in chart


# --- in a browser


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_phone_shows_it_whole_and_quietly(tmp_path, source):
    page = seen(source, tmp_path)
    assert page.pop("headings") == 12
    assert page == {
        "width": 390,
        "overflow": 0,
        "broken": 0,
        "requests": [],
        "cut": 0,
        "touching": 0,
        "console": [],
    }


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_would_notice(tmp_path, source):
    bad = '<div style="width: 500px">x</div><img src="missing.png"><img src="data:,">'
    page = seen(source.replace("<main>", f"<main>{bad}"), tmp_path)
    assert page["overflow"] > 0
    assert page["broken"] == 2
    assert page["console"]


def test_diversity_is_drawn_as_a_moving_average():
    curve = [CurvePoint(n, value, value / 10) for n, value in enumerate([1.0, 2.0, 6.0, 2.0, 4.0, 0.0], 1)]
    smooth = plots.smoothed(curve)
    assert [point.x for point in smooth] == [1, 2, 3, 4, 5, 6]
    assert [point.mean for point in smooth] == pytest.approx([3.0, 2.75, 3.0, 2.8, 3.0, 2.0])
    assert [point.std for point in smooth] == pytest.approx([0.3, 0.275, 0.3, 0.28, 0.3, 0.2])
    assert plots.smoothed(curve, window=1) == curve
    assert plots.smoothed([]) == []
    chart = plots.plot_diversity({"a": curve}, style.looks(["a"], ["a"]), 4)
    assert chart.count("stroke: var(--series-0)") >= 2, "the average and the values"


def test_a_curve_against_bytes_begins_after_the_setup(summary, monkeypatch):
    drawn, draw = {}, plots.plot_learning

    def spied(curves, *about):
        drawn[about[-1]] = curves
        return draw(curves, *about)

    monkeypatch.setattr(plots, "plot_learning", spied)
    sends = summary.methods["fedavg"].model_copy(update={"setup_bytes": 5_000_000})
    methods = summary.methods | {"fedavg": sends}
    look = style.looks(methods, list(methods))
    page._learning(
        config.parse(
            "name: x\ndata: {name: digits}\nmodel: {name: cnn}\nmethods: {fedavg: {algorithm: fedavg}}"
        ),
        summary.model_copy(update={"methods": methods}),
        look,
    )
    curve = drawn["learning-bytes"]["fedavg"]
    assert curve[0].x == 5.0
    assert curve[-1].x == pytest.approx(5.0 + sends.bytes_per_round * sends.curve[-1].x / 1e6)


# --- files beside the page


def test_learning_curves_are_a_row_an_evaluation(run, source):
    text = (run.folder / "report" / "learning_curves.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2 * (1 + 3 * 7)  # seeds; the generated data alone, and three methods over six rounds
    of = {(row["method"], row["seed"], row["round"]): row for row in rows}
    third = of[NASTY, "1", "3"]
    assert float(third["accuracy"]) == pytest.approx(0.4 + 0.55 * 3 / 6)
    assert (third["loss"], third["macro_f1"], third["calibration_error"]) == ("1.0", "0.5", "0.125")
    assert (third["uplink_bytes_so_far"], third["downlink_bytes_so_far"]) == ("3000", "3000")
    assert int(third["bytes_so_far"]) == 5 * 11840 + 6000  # it needs the labels: with their discovery
    assert int(of["fedavg", "0", "6"]["bytes_so_far"]) == 6 * 2000
    assert of["synthetic_only", "0", "0"]["bytes_so_far"] == "0"


def test_figures_of_each_seed_average_to_the_summary(run, source, summary):
    text = (run.folder / "report" / "per_seed.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("synthetic_only", "fedavg", "gptfl", NASTY) for seed in ("0", "1")
    ]
    for name, method in summary.methods.items():
        of_method = [float(row["accuracy"]) for row in rows if row["method"] == name]
        assert sum(of_method) / 2 == pytest.approx(method.accuracy.mean)
    assert [row["rounds_to_target"] for row in rows] == ["", "", "6", "6", "6", "6", "6", "6"]
    assert [row["delta"] == "" for row in rows] == [True, True, True, True, False, False, False, False]


def test_each_figure_is_a_file_that_stands_alone(run, source):
    folder = run.folder / "report" / page.FIGURES
    linked = {value for value in Reader(source).values("href") if value.startswith(f"{page.FIGURES}/")}
    assert linked == {f"{page.FIGURES}/{file.name}" for file in folder.iterdir()}
    assert len(linked) == len(re.findall(r'<figure class="chart', source)) == 6
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text
        names = [element.get("id") for element in root.iter() if element.get("id")]
        uses = [value[1:] for value in re.findall(r'xlink:href="(#[^"]*)"', text)]
        assert len(names) == len(set(names))
        assert set(uses) <= set(names)
        assert not re.search(r'(?<!xlink:)href="', text)
        assert set(re.findall(r'(?:xlink:href|src)="([^#"]{1,10})', text)) <= {"data:image"}
    chart = ET.fromstring((folder / "learning-rounds.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-5:] == ["fedavg", "gptfl", NASTY, "synthetic_only", "target, 90 %"], "its own legend"


def test_a_wide_legend_takes_more_lines():
    names = [f"a method with a long name, number {n}" for n in range(4)]
    chart = plots.plot_over_rounds(dict.fromkeys(names, CURVE), style.looks(names, names), "x", "many")
    root = ET.fromstring(svg_file(chart))
    assert float(root.get("height")) == plots.HEIGHT + 4 * KEY_HEIGHT
    plain = plots.plot_label_counts(torch.ones(2, 1).numpy(), ["a"])
    assert float(ET.fromstring(svg_file(plain)).get("height")) == plain.size[1]


@pytest.mark.slow
def test_the_page_says_when_and_how_it_was_made(tmp_path):
    run = make(tmp_path)
    record = json.loads(run.record("federate").read_text())
    write_json(run.record("federate"), {**record, "finished": "2026-11-30T05:40:27+00:00", "digest": "abc"})
    text = " ".join(Reader(written(run)).text)
    assert "2026-11-30 05:40 UTC" in text
    assert "genfl run RUN/config.yaml --out AGAIN" in text
    for name in ("genfl", "torch", "python"):
        assert environment()[name] in text
