"""reasoning-gym's tasks by name: loading, the split, scores with partial credit, and the chains of the cold start."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from mini_r1 import reasoning_gym
from mini_r1.common import RecipeError, UserError
from mini_r1.reasoning_gym import RUNS_ANSWERS, TASK, TRUST, GymArguments, Puzzle, entry
from mini_r1.responses import judge
from mini_r1.run_folder.samples import judged
from mini_r1.task import Split, is_held_out, load_task
from run_leg_counting_cold_start import ChainArguments, fixed_parts, write_chain
from run_reasoning_gym import accuracy_reward_func

LEGS = {"spider": 8, "cow": 4, "snake": 0}
TWO = [
    {"name": "leg_counting", "weight": 1, "config": {"max_animals": 3}},
    {"name": "chain_sum", "weight": 1, "config": {}},
]


def load(task: str, rows: int = 300, **config: Any) -> Split:
    return TASK.load(GymArguments(task=task, task_config=config, dataset_rows=rows, held_out_puzzles=30), False)


def of(answer: str) -> str:
    return f"<think>counted</think>\n<answer>{answer}</answer>"


# ---- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "config", "kinds"),
    [
        pytest.param("leg_counting", {"max_animals": 4}, {"leg_counting"}, id="configured"),
        pytest.param("chain_sum", {}, {"chain_sum"}, id="by name alone"),
        pytest.param("spell_backward", {}, {"spell_backward"}, id="words"),
        pytest.param("composite", {"datasets": TWO}, {"leg_counting", "chain_sum"}, id="two in one"),
    ],
)
def test_a_task_by_its_name_loads_splits_and_scores(task: str, config: dict[str, Any], kinds: set[str]):
    split = load(task, **config)
    keys = [[TASK.key(puzzle) for puzzle in side] for side in (split.train, split.held_out)]
    assert len(split.train) > 200
    assert 10 < len(split.held_out) == len(set(keys[1]))
    assert not set(keys[0]) & set(keys[1])
    assert {TASK.stratum(puzzle) for puzzle in split.train} == kinds
    assert load(task, **config) == split
    for puzzle in split.held_out:
        assert is_held_out(puzzle.question, split.share)
        assert not TASK.could_train_on(GymArguments(task=task), split.describe(), puzzle)
        assert judge(TASK, of(f" {entry(puzzle)['answer']}\n"), puzzle).correct
        assert not TASK.check("no idea", puzzle).correct
    assert TASK.could_train_on(GymArguments(task=task), split.describe(), split.train[0])
    assert load_task(TASK.path) is TASK


def test_another_seed_asks_other_questions_on_the_same_side_of_the_split():
    """What one run holds out, no run of the same share trains on."""
    small = {"task": "count_bits", "task_config": {"max_n": 400}, "dataset_rows": 300, "held_out_puzzles": 99}
    one, other = (TASK.load(GymArguments(**small, dataset_seed=seed), False) for seed in (1, 2))
    assert one.train != other.train
    shared = {p.question for p in one.held_out} & {p.question for p in other.held_out}
    assert shared
    assert not {p.question for p in one.held_out} & {p.question for p in other.train}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param({"task": "leg_countin"}, "no 'leg_countin'; near it are leg_counting, ", id="nearly a name"),
        pytest.param({"task": ""}, "no ''; it has ab, acre, .*, zebra_puzzles", id="no name"),
        pytest.param(
            {"task": "leg_counting", "task_config": {"max_animal": 3}},
            "unexpected keyword argument 'max_animal'.*its keys are min_animals, max_animals, ",
            id="unknown key",
        ),
        pytest.param(
            {"task": "leg_counting", "task_config": {"max_animals": 0}}, "max_animals must be", id="bad value"
        ),
        pytest.param({"task": "leg_counting", "task_config": "{max"}, "a JSON object", id="no JSON"),
        pytest.param({"task": "leg_counting", "task_config": {"size": 3}}, "write the key dataset_rows", id="size"),
        pytest.param({"task": "leg_counting", "task_config": [3]}, "`name: value` pairs", id="a list"),
        pytest.param({"task": "leg_counting", "dataset_rows": 0}, "dataset_rows must be 1 or more", id="no questions"),
        pytest.param({"task": "composite"}, "at least one dataset", id="a composite of nothing"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(keys: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message) as refused:
        GymArguments(**keys).check()
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch):
    reasoning_gym._generator.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RecipeError, match=r"reasoning-gym is missing .*make install-reasoning-gym"):
        GymArguments(task="leg_counting").check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["", "7"])
def test_every_process_asks_the_same_questions(seed: str):
    """word_ladder's depend on the hashes of strings, which Python draws anew for every process."""
    program = (
        "import run_reasoning_gym as script; script.settle_hashes(); from mini_r1.reasoning_gym import *; "
        "print(TASK.load(GymArguments(task='word_ladder', dataset_rows=20), False).fingerprint())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONHASHSEED": seed}
    if not seed:
        del environment["PYTHONHASHSEED"]
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


