"""Scores, summaries and tables: the right numbers for known answers."""

from __future__ import annotations

import pytest

from mini_r1.countdown import TASK
from mini_r1.evaluation.scores import ALL, Score, compare, score, strata, summarise
from mini_r1.evaluation.table import as_text, columns, flat_table
from mini_r1.generation.sampling import Completion

PUZZLE = TASK.puzzle((44, 19, 35), 98)
COMPLETIONS = {
    "right": Completion("44+19=63, 63+35=98 yes!</think>\n<answer>44+19+35</answer>", 30, False),
    "wrong": Completion("44-19=25 too low</think>\n<answer>44-19+35</answer>", 20, False),
    "cut": Completion("44-19=25 too low", 10, True),
}


def scored(*kinds: str) -> list[list[Score]]:
    """Scores of a puzzle per text, whose words name the completions to it."""
    drawn = [[COMPLETIONS[kind] for kind in of_puzzle.split()] for of_puzzle in kinds]
    return [[score(TASK, PUZZLE, "... <think>", one, i) for i, one in enumerate(of_puzzle)] for of_puzzle in drawn]


def test_a_score_is_the_rewards_own_verdict():
    ((right, wrong), (cut,)) = scored("right wrong", "cut")
    assert right.sample.as_record() == {
        "step": 0,
        "split": "evaluation",
        "response": "<think>" + COMPLETIONS["right"].text,
        "reason": "correct",
        "value": "98",
        "format_reward": 1.0,
        "equation_reward": 1.0,
        "completion_tokens": 30,
        "rank": 0,
        "index": 0,
        "nums": (44, 19, 35),
        "target": 98,
    }
    assert (wrong.sample.reason, wrong.sample.value, wrong.sample.index) == ("wrong_value", "60", 1)
    assert (cut.sample.reason, cut.sample.value, cut.sample.format_reward, cut.truncated) == (
        "no_answer",
        None,
        0,
        True,
    )


def test_a_summary_of_known_completions():
    summary = summarise(TASK, scored("right wrong", "cut wrong"), [1, 2])
    assert (summary["puzzles"], summary["completions"]) == (2, 4)
    assert (summary["pass@1"], summary["pass@2"]) == (0.25, 0.5)
    assert summary["pass@1_low"] <= 0.25 <= summary["pass@1_high"]
    assert (summary["format"], summary["truncated"], summary["mean_tokens"]) == (0.75, 0.25, 20)
    signs = {"attempts": 1, "verifications": 0.25, "self_corrections": 0.75, "subgoals": 0}
    assert {sign: summary[sign] for sign in signs} == signs
    reasons = {reason: share for reason, share in summary["reasons"].items() if share}
    assert reasons == {"no_answer": 0.25, "wrong_value": 0.5, "correct": 0.25}
    assert list(summary["reasons"]) == [reason.value for reason in TASK.reasons]


def test_changes_are_of_the_same_puzzles():
    before, after = scored("right", "wrong", "wrong", "wrong"), scored("right", "right", "right", "wrong")
    whole, part = compare({"a": before, "b": after}, {ALL: [0, 1, 2, 3], "some": [1, 2]})
    assert (whole["from"], whole["to"], whole["stratum"], whole["change"]) == ("a", "b", ALL, 0.5)
    assert whole["low"] < 0.5 < whole["high"]
    assert (part["stratum"], part["change"]) == ("some", 1.0)


@pytest.mark.parametrize(
    ("nums", "target", "expected"),
    [
        pytest.param((44, 19, 35), 98, "3 numbers, + -", id="a sum"),
        pytest.param((3, 5, 2), 17, "3 numbers, needs * /", id="3 * 5 + 2"),
        pytest.param((1, 1, 1), 100, "3 numbers, unsolvable", id="nothing reaches it"),
        pytest.param((2, 3, 7, 11, 13, 17), 1000, "6 numbers, needs * /", id="six with products"),
    ],
)
def test_strata_come_behind_all_puzzles(nums: tuple[int, ...], target: int, expected: str):
    assert strata(TASK, [TASK.puzzle(nums, target)] * 2) == {ALL: [0, 1], expected: [0, 1]}


def test_tables_are_aligned():
    assert columns([["name", "x"], ["long name", "10.5"]]) == "name          x\n---------------\nlong name  10.5"


def test_the_tables_of_a_result():
    answers = {"base": scored("right wrong", "cut wrong"), "trained": scored("right right", "right wrong")}
    groups = {ALL: [0, 1], "3 numbers, + -": [0]}
    result = {
        "checkpoints": [
            {
                "name": name,
                "puzzles_per_second": 2.0,
                "strata": {g: summarise(TASK, [of[i] for i in members], [1, 2]) for g, members in groups.items()},
            }
            for name, of in answers.items()
        ],
        "changes": compare(answers, groups),
    }
    rates, changes, overall = (table.splitlines() for table in as_text(result, [1, 2]).split("\n\n"))
    assert [row[:40].split("  ")[0] for row in rates[2:]] == [ALL, "", "3 numbers, + -", ""]
    assert rates[2].split()[2:5] == ["2", "1", "25.0"]
    assert changes[2].split()[:5] == ["all", "puzzles,", "from", "base", "+50.0"]
    cells = {row.rsplit(maxsplit=2)[0]: row.split()[-2:] for row in overall[2:]}
    assert cells["verdict correct, %"] == ["25.0", "75.0"]
    assert cells["cut off, %"] == ["25.0", "0.0"]
    assert cells["self-corrections"] == ["0.75", "0.25"]
    assert "verdict malformed, %" not in cells
    table = flat_table(result)
    assert [(row["checkpoint"], row["stratum"]) for row in table] == [(n, g) for n in answers for g in groups]
    assert table[0]["pass@2"] == 0.5
    assert not any(isinstance(value, dict) for row in table for value in row.values())
