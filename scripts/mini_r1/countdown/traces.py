"""Search traces: worked Countdown solutions in writing, failed attempts included, for a supervised cold start.

A trace is a completion in the exact format of the real task. Each line of its reasoning is one *attempt*, a chain of
two-number operations with every intermediate result, recognised for what it is:

    44-19=25, 35+25=60 too low
    44+19=63, 63+35=98 yes!

A small model below roughly 1.5 B parameters does not invent search by itself, so it is shown some. Traces either
persist until they find a solution or *give up too early*: after a failed attempt they stop and answer with it although
it is wrong. Both behaviours end up in the policy, and which of them pays is left for reinforcement learning.

Standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mini_r1.countdown.puzzle import Puzzle

# Results that a puzzle with targets up to 100 plausibly passes through. A bound keeps the multiplication table that a
# million-parameter model has to memorise small.
MAX_VALUE = 200

GIVE_UP = "I give up."
FOUND = "yes!"
TOO_LOW = "too low"
TOO_HIGH = "too high"


class Attempt(NamedTuple):
    """One way through the numbers.

    Attributes:
        steps: the operations in order, for example `44-19=25, 35+25=60`.
        equation: the same as a single equation, for example `35+(44-19)`.
        value: what it comes to.
    """

    steps: str
    equation: str
    value: int


def _operations(a: int, b: int) -> Iterator[tuple[str, int]]:
    """The operations worth writing down for a >= b > 0: results are whole, positive and at most MAX_VALUE."""
    if a + b <= MAX_VALUE:
        yield "+", a + b
    if a > b:
        yield "-", a - b
    if a * b <= MAX_VALUE:
        yield "*", a * b
    if b > 1 and a % b == 0:
        yield "/", a // b


def all_attempts(nums: Sequence[int]) -> list[Attempt]:
    """Every attempt over `nums`, the larger operand always first.

    With numbers in 1..99 there are 9 to 29 attempts over three of them, 130 to 390 over four.
    """
    found: list[Attempt] = []

    def extend(items: list[tuple[int, str, bool]], steps: list[str]) -> None:
        # Each item is (value, equation, whether that equation is compound and needs parentheses as an operand).
        if len(items) == 1:
            found.append(Attempt(", ".join(steps), items[0][1], items[0][0]))
            return
        for i in range(len(items)):
            for j in range(i + 1, len(items)):
                big, small = (items[i], items[j]) if items[i][0] >= items[j][0] else (items[j], items[i])
                left, right = (f"({text})" if compound else text for _, text, compound in (big, small))
                rest = [items[k] for k in range(len(items)) if k not in (i, j)]
                for symbol, value in _operations(big[0], small[0]):
                    step = f"{big[0]}{symbol}{small[0]}={value}"
                    extend([*rest, (value, f"{left}{symbol}{right}", True)], [*steps, step])

    extend([(n, str(n), False) for n in nums], [])
    return found


def write_trace(
    puzzle: Puzzle, rng: np.random.Generator, *, give_up_share: float, give_up_rate: float, max_attempts: int
) -> str | None:
    """A completion for one puzzle, starting right after the prompt's `<think>`.

    Attempts come in random order without repetition. With probability `give_up_share` the trace is one that loses
    heart: after each failed attempt it then gives up with probability `give_up_rate`. Any trace gives up after
    `max_attempts`. A trace that gives up answers with its last attempt, which is wrong.

    Returns:
        The completion, or None when no solution lies among the attempts (it needs a result beyond MAX_VALUE).
    """
    attempts = all_attempts(puzzle.nums)
    if not any(attempt.value == puzzle.target for attempt in attempts):
        return None
    hesitant = rng.random() < give_up_share
    lines: list[str] = []
    last = attempts[0]
    for tried, index in enumerate(rng.permutation(len(attempts)), start=1):
        last = attempts[index]
        if last.value == puzzle.target:
            lines.append(f"{last.steps} {FOUND}")
            break
        lines.append(f"{last.steps} {TOO_LOW if last.value < puzzle.target else TOO_HIGH}")
        if tried == max_attempts or (hesitant and rng.random() < give_up_rate):
            lines.append(GIVE_UP)
            break
    body = "\n".join(lines)
    return f"\n{body}\n</think>\n<answer>{last.equation}</answer>"
