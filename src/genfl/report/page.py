"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from genfl.config import Config, Content
from genfl.config.names import FLOWER
from genfl.report import pictures, plots, text
from genfl.report.audit_page import AuditSection
from genfl.report.charts import Chart, charts_in
from genfl.report.releases import privacy_section, sum_sentences
from genfl.report.style import MOST_DRAWN, REST, Look, looks
from genfl.report.templates import page_template
from genfl.results.evidence import Evidence
from genfl.results.names import CENTRALISED, GENERATOR, LOCAL, SYNTHETIC_ONLY
from genfl.results.schema import CurvePoint, Figure, MethodResult, OverlapCounts, Summary

MOST_CLIENTS = 200
"""Clients in the chart of labels, at most; more columns could not be told apart."""

MOST_MAPS = 6
"""Charts of the clients' similarity, at most: one for each kind of data that clients hold."""

MOST_SEEDS = 5
"""Seeds whose similarities are drawn, at most."""

FIGURES = "figures"
"""The folder beside the page with a file for each chart. The template links to it."""

EXTRACTORS = {
    "projection": "a fixed random projection of the inputs",
    "imagenet": "those of ResNet-18 trained on ImageNet",
}
"""What a report says of an extractor. Others are named by their file."""

Methods = Mapping[str, MethodResult]
Looks = Mapping[str, Look]


class Bar(NamedTuple):
    """A bar of a chart that is made of table rows.

    Attributes:
        name: What the bar stands for.
        value: Its value, as text.
        share: Its length, in [0, 1]; None for no bar.
        colour: Its CSS variable.
    """

    name: str
    value: str
    share: float | None
    colour: str = "accent"


class Tile(NamedTuple):
    """A key figure: its name, its value, and what to compare it with."""

    label: str
    figure: str
    note: str


class SimilarityMaps(NamedTuple):
    """Charts of the similarity of the clients' data.

    Attributes:
        names: The methods whose clients hold this data.
        cosine: The charts of the cosine similarity, for each seed.
        l2: The charts of the distance, for each seed.
        mean_cosine: The mean cosine similarity of different clients, in words.
        mean_l2: The mean distance of different clients, in words.
    """

    names: str
    cosine: list[Markup]
    l2: list[Markup]
    mean_cosine: str
    mean_l2: str


class Page(NamedTuple):
    """A page as HTML, and the charts on it, which are files of their own, too."""

    html: str
    charts: list[Chart]


def draw_page(evidence: Evidence, summary: Summary, audits: Sequence[AuditSection] = ()) -> Page:
    """Return the page and its charts.

    Args:
        evidence: What the page shows besides figures.
        summary: The figures of the run.
        audits: What it says of audits of the run's models.
    """
    context = {**_context(evidence, summary), "audits": audits}
    return Page(page_template("template.html.j2").render(context), list(charts_in(context)))


def render(evidence: Evidence, summary: Summary) -> str:
    """Return the page as HTML; see `draw_page`."""
    return draw_page(evidence, summary).html


