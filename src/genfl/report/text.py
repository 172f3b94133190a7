"""What a run's figures say, in words and in a table."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from statistics import fmean, stdev
from typing import Any, NamedTuple

from genfl.generators.registry import GENERATORS
from genfl.references import CENTRALISED
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.summarise import LAST

SAME = 0.05
"""Differences in accuracy below this many points are none: the tables would not show them."""


class Contest(NamedTuple):
    """The methods a verdict compares; either is None where the run has no such pair.

    Attributes:
        best: The most accurate federated one that uses the generator, of those with a baseline.
        baseline: The same algorithm without the generator; the most accurate one, where none uses it.
    """

    best: str | None
    baseline: str | None


def verdict(summary: dict[str, Any]) -> str:
    """Says in a few sentences whether the generator helped, by how much, and at what cost."""
    best, baseline = contest(summary)
    methods = summary["methods"]
    if best is not None and baseline is not None:
        mine, its = (percent(mean(methods[name])) for name in (best, baseline))
        first = (
            f"{_opening(summary, best, baseline)}: {best} ends at {mine}, {baseline} at {its}"
            f" ({_points(summary, best, baseline)}); {race(summary, best, baseline)}."
        )
    elif summary["synthetic"] is None:
        return _without(summary)
    else:
        only, missing = best or baseline, "without" if best else "with"
        same = "algorithm and existing model" if from_existing(methods[only]) else "algorithm"
        first = (
            f"{only} ends at {percent(mean(methods[only]))}; no method has the same {same} {missing} the"
            " generator to compare with."
        )
    made = summary["synthetic"]
    samples = count(made["samples"], "sample")
    cost = f" generating {samples} took {duration(made['seconds'])}."
    if not generated(summary):
        cost = f" its {samples} were there already."
    warning = _refused(summary, best, baseline)
    alone = methods[SYNTHETIC_ONLY]
    what = (
        "existing model, trained on generated data alone," if from_existing(alone) else "generated data alone"
    )
    return f"{first} The {what} gives {percent(mean(alone))};{cost}{warning}"


def _without(summary: dict[str, Any]) -> str:
    """Says what a comparison of methods without a generator came to."""
    arms = {name: method for name, method in summary["methods"].items() if not method["reference"]}
    best, *others = sorted(arms, key=lambda name: mean(arms[name]), reverse=True)
    rounds, goal = arms[best]["rounds_to_target"], target(summary)
    reached = f"never reaches {goal}" if rounds is None else f"is at {goal} {_when(rounds)}"
    ends = f"ends at {percent(mean(arms[best]))} and {reached}"
    if not others:
        return f"Without a generator, {best} {ends}.{_refused(summary, best)}"
    second = others[0]
    its, points = percent(mean(arms[second])), _points(summary, best, second)
    if exceeds(fmean(gains(arms[best], arms[second])), noise(summary, arms[best], arms[second])):
        said = (
            f"the most accurate of {len(arms)} methods is {best}: it {ends}; {second} follows at {its}"
            f" ({points})."
        )
    else:
        said = (
            f"none of {len(arms)} methods is clearly the most accurate: {best} {ends}, {second} ends at {its}"
            f" ({points})."
        )
    if from_existing(arms[best]) != from_existing(arms[second]):
        said += (
            f" Of these, only {best if from_existing(arms[best]) else second} began with an existing model."
        )
    return f"Without a generator, {said}{_refused(summary, best, second)}"


def _refused(summary: dict[str, Any], *names: str | None) -> str:
    """Says how many uploads of methods were refused, if any were."""
    refused = sum(summary["methods"][name].get("refused_uploads", 0) for name in names if name is not None)
    return f" Of these methods {count(refused, 'upload')} were refused." if refused else ""


def contest(summary: dict[str, Any]) -> Contest:
    """Picks the methods to compare: federated ones, whatever the references reach."""
    arms = {name: method for name, method in summary["methods"].items() if not method["reference"]}
    warm = sorted((n for n in arms if arms[n]["uses_generator"]), key=lambda n: mean(arms[n]), reverse=True)
    cold = [name for name in arms if name not in warm]
    for best in warm:  # what differs between the two must be the generator and nothing else
        mine = arms[best]
        for baseline in cold:
            its = arms[baseline]
            if mine["algorithm"] == its["algorithm"] and from_existing(mine) == from_existing(its):
                return Contest(best, baseline)
    return Contest(warm[0], None) if warm else Contest(None, max(cold, key=lambda name: mean(arms[name])))


def from_existing(method: dict[str, Any]) -> bool:
    """Returns whether a method began with an existing model, or its pre-training did."""
    return bool(method.get("existing_model"))


def gains(method: dict[str, Any], baseline: dict[str, Any]) -> list[float]:
    """Returns by how many points of accuracy a method beats another in each seed."""
    pairs = zip(method["accuracy"]["per_seed"], baseline["accuracy"]["per_seed"], strict=True)
    return [100 * (mine - its) for mine, its in pairs]


def generated(summary: dict[str, Any]) -> bool:
    """Returns whether samples were made, which takes time, and not there already, or none wanted."""
    return summary["synthetic"] is not None and GENERATORS[summary["generator"]].prompted


def noise(summary: dict[str, Any], method: dict[str, Any], other: dict[str, Any]) -> float:
    """Returns the points of accuracy that a method's mean gain over another must exceed to say something.

    It is one test example or, if that is more, what a mean gain stays below in 95 of 100 cases where there is
    none: by Student's t over the seeds; of a single seed, by the error of two shares of the test examples.
    """
    from scipy.special import stdtrit

    gain, examples = gains(method, other), summary["test_samples"]
    if len(gain) > 1:
        chance = stdtrit(len(gain) - 1, 0.95) * stdev(gain) / len(gain) ** 0.5
    else:
        shares = (mean(method), mean(other))
        chance = 100 * stdtrit(inf, 0.95) * (sum(p * (1 - p) for p in shares) / examples) ** 0.5
    return float(max(SAME, 100 / examples, chance))


def exceeds(points: float, least: float) -> bool:
    """Returns whether points of accuracy are more than these, rounding of the arithmetic aside."""
    return points > least + 1e-9


def race(summary: dict[str, Any], best: str, baseline: str) -> str:
    """Says how fast two methods reach the target accuracy."""
    mine, its = (summary["methods"][name]["rounds_to_target"] for name in (best, baseline))
    goal = target(summary)
    if mine is None and its is None:
        return f"neither reaches {goal}"
    if mine == its:
        return f"both are at {goal} {_when(mine)}"
    if mine is None:
        return f"it never reaches {goal}, {baseline} does {_when(its)}"
    return f"it is at {goal} {_when(mine)}, {baseline} {'never' if its is None else _when(its)}"


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the header and rows of the table of methods."""
    goal = target(summary)
    header = ("method", "accuracy", "macro-F1", f"rounds to {goal}", f"MB to {goal}", "kB/round up+down")
    tested = any(method["clients"] for method in summary["methods"].values())
    rows: list[tuple[str, ...]] = []
    for name, method in summary["methods"].items():
        per_round = method["uplink_bytes_per_round"] + method["downlink_bytes_per_round"]
        rounds, total = method["rounds_to_target"], method["bytes_to_target"]
        figures = (mean_std(method["accuracy"]), mean_std(method["macro_f1"]))
        reached = "never" if rounds is None else str(rounds)
        theirs = clients(method) if tested else ()
        if note := mark(method):
            rows.append((f"{name} ({note})", *figures, reached, "–", "–", *theirs))
        else:
            sent = "never" if total is None else megabytes(total)
            rows.append((name, *figures, reached, sent, f"{per_round / 1e3:.0f}", *theirs))
    return (*header, "on clients", "worst client") if tested else header, rows


