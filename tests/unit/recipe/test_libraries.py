"""What TRL and transformers refuse late is one line before anything loads."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from conftest import TINY_RECIPE
from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import libraries
from mini_r1.recipe.checks import check_rewards
from mini_r1.recipe.foreign import FOREIGN_KEYS, instead
from mini_r1.recipe.parsing import read_draft, read_recipe

pytestmark = pytest.mark.slow  # TRL reads the recipes


def read(path: Path, text: str, *overrides: str):
    """The tiny recipe with some lines put in place of its own."""
    keys = tuple(f"{line.partition(':')[0]}:" for line in text.splitlines())
    kept = [line for line in TINY_RECIPE.read_text().splitlines() if not line.startswith(keys)]
    path.write_text("\n".join([*kept, text]))
    return read_recipe(["--config", str(path), *overrides], TASK)


THERE = ("--plan_for", "1x80", "--use_cpu", "false")
LATE = [
    (
        "report_to: swanlab",
        "report_to: SwanLabCallback requires swanlab to be installed. Run `pip install",
        "a package",
    ),
    ("report_to: [tensorboard, clearml]", "Run `pip install clearml`", "a second tracker's package"),
    ("report_to: mlflow", "Run `pip install mlflow`", "a tracker whose destructor fails"),
    ("report_to: wandbb", "report_to: wandbb is not supported, only azure_ml", "no tracker"),
    ("optim: lomo", "optim: lomo, optim_args: None: You need to install `lomo_optim`", "an optimizer's package"),
    ("optim: adamw_hf", "optim must be one of adamw_torch, ", "an optimizer of old"),
    ("optim_args: momentum", "optim_args: momentum: not enough values", "arguments of an optimizer"),
    ("use_liger_kernel: true", "`pip install liger-kernel`", "liger"),
    ("loss_type: gspo", "loss_type must be one of grpo, dr_grpo, dapo, ", "a loss of another project"),
    ("scale_rewards: std", "scale_rewards must be one of group, batch, none", "a scale"),
    ("importance_sampling_level: seq", "must be one of token, sequence, got 'seq'", "a level"),
    ("attn_implementation: flash_attention_3", "flash_attention_3 needs a GPU: write sdpa", "flash on the CPU"),
    ("attn_implementation: flash", "attn_implementation must be one of eager, ", "no attention"),
    ("attn_implementation: kernels-community/flash-attn3", "`pip install 'kernels>=", "a Hub kernel"),
    ("lr_scheduler_type: COSINE", "lr_scheduler_type must be one of linear, cosine, ", "a schedule in capitals"),
    ("lr_scheduler_type: warmup_stable_decay", "num_decay_steps", "a schedule without its arguments"),
    ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {cycles: 2}", "argument 'cycles'", "an unknown argument"),
    (
        "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: two}",
        "lr_scheduler_kwargs: {'power': 'two'}: ",
        "an argument that is looked at after the warm-up",
    ),
    ("generation_kwargs: {top_kk: 3}", "generation_kwargs: transformers' GenerationConfig has no top_kk", "a slip"),
    ("top_k: -1", "top_k: `top_k` has to be a strictly positive integer, but is -1", "vLLM's word for off"),
    ("top_p: 95", "top_p: `top_p` has to be a float > 0 and < 1, but is 95", "percent"),
    ("min_p: 1.5", "min_p: `min_p` has to be a float in the [0, 1] interval, but is 1.5", "no share"),
    ("repetition_penalty: 0", "repetition_penalty: `penalty` has to be a strictly positive float", "no penalty"),
    ("model_init_kwargs: fast", "model_init_kwargs must be `name: value` pairs", "text for pairs"),
    ("remove_unused_columns: true", "remove_unused_columns must be false", "the puzzles' columns"),
    ("load_best_model_at_end: true\nsave_steps: 7", "found 7, which is not a round multiple of 10", "steps"),
    ("dataset_name: some/puzzles", "dataset_name is no key here: write `dataset_id_or_path`", "another project's key"),
    ("wandb_project: mine", "wandb_project is no key here: write `report_to`", "one of many such keys"),
]


@pytest.mark.parametrize(("text", "message"), [row[:2] for row in LATE], ids=[row[2] for row in LATE])
def test_one_line_before_anything_loads(text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path / "recipe.yaml", text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-7}", id="a small rate"),
        pytest.param("lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {num_decay_steps: 9}", id="decay"),
        pytest.param("optim: sgd\noptim_args: momentum=0.9", id="arguments of an optimizer"),
        pytest.param("scale_rewards: false\nreport_to: none", id="false stands for none"),
        pytest.param("attn_implementation: eager\nmodel_init_kwargs: {use_cache: false}", id="eager"),
        pytest.param("save_steps: 10\nload_best_model_at_end: true", id="steps that fit"),
    ],
)
def test_what_works_is_let_through(text: str, tmp_path: Path):
    read(tmp_path / "recipe.yaml", text)


def test_packages_of_another_machine_are_not_asked_for(tmp_path: Path):
    for text in (
        "report_to: swanlab",
        "optim: lomo",
        "use_liger_kernel: true",
        "attn_implementation: flash_attention_3",
    ):
        read(tmp_path / "recipe.yaml", text, *THERE)
    for text in ("report_to: wandbb", "loss_type: gspo", "lr_scheduler_type: warmup_stable_decay"):
        with pytest.raises(RecipeError):
            read(tmp_path / "recipe.yaml", text, *THERE)


def test_trackers_are_let_through_and_wandb_needs_a_key_or_to_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads its variables once a session
    with pytest.raises(RecipeError, match="report_to: wandb has no API key: `wandb login`, or keep the run on this"):
        read(tmp_path / "recipe.yaml", "report_to: [trackio, wandb]")
    wandb.teardown()
    assert read(tmp_path / "recipe.yaml", "report_to: [trackio, wandb]\nenv: {WANDB_MODE: offline}")
    wandb.teardown()


@pytest.mark.parametrize(
    "text", ["optim: paged_adamw_8bit", "use_peft: true\nload_in_4bit: true", "use_peft: true\nload_in_8bit: true"]
)
def test_quantization_without_its_package(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers.trainer_optimizer
    import transformers.utils

    for module in (transformers.trainer_optimizer, transformers.utils):
        monkeypatch.setattr(module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(RecipeError, match=r"`pip install (-U )?bitsandbytes`"):
        read(tmp_path / "recipe.yaml", text)


def test_every_reward_has_a_weight(tmp_path: Path):
    recipe = read(tmp_path / "recipe.yaml", "reward_weights: [1.0]")
    check_rewards(recipe, [len])
    with pytest.raises(RecipeError, match=r"reward_weights must be 2 numbers, one for each reward function, got \[1"):
        check_rewards(recipe, [len, len])


def test_the_values_that_trls_help_names():
    """The help is prose: whoever takes another TRL sees here whether it still names the values."""
    assert importlib.metadata.version("trl") == "1.16.0"
    found = {key: " ".join(libraries.allowed_words(key)) for key in libraries._WORDS}
    assert found == {
        "loss_type": "grpo dr_grpo dapo bnpo cispo sapo luspo vespo",
        "scale_rewards": "group batch none",
        "importance_sampling_level": "token sequence",
        "multi_objective_aggregation": "sum_then_normalize normalize_then_sum",
        "vllm_mode": "server colocate",
        "vllm_model_impl": "transformers vllm",
        "vllm_importance_sampling_mode": "token_truncate token_mask sequence_truncate sequence_mask",
    }


def test_successors_of_foreign_keys_are_keys_of_ours():
    known = {*read_draft([], TASK).resolved, "env"}
    for key, text in FOREIGN_KEYS.items():
        named = [word.partition(":")[0].split()[0] for word in re.findall(r"`([^`]+)`", text)]
        assert set(named) <= known, (key, named)
        assert key not in known
        assert instead(key, known) == f"{key} is no key here: {text}"
