"""The plan before the run: right arithmetic, at once, and no run that would fail later."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import run_r1_grpo
from conftest import ACCELERATE_CONFIGS, ROOT, TINY_MODEL, TINY_RECIPE, flags, program_environment
from mini_r1.common import RecipeError
from mini_r1.recipe import parsing as recipe
from mini_r1.recipe import placement, plan
from mini_r1.recipe.placement import Machine, Placement
from mini_r1.recipe.plan import (
    as_if_there,
    batch_of,
    check_disk,
    check_memory,
    check_output_dir,
    check_precision,
    check_puzzles,
    checkpoint_bytes,
    evaluation_batch,
    find_shape,
    memory_of,
    read_shape,
)
from mini_r1.run_folder import resume as resumption
from run_r1_grpo import OWN_ARGUMENTS, check_values

pytestmark = pytest.mark.slow  # TRL reads the recipes

# Qwen2.5-3B's config.json, as far as it counts.
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}  # fmt: skip
QWEN_SMALL = QWEN | {
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "intermediate_size": 8960,
}
TRANSFORMERS_ON_GPU = Placement("transformers", on_cpu=False)
ARTICLE, SMALL = "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", "grpo-qwen-2.5-1.5b-lora-1x24gb.yaml"
ONE_GPU, EIGHT_GPUS, TINY = "grpo-qwen-2.5-3b-1x80gb.yaml", "grpo-qwen-2.5-3b-8x80gb.yaml", TINY_RECIPE.name


class Rows(list):
    """As much of a data set as `whole_batches` needs."""

    def select(self, indices: range) -> Rows:
        return Rows(self[i] for i in indices)


def gpus(processes: int, size: float = 80e9, **more: object) -> Machine:
    """A machine with as many GPUs as training processes."""
    names = tuple(map(str, range(processes)))
    return Machine(names, (size,) * processes, processes, processes, **more)  # type: ignore[arg-type]


def argv_of(name: str = ARTICLE, *overrides: str) -> list[str]:
    return ["--config", str(ROOT / "receipes" / name), *overrides]


def dataclass_types() -> tuple[type, ...]:
    from trl import GRPOConfig, ModelConfig

    return (ModelConfig, *OWN_ARGUMENTS, GRPOConfig)


def values(name: str = ARTICLE, *overrides: str) -> Namespace:
    return recipe.read_values(dataclass_types(), argv_of(name, *overrides))


def launched_with(name: str) -> list[str]:
    return ["--plan_with", str(ACCELERATE_CONFIGS / name)]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The repository's root, both models' shapes in the cache, and variables that last for one test."""
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("cache")
    for size, config in (("3B", QWEN), ("1.5B", QWEN_SMALL)):
        folder = cache / f"models--Qwen--Qwen2.5-{size}-Instruct"
        for path, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", json.dumps(config))):
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ):
        yield


# ---- reading -------------------------------------------------------------------------------------------------------


def test_what_is_given_is_what_differs_from_the_defaults():
    given = recipe.given(dataclass_types(), argv_of(TINY, "--number_counts", "3", "5", "--learning_rate", "5e-7"))
    written = recipe.read_yaml(TINY_RECIPE)
    assert (given["number_counts"], given["learning_rate"], given["max_steps"]) == ([3, 5], 5e-7, 40)
    assert set(given) - {"env"} <= set(written)
    assert {"temperature", "beta", "seed"} <= set(written) - set(given)  # written, but as they are by default


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
    fused = batch_of(values(TINY, "--steps_per_generation", "8"), processes=1)
    assert (fused.per_step, fused.per_generation) == (128, 256)
    with pytest.raises(RecipeError, match="no multiple of num_generations"):
        batch_of(values(TINY, "--num_generations", "7"), processes=1)
    with pytest.raises(RecipeError, match="must be a multiple of per_device_train_batch_size"):
        batch_of(values(TINY, "--generation_batch_size", "40"), processes=1)


