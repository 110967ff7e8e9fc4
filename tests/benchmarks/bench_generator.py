"""The puzzle generator against drawing numbers at random and searching for a solution, depth first.

    python tests/benchmarks/bench_generator.py

Both make puzzles of the public data set's shape. Rounds are interleaved; the median of each and their ratio count.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from mini_r1.countdown.generator import generate_puzzles

ROUNDS = 5
GENERATED, SEARCHED = 20_000, 60


def reaches(values: list[Fraction], target: int) -> bool:
    """Depth-first search: some pair meets in some operation until one number is left."""
    if len(values) == 1:
        return values[0] == target
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            a, b = values[i], values[j]
            rest = values[:i] + values[i + 1 : j] + values[j + 1 :]
            results = [a + b, a - b, b - a, a * b]
            results += [a / b] if b else []
            results += [b / a] if a else []
            if any(reaches([*rest, result], target) for result in results):
                return True
    return False


def draw_and_search(count: int, rng: random.Random) -> list[tuple[list[int], int]]:
    found: list[tuple[list[int], int]] = []
    while len(found) < count:
        nums = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
        target = rng.randint(10, 100)
        if reaches([Fraction(n) for n in nums], target):
            found.append((nums, target))
    return found


def main() -> None:
    rates: dict[str, list[float]] = {"generate_puzzles": [], "draw and search": []}
    for round_ in range(ROUNDS):
        started = time.perf_counter()
        generate_puzzles(GENERATED, seed=round_)
        rates["generate_puzzles"].append(GENERATED / (time.perf_counter() - started))
        started = time.perf_counter()
        draw_and_search(SEARCHED, random.Random(round_))
        rates["draw and search"].append(SEARCHED / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<18} median {medians[name]:>10,.0f} puzzles/s   (range {min(values):,.0f} to {max(values):,.0f})")
    print(f"ratio of the medians: {medians['generate_puzzles'] / medians['draw and search']:,.0f}x")


if __name__ == "__main__":
    main()