# ---- scorers that run what a model wrote -------------------------------------------------------------------------


def test_the_scorers_that_run_answers_are_known():
    """Of the installed version: those in whose source an answer goes to `eval` or to sympy's parser."""
    from reasoning_gym.factory import DATASETS

    source = {name: inspect.getsource(sys.modules[cls.__module__]) for name, (cls, _) in DATASETS.items()}
    assert {name for name, text in source.items() if re.search(r"\b(?:eval|parse_expr)\(answer", text)} == RUNS_ANSWERS


@pytest.mark.parametrize(
    ("task", "config"),
    [
        pytest.param("n_queens", {}, id="by itself"),
        pytest.param(
            "composite", {"datasets": [TWO[0], {"name": "n_queens", "weight": 1, "config": {}}]}, id="in another"
        ),
    ],
)
def test_they_are_refused_unless_the_environment_trusts_them(
    task: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    reasoning_gym._generator.cache_clear()
    with pytest.raises(RecipeError, match=f"n_queens runs what the model wrote as Python code: .*{TRUST}=1"):
        load(task, **config)
    monkeypatch.setenv(TRUST, "1")
    assert load(task, rows=20, **config).train
    reasoning_gym._generator.cache_clear()


# ---- scores ------------------------------------------------------------------------------------------------------


def test_partial_credit_is_paid_and_is_not_solved():
    """leg_counting's scorer pays an answer that contains the right one by its share of the text."""
    puzzle = load("leg_counting").train[0]
    right = entry(puzzle)["answer"]
    completions = [of(right), of(f"0{right}0"), of("none"), "<think>cut off", of(right) + of(right)]
    columns = {name: [value] * len(completions) for name, value in puzzle._asdict().items()}
    share = len(right) / (len(right) + 2)
    assert accuracy_reward_func(completions, **columns) == [1.0, pytest.approx(share), 0.0, 0.0, 0.0]
    reasons = [judge(TASK, completion, puzzle).reason.value for completion in completions]
    assert reasons == ["correct", "partial", "wrong", "no_answer", "several_answers"]
    kept = [judged(TASK, c, puzzle, completion_tokens=1, step=1, split="train", rank=0, index=0) for c in completions]
    assert [sample.equation_reward == 1.0 for sample in kept] == [True, False, False, False, False]
    assert f"verdict: partial · score {share:.2f} · format 1" in kept[1].as_text()
    assert "score" not in kept[0].as_text()
    assert TASK.puzzle_of(kept[0].as_record()) == puzzle
    assert kept[0].as_record()["index"] == 0


def test_evaluations_count_partial_credit_apart_from_success():
    from mini_r1.evaluation.scores import Score, summarise
    from mini_r1.evaluation.table import _overall

    puzzle = load("leg_counting").train[0]
    right = entry(puzzle)["answer"]

    def result(*answers: str) -> dict[str, Any]:
        places = {"completion_tokens": 1, "step": 0, "split": "evaluation", "rank": 0}
        texts = enumerate(map(of, answers))
        scored = [[Score(judged(TASK, text, puzzle, index=i, **places), False) for i, text in texts]]
        return summarise(TASK, scored, [1])

    half = result(right, right * 2)
    assert (half["pass@1"], half["mean_score"]) == (0.5, 0.75)
    shown = [
        {"name": "x", "puzzles_per_second": 1.0, "strata": {"all puzzles": part}} for part in (half, result(right))
    ]
    assert ["mean score", "0.750"] in _overall(shown[:1])
    assert "mean score" not in [row[0] for row in _overall(shown[1:])]


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        pytest.param("game_of_life", '{"a":1}', id="it raises KeyError"),
        pytest.param("boxnet", "1", id="it raises TypeError"),
        pytest.param("coin_flip", "1e999999999", id="it computes for hours"),
    ],
)
def test_a_scorer_that_fails_on_an_answer_pays_nothing(task: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reasoning_gym, "MOST_SECONDS", 0.3)
    puzzle = load(task, rows=5).train[0]
    with pytest.raises((KeyError, TypeError, reasoning_gym._TooLong)), reasoning_gym._limited(0.3):
        reasoning_gym._generator(puzzle.task, puzzle.config).score_answer(answer, entry(puzzle))
    assert TASK.check(answer, puzzle).reason == "wrong"


