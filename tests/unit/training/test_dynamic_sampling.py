"""Dynamic sampling draws the same on every rank, where success is half, and replaces dead groups by whole ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from unit.training.test_trainer import make_trainer

pytestmark = pytest.mark.slow
KINDS = ["easy"] * 90 + ["hard"] * 10


def source(by_success: bool = True, seed: int = 1):
    from mini_r1.training.dynamic_sampling import PuzzleSource

    task = SimpleNamespace(puzzle_of=lambda row: row["index"], stratum=KINDS.__getitem__)
    return PuzzleSource(task, [{"index": i} for i in range(100)], by_success=by_success, seed=seed)


def drawn_kinds(from_source) -> Counter[str]:
    return Counter(KINDS[row["index"]] for row in from_source.draw(2000, 7, 0))


def test_draws_follow_from_seed_and_place_alone():
    rows = source().draw(20, 3, 1)
    assert source().draw(20, 3, 1) == rows
    assert all(other.draw(20, *place) != rows for other, place in (
        (source(), (4, 1)), (source(), (3, 2)), (source(seed=2), (3, 1)),
    ))  # fmt: skip


def test_kinds_are_drawn_by_their_success_and_uniformly_by_their_size():
    assert drawn_kinds(source(by_success=False))["hard"] == pytest.approx(200, abs=50)
    by_success = source()
    assert drawn_kinds(by_success)["hard"] == pytest.approx(1000, abs=100)  # nothing is known yet
    rows = [{"index": 0}] * 100 + [{"index": 99}] * 100
    solved = [True] * 97 + [False] * 3 + [True] * 20 + [False] * 80  # p (1 - p): 0.03 and 0.16
    by_success.count(by_success.tally(rows, solved), fades=True)
    assert by_success.counts == {"easy": [97.0, 100.0], "hard": [20.0, 100.0]}
    assert drawn_kinds(by_success)["hard"] == pytest.approx(2000 * 0.164 / (0.164 + 0.038), abs=100)
    for _ in range(200):  # what was counted long ago is forgotten, so a kind that is left out comes back
        by_success.count(by_success.tally([], []), fades=True)
    assert drawn_kinds(by_success)["hard"] == pytest.approx(1000, abs=100)


def test_dead_groups_make_room_for_fresh_ones_that_teach():
    import torch

    from mini_r1.training.dynamic_sampling import replace_groups

    def batch(advantages: list[float], width: int, token: int) -> dict:
        ids = torch.full((len(advantages), width), token)
        return {
            "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
            "completion_mask": torch.ones_like(ids), "advantages": torch.tensor(advantages), "num_items_in_batch": 0,
        }  # fmt: skip

    old = batch([1e-4, 1e-4, 1.0, -1.0, 0.0, 0.0], width=2, token=5)  # equal rewards, but for rounding the mean
    fresh = batch([0.0, 0.0, 2.0, -2.0], width=3, token=7)
    filled = replace_groups(old, fresh, generations=2)
    assert filled["advantages"].tolist() == [2.0, -2.0, 1.0, -1.0, 0.0, 0.0]
    assert filled["completion_ids"].tolist() == [[7, 7, 7]] * 2 + [[5, 5, 0]] * 4
    assert filled["prompt_ids"].tolist() == [[7, 7, 7]] * 2 + [[0, 5, 5]] * 4
    assert filled["prompt_mask"].tolist() == [[1, 1, 1]] * 2 + [[0, 1, 1]] * 4
    assert old["advantages"].tolist()[2:] == [1.0, -1.0, 0.0, 0.0]  # it is a new batch
    assert old["completion_ids"].size(1) == 2


def test_a_ratio_is_padded_with_one():
    import torch

    from mini_r1.training.dynamic_sampling import replace_groups

    old = {"advantages": torch.tensor([0.0, 0.0]), "importance_sampling_ratio": torch.full((2, 2), 0.5)}
    fresh = {"advantages": torch.tensor([0.0, 0.0]), "importance_sampling_ratio": torch.full((2, 3), 0.5)}
    filled = replace_groups(old, fresh, generations=2)
    assert filled["importance_sampling_ratio"].tolist() == [[0.5, 0.5, 1.0]] * 2  # nothing is alive in `fresh`


@pytest.mark.parametrize("choice", ["uniform", "success"])
def test_a_refilled_batch_is_one_that_the_rewards_confirm(choice: str, tmp_path: Path):
    """Every row's advantage is that of its own text, and what is logged is the first round."""
    import torch

    from run_r1_grpo import equation_reward_func, format_reward_func

    def right(rows, completions, prompts, **_):
        fields = {key: [row[key] for row in rows] for key in ("nums", "target")}
        return equation_reward_func(completions, prompts=prompts, **fields)

    seen = []

    def on_scored(**batch):
        seen.append(batch["split"])
        return [reward == 1 for reward in right(**batch)]

    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, on_scored, own={"refill_rounds": 3, "puzzle_choice": choice})
    trainer.model.train()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)])

    def texts(part: str, **settings: bool) -> list[str]:
        pairs = zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)
        return trainer.processing_class.batch_decode([ids[mask.bool()] for ids, mask in pairs], **settings)

    prompts, completions = texts("prompt"), texts("completion", skip_special_tokens=True)
    puzzles = {row["prompt"]: row for row in trainer.train_dataset}
    solved = right([puzzles[prompt] for prompt in prompts], completions, prompts)
    rewards = torch.tensor(solved).add(torch.tensor(format_reward_func(completions, prompts))).view(-1, 4)
    spread = rewards - rewards.mean(1, keepdim=True)
    expected = spread / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(batch["advantages"].view(-1, 4), expected, atol=1e-5, rtol=1e-5)
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    logged = trainer._metrics["train"]
    assert ("refill" in seen) == (choice == "success")  # else nobody wants to know
    assert len(logged["reward"]) == 1
    assert logged["dead_groups"][0] < logged["frac_reward_zero_std"][0]
    counted = sum(completions for _, completions in trainer._source.counts.values())
    assert (counted > 0) == (choice == "success")
