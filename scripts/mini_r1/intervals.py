"""Success rates and their 95 % intervals. Standard library only.

The unit is the puzzle, because several completions of one puzzle are not independent trials (E. Miller, "Adding Error
Bars to Evals", arXiv:2411.00640, 2024: clustered and paired standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ALL = "all puzzles"  # their name beside those of strata
Z95 = 1.959963984540054  # normal quantile, two-sided 95 %


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), within 0..1.

    Unlike the textbook normal interval it stays sensible near 0 and 1 and for few trials.

    Args:
        successes: how many trials succeeded (a float, for rates that were averaged elsewhere).
        trials: how many there were, at least 1.
        z: normal quantile; the default gives 95 % confidence.

    Raises:
        ValueError: when `trials` is below 1 or `successes` is outside 0..trials.

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(50, 100)]
        [0.404, 0.596]
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # min and max with the rate itself: rounding must not push a bound past it when it is 0 or 1.
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that at least one of k completions is right (Chen et al. 2021, section 2.1).

    Args:
        samples: completions that were drawn for the puzzle, n.
        correct: how many of them are right, c.
        k: how many one would draw, 1 to n.

    Returns:
        1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
        (0.25, 0.5, 1.0)
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"need 0 <= correct <= samples and 1 <= k <= samples, got {correct} of {samples}, k = {k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error: exactly 0 where the values are alike but for rounding."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    error = math.sqrt(variance / len(values))
    return mean, error if error > 1e-9 else 0.0


def rate_interval(per_puzzle: Sequence[float], completions: int | None = None) -> tuple[float, float, float]:
    """Mean success over puzzles with its 95 % interval, within 0..1.

    Wilson's interval where every puzzle is a success or a failure (one completion each), or all are alike; else the
    normal approximation, which holds the truth in 88 of 100 simulated experiments with 5 puzzles, in 94 with 30.

    Args:
        per_puzzle: one estimate per puzzle, each from 0 to 1; at least one.
        completions: how many there are of all puzzles together, when known: by chance, few puzzles may differ little,
            but their mean is never worth more than this many independent trials.

    Returns:
        mean, low, high.
    """
    mean, error = _mean_and_error(per_puzzle)
    if not error or set(per_puzzle) <= {0, 1}:
        return mean, *wilson_interval(mean * len(per_puzzle), len(per_puzzle))
    if completions:
        error = max(error, math.sqrt(mean * (1 - mean) / completions))
    return mean, max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error)


def difference_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean change on the same puzzles with its 95 % interval, by the normal approximation, within -1..1.

    Pairing the puzzles takes their difficulty out of the comparison. Where all change alike, the half width is that
    of a rate of 0 among this many puzzles. A single puzzle says nothing: -1 to 1.

    Args:
        before, after: one estimate per puzzle, in the same order; at least one.

    Returns:
        mean of after - before, low, high.

    Raises:
        ValueError: when the lists differ in length.
    """
    mean, error = _mean_and_error([b - a for a, b in zip(before, after, strict=True)])
    if len(before) == 1:
        return mean, -1.0, 1.0
    half = Z95 * error or wilson_interval(0, len(before))[1]
    return mean, max(-1.0, mean - half), min(1.0, mean + half)
