"""Search traces: every step right, every remark true, giving up as often as asked."""

import re
from collections import Counter

import numpy as np
import pytest

from mini_r1.countdown import TASK
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.traces import (
    FOUND,
    GIVE_UP,
    MAX_VALUE,
    TOO_HIGH,
    TOO_LOW,
    find_ways,
    needs_products,
    write_trace,
)
from mini_r1.countdown.verifier import Reason, check_equation
from mini_r1.responses import has_format, judge, response

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
    attempts = find_ways(nums)
    assert len(attempts) > 2
    for attempt in attempts:
        assert _checked_value(attempt.steps, nums) == attempt.value
        assert check_equation(attempt.equation, nums, attempt.value).correct, attempt.equation
        assert 0 < attempt.value <= MAX_VALUE


def test_attempts_of_two_numbers_are_all_there():
    assert [attempt.steps for attempt in find_ways([4, 12])] == ["12+4=16", "12-4=8", "12*4=48", "12/4=3"]
    # 5-5 is not positive, 150+60 and 150*60 are too large, 150/60 is not whole.
    assert [attempt.steps for attempt in find_ways([5, 5])] == ["5+5=10", "5*5=25", "5/5=1"]
    assert [attempt.steps for attempt in find_ways([60, 150])] == ["150-60=90"]


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
        ways = find_ways(puzzle.nums)
        shares = {"give_up_share": give_up_share, "give_up_rate": give_up_rate, "hit_rate": 0.25}
        trace = write_trace(ways, puzzle.target, rng, max_attempts=max_attempts, **shares)
        if trace is None:
            assert all(way.value != puzzle.target for way in ways)
            continue
        text = response(trace)
        assert has_format(text)
        verdict = judge(TASK, text, puzzle)
        reasons[verdict.reason] += 1

        lines = _attempt_lines(trace)
        assert 1 <= len(lines) <= (1 if give_up_share == give_up_rate == 1 else max_attempts)
        assert len(set(lines)) == len(lines)  # no attempt twice
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


def _traces(puzzle, count, **keys):
    rng = np.random.default_rng(2)
    shares = {"give_up_share": 0, "give_up_rate": 1, "max_attempts": 1000, "hit_rate": 0.25}
    ways = find_ways(puzzle.nums)
    return [write_trace(ways, puzzle.target, rng, **shares | keys) for _ in range(count)]


def test_the_give_up_share_and_the_hit_rate_are_kept():
    traces = _traces(Puzzle((2, 3, 4), 20), 1000, give_up_share=0.7)
    given_up = sum(GIVE_UP in trace for trace in traces) / len(traces)
    assert given_up == pytest.approx(0.7 * (1 - 0.25), abs=0.06)
    at_once = sum(len(_attempt_lines(trace)) == 1 and FOUND in trace for trace in traces) / len(traces)
    assert at_once == pytest.approx(0.25, abs=0.06)


def test_attempts_favour_the_target_and_division():
    puzzle = Puzzle((48, 6, 90, 14), 68)
    lines = [line for trace in _traces(puzzle, 200, hit_rate=0.1) for line in _attempt_lines(trace)]
    values = [int(re.findall(r"=(\d+) ", line)[0]) for line in lines]
    ways = find_ways(puzzle.nums)
    near_by_chance = sum(abs(way.value - 68) <= 15 for way in ways) / len(ways)
    dividing_by_chance = sum("/" in way.steps for way in ways) / len(ways)
    assert sum(abs(value - 68) <= 15 for value in values) / len(lines) > 1.5 * near_by_chance
    assert sum("/" in line for line in lines) / len(lines) > 1.5 * dividing_by_chance


@pytest.mark.parametrize(
    ("nums", "target", "needed"),
    [
        pytest.param((44, 19, 35), 98, False, id="a sum"),
        pytest.param((7, 8, 2), 58, True, id="a product"),
        pytest.param((84, 7, 20), 32, True, id="a quotient"),
        pytest.param((2, 2, 4), 8, False, id="a sum as well as a product"),
    ],
)
def test_what_needs_products(nums, target, needed):
    ways = find_ways(nums)
    assert any(way.value == target for way in ways)
    assert needs_products(ways, target) is needed


def test_the_same_generator_state_writes_the_same_trace():
    def write(seed):
        rng = np.random.default_rng(seed)
        shares = {"give_up_share": 0.5, "give_up_rate": 0.5, "max_attempts": 9, "hit_rate": 0.25}
        return [write_trace(find_ways(p.nums), p.target, rng, **shares) for p in TRACE_PUZZLES[:10]]

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
    assert _traces(Puzzle(nums, target), 1) == [None]
