"""The privacy loss of noised sums, added up by Google's library ``dp-accounting``.

All functions are for the Gaussian mechanism on sums of clipped contributions, with Poisson sampling: every
unit takes part in a step independently with the same probability. Two data sets are neighbours if one has
one unit more (add-or-remove).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.optimize import brentq

from genfl.errors import InputError

if TYPE_CHECKING:
    from genfl.config.privacy import AccountantName

TOLERANCE = 1e-3
"""The largest relative error of a calibrated noise multiplier. It is always on the side of more noise."""

MOST_NOISE = 1e6
"""The largest noise multiplier that calibration tries."""


class NoisedSums(NamedTuple):
    """A series of noised sums over the same data.

    Attributes:
        noise_multiplier: Standard deviation of the noise, divided by the clipping norm; non-negative.
        sampling_rate: The probability with which a unit takes part in a sum, in (0, 1].
        steps: How many sums were released, non-negative.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


def default_delta(units: int) -> float:
    """Return 1/n^1.1, clearly less than the chance 1/n of publishing one of n units in full.

    Args:
        units: The number n of units, at least 1.
    """
    return float(units**-1.1)


@lru_cache(1024)
def epsilon_of(releases: tuple[NoisedSums, ...], delta: float, accountant: AccountantName) -> float:
    """Return the least ε that the accountant can show for all releases together.

    Args:
        releases: What was released, all from the same data.
        delta: The probability with which the bound may fail, in (0, 1).
        accountant: ``pld`` is tight (Sommer et al. 2019, arXiv 1812.02890; Doroshenko et al. 2022, arXiv
            2207.04380). ``rdp`` is faster (Mironov et al. 2019, arXiv 1908.10530).

    Returns:
        ε, infinite where something was released without noise; 0 where nothing was.

    Raises:
        InputError: ``dp-accounting`` is not installed.
    """
    taken = [release for release in releases if release.steps and release.sampling_rate]
    if not taken:
        return 0.0
    if any(release.noise_multiplier == 0 for release in taken):
        return math.inf
    composed = _accountant(accountant)()
    with _quiet():
        for release in taken:
            composed.compose(_event(release))
        return float(composed.get_epsilon(delta))


@lru_cache(1024)
def noise_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: AccountantName
) -> float:
    """Return the least noise multiplier, to `TOLERANCE`, whose ε is at most the one asked for.

    Args:
        epsilon: The bound, positive.
        delta: The probability with which it may fail, in (0, 1).
        sampling_rate: The probability with which a unit takes part in a sum, in (0, 1].
        steps: How many sums are released, positive.
        accountant: See `epsilon_of`.

    Raises:
        InputError: No noise multiplier up to `MOST_NOISE` reaches it, or ``dp-accounting`` is not installed.
    """

    def excess(log_noise: float) -> float:
        """Return log ε minus the bound's, which is almost linear in the log of the noise."""
        release = NoisedSums(math.exp(log_noise), sampling_rate, steps)
        return math.log(max(epsilon_of((release,), delta, accountant), 1e-9) / epsilon)

    # RDP gives a little more noise than needed. PLD takes seconds where noise is scarce.
    first = noise_for(epsilon, delta, sampling_rate, steps, "rdp") if accountant == "pld" else 1.0
    high = math.log(first)
    while excess(high) > 0:
        high += math.log(2)
        if high > math.log(MOST_NOISE):
            raise InputError(
                f"privacy.epsilon: no noise up to {MOST_NOISE:g} times the norm reaches {epsilon:g} in"
                f" {steps} steps; raise it, or train for fewer rounds"
            )
    low = high - math.log(1.25)
    while low > math.log(TOLERANCE) and excess(low) <= 0:
        low, high = low - math.log(1.25), low
    if excess(low) <= 0:
        return math.exp(low)
    root: float = brentq(excess, low, high, xtol=TOLERANCE / 4)
    while excess(root) > 0:
        root += TOLERANCE / 4
    return math.exp(root)


def _event(release: NoisedSums) -> Any:
    import dp_accounting

    event = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    if release.sampling_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(release.sampling_rate, event)
    return dp_accounting.SelfComposedDpEvent(event, release.steps)


def check_accountant() -> None:
    """Check that the library is there.

    Raises:
        InputError: ``dp-accounting`` is not installed.
    """
    _accountant("rdp")


def _accountant(name: AccountantName) -> Callable[[], Any]:
    try:
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise InputError(
            "privacy: differential privacy needs dp-accounting; install it with pip install 'genfl[dp]'"
        ) from error
    accountants: dict[str, Callable[[], Any]] = {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}
    return accountants[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings of orders that it leaves out, which is safe.

    With such a warning it also adds a handler to the root logger, which would print every line twice.
    """
    library, handlers = logging.getLogger("absl"), list(logging.root.handlers)
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(level)
        logging.root.handlers[:] = handlers


def compose(releases: Sequence[NoisedSums]) -> tuple[NoisedSums, ...]:
    """Return the releases with those of the same noise and rate joined, in the order of their first one."""
    steps: dict[tuple[float, float], int] = {}
    for release in releases:
        kind = release.noise_multiplier, release.sampling_rate
        steps[kind] = steps.get(kind, 0) + release.steps
    return tuple(NoisedSums(*kind, count) for kind, count in steps.items())
