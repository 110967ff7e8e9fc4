"""Success rates and their intervals. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

# Two-sided 95 %.
Z95 = 1.959963984540054


@lru_cache(maxsize=1024)
def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t: |T| stays below it with probability 0.95.

    The distribution of a whole number of degrees of freedom is a finite sum over the powers of cos(atan(t / sqrt(n)))
    (Abramowitz and Stegun, 26.7.3 and 26.7.4), which is bisected here.

    Args:
        degrees: degrees of freedom, 1 or more.

    Raises:
        ValueError: when there are none.

    Example:
        >>> round(t95(1), 3), round(t95(9), 3), round(t95(511), 3)
        (12.706, 2.262, 1.965)
    """
    if degrees < 1:
        raise ValueError(f"need 1 degree of freedom or more, got {degrees}")
    is_odd = degrees % 2

    def probability(angle: float) -> float:
        square = math.cos(angle) ** 2
        term = math.cos(angle) if is_odd else 1.0
        total = 0.0
        for power in range(2 + is_odd, degrees + 1, 2):
            total += term
            term *= square * (power - 1) / power
        inner = math.sin(angle) * total
        return 2 / math.pi * (angle + inner) if is_odd else inner

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if probability(middle) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(middle)


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), within 0..1.

    Unlike the textbook normal interval it stays sensible near 0 and 1 and for few trials.

    Args:
        successes: how many trials succeeded (a float, for rates that were averaged elsewhere).
        trials: how many there were, at least 1 (a float, for an effective number).
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


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the estimated variance of that mean (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def rate_interval(per_puzzle: Sequence[float], completions: int | None = None) -> tuple[float, float, float]:
    """Mean success over puzzles with its 95 % interval, when each puzzle has a rate of its own.

    Several completions of one puzzle are not independent trials, so puzzles are the unit: the spread between them
    tells how many independent trials the mean is worth, and that many go into Wilson's interval (Korn and Graubard,
    Survey Methodology 24, 1998, do this with another interval). Few puzzles tell little about their spread, for which
    the number is lowered as there, by the square of a ratio of Student's t; but each puzzle is worth one trial at
    least. With one completion a puzzle it is Wilson's own.

    Args:
        per_puzzle: one estimate a puzzle, each from 0 to 1.
        completions: how many there are of all puzzles, which the mean can never be worth more than; None when that is
            not known.

    Returns:
        mean, low, high.

    Raises:
        ValueError: when there is no puzzle.

    Example:
        >>> [round(value, 3) for value in rate_interval([1.0] * 50 + [0.0] * 50)]
        [0.5, 0.404, 0.596]
    """
    if not per_puzzle:
        raise ValueError("no puzzle, no rate")
    mean, variance = _mean_and_variance(per_puzzle)
    puzzles = len(per_puzzle)
    worth = float(puzzles)  # no spread says nothing about the interval's width
    if variance > 0 and 0 < mean < 1:
        certainty = (t95(completions - 1) if completions and completions > 1 else Z95) / t95(puzzles - 1)
        worth = mean * (1 - mean) / variance * puzzles / (puzzles - 1) * certainty**2
        worth = max(puzzles, min(worth, completions or math.inf))
    low, high = wilson_interval(min(1.0, max(0.0, mean)) * worth, worth)
    return mean, low, high


def difference_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean change on the same puzzles with its 95 % interval.

    The puzzles are paired, which takes their difficulty out of the comparison. Student's t with one degree of freedom
    less than there are puzzles; where all puzzles change alike, the half width is that of a rate of 0 or 1 among so
    many puzzles. A single puzzle says nothing: -1 to 1.

    Args:
        before, after: one estimate a puzzle, in the same order.

    Returns:
        mean of after - before, low, high, within -1..1.

    Raises:
        ValueError: when the lists are empty or differ in length.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"need the same puzzles on both sides, got {len(before)} and {len(after)}")
    mean, variance = _mean_and_variance([b - a for a, b in zip(before, after, strict=True)])
    if len(before) == 1:
        return mean, -1.0, 1.0
    half = t95(len(before) - 1) * math.sqrt(variance) if variance else wilson_interval(0, len(before))[1]
    return mean, max(-1.0, mean - half), min(1.0, mean + half)
