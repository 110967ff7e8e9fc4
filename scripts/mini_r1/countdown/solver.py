"""An exact solver, and the strata by which results are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import gcd
from operator import index

from mini_r1.countdown.puzzle import MAX_NUMBERS

# A value is a reduced (numerator, denominator). Only non-negative values are tracked: whatever reaches -v also
# reaches v with the operands of one subtraction swapped, and a witness over non-negative values needs no unary minus.
_Value = tuple[int, int]


def _reduced(numerator: int, denominator: int) -> _Value:
    divisor = gcd(numerator, denominator)
    return numerator // divisor, denominator // divisor


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
    """Every way to split `nums` into two non-empty parts, each unordered pair once, the smaller part first."""
    count = len(nums)
    for mask in range(1, 1 << (count - 1)):  # the last number is always in the other part
        chosen = tuple(n for i, n in enumerate(nums) if mask >> i & 1)
        rest = tuple(n for i, n in enumerate(nums) if not mask >> i & 1)
        yield (chosen, rest) if len(chosen) <= len(rest) else (rest, chosen)


@lru_cache(maxsize=4096)
def _reachable(nums: tuple[int, ...]) -> dict[_Value, str]:
    """Every non-negative value that all of `nums` can make, each used once, with one expression that makes it."""
    if len(nums) == 1:
        return {(nums[0], 1): str(nums[0])}
    table: dict[_Value, str] = {}
    for small, large in _splits(nums):
        for a, left in _reachable(small).items():
            for b, right in _reachable(large).items():
                for value, expression in _combine(a, left, b, right):
                    table.setdefault(value, expression)
    return table


def _checked(nums: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(sorted(map(index, nums)))
    if not 1 <= len(numbers) <= MAX_NUMBERS or numbers[0] < 0:
        raise ValueError(f"the solver takes 1 to {MAX_NUMBERS} numbers that are not negative, got {list(nums)}")
    return numbers


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


# Tables are built for up to this many numbers; beyond, the target is pulled back through the smaller part.
_TABLE_SIZE = 3


@lru_cache(maxsize=200_000)
def _search(nums: tuple[int, ...], target: _Value) -> str | None:
    if len(nums) <= _TABLE_SIZE:
        return _reachable(nums).get(target)
    for small, large in _splits(nums):
        for value, expression in _reachable(small).items():
            for needed, template in _needed(value, target):
                found = _search(large, needed)
                if found is not None:
                    return template.format(A=expression, Aw=_wrap(expression), X=found, Xw=_wrap(found))
    return None


def solve(nums: Sequence[int], target: int) -> str | None:
    """One equation that solves the puzzle, or None when there is none.

    The answer is exact: None means that no equation exists. Six numbers take milliseconds to a few hundred.

    Raises:
        ValueError: unless there are 1 to MAX_NUMBERS non-negative numbers.
        TypeError: when a number or the target is no integer.
    """
    expression = _search(_checked(nums), (abs(index(target)), 1))
    return f"-({expression})" if expression and target < 0 else expression


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

    Raises like `solve`.
    """
    if reachable_by_sums(_checked(nums), index(target)):
        kind = "+ -"
    else:
        kind = "needs * /" if is_solvable(nums, target) else "unsolvable"
    return f"{len(nums)} numbers, {kind}"
