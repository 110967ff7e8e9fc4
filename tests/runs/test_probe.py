"""The probe on the embedded model: one page with true numbers, and a verdict that follows from them."""

from __future__ import annotations

import re

import pytest

import probe
from conftest import TINY_RECIPE, flags
from mini_r1.common import DataError, RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe.parsing import read_recipe
from mini_r1.run_folder.checkpoints import Checkpoint

pytestmark = pytest.mark.slow


def page(capsys: pytest.CaptureFixture[str], **keys: object) -> str:
    backend = {"groups": 12, "backend": "transformers"}
    probe.main([*flags(**backend), "--config", str(TINY_RECIPE), *flags(**{"num_generations": 4, **keys})])
    return capsys.readouterr().out


def test_the_tiny_recipe_will_learn(capsys: pytest.CaptureFixture[str]):
    out = page(capsys, price=3.5)
    assert "It will learn. " in out
    every, *kinds = (line.split("  ")[0] for line in out.splitlines() if line.count("%") == 3)
    assert every == "all puzzles"
    assert set(kinds) <= {f"{count} numbers, {how}" for count in (3, 4) for how in ("+ -", "needs * /")}
    tokens, entropy = (float(x) for x in re.search(r"(\d+) tokens a completion, entropy ([\d.]+)", out).groups())
    assert 20 < tokens <= 384
    assert 0.05 < entropy < 2
    sampling, updating = (float(x) for x in re.search(r"about ([\d.]+) s of .*and ([\d.]+) s", out).groups())
    assert sampling > 0
    assert updating > 0
    assert re.search(r"40 steps: \d+ minutes, [\d.]+ dollars", out)


def test_completions_without_room_will_not_learn(capsys: pytest.CaptureFixture[str]):
    out = page(capsys, max_completion_length=8)
    assert "It will not learn. 100% of the completions are cut off" in out
    assert "change: raise max_completion_length" in out


def test_it_samples_as_the_run_would():
    own = {"num_generations": 4, "temperature": 0.7, "top_k": 9, "generation_kwargs": '{"top_k": 5}'}
    recipe = read_recipe(["--config", str(TINY_RECIPE), *flags(**own)], TASK)
    sampling = probe.sampling_of(Checkpoint("x", "x", run={"recipe": recipe.resolved}), recipe.training)
    assert (sampling.completions, sampling.temperature, sampling.top_k, sampling.top_p) == (4, 0.7, 5, 1.0)


def test_prompts_that_the_run_would_drop_are_not_probed():
    with pytest.raises(DataError, match=r"no prompt fits: raise max_prompt_tokens \(9\)"):
        probe.main(["--config", str(TINY_RECIPE), "--max_prompt_tokens", "9"])


def test_no_group_is_refused():
    with pytest.raises(RecipeError, match="--groups must be 1 or more, got 0"):
        probe.main(["--groups", "0", "--config", str(TINY_RECIPE)])
