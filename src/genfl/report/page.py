"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from genfl import config as configs
from genfl.config import Config, Content
from genfl.data.quality import MEASURES
from genfl.data.sources import DATASETS
from genfl.experiment.context import Context
from genfl.experiment.folder import Run
from genfl.generators.registry import GENERATORS
from genfl.references import CENTRALISED, GENERATOR, LOCAL
from genfl.report import pictures, plots, text
from genfl.report.style import COLOURS, MARKERS, MOST_DRAWN, REST, Look, looks
from genfl.results.names import SYNTHETIC_ONLY

MOST_CLIENTS = 200
"""More columns than this could not be told apart."""

MOST_MAPS = 6
"""Of clients' similarity: one for each kind of data they hold."""


class Bar(NamedTuple):
    """A bar of a chart made of table rows.

    Attributes:
        name: What it stands for.
        value: Its value, written out.
        share: Its length, of 1; None where there is nothing to draw.
        colour: Its CSS variable.
    """

    name: str
    value: str
    share: float | None
    colour: str = "accent"


class Tile(NamedTuple):
    """A key figure: what it is, the figure, and what to compare it with."""

    label: str
    figure: str
    note: str


def render(run: Run, context: Context, summary: dict[str, Any]) -> str:
    """Returns the page as HTML.

    Args:
        run: A run whose other stages are done.
        summary: Its figures; see `genfl.results.summarise.summarise`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text.percent,
        "mean_std": text.mean_std,
        "duration": text.duration,
        "size": text.size,
        "megabytes": text.megabytes,
        "count": text.count,
    }
    return environment.get_template("template.html.j2").render(_context(run, context, summary))


def _context(run: Run, context: Context, summary: dict[str, Any]) -> dict[str, Any]:
    config = run.config
    methods = summary["methods"]
    arms = {name: method for name, method in methods.items() if not method["reference"]}
    drawn = _drawn(summary)
    look = looks(methods, drawn)
    return {
        "title": f"{config.name}: {_question(config)}",
        "config": configs.dump(config),
        "settings": config,
        "generator": _generator_facts(config) if config.generates else {},
        "summary": summary,
        "verdict": _firm(text.verdict(summary)),
        "target": _firm(text.target(summary)),
        "tiles": _tiles(summary),
        "colours": COLOURS,
        "markers": MARKERS,
        "looks": look,
        "rest": REST,
        "drawn": drawn,
        "methods": _ordered(methods),
        "many": _many(methods),
        "undrawn": sum(look[name] is REST for name in _curves(methods)),
        "undrawn_arms": sum(look[name] is REST for name in arms),
        "marks": {name: text.mark(method) for name, method in methods.items()},
        "notes": {name: _note(config, name) for name in methods},
        "accuracy_rule": text.accuracy_rule(arms),
        "usual_metric": DATASETS[config.data.name].metric,
        "refused": any(method["refused_uploads"] for method in methods.values()),
        **_learning(summary, arms, look),
        "to_target": _to_target(config, summary, look),
        "diversity": _diversity(config, arms, look),
        "heterogeneity": _heterogeneity(methods, look),
        "recall": plots.recall({n: m["recall"] for n, m in _ordered(methods).items()}, run.labels),
        "client_accuracy": _client_accuracy(methods, look),
        "rows": _rows(run, context),
        "near_means": MEASURES[context.data_set(config.data).modality].means,
        "holders": _holders(config, summary["labels"]),
        **_label_counts(run, context),
        **_pretraining(run),
        "time": _time(summary),
        "generating": text.generated(summary),
        "against_training": _against_training(summary),
        "traffic": _traffic(config, summary, arms),
    }


def _generator_facts(config: Config) -> dict[str, Any]:
    """Return what a data card and a report say of the generator."""
    return GENERATORS[config.generator.kind].facts(config.generator.model_dump(exclude={"kind"}))


def _question(config: Config) -> str:
    if config.generates:
        return "does a pretrained generator help this federation?"
    return "which method is best for this federation?"


def _curves(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the curves of the methods that go on over rounds: the federated ones, and some references."""
    return {name: method["curve"] for name, method in methods.items() if len(method["curve"]) > 1}


