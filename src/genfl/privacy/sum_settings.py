"""What a config's secure sums mean in numbers."""

from __future__ import annotations

from genfl.config.training import SecureUploads
from genfl.privacy.secure_sum import default_threshold
from genfl.privacy.secure_sum.fixed_point import FixedPoint, SumRange

COUNT_NUMBERS = SumRange(2.0**40, 2.0**-2)
"""The numbers of the census, whose floats are counts of samples and clients."""


def upload_numbers(secure: SecureUploads) -> SumRange:
    """Return which numbers a sum of uploads carries."""
    return SumRange(secure.limit, secure.precision)


def fixed_point(secure: SecureUploads, cohort: int) -> FixedPoint:
    """Return the numbers by which a sum of so many uploads carries floats.

    Raises:
        ValueError: Words cannot carry them.
    """
    return FixedPoint.fitting(secure.limit, cohort, secure.precision)


def least_clients(secure: SecureUploads, cohort: int) -> int:
    """Return the fewest clients of a cohort whose sum may be opened."""
    return default_threshold(cohort) if secure.threshold is None else secure.threshold


def numbers_problem(secure: SecureUploads, cohort: int) -> str | None:
    """Return why words cannot carry the numbers of a cohort: field, value and fix. None if they can.

    Args:
        secure: The section.
        cohort: The number of clients in a sum.
    """
    try:
        fixed_point(secure, cohort)
    except ValueError as error:
        return f"federate.secure: limit {secure.limit:g}, precision {secure.precision:g}: {error}"
    return None