# ---- other scripts -----------------------------------------------------------------------------------------------


def test_flags_about_countdown_are_refused_for_other_tasks():
    import evaluate
    from mini_r1.run_folder.checkpoints import Checkpoint

    recipe = {"task": "leg_counting", "task_config": {"max_animals": 4}, "dataset_rows": 300, "held_out_puzzles": 30}
    run = Checkpoint("x", "x", run={"recipe": recipe, "task": TASK.path})
    assert evaluate.choose_puzzles(evaluate.arguments(["x"]), run) == (
        TASK.load(run.puzzle_arguments(), False).held_out,
        "held-out puzzles of leg_counting",
    )
    for flags in (["--puzzles", "generate"], ["--number_counts", "3"]):
        with pytest.raises(UserError, match=f"{flags[0]} is not for mini_r1.reasoning_gym"):
            evaluate.choose_puzzles(evaluate.arguments(["x", *flags]), run)


def test_a_model_of_another_task_is_not_asked_to_play_countdown(tmp_path: Path):
    import play

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "run.json").write_text(f'{{"task": "{TASK.path}", "recipe": {{"task": "chain_sum"}}}}')
    with pytest.raises(UserError, match="only Countdown is played"):
        play.main([str(tmp_path), "--random", "1"])


# ---- chains of the cold start ------------------------------------------------------------------------------------


def chains(animals: Mapping[str, int], **how: float) -> list[str]:
    rng = np.random.default_rng(0)
    never = {"give_up_share": 0.0, "give_up_rate": 0.0, "slip_rate": 0.0, "notice_rate": 0.0}
    return [write_chain(animals, LEGS, rng, ChainArguments(**{**never, **how})) for _ in range(50)]


def test_a_chain_counts_every_animal():
    assert set(chains({"spider": 2, "cow": 1, "snake": 3})) == {
        "\n2 spiders: 2*8=16\n1 cow: 1*4=4, 16+4=20\n3 snakes: 3*0=0, 20+0=20\ndone.\n</think>\n<answer>20</answer>"
    }


def test_slips_are_noticed_or_carried_on():
    animals = {"spider": 2, "cow": 1}
    noticed = chains(animals, slip_rate=1.0, notice_rate=1.0)
    assert all(chain.count("wait, ") == 2 and chain.endswith("<answer>20</answer>") for chain in noticed)
    carried = chains(animals, slip_rate=1.0)
    assert not [chain for chain in carried if "wait" in chain or chain.startswith("\n2 spiders: 2*8")]
    sums = {(re.search(r"\+\d+=(\d+)\ndone", chain)[1], re.search("<answer>(.*)</", chain)[1]) for chain in carried}
    assert all(total == answer for total, answer in sums)


def test_giving_up_answers_with_the_sum_so_far():
    for chain in chains({"spider": 2, "cow": 1, "snake": 3}, give_up_share=1.0, give_up_rate=1.0):
        assert chain == "\n2 spiders: 2*8=16\nI give up.\n</think>\n<answer>16</answer>"


def test_what_all_prompts_share_becomes_a_token_each():
    start, end = fixed_parts([puzzle.question for puzzle in load("leg_counting").train])
    assert start.endswith("in total if you have ")
    assert end.startswith("?\n\n\nThink inside")


def test_puzzles_are_the_questions_that_people_read():
    assert str(Puzzle("How many?", "x", "{}", 0)) == "How many?"
