"""Every recipe is read by the real parser, and its batch arithmetic holds on the topology that its header names."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from conftest import ACCELERATE_CONFIGS, ROOT, TINY_RECIPE
from mini_r1 import reasoning_gym
from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import Recipe
from mini_r1.recipe import placement as placing
from mini_r1.recipe.files import read_yaml
from mini_r1.recipe.machine import Machine
from mini_r1.recipe.parsing import parse, read_recipe

pytestmark = pytest.mark.slow

RECEIPES = sorted((ROOT / "receipes").glob("*.yaml"))
GRPO = [path for path in RECEIPES if path.name.startswith("grpo-")]
SFT = [path for path in RECEIPES if path.name.startswith("sft-")]
ARTICLE = ROOT / "receipes" / "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml"


def launch_line(path: Path) -> list[str]:
    """The command in a recipe's header, as words."""
    header = "\n".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    line = re.search(r"Launch:\s+((?:.*\\\n)*.*)", header)
    assert line, f"{path.name} does not open with its launch line"
    return shlex.split(line[1].replace("\\\n", " "))


def processes_of(words: list[str]) -> int:
    if "--num_processes" in words:
        return int(words[words.index("--num_processes") + 1])
    return int(yaml.safe_load((ROOT / words[words.index("--config_file") + 1]).read_text())["num_processes"])


def read(path: Path, *overrides: str, processes: int = 1) -> Recipe:
    """A recipe for the CPU as it is here, any other as on a machine that has the GPUs."""
    there = ["--plan_for", f"{processes}x80", "--plan_processes", str(processes)]
    task = reasoning_gym.TASK if "run_reasoning_gym.py" in path.read_text() else TASK
    return read_recipe(
        ["--config", str(path), *([] if "use_cpu: true" in path.read_text() else there), *overrides], task
    )


# ---- our recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECEIPES, ids=lambda path: path.name)
def test_header_names_hardware_and_a_launch_line_with_files_that_exist(path: Path):
    assert path in (*GRPO, *SFT)
    assert "Hardware:" in path.read_text()
    assert "Curve:" in path.read_text()
    words = launch_line(path)
    files = [word for word in words if word.endswith((".yaml", ".py"))]
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
    assert words[words.index("--config") + 1] == f"receipes/{path.name}"


# Where each recipe's header says it runs: GPUs of the machine, training processes, who generates on which GPUs.
TOPOLOGIES = {
    ARTICLE.name: (4, 3, ("own_server", ("3",))),
    "grpo-qwen-2.5-3b-1x80gb.yaml": (1, 1, ("colocate", ())),
    "grpo-qwen-2.5-1.5b-lora-1x24gb.yaml": (1, 1, ("colocate", ())),
    "grpo-qwen-2.5-0.5b-lora-1x16gb.yaml": (1, 1, ("transformers", ())),
    "grpo-qwen-2.5-0.5b-base-1x16gb.yaml": (1, 1, ("transformers", ())),
    "grpo-qwen-2.5-3b-8x80gb.yaml": (8, 8, ("colocate", ())),
    TINY_RECIPE.name: (0, 1, ("transformers", ())),
    "grpo-tiny-countdown-3-numbers-cpu.yaml": (0, 1, ("transformers", ())),
    "grpo-tiny-leg-counting-cpu.yaml": (0, 1, ("transformers", ())),
}


@pytest.mark.parametrize("path", GRPO, ids=lambda path: path.name)
def test_grpo_recipe_fits_its_machine_and_its_batch_is_whole_groups(path: Path):
    gpus, processes, expected = TOPOLOGIES[path.name]
    assert processes_of(launch_line(path)) == processes
    recipe = read(path, processes=processes)  # keys are known, values have the right type
    assert recipe.training.report_to == ["tensorboard"]
    completions, group = recipe.training.generation_batch_size, recipe.training.num_generations
    stated = re.search(r"= (\d+) completions = (\d+) puzzles x (\d+) generations", path.read_text())
    assert stated, "the header states the batch"
    assert [int(n) for n in stated.groups()] == [completions, completions // group, group]
    machine = Machine(tuple(map(str, range(gpus))), processes=processes, local_processes=processes)
    with mock.patch.object(placing, "installed_vllm", return_value=("vllm", "0.31.0")):
        placement = placing.place(recipe, machine)
    assert (placement.generation, placement.server_gpus) == expected
    assert not [line for line in placement.lines if "note:" in line]


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_sft_recipe_parses(path: Path):
    import run_cold_start
    import run_leg_counting_cold_start

    own, check = (run_cold_start.ColdStartArguments, TASK.arguments), run_cold_start.check_values
    if "scripts/run_leg_counting_cold_start.py" in launch_line(path):
        own = (run_leg_counting_cold_start.ChainArguments, reasoning_gym.GymArguments)
        check = run_leg_counting_cold_start.check_values
    _, puzzles, training = parse(["--config", str(path)], None, own, ("SFTConfig",), check)
    assert training.max_steps > 0
    # A tenth is held out, the most there is, so that whatever a GRPO recipe holds out was held out here as well.
    assert puzzles.held_out_puzzles * 10 >= puzzles.dataset_rows


def test_the_articles_run_in_todays_terms():
    assert shlex.join(launch_line(ARTICLE)) == (
        "accelerate launch --num_processes 3 --config_file configs/accelerate_configs/deepspeed_zero3.yaml "
        "scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml"
    )
    expected = {
        "model_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
        "dataset_id_or_path": "Jiayi-Pan/Countdown-Tasks-3to4",
        "max_prompt_tokens": 256,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "num_generations": 8,
        "temperature": 0.9,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "beta": 0.001,
        "use_bias_correction_kl": False,
        "vllm_importance_sampling_correction": False,
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_completion_length": 1024,
        "max_steps": 450,
        "save_steps": 25,
        "seed": 42,
        "logging_steps": 2,
        "bf16": True,
        "gradient_checkpointing": True,
        "use_vllm": True,
        "vllm_mode": "server",
        "hub_strategy": "every_save",
    }
    resolved = read(ARTICLE).resolved
    assert {key: resolved[key] for key in expected} == expected


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_config_is_read_by_accelerate(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))  # rejects keys that it does not know
    assert config.num_machines == (2 if "multinode" in path.name else 1)