def _context(evidence: Evidence, summary: Summary) -> dict[str, Any]:
    config, methods, federated = evidence.config, summary.methods, summary.federated
    labels = evidence.label_order
    classes = [summary.labels.found.index(label) for label in labels]
    drawn = _drawn(summary)
    look = looks(methods, drawn)
    return {
        "title": f"{config.name}: {_question(config)}",
        "config": evidence.config_text,
        "settings": config,
        "generator": evidence.generator,
        "data_notes": evidence.data_notes,
        "summary": summary,
        "environment": summary.environment.to_dict(),
        "origin": evidence.origin,
        "verdict": _nonbreaking(text.verdict(summary)),
        "target": _nonbreaking(text.target_percent(summary)),
        "tiles": _tiles(summary),
        "looks": look,
        "rest": REST,
        "drawn": drawn,
        "methods": _ordered(methods),
        "many": _many(methods),
        "undrawn": sum(look[name] is REST for name in _curves(methods)),
        "undrawn_federated": sum(look[name] is REST for name in federated),
        "marks": {name: text.reference_note(method) for name, method in methods.items()},
        "notes": {name: _note(config, name) for name in methods},
        "accuracy_rule": text.accuracy_rule(federated),
        "usual_metric": evidence.usual_metric,
        "refused": any(method.refused_uploads for method in methods.values()),
        "costs": text.costs_table(summary),
        "has_delta": any(method.delta for method in federated.values()),
        **_learning(config, summary, look),
        "to_target": _to_target(config, summary, look),
        "diversity": _diversity(config, federated, look),
        "smoothing": plots.SMOOTHING,
        "heterogeneity": _heterogeneity(methods, look),
        "recall": plots.plot_recall(
            {name: [m.recall[number] for number in classes] for name, m in _ordered(methods).items()}, labels
        ),
        "client_accuracy": _client_accuracy(methods, look),
        "rows": pictures.picture_rows(evidence.examples, evidence.modality),
        "hidden_samples": evidence.hidden,
        "near_duplicate_rule": evidence.near_duplicate_rule,
        "overlap_rule": evidence.overlap_rule,
        "overlaps": pictures.overlap_rows(evidence.overlaps or [], evidence.modality),
        "hides_overlaps": evidence.overlaps is None,
        "comparisons": _comparisons(summary),
        "labels": labels,
        "holders": _holders(config, summary, labels),
        **_label_counts(evidence, classes),
        "real_machines": evidence.config.federate.engine == FLOWER,
        **_pretraining(evidence),
        "privacy": privacy_section(summary.privacy),
        "secure_sums": _nonbreaking(sum_sentences(summary)),
        "work": text.work_table(summary),
        "time": _time(summary),
        "generation_cost": _generation_cost(summary),
        "traffic": _traffic(config, summary),
    }


def _comparisons(summary: Summary) -> dict[str, OverlapCounts]:
    """Return the counts of near-duplicates of each comparison, by its name in words."""
    counts = {name: getattr(summary.audit, name, None) for name in pictures.COMPARISONS}
    return {pictures.COMPARISONS[name]: figures for name, figures in counts.items() if figures}


def _question(config: Config) -> str:
    if config.generates:
        return "does a pretrained generator help this federation?"
    return "which method is best for this federation?"


def _curves(methods: Methods) -> dict[str, list[CurvePoint]]:
    """Return the curves of the methods that train in rounds: the federated ones, and some references."""
    return {name: method.curve for name, method in methods.items() if len(method.curve) > 1}


def _drawn(summary: Summary) -> list[str]:
    """Pick the methods that charts tell apart: all, or the two compared and the most accurate others."""
    names, compared = list(_curves(summary.methods)), text.contest(summary)

    def rank(name: str) -> tuple[bool, float]:
        return name in compared, summary.methods[name].accuracy.mean

    best = sorted(names, key=rank, reverse=True)[:MOST_DRAWN]
    return [name for name in names if name in best]


def _many(methods: Methods) -> bool:
    return len(methods.keys() - {SYNTHETIC_ONLY}) > MOST_DRAWN


def _ordered(methods: Methods) -> dict[str, MethodResult]:
    """Return the methods in the order of the table: that of the config or, if there are many, by accuracy."""
    if not _many(methods):
        return dict(methods)

    def rank(name: str) -> tuple[bool, bool, float]:
        return name != SYNTHETIC_ONLY, methods[name].reference, -methods[name].accuracy.mean

    return {name: methods[name] for name in sorted(methods, key=rank)}


def _spread_of_seeds(figure: Figure, suffix: str = " over the seeds") -> str:
    """Say how far the seeds are apart; nothing for a single seed."""
    return "" if figure.std is None else f"± {100 * figure.std:.1f} points{suffix}"


