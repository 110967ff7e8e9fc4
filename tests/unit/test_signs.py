"""The lexicon of search: what counts as a sign, in words and in the tiny model's notation."""

from __future__ import annotations

import time

import pytest

from mini_r1.signs import SIGNS


@pytest.mark.parametrize(
    ("reasoning", "attempts"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("I have to use 44, 19 and 35 to make 98.", 0, id="no result"),
        pytest.param("Maybe 44 + 19 + 35?", 0, id="an idea without its result"),
        pytest.param("44 + 19 = 63, 63 + 35 = 98.", 1, id="a chain in one sentence"),
        pytest.param("44 + 19 = 63.\n63 + 35 = 98.", 2, id="two sentences"),
        pytest.param("44 - 19 = 25; 44 + 19 = 63", 2, id="parts of a list"),
        pytest.param("44 - 19 equals 25. Adding 35 gives 60. With + I get 98!", 3, id="results in words"),
        pytest.param("19 - 44 = -25.", 1, id="a negative result"),
        pytest.param("1.5 + 2 = 3.5, 3.5 * 2 = 7.", 1, id="a decimal point ends no sentence"),
        pytest.param("An equation with an = sign in it, x = y.", 0, id="an equals sign without a number"),
        pytest.param("\n44-19=25, 35+25=60 too low\n44+19=63, 63+35=98 yes!\n", 2, id="the traces' notation"),
        pytest.param("\n44-19=25, 35+25=60 too low\nI give up.\n", 1, id="the traces' notation, given up"),
    ],
)
def test_count_attempts(reasoning, attempts):
    assert SIGNS["attempts"](reasoning) == attempts


@pytest.mark.parametrize(
    ("reasoning", "corrections"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("44 + 19 + 35 makes 98, which is the target.", 0, id="straight on"),
        pytest.param("That is too high.", 1, id="too high"),
        pytest.param("That is TOO LOW.", 1, id="capitals"),
        pytest.param("It doesn't work.", 1, id="doesn't work"),
        pytest.param("That isn't right. Let me try subtracting.", 2, id="two signs"),
        pytest.param("Wait, I have not used 35.", 1, id="wait"),
        pytest.param("Hmm, actually another way is shorter.", 3, id="three signs in a sentence"),
        pytest.param("Let's go back and start with 44.", 1, id="going back"),
        pytest.param("The waiter works on actuality.", 0, id="parts of words are no signs"),
        pytest.param("It works, and that is enough.", 0, id="the opposite"),
        pytest.param("44 + 35 = 79. No, that misses 19.", 1, id="a bare no"),
        pytest.param("There is no other number, and no solution with 19.", 0, id="no as a determiner"),
        pytest.param("\n44-19=25, 35+25=60 too low\n44*19=836 too high\n63+35=98 yes!\n", 2, id="the traces' notation"),
    ],
)
def test_count_self_corrections(reasoning, corrections):
    assert SIGNS["self_corrections"](reasoning) == corrections


@pytest.mark.parametrize(
    ("reasoning", "verifications"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("44 + 19 + 35 = 98, this works.", 1, id="this works"),
        pytest.param("That makes 98, which is the target.", 1, id="held against the target"),
        pytest.param("Let me check: 44 + 19 = 63, and 63 + 35 = 98. Correct!", 2, id="a check and its outcome"),
        pytest.param("Let's verify. I should double-check this.", 2, id="two checks"),
        pytest.param("63 + 35 = 98 ✓", 1, id="a tick"),
        pytest.param("Yes, 98.", 1, id="yes at the beginning"),
        pytest.param("It doesn't work.", 0, id="the opposite"),
        pytest.param("I checked out of the hotel; yesterday was correctness.", 0, id="parts of words"),
        pytest.param("\n44-19=25, 35+25=60 too low\n44+19=63, 63+35=98 yes!\n", 1, id="the traces' notation"),
    ],
)
def test_count_verifications(reasoning, verifications):
    assert SIGNS["verifications"](reasoning) == verifications


@pytest.mark.parametrize(
    ("reasoning", "subgoals"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("I need to use each number once.", 0, id="the task's own words are no sub-goal"),
        pytest.param("With 44 I need 54 more.", 1, id="a need and its distance are one"),
        pytest.param("98 - 35 leaves 63, so I need to get 63 from 44 and 19.", 2, id="worked out backwards"),
        pytest.param("If I can make 63, adding 35 finishes it.", 1, id="a condition"),
        pytest.param("First, let me get close to 98.", 1, id="a first step"),
        pytest.param("Working backwards from 98.", 1, id="working backwards"),
        pytest.param("\n44-19=25, 35+25=60 too low\n", 0, id="the traces' notation has none"),
    ],
)
def test_count_subgoals(reasoning, subgoals):
    assert SIGNS["subgoals"](reasoning) == subgoals


def test_signs_are_named_as_metrics_are():
    """The names stand in logs, reports and the metrics of old runs."""
    text = "I need 54 more. 44 + 19 = 63. No, too high. Wait, 63 + 35 = 98, this works!"
    counts = {name: count(text) for name, count in SIGNS.items()}
    assert counts == {"attempts": 2, "verifications": 1, "self_corrections": 3, "subgoals": 1}


@pytest.mark.parametrize("filler", ["no ", "need ", "= 1 ", "-", "wait, ", "\n", "let me ", "yes", "first "])
def test_long_reasoning_takes_time_in_proportion(filler):
    """A regular expression that backtracks would turn one bad completion into a stalled rank."""
    begin = time.process_time()
    for count in SIGNS.values():
        count(filler * (200_000 // len(filler)))
    assert time.process_time() - begin < 5
