"""What a puzzle is: how people type one, which ones are the same, and the canonical split."""

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.countdown.puzzle import Puzzle, is_held_out, parse_puzzle, puzzle_key
from mini_r1.intervals import wilson_interval
from mini_r1.task import MAX_HELD_OUT_SHARE, held_out_share

# --------------------------------------------------------------------------------------------------------------------
# Typed puzzles
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("44 19 35 = 98", id="plain"),
        pytest.param("44,19,35 98", id="commas, the target last"),
        pytest.param("[44, 19, 35] -> 98", id="a list and an arrow"),
        pytest.param("44 19 35=>98", id="fat arrow"),
        pytest.param("(44; 19; 35) → 98", id="typographic arrow"),
        pytest.param("  44  19  35   98 ", id="nothing but spaces"),
        pytest.param("Numbers: 44, 19, 35; target: 98", id="in words"),
        pytest.param('{"nums": [44, 19, 35], "target": 98}', id="a row of the data set"),
        pytest.param("+44 19 35 = +98", id="plus signs"),
    ],
)
def test_a_puzzle_is_read_in_every_usual_notation(text):
    assert parse_puzzle(text) == Puzzle((44, 19, 35), 98)


def test_a_target_may_be_negative():
    assert parse_puzzle("3 8 = -5") == Puzzle((3, 8), -5)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        pytest.param("hello there", "no puzzle", id="words"),
        pytest.param("", "no puzzle", id="nothing"),
        pytest.param("(44 + 19) + 35 = 98", "no puzzle", id="an equation"),
        pytest.param("4.5 2 = 9", "no puzzle", id="decimals"),
        pytest.param("44-19-35 = 98", "no puzzle", id="a minus between numbers"),
        pytest.param("٤٤ ١٩ = 63", "no puzzle", id="digits of another script"),
        pytest.param("\x1b[2J 44 19 = 63", "no puzzle", id="terminal escapes"),
        pytest.param("98 = 44 19 35", "one target", id="the target first"),
        pytest.param("44 19 = 63 98", "one target", id="two targets"),
        pytest.param("44 19 35 =", "one target", id="no target"),
        pytest.param("44 = 19 = 35", "one target", id="two equal signs"),
        pytest.param("98", "not 0 numbers", id="no numbers"),
        pytest.param("1 2 3 4 5 6 7 = 28", "not 7 numbers", id="too many numbers"),
        pytest.param("44 -19 = 25", "positive", id="a negative number"),
        pytest.param("44 0 = 44", "positive", id="zero"),
        pytest.param("9" * 5000 + " 1 = 2", "digits", id="a number without end"),
        pytest.param("1 2 = " + "9" * 5000, "digits", id="a target without end"),
    ],
)
def test_nonsense_gets_a_hint(text, hint):
    with pytest.raises(ValueError, match=hint):
        parse_puzzle(text)


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


def test_other_puzzles_have_other_keys():
    assert puzzle_key([1, 23], 4) != puzzle_key([12, 3], 4)
    assert puzzle_key([1, 2], 34) != puzzle_key([1, 2, 3], 4)
    assert len({puzzle_key(*puzzle) for puzzle in PUZZLES}) == len(PUZZLES)


def test_larger_shares_hold_out_the_same_puzzles_and_more_in_proportion():
    shares = (0, 0.01, 0.05, 0.1)
    held = [{puzzle for puzzle in PUZZLES if is_held_out(*puzzle, share)} for share in shares]
    assert held[0] == set()
    assert held[0] < held[1] < held[2] < held[3]
    for share, side in zip(shares[1:], held[1:], strict=True):
        low, high = wilson_interval(len(side), len(PUZZLES), z=4)
        assert low < share < high < low + 0.06


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