def _tiles(summary: Summary) -> list[Tile]:
    methods, goal = summary.methods, text.target_percent(summary)
    best, baseline = text.contest(summary)
    first = best if best is not None else str(baseline)
    method = methods[first]
    if best and baseline:
        accuracy = text.percent(methods[baseline].accuracy.mean)
        against = f"{text.shown_gain(method, methods[baseline])} against {baseline} ({accuracy})"
        slower = f"{baseline}: {_rounds(methods[baseline])}"
    else:
        against = _spread_of_seeds(method.accuracy) or "in the one seed tried"
        slower = "nothing to compare with"
        others = {name: other for name, other in summary.federated.items() if name != first}
        if others:
            second = max(others, key=lambda name: others[name].accuracy.mean)
            against = f"{second}: {text.percent(others[second].accuracy.mean)}"
            slower = f"{second}: {_rounds(others[second])}"
    tiles = [
        Tile(f"accuracy of {first}", text.percent(method.accuracy.mean), against),
        Tile(f"rounds to {goal}, {first}", _rounds(method), slower),
    ]
    synthetic = summary.synthetic
    if synthetic:
        alone = methods[SYNTHETIC_ONLY].accuracy
        spread = ", ".join(filter(None, ["accuracy", _spread_of_seeds(alone, ""), "before any round"]))
        tiles.append(Tile("generated data alone", text.percent(alone.mean), spread))
    if synthetic and summary.generated:
        speed = f"for {text.count(synthetic.samples, 'sample')}, {synthetic.samples_per_second:g} a second"
        tiles.append(Tile("generating took", text.duration(synthetic.seconds), speed))
    return [Tile(*map(_nonbreaking, tile)) for tile in tiles]


def _nonbreaking(sentence: str) -> str:
    """Keep numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%|[kMG]?B\b|s\b|min\b|h\b)|(?<=±) ", "\u00a0", sentence)


def _rounds(method: MethodResult) -> str:
    return "never" if method.rounds_to_target is None else str(method.rounds_to_target)


def _note(config: Config, name: str) -> str:
    """Describe a method in short."""
    existing = "an existing model, " if config.pretrain.init else ""
    if name == SYNTHETIC_ONLY:
        return f"{existing}trained on generated data, not federated"
    method = config.methods[name]
    if method.reference == GENERATOR and config.generator.kind == "text":
        shots = method.algorithm[0].options()["shots"]
        shown = text.count(shots, "labelled example") if shots else "no example"
        return f"the generator as a classifier of texts, shown {shown}"
    if method.reference == GENERATOR:
        return "the generator as a classifier, choosing the label whose prompt explains an image best"
    start = {
        "random": "from scratch",
        "init": "from an existing model",
        "pretrained": f"from {existing}trained on {method.source} data"
        if existing
        else f"from the {method.source} data",
    }[method.start]
    data = {
        "private": "",
        "mixed": f", private and {method.source} data mixed",
        "p2g": f", private data first and then {method.source} data in every round",
        "g2p": f", {method.source} data first and then private data in every round",
        "generated": f", {method.source} data only",
    }
    distils = ", on public data" if method.needs_public == "algorithm" else ""
    references = {LOCAL: "every client alone", CENTRALISED: "all data in one place"}
    algorithm = " + ".join(references.get(part.name, part.name) for part in method.algorithm)
    content = _content_choices(method.content) if method.content else ""
    return f"{algorithm}{distils}, {start}{data[method.data]}{content}"


def _content_choices(content: Content) -> str:
    """Say how a method's generated content differs from the default: equal parts, made from prompts alone."""
    descriptions = {
        "budget": f"{content.budget.replace('_', '-')} budget",
        "clients": f"{100 * content.clients:g} % of the clients",
        "guidance": "half of the samples of a client's own classes guided by real examples"
        if content.guidance == "mixed"
        else "guided by real examples",
        "by": "sent by the server",
        "weight": "weight by private samples alone",
    }
    default = Content()
    choices = [
        description
        for field, description in descriptions.items()
        if getattr(content, field) != getattr(default, field)
    ]
    if content.filter:
        scope = " of each class, one at least," if content.filter.by_class else ""
        choices.append(f"{100 * content.filter.share:g} %{scope} kept from round {content.filter.from_round}")
    return f" ({'; '.join(choices)})" if choices else ""


def _learning(config: Config, summary: Summary, look: Looks) -> dict[str, Markup | None]:
    """Draw the learning curves against rounds and, if methods differ in it, against bytes."""
    pretrained = summary.methods.get(SYNTHETIC_ONLY)
    alone, goal = pretrained.accuracy.mean if pretrained else None, summary.target_accuracy
    by_rounds = plots.plot_learning(_curves(summary.methods), look, goal, alone, "round", "learning-rounds")
    megabytes = {name: method.bytes_per_round / 1e6 for name, method in summary.federated.items()}
    setup = {name: method.setup_bytes / 1e6 for name, method in summary.federated.items()}
    discovery = summary.labels.bytes_per_client * config.data.partition.clients / 1e6
    sends_content = any(size > discovery for size in setup.values())
    by_bytes = None
    if sends_content or max(megabytes.values()) > 1.01 * min(megabytes.values()):  # else charts look the same
        scaled = {
            name: [point._replace(x=setup[name] + megabytes[name] * point.x) for point in curve]
            for name, curve in _curves(summary.federated).items()
        }
        by_bytes = plots.plot_learning(scaled, look, goal, alone, "MB sent and received", "learning-bytes")
    return {"learning": by_rounds, "learning_bytes": by_bytes}


