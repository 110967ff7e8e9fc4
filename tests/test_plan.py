"""The plan before the run: right arithmetic, at once, and no run that would fail later."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT, TINY_MODEL, TINY_RECIPE, flags, program_environment
from mini_r1 import plan, recipe
from mini_r1.placement import Machine, Placement
from mini_r1.plan import Device, batch_of, check_disk, check_memory, checkpoint_bytes, find_shape, memory_of, read_shape
from mini_r1.recipe import RecipeError
from mini_r1.trl_arguments import read_arguments
from mini_r1.vllm_server import VLLMArguments
from run_r1_grpo import ScriptArguments

# Qwen2.5-3B's config.json, as far as it counts.
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}  # fmt: skip
TRANSFORMERS_ON_GPU = Placement("transformers", on_cpu=False)
GPU = Device("a GPU", 80e9)


def values(name: str = "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", *overrides: str) -> SimpleNamespace:
    argv = ["--config", str(ROOT / "receipes" / name), *overrides]
    return recipe.read_lightly((ScriptArguments, VLLMArguments), argv)[0]


# ---- reading without TRL -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_arguments_read_from_source_are_trls():
    import dataclasses

    from trl import GRPOConfig, ModelConfig

    read = read_arguments()
    fields = {field.name: field for cls in (ModelConfig, GRPOConfig) for field in dataclasses.fields(cls)}
    assert set(read) == set(fields)
    for name, field in fields.items():
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        assert read[name][1] == default, name


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "receipes").glob("grpo-*.yaml")), ids=lambda path: path.name)
def test_recipes_read_lightly_have_the_values_that_the_real_parser_finds(path: Path):
    from trl import GRPOConfig, ModelConfig

    overrides = ["--config", str(path), "--number_counts", "3", "5", "--learning_rate", "5e-7", "--sample_share=0.5"]
    light, changed = recipe.read_lightly((ScriptArguments, VLLMArguments), overrides)
    real = recipe.read_values((ModelConfig, ScriptArguments, VLLMArguments, GRPOConfig), overrides)
    assert {"learning_rate", "sample_share", "max_steps"} <= set(changed)
    written = {key for key in recipe.read_yaml(path) if key != "env"} | {"number_counts", "sample_share"}
    for key in written - {"report_to", "lr_scheduler_type"}:  # a list and an enumeration there
        assert getattr(light, key) == getattr(real, key), key
    for key in ("vllm_device", "dataset_rows", "temperature", "num_generations", "beta", "per_device_eval_batch_size"):
        assert getattr(light, key) == getattr(real, key), key  # defaults, where the recipe says nothing


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["--max_step", "3"], "did you mean --max_steps?", id="unknown flag"),
    pytest.param(["--max_steps", "few"], "max_steps must be an integer", id="wrong type"),
    pytest.param(["--config"], "--config needs the path", id="no recipe"),
    pytest.param(["stray"], "unknown stray", id="a stray word"),
    pytest.param(["--vllm_engine_args", "{"], "cannot be read", id="broken value"),
])  # fmt: skip
def test_bad_command_lines_are_refused(arguments: list[str], message: str):
    with pytest.raises(RecipeError) as caught:
        recipe.read_lightly((ScriptArguments, VLLMArguments), arguments)
    assert message in str(caught.value)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def test_parameters_are_counted_as_they_are():
    shape = read_shape(QWEN)
    assert shape is not None
    assert shape.parameters == 3_085_938_688  # as the Hub has it
    tiny = find_shape(str(TINY_MODEL), None, ask_hub=False)
    assert tiny is not None
    assert tiny.parameters == 1_109_632  # counted in the file
    config = json.loads((TINY_MODEL / "config.json").read_text())
    by_formula = read_shape(config)
    assert by_formula is not None
    assert by_formula.parameters == tiny.parameters
    assert read_shape({"model_type": "something else"}) is None


def test_batches():
    batch = batch_of(values(), processes=3)
    assert (batch.per_step, batch.per_generation, batch.generations) == (192, 192, 8)
    fused = batch_of(values("grpo-tiny-countdown-cpu.yaml", "--steps_per_generation", "8"), processes=1)
    assert (fused.per_step, fused.per_generation) == (128, 256)
    with pytest.raises(RecipeError, match="no multiple of num_generations"):
        batch_of(values("grpo-tiny-countdown-cpu.yaml", "--num_generations", "7"), processes=1)
    with pytest.raises(RecipeError, match="must be a multiple of per_device_train_batch_size"):
        batch_of(values("grpo-tiny-countdown-cpu.yaml", "--generation_batch_size", "40"), processes=1)


@pytest.mark.parametrize(("environment", "processes", "dtype", "expected"), [
    pytest.param({}, 1, "float32", (4, 4, 8), id="plain float32"),
    pytest.param({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, 4, "bfloat16",
                 (2, 2, 12 / 4), id="ZeRO-1 shards the optimizer, with float32 masters"),
    pytest.param({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 3, "bfloat16",
                 (2 / 3, 2 / 3, 12 / 3), id="ZeRO-3 shards everything"),
    pytest.param({"ACCELERATE_USE_FSDP": "true"}, 2, "float32", (2, 2, 4), id="FSDP shards everything"),
])  # fmt: skip
def test_bytes_per_parameter(environment: dict, processes: int, dtype: str, expected: tuple):
    settings = values()
    settings.dtype = dtype
    shape = read_shape(QWEN)
    assert shape is not None
    machine = Machine(gpus=tuple(map(str, range(processes))), processes=processes, local_processes=processes)
    memory = memory_of(settings, shape, batch_of(settings, processes), machine, TRANSFORMERS_ON_GPU, environment)
    found = tuple(memory[key] / shape.parameters for key in ("weights", "gradients", "optimizer"))
    assert found == pytest.approx(expected)
    assert "reference model" in memory  # beta 0.001
    settings.beta = 0.0
    memory = memory_of(settings, shape, batch_of(settings, processes), machine, TRANSFORMERS_ON_GPU, environment)
    assert "reference model" not in memory


def test_an_adapter_trains_little_and_needs_no_reference():
    settings = values("grpo-qwen-2.5-1.5b-lora-1x24gb.yaml", "--beta", "0.1")
    shape = read_shape(QWEN)
    assert shape is not None
    machine = Machine(gpus=("0",))
    memory = memory_of(settings, shape, batch_of(settings, 1), machine, TRANSFORMERS_ON_GPU, {})
    assert memory["weights"] == pytest.approx(2 * shape.parameters, rel=0.1)
    assert memory["optimizer"] < 0.1 * memory["weights"]
    assert "reference model" not in memory


@pytest.mark.parametrize(("total", "message"), [
    pytest.param(24e9, "before a single activation", id="not even the weights"),
    pytest.param(65e9, "halve per_device_train_batch_size", id="not the activations"),
])  # fmt: skip
def test_memory_that_does_not_suffice(total: float, message: str):
    settings = values("grpo-qwen-2.5-3b-1x80gb.yaml", "--gradient_checkpointing", "false")
    shape = read_shape(QWEN)
    assert shape is not None
    machine, where = Machine(gpus=("0",)), Placement("colocate", on_cpu=False)
    memory = memory_of(settings, shape, batch_of(settings, 1), machine, where, {})
    try:
        lines = check_memory(settings, memory, machine, where, [Device("a GPU", total)], shape)
    except RecipeError as error:
        lines = [str(error)]
    assert message in "\n".join(lines)


@pytest.mark.parametrize("name", ["grpo-qwen-2.5-3b-1x80gb.yaml", "grpo-qwen-2.5-3b-8x80gb.yaml"])
def test_the_recipes_fit_their_hardware_by_the_same_estimate(name: str):
    settings = values(name)
    shape = read_shape(QWEN)
    assert shape is not None
    processes = 8 if "8x" in name else 1
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"} if processes == 8 else {}
    machine = Machine(gpus=tuple(map(str, range(processes))), processes=processes, local_processes=processes)
    where = Placement("colocate", on_cpu=False)
    memory = memory_of(settings, shape, batch_of(settings, processes), machine, where, zero)
    lines = check_memory(settings, memory, machine, where, [GPU] * processes, shape)
    assert "note:" not in "\n".join(lines), lines


def test_checkpoints_that_would_fill_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = values("grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", "--output_dir", str(tmp_path / "run"))
    zero3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    shape = read_shape(QWEN)
    assert shape is not None
    one = checkpoint_bytes(settings, shape, zero3)
    assert one == pytest.approx(43e9, rel=0.02)
    free = 5 * one
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert "4 x 43.2 GB" in check_disk(settings, shape, zero3)[0]  # three kept, and the new one
    settings.save_total_limit = None  # the article kept all 18
    with pytest.raises(RecipeError, match=r"18 checkpoints of 43.2 GB .* lower save_total_limit"):
        check_disk(settings, shape, zero3)


# ---- the real thing ------------------------------------------------------------------------------------------------


def dry_run(*arguments: str, recipe_path: Path = TINY_RECIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/run_r1_grpo.py", "--config", str(recipe_path), "--dry_run", *arguments],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(tmp_path: Path):
    done = dry_run("--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for part in ("placement: 1 training process", "= 128 completions = 16 puzzles x 8 generations", "1.1 M parameters",
                 "memory:", "disk:", "about 9 minutes for 40 steps", "nothing is uploaded", "learning_rate 0.0002",
                 "held out", "This run could start"):  # fmt: skip
        assert part in done.stdout, part
    assert not (tmp_path / "run").exists()


def test_a_dry_run_loads_no_torch():
    program = (
        "import runpy, sys; sys.argv = ['run_r1_grpo.py', '--config', 'receipes/grpo-tiny-countdown-cpu.yaml', "
        "'--dry_run']\n"
        "try: runpy.run_path('scripts/run_r1_grpo.py', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules)))"
    )
    environment = program_environment(PYTHONPATH=str(ROOT / "scripts"))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["--num_generations", "7"], "no multiple of num_generations (7)", id="groups"),
    pytest.param(["--model_name_or_path", "./nowhere"], "there is no folder ./nowhere", id="no such model"),
    pytest.param(["--model_name_or_path", "tests"], "holds no model", id="a folder without a model"),
    pytest.param(["--dataset_id_or_path", "./nowhere.jsonl"], "does not exist", id="no such puzzles"),
    pytest.param(["--bf16", "true"], "need a GPU", id="bf16 on the CPU"),
    pytest.param(["--attn_implementation", "flash_attention_2"], "needs a GPU", id="flash attention on the CPU"),
    pytest.param(["--max_completion_length", "2000"], "the model's context is 1024", id="longer than the context"),
    pytest.param(["--learning_rate", "-1"], "learning_rate must be positive", id="impossible value"),
    pytest.param(["--learning_rat", "1"], "did you mean --learning_rate?", id="unknown key"),
    pytest.param(["--use_vllm", "true", "--vllm_mode", "server", "--vllm_device", "cuda:3"], "no GPU in use",
                 id="a server on a GPU that is not there"),
    pytest.param(["--generation_batch_size", "128", "--steps_per_generation", "4"], "remove one", id="said twice"),
])  # fmt: skip
def test_what_would_fail_later_fails_in_the_plan(arguments: list[str], message: str):
    done = dry_run(*arguments)
    assert done.returncode == 2, done.stdout
    (error,) = done.stderr.splitlines()
    assert message in error


def test_gpus_are_asked_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0, GPU-a, H100, 81559\\n1, GPU-b, H100, 81559\\n2, GPU-c, A10, 23028\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [device.name for device in plan.find_gpus({})] == ["H100", "H100", "A10"]
    assert [device.total for device in plan.find_gpus({"CUDA_VISIBLE_DEVICES": "GPU-c, 0"})] == [
        23028 * 2**20,
        81559 * 2**20,
    ]
    assert plan.find_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_the_memory_estimate_is_within_a_fifth_of_a_real_runs_peak(checkpointing: bool, tmp_path: Path):
    """A 27 M model from random weights, whose completions all reach their limit, so that the worst case is the case."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(TINY_MODEL)
    config.update({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
                   "num_key_value_heads": 8, "layer_types": ["full_attention"] * 8})  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "model")
    settings = flags(
        model_name_or_path=tmp_path / "model", max_prompt_tokens=40, max_completion_length=128, max_steps=2,
        per_device_train_batch_size=32, gradient_accumulation_steps=1, eval_strategy="no", eval_on_start=False,
        save_strategy="no", dataset_rows=300, output_dir=tmp_path / "run", completion_samples_dir=tmp_path / "samples",
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    measure = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, sys.executable, "scripts/run_r1_grpo.py", "--config", str(TINY_RECIPE),
         *settings],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"peak (\d+)", done.stderr)[1])
    estimate = float(re.search(r"memory: +about ([\d.]+) GB", done.stderr)[1]) * 1e9
    assert estimate == pytest.approx(peak, rel=0.2), (estimate, peak)
