"""The solver and the strata, against brute force."""

import math
from fractions import Fraction
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.solver import is_solvable, reachable_by_sums, solve, stratum
from mini_r1.countdown.verifier import check_equation


def brute_force(nums):
    """Every value of every equation over all of `nums`: all trees over all parted sets, both orders, all signs."""

    @cache
    def values(indices):
        if len(indices) == 1:
            return frozenset({Fraction(nums[indices[0]]), Fraction(-nums[indices[0]])})
        found = set()
        for size in range(1, len(indices)):
            for left in combinations(indices, size):
                right = tuple(i for i in indices if i not in left)
                for a, b in product(values(left), values(right)):
                    found |= {a + b, a - b, a * b}
                    if b:
                        found.add(a / b)
        return frozenset(found)

    return values(tuple(range(len(nums))))


few_numbers = st.lists(st.integers(0, 30), min_size=1, max_size=3)
four_numbers = st.lists(st.integers(0, 99), min_size=4, max_size=4)


def compare(nums, targets):
    reachable = brute_force(nums)
    for target in targets:
        answer = solve(nums, target)
        assert (answer is not None) == (target in reachable) == is_solvable(nums, target), target
        if answer is not None:
            assert check_equation(answer, nums, target).correct, answer


@settings(max_examples=40, deadline=None)
@given(few_numbers, st.integers(-100, 100))
def test_solve_agrees_with_brute_force_on_up_to_three_numbers(nums, offset):
    compare(nums, [*range(-5, 25), sum(nums) + offset, math.prod(nums) + offset])


@settings(max_examples=15, deadline=None)
@given(four_numbers, st.integers(-100, 1000))
def test_solve_agrees_with_brute_force_on_four_numbers(nums, start):
    compare(nums, range(start, start + 40))


@pytest.mark.parametrize(
    "nums",
    [
        pytest.param([1, 1, 2, 3, 5], id="small numbers"),
        pytest.param([2, 2, 7, 7, 9], id="two pairs"),
        pytest.param([0, 0, 1, 4, 6], id="zeros"),
        pytest.param([8, 8, 8, 8, 8], id="all the same"),
    ],
)
def test_solve_agrees_with_brute_force_on_five_numbers(nums):
    compare(nums, range(-10, 190))


@pytest.mark.parametrize(
    ("nums", "target"),
    [
        pytest.param([1, 1, 1], 7, id="too small"),
        pytest.param([2, 4, 6, 8], 1000, id="too large"),
        pytest.param([99], 98, id="the only number is another"),
        pytest.param([2, 4], 3, id="would be right when rounded"),
        pytest.param([1, 1, 1, 1, 1], 100, id="five ones"),
        pytest.param([1, 1, 1, 1, 1, 1], 100, id="six ones"),
    ],
)
def test_unsolvable_puzzles_have_no_answer(nums, target):
    assert solve(nums, target) is None
    assert not is_solvable(nums, target)


@pytest.mark.parametrize(
    ("nums", "target"),
    [
        pytest.param([8, 3, 8, 3], 24, id="only through a fraction"),
        pytest.param([7, 2, 4], 14, id="a fraction or a product"),
        pytest.param([3, 45], -42, id="negative target"),
        pytest.param([5], -5, id="negative of a single number"),
        pytest.param([7, 7, 3], 0, id="zero"),
        pytest.param([25, 50, 75, 100, 3, 6], 952, id="the television puzzle"),
        pytest.param(np.array([44, 19, 35]), np.int64(98), id="numpy integers"),
    ],
)
def test_solve_finds_an_answer(nums, target):
    assert check_equation(solve(nums, target), nums, target).correct


def test_solve_answers_six_numbers():
    for nums, target in generate_puzzles(20, seed=7, number_counts=(6,), target_range=(100, 999)):
        assert check_equation(solve(nums, target), nums, target).correct


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=5), st.integers(-150, 150))
def test_reachable_by_sums_tries_every_sign(nums, target):
    signed = {
        sum(sign * n for sign, n in zip(signs, nums, strict=True)) for signs in product((1, -1), repeat=len(nums))
    }
    assert reachable_by_sums(nums, target) == (target in signed)
    assert all(reachable_by_sums(nums, total) for total in signed)


@pytest.mark.parametrize(
    ("nums", "target", "name"),
    [
        pytest.param([5], 5, "1 numbers, + -", id="the number itself"),
        pytest.param([3, 4], -1, "2 numbers, + -", id="a difference, negative target"),
        pytest.param([3, 4], 12, "2 numbers, needs * /", id="a product"),
        pytest.param([2, 4], 2, "2 numbers, + -", id="4-2, although 4/2 does it too"),
        pytest.param([50, 60, 70], 40, "3 numbers, + -", id="a sum and a difference"),
        pytest.param([3, 3, 8, 8], 24, "4 numbers, needs * /", id="8/(3-8/3), only through a fraction"),
        pytest.param([1, 1, 1], 7, "3 numbers, unsolvable", id="nothing"),
    ],
)
def test_strata(nums, target, name):
    assert stratum(nums, target) == name


@pytest.mark.parametrize("function", [solve, is_solvable, stratum])
@pytest.mark.parametrize(
    ("nums", "target", "message"),
    [
        pytest.param([], 7, r"takes 1 to 6 numbers .*, got \[\]", id="none"),
        pytest.param([1] * 7, 7, "takes 1 to 6 numbers", id="seven"),
        pytest.param([3, -4], 7, r"not negative, got \[3, -4\]", id="negative"),
        pytest.param([3, 4.0], 7, "as an integer", id="float"),
        pytest.param([3, "4"], 7, "as an integer", id="string"),
        pytest.param([3, 4], math.inf, "as an integer", id="a target that is none"),
    ],
)
def test_solver_refuses_what_is_no_puzzle(function, nums, target, message):
    with pytest.raises((ValueError, TypeError), match=message):
        function(nums, target)