def _to_target(config: Config, summary: Summary, look: Looks) -> dict[str, list[Bar]]:
    """Return bars of the rounds and bytes that each drawn method took to the target, of the whole budget."""
    methods = {name: method for name, method in summary.methods.items() if look[name] is not REST}
    rounds = config.federate.rounds
    most_bytes = max(method.total_bytes for method in methods.values())

    def bar(name: str, value: int | None, whole: float, label: str) -> Bar:
        if value is None:
            return Bar(name, "never", None)
        return Bar(name, label, min(1.0, value / max(whole, 1)), look[name].colour.name)

    return {
        "rounds": [
            bar(name, method.rounds_to_target, rounds, str(method.rounds_to_target))
            for name, method in methods.items()
        ],
        "bytes": [
            bar(name, method.bytes_to_target, most_bytes, text.byte_size(method.bytes_to_target or 0))
            for name, method in methods.items()
            if not text.reference_note(method)
        ],
    }


def _heterogeneity(methods: Methods, look: Looks) -> dict[str, Any] | None:
    """Draw how similar clients and their local models are; None if it was not measured."""
    measured = {name: method.heterogeneity for name, method in methods.items() if method.heterogeneity}
    if not measured:
        return None
    curves = {
        "divergence": {name: figures.divergence for name, figures in measured.items() if figures.divergence},
        "generality": {name: figures.generality for name, figures in measured.items() if figures.generality},
    }
    labels = {"divergence": "distance of local models", "generality": "accuracy of local models"}
    charts = {
        figure: plots.plot_over_rounds(lines, look, labels[figure], figure) if lines else None
        for figure, lines in curves.items()
    }
    means = {
        name: figures.mean_divergence.mean for name, figures in measured.items() if figures.mean_divergence
    }
    extractor = next(iter(measured.values())).extractor
    described = EXTRACTORS.get(extractor, f"those of {extractor}")
    return {"maps": _similarity_maps(methods), "extractor": described, "mean_divergence": means, **charts}


def _similarity_maps(methods: Methods) -> list[SimilarityMaps]:
    """Draw the similarity of the clients' data, once for all methods that train on the same data."""
    compared = {
        name: method.heterogeneity
        for name, method in methods.items()
        if method.heterogeneity and method.heterogeneity.similarity
    }
    pairs = {name: figures.similarity or [] for name, figures in compared.items()}
    groups: dict[str, list[str]] = {}
    for name, of_seeds in pairs.items():
        groups.setdefault(str(of_seeds[0].cosine), []).append(name)
    every = [of_seed for of_seeds in pairs.values() for of_seed in of_seeds]
    least = min((value for of_seed in every for row in of_seed.cosine for value in row), default=0.0)
    most = max((value for of_seed in every for row in of_seed.l2 for value in row), default=0.0)
    maps = []
    for number, names in enumerate(list(groups.values())[:MOST_MAPS]):
        figures, title = compared[names[0]], ", ".join(names)
        assert figures.mean_cosine is not None and figures.mean_l2 is not None, "as there is a similarity"
        drawn = list(enumerate(pairs[names[0]][:MOST_SEEDS]))
        maps.append(
            SimilarityMaps(
                title,
                [
                    plots.plot_similarity(of_seed.cosine, least, f"similarity-{number}-{seed}", title)
                    for seed, of_seed in drawn
                ],
                [
                    plots.plot_distance(of_seed.l2, most, f"distance-{number}-{seed}", title)
                    for seed, of_seed in drawn
                ],
                _mean_of_seeds(figures.mean_cosine, 3),
                _mean_of_seeds(figures.mean_l2, 3),
            )
        )
    return maps


def _mean_of_seeds(figure: Figure, digits: int) -> str:
    """Write a figure with its standard deviation over the seeds, if there are several."""
    mean = f"{figure.mean:.{digits}f}"
    return mean if figure.std is None else f"{mean} ± {figure.std:.{digits}f}"