# ---- reading -------------------------------------------------------------------------------------------------------


def test_given_are_the_keys_that_differ_from_the_defaults_and_the_command_line_wins():
    recipe = read(TINY_RECIPE, "--number_counts", "3", "5", "--learning_rate", "5e-7", "--sample_share=0.5")
    given = recipe.given
    assert (given["number_counts"], given["learning_rate"], given["max_steps"]) == ([3, 5], 5e-7, 40)
    assert (recipe.script.sample_share, recipe.path) == (0.5, str(TINY_RECIPE))
    written = read_yaml(TINY_RECIPE)
    assert set(given) - {"env", "sample_share"} <= set(written)
    assert {"temperature", "beta", "seed"} <= set(written) - set(given)  # written, but as they are by default


def test_help_is_short_and_loads_nothing_heavy():
    program = (
        "import sys; sys.path.insert(0, 'scripts')\n"
        "from mini_r1.countdown import TASK\n"
        "from mini_r1.recipe.parsing import read_recipe\n"
        "try: read_recipe(['--help'], TASK, 'What it does.')\n"
        "finally: print({'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], lines[-1]) == (0, "What it does.", "set()")
    assert "  --plan_for (default: None)" in lines
    assert len(lines) < 120


# What people will paste: recipes from the web, and slips of the pen.
BAD_RECIPES = [
    ("torch_dtype: bfloat16", "`dtype`", "renamed in transformers 5"),
    ("warmup_ratio: 0.03", "`warmup_steps`", "removed in transformers 5"),
    ("max_prompt_length: 256", "count completions now", "old recipe: batch sizes mean something else"),
    ("learning_rte: 1.0e-6", "did you mean learning_rate?", "misspelt key"),
    ("max_steps: many", "max_steps must be int", "text for an integer"),
    ("max_steps: 4.5", "max_steps must be int", "fraction for an integer"),
    ("max_steps: true", "max_steps must be int", "truth value for an integer"),
    ("learning_rate: .nan", "learning_rate must be float", "not a number"),
    ("bf16: 3", "bf16 must be", "number for a truth value"),
    ("number_counts: 3", "number_counts must be", "number for a list"),
    ("number_counts: [three]", "number_counts must be", "list of the wrong type"),
    ("model_name_or_path: [a, b]", "model_name_or_path must be ", "list for text"),
    ("save_strategy: no", 'write "no" in quotes', "YAML's bare no"),
    ("learning_rate: -1.0e-6", "learning_rate must be positive", "negative learning rate"),
    ("num_generations: 1", "num_generations must be 2 or more", "a group of one"),
    ("num_generations: null", "num_generations must be 2 or more", "null where TRL's type allows it"),
    ("max_completion_length: null", "max_completion_length must be positive", "unbounded completions"),
    ('reward_weights: ["1", 1]', "reward_weights must be", "number as text in a list"),
    ("dtype: bfloat", "dtype must be one of", "word that is no choice of TRL's"),
    ("vllm_engine_args: fast", "vllm_engine_args must be a JSON object", "text for engine arguments"),
    ("vllm_engine_args: [1]", "vllm_engine_args must be", "list for engine arguments"),
    ("lerning_rate: 1\nmax_stps: 2", "max_stps", "every misspelt key is named"),
    ("num_generations: 7", "no multiple of num_generations (7)", "groups that do not fit"),
    ("sample_share: 1.5", "sample_share must be between 0 and 1", "share above one"),
    ("guard_truncated_share: 90", "guard_truncated_share must be between 0 and 1", "per cent"),
    ("guard_kl: -1", "guard_kl must be 0 or more", "negative threshold"),
    ("hub_extras: [logs]", "hub_extras must be a list of tensorboard", "word that is no extra"),
    ("target_range: [100, 10]", "target_range must be [low, high]", "range upside down"),
    ("on_bad_row: ignore", "on_bad_row must be drop or fail", "word that is no choice"),
    ("held_out_puzzles: -1", "held_out_puzzles must be 0 or more", "the task's own rule"),
    ("eval_strategy: steps\neval_puzzles: 0", "eval_puzzles must be 1 or more", "nothing to evaluate on"),
    ("use_vllm: true\nvllm_tensor_parallel_size: 0", "must be 1 or more", "no GPU for an engine"),
    ("env: [A]", "env must hold `NAME: value` lines", "a list for variables"),
    ("generation_batch_size: 64\nsteps_per_generation: 2", "at the same time", "a rule of TRL's"),
    ("vllm_weight_transfer: http", "vllm_weight_transfer must be", "an unknown transport"),
    (
        "per_device_train_batch_size: 16\ngeneration_batch_size: 40",
        "must be divisible by the global batch size",
        "another rule of TRL's",
    ),
    ("puzzle_choice: easy", "puzzle_choice must be", "word that is no way of choosing"),
    ("refill_rounds: 1\nscale_rewards: batch", "a scale of its own", "rounds that cannot be mixed"),
    ("metric_for_best_model: eval_loss", "evaluations compute no loss", "a measure that is not taken"),
    ("loss_type: nonsense\nloss_type: grpo", "duplicate key loss_type", "key given twice"),
]


@pytest.mark.parametrize(("text", "message"), [row[:2] for row in BAD_RECIPES], ids=[row[2] for row in BAD_RECIPES])
def test_bad_recipe_is_refused_in_one_line(text: str, message: str, tmp_path: Path):
    model = "" if "model_name_or_path" in text else "model_name_or_path: some/model\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: x\nreport_to: tensorboard\n{model}{text}\n")
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert message in str(caught.value)


