"""The forecast of a run: each rule has its word and names its change."""

from __future__ import annotations

from typing import Any

import pytest

from mini_r1.evaluation.forecast import Facts, forecast


def facts(right: list[int], **changes: Any) -> Facts:
    """Groups of eight completions, so many of each right; sixteen groups a step."""
    solved = [[True] * count + [False] * (8 - count) for count in right]
    good = {"format": 0.9, "cut_off": 0.05, "entropy": 0.3, "groups_per_step": 16}
    return Facts(solved, **{**good, **changes})


@pytest.mark.parametrize(("given", "word", "change"), [
    pytest.param(facts([0, 3, 8, 5]), "learns", None, id="half of the groups teach"),
    pytest.param(facts([0, 3, 8, 5], cut_off=0.6), "not", "max_completion_length", id="cut off"),
    pytest.param(facts([0, 0, 0, 0], format=0.0), "not", "instruct model or a cold start", id="no format"),
    pytest.param(facts([8, 8, 7, 8]), "not", "number_counts", id="too easy"),
    pytest.param(facts([0] * 32), "not", "cold start or a stronger model", id="never right"),
    pytest.param(facts([0] * 15 + [2]), "slowly", "cold start or a stronger model", id="one group a step"),
    pytest.param(facts([0, 8] * 8 + [3]), "not", "num_generations (16)", id="all alike, of both kinds"),
    pytest.param(facts([0, 8] * 8 + [3], entropy=0.001), "not", "temperature", id="copies"),
    pytest.param(facts([4], groups_per_step=2), "slowly", "gradient_accumulation_steps", id="few groups a step"),
])  # fmt: skip
def test_a_rule_has_its_word_and_its_change(given: Facts, word: str, change: str | None):
    said = forecast(given)
    assert said.word == word
    assert (change in " ".join(said.changes)) if change else said.changes == ()


def test_rates_are_those_of_groups():
    given = facts([0, 3, 8, 5])
    assert (given.success, given.teaching, given.teaching_per_step) == (0.5, 0.5, 8.0)