@pytest.mark.parametrize(
    ("machine", "dtype", "expected"),
    [
        pytest.param(gpus(1), "float32", (4, 4, 8), id="plain float32"),
        pytest.param(
            gpus(4, zero_stage=1), "bfloat16", (2, 2, 12 / 4), id="ZeRO-1 shards the optimizer, with float32 masters"
        ),
        pytest.param(gpus(3, zero_stage=3), "bfloat16", (2 / 3, 2 / 3, 12 / 3), id="ZeRO-3 shards everything"),
        pytest.param(gpus(2, fsdp_version=2), "float32", (2, 2, 4), id="FSDP shards everything"),
    ],
)
def test_bytes_per_parameter(machine: Machine, dtype: str, expected: tuple):
    settings = values()
    settings.dtype = dtype
    shape = read_shape(QWEN)
    assert shape is not None
    memory = memory_of(settings, shape, batch_of(settings, machine.processes), machine, TRANSFORMERS_ON_GPU)
    found = tuple(memory[key] / shape.parameters for key in ("weights", "gradients", "optimizer"))
    assert found == pytest.approx(expected)
    assert "reference model" in memory  # beta 0.001
    settings.beta = 0.0
    memory = memory_of(settings, shape, batch_of(settings, machine.processes), machine, TRANSFORMERS_ON_GPU)
    assert "reference model" not in memory


def test_an_adapter_trains_little_and_needs_no_reference():
    settings = values(SMALL, "--beta", "0.1")
    shape = read_shape(QWEN)
    assert shape is not None
    memory = memory_of(settings, shape, batch_of(settings, 1), gpus(1), TRANSFORMERS_ON_GPU)
    assert memory["weights"] == pytest.approx(2 * shape.parameters, rel=0.1)
    assert memory["optimizer"] < 0.1 * memory["weights"]
    assert "reference model" not in memory


@pytest.mark.parametrize(("total", "message"), [
    pytest.param(24e9, "before a single activation", id="not even the weights"),
    pytest.param(65e9, "halve per_device_train_batch_size", id="not the activations"),
])  # fmt: skip
def test_memory_that_does_not_suffice(total: float, message: str):
    settings = values(ONE_GPU, "--gradient_checkpointing", "false")
    shape = read_shape(QWEN)
    assert shape is not None
    machine, where = gpus(1, total), Placement("colocate", on_cpu=False)
    memory = memory_of(settings, shape, batch_of(settings, 1), machine, where)
    try:
        lines = check_memory(settings, memory, machine, where, shape)
    except RecipeError as error:
        lines = [str(error)]
    assert message in "\n".join(lines)


@pytest.mark.parametrize(("overrides", "expected"), [
    # 0.9 of the small GPU less 6.2 GB of bfloat16 weights, in 36 864 bytes a token
    pytest.param([], (0.9 * 24e9 - 2 * 3_085_938_688) / 36_864, id="the server's GPU, not the last one"),
    pytest.param(["--vllm_tensor_parallel_size", "2"], (0.9 * 24e9 - 3_085_938_688) / 18_432, id="weights on two"),
    pytest.param(["--vllm_dtype", "float32"], (0.9 * 24e9 - 4 * 3_085_938_688) / 73_728, id="float32"),
])  # fmt: skip
def test_room_for_the_kv_cache_is_on_the_servers_gpu(overrides: list[str], expected: float):
    settings = values(ARTICLE, *overrides)
    shape = read_shape(QWEN)
    assert shape is not None
    sizes = (80e9, 80e9, 24e9, 30e9, 80e9)
    machine = Machine(("7", "GPU-b", "GPU-c", "1", "0"), sizes, processes=2, local_processes=2, zero_stage=3)
    server = ("GPU-c", "1")[: settings.vllm_tensor_parallel_size]
    where = Placement("own_server", on_cpu=False, server_gpus=server)
    memory = memory_of(settings, shape, batch_of(settings, 2), machine, where)
    lines = check_memory(settings, memory, machine, where, shape)
    assert lines[-1] == f"  vLLM:       room for {expected / 1e3:.0f} thousand tokens of KV cache a GPU"


