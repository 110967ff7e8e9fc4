"""What this project adds to the workers of a vLLM server, which import it by name (`--worker-extension-cls`).

They do so in processes of their own, before they load the model, so that importing is what bridges the CPU build.
"""

from __future__ import annotations

import sys
from typing import Any

from mini_r1.generation.cpu import leave_weights_unpacked

if "vllm" in sys.modules:
    leave_weights_unpacked()


class WorkerExtension:
    """Methods that `/collective_rpc` calls in every worker of every engine."""

    parallel_config: Any  # the worker's

    def reseed(self, seed: int) -> None:
        """Seeds this engine's sampling apart from that of the others; its own workers stay alike."""
        from transformers import set_seed

        set_seed(seed + 1000 * self.parallel_config.data_parallel_index)
