"""A generator of puzzles that are solvable by construction, in the public data set's shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from mini_r1.common import DataError
from mini_r1.countdown.puzzle import Puzzle

# int64 holds products of MAX_NUMBERS numbers up to here (and their sums) exactly.
MAX_GENERATED_NUMBER = 999


def _random_targets(nums: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The values of one random equation per row.

    Args:
        nums: int64 array of shape (N, K): N puzzles of K numbers.

    Returns:
        (values, valid): int64 and bool arrays of shape (N,); `valid` marks equations with an integer value.
    """
    rows, count = nums.shape
    numerator, denominator = nums.copy(), np.ones_like(nums)
    valid = np.ones(rows, dtype=bool)
    index = np.arange(rows)
    for width in range(count, 1, -1):
        # Two distinct random columns meet in a random operation; the result takes the first one's place and the last
        # column fills the gap left by the second.
        first = rng.integers(0, width, rows)
        second = (first + rng.integers(1, width, rows)) % width
        an, ad = numerator[index, first], denominator[index, first]
        bn, bd = numerator[index, second], denominator[index, second]
        operation = rng.integers(0, 4, rows)
        rn = np.select(
            [operation == 0, operation == 1, operation == 2], [an * bd + bn * ad, an * bd - bn * ad, an * bn], an * bd
        )
        rd = np.where(operation == 3, ad * bn, ad * bd)
        valid &= rd != 0
        rd = np.where(rd == 0, 1, rd)
        numerator[index, second], denominator[index, second] = numerator[:, width - 1], denominator[:, width - 1]
        # When `first` was the last column its slot has just moved to `second`.
        slot = np.where(first == width - 1, second, first)
        numerator[index, slot], denominator[index, slot] = rn, rd
    values, remainder = np.divmod(numerator[:, 0], denominator[:, 0])
    return values, valid & (remainder == 0)


def generate_puzzles(
    count: int,
    *,
    seed: int,
    number_counts: Sequence[int] = (3, 4),
    number_range: Sequence[int] = (1, 99),
    target_range: Sequence[int] = (10, 100),
    progress: bool = False,
) -> list[Puzzle]:
    """Distinct puzzles that are solvable by construction; the defaults have the public data set's shape.

    Numbers are drawn uniformly, then the target is the value of a random equation over them (a random pair meets in a
    random operation until one number is left), kept when it is an integer in range. Puzzles with more solutions are
    therefore likelier. The number counts are dealt out evenly, in turn. The same arguments give the same list.

    Args:
        count: how many puzzles.
        seed: any integer that `numpy.random.default_rng` takes.
        number_counts: how many numbers a puzzle may have, each in 2..MAX_NUMBERS.
        number_range: [low, high] of the numbers, inclusive, within 1..MAX_GENERATED_NUMBER.
        target_range: [low, high] of the targets, inclusive.
        progress: draw a progress bar on standard error when it is a terminal.

    Raises:
        DataError: when there are not that many distinct puzzles to be found.
    """
    rng = np.random.default_rng(seed)
    puzzles: list[Puzzle] = []
    counts = sorted(set(number_counts))
    with tqdm(total=count, desc="puzzles", disable=None if progress else True) as bar:  # None: where no terminal is
        for i, numbers_each in enumerate(counts):
            quota = count // len(counts) + (i < count % len(counts))
            puzzles += _generate_alike(quota, numbers_each, number_range, target_range, rng, bar)
    order = rng.permutation(len(puzzles))
    return [puzzles[i] for i in order]


def _generate_alike(
    quota: int,
    numbers_each: int,
    number_range: Sequence[int],
    target_range: Sequence[int],
    rng: np.random.Generator,
    bar: tqdm,
) -> list[Puzzle]:
    """`quota` distinct puzzles of `numbers_each` numbers; other arguments and errors as for `generate_puzzles`."""
    found: dict[tuple[int, ...], Puzzle] = {}
    barren = 0
    while len(found) < quota:
        before = len(found)
        rows = int(np.clip((quota - before) * 12, 256, 200_000))
        nums = rng.integers(number_range[0], number_range[1] + 1, (rows, numbers_each))
        targets, valid = _random_targets(nums, rng)
        keep = valid & (targets >= target_range[0]) & (targets <= target_range[1])
        nums, targets = nums[keep], targets[keep]
        keys = np.column_stack([np.sort(nums, axis=1), targets]).tolist()
        for row, key in zip(nums.tolist(), keys, strict=True):
            if len(found) == quota:
                break
            found.setdefault(tuple(key), Puzzle(tuple(row), key[-1]))
        bar.update(len(found) - before)
        barren = barren + 1 if len(found) == before else 0
        if barren == 50:
            raise DataError(
                f"found only {before} distinct puzzles of {numbers_each} numbers in {list(number_range)} with "
                f"targets in {list(target_range)}; ask for fewer or widen the ranges"
            )
    return list(found.values())