def clients(method: dict[str, Any]) -> tuple[str, str]:
    """Writes the accuracy on what clients hold back: over all of it, and the worst client's."""
    scores = method["clients"]
    return (mean_std(scores["accuracy"]), mean_std(scores["worst"])) if scores else ("–", "–")


def mark(method: dict[str, Any]) -> str:
    """Says what stands beside a reference's name, so that nobody takes it for a competitor; else nothing."""
    if not method["reference"] or method["algorithm"] is None:
        return ""
    together = method["algorithm"]["name"] == CENTRALISED and method["data"] != "generated"
    return "upper bound, not allowed in practice" if together else "reference"


def mean(method: dict[str, Any]) -> float:
    """Returns a method's mean accuracy."""
    value: float = method["accuracy"]["mean"]
    return value


def target(summary: dict[str, Any]) -> str:
    """Writes the target accuracy, with no more digits than it has."""
    return f"{100 * summary['target_accuracy']:g} %"


def percent(share: float) -> str:
    """Writes a share in [0, 1] as a percentage."""
    return f"{100 * share:.4g} %" if share in (0, 1) else f"{100 * share:.1f} %"


def mean_std(figure: dict[str, Any]) -> str:
    """Writes a figure over seeds as mean ± standard deviation, in per cent; of one seed, the figure alone."""
    if len(figure["per_seed"]) == 1:
        return f"{100 * figure['mean']:.1f}"
    return f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}"