def test_refills_need_whole_groups_in_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    batch = "per_device_train_batch_size: 8\ngradient_accumulation_steps: 1\nnum_generations: 12"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: x\nmodel_name_or_path: some/model\nrefill_rounds: 1\n{batch}\n")
    monkeypatch.setattr("mini_r1.recipe.checks.training_processes", lambda recipe: 3)
    with pytest.raises(RecipeError, match=r"8 completions of a process are no multiple of num_generations \(12\)"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("- a\n- b", "must hold `key: value` lines", id="not a mapping"),
        pytest.param("a: [1, 2", "cannot read", id="broken YAML"),
        pytest.param("a: 2025-13-01", "cannot read", id="no such date"),
        pytest.param("!!python/object/apply:os.system ['true']", "cannot read", id="YAML that would run code"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--max_step", "3"], "unknown key max_step; did you mean max_steps?", id="unknown flag"),
        pytest.param(["--max_steps", "few"], "max_steps", id="wrong type"),
        pytest.param(["--config"], "argument --config: expected one argument", id="no recipe after --config"),
        pytest.param(["--config", "nowhere.yaml"], "cannot read nowhere.yaml", id="no such recipe"),
        pytest.param([], "model_name_or_path must be", id="nothing at all"),
    ],
)
def test_bad_command_line_is_refused(arguments: list[str], message: str):
    with pytest.raises(RecipeError) as caught:
        read_recipe(arguments, TASK)
    assert message in str(caught.value)


def test_values_that_trl_takes_are_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_VARIABLE", "")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: some/model\noutput_dir: x\nscale_rewards: false\nlora_target_modules: all-linear\n"
        "resume_from_checkpoint: true\nlr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "report_to: [tensorboard]\n"
        'reward_weights: [1, 5e-1]\nsave_strategy: "no"\nwarmup_steps: 0.03\nlearning_rate: 5e-7\n'
        "vllm_importance_sampling_clip_max: null\nenv: {SOME_VARIABLE: 3}\n"
    )
    training = read(path).training
    assert (training.learning_rate, training.scale_rewards, training.resume_from_checkpoint) == (5e-7, "none", True)


@pytest.mark.parametrize(
    ("per_device", "generations", "strategy", "works"),
    [
        (12, 8, "steps", False),
        (12, 8, "no", True),
        (16, 8, "steps", True),
        (4, 0, "steps", False),
        (7, 1, "steps", True),
    ],
)
def test_evaluation_batches_must_be_whole_groups(per_device: int, generations: int, strategy: str, works: bool):
    """GRPOConfig's own rule, which `evaluation_batch` takes for granted."""
    argv = ["--config", str(TINY_RECIPE), "--eval_strategy", strategy]
    argv += ["--per_device_eval_batch_size", str(per_device), "--num_generations_eval", str(generations)]
    with contextlib.nullcontext() if works else pytest.raises(RecipeError, match="must be divisible"):
        read_recipe(argv, TASK)


def test_bf16_that_is_left_out_is_refused_on_the_cpu(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY_RECIPE.read_text().replace("bf16: false\n", ""))
    with pytest.raises(RecipeError, match=r"left out for true\): write bf16: false"):
        read(path)
