"""Every recipe is read by the real parser, and its batch arithmetic holds on the topology that its header names."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from conftest import ACCELERATE_CONFIGS, ROOT
from mini_r1.common import RecipeError
from mini_r1.generation.server import serve_command
from mini_r1.recipe import parsing as recipe
from mini_r1.recipe.placement import Machine, plan
from mini_r1.recipe.plan import as_if_there

pytestmark = pytest.mark.slow

RECEIPES = sorted((ROOT / "receipes").glob("*.yaml"))
GRPO = [path for path in RECEIPES if path.name.startswith("grpo-")]
SFT = [path for path in RECEIPES if path.name.startswith("sft-")]


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


def parse_all(path: Path, *overrides: str, processes: int = 1) -> tuple:
    """A recipe for the CPU as it is here, any other as on a machine that has the GPUs."""
    from trl import GRPOConfig, ModelConfig

    from run_r1_grpo import OWN_ARGUMENTS, check_values

    there = ["--plan_for", f"{processes}x80", "--plan_processes", str(processes)]
    argv = ["--config", str(path), *([] if "use_cpu: true" in path.read_text() else there), *overrides]
    return recipe.parse((ModelConfig, *OWN_ARGUMENTS, GRPOConfig), argv, check_values, as_if_there)


def parse_grpo(path: Path, *overrides: str) -> tuple:
    model_args, script_args, *_, args = parse_all(path, *overrides)
    return model_args, script_args, args


def test_there_are_recipes():
    assert {path.name for path in GRPO} >= {
        "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml",
        "grpo-tiny-countdown-cpu.yaml",
        "grpo-qwen-2.5-3b-1x80gb.yaml",
        "grpo-qwen-2.5-1.5b-lora-1x24gb.yaml",
        "grpo-qwen-2.5-3b-8x80gb.yaml",
    }
    assert SFT
    assert len(GRPO) + len(SFT) == len(RECEIPES)


@pytest.mark.parametrize("path", RECEIPES, ids=lambda path: path.name)
def test_header_names_hardware_and_a_launch_line_with_files_that_exist(path: Path):
    assert "Hardware:" in path.read_text()
    assert "Curve:" in path.read_text()
    words = launch_line(path)
    files = [word for word in words if word.endswith((".yaml", ".py"))]
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
    assert words[words.index("--config") + 1] == f"receipes/{path.name}"


@pytest.mark.parametrize("path", GRPO, ids=lambda path: path.name)
def test_grpo_recipe_parses_and_its_batch_is_whole_groups(path: Path):
    processes = processes_of(launch_line(path))
    model_args, *_, args = parse_all(path, processes=processes)  # keys are known, values have the right type
    assert model_args.model_name_or_path
    assert args.report_to == ["tensorboard"]
    completions = args.per_device_train_batch_size * processes * args.gradient_accumulation_steps
    assert args.generation_batch_size == completions
    stated = re.search(r"= (\d+) completions = (\d+) puzzles x (\d+) generations", path.read_text())
    assert stated, "the header states the batch"
    assert [int(n) for n in stated.groups()] == [completions, completions // args.num_generations, args.num_generations]


# Where each recipe's header says it runs: GPUs of the machine, training processes, who generates on which GPUs.
TOPOLOGIES = [
    ("grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", 4, 3, ("own_server", ("3",))),
    ("grpo-qwen-2.5-3b-1x80gb.yaml", 1, 1, ("colocate", ())),
    ("grpo-qwen-2.5-1.5b-lora-1x24gb.yaml", 1, 1, ("colocate", ())),
    ("grpo-qwen-2.5-3b-8x80gb.yaml", 8, 8, ("colocate", ())),
    ("grpo-tiny-countdown-cpu.yaml", 0, 1, ("transformers", ())),
]


@pytest.mark.parametrize(("name", "gpus", "processes", "expected"), TOPOLOGIES, ids=[row[0] for row in TOPOLOGIES])
def test_recipe_fits_the_machine_that_its_header_names(name: str, gpus: int, processes: int, expected: tuple):
    path = ROOT / "receipes" / name
    assert processes_of(launch_line(path)) == processes
    values = recipe.merged(*parse_all(path))
    machine = Machine(tuple(map(str, range(gpus))), processes=processes, local_processes=processes)
    placement = plan(values, machine, ("vllm", "0.31.0"))
    assert (placement.generation, placement.server_gpus) == expected
    assert not [line for line in placement.lines if "note:" in line]


def test_every_grpo_recipe_has_a_topology():
    assert {row[0] for row in TOPOLOGIES} == {path.name for path in GRPO}


@pytest.mark.parametrize(("name", "overrides", "expected"), [
    pytest.param(
        "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", [],
        "python -m vllm.entrypoints.cli.main serve Qwen/Qwen2.5-3B-Instruct "
        "--host 127.0.0.1 --port 8000 --max-model-len 1280 "
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.9 --model-impl vllm --seed 42 "
        "--logprobs-mode processed_logprobs --max-logprobs -1 --generation-config vllm --disable-uvicorn-access-log "
        """--weight-transfer-config '{"backend": "nccl"}' --enable-scale-out --revision main --dtype bfloat16 """
        "--enable-prefix-caching",
        id="four GPUs"),
    pytest.param(
        "grpo-qwen-2.5-3b-1x80gb.yaml", ["--vllm_mode", "server", "--vllm_weight_transfer", "folder"],
        "python -m vllm.entrypoints.cli.main serve Qwen/Qwen2.5-3B-Instruct "
        "--host 127.0.0.1 --port 8000 --max-model-len 1280 "
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.3 --model-impl vllm --seed 42 "
        "--logprobs-mode processed_logprobs --max-logprobs -1 --generation-config vllm --disable-uvicorn-access-log "
        "--enable-scale-out --revision main --dtype bfloat16 --enable-prefix-caching",
        id="one GPU, with a server elsewhere"),
])  # fmt: skip
def test_the_command_line_that_a_recipe_makes(name: str, overrides: list[str], expected: str):
    values = recipe.merged(*parse_all(ROOT / "receipes" / name, *overrides))
    placement = plan(values, Machine(("0", "1", "2", "3"), processes=3, local_processes=3), ("vllm", "0.31.0"))
    words = serve_command(values, placement, "127.0.0.1", 8000, python="/env/bin/python")
    assert shlex.join(words) == f"/env/bin/{expected}"


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_sft_recipe_parses(path: Path):
    from trl import SFTConfig

    from run_cold_start import ColdStartArguments, check_values

    args, training_args = recipe.parse((ColdStartArguments, SFTConfig), ["--config", str(path)], check_values)
    assert training_args.max_steps > 0
    # A tenth is held out, the most there is, so that whatever a GRPO recipe holds out was held out here as well.
    assert args.held_out_puzzles * 10 >= args.puzzles


def test_the_articles_run_in_todays_terms():
    model_args, script_args, args = parse_grpo(ROOT / "receipes" / "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml")
    assert model_args.model_name_or_path == "Qwen/Qwen2.5-3B-Instruct"
    assert script_args.dataset_id_or_path == "Jiayi-Pan/Countdown-Tasks-3to4"
    expected = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8, "num_generations": 8, "temperature": 0.9,
        "loss_type": "grpo", "scale_rewards": "group", "beta": 0.001, "use_bias_correction_kl": False,
        "vllm_importance_sampling_correction": False, "learning_rate": 5e-7, "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03, "max_completion_length": 1024, "max_steps": 450, "save_steps": 25, "seed": 42,
        "logging_steps": 2, "bf16": True, "gradient_checkpointing": True, "use_vllm": True, "vllm_mode": "server",
        "hub_strategy": "every_save",
    }  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    assert script_args.max_prompt_tokens == 256


def test_the_articles_launch_line_is_the_recipes():
    words = launch_line(ROOT / "receipes" / "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml")
    assert " ".join(words) == (
        "accelerate launch --num_processes 3 --config_file configs/accelerate_configs/deepspeed_zero3.yaml "
        "scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml"
    )


def test_command_line_overrides_the_recipe():
    _, script_args, args = parse_grpo(GRPO[0], "--max_steps", "7", "--sample_share=0.5")
    assert (args.max_steps, script_args.sample_share) == (7, 0.5)


@pytest.mark.parametrize(
    ("per_device", "generations", "strategy", "works"),
    [
        (12, 8, "steps", False),
        (12, 8, "epoch", False),
        (12, 8, "no", True),
        (16, 8, "steps", True),
        (4, 8, "steps", False),
        (4, 0, "steps", False),
        (7, 1, "steps", True),
    ],
)
@pytest.mark.parametrize("ours", [True, False], ids=["our line", "TRL's own check"])
def test_evaluation_batches_that_trl_refuses_are_refused_before(
    per_device: int, generations: int, strategy: str, works: bool, ours: bool
):
    from trl import GRPOConfig, ModelConfig

    from run_r1_grpo import OWN_ARGUMENTS, check_values

    argv = ["--config", str(ROOT / "receipes" / "grpo-tiny-countdown-cpu.yaml"), "--eval_strategy", strategy]
    argv += ["--per_device_eval_batch_size", str(per_device), "--num_generations_eval", str(generations)]
    outcome = contextlib.nullcontext()
    if not works:
        outcome = pytest.raises(RecipeError, match="eval_batch_size to a multiple" if ours else "must be divis")
    with outcome:
        recipe.parse((ModelConfig, *OWN_ARGUMENTS, GRPOConfig), argv, check_values if ours else None)


def test_bf16_that_is_left_out_is_refused_on_the_cpu(tmp_path: Path):
    text = (ROOT / "receipes" / "grpo-tiny-countdown-cpu.yaml").read_text()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("bf16: false\n", ""))
    with pytest.raises(RecipeError, match=r"left out for true\): write bf16: false"):
        parse_all(path)


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_config_is_read_by_accelerate(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))  # rejects keys that it does not know
    assert config.num_machines == (2 if "multinode" in path.name else 1)


def test_all_topologies_are_there():
    names = {path.name for path in ACCELERATE_CONFIGS.glob("*.yaml")}
    assert names >= {"cpu.yaml", "single_gpu.yaml", "deepspeed_zero3.yaml", "deepspeed_zero1.yaml", "fsdp.yaml"}
    assert "deepspeed_zero3_multinode.yaml" in names


# What people will paste: recipes from the web, and slips of the pen.
BAD_RECIPES = [
    pytest.param("torch_dtype: bfloat16", "`dtype`", id="renamed in transformers 5"),
    pytest.param("warmup_ratio: 0.03", "`warmup_steps`", id="removed in transformers 5"),
    pytest.param("max_prompt_length: 256", "count completions now", id="old recipe: batch sizes mean something else"),
    pytest.param("learning_rte: 1.0e-6", "did you mean learning_rate?", id="misspelt key"),
    pytest.param("max_steps: many", "max_steps must be an integer", id="text for an integer"),
    pytest.param("max_steps: 4.5", "max_steps must be an integer", id="fraction for an integer"),
    pytest.param("max_steps: true", "max_steps must be an integer", id="truth value for an integer"),
    pytest.param("learning_rate: .nan", "learning_rate must be a number", id="not a number"),
    pytest.param("bf16: 3", "bf16 must be", id="number for a truth value"),
    pytest.param("number_counts: 3", "number_counts must be", id="number for a list"),
    pytest.param("number_counts: [three]", "number_counts must be", id="list of the wrong type"),
    pytest.param("model_name_or_path: [a, b]", "model_name_or_path must be text", id="list for text"),
    pytest.param("save_strategy: no", 'write "no" in quotes', id="YAML's bare no"),
    pytest.param("learning_rate: -1.0e-6", "learning_rate must be positive", id="negative learning rate"),
    pytest.param("temperature: 0", "temperature must be positive", id="temperature zero"),
    pytest.param("num_generations: 1", "num_generations must be 2 or more", id="a group of one"),
    pytest.param("num_generations: null", "num_generations must be 2 or more", id="null where TRL's type allows it"),
    pytest.param("max_completion_length: null", "max_completion_length must be positive", id="unbounded completions"),
    pytest.param("reward_weights: [1e0, 1]", "reward_weights must be", id="number as text in a list"),
    pytest.param("dtype: bfloat", "dtype must be one of", id="word that is no choice of TRL's"),
    pytest.param("vllm_engine_args: fast", "vllm_engine_args must be a JSON object", id="text for engine arguments"),
    pytest.param("vllm_engine_args: [1]", "vllm_engine_args must be", id="list for engine arguments"),
    pytest.param("lerning_rate: 1\nmax_stps: 2", "max_stps", id="every misspelt key is named"),
    pytest.param("num_generations: 7", "no multiple of num_generations (7)", id="groups that do not fit"),
    pytest.param("sample_share: 1.5", "sample_share must be between 0 and 1", id="share above one"),
    pytest.param("target_range: [100, 10]", "target_range must be [low, high]", id="range upside down"),
    pytest.param("on_bad_row: ignore", "on_bad_row must be drop or fail", id="word that is no choice"),
    pytest.param("loss_type: nonsense\nloss_type: grpo", "stands there twice", id="key given twice"),
    pytest.param("- a\n- b", "must hold `key: value` lines", id="not a mapping"),
    pytest.param("a: [1, 2", "not valid YAML", id="broken YAML"),
    pytest.param("!!python/object/apply:os.system ['true']", "not valid YAML", id="YAML that would run code"),
]


@pytest.mark.parametrize(("text", "message"), BAD_RECIPES)
def test_bad_recipe_is_refused_in_one_line(text: str, message: str, tmp_path: Path):
    base = "output_dir: x\nreport_to: tensorboard\n" if ":" in text and not text.startswith(("-", "!", "a:")) else ""
    model = "" if "model_name_or_path" in text else "model_name_or_path: some/model\n"
    path = tmp_path / "recipe.yaml"
    path.write_text((base + model if base else "") + text + "\n")
    with pytest.raises(RecipeError) as caught:
        parse_grpo(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["--max_step", "3"], "unknown --max_step; did you mean --max_steps?", id="unknown flag"),
    pytest.param(["--max_steps", "few"], "max_steps", id="wrong type"),
    pytest.param(["--config"], "--config needs the path", id="no recipe after --config"),
    pytest.param(["--config", "nowhere.yaml"], "cannot read nowhere.yaml", id="no such recipe"),
    pytest.param([], "model_name_or_path must be", id="nothing at all"),
])  # fmt: skip
def test_bad_command_line_is_refused(arguments: list[str], message: str):
    from trl import GRPOConfig, ModelConfig

    from run_r1_grpo import OWN_ARGUMENTS, check_values

    with pytest.raises(RecipeError) as caught:
        recipe.parse((ModelConfig, *OWN_ARGUMENTS, GRPOConfig), arguments, check_values)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [
    "scale_rewards: false", "lora_target_modules: all-linear", "lora_target_modules: [q_proj]",
    "resume_from_checkpoint: true", "lr_scheduler_kwargs: {num_cycles: 2}", "report_to: [tensorboard]",
    "reward_weights: [1, 0.5]", 'save_strategy: "no"',
    "warmup_steps: 0.03", "vllm_importance_sampling_clip_max: null", "env: {SOME_VARIABLE: 3}",
])  # fmt: skip
def test_values_that_trl_takes_are_let_through(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_VARIABLE", "")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: some/model\noutput_dir: x\n{text}\n")
    parse_grpo(path)


def test_yaml_numbers_in_scientific_notation_without_a_dot_are_numbers(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: some/model\noutput_dir: x\nlearning_rate: 5e-7\n")
    assert parse_grpo(path)[2].learning_rate == 5e-7
