"""Charts as inline SVG, which takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genfl.report.charts import LETTER, Chart, LegendKey
from genfl.report.style import ACCENT, COLOURS, INK, LINE, MUTED, REST, SYNTHETIC, Look
from genfl.report.text import count
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import CurvePoint, PretrainResult
from genfl.results.schema import Figure as Score

WIDTH, HEIGHT = 400, 250
"""Size of a chart, in units of about one pixel of a phone's screen."""

SMOOTHING = 5
"""The number of rounds over which gradient diversity is averaged in a chart."""

Curve = Sequence[CurvePoint]

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font, is small, and can be searched
    "svg.image_inline": True,
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 10,
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": INK.light,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": LINE.light,
    "grid.linewidth": 0.8,
    "text.color": INK.light,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelcolor": INK.light,
    "ytick.labelcolor": INK.light,
    "lines.markersize": 4.5,
    "path.simplify": False,
}
_VARIABLES = {colour.light: f"var(--{colour.name})" for colour in COLOURS}


def plot_learning(
    curves: Mapping[str, Curve],
    looks: Mapping[str, Look],
    target: float | None,
    alone: float | None,
    x: str,
    name: str,
) -> Chart:
    """Draw accuracy against rounds, or against bytes.

    Args:
        curves: For each method, its accuracy; `x` names the horizontal axis.
        looks: The look of each method.
        target: The accuracy to reach; None to draw none.
        alone: The accuracy of the model trained on generated data alone; None if there is none.
        x: The label of the horizontal axis.
        name: The chart's name, unique on the page.
    """

    def paint(axes: Axes) -> None:
        if target is not None:
            axes.axhline(target, color=INK.light, linewidth=1, linestyle=(0, (5, 3)))
        if alone is not None:
            light = looks[SYNTHETIC_ONLY].colour.light
            axes.axhline(alone, color=light, linewidth=1.6, linestyle=(0, (1, 1.6)))
        _lines(axes, curves, looks, (0.0, 1.0))
        lows = [mean - std for curve in curves.values() for _, mean, std in curve]
        marks = [mark for mark in (target, alone) if mark is not None]
        low = max(0.0, np.floor(10 * min(lows + marks)) / 10)
        axes.set_ylim(min(low, 0.9), 1.0)
        axes.set_xlim(0, max(point[0] for curve in curves.values() for point in curve))
        axes.set_xlabel(x)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    alt = f"Line chart of test accuracy against {x} for {_names(curves, looks)}; figures are in the table."
    lines = [LegendKey(f"target, {100 * target:g} %", INK, dashes="5 3")] if target is not None else []
    if alone is not None:
        lines.insert(0, LegendKey(SYNTHETIC_ONLY, looks[SYNTHETIC_ONLY].colour, dashes="1 1.6"))
    return _draw(name, alt, paint, keys=[*_keys(curves, looks), *lines])


def smoothed(curve: Curve, window: int = SMOOTHING) -> list[CurvePoint]:
    """Return the moving average of a curve, over as many points before and after each one.

    At the ends, the window holds fewer points. The deviations are averaged like the means.

    Args:
        curve: The points, in order.
        window: The number of points that are averaged, odd.
    """
    values = np.array([(point.mean, point.std) for point in curve])
    half = window // 2
    averages = [values[max(0, n - half) : n + half + 1].mean(0) for n in range(len(values))]
    return [
        CurvePoint(point.x, float(mean), float(std))
        for point, (mean, std) in zip(curve, averages, strict=True)
    ]


def plot_diversity(raw: Mapping[str, Curve], looks: Mapping[str, Look], cohort: int) -> Chart:
    """Draw gradient diversity against rounds, with its lower bound and its value for orthogonal changes.

    The lines are moving averages, as in GPT-FL's Figure 6; the values themselves are pale behind them.
    """
    curves = {name: smoothed([CurvePoint(*point) for point in curve]) for name, curve in raw.items()}

    def paint(axes: Axes) -> None:
        for name, curve in raw.items():
            if looks[name] is not REST:
                x, mean, _ = np.array(curve).T
                axes.plot(x, mean, color=looks[name].colour.light, linewidth=0.7, alpha=0.4, zorder=2)
        for value in (1 / cohort, 1.0):
            axes.axhline(value, color=MUTED.light, linewidth=1, linestyle=(0, (5, 3)))
        _lines(axes, curves, looks, (1 / cohort, np.inf))
        means = [mean for curve in curves.values() for _, mean, _ in curve]
        if max(means) / max(min(means), 1e-9) > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(point[0] for curve in curves.values() for point in curve))
        axes.set_xlabel("round")
        axes.set_ylabel("gradient diversity")

    alt = f"Line chart of gradient diversity per round for {_names(curves, looks)}."
    bounds = LegendKey(f"1 and the least possible value, 1/{cohort}", MUTED, dashes="5 3")
    return _draw("diversity", alt, paint, keys=[*_keys(curves, looks), bounds])


