"""The plan before the run: right arithmetic, at once, and no run that would fail later."""

from __future__ import annotations

import argparse
import itertools
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
from mini_r1.plan import (
    Device,
    batch_of,
    check_disk,
    check_evaluation,
    check_memory,
    check_output_dir,
    check_software,
    checkpoint_bytes,
    find_shape,
    memory_of,
    read_shape,
)
from mini_r1.recipe import RecipeError
from mini_r1.trl_arguments import read_arguments
from run_r1_grpo import OWN_ARGUMENTS, whole_batches

# Qwen2.5-3B's config.json, as far as it counts.
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}  # fmt: skip
TRANSFORMERS_ON_GPU = Placement("transformers", on_cpu=False)
GPU = Device("a GPU", 80e9)
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


class Rows(list):
    """As much of a data set as `whole_batches` needs."""

    def select(self, indices: range) -> Rows:
        return Rows(self[i] for i in indices)


def values(name: str = "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", *overrides: str) -> SimpleNamespace:
    argv = ["--config", str(ROOT / "receipes" / name), *overrides]
    return recipe.read_lightly(OWN_ARGUMENTS, argv)[0]


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
    light, changed = recipe.read_lightly(OWN_ARGUMENTS, overrides)
    real = recipe.read_values((ModelConfig, *OWN_ARGUMENTS, GRPOConfig), overrides)
    assert {"learning_rate", "sample_share", "max_steps"} <= set(changed)
    written = {key for key in recipe.read_yaml(path) if key != "env"} | {"number_counts", "sample_share"}
    for key in written - {"report_to", "lr_scheduler_type"}:  # a list and an enumeration there
        assert getattr(light, key) == getattr(real, key), key
    for key in ("vllm_device", "dataset_rows", "temperature", "num_generations", "beta", "per_device_eval_batch_size"):
        assert getattr(light, key) == getattr(real, key), key  # defaults, where the recipe says nothing


def read_both(*arguments: str) -> list[SimpleNamespace | argparse.Namespace | None]:
    """The tiny recipe with these arguments, read lightly and by the real parser; None where they are refused."""
    from trl import GRPOConfig, ModelConfig

    argv = ["--config", str(TINY_RECIPE), *arguments]
    read: list[SimpleNamespace | argparse.Namespace | None] = []
    for by in (
        lambda: recipe.read_lightly(OWN_ARGUMENTS, argv)[0],
        lambda: recipe.read_values((ModelConfig, *OWN_ARGUMENTS, GRPOConfig), argv),
    ):
        try:
            read.append(by())
        except RecipeError:
            read.append(None)
    return read


@pytest.mark.slow
def test_every_truth_value_is_denied_as_the_real_parser_has_it():
    """`--no_key` is there for those that are true by default, and for no other."""
    known, _ = read_both()
    assert known is not None
    truths = [key for key, value in vars(known).items() if isinstance(value, bool)]
    denied = []
    for key in truths:
        for flag in (f"--no_{key}", f"--no-{key.replace('_', '-')}"):
            light, real = read_both(flag)
            assert (light is None) == (real is None), flag
            if light is not None:
                assert getattr(light, key) is getattr(real, key) is False
                denied.append(flag)
    assert {"--no_hub_checks", "--no-hub-checks", "--no_gradient_checkpointing"} <= set(denied)
    assert "--no_use_cpu" not in denied


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "key", "expected"), [
    (["--hub_checks", "--no_hub_checks"], "hub_checks", False),
    (["--no-hub-checks", "--hub-checks", "--max-steps", "3"], "hub_checks", True),
    (["--no_hub_checks", "true"], "hub_checks", RecipeError),
    (["--no_hub_checks=true"], "hub_checks", RecipeError),
    (["--no-hub_checks"], "hub_checks", RecipeError),
    (["--max-train_steps", "3"], "max_steps", RecipeError),
    (["--per-device_train_batch_size", "8"], "per_device_train_batch_size", RecipeError),
    (["--max_steps"], "max_steps", RecipeError),
    (["--number_counts"], "number_counts", RecipeError),
    (["--use_cpu"], "use_cpu", True),
    (["--bf16"], "bf16", RecipeError),  # no default, so no bare flag
    (["--bf16", "1"], "bf16", True),
    (["--bf16", "Yes"], "bf16", True),
    (["--bf16", "null"], "bf16", RecipeError),
    (["--use_cpu", "off"], "use_cpu", RecipeError),
    (["--eval_strategy", "no"], "eval_strategy", "no"),  # and not false, as YAML has it
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_flags_are_read_as_the_real_parser_does(arguments: list[str], key: str, expected: object):
    found = [RecipeError if one is None else getattr(one, key) for one in read_both(*arguments)]
    assert found == [expected, expected]


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["--max_step", "3"], "did you mean --max_steps?", id="unknown flag"),
    pytest.param(["--max_steps"], "--max_steps needs a value", id="no value"),
    pytest.param(["--no_hub_checks", "3"], "--no_hub_checks takes no value, got 3", id="a value too many"),
    pytest.param(["--max_steps", "few"], "max_steps must be an integer", id="wrong type"),
    pytest.param(["--config"], "--config needs the path", id="no recipe"),
    pytest.param(["stray"], "unknown stray", id="a stray word"),
    pytest.param(["--vllm_engine_args", "{"], "cannot be read", id="broken value"),
])  # fmt: skip
def test_bad_command_lines_are_refused(arguments: list[str], message: str):
    with pytest.raises(RecipeError) as caught:
        recipe.read_lightly(OWN_ARGUMENTS, arguments)
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


