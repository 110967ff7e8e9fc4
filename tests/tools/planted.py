"""`check_gpu.py` with a fault planted in each check: every row must turn red."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_gpu
from mini_r1.common import run_cli


def no_update(*args: Any, **kwargs: Any) -> None:
    """Weights stay where they are."""


def software() -> None:
    from mini_r1.recipe import machine

    machine.gpus_of_driver = lambda: 4


def attention() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def louder(*args: Any, **kwargs: Any) -> Any:
        output, weights = plain(*args, **kwargs)
        return 1.1 * output, weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = louder


def memory() -> None:
    from mini_r1.recipe import memory

    plain = memory.memory_of
    memory.memory_of = lambda *args: {purpose: size / 100 for purpose, size in plain(*args).items()}


def resume() -> None:
    from mini_r1.run_folder import resume

    resume.find = lambda recipe: None


def stale() -> None:
    from mini_r1.generation.client import RunGeneration

    RunGeneration.sync_weights = no_update


def lora() -> None:
    from mini_r1.generation import client

    client.merged_weight = lambda layer: layer.get_base_layer().weight.data


def server() -> None:
    from mini_r1.generation.client import RunClient

    RunClient._send = lambda self, metadata, named_params: None


def zero3() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    DeepSpeedEngine.empty_partition_cache = no_update


def fsdp2() -> None:
    from torch.distributed.fsdp import FSDPModule

    FSDPModule.reshard = no_update


# What a run says when the fault is in it.
FAULTS = {
    "software": (software, "nvidia-smi shows GPUs and torch sees none"),
    "attention": (attention, "they disagree"),
    "memory": (memory, "the plan's memory figures are too low"),
    "resume": (resume, "did not resume from the checkpoint"),
    "colocate": (stale, "new weights do not reach vLLM"),
    "colocate-asleep": (stale, "new weights do not reach vLLM"),
    "lora": (lora, "new weights do not reach vLLM"),
    "server": (server, "new weights do not reach vLLM"),
    "zero3": (zero3, "AssertionError"),
    "zero1": (stale, "new weights do not reach vLLM"),
    "fsdp2": (fsdp2, "full_tensor"),
}


def main(argv: list[str]) -> None:
    if argv[:1] != ["--inside"]:
        software()
        attention()
        check_gpu.ENTRY = Path(__file__).resolve()
        return check_gpu.main(argv)
    plant, _ = FAULTS[Path(argv[argv.index("--output_dir") + 1]).name]
    plant()
    return check_gpu.train(argv[1:])


if __name__ == "__main__":
    run_cli(main)