def count(number: int, noun: str) -> str:
    """Writes a number of things: ``1 round``, ``2,000 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Writes a time span: ``0.4 s``, ``42 s``, ``5 min 03 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def signed(points: float) -> str:
    """Writes a difference in points of accuracy: ``+4.5 points``, ``no difference``."""
    return f"{points:+.1f} points".replace("-", "−") if abs(points) >= SAME else "no difference"


def size(number: float) -> str:
    """Writes a number of bytes: ``800 B``, ``691 kB``, ``17.3 MB``."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if number >= factor:
            return f"{number / factor:,.{digits}f} {unit}"
    return f"{number:.0f} B"


def megabytes(number: float) -> str:
    """Writes a number of bytes in MB, without a unit: ``17.3``, ``0.012``."""
    return f"{number / 1e6:.1f}" if number >= 1e6 else f"{number / 1e6:.2g}"


def _opening(summary: dict[str, Any], best: str, baseline: str) -> str:
    method, other = (summary["methods"][name] for name in (best, baseline))
    gain, least = gains(method, other), noise(summary, method, other)
    average, mine, its = fmean(gain), method["rounds_to_target"], other["rounds_to_target"]
    if exceeds(average, least):
        if len(gain) == 1:
            return "The generator helps in the one seed tried"
        return "The generator helps" if min(gain) > 0 else "The generator helps in some seeds only"
    lower = exceeds(-average, least)
    if mine is not None and (its is None or mine < its):
        return f"With the generator training is faster but ends {'lower' if lower else 'no higher'}"
    return "The generator does not help" if lower else "The generator makes no clear difference"


def _points(summary: dict[str, Any], best: str, baseline: str) -> str:
    method, other = (summary["methods"][name] for name in (best, baseline))
    gain, least = gains(method, other), noise(summary, method, other)
    better = f"better in {sum(value > 0 for value in gain)} of {len(gain)} seeds"
    unclear = abs(fmean(gain)) >= SAME and not exceeds(abs(fmean(gain)), least)
    doubt = f"; up to {least:.1f} either way may be chance" if unclear else ""
    return f"{signed(fmean(gain))}, {better if len(gain) > 1 else 'in one seed'}{doubt}"


def _when(rounds: int) -> str:
    return "before any round" if rounds == 0 else f"after {count(rounds, 'round')}"


def accuracy_rule(methods: Mapping[str, Any]) -> str:
    """Says which evaluations an accuracy is the mean of; all methods are evaluated after the same rounds."""
    rounds = [int(point[0]) for point in next(iter(methods.values()))["curve"]][1:]
    if len(rounds) == 1:
        return f"those of round {rounds[0]}, the only evaluation"
    which = f"the last {LAST}" if len(rounds) >= LAST else f"all {len(rounds)}"
    return f"the mean of {which} evaluations, of rounds {rounds[-LAST:][0]} to {rounds[-1]}"
