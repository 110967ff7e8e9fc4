"""Cutting the evaluation set to whole batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mini_r1.common import RecipeError
from run_r1_grpo import whole_batches


class Rows(list):
    def select(self, indices: range) -> Rows:
        return Rows(self[i] for i in indices)


@pytest.mark.parametrize(
    ("puzzles", "per_device", "processes", "generations", "kept", "per_device_after"),
    [
        pytest.param(512, 256, 1, 1, 512, 256, id="fits as it is"),
        pytest.param(300, 256, 1, 1, 256, 256, id="the short batch is left out"),
        pytest.param(512, 16, 3, 1, 480, 16, id="three processes: 48 puzzles a batch"),
        pytest.param(21, 256, 1, 1, 21, 21, id="one batch of what there is"),
        pytest.param(7, 256, 2, 1, 6, 3, id="fewer puzzles than a batch, two processes"),
        pytest.param(30, 16, 1, 4, 28, 16, id="four answers each: four puzzles a batch"),
        pytest.param(3, 16, 1, 8, 2, 16, id="eight answers each: two puzzles a batch"),
        pytest.param(1, 16, 1, 8, 1, 8, id="a batch of one puzzle's answers"),
    ],
)
def test_whole_batches(
    puzzles: int, per_device: int, processes: int, generations: int, kept: int, per_device_after: int
):
    args = SimpleNamespace(
        world_size=processes, per_device_eval_batch_size=per_device, num_generations_eval=generations, num_generations=8
    )
    cut = whole_batches(Rows(range(puzzles)), args)
    assert list(cut) == list(range(kept))
    assert args.per_device_eval_batch_size == per_device_after
    assert (len(cut) * generations) % (args.per_device_eval_batch_size * processes) == 0


@pytest.mark.parametrize(("puzzles", "processes"), [(0, 1), (1, 2)])
def test_too_few_puzzles_for_one_batch(puzzles: int, processes: int):
    args = SimpleNamespace(
        world_size=processes, per_device_eval_batch_size=8, num_generations_eval=1, num_generations=8
    )
    with pytest.raises(RecipeError, match="held_out_puzzles"):
        whole_batches(Rows(range(puzzles)), args)