def _drawn(summary: dict[str, Any]) -> list[str]:
    """Picks the methods that charts tell apart: all, or the two compared and the most accurate others."""
    names, accuracy = (
        list(_curves(summary["methods"])),
        {n: text.mean(m) for n, m in summary["methods"].items()},
    )
    compared = text.contest(summary)
    best = sorted(names, key=lambda name: (name in compared, accuracy[name]), reverse=True)[:MOST_DRAWN]
    return [name for name in names if name in best]


def _many(methods: Mapping[str, Any]) -> bool:
    return len(methods.keys() - {SYNTHETIC_ONLY}) > MOST_DRAWN


def _ordered(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the methods in the order of the table: the config's, or if there are many, by accuracy."""
    if not _many(methods):
        return dict(methods)

    def place(name: str) -> tuple[bool, bool, float]:
        return name != SYNTHETIC_ONLY, methods[name]["reference"], -text.mean(methods[name])

    return {name: methods[name] for name in sorted(methods, key=place)}


def _over_seeds(figure: dict[str, Any], over: str = " over the seeds") -> str:
    """Says how far the seeds are apart; nothing where there is one."""
    return f"± {100 * figure['std']:.1f} points{over}" if len(figure["per_seed"]) > 1 else ""


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    methods, goal = summary["methods"], text.target(summary)
    best, baseline = text.contest(summary)
    arm = methods[best or baseline]
    if best and baseline:
        gain = text.gains(arm, methods[baseline])
        its = text.percent(text.mean(methods[baseline]))
        against = f"{text.signed(sum(gain) / len(gain))} against {baseline} ({its})"
        slower = f"{baseline}: {_rounds(methods[baseline])}"
    else:
        against, slower = _over_seeds(arm["accuracy"]) or "in the one seed tried", "nothing to compare with"
        others = {n: m for n, m in methods.items() if not m["reference"] and n not in (best, baseline)}
        if others:
            second = max(others, key=lambda name: text.mean(others[name]))
            against = f"{second}: {text.percent(text.mean(others[second]))}"
            slower = f"{second}: {_rounds(others[second])}"
    tiles = [
        Tile(f"accuracy of {best or baseline}", text.percent(text.mean(arm)), against),
        Tile(f"rounds to {goal}, {best or baseline}", _rounds(arm), slower),
    ]
    made = summary["synthetic"]
    if made:
        alone = methods[SYNTHETIC_ONLY]["accuracy"]
        spread = ", ".join(filter(None, ["accuracy", _over_seeds(alone, ""), "before any round"]))
        tiles.append(Tile("generated data alone", text.percent(alone["mean"]), spread))
    if text.generated(summary):
        speed = f"for {text.count(made['samples'], 'sample')}, {made['samples_per_second']:g} a second"
        tiles.append(Tile("generating took", text.duration(made["seconds"]), speed))
    return [Tile(*map(_firm, tile)) for tile in tiles]


def _firm(sentence: str) -> str:
    """Keeps numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%|[kMG]?B\b|s\b|min\b|h\b)|(?<=±) ", "\u00a0", sentence)


def _rounds(method: Mapping[str, Any]) -> str:
    rounds = method["rounds_to_target"]
    return "never" if rounds is None else str(rounds)


def _note(config: Config, name: str) -> str:
    """Says in short what a method is."""
    again = "an existing model, " if config.pretrain.init else ""
    if name == SYNTHETIC_ONLY:
        return f"{again}trained on generated data, not federated"
    method = config.methods[name]
    if method.reference == GENERATOR:
        return "the generator as a classifier, of the label whose prompt explains an image best"
    start = {
        "random": "from scratch",
        "init": "from an existing model",
        "pretrained": f"from {again}trained on generated data" if again else "from the generated data",
    }[method.start]
    data = {
        "private": "",
        "mixed": ", private and generated data mixed",
        "p2g": ", private data first and then generated data in every round",
        "g2p": ", generated data first and then private data in every round",
        "generated": ", generated data only",
    }
    who = {LOCAL: "every client alone", CENTRALISED: "all data in one place"}
    name = " + ".join(who.get(part.name, part.name) for part in method.algorithm)
    return f"{name}, {start}{data[method.data]}{_choices(method.content) if method.content else ''}"


def _choices(content: Content) -> str:
    """Says how a method's generated content differs from equal shares of what prompts alone make."""
    told = {
        "budget": f"{content.budget.replace('_', '-')} budget",
        "clients": f"{100 * content.clients:g} % of the clients",
        "guidance": "guided by real examples in half of what is of classes a client holds"
        if content.guidance == "mixed"
        else "guided by real examples",
        "by": "sent by the server",
        "weight": "weight by private samples alone",
    }
    plain = Content()
    said = [words for field, words in told.items() if getattr(content, field) != getattr(plain, field)]
    if content.filter:
        which = " of each class, one at least," if content.filter.by_class else ""
        said.append(f"{100 * content.filter.share:g} %{which} kept from round {content.filter.from_round}")
    return f" ({'; '.join(said)})" if said else ""


def _learning(summary: dict[str, Any], arms: Mapping[str, Any], look: Mapping[str, Look]) -> dict[str, Any]:
    goal, made = summary["target_accuracy"], summary["methods"].get(SYNTHETIC_ONLY)
    alone = text.mean(made) if made else None
    megabytes = {name: _per_round(method) / 1e6 for name, method in arms.items()}
    by_bytes = None
    if max(megabytes.values()) > 1.01 * min(megabytes.values()):  # else the two charts would look the same
        scaled = {
            name: [[megabytes[name] * number, mean, std] for number, mean, std in curve]
            for name, curve in _curves(arms).items()
        }
        by_bytes = plots.learning(scaled, look, goal, alone, "MB sent and received", "learning-bytes")
    return {
        "learning": plots.learning(
            _curves(summary["methods"]), look, goal, alone, "round", "learning-rounds"
        ),
        "learning_bytes": by_bytes,
    }


def _per_round(method: Mapping[str, Any]) -> float:
    return float(method["uplink_bytes_per_round"] + method["downlink_bytes_per_round"])


def _to_target(config: Config, summary: dict[str, Any], look: Mapping[str, Look]) -> dict[str, list[Bar]]:
    """Returns bars of what each method drawn took to the target, of the whole budget."""
    methods = {name: m for name, m in summary["methods"].items() if look[name] is not REST}
    budget = config.federate.rounds
    most_bytes = budget * max(_per_round(method) for method in methods.values())
    charts = {}
    for key, whole, write in (("rounds", budget, str), ("bytes", most_bytes, text.size)):
        taken = {
            name: method[f"{key}_to_target"]
            for name, method in methods.items()
            if key == "rounds" or not text.mark(method)
        }
        charts[key] = [
            Bar(name, "never", None)
            if value is None
            else Bar(name, write(value), min(1.0, value / max(whole, 1)), look[name].colour.name)
            for name, value in taken.items()
        ]
    return charts


def _heterogeneity(methods: Mapping[str, Any], look: Mapping[str, Look]) -> dict[str, Any] | None:
    """How alike clients and their local models are, in charts; None where it was not measured."""
    measured = {name: found for name, method in methods.items() if (found := method["heterogeneity"])}
    if not measured:
        return None
    alike: dict[str, list[str]] = {}  # many methods train on the same data
    for name, found in measured.items():
        if not found["similarity"]:
            continue
        alike.setdefault(str(found["similarity"]["cosine"]), []).append(name)
    shown = [found["similarity"]["cosine"] for found in measured.values() if found["similarity"]]
    least = min((value for pairs in shown for row in pairs for value in row), default=0.0)
    maps = []
    for number, names in enumerate(list(alike.values())[:MOST_MAPS]):
        found, who = measured[names[0]], ", ".join(names)
        drawn = plots.similarity(found["similarity"]["cosine"], least, f"similarity-{number}", who)
        maps.append((drawn, who, found["mean_cosine"], found["mean_l2"]))
    curves = {}
    for figure, label in (
        ("divergence", "distance of local models"),
        ("generality", "accuracy of local models"),
    ):
        lines = {name: found[figure] for name, found in measured.items() if found[figure]}
        curves[figure] = plots.over_rounds(lines, look, label, figure) if lines else None
    return {"maps": maps, **curves}


def _diversity(config: Config, arms: Mapping[str, Any], look: Mapping[str, Look]) -> Markup | None:
    curves = {name: method["diversity"] for name, method in arms.items() if method["diversity"]}
    return plots.diversity(curves, look, config.federate.clients_per_round) if curves else None


def _client_accuracy(methods: Mapping[str, Any], look: Mapping[str, Look]) -> Markup | None:
    tested = {name: method["clients"]["quantiles"] for name, method in methods.items() if method["clients"]}
    return plots.clients(tested, look) if tested else None


def _rows(run: Run, context: Context) -> list[pictures.Row]:
    data = context.data_set(run.config.data)
    if not run.config.generates or data.modality not in pictures.VIEWS:
        return []
    real = run.config.report.real_examples
    if real is None:
        real = DATASETS[run.config.data.name].public
    return pictures.grid(data, run.folder / "synthetic", run.labels, real=real)


def _holders(config: Config, found: dict[str, Any]) -> list[Bar]:
    clients = config.data.partition.clients
    return [Bar(name, str(held), held / clients) for name, held in found["holders"].items()]


def _label_counts(run: Run, context: Context) -> dict[str, Any]:
    counts = context.label_counts(run.config.data, run.labels, run.config.seeds[0])
    shown = counts[:MOST_CLIENTS]
    return {
        "label_counts": plots.label_counts(shown, run.labels),
        "clients_shown": len(shown),
        "held": {"labels": _spread((counts > 0).sum(1)), "samples": _spread(counts.sum(1))},
    }


def _spread(counts: np.ndarray) -> str:
    """Writes the least, the middle and the most of some counts."""
    least, middle, most = np.quantile(counts, (0, 0.5, 1))
    return f"{least:,.0f} to {most:,.0f} (median {middle:,.10g})"


def _pretraining(run: Run) -> dict[str, Any]:
    if not run.config.generates:
        return {"pretraining": []}
    seeds = run.result("pretrain")["seeds"]
    return {
        "pretraining": [
            plots.pretraining(seeds, "held_back_loss", "held-back loss", share=False),
            plots.pretraining(seeds, "held_back_accuracy", "held-back accuracy", share=True),
        ],
        "best_epochs": [trained["best_epoch"] for trained in seeds.values()],
    }


def _time(summary: dict[str, Any]) -> list[Bar]:
    seconds = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    # The generate stage's own sum goes on over interruptions; the record knows only the last start.
    if made := summary["synthetic"]:
        seconds["generate"] = max(seconds["generate"], made["seconds"])
    total = max(sum(seconds.values()), 1e-9)
    return [
        Bar(name, f"{text.duration(took)} · {100 * took / total:.0f} %", took / total)
        for name, took in seconds.items()
    ]


def _against_training(summary: dict[str, Any]) -> str:
    """Says what generating cost, in terms of what training did."""
    if not summary["synthetic"]:
        return ""
    times = summary["synthetic"]["seconds"] / max(summary["stages"]["federate"]["seconds"], 1e-3)
    return f"{times:.2g}" if times < 10 else f"{times:,.0f}"


def _traffic(
    config: Config, summary: dict[str, Any], arms: Mapping[str, Any]
) -> list[tuple[str, float, float]]:
    """Returns what is sent in all: what for, bytes up and bytes down; methods that send as much together."""
    rounds, found = config.federate.rounds, summary["labels"]
    discovery = ("label discovery", float(found["bytes_per_client"] * config.data.partition.clients), 0.0)
    alike: dict[tuple[float, float], list[str]] = {}
    for name, method in arms.items():
        up_and_down = (method["uplink_bytes_per_round"], method["downlink_bytes_per_round"])
        alike.setdefault(up_and_down, []).append(name)
    sent: dict[float, list[str]] = {}
    for name, method in arms.items():
        if extra := method["setup_bytes"] - method["uses_generator"] * discovery[1]:
            sent.setdefault(extra, []).append(name)
    return [
        discovery,
        *((f"generated data, {_names(who)}", 0.0, size) for size, who in sent.items()),
        *((_names(who), rounds * up, rounds * down) for (up, down), who in alike.items()),
    ]


def _names(methods: Sequence[str]) -> str:
    """Names methods of which the same is to be said."""
    if len(methods) == 1:
        return methods[0]
    few = methods if len(methods) <= 4 else [*methods[:3], f"{len(methods) - 3} others"]
    return f"each of {', '.join(few[:-1])} and {few[-1]}"
