"""The Countdown numbers game: an exact verifier, a solver, a puzzle generator and the canonical split.

A *puzzle* is a list of positive integers `nums` and an integer `target`. An *equation* solves it when it uses every
given number exactly once (as a multiset), nothing but `+ - * /`, unary minus and parentheses, and its exact value is
the target. Division is exact rational division, so `7 / 2 * 4` is 14.

Standard library and numpy only: this module knows nothing of models and imports in well under 0.2 s.

    >>> check_equation("(44 - 19) + 35", nums=[19, 35, 44], target=60).reason.value
    'correct'
    >>> solve([44, 19, 35], 98)
    '19 + 35 + 44'
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

# An equation over six two-digit numbers needs about 40 characters; anything near these limits is not an answer.
MAX_EQUATION_CHARS = 256
MAX_NESTING = 32

# The largest number of operands that the solver and the generator accept, as in the television game.
MAX_NUMBERS = 6

# int64 holds products of MAX_NUMBERS numbers up to here (and their sums) exactly.
MAX_GENERATED_NUMBER = 999

# The held-out side never takes more than this share of the puzzles.
MAX_HELD_OUT_SHARE = 0.10
DEFAULT_HELD_OUT_PUZZLES = 1024


class Reason(StrEnum):
    """Why an answer was accepted or not: the one vocabulary of rewards, sample logs, evaluation and reports.

    The first two are given by `mini_r1.completions` (they concern the completion), the others by `check_equation`.
    """

    NO_ANSWER = "no_answer"  # nothing between <answer> and </answer>, or no such pair
    SEVERAL_ANSWERS = "several_answers"  # more than one answer was offered
    TOO_LONG = "too_long"  # more than MAX_EQUATION_CHARS characters or MAX_NESTING nested parentheses
    ILLEGAL_CHARACTER = "illegal_character"  # something other than ASCII digits, + - * / ( ) and white space
    MALFORMED = "malformed"  # legal characters that do not form an equation: `2 ** 6`, `7 // 2`, `2 (3)`, `07`
    WRONG_NUMBERS = "wrong_numbers"  # a number missing, used twice, or not among the given ones
    DIVISION_BY_ZERO = "division_by_zero"
    WRONG_VALUE = "wrong_value"  # a well-formed equation over the right numbers with another value
    CORRECT = "correct"


@dataclass(frozen=True)
class Verdict:
    """The result of checking one answer.

    Attributes:
        reason: why the answer was accepted or not.
        value: the exact value of the equation, or None when there was nothing to evaluate.
    """

    reason: Reason
    value: Fraction | None = None

    @property
    def correct(self) -> bool:
        return self.reason is Reason.CORRECT


class Puzzle(NamedTuple):
    """One puzzle: `nums`, the given numbers in the order shown to the player, and the `target` to reach."""

    nums: tuple[int, ...]
    target: int


# --------------------------------------------------------------------------------------------------------------------
# Verifier
# --------------------------------------------------------------------------------------------------------------------

_DIGITS = frozenset("0123456789")
_SYMBOLS = frozenset("+-*/()")
_NEGATE = "~"  # unary minus on the operator stack and in postfix; cannot occur in the input alphabet
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}


class _RejectedError(Exception):
    """Internal to the parser: carries the reason out of nested scanning; never leaves `check_equation`."""

    def __init__(self, reason: Reason):
        self.reason = reason


def _tokenize(text: str) -> list[int | str]:
    """Splits an equation into ints and one-character symbols.

    Raises:
        _RejectedError: on a character outside the alphabet or a number with leading zeros.
    """
    tokens: list[int | str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char in _DIGITS:
            end = position + 1
            while end < len(text) and text[end] in _DIGITS:
                end += 1
            if char == "0" and end > position + 1:
                raise _RejectedError(Reason.MALFORMED)
            tokens.append(int(text[position:end]))
            position = end
            continue
        if char in _SYMBOLS:
            tokens.append(char)
        elif not char.isspace():
            raise _RejectedError(Reason.ILLEGAL_CHARACTER)
        position += 1
    return tokens


def _to_postfix(tokens: list[int | str]) -> list[int | str]:
    """Orders infix tokens for evaluation (Dijkstra's shunting-yard: iterative, so no input can exhaust the stack).

    Raises:
        _RejectedError: when the tokens do not form exactly one equation, or nest deeper than MAX_NESTING.
    """
    output: list[int | str] = []
    operators: list[str] = []
    depth = 0
    operand_expected = True
    for token in tokens:
        if operand_expected:
            if isinstance(token, int):
                output.append(token)
                operand_expected = False
            elif token == "(":
                depth += 1
                if depth > MAX_NESTING:
                    raise _RejectedError(Reason.TOO_LONG)
                operators.append(token)
            elif token == "-":
                operators.append(_NEGATE)
            else:
                raise _RejectedError(Reason.MALFORMED)
        elif isinstance(token, int) or token == "(":
            raise _RejectedError(Reason.MALFORMED)  # implicit multiplication
        elif token == ")":
            while operators and operators[-1] != "(":
                output.append(operators.pop())
            if not operators:
                raise _RejectedError(Reason.MALFORMED)
            operators.pop()
            depth -= 1
        else:
            while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[token]:
                output.append(operators.pop())
            operators.append(token)
            operand_expected = True
    if operand_expected or depth:
        raise _RejectedError(Reason.MALFORMED)
    output.extend(reversed(operators))
    return output


def _evaluate(postfix: list[int | str]) -> Fraction:
    """Exact value of a postfix equation.

    Raises:
        _RejectedError: on a division by zero.
    """
    stack: list[tuple[int, int]] = []  # (numerator, denominator); reduced only once, at the end
    for token in postfix:
        if isinstance(token, int):
            stack.append((token, 1))
            continue
        right_num, right_den = stack.pop()
        if token == _NEGATE:
            stack.append((-right_num, right_den))
            continue
        left_num, left_den = stack.pop()
        if token == "+":
            stack.append((left_num * right_den + right_num * left_den, left_den * right_den))
        elif token == "-":
            stack.append((left_num * right_den - right_num * left_den, left_den * right_den))
        elif token == "*":
            stack.append((left_num * right_num, left_den * right_den))
        elif right_num == 0:
            raise _RejectedError(Reason.DIVISION_BY_ZERO)
        else:
            stack.append((left_num * right_den, left_den * right_num))
    ((numerator, denominator),) = stack
    return Fraction(numerator, denominator)


def check_equation(equation: str, nums: Sequence[int], target: int) -> Verdict:
    """Decides whether `equation` solves the puzzle, exactly and in bounded time.

    Work is bounded by MAX_EQUATION_CHARS whatever the input: the numbers are compared before anything is evaluated,
    so only `len(nums)` operands are ever computed with. Nothing is passed to Python's own parser or to floats.

    Args:
        equation: any string at all; usually what stood between `<answer>` and `</answer>`.
        nums: the given numbers; each must be used exactly once.
        target: the value to reach.

    Returns:
        A verdict; `NO_ANSWER` for a blank string. Never raises, whatever the string holds.

    Examples:
        >>> check_equation("2 ** 6", nums=[2, 6], target=64).reason.value
        'malformed'
        >>> check_equation("80 + (70 / 14)", nums=[14, 70, 80], target=85).value
        Fraction(85, 1)
    """
    if len(equation) > MAX_EQUATION_CHARS:
        return Verdict(Reason.TOO_LONG)
    try:
        tokens = _tokenize(equation)
        if not tokens:
            return Verdict(Reason.NO_ANSWER)
        postfix = _to_postfix(tokens)
        if sorted(token for token in tokens if isinstance(token, int)) != sorted(nums):
            return Verdict(Reason.WRONG_NUMBERS)
        value = _evaluate(postfix)
    except _RejectedError as rejected:
        return Verdict(rejected.reason)
    return Verdict(Reason.CORRECT if value == target else Reason.WRONG_VALUE, value)


# --------------------------------------------------------------------------------------------------------------------
# Solver
# --------------------------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------------------------
# Canonical split
# --------------------------------------------------------------------------------------------------------------------


def puzzle_key(nums: Iterable[int], target: int) -> str:
    """The identity of a puzzle: sorted numbers and target, so that permutations are the same puzzle.

    >>> puzzle_key([44, 19, 35], 98)
    '19,35,44=98'
    """
    return f"{','.join(str(n) for n in sorted(nums))}={target}"


def held_out_share(total_puzzles: int, held_out_puzzles: int = DEFAULT_HELD_OUT_PUZZLES) -> float:
    """The share of the key space that puts about `held_out_puzzles` of `total_puzzles` aside, at most 10 %."""
    if total_puzzles <= 0:
        raise ValueError(f"total_puzzles must be positive, got {total_puzzles}")
    if held_out_puzzles < 0:
        raise ValueError(f"held_out_puzzles must not be negative, got {held_out_puzzles}")
    return min(held_out_puzzles / total_puzzles, MAX_HELD_OUT_SHARE)


def is_held_out(nums: Iterable[int], target: int, share: float) -> bool:
    """Which side of the canonical split a puzzle is on: a pure function of its key.

    No seed, order, rank or data set enters, so the answer is the same on every machine and after every resume, and a
    puzzle held out at one share is held out at every larger one.

    Args:
        nums, target: the puzzle.
        share: the part of all puzzles to hold out, 0 to MAX_HELD_OUT_SHARE.

    Raises:
        ValueError: when `share` is outside that range.
    """
    if not 0 <= share <= MAX_HELD_OUT_SHARE:
        raise ValueError(f"the held-out share must lie in 0..{MAX_HELD_OUT_SHARE}, got {share}")
    digest = hashlib.blake2b(puzzle_key(nums, target).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# --------------------------------------------------------------------------------------------------------------------
# Generator
# --------------------------------------------------------------------------------------------------------------------


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
