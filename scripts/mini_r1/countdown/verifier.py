"""The exact verifier: decides in bounded time whether an equation solves a puzzle. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

# An equation over six two-digit numbers needs about 40 characters; anything near these limits is not an answer.
MAX_EQUATION_CHARS = 256
MAX_NESTING = 32


class Reason(StrEnum):
    """Why an answer was accepted or not: the one vocabulary of rewards, sample logs, evaluation and reports.

    The first two are given by `mini_r1.responses` (they concern the completion), the others by `check_equation`.
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
