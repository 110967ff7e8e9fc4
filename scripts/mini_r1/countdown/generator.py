"""A generator of puzzles that are solvable by construction, in the public data set's shape."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mini_r1.countdown.puzzle import MAX_NUMBERS, Puzzle

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


def _check_generator_input(
    count: int, number_counts: Sequence[int], number_range: Sequence[int], target_range: Sequence[int]
) -> None:
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if not number_counts or any(not 2 <= k <= MAX_NUMBERS for k in number_counts):
        raise ValueError(f"number_counts must list values in 2..{MAX_NUMBERS}, got {list(number_counts)}")
    low, high = number_range
    if not 1 <= low <= high <= MAX_GENERATED_NUMBER:
        raise ValueError(f"number_range must satisfy 1 <= low <= high <= {MAX_GENERATED_NUMBER}, got {[low, high]}")
    if target_range[0] > target_range[1]:
        raise ValueError(f"target_range must be [low, high] with low <= high, got {list(target_range)}")


def generate_puzzles(
    count: int,
    *,
    seed: int,
    number_counts: Sequence[int] = (3, 4),
    number_range: tuple[int, int] = (1, 99),
    target_range: tuple[int, int] = (10, 100),
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
        number_range: inclusive range of the numbers, within 1..MAX_GENERATED_NUMBER.
        target_range: inclusive range of the targets.
        progress: draw a progress bar on standard error when it is a terminal.

    Raises:
        ValueError: on arguments out of range, or when there are not that many distinct puzzles to be found.
    """
    _check_generator_input(count, number_counts, number_range, target_range)
    rng = np.random.default_rng(seed)
    puzzles: list[Puzzle] = []
    seen: set[tuple[int, ...]] = set()
    counts = sorted(set(number_counts))
    wanted = {k: count // len(counts) + (i < count % len(counts)) for i, k in enumerate(counts)}
    for numbers_each, quota in wanted.items():
        found, barren = 0, 0
        while found < quota:
            rows = int(np.clip((quota - found) * 12, 256, 200_000))
            nums = rng.integers(number_range[0], number_range[1] + 1, (rows, numbers_each))
            targets, valid = _random_targets(nums, rng)
            keep = valid & (targets >= target_range[0]) & (targets <= target_range[1])
            before = found
            kept_nums, kept_targets = nums[keep], targets[keep]
            keys = np.column_stack([np.sort(kept_nums, axis=1), kept_targets]).tolist()
            for row, target, key in zip(kept_nums.tolist(), kept_targets.tolist(), keys, strict=True):
                if found == quota:
                    break
                if tuple(key) not in seen:
                    seen.add(tuple(key))
                    puzzles.append(Puzzle(tuple(row), target))
                    found += 1
            barren = barren + 1 if found == before else 0
            if barren == 50:
                raise ValueError(
                    f"found only {found} distinct puzzles of {numbers_each} numbers in {list(number_range)} with "
                    f"targets in {list(target_range)}; ask for fewer or widen the ranges"
                )
            if progress:
                _show_progress(len(puzzles), count)
    order = rng.permutation(len(puzzles))
    return [puzzles[i] for i in order]


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        filled = 40 * done // max(total, 1)
        end = "\n" if done == total else ""
        print(f"\rpuzzles [{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def write_puzzles(puzzles: Iterable[Puzzle], path: str | Path) -> None:
    """Writes puzzles with the public data set's columns (`nums`, `target`) as parquet or JSONL, by the suffix.

    Raises:
        ValueError: on any other suffix.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"cannot write {path.name}: the name must end in .parquet or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"nums": list(puzzle.nums), "target": puzzle.target} for puzzle in puzzles]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("nums", pa.list_(pa.int64())), ("target", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
