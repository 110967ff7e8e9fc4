"""Intervals for measured success rates. Standard library only."""

from __future__ import annotations

import math

# Two-sided 95 %.
Z95 = 1.959963984540054


def wilson_interval(successes: float, trials: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), within 0..1.

    Unlike the textbook normal interval it stays sensible near 0 and 1 and for few trials.

    Args:
        successes: how many trials succeeded (a float, for rates that were averaged elsewhere).
        trials: how many there were, at least 1.
        z: normal quantile; the default gives 95 % confidence.

    Raises:
        ValueError: when `trials` is below 1 or `successes` is outside 0..trials.

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # min and max with the rate itself: rounding must not push a bound past it when it is 0 or 1.
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))
