"""The puzzle generator against reasoning-gym's, and against drawing numbers at random and searching for a solution.

    python tests/benchmarks/bench_generator.py             # about half a minute

All make puzzles of the public data set's shape: three or four numbers in 1..99, a target in 10..100. reasoning-gym's
also come with a question in words, and several may be the same; ours are distinct.
"""

from __future__ import annotations

import random
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

from comparison import compare, record
from mini_r1.countdown.generator import generate_puzzles

HERE, GYM, SEARCHED = 20_000, 300, 60  # puzzles a round: about a third of a second each


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


def draw_and_search(count: int, seed: int) -> int:
    rng, found = random.Random(seed), 0
    while found < count:
        nums = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
        found += reaches([Fraction(n) for n in nums], rng.randint(10, 100))
    return found


def reasoning_gym(count: int, seed: int) -> int:
    config = CountdownConfig(3, 4, 1, 99, 10, 100, seed=seed * count, size=count)  # puzzle i is drawn by seed + i
    return len([*CountdownDataset(config)])


def main() -> None:
    work = {
        "draw and search": lambda round_: draw_and_search(SEARCHED, round_),
        "reasoning-gym": lambda round_: reasoning_gym(GYM, round_),
        "here": lambda round_: len(generate_puzzles(HERE, seed=round_)),
    }
    record("generator", [compare("puzzle generator", "puzzles/s", work)])


if __name__ == "__main__":
    main()