def plot_pretraining(
    pretraining: PretrainResult,
    figure: Literal["held_back_loss", "held_back_accuracy"],
    label: str,
    *,
    percent: bool,
) -> Chart:
    """Draw a figure of each seed's pre-training against epochs, and mark the chosen epoch.

    Args:
        pretraining: The history of each seed.
        figure: The field of a `genfl.results.schema.PretrainingEpoch` to draw.
        label: The label of the vertical axis.
        percent: Whether the figure is a share in [0, 1], which is written in per cent.
    """

    def paint(axes: Axes) -> None:
        for model in pretraining.seeds.values():
            points = {epoch.epoch: getattr(epoch, figure) for epoch in model.history}
            axes.plot(list(points), list(points.values()), color=SYNTHETIC.light, linewidth=1.4)
            axes.plot([model.best_epoch], [points[model.best_epoch]], "o", color=INK.light, markersize=6)
        if percent:
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        else:
            histories = [model.history for model in pretraining.seeds.values()]
            worst = max(getattr(epoch, figure) for history in histories for epoch in history)
            axes.set_ylim(0, 1.08 * worst or 1.0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)

    chosen = ", ".join(f"{model.best_epoch} for seed {seed}" for seed, model in pretraining.seeds.items())
    return _draw(figure, f"Line chart of {label} against epochs; the chosen epoch is {chosen}.", paint)


