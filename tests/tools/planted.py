"""A fault in each check of `check_gpu.py`: `check_gpu.py --entry tests/tools/planted.py` must turn every row red."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_gpu


def no_update(*args: Any, **kwargs: Any) -> None:
    """Weights stay where they are."""


def software() -> None:
    from mini_r1.recipe import plan

    plan.gpus_of_driver = lambda: 4


def attention() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def louder(*args: Any, **kwargs: Any) -> Any:
        output, weights = plain(*args, **kwargs)
        return 1.1 * output, weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = louder


def memory() -> None:
    from mini_r1.recipe import plan

    plain = plan.memory_of
    plan.memory_of = lambda *args: {purpose: size / 100 for purpose, size in plain(*args).items()}


def resume() -> None:
    from mini_r1.run_folder import resume as resumption

    resumption.find = lambda values: None


def stale() -> None:
    from mini_r1.generation.client import RunGeneration

    RunGeneration.sync_weights = no_update


def lora() -> None:
    from mini_r1.generation import client as vllm_client

    vllm_client.merged_weight = lambda layer: layer.get_base_layer().weight.data


def server() -> None:
    from mini_r1.generation.client import RunClient

    RunClient._update_through_folder = RunClient.update_named_params = lambda self, *args: [*args[-1]]


def zero3() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    DeepSpeedEngine.empty_partition_cache = no_update


def fsdp2() -> None:
    from torch.distributed.fsdp import FSDPModule

    FSDPModule.reshard = no_update


FAULTS = {
    "software": software,
    "attention": attention,
    "memory": memory,
    "resume": resume,
    "colocate": stale,
    "colocate-asleep": stale,
    "lora": lora,
    "server": server,
    "zero3": zero3,
    "zero1": stale,
    "fsdp2": fsdp2,
}

if __name__ == "__main__":
    _, what, *rest = sys.argv[1:]
    name = what
    if what == "train":
        name = next(Path(word.partition("=")[2]).name for word in rest if word.startswith("--output_dir="))
    FAULTS[name]()
    check_gpu.inside([what, *rest])
