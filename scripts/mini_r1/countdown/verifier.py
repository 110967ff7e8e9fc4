"""The exact verifier: decides in bounded time whether an equation solves a puzzle, and says why in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from fractions import Fraction
from operator import add, mul, sub
from typing import Any

from mini_r1.common import printable
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.task import Verdict

# An equation over six two-digit numbers needs about 40 characters; anything near these limits is not an answer.
MAX_EQUATION_CHARS = 256
MAX_NESTING = 32


class Reason(StrEnum):
    """Why an answer was accepted or not: the one vocabulary of rewards, sample logs, evaluation and reports.

    `mini_r1.responses` gives the first two, which concern the whole response; `check_equation` gives the others.
    """

    NO_ANSWER = "no_answer"  # nothing between <answer> and </answer>, or no such pair
    SEVERAL_ANSWERS = "several_answers"  # more than one answer was offered
    TOO_LONG = "too_long"  # more than MAX_EQUATION_CHARS characters or MAX_NESTING nested parentheses
    NOTATION = "notation"  # a solution in other signs, or with something around it: `6 × 7`, `6 * 7 = 42`; not paid
    ILLEGAL_CHARACTER = "illegal_character"  # something other than ASCII digits, + - * / ( ) and white space
    MALFORMED = "malformed"  # legal characters that do not form an equation: `2 ** 6`, `7 // 2`, `2 (3)`, `07`
    WRONG_NUMBERS = "wrong_numbers"  # a number missing, used twice, or not among the given ones
    DIVISION_BY_ZERO = "division_by_zero"
    WRONG_VALUE = "wrong_value"  # a well-formed equation over the right numbers with another value
    CORRECT = "correct"


_NEGATE = "~"  # unary minus on the operator stack and in postfix; cannot occur in the input alphabet
# How tightly an operator binds; a parenthesis holds back whatever stands before it until it is closed.
_PRECEDENCE = {"(": 0, ")": 1, "+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}
# On int and Fraction alike; only a division leaves the integers.
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": Fraction}


# What models write for the game's signs, and around an equation.
_SIGNS = str.maketrans("×xX·⋅∗÷:∕−–[]{}", "******///--()()")
_HABITS = (
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\times|\\cdot", "*"),
    (r"\\div", "/"),
    (r"```\w*|[`$]|\\[][()]|\\left|\\right|\\boxed|\.\s*$", " "),
    (r"(^|[-+*/(])\s*\+", r"\1"),  # unary plus
)


class _RejectedError(Exception):
    """Carries a Reason out of the parser; never leaves `check_equation`."""


def _tokenize(text: str) -> list[int | str]:
    """Splits an equation into ints and one-character symbols.

    Raises:
        _RejectedError: on a character outside the alphabet or a number with leading zeros.
    """
    tokens: list[int | str] = []
    for word in re.findall(r"[0-9]+|\S", text):
        if word in "+-*/()":
            tokens.append(word)
        elif not "0" <= word[0] <= "9":
            raise _RejectedError(Reason.ILLEGAL_CHARACTER)
        elif word[0] == "0" and len(word) > 1:
            raise _RejectedError(Reason.MALFORMED)
        else:
            tokens.append(int(word))
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
        else:
            while operators and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[token]:
                output.append(operators.pop())
            if token != ")":
                operators.append(token)
                operand_expected = True
            elif operators:
                operators.pop()
                depth -= 1
            else:
                raise _RejectedError(Reason.MALFORMED)
    if operand_expected or depth:
        raise _RejectedError(Reason.MALFORMED)
    output.extend(reversed(operators))
    return output


def _evaluate(postfix: list[int | str]) -> Fraction:
    """Exact value of a postfix equation. Raises ZeroDivisionError."""
    stack: list[int | Fraction] = []
    for token in postfix:
        if isinstance(token, int):
            stack.append(token)
            continue
        right = stack.pop()
        stack.append(-right if token == _NEGATE else _OPERATIONS[token](stack.pop(), right))
    (value,) = stack
    return Fraction(value)


def _check(equation: str, nums: Sequence[int], target: int) -> Verdict:
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
        return Verdict(*rejected.args)
    except ZeroDivisionError:
        return Verdict(Reason.DIVISION_BY_ZERO)
    return Verdict(Reason.CORRECT if value == target else Reason.WRONG_VALUE, value)


def _as_asked(equation: str, target: int) -> str:
    """The equation in the game's own signs, without `= target` and what else models like to write around it."""
    for habit, sign in _HABITS:
        equation = re.sub(habit, sign, equation)
    equation = equation.translate(_SIGNS)
    return re.sub(rf"^\s*{target}\s*=|=\s*{target}\s*$", "", equation, count=1)


