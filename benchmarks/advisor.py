"""Validate `genfl advise`: full runs of many settings, and what the advisor had said of each.

1. ``python benchmarks/advisor.py truth --data FOLDER --work FOLDER`` makes the full runs.
2. ``... pilots ...`` makes the pilots.
3. ``... table ...`` joins both to the table that comes with genfl.
4. ``... report ...`` says how good predictions are whose table lacks the data set in question.

Interrupted parts resume, and finished rows stay. ``--only`` names some of the settings.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from advisor_settings import SETTINGS, config_of, family, write_generated

import genfl
from genfl.advising import direction_of, weak_labels
from genfl.advisor.evidence import PilotEvidence
from genfl.advisor.predictor import Forecast, FullRun, predictor_for, read_row
from genfl.results.names import ALONE, BOTH, FEDGC, GPTFL, SYNTHETIC_ONLY, TARGETS, WITHOUT

ROOT = Path(__file__).parent.parent
TRUTH = ROOT / "docs" / "results" / "advisor" / "truth.jsonl"
PILOTS = TRUTH.with_name("pilots.jsonl")
TABLE = ROOT / "src" / "genfl" / "advisor" / "table.jsonl"

SEEDS = (0, 1)
"""The seeds of the full runs. The configs, and so the pilots, are those of three."""

TARGET_OF = {"fedavg": WITHOUT, GPTFL: GPTFL, FEDGC: FEDGC, BOTH: BOTH, SYNTHETIC_ONLY: ALONE}
"""The targets of predictions, by the methods of the full runs."""

LOWEST = 0.2
"""The share of the labels that are truly weak: those of the lowest recall from generated data alone."""


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table: one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def truth_of(setting: str, data: Path, work: Path) -> dict[str, Any]:
    """Run a setting in full, and return what the advisor should have said."""
    began = time.perf_counter()
    config = config_of(setting, data, work) | {"seeds": list(SEEDS)}
    result = genfl.run(config, out=work / "runs" / setting, update=True)
    summary = result.summary
    alone = summary.methods[SYNTHETIC_ONLY]
    return {
        "setting": setting,
        "family": family(setting),
        "accuracy": {name: method.accuracy.per_seed for name, method in summary.methods.items()},
        "recall": dict(zip(summary.labels.found, alone.recall, strict=True)),
        "seconds": round(time.perf_counter() - began, 1),
        "stages": {name: round(stage.seconds, 2) for name, stage in summary.stages.items()},
    }


def pilot_of(setting: str, data: Path, work: Path) -> dict[str, Any]:
    """Advise on a setting, and return the evidence of its pilot."""
    began = time.perf_counter()
    advice = genfl.advise(config_of(setting, data, work), run=work / "advised" / setting)
    seconds = round(time.perf_counter() - began, 1)
    return {"setting": setting, "evidence": advice.evidence, "seconds": seconds}


def make(path: Path, part: Any, settings: Sequence[str], data: Path, work: Path) -> None:
    """Add the rows of settings that have none."""
    write_generated(data, work)
    known = {row["setting"] for row in rows(path)}
    for setting in settings:
        if setting in known:
            continue
        try:
            row = part(setting, data, work)
        except genfl.GenflError as error:
            print(setting, error, flush=True)
            continue
        append(path, row)
        print(setting, row["seconds"], flush=True)


def joined() -> list[dict[str, Any]]:
    """Return the rows of the table: settings with a full run and a pilot."""
    evidence = {row["setting"]: row["evidence"] for row in rows(PILOTS)}
    return [
        {
            "setting": row["setting"],
            "data": row["family"],
            "evidence": evidence[row["setting"]],
            "accuracy": {TARGET_OF[name]: round(fmean(v), 6) for name, v in row["accuracy"].items()},
        }
        for row in rows(TRUTH)
        if row["setting"] in evidence
    ]


def report(*, federation: bool = True) -> None:
    """Print what was predicted for each setting without rows of its data set, and how good it was."""
    table: list[FullRun] = [read_row(row) for row in joined()]
    print("| setting | use | predicted gain | true gain | predicted direction | right |")
    print("|---|---|---:|---:|---|---|")
    right, harmful, errors, inside, gains_inside, named, weak = [], 0, [], [], [], 0, 0
    recalls = {row["setting"]: row["recall"] for row in rows(TRUTH)}
    for row in table:
        evidence = row.evidence if federation else _bare(row.evidence)
        predictor = predictor_for(table, row.data, federation=federation)
        predictions, gains = predictor.predict(evidence), predictor.gains(evidence)
        for arm, gain in gains.items():
            true = row.accuracy[arm] - row.accuracy[WITHOUT]
            said, is_so = direction_of(gain.value), direction_of(true)
            right.append(said == is_so)
            harmful += said == "helps" and is_so == "hurts"
            gains_inside.append(_holds(gain, true))
            print(
                f"| {row.setting} | {arm} | {_points(gain.value)} ({_points(gain.low)} to"
                f" {_points(gain.high)}) | {_points(true)} | {said} | {'yes' if right[-1] else 'no'} |"
            )
        errors.append(abs(predictions[ALONE].value - row.accuracy[ALONE]))
        inside += [_holds(predictions[target], row.accuracy[target]) for target in TARGETS]
        known = {label: value for label, value in recalls[row.setting].items() if value is not None}
        lowest = sorted(known, key=lambda label: known[label])[: max(round(LOWEST * len(known)), 1)]
        named += len(set(lowest) & set(weak_labels(row.evidence)))
        weak += len(lowest)
    print(f"\n{len(table)} settings, {len({row.data for row in table})} data sets")
    print(f"directions right: {100 * fmean(right):.0f} % of {len(right)}; helps where it hurts: {harmful}")
    print(f"generated samples alone: mean absolute error {100 * fmean(errors):.1f} points")
    print(f"inside the interval: {100 * fmean(inside):.0f} % of accuracies")
    print(f"inside the interval: {100 * fmean(gains_inside):.0f} % of gains")
    print(f"weak labels named: {named} of {weak}")


def _bare(evidence: PilotEvidence) -> PilotEvidence:
    return PilotEvidence.from_dict({**evidence.to_dict(), "curves": {}, "diversity": {}})


def _holds(prediction: Forecast, true: float) -> bool:
    return prediction.low <= true <= prediction.high


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def main() -> None:
    """Do a part of the validation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["truth", "pilots", "table", "report"])
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--work", type=Path, help="folder of runs")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="settings; all by default")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if chosen.part in ("truth", "pilots") and not (chosen.data and chosen.work):
        parser.error("--data and --work: name the two folders")
    if chosen.part == "truth":
        make(TRUTH, truth_of, chosen.only, chosen.data, chosen.work)
    elif chosen.part == "pilots":
        make(PILOTS, pilot_of, chosen.only, chosen.data, chosen.work)
    elif chosen.part == "table":
        TABLE.write_text("".join(json.dumps(row) + "\n" for row in joined()))
    else:
        report()
        print("\nWithout a federation:\n")
        report(federation=False)


if __name__ == "__main__":
    main()
