"""The exact verifier: what it accepts, what it refuses and for which reason. See also test_properties.py."""

import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.verifier import MAX_EQUATION_CHARS, Reason, check_equation, explain
from mini_r1.task import Verdict

PUZZLE = Puzzle((44, 19, 35), 98)

# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "nums", "target"),
    [
        pytest.param("42", [42], 42, id="a single number"),
        pytest.param("44 + 19 + 35", [19, 35, 44], 98, id="addition, numbers in another order than given"),
        pytest.param("50-8", [50, 8], 42, id="subtraction without spaces"),
        pytest.param("6 * 7", [6, 7], 42, id="multiplication"),
        pytest.param("84 / 2", [84, 2], 42, id="division"),
        pytest.param("5 * 5", [5, 5], 25, id="a number given twice is used twice"),
        pytest.param("0 * 5 + 7", [0, 5, 7], 7, id="a lone zero has no leading zero"),
        pytest.param("10 - 4 - 3", [3, 4, 10], 3, id="subtraction groups from the left"),
        pytest.param("24 / 4 / 2", [2, 4, 24], 3, id="division groups from the left"),
        pytest.param("24 / 4 * 2", [2, 4, 24], 12, id="division and multiplication rank the same"),
        pytest.param("10 - 4 + 3", [3, 4, 10], 9, id="subtraction and addition rank the same"),
        pytest.param("2 + 3 * 4", [2, 3, 4], 14, id="multiplication before addition"),
        pytest.param("20 - 8 / 4", [4, 8, 20], 18, id="division before subtraction"),
        pytest.param("(2 + 3) * 4", [2, 3, 4], 20, id="parentheses first"),
        pytest.param("20 - (8 - 4)", [4, 8, 20], 16, id="parentheses right of a minus"),
        pytest.param("((8)) * (((3)))", [3, 8], 24, id="redundant nested parentheses"),
        pytest.param("((1 + 2) * (3 + 4)) + 5", [1, 2, 3, 4, 5], 26, id="nested parentheses"),
        pytest.param("-3 + 45", [3, 45], 42, id="unary minus at the start"),
        pytest.param("-(3 - 45)", [3, 45], 42, id="unary minus before parentheses"),
        pytest.param("(-3) + 45", [3, 45], 42, id="unary minus in parentheses"),
        pytest.param("45 - -3", [3, 45], 48, id="unary minus after a minus"),
        pytest.param("--5 + 3", [3, 5], 8, id="double unary minus"),
        pytest.param("2 * -3", [2, 3], -6, id="unary minus after a multiplication, negative target"),
        pytest.param("-2 * 3 + 10", [2, 3, 10], 4, id="unary minus binds tighter than multiplication"),
        pytest.param("10 - -3 * 2", [2, 3, 10], 16, id="unary minus inside a product right of a minus"),
        pytest.param("-8 / -2", [2, 8], 4, id="two negative operands divide to a positive"),
        pytest.param("6\t*\r\n7\n", [6, 7], 42, id="tabs and line breaks"),
        pytest.param("\n\n  6*7  \n", [6, 7], 42, id="white space around"),
        pytest.param("6\u00a0*\u20037", [6, 7], 42, id="typographic spaces"),
        pytest.param("7 / 2 * 4", [7, 2, 4], 14, id="a fraction in between, exact in binary"),
        pytest.param("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24, id="a fraction in between, not exact in binary"),
        pytest.param("1 / 49 * 49", [1, 49, 49], 1, id="floats would come to 0.9999999999999999"),
        pytest.param("1 / 3 + 2 / 3", [1, 2, 3, 3], 1, id="two fractions make a whole"),
        pytest.param("(7 - 7) / 5", [5, 7, 7], 0, id="zero may be divided"),
    ],
)
def test_accepts(equation, nums, target):
    verdict = check_equation(equation, nums, target)
    assert verdict.reason is Reason.CORRECT
    assert verdict.correct
    assert verdict.value == target