def test_a_server_whose_weights_do_not_fit_is_noted():
    settings = values(ARTICLE, "--vllm_gpu_memory_utilization", "0.2")
    shape = read_shape(QWEN)
    assert shape is not None
    where = Placement("own_server", on_cpu=False, server_gpus=("3",))
    for size, told in ((24e9, "raise vllm_gpu_memory_utilization"), (0.0, None)):  # 0: the driver names no size
        machine = Machine(("0", "1", "2", "3"), (80e9, 80e9, 80e9, size), 3, 3, zero_stage=3)
        memory = memory_of(settings, shape, batch_of(settings, 3), machine, where)
        lines = check_memory(settings, memory, machine, where, shape)
        assert told in lines[-1] if told else "vLLM:" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("per_device", "processes", "generations", "change"),
    [
        pytest.param(12, 1, 8, "multiple of 8", id="one process"),
        pytest.param(6, 4, 16, "multiple of 4", id="four processes share a group"),
        pytest.param(5, 3, 2, "multiple of 2", id="three processes"),
    ],
)
def test_evaluation_batches_must_be_whole_groups(per_device: int, processes: int, generations: int, change: str):
    settings = values(TINY, "--per_device_eval_batch_size", str(per_device))
    settings.num_generations_eval = generations
    with pytest.raises(RecipeError, match=rf"no multiple of num_generations_eval .* per_device_eval_.* {change}, or"):
        evaluation_batch(settings, processes, 512)
    settings.num_generations_eval, settings.num_generations = None, generations
    with pytest.raises(RecipeError, match="no multiple of num_generations "):
        evaluation_batch(settings, processes, 512)


def test_puzzles_must_suffice_for_a_step_and_an_evaluation():
    settings = values(TINY)  # 16 puzzles a step
    check_puzzles(settings, 1, 16, 1)
    with pytest.raises(RecipeError, match="15 puzzles to train on are fewer than one step's 16: raise dataset_rows"):
        check_puzzles(settings, 1, 15, 1)
    with pytest.raises(RecipeError, match="0 held-out puzzles to evaluate on"):
        check_puzzles(settings, 1, 16, 0)
    settings.eval_strategy = "no"
    check_puzzles(settings, 1, 16, 0)


@pytest.mark.parametrize(("fp16", "refused"), [(False, "left out for true"), (True, "need a GPU")])
def test_half_precision_needs_a_gpu(fp16: bool, refused: str, monkeypatch: pytest.MonkeyPatch):
    import torch

    settings = values(TINY, "--use_cpu", "false")
    settings.bf16, settings.fp16 = None, fp16  # TRL's default is true where fp16 is not
    monkeypatch.setattr(plan, "gpus_of_driver", lambda: 0)
    with pytest.raises(RecipeError, match=refused):
        check_precision(settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_precision(settings)
    settings.use_cpu = True
    with pytest.raises(RecipeError, match=refused):
        check_precision(settings)


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(None, "is a CPU build (`make install-gpu`)"), ("13.0", "the driver is too old for this torch's CUDA 13.0")],
)
def test_gpus_that_the_driver_shows_and_torch_does_not(
    cuda: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # asks the driver
    with pytest.raises(RecipeError) as caught:
        check_values(values())
    assert str(caught.value).startswith("nvidia-smi shows 4 GPUs and torch sees none: ")
    assert reason in str(caught.value)
    assert plan.gpu_memory() == []


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    check_output_dir(str(tmp_path / "new" / "run"))
    assert not list(tmp_path.iterdir())
    check_output_dir("~nobody-of-this-name/run")  # a folder of that name, as transformers takes it
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RecipeError, match=f"output_dir: cannot write to {folder}: "):
            check_output_dir(str(folder))


def test_checkpoints_that_would_fill_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = values(ARTICLE, "--output_dir", str(tmp_path / "run"))
    machine = gpus(3, zero_stage=3)
    shape = read_shape(QWEN)
    assert shape is not None
    one = checkpoint_bytes(settings, shape, machine)
    assert one == pytest.approx(43e9, rel=0.02)
    free = 5 * one
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert "4 x 43.2 GB" in check_disk(settings, shape, machine)[0]  # three kept, and the new one
    settings.save_total_limit = None  # the article kept all 18
    lines = check_disk(settings, shape, machine)
    assert "18 x 43.2 GB" in lines[0]
    assert "WARNING: 783" in lines[1]  # 18 checkpoints and the final model
    assert "After 4 checkpoints the disk is full" in lines[1]
    assert "save_total_limit: 2" in lines[1]
    free = 0.9 * one
    with pytest.raises(RecipeError, match=r"a checkpoint of 43.2 GB and the final model .* do not fit"):
        check_disk(settings, shape, machine)


# ---- dry runs ------------------------------------------------------------------------------------------------------

Outcome = tuple[int, str, list[str]]