def _diversity(config: Config, federated: Methods, look: Looks) -> Markup | None:
    curves = {name: method.diversity for name, method in federated.items() if method.diversity}
    return plots.plot_diversity(curves, look, config.federate.clients_per_round) if curves else None


def _client_accuracy(methods: Methods, look: Looks) -> Markup | None:
    curves = {name: method.clients.quantiles for name, method in methods.items() if method.clients}
    return plots.plot_client_accuracy(curves, look) if curves else None


def _holders(config: Config, summary: Summary, labels: Sequence[str]) -> list[Bar]:
    clients, holders = config.data.partition.clients, summary.labels.holders
    return [Bar(name, str(holders[name]), holders[name] / clients) for name in labels if name in holders]


def _label_counts(evidence: Evidence, classes: Sequence[int]) -> dict[str, Any]:
    if evidence.label_counts is None:
        return {"label_counts": None}
    counts = evidence.label_counts[:, classes]
    shown = counts[:MOST_CLIENTS]
    return {
        "label_counts": plots.plot_label_counts(shown, evidence.label_order),
        "clients_shown": len(shown),
        "held": {"labels": _spread((counts > 0).sum(1)), "samples": _spread(counts.sum(1))},
    }


def _spread(counts: np.ndarray) -> str:
    """Write the minimum, the median and the maximum of some counts."""
    least, median, most = np.quantile(counts, (0, 0.5, 1))
    return f"{least:,.0f} to {most:,.0f} (median {median:,.10g})"


def _pretraining(evidence: Evidence) -> dict[str, Any]:
    history = evidence.pretraining
    if history is None:
        return {"pretraining": []}
    return {
        "pretraining": [
            plots.plot_pretraining(history, "held_back_loss", "held-back loss", percent=False),
            plots.plot_pretraining(history, "held_back_accuracy", "held-back accuracy", percent=True),
        ],
        "best_epochs": [model.best_epoch for model in history.seeds.values()],
    }


def _time(summary: Summary) -> list[Bar]:
    seconds = {name: stage.seconds for name, stage in summary.stages.items()}
    # The sum of the shards covers interruptions; the record of the stage knows the last start only.
    if summary.synthetic:
        seconds["generate"] = max(seconds["generate"], summary.synthetic.seconds)
    total = max(sum(seconds.values()), 1e-9)
    return [
        Bar(name, f"{text.duration(took)} · {100 * took / total:.0f} %", took / total)
        for name, took in seconds.items()
    ]


def _generation_cost(summary: Summary) -> str:
    """Write how many times as long as federated training generation took; empty without samples."""
    if not summary.synthetic:
        return ""
    ratio = summary.synthetic.seconds / max(summary.stages["federate"].seconds, 1e-3)
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def _traffic(config: Config, summary: Summary) -> list[tuple[str, float, float]]:
    """Return the total traffic: purpose, bytes up, bytes down. Methods that send the same share a row."""
    rounds, labels = config.federate.rounds, summary.labels
    discovery = ("label discovery", float(labels.bytes_per_client * config.data.partition.clients), 0.0)
    training: dict[tuple[float, float], list[str]] = {}
    content: dict[float, list[str]] = {}
    for name, method in summary.federated.items():
        up_and_down = (method.uplink_bytes_per_round, method.downlink_bytes_per_round)
        training.setdefault(up_and_down, []).append(name)
        # setup for public data is label discovery alone: clients have the data themselves
        setup_bytes = 0 if method.source == "public" else method.setup_bytes
        if content_bytes := setup_bytes - method.uses_generator * discovery[1]:
            content.setdefault(content_bytes, []).append(name)
    return [
        discovery,
        *((f"generated data, {_enumerate(names)}", 0.0, size) for size, names in content.items()),
        *((_enumerate(names), rounds * up, rounds * down) for (up, down), names in training.items()),
    ]


def _enumerate(methods: Sequence[str]) -> str:
    """Name the methods of a row; some of them if there are many."""
    if len(methods) == 1:
        return methods[0]
    names = methods if len(methods) <= 4 else [*methods[:3], f"{len(methods) - 3} others"]
    return f"each of {', '.join(names[:-1])} and {names[-1]}"