def check_equation(equation: str, nums: Sequence[int], target: int) -> Verdict:
    """Decides whether `equation` solves the puzzle, exactly and in bounded time.

    Work is bounded by MAX_EQUATION_CHARS whatever the input: the numbers are compared before anything is evaluated,
    so only `len(nums)` operands are ever computed with. Nothing is passed to Python's own parser or to floats.

    Args:
        equation: any string; usually the text between `<answer>` and `</answer>`.
        nums: the given numbers; each must be used exactly once.
        target: the value to reach.

    Returns:
        A verdict; `NO_ANSWER` for a blank string. Never raises, whatever the string holds.

    Examples:
        >>> check_equation("2 ** 6", nums=[2, 6], target=64).reason.value
        'malformed'
        >>> check_equation("44 + 19 + 35 = 98", nums=[44, 19, 35], target=98).reason.value
        'notation'
        >>> check_equation("80 + (70 / 14)", nums=[14, 70, 80], target=85).value
        Fraction(85, 1)
    """
    verdict = _check(equation, nums, target)
    unread = verdict.reason in (Reason.ILLEGAL_CHARACTER, Reason.MALFORMED)
    if unread and _check(_as_asked(equation, target), nums, target).correct:
        return Verdict(Reason.NOTATION)
    return verdict


_IN_WORDS = {
    Reason.CORRECT: "correct: {answer} = {target}",
    Reason.WRONG_VALUE: "wrong value: {answer} = {value}, not {target}",
    Reason.WRONG_NUMBERS: "uses the wrong numbers: {answer} ({faults})",
    Reason.DIVISION_BY_ZERO: "divides by zero: {answer}",
    Reason.NO_ANSWER: "no answer: nothing stands between <answer> and </answer>",
    Reason.SEVERAL_ANSWERS: "several answers: only one may be offered",
    Reason.TOO_LONG: f"too long: over {MAX_EQUATION_CHARS} characters or {MAX_NESTING} nested parentheses: {{answer}}",
    Reason.NOTATION: "notation: a solution, but only the equation itself counts, in + - * / and parentheses: {answer}",
    Reason.ILLEGAL_CHARACTER: "illegal character: only numbers, + - * / and parentheses make an equation, not {answer}",
    Reason.MALFORMED: "malformed: {answer} is not an equation",
}


def explain(verdict: Verdict, answer: str, puzzle: Puzzle) -> str:
    """A verdict in words, one line that is safe to print.

    Args:
        verdict: what `check_equation` or `responses.judge` said.
        answer: what stood between `<answer>` and `</answer>`; "" when there was none, or more than one.
        puzzle: the puzzle that was answered.

    >>> explain(check_equation("44 + 19", [44, 19, 35], 98), "44 + 19", Puzzle((44, 19, 35), 98))
    'uses the wrong numbers: 44 + 19 (35 is left out)'
    """
    equation = " ".join(answer.split())
    shown = printable(equation if len(equation) <= 80 else equation[:80] + "…")
    # Only answers of a bounded length are taken apart.
    faults = _wrong_numbers(equation, puzzle.nums) if verdict.reason == Reason.WRONG_NUMBERS else ""
    sentence = _IN_WORDS[Reason(verdict.reason)]
    return sentence.format(answer=shown, target=puzzle.target, value=verdict.value, faults=faults)


def _wrong_numbers(equation: str, nums: Sequence[int]) -> str:
    used, given = Counter(map(int, re.findall("[0-9]+", equation))), Counter(nums)
    faults = [f"{number} is left out" for number in given - used]
    faults += [f"{number} is {'used too often' if number in given else 'not given'}" for number in used - given]
    return ", ".join(faults)
