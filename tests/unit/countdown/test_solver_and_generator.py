"""Solver, generator, canonical split, search traces and intervals, each against something independent of it."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.countdown.generator import generate_puzzles, write_puzzles
from mini_r1.countdown.puzzle import (
    DEFAULT_HELD_OUT_PUZZLES,
    MAX_HELD_OUT_SHARE,
    Puzzle,
    held_out_share,
    is_held_out,
    puzzle_key,
)
from mini_r1.countdown.solver import Difficulty, difficulty, is_solvable, reachable_by_sums, reachable_values, solve
from mini_r1.countdown.traces import FOUND, GIVE_UP, MAX_VALUE, TOO_HIGH, TOO_LOW, all_attempts, write_trace
from mini_r1.countdown.verifier import Reason, check_equation
from mini_r1.intervals import Z95, wilson_interval
from mini_r1.responses import has_format, judge, response

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"

# --------------------------------------------------------------------------------------------------------------------
# Solver
# --------------------------------------------------------------------------------------------------------------------


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


def count_trees(nums):
    """How many expression trees over non-negative values reach each value; operand order is not counted."""
    if len(nums) == 1:
        return Counter({Fraction(nums[0]): 1})
    first, others = nums[0], range(1, len(nums))
    found = Counter()
    for size in range(len(nums) - 1):
        for joined in combinations(others, size):
            left = count_trees([first, *(nums[i] for i in joined)])
            right = count_trees([nums[i] for i in others if i not in joined])
            for (a, left_ways), (b, right_ways) in product(left.items(), right.items()):
                values = [a + b, abs(a - b), a * b] + ([a / b] if b else []) + ([b / a] if a else [])
                found.update({value: values.count(value) * left_ways * right_ways for value in values})
    return found


few_numbers = st.lists(st.integers(0, 30), min_size=1, max_size=3)
four_numbers = st.lists(st.integers(0, 99), min_size=4, max_size=4)


def _compare_tables(nums):
    table = reachable_values(nums)
    assert set(table) == {value for value in brute_force(nums) if value >= 0}
    assert {value: solution.ways for value, solution in table.items()} == count_trees(nums)
    for value, solution in table.items():
        assert check_equation(solution.expression, nums, value).correct, solution.expression


@settings(max_examples=60, deadline=None)
@given(few_numbers)
def test_reachable_values_of_up_to_three_numbers_equal_brute_force(nums):
    _compare_tables(nums)


@settings(max_examples=12, deadline=None)
@given(four_numbers)
def test_reachable_values_of_four_numbers_equal_brute_force(nums):
    _compare_tables(nums)


def _compare_answers(nums, targets):
    reachable = brute_force(nums)
    for target in targets:
        answer = solve(nums, target)
        assert (answer is not None) == (target in reachable) == is_solvable(nums, target), target
        if answer is not None:
            assert check_equation(answer, nums, target).correct, answer


@settings(max_examples=40, deadline=None)
@given(few_numbers, st.integers(-100, 100))
def test_solve_agrees_with_brute_force_on_up_to_three_numbers(nums, offset):
    _compare_answers(nums, [*range(-5, 25), sum(nums) + offset, math.prod(nums) + offset])


@settings(max_examples=15, deadline=None)
@given(four_numbers, st.integers(-100, 1000))
def test_solve_agrees_with_brute_force_on_four_numbers(nums, start):
    _compare_answers(nums, range(start, start + 40))


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
    _compare_answers(nums, range(-10, 190))


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
    puzzles = generate_puzzles(20, seed=7, number_counts=(6,), target_range=(100, 999))
    for nums, target in puzzles:
        assert len(nums) == 6
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
    ("nums", "target", "needs_mul_div", "solutions", "stratum"),
    [
        pytest.param([5], 5, False, 1, "1 numbers, + -", id="the number itself"),
        pytest.param([3, 4], 7, False, 1, "2 numbers, + -", id="one sum"),
        pytest.param([3, 4], -1, False, 1, "2 numbers, + -", id="one difference, negative target"),
        pytest.param([3, 4], 12, True, 1, "2 numbers, needs * /", id="one product"),
        pytest.param([2, 4], 2, False, 2, "2 numbers, + -", id="4-2 and 4/2"),
        pytest.param([50, 60, 70], 180, False, 3, "3 numbers, + -", id="a sum of three groups in three ways"),
        pytest.param([50, 60, 70], 210_000, True, 3, "3 numbers, needs * /", id="so does a product of three"),
        pytest.param([50, 60, 70], 40, False, 3, "3 numbers, + -", id="50+60-70, 50-(70-60), 60-(70-50)"),
        # (1+2)+3, (1+3)+2, (2+3)+1; the same with *; (2/1)*3, (3/1)*2, (2*3)/1; 2/(1/3), 3/(1/2)
        pytest.param([1, 2, 3], 6, False, 11, "3 numbers, + -", id="sums, products and quotients"),
        pytest.param([3, 3, 8, 8], 24, True, 4, "4 numbers, needs * /", id="8/(3-8/3): which 3 and which 8 is free"),
        pytest.param([1, 1, 1], 7, None, 0, "3 numbers, unsolvable", id="nothing"),
    ],
)
def test_difficulty_of_known_puzzles(nums, target, needs_mul_div, solutions, stratum):
    found = difficulty(nums, target)
    assert found == Difficulty(len(nums), needs_mul_div, solutions)
    assert found.stratum == stratum


@pytest.mark.parametrize("function", [solve, is_solvable, difficulty, lambda nums, target: reachable_values(nums)])
@pytest.mark.parametrize(
    ("nums", "message"),
    [
        pytest.param([], "takes 1 to 6 numbers, got 0", id="none"),
        pytest.param([1] * 7, "takes 1 to 6 numbers, got 7", id="seven"),
        pytest.param([3, -4], r"non-negative integers, got \[3, -4\]", id="negative"),
        pytest.param([3, 4.0], "non-negative integers", id="float"),
        pytest.param([3, "4"], "non-negative integers", id="string"),
        pytest.param([3, True], "non-negative integers", id="bool"),
        pytest.param([3, None], "non-negative integers", id="None"),
    ],
)
def test_solver_refuses_what_is_no_puzzle(function, nums, message):
    with pytest.raises(ValueError, match=message):
        function(nums, 7)


# --------------------------------------------------------------------------------------------------------------------
# Generator
# --------------------------------------------------------------------------------------------------------------------


def _keys(puzzles):
    return [puzzle_key(*puzzle) for puzzle in puzzles]


def test_generated_puzzles_have_the_public_shape():
    puzzles = generate_puzzles(601, seed=0)
    assert Counter(len(puzzle.nums) for puzzle in puzzles) == {3: 301, 4: 300}
    assert all(1 <= n <= 99 for puzzle in puzzles for n in puzzle.nums)
    assert all(10 <= puzzle.target <= 100 for puzzle in puzzles)
    assert len(set(_keys(puzzles))) == len(puzzles)
    assert all(type(n) is int for puzzle in puzzles for n in (*puzzle.nums, puzzle.target))
    assert [puzzle for puzzle in puzzles if not is_solvable(*puzzle)] == []
    # Shuffled: neither the counts nor the numbers come sorted.
    assert {len(puzzle.nums) for puzzle in puzzles[:20]} == {3, 4}
    assert any(list(puzzle.nums) != sorted(puzzle.nums) for puzzle in puzzles)


@pytest.mark.parametrize(
    ("counts", "number_range", "target_range"),
    [
        pytest.param((2,), (1, 99), (1, 100), id="two numbers"),
        pytest.param((5, 6), (1, 99), (10, 100), id="five and six numbers"),
        pytest.param((6,), (900, 999), (-5, 5000), id="six of the largest numbers"),
        pytest.param((4,), (1, 10), (-20, -1), id="negative targets"),
        pytest.param((3,), (1, 99), (24, 24), id="a single target"),
        pytest.param((3,), (7, 7), (0, 400), id="a single number"),
        pytest.param((4, 3, 3, 2), (1, 50), (10, 100), id="counts unsorted and repeated"),
    ],
)
def test_generator_keeps_to_its_ranges(counts, number_range, target_range):
    wanted = 6 if number_range == (7, 7) else 30
    puzzles = generate_puzzles(
        wanted, seed=3, number_counts=counts, number_range=number_range, target_range=target_range
    )
    kinds = len(set(counts))
    assert Counter(len(puzzle.nums) for puzzle in puzzles) == dict.fromkeys(counts, wanted // kinds)
    assert all(number_range[0] <= n <= number_range[1] for puzzle in puzzles for n in puzzle.nums)
    assert all(target_range[0] <= puzzle.target <= target_range[1] for puzzle in puzzles)
    assert len(set(_keys(puzzles))) == wanted
    assert all(is_solvable(*puzzle) for puzzle in puzzles)


def test_counts_are_dealt_out_evenly_when_they_do_not_divide():
    puzzles = generate_puzzles(101, seed=1, number_counts=(2, 3, 4))
    assert Counter(len(puzzle.nums) for puzzle in puzzles) == {2: 34, 3: 34, 4: 33}


def test_same_seed_same_list_other_seed_other_list():
    assert generate_puzzles(50, seed=4) == generate_puzzles(50, seed=4)
    assert generate_puzzles(50, seed=4) != generate_puzzles(50, seed=5)
    assert len(set(_keys(generate_puzzles(50, seed=4))) & set(_keys(generate_puzzles(50, seed=5)))) < 5


def test_generator_finds_every_puzzle_there_is():
    pairs = [(a, b) for a in range(1, 7) for b in range(a, 7)]
    every = {puzzle_key(pair, target) for pair in pairs for target in range(0, 13) if target in brute_force(pair)}
    puzzles = generate_puzzles(len(every), seed=0, number_counts=(2,), number_range=(1, 6), target_range=(0, 12))
    assert set(_keys(puzzles)) == every
    with pytest.raises(ValueError, match=f"found only {len(every)} distinct puzzles of 2 numbers in \\[1, 6\\]"):
        generate_puzzles(len(every) + 1, seed=0, number_counts=(2,), number_range=(1, 6), target_range=(0, 12))


def test_zero_puzzles_are_an_empty_list():
    assert generate_puzzles(0, seed=0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"count": -1}, "count must not be negative, got -1", id="negative count"),
        pytest.param({"number_counts": ()}, r"number_counts .* 2\.\.6, got \[\]", id="no counts"),
        pytest.param({"number_counts": (1, 3)}, r"number_counts .* got \[1, 3\]", id="one number"),
        pytest.param({"number_counts": (3, 7)}, r"number_counts .* got \[3, 7\]", id="seven numbers"),
        pytest.param({"number_range": (0, 9)}, r"number_range .* got \[0, 9\]", id="zero among the numbers"),
        pytest.param({"number_range": (9, 1)}, r"number_range .* got \[9, 1\]", id="numbers the wrong way round"),
        pytest.param({"number_range": (1, 1000)}, "number_range .* <= 999", id="numbers whose products overflow"),
        pytest.param({"target_range": (100, 10)}, r"target_range .* got \[100, 10\]", id="targets the wrong way round"),
        pytest.param({"number_range": (1, 1)}, "found only 0 distinct puzzles", id="nothing to be found"),
    ],
)
def test_generator_refuses(arguments, message):
    arguments = {"count": 5, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        generate_puzzles(arguments.pop("count"), **arguments)


def test_progress_is_silent_without_a_terminal(capsys):
    generate_puzzles(5, seed=0, progress=True)
    assert capsys.readouterr() == ("", "")


def test_puzzles_survive_parquet(tmp_path):
    puzzles = generate_puzzles(20, seed=6, number_counts=(3, 6))
    write_puzzles(puzzles, tmp_path / "made" / "puzzles.parquet")
    table = pq.read_table(tmp_path / "made" / "puzzles.parquet")
    assert table.column_names == ["nums", "target"]
    assert [Puzzle(tuple(row["nums"]), row["target"]) for row in table.to_pylist()] == puzzles


def test_puzzles_survive_jsonl(tmp_path):
    puzzles = generate_puzzles(20, seed=6, number_counts=(3, 6))
    write_puzzles(iter(puzzles), str(tmp_path / "puzzles.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "puzzles.jsonl").read_text().splitlines()]
    assert all(list(row) == ["nums", "target"] for row in rows)
    assert [Puzzle(tuple(row["nums"]), row["target"]) for row in rows] == puzzles


@pytest.mark.parametrize("name", ["puzzles.csv", "puzzles", "puzzles.parquet.gz"])
def test_puzzles_are_written_in_two_formats_only(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(name)):
        write_puzzles([Puzzle((1, 2), 3)], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------------
# Canonical split
# --------------------------------------------------------------------------------------------------------------------

PUZZLES = [((a, b, c), target) for a in range(1, 20) for b in range(a, 20) for c in range(b, 20) for target in (24, 60)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=2, max_size=5), st.integers(10, 100), st.floats(0, MAX_HELD_OUT_SHARE))
def test_permutations_are_the_same_puzzle(nums, target, share):
    orders = list(permutations(nums))
    assert {puzzle_key(order, target) for order in orders} == {puzzle_key(nums, target)}
    assert len({is_held_out(order, target, share) for order in orders}) == 1


def test_types_do_not_change_the_side():
    for nums, target in PUZZLES[:200]:
        assert is_held_out(np.array(nums), np.int64(target), 0.1) == is_held_out(list(nums), target, 0.1)


def test_other_puzzles_have_other_keys():
    assert puzzle_key([1, 23], 4) != puzzle_key([12, 3], 4)
    assert puzzle_key([1, 2], 34) != puzzle_key([1, 2, 3], 4)
    assert len({puzzle_key(*puzzle) for puzzle in PUZZLES}) == len(PUZZLES)


def test_larger_shares_hold_out_the_same_puzzles_and_more():
    held = [{puzzle for puzzle in PUZZLES if is_held_out(*puzzle, share)} for share in (0, 0.01, 0.05, 0.1)]
    assert held[0] == set()
    assert held[0] < held[1] < held[2] < held[3]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
def test_observed_share_is_near_the_requested_one(share):
    low, high = wilson_interval(sum(is_held_out(*puzzle, share) for puzzle in PUZZLES), len(PUZZLES), z=4)
    assert low < share < high
    assert high - low < 0.06


@pytest.mark.parametrize(
    ("nums", "target", "place"),
    [
        # The place of a puzzle's hash in 0..1. Were one of these to change, puzzles held out by earlier runs would be
        # trained on by later ones.
        pytest.param([61, 1, 87, 52], 26, 0.010916142, id="1,52,61,87=26"),
        pytest.param([1, 2, 3], 6, 0.041934593, id="1,2,3=6"),
        pytest.param([15, 28, 79, 33, 5, 50], 22, 0.045952173, id="5,15,28,33,50,79=22"),
        pytest.param([53, 38, 31], 46, 0.071009041, id="31,38,53=46"),
    ],
)
def test_the_split_never_changes(nums, target, place):
    assert not is_held_out(nums, target, place)
    assert is_held_out(nums, target, place + 1e-8)


@pytest.mark.parametrize(("nums", "target"), [([19, 35, 44], 98), ([25, 50, 75, 100, 3, 6], 952)])
def test_these_are_never_held_out(nums, target):
    assert not is_held_out(nums, target, MAX_HELD_OUT_SHARE)


@pytest.mark.parametrize("share", [-0.01, 0.11, 1, math.nan])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match="held-out share"):
        is_held_out([1, 2, 3], 6, share)


@pytest.mark.parametrize(
    ("total", "wanted", "share"),
    [
        pytest.param(50_000, 1024, 0.02048, id="as many as wanted"),
        pytest.param(50_000, 0, 0.0, id="none wanted"),
        pytest.param(10_240, 1024, 0.1, id="exactly a tenth"),
        pytest.param(1000, 1024, 0.1, id="a tenth of few puzzles"),
        pytest.param(1, 1, 0.1, id="a tenth of one puzzle"),
    ],
)
def test_held_out_share(total, wanted, share):
    assert held_out_share(total, wanted) == pytest.approx(share)
    is_held_out([1, 2, 3], 6, held_out_share(total, wanted))  # always a share that the split takes


def test_held_out_share_has_a_default():
    assert held_out_share(10**6) == DEFAULT_HELD_OUT_PUZZLES / 10**6


@pytest.mark.parametrize(
    ("total", "wanted", "message"),
    [
        pytest.param(0, 10, "total_puzzles must be positive, got 0", id="no puzzles"),
        pytest.param(-5, 10, "total_puzzles must be positive, got -5", id="fewer than no puzzles"),
        pytest.param(10, -1, "held_out_puzzles must not be negative, got -1", id="fewer than none wanted"),
    ],
)
def test_held_out_share_refuses(total, wanted, message):
    with pytest.raises(ValueError, match=message):
        held_out_share(total, wanted)


# --------------------------------------------------------------------------------------------------------------------
# Across processes
# --------------------------------------------------------------------------------------------------------------------

IN_A_NEW_PROCESS = """
import json, sys
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import is_held_out
from mini_r1.countdown.solver import solve
puzzles = generate_puzzles(300, seed=11)
print(json.dumps({
    "puzzles": puzzles,
    "held_out": [is_held_out(*puzzle, 0.1) for puzzle in puzzles],
    "answers": [solve(*puzzle) for puzzle in puzzles[:30]],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def _in_a_new_process(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(SCRIPTS)}
    result = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def test_every_process_sees_the_same_puzzles_split_and_answers():
    first, second = _in_a_new_process("1"), _in_a_new_process("4242")
    assert first == second
    assert 0 < sum(first["held_out"]) < 100
    assert [Puzzle(tuple(nums), target) for nums, target in first["puzzles"]] == generate_puzzles(300, seed=11)


def test_the_game_imports_without_machine_learning():
    modules = set(_in_a_new_process("0")["modules"])
    assert "numpy" in modules
    assert not modules & {"torch", "transformers", "trl", "datasets", "accelerate", "pandas", "pyarrow"}


# --------------------------------------------------------------------------------------------------------------------
# Search traces
# --------------------------------------------------------------------------------------------------------------------

STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
TRACE_PUZZLES = generate_puzzles(60, seed=5, number_range=(1, 25), target_range=(5, 60))


def _attempt_lines(trace):
    """The lines of a trace that state attempts, without the closing remark of one that gives up."""
    lines = trace.partition("</think>")[0].strip().splitlines()
    return lines[:-1] if lines[-1] == GIVE_UP else lines


def _checked_value(steps, nums):
    """What a chain of steps comes to, having checked its arithmetic and that it uses each number once."""
    at_hand = Counter(nums)
    for step in steps.split(", "):
        left, symbol, right, result = STEP.fullmatch(step).groups()
        at_hand.subtract([int(left), int(right)])
        assert min(at_hand.values()) >= 0, f"{step} uses a number that is not there"
        assert check_equation(f"{left}{symbol}{right}", [int(left), int(right)], int(result)).correct, step
        at_hand[int(result)] += 1
    (value,) = at_hand.elements()
    return value


@pytest.mark.parametrize(
    "nums",
    [
        pytest.param([3, 5], id="two numbers"),
        pytest.param([19, 35, 44], id="three numbers"),
        pytest.param([6, 6, 2], id="a number twice"),
        pytest.param([1, 1, 1], id="three ones"),
        pytest.param([2, 3, 8, 12], id="four numbers"),
    ],
)
def test_every_attempt_is_right(nums):
    attempts = all_attempts(nums)
    assert attempts
    for attempt in attempts:
        assert _checked_value(attempt.steps, nums) == attempt.value
        assert check_equation(attempt.equation, nums, attempt.value).correct, attempt.equation
        assert 0 < attempt.value <= MAX_VALUE


def test_attempts_of_two_numbers_are_all_there():
    assert [attempt.steps for attempt in all_attempts([4, 12])] == ["12+4=16", "12-4=8", "12*4=48", "12/4=3"]
    # 5-5 is not positive, 150+60 and 150*60 are too large, 150/60 is not whole.
    assert [attempt.steps for attempt in all_attempts([5, 5])] == ["5+5=10", "5*5=25", "5/5=1"]
    assert [attempt.steps for attempt in all_attempts([60, 150])] == ["150-60=90"]


def test_attempts_of_distinct_numbers_are_distinct():
    attempts = all_attempts([7, 11, 20])
    assert len({attempt.steps for attempt in attempts}) == len(attempts)


@pytest.mark.parametrize(
    ("give_up_share", "give_up_rate", "max_attempts"),
    [
        pytest.param(0.0, 0.0, 10_000, id="always persists"),
        pytest.param(1.0, 1.0, 10_000, id="gives up at once"),
        pytest.param(1.0, 0.3, 10_000, id="loses heart at some point"),
        pytest.param(0.5, 0.5, 4, id="mixed, few attempts"),
        pytest.param(0.0, 0.0, 1, id="a single attempt"),
    ],
)
def test_traces_are_what_they_seem(give_up_share, give_up_rate, max_attempts):
    rng = np.random.default_rng(9)
    reasons = Counter()
    for puzzle in TRACE_PUZZLES:
        trace = write_trace(
            puzzle, rng, give_up_share=give_up_share, give_up_rate=give_up_rate, max_attempts=max_attempts
        )
        if trace is None:
            assert all(attempt.value != puzzle.target for attempt in all_attempts(puzzle.nums))
            continue
        text = response(trace)
        assert has_format(text)
        verdict = judge(text, *puzzle)
        reasons[verdict.reason] += 1

        lines = _attempt_lines(trace)
        assert 1 <= len(lines) <= max_attempts
        values = []
        for line in lines:
            steps, remark = re.fullmatch(rf"(.*\d) ({FOUND}|{TOO_LOW}|{TOO_HIGH})", line).groups()
            values.append(_checked_value(steps, puzzle.nums))
            expected = FOUND if values[-1] == puzzle.target else TOO_LOW if values[-1] < puzzle.target else TOO_HIGH
            assert remark == expected
        assert puzzle.target not in values[:-1]  # it stops where it finds
        assert verdict.value == values[-1]  # it answers with its last attempt
        if GIVE_UP in trace:
            assert verdict.reason is Reason.WRONG_VALUE
        else:
            assert verdict.reason is Reason.CORRECT
    if give_up_share == 0 and max_attempts > 1:
        assert set(reasons) == {Reason.CORRECT}
    else:
        assert set(reasons) == {Reason.CORRECT, Reason.WRONG_VALUE}


def test_a_trace_that_loses_heart_at_once_makes_one_attempt():
    rng = np.random.default_rng(1)
    traces = [write_trace(p, rng, give_up_share=1, give_up_rate=1, max_attempts=50) for p in TRACE_PUZZLES]
    assert {len(_attempt_lines(trace)) for trace in traces if trace} == {1}


def test_the_give_up_share_is_kept():
    rng = np.random.default_rng(2)
    puzzle = Puzzle((2, 3, 4), 20)
    traces = [write_trace(puzzle, rng, give_up_share=0.7, give_up_rate=1, max_attempts=1000) for _ in range(600)]
    solved_at_once = sum(attempt.value == 20 for attempt in all_attempts([2, 3, 4])) / len(all_attempts([2, 3, 4]))
    given_up = sum(GIVE_UP in trace for trace in traces) / len(traces)
    assert given_up == pytest.approx(0.7 * (1 - solved_at_once), abs=0.08)


def test_traces_repeat_no_attempt():
    rng = np.random.default_rng(3)
    for _ in range(20):
        lines = _attempt_lines(
            write_trace(Puzzle((7, 11, 20), 24), rng, give_up_share=0, give_up_rate=0, max_attempts=100)
        )
        assert len(set(lines)) == len(lines)


def test_the_same_generator_state_writes_the_same_trace():
    def write(seed):
        rng = np.random.default_rng(seed)
        return [write_trace(p, rng, give_up_share=0.5, give_up_rate=0.5, max_attempts=9) for p in TRACE_PUZZLES[:10]]

    assert write(0) == write(0) != write(1)


@pytest.mark.parametrize(
    ("nums", "target"),
    [
        pytest.param((1, 1, 1), 50, id="unsolvable"),
        pytest.param((90, 95, 80), 265, id="solvable, but not below the largest value"),
        pytest.param((8, 3, 8, 3), 24, id="solvable, but not in whole numbers"),
    ],
)
def test_no_trace_without_a_solution_among_the_attempts(nums, target):
    rng = np.random.default_rng(0)
    assert write_trace(Puzzle(nums, target), rng, give_up_share=1, give_up_rate=1, max_attempts=5) is None


# --------------------------------------------------------------------------------------------------------------------
# Intervals
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        pytest.param(50, 100, 0.4038, 0.5962, id="half"),
        pytest.param(0, 10, 0.0, 0.2775, id="none"),
        pytest.param(10, 10, 0.7225, 1.0, id="all"),
        pytest.param(1, 10, 0.0179, 0.4042, id="few"),
        pytest.param(0, 1, 0.0, 0.7935, id="a single failure"),
        pytest.param(15, 148, 0.0624, 0.1605, id="Newcombe 1998, table I"),
    ],
)
def test_wilson_interval_of_known_cases(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_holds_the_rates_within_z_standard_errors(trials, rate):
    low, high = wilson_interval(rate * trials, trials)
    assert 0 <= low < high <= 1
    for bound in (low, high):
        assert (rate - bound) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / trials, abs=1e-12)


def test_wilson_interval_holds_the_measured_rate():
    """Also at 0 and 1, where rounding could push a bound past it: an error bar must not have a negative length."""
    outside = [
        (successes, trials)
        for trials in range(1, 100)
        for successes in range(trials + 1)
        if not wilson_interval(successes, trials)[0] <= successes / trials <= wilson_interval(successes, trials)[1]
    ]
    assert outside == []


def test_wilson_interval_narrows_with_trials_and_widens_with_confidence():
    widths = [high - low for low, high in (wilson_interval(n // 5, n) for n in (10, 50, 500))]
    assert widths == sorted(widths, reverse=True)
    low, high = wilson_interval(20, 100, z=2.5758)
    assert low < wilson_interval(20, 100)[0] < wilson_interval(20, 100)[1] < high


@pytest.mark.parametrize(("rate", "trials"), [(0.5, 40), (0.1, 60), (0.3, 128), (0.8, 256), (0.03, 512)])
def test_wilson_interval_covers_the_true_rate(rate, trials):
    draws = np.random.default_rng(trials).binomial(trials, rate, 20_000)
    covered = 0
    for successes, times in Counter(draws.tolist()).items():
        low, high = wilson_interval(successes, trials)
        covered += times * (low <= rate <= high)
    assert 0.93 <= covered / len(draws) <= 0.975


@pytest.mark.parametrize(
    ("successes", "trials"),
    [
        pytest.param(0, 0, id="no trials"),
        pytest.param(0.25, 0.5, id="half a trial"),
        pytest.param(-1, 10, id="negative"),
        pytest.param(11, 10, id="more successes than trials"),
        pytest.param(math.nan, 10, id="not a number"),
    ],
)
def test_wilson_interval_refuses(successes, trials):
    with pytest.raises(ValueError, match="successes <= trials"):
        wilson_interval(successes, trials)
