"""How figures are written. This module imports nothing slow."""

from __future__ import annotations


def mean_and_std(mean: float, std: float | None) -> str:
    """Write a share in [0, 1] as mean ± standard deviation, in per cent; the mean alone without one."""
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def duration(seconds: float) -> str:
    """Write a time span: ``0.4 s``, ``42 s``, ``5 min 03 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
