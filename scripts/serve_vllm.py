"""Start the vLLM server that a recipe needs, for a run on another machine or in another terminal.

    python scripts/serve_vllm.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml \\
        --vllm_server_host 10.0.0.9 --vllm_server_port 8000

    python scripts/serve_vllm.py --config RECEIPE.yaml --print     # only shows the command line

The run then gets `--vllm_server_base_url http://10.0.0.9:8000`. Not needed on one machine: there the run starts and
ends its server itself. The server takes the GPUs that CUDA_VISIBLE_DEVICES shows it, as many as
`vllm_tensor_parallel_size`, and listens on 127.0.0.1 unless told otherwise. Its development endpoints, which new
weights need, let whoever reaches the port run code in it: never open it to a network that you do not trust.
"""

from __future__ import annotations

import os
import shlex
import sys

from mini_r1.common import RecipeError, fail
from mini_r1.generation.server import VLLMArguments, serve_command, server_environment
from mini_r1.recipe import parsing as recipe
from mini_r1.recipe.placement import Placement, check_vllm, installed_vllm, is_port_free, server_host, weight_transfer
from run_r1_grpo import OWN_ARGUMENTS


def main(argv: list[str]) -> None:
    import torch
    from trl import GRPOConfig, ModelConfig

    show_only = "--print" in argv
    try:
        values = recipe.read_values(
            (ModelConfig, *OWN_ARGUMENTS, GRPOConfig), [word for word in argv if word != "--print"]
        )
        # What is printed is for the machine that the recipe is made for, which need not be this one.
        on_cpu = values.use_cpu or not (show_only or torch.cuda.device_count())
        transfer = weight_transfer(values, on_cpu)
        installed = installed_vllm()
        named = "--vllm_server_host" in " ".join(argv)  # then even TRL's default, 0.0.0.0, is meant
        host, port = values.vllm_server_host if named else server_host(values), values.vllm_server_port
        if not show_only:
            check_vllm(installed, on_cpu)
            if not is_port_free(port, host):
                raise RecipeError(f"cannot listen on {host}:{port}: choose another --vllm_server_port or host")
    except RecipeError as error:
        fail(str(error))
    gpus = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    where = Placement("own_server", on_cpu, gpus, transfer)
    command = serve_command(values, where, host, port, installed[1] if installed else "0.31.0")
    print(shlex.join(command), flush=True)
    if not show_only:
        environment = server_environment(where)
        if not gpus:  # all of them
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        recipe.print_short_help(__doc__, VLLMArguments)
        sys.exit()
    main(sys.argv[1:])