@pytest.fixture
def outcome_of(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Calls main: its exit code, its output, and its error lines (libraries may write others)."""

    def call(*argv: str) -> Outcome:
        code = 0
        capfd.readouterr()
        try:
            run_r1_grpo.main(list(argv))
        except SystemExit as end:
            code = int(end.code or 0)
        output, error = capfd.readouterr()
        return code, output, [line for line in error.splitlines() if line.startswith("error: ")]

    return call


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "scripts/run_r1_grpo.py", *argv_of(TINY, "--dry_run", "--output_dir", str(tmp_path / "run"))],
        cwd=ROOT,
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "placement: 1 training process",
        "= 128 completions = 16 puzzles x 8 generations",
        "1.1 M parameters",
        "memory:",
        "disk:",
        "about 9 minutes for 40 steps",
        "nothing is uploaded",
        "learning_rate 0.0002",
        "held out",
        "This run could start",
    ):
        assert part in done.stdout, part
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--num_generations", "7"], "no multiple of num_generations (7)", id="groups"),
        pytest.param(["--model_name_or_path", "./nowhere"], "there is no folder ./nowhere", id="no such model"),
        pytest.param(["--model_name_or_path", "tests"], "holds no model", id="a folder without a model"),
        pytest.param(["--dataset_id_or_path", "./nowhere.jsonl"], "does not exist", id="no such puzzles"),
        pytest.param(["--bf16", "true"], "need a GPU", id="bf16 on the CPU"),
        pytest.param(["--attn_implementation", "flash_attention_2"], "needs a GPU", id="flash attention on the CPU"),
        pytest.param(["--max_completion_length", "2000"], "the model's context is 1024", id="longer than the context"),
        pytest.param(["--learning_rate", "-1"], "learning_rate must be positive", id="impossible value"),
        pytest.param(["--learning_rat", "1"], "did you mean --learning_rate?", id="unknown key"),
        pytest.param(
            ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_device", "cuda:3"],
            "no GPU in use",
            id="a server on a GPU that is not there",
        ),
        pytest.param(
            ["--num_generations_eval", "8", "--per_device_eval_batch_size", "12"],
            "per_device_eval_batch_size to a multiple of 8",
            id="evaluation batches that are no whole groups",
        ),
        pytest.param(["--eval_puzzles", "0"], "0 held-out puzzles to evaluate on", id="nothing to evaluate on"),
        pytest.param(["--held_out_puzzles", "0"], "0 held-out puzzles to evaluate on", id="nothing held out"),
        pytest.param(["--dataset_rows", "17"], "14 puzzles to train on are fewer than one", id="less than a step"),
        pytest.param(["--output_dir", "/proc/run"], "output_dir: cannot write to /proc/run", id="no place for the run"),
        pytest.param(
            ["--generation_batch_size", "128", "--steps_per_generation", "4"], "at the same time", id="said twice"
        ),
        pytest.param(["--lr_scheduler_type", "greedy", "--eval_strategy", "no"], "eval strategy", id="a rule of TRL's"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    arguments: list[str], message: str, tmp_path: Path, outcome_of: Callable[..., Outcome]
):
    argv = argv_of(TINY, "--output_dir", str(tmp_path / "run"), *arguments)
    dry, run = outcome_of(*argv, "--dry_run", "true"), outcome_of(*argv)
    for code, _, errors in (dry, run):
        assert code == 2
        (line,) = errors
        assert message in line
    assert dry[2] == run[2] or "/proc" in message


def test_a_bare_no_is_no_strategy(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: some/model\neval_strategy: no\n")
    with pytest.raises(RecipeError, match=r'eval_strategy must be .* write "no" in quotes'):
        recipe.read_values(dataclass_types(), ["--config", str(path)])


# ---- plans for other machines --------------------------------------------------------------------------------------

# Of 3 085 938 688 parameters: bfloat16 takes 6.17 GB, Adam's two moments 24.7 GB, with float32 masters 37.0 GB.
PLANS = [
    pytest.param(
        ARTICLE,
        "4x80",
        launched_with("deepspeed_zero3.yaml"),
        [
            "3 training processes (DeepSpeed ZeRO-3); planned for 4 GPUs of 80 GB",
            "rank 0 on cuda:0, rank 1 on cuda:1, rank 2 on cuda:2\n",
            "a vLLM server on cuda:3,",
            "8 per device x 3 processes x 8 accumulation steps = 192 completions = 24 puzzles x 8 generations",
            "about 28.6 GB of 80.0 GB a GPU",
            "weights 2.1 GB, gradients 2.1 GB, optimizer 12.3 GB, reference model 2.1 GB, activations 6.5 GB",
            "room for 1786 thousand tokens",  # (0.9 x 80 GB - 6.17 GB) / 36 864 bytes
            "4 x 43.2 GB for checkpoints at a time, and 6.2 GB for the final model: 179.0 GB in all",
        ],
        id="the article's launch",
    ),
    pytest.param(
        ARTICLE,
        "4x80",
        [],
        [
            "3 training processes (data parallel)",
            "data parallel is assumed",
            "--plan_with configs/accelerate_configs/deepspeed_zero3.yaml",
            "= 192 completions",
            "weights 6.2 GB, gradients 6.2 GB, optimizer 24.7 GB, reference model 6.2 GB",
        ],
        id="no file: all GPUs but the server's, and the strategy assumed is named",
    ),
    pytest.param(
        SMALL,
        "1x24",
        launched_with("single_gpu.yaml"),
        [
            "1 training process (one process); planned for 1 GPU of 24 GB",
            "vLLM inside each training process, 40% of each GPU's memory, asleep",
            "= 128 completions = 16 puzzles x 8 generations",
            "about 15.3 GB of 24.0 GB a GPU",
            "weights 3.2 GB, gradients 0.1 GB, optimizer 0.3 GB, activations 2.4 GB",
            "9.6 GB for vLLM while activations",
            "0.1 GB for the final model",  # an adapter
        ],
        id="an adapter on one small GPU",
    ),
    pytest.param(
        ONE_GPU,
        "1x80",
        [],
        ["about 75.4 GB of 80.0 GB", "weights 12.3 GB, gradients 12.3 GB, optimizer 24.7 GB", "= 256 completions"],
        id="one large GPU",
    ),
    pytest.param(
        EIGHT_GPUS,
        "8x80",
        [*launched_with("deepspeed_zero1.yaml"), "--plan_processes", "8"],
        [
            "8 training processes (DeepSpeed ZeRO-1); planned for 8 GPUs of 80 GB",
            "rank 7 on cuda:7\n",
            "= 512 completions = 64 puzzles x 8 generations",
            "about 72.9 GB of 80.0 GB",
            "weights 6.2 GB, gradients 6.2 GB, optimizer 4.6 GB, activations 24.3 GB",
            "vLLM 28.0 GB",
        ],
        id="eight GPUs, with the launch's own number of processes",
    ),
    pytest.param(
        EIGHT_GPUS,
        "8x80",
        launched_with("deepspeed_zero1.yaml"),
        [
            "3 training processes",
            "note: 5 GPUs would stay idle",
            "= 192 completions",
            "WARNING: that is more than fits",
        ],
        id="the file's three processes leave five GPUs idle",
    ),
    pytest.param(
        ARTICLE,
        "2x8x80",
        [*launched_with("deepspeed_zero3_multinode.yaml"), "--vllm_server_base_url", "http://10.0.0.9:8000"],
        [
            "16 training processes on 2 machines (DeepSpeed ZeRO-3); planned for 2 machines, each with 8 GPUs of 80 GB",
            "local rank 0 on cuda:0",
            "rank 7 on cuda:7\n",
            "the vLLM server at http://10.0.0.9:8000",
            "= 1024 completions = 128 puzzles x 8 generations",
            "about 13.6 GB of 80.0 GB",
            "weights 0.4 GB, gradients 0.4 GB, optimizer 2.3 GB",
        ],
        id="two machines train, a third generates",
    ),
    pytest.param(
        ARTICLE,
        "2x8x80",
        [],
        ["14 training processes on 2 machines", "is assumed", "a vLLM server on cuda:7", "note: 1 GPU would stay idle"],
        id="two machines without a third",
    ),
]


@pytest.mark.parametrize(("name", "machine", "arguments", "parts"), PLANS)
def test_a_plan_for_another_machine(
    name: str, machine: str, arguments: list[str], parts: list[str], outcome_of: Callable[..., Outcome]
):
    code, output, errors = outcome_of(*argv_of(name, "--plan_for", machine, *arguments))
    assert (code, errors) == (0, [])
    for part in parts:
        assert part in output, part
    assert "This run could start there" in output
    notes = [line for line in output.splitlines() if "note:" in line or "WARNING" in line]
    assert len(notes) == sum("note:" in part or "WARNING" in part or "assumed" in part for part in parts), notes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        pytest.param(
            ARTICLE,
            ["--plan_for", "1x24"],
            "no GPU is left for the vLLM server: 1 training process on 1 GPU; plan for more GPUs, or set",
            id="the article's run on one small GPU",
        ),
        pytest.param(
            ARTICLE,
            ["--plan_for", "1x24", "--vllm_mode", "colocate"],
            "this run needs 58.6 GB before a single activation, and there are 24.0 GB",
            id="and with vLLM beside it",
        ),
        pytest.param(
            ARTICLE,
            ["--plan_for", "3x80", *launched_with("deepspeed_zero3.yaml")],
            "3 training processes on 3 GPUs; set plan_processes: 2, or plan for more GPUs",
            id="a file that leaves no GPU for the server",
        ),
        pytest.param(
            ARTICLE,
            ["--plan_for", "2x8x80", *launched_with("deepspeed_zero3_multinode.yaml")],
            "no GPU is left for the vLLM server: 8 training processes on 8 GPUs",
            id="two machines that only train",
        ),
        pytest.param(ARTICLE, ["--plan_for", "4by80"], "plan_for must be GPUs x GB, such as 4x80", id="bad text"),
        pytest.param(ARTICLE, ["--plan_processes", "3"], "add --plan_for 4x80", id="a launch and no machine"),
        pytest.param(TINY, ["--plan_for", "1x24"], "says use_cpu: true: write false", id="a recipe for the CPU"),
        pytest.param(
            EIGHT_GPUS,
            ["--plan_for", "8x80", "--num_generations", "7"],
            "8 processes x gradient_accumulation_steps (16) makes 512 completions per generation",
            id="groups that do not come out even",
        ),
    ],
)
def test_what_does_not_fit_there_is_one_line(
    name: str, arguments: list[str], message: str, outcome_of: Callable[..., Outcome]
):
    code, output, (error,) = outcome_of(*argv_of(name, *arguments))
    assert (code, output) == (2, "")
    assert message in error


def test_nothing_is_asked_of_this_machine(outcome_of: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch):
    import accelerate.state
    import torch

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    for owner, names in (
        (plan, ("gpu_memory", "gpus_of_driver", "check_output_dir", "_cpu_memory")),
        (placement, ("installed_vllm", "is_port_free")),
        (plan.shutil, ("disk_usage",)),
        (resumption, ("find", "hold")),
        (torch.cuda, ("is_available", "device_count", "set_device", "is_bf16_supported")),
        (accelerate.state.PartialState, ("__init__",)),
    ):
        for one in names:
            monkeypatch.setattr(owner, one, asked)
    # Started by a launcher of another kind, all the same.
    os.environ.update({"WORLD_SIZE": "7", "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_DEEPSPEED": "true"})
    argv = argv_of(ARTICLE, "--plan_for", "4x80", *launched_with("fsdp.yaml"), "--vllm_server_port", "1", "--tf32", "1")
    code, output, errors = outcome_of(*argv)
    assert (code, errors) == (0, [])
    assert "3 training processes (FSDP2)" in output
    assert "GB free" not in output


def test_nothing_else_differs_from_the_runs_own_parsing():
    import transformers.training_args

    before = dict(vars(transformers.training_args))
    argv = argv_of(TINY, "--use_cpu", "false")
    here = recipe.parse(dataclass_types(), argv, check_values, as_if_there)
    there = recipe.parse(dataclass_types(), [*argv, "--plan_for", "1x24"], check_values, as_if_there)
    assert there[-1].to_dict() == here[-1].to_dict()
    assert there[-1].world_size == 1
    assert vars(transformers.training_args) == before
    of_three = recipe.parse(dataclass_types(), [*argv, "--plan_for", "3x24"], check_values, as_if_there)[-1]
    assert (of_three.world_size, of_three.generation_batch_size) == (3, 3 * 128)


def test_weights_without_masters_are_told(outcome_of: Callable[..., Outcome]):
    argv = argv_of(ONE_GPU, "--plan_for", "1x80")
    assert "round to nothing" not in outcome_of(*argv)[1]
    assert "learning_rate 3e-06 round to nothing" in outcome_of(*argv, "--dtype", "bfloat16")[1]


# ---- a real run ----------------------------------------------------------------------------------------------------


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
    estimate = float(re.search(r"memory: +about ([\d.]+) GB", done.stdout)[1]) * 1e9
    assert estimate == pytest.approx(peak, rel=0.2), (estimate, peak)