@pytest.mark.parametrize(("overrides", "expected"), [
    # 0.9 of the small GPU less 6.2 GB of bfloat16 weights, in 36 864 bytes a token
    pytest.param([], (0.9 * 24e9 - 2 * 3_085_938_688) / 36_864, id="the server's GPU, not the last one"),
    pytest.param(["--vllm_tensor_parallel_size", "2"], (0.9 * 24e9 - 3_085_938_688) / 18_432, id="weights on two"),
    pytest.param(["--vllm_dtype", "float32"], (0.9 * 24e9 - 4 * 3_085_938_688) / 73_728, id="float32"),
])  # fmt: skip
def test_room_for_the_kv_cache_is_on_the_servers_gpu(overrides: list[str], expected: float):
    settings = values("grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", *overrides)
    shape = read_shape(QWEN)
    assert shape is not None
    gpus = [GPU, GPU, Device("a small one", 24e9), Device("another", 30e9), GPU]
    machine = Machine(gpus=("7", "GPU-b", "GPU-c", "1", "0"), processes=2, local_processes=2)
    server = ("GPU-c", "1")[: settings.vllm_tensor_parallel_size]
    where = Placement("own_server", on_cpu=False, server_gpus=server)
    memory = memory_of(settings, shape, batch_of(settings, 2), machine, where, ZERO3)
    lines = check_memory(settings, memory, machine, where, gpus, shape)
    assert lines[-1] == f"  vLLM:       room for {expected / 1e3:.0f} thousand tokens of KV cache a GPU"


def test_a_server_whose_weights_do_not_fit_is_noted():
    settings = values("grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", "--vllm_gpu_memory_utilization", "0.2")
    shape = read_shape(QWEN)
    assert shape is not None
    machine = Machine(gpus=("0", "1", "2", "3"), processes=3, local_processes=3)
    memory = memory_of(settings, shape, batch_of(settings, 3), machine, TRANSFORMERS_ON_GPU, ZERO3)
    for size, told in ((24e9, "raise vllm_gpu_memory_utilization"), (0.0, None)):  # 0: the driver names no size
        where = Placement("own_server", on_cpu=False, server_gpus=("3",))
        lines = check_memory(settings, memory, machine, where, [GPU] * 3 + [Device("a GPU", size)], shape)
        assert told in lines[-1] if told else "vLLM:" not in "\n".join(lines)


@pytest.mark.parametrize(("per_device", "processes", "generations", "change"), [
    pytest.param(12, 1, 8, "multiple of 8", id="one process"),
    pytest.param(6, 4, 16, "multiple of 4", id="four processes share a group"),
    pytest.param(5, 3, 2, "multiple of 2", id="three processes"),
])  # fmt: skip
def test_evaluation_batches_must_be_whole_groups(per_device: int, processes: int, generations: int, change: str):
    settings = values("grpo-tiny-countdown-cpu.yaml", "--per_device_eval_batch_size", str(per_device))
    settings.num_generations_eval = generations
    with pytest.raises(RecipeError, match=rf"no multiple of num_generations_eval .* per_device_eval_.* {change}, or"):
        check_evaluation(settings, processes)
    settings.num_generations_eval, settings.num_generations = None, generations
    with pytest.raises(RecipeError, match="no multiple of num_generations "):
        check_evaluation(settings, processes)
    settings.eval_strategy = "no"
    check_evaluation(settings, processes, held_out=0)


