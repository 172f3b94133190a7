"""An advice in sentences, for the command and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from genfl.report.numbers import duration
from genfl.results.advice import Advice, LabelAdvice, Likely, MethodAdvice
from genfl.results.names import BOTH, FEDGC, GPTFL

METHOD_NAMES = {GPTFL: "GPT-FL", FEDGC: "FedGC", BOTH: "both"}
"""What sentences call the uses of a generator."""

MOST_WEAK = 6
"""The number of weak labels that a sentence names."""


def advice_lines(advice: Advice) -> list[tuple[str, str]]:
    """Return an advice as lines: what each is about, and a sentence."""
    lines = [("Advice", _verdict(advice))]
    for arm, method in advice.methods.items():
        lines.append((METHOD_NAMES[arm], _method_sentence(method)))
    lines.append(("Without the generator", f"{_range(advice.without)} after {advice.planned_rounds} rounds."))
    lines.append(
        (
            "Generated samples alone",
            f"{_range(advice.alone)} with {advice.planned_per_label} of each label.",
        )
    )
    lines.append(("Together", _together(advice)))
    if weak := [label for label in advice.labels if label.weak]:
        lines.append(("Weak labels", _weak(weak)))
    lines.append(("Number of samples", _volume(advice)))
    if advice.where:
        lines.append(("Where", _where(advice)))
    lines.append(("Cost", _cost(advice)))
    lines.append(("Rests on", _basis(advice)))
    return lines


def _range(likely: Likely) -> str:
    return f"{100 * likely.value:.0f} % (9 of 10: {100 * likely.low:.0f} to {100 * likely.high:.0f} %)"


def _points(value: float) -> str:
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def _verdict(advice: Advice) -> str:
    gains = {METHOD_NAMES[arm]: method for arm, method in advice.methods.items()}
    best = max(gains, key=lambda name: gains[name].gain.value)
    if not advice.rounds and not gains[best].certain:
        return "Generated samples alone do not tell whether the generator helps. A short federation would."
    if gains[best].direction == "helps":
        certain = "The generator helps." if gains[best].certain else "The generator probably helps."
        return f"{certain} The largest gain is that of {best}."
    if all(method.direction == "hurts" for method in gains.values()):
        return "The generator hurts, whatever it is used for. Train without it, or try another one."
    return "The generator makes no difference of more than 2 points. Train without it, or try another one."


def _method_sentence(method: MethodAdvice) -> str:
    gain = method.gain
    spread = f"{_points(gain.value)} points (9 of 10: {_points(gain.low)} to {_points(gain.high)})"
    return f"{method.direction}, {'' if method.certain else 'probably, '}{spread}: {_range(method.accuracy)}."


def _together(advice: Advice) -> str:
    if advice.adds:
        return "Both uses together gain more than 2 points over the better one."
    return "Both uses together are not expected to gain 2 points over the better one."


def _weak(weak: Sequence[LabelAdvice]) -> str:
    named = ", ".join(
        f"{label.label} ({label.recall:.2f})" if label.recall is not None else label.label
        for label in weak[:MOST_WEAK]
    )
    more = f", and {len(weak) - MOST_WEAK} more" if len(weak) > MOST_WEAK else ""
    return f"{named}{more}: recall in the pilot. Better prompts help them before more samples do."


def _volume(advice: Advice) -> str:
    at = {volume.per_label: volume.alone.value for volume in advice.volumes}
    planned = advice.planned_per_label
    more = 100 * (at[2 * planned] - at[planned])
    return f"{planned} of each label; {2 * planned} would add {more:.1f} points to generated samples alone."


def _where(advice: Advice) -> str:
    if advice.where == "server":
        return "at the server, by pre-training: clients need no generated samples."
    return "in the clients, mixed with their own data."


def _cost(advice: Advice) -> str:
    cost = advice.cost
    parts = [f"generation {duration(cost.generation_seconds)}"]
    if cost.training_seconds is not None:
        parts.append(f"training {duration(cost.training_seconds)} with this machine")
    if cost.bytes_per_client is not None:
        parts.append(f"{cost.bytes_per_client / 1e6:.2g} MB a client and round")
    parts.append(f"energy of the pilot {'not measured' if cost.joules is None else f'{cost.joules:.0f} J'}")
    return f"{'; '.join(parts)}. The pilot took {duration(cost.pilot_seconds)}."


def _basis(advice: Advice) -> str:
    rounds = f"{advice.rounds} rounds with and without the generator" if advice.rounds else "no federation"
    return (
        f"{advice.per_label} samples of each label, {len(advice.probes)} probes, {rounds}, and"
        f" {advice.table_runs} full runs on {advice.table_data} other data sets."
    )
