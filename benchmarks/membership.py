"""Attack every method of a finished run, and print a table: FedGC's Figure 2 and Table 12.

``python benchmarks/membership.py RUN``. For a config of FedGC's question, see examples/privacy_digits.yaml.
With ``--attack lira,rmia --shadows 8 --seeds 1``, shadow models are trained for the first seed of methods.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from statistics import fmean, stdev

import genfl
from genfl.errors import GenflError
from genfl.report.audit_page import ATTACK_NAMES
from genfl.results.membership import MembershipAudit


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Return mean ± sample standard deviation."""
    mean = f"{scale * fmean(values):.{digits}f}"
    return f"{mean} ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else mean


def print_rows(method: str, audits: list[MembershipAudit]) -> None:
    """Print a row for each attack on a method: means over the seeds."""
    gaps = [audit.member_accuracy - audit.nonmember_accuracy for audit in audits]
    task = spread([audit.nonmember_accuracy for audit in audits])
    for number, attack in enumerate(audits[0].attacks):
        results = [audit.attacks[number] for audit in audits]
        rates = [result.rates[1].tpr.value for result in results if result.rates[1].tpr]
        at_one_percent = spread(rates) if rates else "–"
        print(
            f"| {method} | {task} | {spread(gaps)} | {ATTACK_NAMES[attack.attack]} |"
            f" {spread([result.accuracy.value for result in results])} |"
            f" {spread([result.auc.value for result in results], 1, 3)} | {at_one_percent} |",
            flush=True,
        )


def main() -> None:
    """Audit the methods of a run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--attack", default="loss")
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=None, help="number of seeds; all by default")
    parser.add_argument("--methods", default=None, help="names by commas; all by default")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    result = genfl.load_run(chosen.run)
    names = chosen.methods.split(",") if chosen.methods else list(result.summary.methods)
    print(
        "| method | task accuracy, % | gap, points | attack | attack accuracy, % | AUC | TPR at 1 % FPR, % |"
    )
    print("|---|---:|---:|---|---:|---:|---:|")
    for name in names:
        options = {"method": name, "attacks": chosen.attack.split(","), "shadows": chosen.shadows}
        try:
            print_rows(
                name, [result.audit(seed=seed, **options) for seed in result.summary.seeds[: chosen.seeds]]
            )
        except GenflError as error:
            print(f"{name}: left out: {error}")


if __name__ == "__main__":
    main()
