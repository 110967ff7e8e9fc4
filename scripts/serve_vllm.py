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

from mini_r1.common import RecipeError, run_cli
from mini_r1.countdown import TASK
from mini_r1.generation.server import serve_command, server_environment
from mini_r1.recipe.parsing import read_draft
from mini_r1.recipe.placement import Placement, check_vllm, installed_vllm, is_port_free, server_host, weight_transfer


def main(argv: list[str]) -> None:
    show_only = "--print" in argv
    recipe = read_draft([word for word in argv if word != "--print"], TASK, __doc__)
    import torch

    # What is printed is for the machine that the recipe is made for, which need not be this one.
    on_cpu = recipe.training.use_cpu or not (show_only or torch.cuda.device_count())
    named = "--vllm_server_host" in " ".join(argv)  # then even TRL's default, 0.0.0.0, is meant
    host, port = recipe.training.vllm_server_host if named else server_host(recipe), recipe.training.vllm_server_port
    gpus = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    where = Placement("own_server", on_cpu, gpus, weight_transfer(recipe, on_cpu))
    command = serve_command(recipe, where, host, port)
    print(shlex.join(command), flush=True)
    if show_only:
        return
    check_vllm(installed_vllm(), on_cpu)
    if not is_port_free(port, host):
        raise RecipeError(f"cannot listen on {host}:{port}: choose another --vllm_server_port or host")
    environment = server_environment(where)
    if not gpus:  # all of them
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    run_cli(main)
