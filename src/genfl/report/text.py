"""What a run's figures say, in words and in a table."""

from __future__ import annotations

from typing import Any

BASELINE = "fedavg"
"""The method the verdict compares with, where the run has it."""


def verdict(summary: dict[str, Any]) -> str:
    """Says in a sentence or two whether the generator helped, by how much, and at what cost."""
    methods = summary["methods"]
    arms = {name: method for name, method in methods.items() if name != "synthetic_only"}
    baseline = BASELINE if BASELINE in arms else next(iter(arms))
    best = max((name for name in arms if name != baseline), key=lambda n: mean(arms[n]), default=None)
    synthetic = methods["synthetic_only"]
    alone = f"the generated data alone gives {percent(mean(synthetic))}"
    cost = f"generating {summary['synthetic']['samples']:,} samples took {summary['synthetic']['seconds']:.0f} s"
    if best is None:
        return f"{baseline} reaches {percent(mean(arms[baseline]))}; {alone}; {cost}."
    gain = 100 * (mean(arms[best]) - mean(arms[baseline]))
    helps = "helps" if gain > 0.05 else "does not help"
    return (
        f"The generator {helps}: {best} reaches {percent(mean(arms[best]))} against"
        f" {percent(mean(arms[baseline]))} for {baseline} ({gain:+.1f} points);"
        f" {race(summary, best, baseline)}. {alone[0].upper()}{alone[1:]}; {cost}."
    )


def race(summary: dict[str, Any], best: str, baseline: str) -> str:
    """Says how fast two methods reach the target accuracy."""
    rounds = {name: summary["methods"][name]["rounds_to_target"] for name in (best, baseline)}
    target = percent(summary["target_accuracy"])
    if rounds[best] is None:
        return f"it never reaches {target}"
    words = "before any round" if rounds[best] == 0 else f"after {rounds[best]} rounds"
    other = "never" if rounds[baseline] is None else f"after {rounds[baseline]}"
    return f"it is at {target} {words}, {baseline} {other}"


def table(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the header and rows of the table of methods."""
    target = percent(summary["target_accuracy"])
    header = ("method", "accuracy", "macro-F1", f"rounds to {target}", f"MB to {target}", "kB/round up+down")
    rows = []
    for name, method in summary["methods"].items():
        per_round = method["uplink_bytes_per_round"] + method["downlink_bytes_per_round"]
        rounds, total = method["rounds_to_target"], method["bytes_to_target"]
        rows.append(
            (
                name,
                mean_std(method["accuracy"]),
                mean_std(method["macro_f1"]),
                "never" if rounds is None else str(rounds),
                "never" if total is None else f"{total / 1e6:.1f}",
                f"{per_round / 1e3:.0f}",
            )
        )
    return header, rows


def mean(method: dict[str, Any]) -> float:
    """Returns a method's mean accuracy."""
    value: float = method["accuracy"]["mean"]
    return value


def percent(share: float) -> str:
    """Writes a share in [0, 1] as a percentage."""
    return f"{100 * share:.4g} %" if share in (0, 1) else f"{100 * share:.1f} %"


def mean_std(figure: dict[str, Any]) -> str:
    """Writes a figure over seeds as mean ± standard deviation, in per cent."""
    return f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}"
