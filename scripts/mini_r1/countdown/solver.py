"""An exact solver, and the strata by which results are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mini_r1.countdown.puzzle import MAX_NUMBERS


class Solution(NamedTuple):
    """How a value is reached: `expression`, one witness; `ways`, the number of distinct trees that reach it."""

    expression: str
    ways: int


# A value is a reduced (numerator, denominator). Only non-negative values are tracked: whatever reaches -v also
# reaches v with the operands of one subtraction swapped, and a witness over non-negative values needs no unary minus.
_Value = tuple[int, int]


def _reduced(numerator: int, denominator: int) -> _Value:
    value = Fraction(numerator, denominator)
    return value.numerator, value.denominator


def _wrap(expression: str) -> str:
    """Parenthesises a compound expression so that it can stand as an operand of * or / or right of a minus."""
    return f"({expression})" if " " in expression else expression


def _combine(a: _Value, left: str, b: _Value, right: str) -> Iterator[tuple[_Value, str]]:
    """Every non-negative value that one operation makes of two, each operation once, with its expression."""
    (an, ad), (bn, bd) = a, b
    yield _reduced(an * bd + bn * ad, ad * bd), f"{left} + {right}"
    if an * bd >= bn * ad:
        yield _reduced(an * bd - bn * ad, ad * bd), f"{left} - {_wrap(right)}"
    else:
        yield _reduced(bn * ad - an * bd, ad * bd), f"{right} - {_wrap(left)}"
    yield _reduced(an * bn, ad * bd), f"{_wrap(left)} * {_wrap(right)}"
    if bn:
        yield _reduced(an * bd, ad * bn), f"{_wrap(left)} / {_wrap(right)}"
    if an:
        yield _reduced(bn * ad, bd * an), f"{_wrap(right)} / {_wrap(left)}"


def _splits(nums: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to part `nums` in two non-empty halves, each unordered pair of halves once, the smaller one first."""
    count = len(nums)
    for mask in range(1, 1 << (count - 1)):  # the last number always stands in the other half
        chosen = tuple(n for i, n in enumerate(nums) if mask >> i & 1)
        rest = tuple(n for i, n in enumerate(nums) if not mask >> i & 1)
        yield (chosen, rest) if len(chosen) <= len(rest) else (rest, chosen)


@lru_cache(maxsize=4096)
def _reachable(nums: tuple[int, ...]) -> dict[_Value, Solution]:
    if len(nums) == 1:
        return {(nums[0], 1): Solution(str(nums[0]), 1)}
    table: dict[_Value, Solution] = {}
    for small, large in _splits(nums):
        for a, (left, left_ways) in _reachable(small).items():
            for b, (right, right_ways) in _reachable(large).items():
                for value, expression in _combine(a, left, b, right):
                    known = table.get(value)
                    if known is None:
                        table[value] = Solution(expression, left_ways * right_ways)
                    else:
                        table[value] = Solution(known.expression, known.ways + left_ways * right_ways)
    return table


def _check_solver_input(nums: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(nums) <= MAX_NUMBERS:
        raise ValueError(f"the solver takes 1 to {MAX_NUMBERS} numbers, got {len(nums)}")
    if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0 for n in nums):
        raise ValueError(f"numbers must be non-negative integers, got {list(nums)}")
    return tuple(sorted(int(n) for n in nums))


def reachable_values(nums: Sequence[int]) -> dict[Fraction, Solution]:
    """Every non-negative value that all of `nums`, each used once, can make.

    Args:
        nums: 1 to MAX_NUMBERS non-negative integers. Time and memory grow steeply: milliseconds for four numbers,
            about a second for five, minutes for six (`solve` and `difficulty` stay fast there).

    Returns:
        A dict from value to `Solution` (a witness and the number of distinct expression trees).

    Raises:
        ValueError: on too many numbers or something that is not a non-negative integer.
    """
    return {Fraction(n, d): solution for (n, d), solution in _reachable(_check_solver_input(nums)).items()}


