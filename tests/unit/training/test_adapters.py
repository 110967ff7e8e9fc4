"""LoRA: targets that match nothing are named, one target is enough, and an adapter comes with the way to merge it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY_MODEL, draft
from mini_r1.common import RecipeError
from mini_r1.recipe import Recipe
from mini_r1.recipe.memory import find_shape
from mini_r1.training.adapters import settle_targets

pytestmark = pytest.mark.slow


def asked(targets: object, model: str = str(TINY_MODEL)) -> Recipe:
    values = {"model_name_or_path": model, "model_revision": "main", "trust_remote_code": False, "dry_run": True}
    return draft(use_peft=True, lora_target_modules=targets, **values)


@pytest.mark.parametrize(
    ("targets", "settled"),
    [
        pytest.param(None, None, id="peft's default"),
        pytest.param("all-linear", "all-linear", id="all linear layers"),
        pytest.param(["q_proj", "v_proj"], ["q_proj", "v_proj"], id="two names"),
        pytest.param("q_proj", ["q_proj"], id="a list of one, as ModelConfig leaves it"),
        pytest.param("self_attn.q_proj", ["self_attn.q_proj"], id="the end of a path"),
        pytest.param(r".*\.[qv]_proj", r".*\.[qv]_proj", id="a pattern"),
    ],
)
def test_targets_that_the_model_has(targets: object, settled: object):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    recipe = asked(targets)
    settle_targets(recipe)
    assert recipe.model.lora_target_modules == settled
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY_MODEL), LoraConfig(task_type="CAUSAL_LM", target_modules=settled)
    )
    assert any("q_proj.lora_A" in name for name, _ in adapted.named_parameters())


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        (["q_proj", "v_pro"], "v_pro: it has .*v_proj"),
        ("v_pro", "called v_pro:"),
        (".*v_pro", r"called \.\*v_pro:"),
        ("(", "no pattern"),
    ],
)
def test_a_target_that_matches_nothing_is_named(targets: object, fault: str):
    with pytest.raises(RecipeError, match=rf"^lora_target_modules: .*{fault}"):
        settle_targets(asked(targets))


def test_a_model_that_is_not_here_is_not_looked_for_by_a_plan():
    settle_targets(asked(["anything"], "someone/model"))


def test_an_adapter_is_refused_with_a_command_that_merges_it(tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = tmp_path / "an adapter's"
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(TINY_MODEL).save_pretrained(adapter)  # as a run does
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(TINY_MODEL)
    with pytest.raises(RecipeError, match=r"^model_name_or_path: .* is a LoRA adapter: merge it") as refused:
        find_shape(str(adapter), None, ask_hub=False)
    command, keys = str(refused.value).partition("python ")[2].split(", and write ")
    assert keys == f"model_name_or_path: {adapter}/merged"
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, capture_output=True)
    assert find_shape(str(adapter / "merged"), None, ask_hub=False) == find_shape(str(TINY_MODEL), None, ask_hub=False)
