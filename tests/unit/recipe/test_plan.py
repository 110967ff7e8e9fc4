"""The plan before the run: at once, and no run that would fail later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from test_memory import QWEN

from conftest import ACCELERATE_CONFIGS, ROOT, TINY_MODEL, TINY_RECIPE, flags, program_environment
from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import checks, placement, plan
from mini_r1.recipe.parsing import read_recipe
from mini_r1.recipe.plan import COULD_START, Plan, make_plan

pytestmark = pytest.mark.slow  # TRL reads the recipes

QWEN_SMALL = {"num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12, "intermediate_size": 8960}
QWEN_TINY = {"num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14, "intermediate_size": 4864}
ARTICLE, SMALL = "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", "grpo-qwen-2.5-1.5b-lora-1x24gb.yaml"
ONE_GPU, EIGHT_GPUS, TINY = "grpo-qwen-2.5-3b-1x80gb.yaml", "grpo-qwen-2.5-3b-8x80gb.yaml", TINY_RECIPE.name


def argv_of(name: str = ARTICLE, *overrides: str) -> list[str]:
    return ["--config", str(ROOT / "receipes" / name), *overrides]


def plan_of(*arguments: str) -> Plan:
    return make_plan(read_recipe(argv_of(*arguments), TASK))


def launched_with(name: str) -> list[str]:
    return ["--plan_with", str(ACCELERATE_CONFIGS / name)]


ZERO1, ZERO3 = launched_with("deepspeed_zero1.yaml"), launched_with("deepspeed_zero3.yaml")
MULTINODE = launched_with("deepspeed_zero3_multinode.yaml")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The repository's root, the models' shapes in the cache, and variables that last for one test."""
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("cache")
    tiny = QWEN | QWEN_TINY
    shapes = {"3B-Instruct": QWEN, "1.5B-Instruct": QWEN | QWEN_SMALL, "0.5B-Instruct": tiny, "0.5B": tiny}
    for name, config in shapes.items():
        folder = cache / f"models--Qwen--Qwen2.5-{name}"
        for path, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", json.dumps(config))):
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ):
        yield


# ---- here ----------------------------------------------------------------------------------------------------------


def test_a_plan_for_this_machine(tmp_path: Path):
    found = plan_of(TINY, "--output_dir", str(tmp_path / "run"))
    text = "\n".join(found.lines)
    for part in (
        "placement: 1 training process",
        "= 128 completions = 16 puzzles x 8 generations a step",
        "at most 81920 a step, 640 of prompt and completion each",
        "1.1 M parameters",
        "free on this machine",
        "disk:       3 x 14 MB for checkpoints at a time, 5 MB for the final model; ",
        "about 4 minutes for 40 steps",
        "learning_rate 0.0002",
    ):
        assert part in text, part
    assert (found.machine.processes, found.placement.generation, found.batch.per_step) == (1, "transformers", 128)
    assert not (tmp_path / "run").exists()
    differing = ("--max_steps", "-1", "--hub_token", "hf_abcdefgh")
    text = "\n".join(plan_of(TINY, "--output_dir", str(tmp_path / "run"), *differing).lines)
    assert "not measured for this recipe" in text
    assert "hf_abcdefgh" not in text


def test_keys_alone_are_a_recipe_too():
    keys = {"model_name_or_path": TINY_MODEL, "dataset_id_or_path": "generate"}
    keys |= {"max_steps": 3, "use_cpu": True, "bf16": False, "output_dir": "x", "attn_implementation": "sdpa"}
    assert "not measured for this recipe" in "\n".join(make_plan(read_recipe(flags(**keys), TASK)).lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--model_name_or_path", "./nowhere"], "./nowhere holds no model", id="no such model"),
        pytest.param(["--bf16", "true"], "need a GPU", id="bf16 on the CPU"),
        pytest.param(["--attn_implementation", "flash_attention_2"], "needs a GPU", id="flash attention on the CPU"),
        pytest.param(["--max_completion_length", "2000"], "the model's context is 1024", id="longer than the context"),
        pytest.param(
            ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_device", "cuda:3"], "no GPU in use", id="no cuda:3"
        ),
        pytest.param(["--output_dir", "/proc/run"], "output_dir: cannot write to /proc/run", id="no place for the run"),
        pytest.param(["--lr_scheduler_type", "greedy", "--eval_strategy", "no"], "eval strategy", id="a rule of TRL's"),
    ],
)
def test_what_cannot_start_here_is_one_line(arguments: list[str], message: str, tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        plan_of(TINY, "--output_dir", str(tmp_path / "run"), *arguments)
    assert message in str(caught.value)


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "scripts/run_r1_grpo.py", *argv_of(TINY, *arguments)]
    return subprocess.run(words, cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=120)


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(tmp_path: Path):
    done = started("--dry_run", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for part in ("placement: 1 training process", "nothing is uploaded", "held out", COULD_START):
        assert part in done.stdout, part
    assert not (tmp_path / "run").exists()


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path):
    done = started("--output_dir", str(tmp_path / "run"), "--max_completion_length", "2000")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, "the model's context is 1024" in line) == (1, True)


