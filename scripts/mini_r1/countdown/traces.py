"""Search traces: worked Countdown solutions in writing, failed attempts included, for a supervised cold start.

A trace is a completion in the exact format of the real task. Each line of its reasoning is one *attempt*, a chain of
two-number operations with every intermediate result, recognised for what it is:

    44-19=25, 35+25=60 too low
    44+19=63, 63+35=98 yes!

A model of a million parameters does not invent search by itself, so it is shown some. Four numbers have hundreds
of attempts and a handful of solutions, and trying them blindly would take thousands of tokens. So a trace is luckier
than chance: each attempt is a solution with probability `hit_rate`, and the others mostly come near the target. What
the model learns from it is an eye for attempts that may work; it cannot learn to always have one.

Traces either persist until they find a solution or *give up too early*: after a failed attempt they stop and answer
with it although it is wrong. Both behaviours end up in the policy, and which of them pays is left for reinforcement
learning.

Standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Results that a puzzle with targets up to 100 plausibly passes through. A bound keeps the tables of products and
# quotients that a million-parameter model has to memorise small.
MAX_VALUE = 200
# An attempt is drawn NEAR_WEIGHT times as often if it ends within NEAR of the target, and more often as well if it
# multiplies or divides: few products are small and few quotients whole, too few to learn them from.
NEAR, NEAR_WEIGHT = 15, 4
PRODUCT_WEIGHT, QUOTIENT_WEIGHT = 3, 6

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


def find_ways(nums: Sequence[int]) -> list[Attempt]:
    """Every attempt over `nums`, the larger operand always first; what is written alike comes once.

    With numbers in 1..99 there are 9 to 29 attempts over three of them, 130 to 390 over four.
    """
    found: dict[str, Attempt] = {}

    def extend(items: list[tuple[int, str, bool]], steps: list[str]) -> None:
        # Each item is (value, equation, whether that equation is compound and needs parentheses as an operand).
        if len(items) == 1:
            written = ", ".join(steps)
            found.setdefault(written, Attempt(written, items[0][1], items[0][0]))
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
    return list(found.values())


def needs_products(ways: Sequence[Attempt], target: int) -> bool:
    """Whether every solution among `ways` multiplies or divides."""
    return not any(way.value == target and set(way.steps).isdisjoint("*/") for way in ways)


def write_trace(
    ways: Sequence[Attempt],
    target: int,
    rng: np.random.Generator,
    *,
    give_up_share: float,
    give_up_rate: float,
    max_attempts: int,
    hit_rate: float,
) -> str | None:
    """A completion for one puzzle, starting right after the prompt's `<think>`.

    Each attempt is a solution with probability `hit_rate`; none is tried twice. With probability `give_up_share` the
    trace is one that loses heart: after each failed attempt it then gives up with probability `give_up_rate`. Any trace
    gives up after `max_attempts`. A trace that gives up answers with its last attempt, which is wrong.

    Args:
        ways: the attempts to draw from, as `find_ways` returns them for the puzzle's numbers.
        target: the puzzle's target.
        rng: makes the draws.

    Returns:
        The completion, or None when no solution lies among the attempts (it needs a result beyond MAX_VALUE).
    """
    hits = [way for way in ways if way.value == target]
    misses = [way for way in ways if way.value != target]
    if not hits:
        return None
    hesitant = rng.random() < give_up_share
    failures, found = 0, False
    while not found:
        found = failures == len(misses) or rng.random() < hit_rate
        failures += not found
        if not found and (failures == max_attempts or (hesitant and rng.random() < give_up_rate)):
            break
    tried = _draw(misses, failures, target, rng)
    lines = [f"{way.steps} {TOO_LOW if way.value < target else TOO_HIGH}" for way in tried]
    if found:
        tried += _draw(hits, 1, target, rng)
        lines.append(f"{tried[-1].steps} {FOUND}")
    else:
        lines.append(GIVE_UP)
    body = "\n".join(lines)
    return f"\n{body}\n</think>\n<answer>{tried[-1].equation}</answer>"


def _draw(ways: Sequence[Attempt], count: int, target: int, rng: np.random.Generator) -> list[Attempt]:
    """`count` different attempts, drawn by weight."""
    weights = [_weight(way, target) for way in ways]
    # Waiting times of rates w, in order: a draw without replacement in proportion to w.
    order = np.argsort(rng.exponential(size=len(ways)) / weights)
    return [ways[i] for i in order[:count]]


def _weight(way: Attempt, target: int) -> int:
    operations = QUOTIENT_WEIGHT if "/" in way.steps else PRODUCT_WEIGHT if "*" in way.steps else 1
    return operations * (NEAR_WEIGHT if abs(way.value - target) <= NEAR else 1)