def test_too_few_puzzles_to_evaluate_on_are_refused_where_the_run_does():
    settings = values("grpo-tiny-countdown-cpu.yaml")
    for generations, per_device, processes, puzzles in itertools.product((1, 2, 4, 6), (4, 12), (1, 2, 3, 8), range(9)):
        settings.num_generations_eval, settings.per_device_eval_batch_size = generations, per_device
        if per_device * processes % generations:
            continue
        outcomes = []
        run = SimpleNamespace(**vars(settings), world_size=processes)
        for check in (
            lambda run=run, puzzles=puzzles: whole_batches(Rows(range(puzzles)), run),
            lambda processes=processes, puzzles=puzzles: check_evaluation(settings, processes, puzzles),
        ):
            try:
                check()
                outcomes.append(True)
            except RecipeError:
                outcomes.append(False)
        assert len(set(outcomes)) == 1, (generations, per_device, processes, puzzles)


@pytest.mark.parametrize(("fp16", "refused"), [(False, "left out for true"), (True, "need a GPU")])
def test_bf16_that_is_left_out_is_true_as_in_trl(fp16: bool, refused: str):
    settings = values("grpo-tiny-countdown-cpu.yaml")
    settings.bf16, settings.fp16 = None, fp16
    with pytest.raises(RecipeError, match=refused):
        check_software(settings, Placement("transformers", on_cpu=True))
    check_software(settings, TRANSFORMERS_ON_GPU)
    settings.bf16, settings.fp16 = True, True
    with pytest.raises(RecipeError, match="exclude each other"):
        check_software(settings, TRANSFORMERS_ON_GPU)


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    check_output_dir(str(tmp_path / "new" / "run"))
    assert not list(tmp_path.iterdir())
    check_output_dir("~nobody-of-this-name/run")  # a folder of that name, as transformers takes it
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RecipeError, match=f"output_dir: cannot write to {folder}: "):
            check_output_dir(str(folder))


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
    lines = check_disk(settings, shape, zero3)
    assert "18 x 43.2 GB" in lines[0]
    assert "WARNING: 783" in lines[1]  # 18 checkpoints and the final model
    assert "After 4 checkpoints the disk is full" in lines[1]
    assert "save_total_limit: 2" in lines[1]
    free = 0.9 * one
    with pytest.raises(RecipeError, match=r"a checkpoint of 43.2 GB and the final model .* do not fit"):
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
                 id="a server on a GPU that is not there", marks=pytest.mark.slow),  # make test-fast installs no vLLM
    pytest.param(["--num_generations_eval", "8", "--per_device_eval_batch_size", "12"],
                 "per_device_eval_batch_size to a multiple of 8", id="evaluation batches that are no whole groups"),
    pytest.param(["--eval_puzzles", "0"], "0 held-out puzzles to evaluate on", id="nothing to evaluate on"),
    pytest.param(["--held_out_puzzles", "0"], "0 held-out puzzles to evaluate on", id="nothing held out"),
    pytest.param(["--output_dir", "/proc/run"], "output_dir: cannot write to /proc/run", id="no place for the run"),
    pytest.param(["--generation_batch_size", "128", "--steps_per_generation", "4"], "remove one", id="said twice"),
])  # fmt: skip
def test_what_would_fail_later_fails_in_the_plan(arguments: list[str], message: str):
    done = dry_run(*arguments)
    assert done.returncode == 2, done.stdout
    (error,) = done.stderr.splitlines()
    assert message in error


def test_a_bare_no_is_no_strategy(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: some/model\neval_strategy: no\n")
    with pytest.raises(RecipeError, match=r'eval_strategy must be text.* write "no" in quotes'):
        recipe.read_lightly(OWN_ARGUMENTS, ["--config", str(path)])


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
