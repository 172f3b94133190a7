"""Sentences and numbers of a report: the verdict, the table of methods, and how figures are written."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import NamedTuple

from genfl.report.numbers import duration as duration
from genfl.report.numbers import mean_and_std
from genfl.results.differences import SMALLEST_DIFFERENCE, exceeds, least_difference, student_margin
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import Figure, MethodResult, Summary, baseline_of
from genfl.results.summarise import LAST_EVALUATIONS

NOT_MEASURED = "not measured"

FALSE_CLAIMS = 0.05
"""The share of verdicts that may claim a difference where there is none."""


CONTAMINATED = 0.01
"""The share of test examples with a near-duplicate among generated samples from which a verdict warns."""

OVERLAPPING = 0.1
"""The share of other near-duplicates from which a verdict warns."""


class Contest(NamedTuple):
    """The two methods that a verdict compares; either is None if the run has no such pair.

    ``report.compare`` may name the two. Otherwise, the run's figures choose them. A method without any
    training in a seed, as all its uploads were refused, is left out where others remain.

    Attributes:
        best: The most accurate federated method that uses the generator, among those with a baseline.
        baseline: The same algorithm without the generator; the most accurate method if none uses it.
    """

    best: str | None
    baseline: str | None


def verdict(summary: Summary) -> str:
    """Say in a few sentences whether the generator helped, by how much, and at what cost."""
    best, baseline = contest(summary)
    methods = summary.methods
    if summary.synthetic is None:
        return _verdict_without_generator(summary) + overlap_warning(summary)
    if not _trained(summary):
        comparison = "No method learned anything."
    elif best is not None and baseline is not None:
        best_accuracy, baseline_accuracy = (percent(methods[name].accuracy.mean) for name in (best, baseline))
        comparison = (
            f"{_opening(summary, best, baseline)}: {best} ends at {best_accuracy}, {baseline} at"
            f" {baseline_accuracy} ({_points(summary, best, baseline)}); {race(summary, best, baseline)}."
        )
    else:
        only, missing = (best, "without") if best is not None else (str(baseline), "with")
        same = "algorithm and existing model" if methods[only].existing_model else "algorithm"
        rival = "method" if len(_trained(summary)) == len(summary.federated) else "trained method"
        comparison = (
            f"{only} ends at {percent(methods[only].accuracy.mean)}; no {rival} has the same {same} {missing}"
            " the generator to compare with."
        )
    samples = count(summary.synthetic.samples, "sample")
    cost = (
        f"generating {samples} took {duration(summary.synthetic.seconds)}."
        if summary.generated
        else f"its {samples} existed before the run."
    )
    alone = methods[SYNTHETIC_ONLY]
    subject = (
        "existing model, trained on generated data alone," if alone.existing_model else "generated data alone"
    )
    refused = _refused_uploads(summary, best, baseline)
    warnings = _warnings(summary, best) if _trained(summary) else ""
    warnings += overlap_warning(summary)
    return f"{comparison}{refused} The {subject} gives {percent(alone.accuracy.mean)}; {cost}{warnings}"


def overlap_warning(summary: Summary) -> str:
    """Warn of test examples that models may have seen, and of copies of them; nothing if there are few."""
    audit, warnings = summary.audit, ""
    if audit is None:
        return warnings
    generated, private = audit.generated_test, audit.generated_train
    if generated and generated.others_near >= CONTAMINATED * generated.others:
        share, copies = percent(generated.others_near / generated.others), count(generated.near, "sample")
        warnings += f" Warning: the generated data has near-duplicates of {share} of the test examples"
        if audit.dropped:
            warnings += f"; these {copies} were dropped before training."
        else:
            warnings += f" ({copies}), so what it gives is overestimated; set audit.overlap to drop."
    public = audit.public_test
    if public and public.others_near >= CONTAMINATED * public.others:
        share, copies = percent(public.others_near / public.others), count(public.near, "sample")
        warnings += (
            f" Warning: the public data has near-duplicates of {share} of the test examples ({copies}), so"
            " what it gives is overestimated; set audit.overlap to drop."
        )
    if audit.test_train.near >= OVERLAPPING * audit.test_train.examples:
        share = percent(audit.test_train.near / audit.test_train.examples)
        warnings += f" Warning: {share} of the test examples have a near-duplicate in the training data."
    for kind, figures in (("generated", private), ("public", audit.public_train)):
        if figures and figures.near >= OVERLAPPING * figures.examples:
            share = percent(figures.near / figures.examples)
            warnings += f" Warning: {share} of the {kind} samples are near-duplicates of private examples."
    return warnings


def _warnings(summary: Summary, best: str | None) -> str:
    """Warn where federated training made things worse; nothing if it did not."""
    warnings = ""
    alone = summary.methods[SYNTHETIC_ONLY].accuracy.mean
    if best is not None:
        method = summary.methods[best]
        start, end = method.curve[0].mean, method.accuracy.mean
        if percent(start) == percent(alone) and round(100 * end, 1) < round(100 * start, 1):
            warnings += f" {best} ends below its warm start ({percent(start)}): fine-tuning lowered it."
    if all(
        round(100 * method.accuracy.mean, 1) < round(100 * alone, 1) for method in _trained(summary).values()
    ):
        warnings += " No federated method is as accurate as the generated data alone."
    return warnings


def _verdict_without_generator(summary: Summary) -> str:
    """Say how methods compare that do without a generator."""
    methods = _trained(summary)
    if not methods:
        return f"No method learned anything.{_refused_uploads(summary)}"
    best, *others = sorted(methods, key=lambda name: methods[name].accuracy.mean, reverse=True)
    rounds, goal = methods[best].rounds_to_target, target_percent(summary)
    reached = f"never reaches {goal}" if rounds is None else f"is at {goal} {_when(rounds)}"
    ends = f"ends at {percent(methods[best].accuracy.mean)} and {reached}"
    if not others:
        return f"Without a generator, {best} {ends}.{_refused_uploads(summary, best)}"
    second = others[0]
    accuracy, points = percent(methods[second].accuracy.mean), _points(summary, best, second)
    least = least_clear_gain(summary, methods[best], methods[second])
    if exceeds(fmean(gains(methods[best], methods[second])), least):
        result = (
            f"the most accurate of {len(methods)} methods is {best}: it {ends}; {second} follows at"
            f" {accuracy} ({points})."
        )
    else:
        result = (
            f"none of {len(methods)} methods is clearly the most accurate: {best} {ends}, {second} ends at"
            f" {accuracy} ({points})."
        )
    if methods[best].existing_model != methods[second].existing_model:
        only = best if methods[best].existing_model else second
        result += f" Of these, only {only} started from an existing model."
    return f"Without a generator, {result}{_refused_uploads(summary, best, second)}"


def _refused_uploads(summary: Summary, *names: str | None) -> str:
    """Say which methods were not trained, and how many uploads of others were refused; nothing if none were.

    Args:
        summary: The figures.
        *names: The methods that are compared.
    """
    lost: dict[tuple[str, int], list[str]] = {}
    for name, method in summary.federated.items():
        if seeds := method.untrained_seeds:
            every = len(seeds) == len(summary.seeds)
            where = "" if every else f" in seed {', '.join(map(str, seeds))}"
            lost.setdefault((where, method.uploads * len(seeds) // len(summary.seeds)), []).append(name)
    lines = [
        f"{' and '.join(names)} learned nothing{where}: {uploads:,} of {count(uploads, 'upload')}"
        f"{' of each' if len(names) > 1 else ''} were refused, as they were not finite"
        for (where, uploads), names in lost.items()
    ]
    told = [f" {'; '.join(lines)}; lower federate.local.lr."] if lines else []
    compared = [method for name, method in _trained(summary).items() if name in names]
    if refused := sum(method.refused_uploads for method in compared):
        uploads = sum(method.uploads for method in compared)
        told.append(f" Of these methods {refused:,} of {count(uploads, 'upload')} were refused.")
    return "".join(told)


def _trained(summary: Summary) -> dict[str, MethodResult]:
    """Return the federated methods that learned from at least one upload in every seed."""
    return {name: method for name, method in summary.federated.items() if not method.untrained_seeds}


def contest(summary: Summary) -> Contest:
    """Pick the methods to compare. They are federated, whatever accuracy the references reach."""
    methods = _trained(summary) or summary.federated
    if summary.compare and methods.keys() >= {*summary.compare}:
        return Contest(*summary.compare)

    def accuracy(name: str) -> float:
        return methods[name].accuracy.mean

    if pairs := _pairs(methods):
        return max(pairs, key=lambda pair: accuracy(str(pair.best)))
    warm = [name for name in methods if methods[name].uses_generator]
    return Contest(max(warm, key=accuracy), None) if warm else Contest(None, max(methods, key=accuracy))


def _pairs(methods: Mapping[str, MethodResult]) -> list[Contest]:
    """Return all methods with a baseline, which differs in the generator and in nothing else."""
    pairs = []
    for name in methods:
        if (baseline := baseline_of(name, methods)) is not None:
            pairs.append(Contest(name, baseline))
    return pairs


def comparisons(summary: Summary) -> int:
    """Return the number of pairs of methods among which the figures choose the pair of the verdict."""
    methods = _trained(summary) or summary.federated
    if summary.compare and methods.keys() >= {*summary.compare}:
        return 1
    chosen = len(_pairs(methods)) if summary.synthetic else len(methods) * (len(methods) - 1)
    return max(chosen, 1)


def gains(method: MethodResult, baseline: MethodResult) -> list[float]:
    """Return by how many points of accuracy a method beats another in each seed."""
    pairs = zip(method.accuracy.per_seed, baseline.accuracy.per_seed, strict=True)
    return [100 * (accuracy - baseline_accuracy) for accuracy, baseline_accuracy in pairs]


def shown_gain(method: MethodResult, other: MethodResult) -> str:
    """Write by how many points a method beats another: the difference of the accuracies that are shown."""
    shown, other_shown = (round(100 * m.accuracy.mean, 1) for m in (method, other))
    return signed_points(shown - other_shown)


def least_clear_gain(summary: Summary, method: MethodResult, other: MethodResult) -> float:
    """Return the points of accuracy above which a method's mean gain over another is clear.

    This is one test example or, if that is more, a bound that chance alone exceeds in only 5 of 100 cases.
    With several seeds, the bound comes from Student's t over the seeds. With one seed, it comes from the
    standard error of two shares of the test examples. The verdict is about the best of several pairs of
    methods, so each may exceed its bound in ``FALSE_CLAIMS / comparisons`` of the cases only (Bonferroni,
    which is Holm's first step).
    """
    from scipy.special import stdtrit

    gain, examples = gains(method, other), summary.test_samples
    level = 1 - FALSE_CLAIMS / comparisons(summary)
    if len(gain) > 1:
        chance = student_margin(gain, level)
    else:
        shares = (method.accuracy.mean, other.accuracy.mean)
        chance = 100 * stdtrit(inf, level) * (sum(p * (1 - p) for p in shares) / examples) ** 0.5
    return float(max(least_difference(examples), chance))


def race(summary: Summary, best: str, baseline: str) -> str:
    """Say how fast two methods reach the target accuracy."""
    rounds, baseline_rounds = (summary.methods[name].rounds_to_target for name in (best, baseline))
    goal = target_percent(summary)
    if rounds is None and baseline_rounds is None:
        return f"neither reaches {goal}"
    if rounds is None:
        assert baseline_rounds is not None, "else neither reaches it"
        return f"it never reaches {goal}, {baseline} does {_when(baseline_rounds)}"
    if rounds == baseline_rounds:
        return f"both are at {goal} {_when(rounds)}"
    baseline_when = "never" if baseline_rounds is None else _when(baseline_rounds)
    interval = evaluation_interval(summary.methods[best])
    close = baseline_rounds is not None and abs(baseline_rounds - rounds) <= interval > 1
    measured = f" (evaluated every {interval} rounds)" if close else ""
    return f"it is at {goal} {_when(rounds)}, {baseline} {baseline_when}{measured}"


def evaluation_interval(method: MethodResult) -> int:
    """Return the most rounds between two evaluations."""
    rounds = [int(point.x) for point in method.curve]
    return max((after - before for before, after in pairwise(rounds)), default=0)


def is_faster(method: MethodResult, other: MethodResult) -> bool:
    """Return whether a method clearly needs fewer rounds to the target than another.

    Its lead must be larger than the rounds between two evaluations, in the mean over the seeds, and in most
    of the seeds, two at least. A method that never reaches the target may do so at the next evaluation.
    """
    interval = evaluation_interval(method)
    beyond = method.curve[-1].x + interval

    def leads(rounds: int | None, other_rounds: int | None) -> bool:
        later = beyond if other_rounds is None else other_rounds
        return rounds is not None and later - rounds > interval

    pairs = zip(method.rounds_to_target_per_seed, other.rounds_to_target_per_seed, strict=True)
    seeds = [leads(*pair) for pair in pairs]
    most = sum(seeds) > max(1, len(seeds) / 2)
    return most and leads(method.rounds_to_target, other.rounds_to_target)


def methods_table(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table of methods."""
    goal = target_percent(summary)
    header = ("method", "accuracy", "macro-F1", f"rounds to {goal}", f"MB to {goal}", "kB/round up+down")
    tested = any(method.clients for method in summary.methods.values())
    rows: list[tuple[str, ...]] = []
    for name, method in summary.methods.items():
        rounds, total = method.rounds_to_target, method.bytes_to_target
        figures = (mean_std(method.accuracy), mean_std(method.macro_f1))
        reached = "never" if rounds is None else str(rounds)
        on_clients = client_accuracy_cells(method) if tested else ()
        if note := reference_note(method):
            rows.append((f"{name} ({note})", *figures, reached, "–", "–", *on_clients))
        else:
            sent = "never" if total is None else megabytes(total)
            kilobytes = f"{method.bytes_per_round / 1e3:.0f}"
            rows.append((name, *figures, reached, sent, kilobytes, *on_clients))
    return (*header, "on clients", "worst client") if tested else header, rows


def costs_table(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table of federated methods' costs, and of what they buy."""
    header = ["method", "MB in all"]
    if summary.byte_budget is not None:
        header.append(f"accuracy with {byte_size(summary.byte_budget)}, %")
    header += ["extra bytes", "extra samples", "gain over its start"]
    others = summary.targets[1:]
    header += [f"{what} to {100 * goal:g} %" for goal in others for what in ("rounds", "MB")]
    rows = []
    for name, method in summary.federated.items():
        equal, extra, delta = method.equal_bytes, method.extra_cost, method.delta
        cells = [name, megabytes(method.total_bytes)]
        if summary.byte_budget is not None:
            reached = f"{mean_std(equal.accuracy)} (round {equal.rounds})" if equal else "setup needs more"
            cells.append(reached)
        cells += [
            share_beyond(extra.bytes if extra else None),
            share_beyond(extra.samples if extra else None),
        ]
        cells.append("–" if delta is None else signed_points(100 * delta.mean))
        for target in method.targets[1:]:
            cells.append("never" if target.rounds is None else str(target.rounds))
            cells.append("never" if target.bytes is None else megabytes(target.bytes))
        rows.append(tuple(cells))
    return tuple(header), rows


def work_table(summary: Summary) -> list[tuple[str, ...]]:
    """Return a row for generation and for training: what it cost by the counters of the machine."""
    rows: list[tuple[str, ...]] = []
    if not any(stage.cost for stage in summary.stages.values()):
        return rows  # an earlier version ran it, without counters
    for what, cost in (("generation", summary.cost.generation), ("training", summary.cost.training)):
        if cost is None and (what == "training" or "generate" in summary.stages):
            rows.append((what, *5 * [NOT_MEASURED], "–"))
        elif cost is not None:
            memory, gpu = cost.peak_memory, cost.peak_gpu_memory
            rows.append(
                (
                    what,
                    duration(cost.seconds),
                    duration(cost.gpu_seconds) if cost.gpu_seconds else "–",
                    NOT_MEASURED if memory is None else byte_size(memory),
                    "–" if gpu is None else byte_size(gpu),
                    NOT_MEASURED
                    if cost.joules is None
                    else f"{energy(cost.joules)} ({', '.join(cost.counters)})",
                    ", ".join(cost.devices),
                )
            )
    return rows


def energy(joules: float) -> str:
    """Write an amount of energy: ``800 J``, ``1.2 kJ``, ``3.40 MJ``."""
    for unit, factor, digits in (("MJ", 1e6, 2), ("kJ", 1e3, 1)):
        if joules >= factor:
            return f"{joules / factor:,.{digits}f} {unit}"
    return f"{joules:.0f} J"


def share_beyond(share: float | None) -> str:
    """Write by which share a cost is higher than another: ``+4.5 %``, ``none``; a dash for None."""
    if share is None:
        return "–"
    return "none" if abs(share) < 0.0005 else f"{100 * share:+.1f} %".replace("-", "−")


def client_accuracy_cells(method: MethodResult) -> tuple[str, str]:
    """Write the accuracy on the clients' test samples: over all of them, and of the worst client."""
    tested = method.clients
    return (mean_std(tested.accuracy), mean_std(tested.worst)) if tested else ("–", "–")


def reference_note(method: MethodResult) -> str:
    """Say beside a reference's name that it does not compete; nothing for federated methods."""
    if not method.reference or method.algorithm is None:
        return ""
    return "upper bound, not allowed in practice" if method.upper_bound else "reference"


def target_percent(summary: Summary) -> str:
    """Write the target accuracy, with no more digits than it has."""
    return f"{100 * summary.target_accuracy:g} %"


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage."""
    return f"{100 * share:.4g} %" if share in (0, 1) else f"{100 * share:.1f} %"


def mean_std(figure: Figure) -> str:
    """Write a figure as mean ± standard deviation, in per cent; for a single seed, the mean alone."""
    return mean_and_std(figure.mean, figure.std)


def count(number: int, noun: str) -> str:
    """Write a number of things: ``1 round``, ``2,000 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def signed_points(points: float) -> str:
    """Write a difference in points of accuracy: ``+4.5 points``, ``no difference``."""
    if abs(points) < SMALLEST_DIFFERENCE:
        return "no difference"
    return f"{points:+.1f} points".replace("-", "−")


def byte_size(number: float) -> str:
    """Write a number of bytes: ``800 B``, ``691 kB``, ``17.3 MB``."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if number >= factor:
            return f"{number / factor:,.{digits}f} {unit}"
    return f"{number:.0f} B"


def megabytes(number: float) -> str:
    """Write a number of bytes in MB, without a unit: ``17.3``, ``0.012``."""
    return f"{number / 1e6:.1f}" if number >= 1e6 else f"{number / 1e6:.2g}"


def _opening(summary: Summary, best: str, baseline: str) -> str:
    method, other = (summary.methods[name] for name in (best, baseline))
    gain, least = gains(method, other), least_clear_gain(summary, method, other)
    average = fmean(gain)
    if exceeds(average, least):
        if len(gain) == 1:
            return "The generator helps in the one seed tried"
        return "The generator helps" if min(gain) > 0 else "The generator helps in some seeds only"
    lower = exceeds(-average, least)
    if is_faster(method, other):
        return f"With the generator training is faster but ends {'lower' if lower else 'no higher'}"
    return "The generator does not help" if lower else "The generator makes no clear difference"


def _points(summary: Summary, best: str, baseline: str) -> str:
    method, other = (summary.methods[name] for name in (best, baseline))
    gain, least = gains(method, other), least_clear_gain(summary, method, other)
    better = f"better in {sum(value > 0 for value in gain)} of {len(gain)} seeds"
    unclear = abs(fmean(gain)) >= SMALLEST_DIFFERENCE and not exceeds(abs(fmean(gain)), least)
    among = comparisons(summary)
    chosen = f" for the best of {among} pairs" if among > 1 else ""
    doubt = f"; up to {least:.1f} either way may be chance{chosen}" if unclear else ""
    return f"{shown_gain(method, other)}, {better if len(gain) > 1 else 'in one seed'}{doubt}"


def _when(rounds: int) -> str:
    return "before any round" if rounds == 0 else f"after {count(rounds, 'round')}"


def accuracy_rule(methods: Mapping[str, MethodResult]) -> str:
    """Say which evaluations an accuracy is the mean of; all methods are evaluated after the same rounds."""
    rounds = [int(point.x) for point in next(iter(methods.values())).curve][1:]
    if len(rounds) == 1:
        return f"those of round {rounds[0]}, the only evaluation"
    which = f"the last {LAST_EVALUATIONS}" if len(rounds) >= LAST_EVALUATIONS else f"all {len(rounds)}"
    return f"the mean of {which} evaluations, of rounds {rounds[-LAST_EVALUATIONS:][0]} to {rounds[-1]}"