@pytest.mark.parametrize(
    ("equation", "nums", "target", "reason"),
    [
        # Nothing there.
        pytest.param("", [6, 7], 42, Reason.NO_ANSWER, id="empty"),
        pytest.param(" \n\t ", [6, 7], 42, Reason.NO_ANSWER, id="blank"),
        # Operators that Python knows and the game does not.
        pytest.param("2 ** 6", [2, 6], 64, Reason.MALFORMED, id="power"),
        pytest.param("2 * * 6", [2, 6], 12, Reason.MALFORMED, id="power, torn apart"),
        pytest.param("99**98**97", [97, 98, 99], 1, Reason.MALFORMED, id="a power tower that would never end"),
        pytest.param("7 // 2", [2, 7], 3, Reason.MALFORMED, id="floor division"),
        pytest.param("7//2+5", [2, 5, 7], 8, Reason.MALFORMED, id="floor division inside a sum"),
        pytest.param("7 % 4", [4, 7], 3, Reason.ILLEGAL_CHARACTER, id="percent"),
        pytest.param("6 | 1", [1, 6], 7, Reason.ILLEGAL_CHARACTER, id="bitwise or"),
        pytest.param("7 & 6", [6, 7], 6, Reason.ILLEGAL_CHARACTER, id="bitwise and"),
        pytest.param("2 ^ 6", [2, 6], 64, Reason.ILLEGAL_CHARACTER, id="caret"),
        pytest.param("1 << 6", [1, 6], 64, Reason.ILLEGAL_CHARACTER, id="shift"),
        pytest.param("~5 + 6", [5, 6], 0, Reason.ILLEGAL_CHARACTER, id="tilde, the parser's own sign for negation"),
        pytest.param("4! + 1", [1, 4], 25, Reason.ILLEGAL_CHARACTER, id="factorial"),
        pytest.param("+6 * 7", [6, 7], 42, Reason.NOTATION, id="unary plus at the start"),
        pytest.param("6 + +7", [6, 7], 13, Reason.NOTATION, id="unary plus after a plus"),
        pytest.param("6 - +7", [6, 7], -1, Reason.NOTATION, id="unary plus after a minus"),
        # Numbers written in other ways.
        pytest.param("3.5*2", [2, 35], 7, Reason.ILLEGAL_CHARACTER, id="decimal point"),
        pytest.param("10*.5", [5, 10], 5, Reason.ILLEGAL_CHARACTER, id="decimal point without a whole part"),
        pytest.param("6. * 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="decimal point without a fraction"),
        pytest.param("1,000 - 1", [1, 1000], 999, Reason.ILLEGAL_CHARACTER, id="comma between thousands"),
        pytest.param("06 * 7", [6, 7], 42, Reason.MALFORMED, id="leading zero"),
        pytest.param("6 * 007", [6, 7], 42, Reason.MALFORMED, id="two leading zeros"),
        pytest.param("00 + 7", [0, 7], 7, Reason.MALFORMED, id="zero written twice"),
        pytest.param("1_0 + 5", [5, 10], 15, Reason.ILLEGAL_CHARACTER, id="underscore in a number"),
        pytest.param("0x10 + 5", [5, 16], 21, Reason.ILLEGAL_CHARACTER, id="hexadecimal"),
        pytest.param("1e2 + 5", [5, 100], 105, Reason.ILLEGAL_CHARACTER, id="exponent"),
        pytest.param("6j * 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="imaginary"),
        pytest.param("6' * 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="quotation mark"),
        pytest.param("٦ * ٧", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="Arabic-Indic digits"),
        pytest.param("６ * ７", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="full-width digits"),
        pytest.param("6² + 7", [6, 7], 43, Reason.ILLEGAL_CHARACTER, id="superscript digit"),
        pytest.param("½ * 6", [1, 2, 6], 3, Reason.ILLEGAL_CHARACTER, id="vulgar fraction"),
        # Signs written in other ways.
        pytest.param("50 − 8", [8, 50], 42, Reason.NOTATION, id="Unicode minus"),
        pytest.param("50 – 8", [8, 50], 42, Reason.NOTATION, id="en dash"),
        pytest.param("6 × 7", [6, 7], 42, Reason.NOTATION, id="multiplication sign"),
        pytest.param("84 ÷ 2", [2, 84], 42, Reason.NOTATION, id="division sign"),
        pytest.param("6 ＊ 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="full-width asterisk"),
        pytest.param("6 \\times 7", [6, 7], 42, Reason.NOTATION, id="LaTeX"),
        pytest.param("[6 * 7]", [6, 7], 42, Reason.NOTATION, id="square brackets"),
        pytest.param("{6 * 7}", [6, 7], 42, Reason.NOTATION, id="braces"),
        pytest.param("84 : 2", [2, 84], 42, Reason.NOTATION, id="colon for division"),
        pytest.param("\\frac{84}{2}", [2, 84], 42, Reason.NOTATION, id="LaTeX fraction"),
        pytest.param("$6 \\cdot 7$", [6, 7], 42, Reason.NOTATION, id="LaTeX between dollars"),
        pytest.param("\\[ \\boxed{6 \\times 7} = 42 \\]", [6, 7], 42, Reason.NOTATION, id="LaTeX display, boxed"),
        pytest.param("```python\n6 * 7\n```", [6, 7], 42, Reason.NOTATION, id="code fence"),
        # The same around what is no solution.
        pytest.param("6 × 8", [6, 8], 42, Reason.ILLEGAL_CHARACTER, id="multiplication sign, another value"),
        pytest.param("6 * 7 = 43", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="equals sign with another result"),
        pytest.param("6 * 7 = 42", [6, 7], 43, Reason.ILLEGAL_CHARACTER, id="equals sign, true beside the target"),
        pytest.param("6 * 7 = 42 = 42", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="two equals signs"),
        pytest.param("6 * 8 = 42", [6, 8], 42, Reason.ILLEGAL_CHARACTER, id="a lie about the result"),
        pytest.param("42 = 42", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="the target and itself"),
        pytest.param("44 + 19 = 63, 63 + 35 = 98", [44, 19, 35], 98, Reason.ILLEGAL_CHARACTER, id="steps"),
        pytest.param("6 * 7.5", [6, 75], 45, Reason.ILLEGAL_CHARACTER, id="a decimal is no full stop"),
        pytest.param("+7 ** 2", [2, 7], 49, Reason.MALFORMED, id="unary plus before a power"),
        # Text.
        pytest.param("6 * 7 = 42", [6, 7], 42, Reason.NOTATION, id="equals sign with the result"),
        pytest.param("42 = 6 * 7", [6, 7], 42, Reason.NOTATION, id="equals sign with the target first"),
        pytest.param("six * 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="letters"),
        pytest.param("6 x 7", [6, 7], 42, Reason.NOTATION, id="the letter x for times"),
        pytest.param("6 * 7 # done", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="comment"),
        pytest.param("6 * 7.", [6, 7], 42, Reason.NOTATION, id="full stop"),
        pytest.param("6 * 7; 42", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="semicolon"),
        pytest.param("`6 * 7`", [6, 7], 42, Reason.NOTATION, id="backticks"),
        pytest.param("<b>6 * 7</b>", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="markup"),
        pytest.param("__import__('os').getpid()", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="code"),
        pytest.param("(lambda: 42)()", [42], 42, Reason.ILLEGAL_CHARACTER, id="code that would return the target"),
        pytest.param("6 \0* 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="NUL"),
        pytest.param("6 \u200b* 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="zero-width space"),
        pytest.param("\ufeff6 * 7", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="byte order mark"),
        pytest.param("6 * 7\ud800", [6, 7], 42, Reason.ILLEGAL_CHARACTER, id="lone surrogate"),
        # Legal characters, no equation.
        pytest.param("2(3)", [2, 3], 6, Reason.MALFORMED, id="implicit multiplication before parentheses"),
        pytest.param("(2)(3)", [2, 3], 6, Reason.MALFORMED, id="implicit multiplication between parentheses"),
        pytest.param("(2)3", [2, 3], 6, Reason.MALFORMED, id="implicit multiplication after parentheses"),
        pytest.param("2 3", [2, 3], 6, Reason.MALFORMED, id="two numbers side by side"),
        pytest.param("6 * 7\n6 * 7", [6, 7], 42, Reason.MALFORMED, id="two equations on two lines"),
        pytest.param("6 * 7 +", [6, 7], 42, Reason.MALFORMED, id="operator at the end"),
        pytest.param("* 6 * 7", [6, 7], 42, Reason.MALFORMED, id="operator at the start"),
        pytest.param("6 */ 7", [6, 7], 42, Reason.MALFORMED, id="two operators in a row"),
        pytest.param("-", [6, 7], 42, Reason.MALFORMED, id="lone minus"),
        pytest.param("6 * 7 -", [6, 7], 42, Reason.MALFORMED, id="minus at the end"),
        pytest.param("()", [6, 7], 42, Reason.MALFORMED, id="empty parentheses"),
        pytest.param("6 * 7 + ()", [6, 7], 42, Reason.MALFORMED, id="empty parentheses as an operand"),
        pytest.param("(6 * 7", [6, 7], 42, Reason.MALFORMED, id="parenthesis left open"),
        pytest.param("6 * 7)", [6, 7], 42, Reason.MALFORMED, id="parenthesis closed too often"),
        pytest.param(")6 * 7(", [6, 7], 42, Reason.MALFORMED, id="parentheses the wrong way round"),
        pytest.param("(6 *) 7", [6, 7], 42, Reason.MALFORMED, id="parenthesis closed behind an operator"),
        pytest.param("6 (* 7)", [6, 7], 42, Reason.MALFORMED, id="parenthesis opened before an operator"),
        # The wrong numbers.
        pytest.param("35 + 7", [7, 8, 35], 42, Reason.WRONG_NUMBERS, id="a number missing"),
        pytest.param("5 * 8 + 2", [2, 5, 5, 8], 42, Reason.WRONG_NUMBERS, id="a repeated number used once"),
        pytest.param("7 * 7 - 7", [7, 7], 42, Reason.WRONG_NUMBERS, id="a number used once too often"),
        pytest.param("6 * 7 + 6 - 6", [6, 7], 42, Reason.WRONG_NUMBERS, id="a number used twice"),
        pytest.param("6 * 7 * 1", [6, 7], 42, Reason.WRONG_NUMBERS, id="a number that was not given"),
        pytest.param("6 * 7 + 0", [6, 7], 42, Reason.WRONG_NUMBERS, id="a zero that was not given"),
        pytest.param("42", [6, 7], 42, Reason.WRONG_NUMBERS, id="the target alone"),
        pytest.param("67 - 25", [2, 5, 6, 7], 42, Reason.WRONG_NUMBERS, id="digits run together"),
        pytest.param("6 * 7", [], 42, Reason.WRONG_NUMBERS, id="no numbers given"),
        pytest.param("5 + 5 - 8", [5, 8, 8], 2, Reason.WRONG_NUMBERS, id="the right set, the wrong multiplicities"),
        pytest.param("6 / 0", [0, 7], 42, Reason.WRONG_NUMBERS, id="numbers are compared before anything is computed"),
        # The right numbers.
        pytest.param("6 / 0", [0, 6], 0, Reason.DIVISION_BY_ZERO, id="division by zero"),
        pytest.param("0 / 0", [0, 0], 0, Reason.DIVISION_BY_ZERO, id="zero by zero"),
        pytest.param("6 / (7 - 7)", [6, 7, 7], 6, Reason.DIVISION_BY_ZERO, id="division by a difference of zero"),
        pytest.param("6 / -(7 - 7)", [6, 7, 7], 6, Reason.DIVISION_BY_ZERO, id="division by a negated zero"),
        pytest.param("0 * (6 / (7 - 7))", [0, 6, 7, 7], 0, Reason.DIVISION_BY_ZERO, id="division by zero times zero"),
        pytest.param("6 / (1 / 3 - 2 / 6)", [1, 2, 3, 6, 6], 6, Reason.DIVISION_BY_ZERO, id="fractions that cancel"),
        pytest.param("6 + 7", [6, 7], 42, Reason.WRONG_VALUE, id="wrong value"),
        pytest.param("6 - 7", [6, 7], 1, Reason.WRONG_VALUE, id="wrong sign"),
        pytest.param("7 / 2", [2, 7], 3, Reason.WRONG_VALUE, id="would be right when rounded down"),
        pytest.param("98 * 99 / 97", [97, 98, 99], 100, Reason.WRONG_VALUE, id="would be right when rounded"),
        pytest.param("100 - 1 / 99", [1, 99, 100], 100, Reason.WRONG_VALUE, id="off by a hundredth"),
        pytest.param(
            "5 + 1 / 99999999999999999", [1, 5, 99999999999999999], 5, Reason.WRONG_VALUE, id="equal as floats"
        ),
    ],
)
def test_refuses(equation, nums, target, reason):
    verdict = check_equation(equation, nums, target)
    assert verdict.reason is reason
    assert not verdict.correct
    # Only a well-formed equation over the right numbers has a value.
    assert (verdict.value is not None) == (reason is Reason.WRONG_VALUE)


def test_value_of_a_wrong_answer_is_exact():
    assert check_equation("7 / 2 + 1 / 3", [1, 2, 3, 7], 4).value == Fraction(23, 6)


@pytest.mark.parametrize(
    ("equation", "nums", "target", "reason"),
    [
        # At the limits.
        pytest.param("6*7".ljust(MAX_EQUATION_CHARS), [6, 7], 42, Reason.CORRECT, id="longest text allowed"),
        pytest.param("6*7".ljust(MAX_EQUATION_CHARS + 1), [6, 7], 42, Reason.TOO_LONG, id="one character too long"),
        pytest.param("(" * 32 + "6*7" + ")" * 32, [6, 7], 42, Reason.CORRECT, id="deepest nesting allowed"),
        pytest.param("(" * 33 + "6*7" + ")" * 33, [6, 7], 42, Reason.TOO_LONG, id="one parenthesis too deep"),
        pytest.param("(6*7)" + "-(6)" * 33, [6, 7], 42, Reason.WRONG_NUMBERS, id="many parentheses, none nested"),
        pytest.param(
            "(" * 6 + "999" + ") * (999)" * 5 + ")", [999] * 6, 999**6, Reason.CORRECT, id="more than any answer needs"
        ),
        # Far beyond them.
        pytest.param("1" * 1_000_000, [6, 7], 42, Reason.TOO_LONG, id="a million digits"),
        pytest.param("(" * 1_000_000, [6, 7], 42, Reason.TOO_LONG, id="a million open parentheses"),
        pytest.param(" " * 1_000_000, [6, 7], 42, Reason.TOO_LONG, id="a million spaces"),
        pytest.param("9**" * 1_000_000, [6, 7], 42, Reason.TOO_LONG, id="a million powers"),
        # The most work that MAX_EQUATION_CHARS characters can make.
        pytest.param("9" * 256, [6, 7], 42, Reason.WRONG_NUMBERS, id="256 digits"),
        pytest.param("9" * 256, [int("9" * 256)], 42, Reason.WRONG_VALUE, id="256 digits, given"),
        pytest.param("(" * 256, [6, 7], 42, Reason.TOO_LONG, id="256 open parentheses"),
        pytest.param(")" * 256, [6, 7], 42, Reason.MALFORMED, id="256 closing parentheses"),
        pytest.param("()" * 128, [6, 7], 42, Reason.MALFORMED, id="128 empty parentheses"),
        pytest.param("*" * 256, [6, 7], 42, Reason.MALFORMED, id="256 asterisks"),
        pytest.param("-" * 256, [6, 7], 42, Reason.MALFORMED, id="256 minus signs"),
        pytest.param("-" * 255 + "5", [5], -5, Reason.CORRECT, id="255 negations"),
        pytest.param(" " * 256, [6, 7], 42, Reason.NO_ANSWER, id="256 spaces"),
        pytest.param("9*" * 127 + "99", [9, 99], 42, Reason.WRONG_NUMBERS, id="127 multiplications"),
        pytest.param("9*" * 127 + "99", [9] * 127 + [99], 42, Reason.WRONG_VALUE, id="127 multiplications, given"),
        pytest.param("1/" * 127 + "1", [1] * 128, 1, Reason.CORRECT, id="127 divisions, given"),
        pytest.param("1-(" * 32 + "1" + ")" * 32, [1] * 33, 1, Reason.CORRECT, id="32 nested differences"),
        pytest.param("-(" * 32 + "5" + ")" * 32, [5], 5, Reason.CORRECT, id="32 nested negations"),
        pytest.param("99**98**" * 32, [98, 99], 42, Reason.MALFORMED, id="64 powers"),
    ],
)
def test_work_is_bounded(equation, nums, target, reason):
    assert check_equation(equation, nums, target).reason is reason


# --------------------------------------------------------------------------------------------------------------------
# Properties
# --------------------------------------------------------------------------------------------------------------------

SPACES = st.sampled_from(["", "", " ", "\n", "\t"])
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
ATOM = 3

numbers = st.lists(st.integers(0, 99), min_size=1, max_size=6)
two_or_more = st.lists(st.integers(0, 99), min_size=2, max_size=6)


def _grow(draw: st.DrawFn, nums: list[int]) -> tuple[list[str], Fraction, int]:
    """A random equation over all of `nums`: its tokens, its value, and how tightly its outermost part binds."""
    if len(nums) == 1:
        tokens, value, rank = [str(nums[0])], Fraction(nums[0]), ATOM
    else:
        cut = draw(st.integers(1, len(nums) - 1))
        left, left_value, left_rank = _grow(draw, nums[:cut])
        right, right_value, right_rank = _grow(draw, nums[cut:])
        symbol = draw(st.sampled_from("+-*/" if right_value else "+-*"))
        rank = RANK[symbol]
        if left_rank < rank:
            left = ["(", *left, ")"]
        if right_rank < rank or (right_rank == rank and symbol in "-/"):
            right = ["(", *right, ")"]
        tokens, value = [*left, symbol, *right], OPERATIONS[symbol](left_value, right_value)
    if draw(st.integers(0, 5)) == 0:
        tokens, value, rank = ["-", *(tokens if rank == ATOM else ["(", *tokens, ")"])], -value, ATOM
    if draw(st.integers(0, 3)) == 0:
        tokens, rank = ["(", *tokens, ")"], ATOM
    return tokens, value, rank


@st.composite
def equations(draw: st.DrawFn, nums: st.SearchStrategy[list[int]] = numbers) -> tuple[list[str], list[int], Fraction]:
    """(tokens, the numbers in a shuffled order, the value) of a legal equation."""
    chosen = draw(nums)
    tokens, value, _ = _grow(draw, chosen)
    return tokens, draw(st.permutations(chosen)), value


@st.composite
def spaced_equations(draw: st.DrawFn, nums: st.SearchStrategy[list[int]] = numbers) -> tuple[str, list[int], Fraction]:
    """The same with the tokens written down, white space thrown in at random."""
    tokens, chosen, value = draw(equations(nums))
    return "".join(token + draw(SPACES) for token in tokens), chosen, value


@settings(max_examples=200, deadline=None)
@given(spaced_equations())
def test_every_legal_equation_is_accepted_with_its_exact_value(equation):
    text, nums, value = equation
    verdict = check_equation(text, nums, int(value))
    assert verdict.value == value
    assert verdict.reason is (Reason.CORRECT if value.denominator == 1 else Reason.WRONG_VALUE)


@settings(max_examples=60, deadline=None)
@given(equations(), st.integers(0, 120), st.data())
def test_other_numbers_and_other_targets_are_refused(equation, extra, data):
    tokens, nums, value = equation
    text, target = " ".join(tokens), int(value)
    assert check_equation(text, nums, target + extra + 1).reason is Reason.WRONG_VALUE
    for other in (extra, data.draw(st.sampled_from(nums))):
        assert check_equation(text, [*nums, other], target).reason is Reason.WRONG_NUMBERS
        assert check_equation(f"{text} + {other}", nums, target + other).reason is Reason.WRONG_NUMBERS
    place = data.draw(st.sampled_from([i for i, token in enumerate(tokens) if token.isdigit()]))
    changed = " ".join([*tokens[:place], str(int(tokens[place]) + extra + 1), *tokens[place + 1 :]])
    assert check_equation(changed, nums, target).reason is Reason.WRONG_NUMBERS


@settings(max_examples=150, deadline=None)
@given(spaced_equations(), st.characters(categories=("L", "M", "N", "P", "S", "C")), st.data())
def test_an_illegal_character_anywhere_is_refused(equation, char, data):
    text, nums, value = equation
    place = data.draw(st.integers(0, len(text)))
    legal = char in "0123456789+-*/()" or char.isspace()
    verdict = check_equation(text[:place] + char + text[place:], nums, int(value))
    if legal:  # a plus before a number is another notation, too
        assert verdict.reason is not Reason.ILLEGAL_CHARACTER
    else:
        assert verdict.reason in (Reason.ILLEGAL_CHARACTER, Reason.NOTATION)


@settings(max_examples=100, deadline=None)
@given(spaced_equations(), st.sampled_from(["{} = {}", "{1} = {0}", "$ {} = {} $", "```\n{}\n```", "[{}]."]), st.data())
def test_a_solution_in_another_notation_is_told_apart_and_a_wrong_answer_is_not(equation, form, data):
    text, nums, value = equation
    signs = {"*": ["×", "x", "\\times "], "/": ["÷", ":"], "-": ["−"]}
    text = "".join(data.draw(st.sampled_from(signs[sign])) if sign in signs else sign for sign in text)
    solved = value.denominator == 1
    verdict = check_equation(form.format(text, int(value)), nums, int(value))
    assert verdict.reason is (Reason.NOTATION if solved else Reason.ILLEGAL_CHARACTER)
    assert not verdict.correct
    wrong = check_equation(form.format(text, int(value)), nums, int(value) + 1)
    assert wrong.reason is Reason.ILLEGAL_CHARACTER


@settings(max_examples=100, deadline=None)
@given(spaced_equations(), st.sampled_from(["**", "//"]), st.data())
def test_a_doubled_operator_anywhere_is_refused(equation, doubled, data):
    text, nums, value = equation
    place = data.draw(st.integers(0, len(text)))
    assert check_equation(text[:place] + doubled + text[place:], nums, int(value)).reason is Reason.MALFORMED


@settings(max_examples=60, deadline=None)
@given(equations(two_or_more), st.sampled_from(["**", "//", "+*", "* /", "(", ")"]), st.data())
def test_an_operator_replaced_by_something_else_is_refused(equation, wrong, data):
    tokens, nums, value = equation
    binary = [i for i in range(1, len(tokens)) if tokens[i] in RANK and tokens[i - 1] not in ("(", *RANK)]
    place = data.draw(st.sampled_from(binary))
    text = " ".join([*tokens[:place], wrong, *tokens[place + 1 :]])
    assert check_equation(text, nums, int(value)).reason is Reason.MALFORMED


# --------------------------------------------------------------------------------------------------------------------
# Verdicts in words
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "puzzle", "sentence"),
    [
        pytest.param(" (44 + 19)\n+ 35 ", PUZZLE, "correct: (44 + 19) + 35 = 98", id="white space is evened out"),
        pytest.param("44-19-35", PUZZLE, "wrong value: 44-19-35 = -10, not 98", id="another value"),
        pytest.param("7/2", Puzzle((7, 2), 3), "wrong value: 7/2 = 7/2, not 3", id="a fraction is shown as one"),
        pytest.param(
            "44+44+10",
            PUZZLE,
            "uses the wrong numbers: 44+44+10 (19 is left out, 35 is left out, 44 is used too often, 10 is not given)",
            id="every wrong number is named",
        ),
        pytest.param("7/(5-5)", Puzzle((5, 5, 7), 7), "divides by zero: 7/(5-5)", id="division by zero"),
        pytest.param(" ", PUZZLE, "no answer: nothing stands between <answer> and </answer>", id="blank"),
        pytest.param(
            "1" * 257, PUZZLE, f"too long: over 256 characters or 32 nested parentheses: {'1' * 80}…", id="cut at 80"
        ),
        pytest.param(
            "44+x\x1b[31m",
            PUZZLE,
            "illegal character: only numbers, + - * / and parentheses make an equation, not 44+x\\x1b[31m",
            id="escapes drive no terminal",
        ),
        pytest.param(
            "44 + 19 + 35 = 98",
            PUZZLE,
            "notation: a solution, but only the equation itself counts, in + - * / and parentheses: 44 + 19 + 35 = 98",
            id="notation",
        ),
        pytest.param("44 // 2", PUZZLE, "malformed: 44 // 2 is not an equation", id="malformed"),
    ],
)
def test_explain(answer, puzzle, sentence):
    assert explain(check_equation(answer, *puzzle), answer, puzzle) == sentence


def test_every_reason_has_a_sentence_of_its_own():
    assert len({explain(Verdict(reason), "", PUZZLE) for reason in Reason}) == len(Reason)
    several = explain(Verdict(Reason.SEVERAL_ANSWERS), "", PUZZLE)
    assert several == "several answers: only one may be offered"