def plot_label_counts(counts: np.ndarray, labels: Sequence[str]) -> Chart:
    """Draw how many samples of each label each client holds.

    Args:
        counts: Numbers of samples, int [clients, classes].
        labels: The names of the classes.
    """
    clients, classes = counts.shape
    most = max(1, int(counts.max()))
    texts = [[str(count) if count else "" for count in row] for row in counts.T.tolist()]

    def paint(axes: Axes) -> None:
        _heat_map(axes, np.sqrt(counts.T / most), texts, labels)  # the root keeps small counts visible
        axes.xaxis.set_major_locator(MaxNLocator(20, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(-0.5, clients - 0.5)
        axes.set_xlabel("client")

    height = min(600, 60 + 16 * min(classes, 40))
    alt = f"Heat map of {clients} clients by {classes} labels; the darkest cell stands for {most} samples."
    return _draw("label-counts", alt, paint, (720, height))


def plot_recall(methods: Mapping[str, Sequence[float | None]], labels: Sequence[str]) -> Chart:
    """Draw the recall of each class for each method.

    Args:
        methods: For each method, the recall of each class in [0, 1]; None for a class without examples.
        labels: The names of the classes.
    """
    values = np.array(list(methods.values()), dtype=float).T
    texts = [["–" if np.isnan(value) else f"{100 * value:.0f}" for value in row] for row in values]
    names = [_short(name) for name in methods]
    margin, longest = (LETTER * max(map(len, texts)) for texts in (map(_short, labels), names))
    upright = margin + (longest + 12) * len(names) > 460  # else a phone would show a part of it
    width = margin + (40 if upright else longest + 12) * len(names)

    def paint(axes: Axes) -> None:
        _heat_map(axes, np.nan_to_num(values), texts, labels)
        axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)

    height = min(600, 60 + 16 * min(len(labels), 40)) + (110 if upright else 0)
    alt = f"Heat map of the recall, in per cent, of {len(labels)} labels by {len(names)} methods."
    return _draw("recall", alt, paint, (round(min(max(width, 320), 720)), height))


def plot_confusion(confusion: Sequence[Sequence[float]], labels: Sequence[str]) -> Chart:
    """Draw how many examples of each class are predicted to be of each class.

    Args:
        confusion: Numbers of examples by class and predicted class, [classes, classes].
        labels: The names of the classes.
    """
    counts = np.array(confusion, dtype=float)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    texts = [[f"{count:.1f}".removesuffix(".0") if count else "" for count in row] for row in counts]
    names = [_short(label) for label in labels]
    step = -(-len(names) // 40)

    def paint(axes: Axes) -> None:
        _heat_map(axes, shares, texts, labels)
        axes.set_xticks(range(0, len(names), step), names[::step], rotation=90)
        axes.set_xlabel("prediction")

    margin = round(LETTER * max(map(len, names)))
    width, height = (min(most, margin + size * min(len(names), 40)) for most, size in ((720, 44), (720, 18)))
    alt = f"Confusion matrix of {len(names)} classes; figures are in confusion.csv."
    return _draw("confusion", alt, paint, (max(width, 320), max(height + 30, 200)))


def plot_similarity(pairs: Sequence[Sequence[float]], least: float, name: str, who: str) -> Chart:
    """Draw how similar the mean features of clients are.

    Args:
        pairs: Cosine similarity of each pair, [clients, clients].
        least: The similarity that is drawn in white; 1 is darkest.
        name: The chart's name, unique on the page.
        who: Whose data it is.
    """
    values = np.array(pairs)
    texts = [[f"{value:.2f}".removeprefix("0") for value in row] for row in values]
    shares = ((values - least) / max(1 - least, 1e-9)).clip(0, 1)
    return _plot_pairs(shares, texts, "cosine similarity", name, who)


def plot_distance(pairs: Sequence[Sequence[float]], most: float, name: str, who: str) -> Chart:
    """Draw how far the mean features of clients are apart.

    Args:
        pairs: Euclidean distance of each pair, [clients, clients].
        most: The distance that is drawn in white; 0 is darkest.
        name: The chart's name, unique on the page.
        who: Whose data it is.
    """
    values = np.array(pairs)
    texts = [[f"{value:.2g}" for value in row] for row in values]
    return _plot_pairs((1 - values / max(most, 1e-9)).clip(0, 1), texts, "distance (l2)", name, who)


def _plot_pairs(
    shares: np.ndarray, texts: Sequence[Sequence[str]], figure: str, name: str, who: str
) -> Chart:
    """Draw a figure of each pair of clients, darker for larger shares."""
    clients = len(shares)

    def paint(axes: Axes) -> None:
        _heat_map(axes, shares, texts, [str(client) for client in range(clients)])
        axes.xaxis.set_major_locator(MaxNLocator(20, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(-0.5, clients - 0.5)
        axes.set_xlabel("client")

    alt = f"Heat map of the {figure} of {clients} clients' mean features, pair by pair, of {who}."
    return _draw(name, alt, paint, (WIDTH, 320))


def plot_over_rounds(curves: Mapping[str, Curve], looks: Mapping[str, Look], label: str, name: str) -> Chart:
    """Draw a figure of each method against rounds, from zero.

    Args:
        curves: For each method, the figure; x is the round.
        looks: The look of each method.
        label: The label of the vertical axis.
        name: The chart's name, unique on the page.
    """

    def paint(axes: Axes) -> None:
        _lines(axes, curves, looks, (0.0, np.inf))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(point[0] for curve in curves.values() for point in curve))
        axes.set_xlabel("round")
        axes.set_ylabel(label)

    alt = f"Line chart of {label} per round for {_names(curves, looks)}."
    return _draw(name, alt, paint, keys=_keys(curves, looks))


def plot_predicted(
    measured: Mapping[str, Sequence[tuple[int, float]]],
    predicted: Mapping[str, Sequence[tuple[int, float, float, float]]],
    looks: Mapping[str, Look],
    x: str,
    name: str,
) -> Chart:
    """Draw what a pilot measured, and what is predicted from it with its interval, on a logarithmic axis.

    Args:
        measured: For each line, its points: x and accuracy. Points at 0 are left out.
        predicted: For each line, what is predicted: x, the likely accuracy, and the ends of its interval.
        looks: The look of each line.
        x: The label of the horizontal axis.
        name: The chart's name, unique on the page.
    """

    def paint(axes: Axes) -> None:
        for line, points in measured.items():
            look = looks[line]
            known = [point for point in points if point[0] > 0]
            later = [point for point in predicted[line] if point[0] > known[-1][0]]
            last = known[-1]
            style: dict[str, Any] = {"color": look.colour.light, "marker": look.marker, "zorder": 3}
            axes.plot(*zip(*known, strict=True), linewidth=1.8, **style)
            if later:
                axes.plot(
                    [last[0], *(point[0] for point in later)],
                    [last[1], *(point[1] for point in later)],
                    linewidth=1.1,
                    linestyle=(0, (4, 2)),
                    **style,
                )
                axes.fill_between(
                    [last[0], *(point[0] for point in later)],
                    [last[1], *(point[2] for point in later)],
                    [last[1], *(point[3] for point in later)],
                    color=look.colour.light,
                    alpha=0.12,
                    linewidth=0,
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(0, 1)
        axes.set_xlabel(x)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    keys = [LegendKey(line, looks[line].colour, looks[line].marker) for line in measured]
    alt = f"Line chart of accuracy against {x}, measured and predicted, for {', '.join(measured)}."
    return _draw(name, alt, paint, keys=keys)


def plot_setting(
    values: Sequence[Any],
    figures: Mapping[str, Sequence[Score | None]],
    looks: Mapping[str, Look],
    field: str,
    name: str,
) -> Chart:
    """Draw the accuracy of methods against the values of a setting.

    Numbers have an axis of numbers, which is logarithmic if they span more than a factor of 20. Other values
    have equal distances.

    Args:
        values: The value of each run, in the order of the grid.
        figures: For each method, its accuracy in each run; None if the run lacks the method.
        looks: The look of each method.
        field: The name of the setting.
        name: The chart's name, unique on the page.
    """
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    positions = [float(value) for value in values] if numbers else list(map(float, range(len(values))))
    curves = {
        method: [
            CurvePoint(x, score.mean, score.std or 0.0)
            for x, score in sorted(zip(positions, scores, strict=True), key=lambda point: point[0])
            if score
        ]
        for method, scores in figures.items()
    }
    curves = {method: curve for method, curve in curves.items() if curve}

    def paint(axes: Axes) -> None:
        _lines(axes, curves, looks, (0.0, 1.0))
        if numbers and min(positions) > 0 and max(positions) > 20 * min(positions):
            axes.set_xscale("log")
        elif numbers:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        if numbers and len(values) <= 8:
            axes.set_xticks(positions, [f"{value:,.4g}" for value in positions])
            axes.minorticks_off()
        elif not numbers:
            axes.set_xticks(positions, [_short(str(value)) for value in values])
        lows = [mean - std for curve in curves.values() for _, mean, std in curve]
        highs = [mean + std for curve in curves.values() for _, mean, std in curve]
        axes.set_ylim(max(0.0, np.floor(20 * min(lows)) / 20), min(1.0, np.ceil(20 * max(highs)) / 20 + 1e-3))
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.set_xlabel(field)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    alt = f"Line chart of accuracy against {field} for {_names(curves, looks)}; figures are in the table."
    return _draw(name, alt, paint, keys=_keys(curves, looks))


def plot_client_accuracy(curves: Mapping[str, Curve], looks: Mapping[str, Look]) -> Chart:
    """Draw the clients' accuracies in ascending order; x is the share of the clients."""

    def paint(axes: Axes) -> None:
        _lines(axes, curves, looks, (0.0, 1.0))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("share of the clients, the worst first")
        axes.set_ylabel("accuracy up to")
        percent = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)

    who = _names(curves, looks)
    alt = f"Line chart of the clients' accuracies in ascending order for {who}; figures are in the table."
    return _draw("client-accuracy", alt, paint, keys=_keys(curves, looks))


def plot_roc(
    curves: Mapping[str, Sequence[tuple[float, float]]], looks: Mapping[str, Look], others: int
) -> Chart:
    """Draw the ROC curves of attacks on logarithmic axes.

    Args:
        curves: For each attack, points of false and true positive rates, ascending.
        looks: The look of each attack.
        others: The number of non-members. The axes begin at one of them.
    """
    least = 1 / others

    def paint(axes: Axes) -> None:
        axes.plot([least, 1], [least, 1], color=MUTED.light, linewidth=1, linestyle=(0, (5, 3)))
        for name, curve in curves.items():
            rates = np.array(curve).clip(least, 1)
            axes.plot(*rates.T, color=looks[name].colour.light, linewidth=1.6, drawstyle="steps-post")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(least, 1)
        axes.set_ylim(least, 1)
        percent = FuncFormatter(lambda value, _: f"{100 * value:g} %")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.minorticks_off()
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")

    alt = f"ROC curves of {', '.join(curves)} on logarithmic axes; figures are in the table."
    guess = LegendKey("a guess", MUTED, dashes="5 3")
    return _draw("roc", alt, paint, keys=[*(LegendKey(n, looks[n].colour) for n in curves), guess])


def _heat_map(axes: Axes, shares: np.ndarray, texts: Sequence[Sequence[str]], labels: Sequence[str]) -> None:
    """Paint a row of cells for each label, darker for larger shares, with texts if there is room."""
    rows, columns = shares.shape
    cells = np.zeros((rows, columns, 4))
    cells[..., :3] = matplotlib.colors.to_rgb(ACCENT.light)
    cells[..., 3] = 0.75 * shares  # transparency fits light and dark backgrounds; a colour map would not
    axes.imshow(cells, aspect="auto", interpolation="none")
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    if shares.size <= 1000:
        axes.grid(which="minor")
    axes.grid(visible=False, which="major")
    axes.spines[["left", "bottom"]].set_visible(False)
    step = -(-rows // 40)
    axes.set_yticks(range(0, rows, step), [_short(label) for label in labels[::step]])
    if shares.size <= 400:
        for row, column in np.ndindex(rows, columns):
            axes.text(
                column, row, texts[row][column], ha="center", va="center", fontsize=7.5, in_layout=False
            )


def _lines(
    axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Look], bounds: tuple[float, float]
) -> None:
    for name, curve in curves.items():
        x, mean, std = np.array(curve).T
        colour = looks[name].colour.light
        if looks[name] is REST:
            axes.plot(x, mean, color=colour, linewidth=0.8, zorder=1)
            continue
        if std.any():
            low, high = (mean - std).clip(*bounds), (mean + std).clip(*bounds)
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        every, width = max(1, len(x) // 12), 1.1 if len(x) > 60 else 1.8
        style: dict[str, Any] = {
            "color": colour,
            "marker": looks[name].marker,
            "markevery": every,
            "linewidth": width,
        }
        axes.plot(x, mean, clip_on=False, zorder=3, **style)


def _names(curves: Mapping[str, Curve], looks: Mapping[str, Look]) -> str:
    drawn = [name for name in curves if looks[name] is not REST]
    others = len(curves) - len(drawn)
    return ", ".join(drawn) + (f" and, in grey, {count(others, 'other')}" if others else "")


def _keys(curves: Mapping[str, Curve], looks: Mapping[str, Look]) -> list[LegendKey]:
    """Return the legend of the methods of a chart."""
    drawn = [
        LegendKey(name, looks[name].colour, looks[name].marker) for name in curves if looks[name] is not REST
    ]
    return [*drawn, *([LegendKey("the others", REST.colour)] if len(drawn) < len(curves) else [])]


def _draw(
    name: str,
    alt: str,
    paint: Callable[[Axes], None],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    keys: Sequence[LegendKey] = (),
) -> Chart:
    file = io.BytesIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so glyphs that are missing here do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        FigureCanvasSVG(figure)  # measures texts as savefig does
        axes = figure.add_subplot()
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
        paint(axes)
        ConstrainedLayoutEngine().execute(figure)  # savefig would draw all once more for the layout alone
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Chart.of(_inline(file.getvalue(), name, alt, size), name, alt, size, keys)


def _inline(svg: bytes, name: str, alt: str, size: tuple[int, int]) -> str:
    """Make an SVG file part of a page, with identifiers that no other chart of the page has."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key != "id" or element.tag != "g":  # nothing refers to groups
                element.set(key, _adapt(key, value, name))
    root.attrib.clear()
    root.set("viewBox", f"0 0 {size[0]} {size[1]}")
    root.set("style", f"--width: {size[0]}px")
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")  # escaped by the serialiser


def _adapt(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), value)
        value = re.sub(r"font-family: [^;]*;?|(?<=font: )([^;']*?) '[^;]*", r"\1", value)
    return value


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