# ---- plans for other machines --------------------------------------------------------------------------------------

# Of 3 085 938 688 parameters: bfloat16 takes 6.17 GB, Adam's two moments 24.7 GB, with float32 masters 37.0 GB.
PLANS = [
    pytest.param(
        ARTICLE,
        "4x80",
        ZERO3,
        [
            "3 training processes (DeepSpeed ZeRO-3); planned for 1 x 4 GPUs of 80 GB",
            "local rank 0 on cuda:0, local rank 1 on cuda:1, local rank 2 on cuda:2\n",
            "a vLLM server on cuda:3,",
            "8 per device x 3 processes x 8 accumulation steps = 192 completions = 24 puzzles x 8 generations",
            "about 28.6 GB of 80.0 GB a GPU",
            "weights 2.1 GB, gradients 2.1 GB, optimizer 12.3 GB, reference model 2.1 GB, activations 6.5 GB",
            "4 x 43.2 GB for checkpoints at a time, 6.2 GB for the final model: 179.0 GB in all",
        ],
        id="the article's launch",
    ),
    pytest.param(
        ARTICLE,
        "4x80",
        [],
        [
            "3 training processes (data parallel)",
            "WARNING:    dtype: bfloat16: without DeepSpeed or FSDP",
            "= 192 completions",
            "weights 6.2 GB, gradients 6.2 GB, optimizer 24.7 GB, reference model 6.2 GB",
        ],
        id="no file: all GPUs but the server's, and no sharding",
    ),
    pytest.param(
        SMALL,
        "1x24",
        launched_with("single_gpu.yaml"),
        [
            "1 training process (one process); planned for 1 x 1 GPU of 24 GB",
            "vLLM inside each training process, 40% of each GPU's memory, asleep",
            "= 128 completions = 16 puzzles x 8 generations",
            "about 15.3 GB of 24.0 GB a GPU",
            "weights 3.2 GB, gradients 0.1 GB, optimizer 0.3 GB, activations 2.4 GB",
            "vLLM beyond activations 5.6 GB",
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
        "grpo-qwen-2.5-0.5b-lora-1x16gb.yaml",
        "1x16",
        launched_with("single_gpu_fp16.yaml"),
        ["transformers, on each rank", "about 8.9 GB of 16.0 GB", "weights 1.1 GB", "activations 4.5 GB"],
        id="a T4, half precision without bfloat16",
    ),
    pytest.param(
        "grpo-qwen-2.5-0.5b-base-1x16gb.yaml",
        "1x16",
        launched_with("single_gpu_fp16.yaml"),
        ["about 12.3 GB of 16.0 GB", "weights 2.0 GB, gradients 2.0 GB, optimizer 4.0 GB"],
        id="all weights of a base model on a T4",
    ),
    pytest.param(
        EIGHT_GPUS,
        "8x80",
        [*ZERO1, "--plan_processes", "8"],
        [
            "8 training processes (DeepSpeed ZeRO-1); planned for 1 x 8 GPUs of 80 GB",
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
        ZERO1,
        [
            "3 training processes",
            "= 192 completions",
            "WARNING: that is more than fits",
        ],
        id="the file's three processes leave five GPUs idle",
    ),
    pytest.param(
        ARTICLE,
        "2x8x80",
        [*MULTINODE, "--vllm_server_base_url", "http://10.0.0.9:8000"],
        [
            "16 training processes (DeepSpeed ZeRO-3); planned for 2 x 8 GPUs of 80 GB",
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
        ["14 training processes (data parallel)", "a vLLM server on cuda:7", "WARNING:    dtype: bfloat16"],
        id="two machines without a third",
    ),
]


@pytest.mark.parametrize(("name", "machine", "arguments", "parts"), PLANS)
def test_a_plan_for_another_machine(name: str, machine: str, arguments: list[str], parts: list[str]):
    lines = plan_of(name, "--plan_for", machine, *arguments).lines
    text = "\n".join(lines)
    for part in parts:
        assert part in text, part
    notes = [line for line in lines if "WARNING" in line]
    assert len(notes) == sum("WARNING" in part for part in parts), notes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        pytest.param(
            ARTICLE,
            ["--plan_for", "1x24"],
            "no GPU is left for the vLLM server, which needs 1 GPU (1 training process on 1 GPU): set vllm_mode",
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
            ["--plan_for", "3x80", *ZERO3],
            "(3 training processes on 3 GPUs): set plan_processes: 2 or fewer, or set",
            id="a file that leaves no GPU for the server",
        ),
        pytest.param(
            ARTICLE,
            ["--plan_for", "2x8x80", *MULTINODE],
            "(8 training processes on 8 GPUs): set plan_processes: 14 or fewer",
            id="two machines that only train",
        ),
        pytest.param(ARTICLE, ["--plan_for", "4by80"], "plan_for must be GPUs x GB (4x80)", id="bad text"),
        pytest.param(ARTICLE, ["--plan_processes", "3"], "add --plan_for 4x80", id="a launch and no machine"),
        pytest.param(TINY, ["--plan_for", "1x24"], "write use_cpu: false", id="a recipe for the CPU"),
        pytest.param(
            EIGHT_GPUS,
            ["--plan_for", "8x80", "--num_generations", "7"],
            "4 per device x 8 processes, accumulated, makes 512 completions per generation",
            id="groups that do not come out even",
        ),
    ],
)
def test_what_does_not_fit_there_is_one_line(name: str, arguments: list[str], message: str):
    with pytest.raises(RecipeError) as caught:
        plan_of(name, *arguments)
    assert message in str(caught.value)


def test_nothing_is_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    import accelerate.state
    import torch

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    for owner, names in (
        (plan, ("gpu_memory",)),
        (plan.psutil, ("virtual_memory",)),
        (checks, ("gpus_of_driver", "check_writable")),
        (placement, ("installed_vllm", "is_port_free")),
        (plan.shutil, ("disk_usage",)),
        (torch.cuda, ("is_available", "device_count", "set_device", "is_bf16_supported")),
        (accelerate.state.PartialState, ("__init__",)),
    ):
        for one in names:
            monkeypatch.setattr(owner, one, asked)
    # Started by a launcher of another kind, all the same.
    os.environ.update({"WORLD_SIZE": "7", "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_DEEPSPEED": "true"})
    there = ("--plan_for", "4x80", *launched_with("fsdp.yaml"))
    text = "\n".join(plan_of(ARTICLE, *there, "--vllm_server_port", "1", "--tf32", "1").lines)
    assert "3 training processes (FSDP2)" in text
    assert "GB free" not in text


def test_nothing_else_differs_from_the_runs_own_parsing():
    import transformers.training_args

    before = dict(vars(transformers.training_args))
    argv = argv_of(TINY, "--use_cpu", "false")
    here, there, of_three = (
        read_recipe([*argv, *more], TASK).training for more in ([], ["--plan_for", "1x24"], ["--plan_for", "3x24"])
    )
    assert there.to_dict() == here.to_dict()
    assert there.world_size == 1
    assert vars(transformers.training_args) == before
    assert (of_three.world_size, of_three.generation_batch_size) == (3, 3 * 128)


def test_weights_without_masters_are_reported():
    lines = plan_of(ONE_GPU, "--plan_for", "1x80", "--dtype", "bfloat16").lines
    assert "learning_rate 3e-06 round to nothing" in "\n".join(lines)