def _needed(value: _Value, target: _Value) -> Iterator[tuple[_Value, str]]:
    """The values x with `value op x == target`, each with a template for the expression (A: value, X: x)."""
    (vn, vd), (tn, td) = value, target
    difference = tn * vd - vn * td
    if difference >= 0:
        yield _reduced(difference, td * vd), "{A} + {X}"  # value + x
    else:
        yield _reduced(-difference, td * vd), "{A} - {Xw}"  # value - x
    yield _reduced(tn * vd + vn * td, td * vd), "{X} - {Aw}"  # x - value
    if difference == 0 and vn != 0:
        yield (0, 1), "{A} - {Xw}"
    if vn:
        yield _reduced(tn * vd, td * vn), "{Aw} * {Xw}"  # value * x
        yield _reduced(tn * vn, td * vd), "{Xw} / {Aw}"  # x / value
        if tn:
            yield _reduced(vn * td, vd * tn), "{Aw} / {Xw}"  # value / x


# Tables are built for up to this many numbers; beyond, the target is pulled back through the smaller half.
_TABLE_SIZE = 3


@lru_cache(maxsize=200_000)
def _search(nums: tuple[int, ...], target: _Value) -> str | None:
    if len(nums) <= _TABLE_SIZE:
        known = _reachable(nums).get(target)
        return known.expression if known else None
    for small, large in _splits(nums):
        for value, (expression, _) in _reachable(small).items():
            for needed, template in _needed(value, target):
                found = _search(large, needed)
                if found is not None:
                    return template.format(A=expression, Aw=_wrap(expression), X=found, Xw=_wrap(found))
    return None


def solve(nums: Sequence[int], target: int) -> str | None:
    """One equation that solves the puzzle, or None when there is none.

    The answer is exact: None means that no equation exists. Six numbers take milliseconds to a few hundred.

    Raises:
        ValueError: on too many numbers or something that is not a non-negative integer.
    """
    numbers = _check_solver_input(nums)
    expression = _search(numbers, (abs(int(target)), 1))
    if expression is None or target >= 0:
        return expression
    return f"-({expression})"


def is_solvable(nums: Sequence[int], target: int) -> bool:
    """Whether any equation solves the puzzle. Raises like `solve`."""
    return solve(nums, target) is not None


def reachable_by_sums(nums: Sequence[int], target: int) -> bool:
    """Whether + and - alone reach the target with every number used once."""
    first, *others = nums
    totals = {first, -first}
    for number in others:
        totals = {total + sign * number for total in totals for sign in (1, -1)}
    return target in totals


def stratum(nums: Sequence[int], target: int) -> str:
    """The name under which results are split: `3 numbers, + -`, `4 numbers, needs * /` or `4 numbers, unsolvable`.

    Raises:
        ValueError: like `solve`.
    """
    sums = reachable_by_sums(nums, target)
    return _stratum_name(len(nums), not sums if sums or is_solvable(nums, target) else None)


def _stratum_name(count: int, needs_mul_div: bool | None) -> str:
    kind = {None: "unsolvable", True: "needs * /", False: "+ -"}[needs_mul_div]
    return f"{count} numbers, {kind}"


@dataclass(frozen=True)
class Difficulty:
    """How hard a puzzle is.

    Attributes:
        count: how many numbers it has.
        needs_mul_div: True when + and - alone cannot reach the target, None when nothing can.
        solutions: number of distinct expression trees over non-negative intermediate values that reach the target.
            Operand order is not counted (`a + b` is `b + a`), association is (`(a + b) + c` and `a + (b + c)` are
            two), equal numbers count as different ones (`5 / 5` either way round is two trees, `5 - 5` one): a proxy
            for how likely a random attempt is to succeed.
    """

    count: int
    needs_mul_div: bool | None
    solutions: int

    @property
    def stratum(self) -> str:
        """The name under which results are split, for example `3 numbers, + -` or `4 numbers, needs * /`."""
        return _stratum_name(self.count, self.needs_mul_div)


def difficulty(nums: Sequence[int], target: int) -> Difficulty:
    """Describes a puzzle of up to five numbers in full; six numbers take minutes because of `solutions`.

    Raises:
        ValueError: on too many numbers or something that is not a non-negative integer.
    """
    numbers = _check_solver_input(nums)
    known = _reachable(numbers).get((abs(int(target)), 1))
    if known is None:
        return Difficulty(len(numbers), None, 0)
    return Difficulty(len(numbers), not reachable_by_sums(numbers, int(target)), known.ways)
