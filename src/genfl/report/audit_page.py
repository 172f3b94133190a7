"""The page of an audit: figures of the attacks, ROC curves, and what each attacker is assumed to have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from genfl.report import plots
from genfl.report.charts import Chart
from genfl.report.comparison_page import page_link
from genfl.report.style import Look, looks
from genfl.report.templates import page_template
from genfl.results.membership import AttackMeasures, CanaryBound, MeasuredShare, MembershipAudit
from genfl.results.schema import CurvePoint

ATTACK_NAMES = {
    "loss": "loss",
    "lira": "LiRA, online",
    "lira-offline": "LiRA, offline",
    "rmia": "RMIA, offline",
}
"""What pages and tables call the attacks."""

ASSUMPTIONS: Mapping[str, str] = {
    "loss": "The attacker has the model, and the examples in question with their labels. The attacker also"
    " knows of some examples whether they were trained on. A small loss suggests a member (FedGC, Appendix"
    " F.1).",
    "lira": "Besides, the attacker has data of the same distribution and the recipe of the training, and"
    " trains shadow models with and without each example. Two Gaussians are fitted to their confidences in"
    " it, and compared (Carlini et al., 2022).",
    "lira-offline": "As before, but the shadow models were trained before the examples in question were"
    " known, so none of those that count for an example saw it (Carlini et al., 2022).",
    "rmia": "The attacker has what LiRA's offline attacker has. The example is compared with samples of the"
    " population; the shadow models say how hard each one is (Zarifzadeh et al., 2024).",
}
"""What the attacker of each attack is assumed to have."""


class AuditSection(NamedTuple):
    """What the report of a run says of an audit.

    Attributes:
        title: The attacked model.
        address: The address of the audit's page.
        sentences: What the attacks can tell.
        head: The head of the table of attacks.
        rows: Its rows.
    """

    title: str
    address: str
    sentences: list[str]
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def render_audit(audit: MembershipAudit, folder: Path) -> str:
    """Return the page of an audit as HTML.

    Args:
        audit: The audit.
        folder: The folder of the page, for the link to the run's report.
    """
    names = {attack.attack: ATTACK_NAMES[attack.attack] for attack in audit.attacks}
    look = looks(names.values(), names.values())
    return page_template("audit.html.j2").render(
        title=f"{audit.run}: membership inference against {audit.method}",
        audit=audit,
        report=page_link(Path(audit.folder), folder),
        verdict=verdict_of(audit),
        head=table_head(audit),
        tables=[
            [table_row(attack) for attack in attacks] for attacks in (audit.attacks, audit.uploads) if attacks
        ],
        unresolved=unresolved(audit),
        rounds_head=("round", *table_head(audit)),
        rounds=rounds_rows(audit),
        rounds_charts=_rounds_charts(audit, look) if audit.rounds else [],
        line_looks=look,
        canary_verdict=canary_verdict(audit.canaries) if audit.canaries else "",
        assumptions=[(names[name], ASSUMPTIONS[name]) for name in names],
        chart=plots.plot_roc(
            {names[attack.attack]: attack.roc for attack in audit.attacks}, look, audit.nonmembers
        ),
        looks={name: each._replace(marker="") for name, each in look.items()},
    )


def audit_section(audit: MembershipAudit, address: str) -> AuditSection:
    """Return what the report of a run says of an audit of one of its models.

    Args:
        audit: The audit.
        address: The address of its page.
    """
    rows = [table_row(attack) for attack in audit.attacks]
    said = [verdict_of(audit), *([canary_verdict(audit.canaries)] if audit.canaries else [])]
    return AuditSection(f"{audit.method}, seed {audit.seed}", address, said, table_head(audit), rows)


def page_address(file: Path, folder: Path) -> str:
    """Return the address of an audit's page, relative to another page's folder.

    Args:
        file: The audit's file of figures. Its page lies beside it.
        folder: The folder of the other page.
    """
    page = file.with_name("index.html")
    return quote(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())


def verdict_of(audit: MembershipAudit) -> str:
    """Say what the attack of the largest AUC can tell. No sentence says that a model is safe."""
    best = max(audit.attacks, key=lambda attack: attack.auc.value)
    rate = next((rate for rate in reversed(best.rates) if rate.tpr), None)
    found = ""
    if rate is not None and rate.tpr is not None:
        found = f" With {100 * rate.fpr:g} % false positives, it finds {_percent(rate.tpr)} % of the members."
    return (
        f"The best attack, {ATTACK_NAMES[best.attack]}, has an AUC of {_number(best.auc)}; a guess has 0.5."
        f" It is right for {_percent(best.accuracy)} % of a balanced set.{found}"
    )


def canary_verdict(bound: CanaryBound) -> str:
    """Say what canaries prove about epsilon, beside the accounted one."""
    proved = "which proves nothing about epsilon"
    if bound.epsilon:
        proved = f"so epsilon is at least {bound.epsilon:.2f}"
    at_delta = f"at delta {bound.delta:.2g}, with {100 * bound.confidence:g} % confidence"
    if bound.accounted is None:
        beside = "No epsilon is accounted: nothing bounds what the model gives away."
    elif bound.epsilon > bound.accounted:
        beside = (
            f"The accounted epsilon is {bound.accounted:.3g}, which is less. By chance, this happens in one"
            f" of {round(1 / (1 - bound.confidence))} audits at most. Else the protection does not do what is"
            " accounted."
        )
    else:
        beside = (
            f"The accounted epsilon is {bound.accounted:.3g}. A bound below it is no proof of it: a better"
            " attack may prove more."
        )
    return (
        f"Canaries, unit {bound.unit}: {bound.correct} of {bound.guesses} guesses are right, {proved}"
        f" {at_delta}. {beside}"
    )


def table_head(audit: MembershipAudit) -> tuple[str, ...]:
    """Return the head of the table of attacks."""
    rates = [f"TPR at {100 * rate.fpr:g} % FPR, %" for rate in audit.attacks[0].rates]
    return ("attack", "accuracy, %", "AUC", *rates)


def rounds_rows(audit: MembershipAudit) -> list[tuple[str, ...]]:
    """Return the rows of the table of attacks over the rounds; none if the run keeps final models alone."""
    return [(str(one.round), *table_row(attack)) for one in audit.rounds or () for attack in one.attacks]


def _rounds_charts(audit: MembershipAudit, look: Mapping[str, Look]) -> list[Chart]:
    """Draw accuracy, AUC and the measured rates of every attack over the rounds."""
    charts = []
    for number, label in enumerate(_shares(audit.attacks[0])):
        curves: dict[str, list[CurvePoint]] = {}
        for one in audit.rounds or ():
            for attack in one.attacks:
                point = CurvePoint(one.round, _shares(attack)[label].value, 0.0)
                curves.setdefault(ATTACK_NAMES[attack.attack], []).append(point)
        charts.append(plots.plot_over_rounds(curves, look, label, f"audit-rounds-{number}"))
    return charts


def _shares(attack: AttackMeasures) -> dict[str, MeasuredShare]:
    """Return what is measured of an attack, by its name in charts."""
    rates = {f"TPR at {100 * rate.fpr:g} % FPR": rate.tpr for rate in attack.rates if rate.tpr is not None}
    return {"accuracy of the attack": attack.accuracy, "AUC": attack.auc, **rates}


def table_row(attack: AttackMeasures) -> tuple[str, ...]:
    """Return the row of an attack: figures with their intervals."""
    rates = ("–" if rate.tpr is None else _percent(rate.tpr, interval=True) for rate in attack.rates)
    return (
        ATTACK_NAMES.get(attack.attack, attack.attack),
        _percent(attack.accuracy, interval=True),
        _number(attack.auc),
        *rates,
    )


def unresolved(audit: MembershipAudit) -> list[str]:
    """Return why some rates cannot be measured, as sentences."""
    reasons = dict.fromkeys(rate.reason for attack in audit.attacks for rate in attack.rates if rate.reason)
    return [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]


def _percent(share: MeasuredShare, *, interval: bool = False) -> str:
    text = f"{100 * share.value:.1f}"
    return f"{text} ({100 * share.low:.1f} to {100 * share.high:.1f})" if interval else text


def _number(share: MeasuredShare) -> str:
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"
