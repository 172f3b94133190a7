"""What a page says of privacy: a line for each kind of release, and a line for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from genfl.report.text import byte_size, count
from genfl.results.schema import PrivacyResult, ReleaseResult, Summary

TOPICS = {
    "labels": "label names, and how many clients hold each",
    "sizes": "how many samples clients hold",
    "training": "what clients learn from their data",
    "generated": "generated samples, and models of public or generated data alone",
    "guided": "samples that real examples guide",
    "clients": "scores on the samples that clients hold back",
    "measures": "measures of clients’ models and data",
    "examples": "real examples, and their near-duplicates",
    "test": "scores on the test set",
    "references": "references without federation",
}
"""What releases are about, in words and in the order of the table."""

READERS = {
    "server": "the server",
    "sum": "the server, which needs sums over clients alone",
    "others": "other clients, and whoever gets the model",
    "language model": "a language model",
    "readers": "whoever reads this page",
    "nobody": "nobody: it stays with the data",
}
"""Who learns a release, in words."""

UNITS = {"sample": "each private sample", "user": "each client with all its data"}
"""What differential privacy protects, in words."""

_SHORT = {"sample": "sample", "user": "client"}

_MOST_NAMED = 2
"""Exact releases that the line of a terminal names, at most."""


class PrivacyRow(NamedTuple):
    """A line of the table on privacy.

    Attributes:
        what: What is released.
        learns: Who learns it.
        protection: What protects it.
        epsilon: The bound on its privacy loss in one federation.
        open: Whether some of it is released without protection.
    """

    what: str
    learns: str
    protection: str
    epsilon: str
    open: bool


def privacy_section(privacy: PrivacyResult) -> dict[str, Any]:
    """Return what the page says of privacy: ``rows``, ``sentences`` and ``notes``.

    Args:
        privacy: The releases of a run.
    """
    topics = {topic: [row for row in privacy.releases if row.topic == topic] for topic in TOPICS}
    rows = [_row(topic, of_topic, privacy) for topic, of_topic in topics.items() if of_topic]
    return {"rows": rows, "sentences": _sentences(privacy), "notes": privacy.notes}


def _row(topic: str, releases: Sequence[ReleaseResult], privacy: PrivacyResult) -> PrivacyRow:
    leaving = [row for row in releases if row.recipient != "nobody"] or releases
    leaving = sorted(leaving, key=lambda row: row.mechanism == "trusted")  # after the noise that it is about
    exact = [row for row in releases if row.outside]
    readers = dict.fromkeys(READERS[row.recipient] for row in leaving)
    return PrivacyRow(
        TOPICS[topic],
        "; ".join(readers),
        "; ".join(dict.fromkeys(_protection(row) for row in leaving)),
        "no bound" if exact else _epsilons(releases, privacy),
        bool(exact),
    )


def _protection(row: ReleaseResult) -> str:
    """Say what protects a release."""
    if row.public:
        return "none needed: the config declares it as public"
    match row.mechanism:
        case "gaussian":
            if row.noise is None:
                return "noise"
            correlated = ", correlated over rounds" if row.noise.sensitivity is not None else ""
            return f"noise{correlated}, for {UNITS[row.noise.unit]}"
        case "discrete_gaussian":
            who = f", for {UNITS[row.noise.unit]}" if row.noise else ""
            return f"noise that the clients add{who}"
        case "discrete_laplace":
            return f"noise on numbers, for {UNITS['user']}"
        case "trusted":
            return "the server adds it, so it is trusted with exact sums"
        case "derived":
            return "none needed: it is made of other lines and public data"
        case "local":
            return "it does not leave the clients"
        case "secure_sum":
            return "none; the server sees only sums"
        case _:
            return "none"


def _epsilons(releases: Sequence[ReleaseResult], privacy: PrivacyResult) -> str:
    noised = [row.noise for row in releases if row.noise]
    if pure := [row.epsilon for row in releases if row.mechanism == "discrete_laplace" and row.epsilon]:
        return f"{number(sum(pure))} at δ = 0"
    if not noised:
        return "0 more" if any(row.mechanism != "local" for row in releases) else "0"
    largest = max(noised, key=lambda noise: noise.epsilon)
    least = "" if len({noise.epsilon for noise in noised}) == 1 else "at most "
    return f"{least}{number(largest.epsilon)} at δ = {number(largest.delta)}"


def _sentences(privacy: PrivacyResult) -> list[str]:
    """Return what is guaranteed, and what is not."""
    if not privacy.guarantees:
        return [
            "Training is not protected by differential privacy. Models, scores and sizes are released as they"
            " are, so they may reveal single samples."
        ]
    worst = max(privacy.guarantees.values(), key=lambda guarantee: guarantee.epsilon)
    unit = UNITS[worst.unit]
    trusted = any(row.mechanism == "trusted" for row in privacy.releases)
    who = "somebody other than the server" if trusted else "somebody"
    factor = math.exp(min(worst.epsilon, 700))
    shown = f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}" if factor < 1e9 else f"{factor:.1e}"
    most = "at most " if len(privacy.guarantees) > 1 else ""
    sentences = [
        f"Training protects {unit} by differential privacy: ε is {most}{number(worst.epsilon)}, and δ is"
        f" {number(worst.delta)}. Suppose that {who} sees all that training releases, and guesses whether"
        f" the data of one {_SHORT[worst.unit]} was used. The noise lets the odds of a guess change by a"
        f" factor of at most e^ε = {shown}, except with probability δ."
    ]
    if worst.outside:
        exact = count(len(worst.outside), "release")
        sentences.append(f"This does not cover {exact} without noise: {', '.join(worst.outside)}.")
    return sentences


def privacy_line(privacy: PrivacyResult) -> str:
    """Return the guarantee of a run's methods on one line; empty without differential privacy.

    Args:
        privacy: The releases of a run.
    """
    if not privacy.guarantees:
        return ""
    guarantees = privacy.guarantees.values()
    worst = max(guarantees, key=lambda guarantee: guarantee.epsilon)
    names = list(dict.fromkeys(name for guarantee in guarantees for name in guarantee.outside))
    least = "at most " if len({guarantee.epsilon for guarantee in guarantees}) > 1 else ""
    epsilon, delta = number(worst.epsilon), number(worst.delta)
    line = f"privacy: epsilon {least}{epsilon} at delta {delta} per {worst.unit}"
    if not names:
        return line
    others = len(names) - _MOST_NAMED
    named = f"{', '.join(names[:_MOST_NAMED])} and {count(others, 'other release')}" if others > 0 else ""
    return f"{line} ({named or ' and '.join(names)} are exact)"


def sum_sentences(summary: Summary) -> str:
    """Return how exact the secure sums of uploads are, and how large uploads are; empty without them.

    Args:
        summary: The figures of a run.
    """
    numbers = summary.secure_sums
    if numbers is None:
        return ""
    names: dict[int, list[str]] = {}
    for name, method in summary.federated.items():
        if method.masked_upload_bytes is not None:
            names.setdefault(method.masked_upload_bytes, []).append(name)
    sizes = "; ".join(f"{byte_size(size)} ({', '.join(of_size)})" for size, of_size in names.items())
    return (
        f"Secure sums carry each float of an upload as a word of {numbers.bits} bits, in steps of"
        f" {number(numbers.step)}. In the sum of {count(numbers.clients, 'client')}, a number differs from"
        f" the exact sum by at most {number(numbers.error)}."
        + (f" The words of a masked upload take {sizes}." if sizes else "")
    )


def number(value: float) -> str:
    """Write a number with three digits, and a small power of ten without leading zeros: 1e-5."""
    return re.sub(r"e-0*", "e-", f"{value:.3g}")
