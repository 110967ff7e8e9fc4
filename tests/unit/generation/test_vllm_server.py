"""The server's command line, environment and messages; the real server itself is in test_vllm.py."""

from __future__ import annotations

import http.server
import os
import shlex
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_r1.common import RecipeError, ServerError
from mini_r1.countdown import TASK
from mini_r1.generation import server as server_module
from mini_r1.generation.server import (
    VLLMServer,
    engine_arguments,
    serve_command,
    server_environment,
    vllm_server,
    wait_until_healthy,
)
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import VLLMArguments
from mini_r1.recipe.placement import Placement, free_port

FOURTH_GPU = Placement("own_server", on_cpu=False, server_gpus=("3",))
ON_CPU = Placement("own_server", on_cpu=True, weight_transfer="folder")


def recipe(**changed: object) -> Recipe:
    defaults = {
        "model_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
        "model_revision": "main",
        "dtype": "bfloat16",
        "seed": 42,
        "tokenizer_name_or_path": None,
        "trust_remote_code": False,
        "max_prompt_tokens": 256,
        "max_completion_length": 1024,
        "vllm_max_model_length": None,
        "vllm_tensor_parallel_size": 1,
        "vllm_gpu_memory_utilization": 0.9,
        "vllm_model_impl": "vllm",
        "vllm_server_host": "0.0.0.0",
        "vllm_server_port": 8000,
    }
    return Recipe.draft(TASK, SimpleNamespace(**{**defaults, **vars(VLLMArguments()), **changed}))


def command(placement: Placement = FOURTH_GPU, name: str | None = None, **changed: object) -> str:
    python, *words = serve_command(recipe(**changed), placement, "127.0.0.1", 8123, name)
    assert python == sys.executable
    return shlex.join(words)


def test_the_command_line_of_the_articles_topology():
    assert command() == (
        "-m vllm.entrypoints.cli.main serve Qwen/Qwen2.5-3B-Instruct "
        "--host 127.0.0.1 --port 8123 --max-model-len 1280 "
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.9 --model-impl vllm --seed 42 "
        "--logprobs-mode processed_logprobs --max-logprobs -1 --generation-config vllm --disable-uvicorn-access-log "
        """--weight-transfer-config '{"backend": "nccl"}' --enable-scale-out """
        "--revision main --dtype bfloat16 --enable-prefix-caching"
    )


def test_the_command_line_on_the_cpu():
    assert command(ON_CPU) == (
        "-m vllm.entrypoints.openai.api_server --model Qwen/Qwen2.5-3B-Instruct "
        "--host 127.0.0.1 --port 8123 --max-model-len 1280 --model-impl vllm --seed 42 "
        "--logprobs-mode processed_logprobs --max-logprobs -1 --generation-config vllm --disable-uvicorn-access-log "
        "--enable-scale-out --revision main --dtype float32 --enable-prefix-caching --enforce-eager "
        "--worker-extension-cls mini_r1.generation.worker.WorkerExtension"
    )


@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        pytest.param({"model_revision": "abc123"}, "--revision abc123", id="revision"),
        pytest.param({"dtype": "float32"}, "--dtype float32", id="the model's precision"),
        pytest.param({"dtype": "float32", "vllm_dtype": "bfloat16"}, "--dtype bfloat16", id="a precision of its own"),
        pytest.param({"dtype": "torch.bfloat16"}, "--dtype bfloat16", id="torch's name"),
        pytest.param({"dtype": None}, "--dtype auto", id="no precision named"),
        pytest.param({"max_prompt_tokens": 100, "max_completion_length": 200}, "--max-model-len 300", id="context"),
        pytest.param({"vllm_max_model_length": 4096}, "--max-model-len 4096", id="context, named"),
        pytest.param({"vllm_gpu_memory_utilization": 0.5}, "--gpu-memory-utilization 0.5", id="memory share"),
        pytest.param({"vllm_tensor_parallel_size": 2}, "--tensor-parallel-size 2", id="tensor parallel"),
        pytest.param({"vllm_prefix_caching": False}, "--no-enable-prefix-caching", id="no prefix caching"),
        pytest.param({"vllm_kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8", id="KV cache"),
        pytest.param({"trust_remote_code": True}, "--trust-remote-code", id="remote code, when asked for"),
        pytest.param({"tokenizer_name_or_path": "some/other"}, "--tokenizer some/other", id="another tokenizer"),
        pytest.param(
            {"vllm_engine_args": {"max_num_seqs": 64, "enforce_eager": True}},
            "--max-num-seqs 64 --enforce-eager",
            id="further engine arguments",
        ),
        pytest.param({"name": "this-run"}, "--served-model-name this-run", id="a name of its own"),
        pytest.param({"vllm_engine_args": {"dtype": "float16"}}, "--dtype float16", id="an engine argument wins"),
    ],
)
def test_what_the_recipe_says_is_on_the_command_line(changed: dict, flags: str):
    assert f" {flags}" in command(**changed)


def test_flags_that_depend_on_version_and_transport(monkeypatch: pytest.MonkeyPatch):
    for version, there in (("0.29.1", False), ("0.30.0rc1", True)):
        monkeypatch.setattr(server_module, "installed_vllm", lambda version=version: ("vllm", version))
        assert ("--enable-scale-out" in command()) == there
    through_files = Placement("own_server", on_cpu=False, server_gpus=("3",), weight_transfer="folder")
    assert "--weight-transfer-config" not in command(through_files)
    assert "trust-remote-code" not in command()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "changed"),
    [
        pytest.param(FOURTH_GPU, {}, id="four GPUs"),
        pytest.param(
            FOURTH_GPU,
            {
                "vllm_engine_args": {"distributed_executor_backend": "ray"},
                "vllm_tensor_parallel_size": 16,
                "vllm_kv_cache_dtype": "fp8",
                "vllm_prefix_caching": False,
                "trust_remote_code": True,
            },
            id="Ray",
        ),
        pytest.param(ON_CPU, {}, id="CPU"),
    ],
)
def test_vllms_own_parser_takes_the_command_line(placement: Placement, changed: dict):
    """Every flag exists in the vLLM that is installed, with a value of the right type."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = shlex.split(command(placement, **changed))
    at = words.index("serve") if "serve" in words else words.index("--model")
    flags = words[at + 2 :]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    assert args.host == "127.0.0.1"
    assert args.max_model_len == 1280
    assert args.max_logprobs == -1
    assert str(args.logprobs_mode) == "processed_logprobs"
    assert args.enable_scale_out
    assert args.revision == "main"
    assert args.enable_prefix_caching == ("--enable-prefix-caching" in flags)


def test_an_engine_inside_the_trainer_gets_the_recipes_revision_and_precision():
    assert engine_arguments(recipe(vllm_kv_cache_dtype="fp8"), on_cpu=False) == {
        "revision": "main",
        "dtype": "bfloat16",
        "enable_prefix_caching": True,
        "kv_cache_dtype": "fp8",
    }
    assert engine_arguments(recipe(), on_cpu=True)["dtype"] == "float32"


def test_the_servers_environment_has_nothing_of_the_launchers():
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK ROLE_NAME "
    names += "TORCHELASTIC_RUN_ID ACCELERATE_USE_DEEPSPEED FSDP_VERSION OMP_NUM_THREADS"
    launcher = dict.fromkeys(names.split(), "1")
    ours = {"PATH": "/bin", "HF_TOKEN": "t", "NCCL_DEBUG": "INFO", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    on_gpu = server_environment(FOURTH_GPU, launcher | ours)
    assert on_gpu.pop("PYTHONPATH").endswith("scripts")
    assert on_gpu == {**ours, "CUDA_VISIBLE_DEVICES": "3", "VLLM_SERVER_DEV_MODE": "1"}
    on_cpu = server_environment(ON_CPU, launcher | ours | {"VLLM_CPU_KVCACHE_SPACE": "7"})
    assert on_cpu["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert on_cpu["PYTHONPATH"].endswith("scripts")
    assert on_cpu["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("[1, 2]", "must be `name: value` pairs", id="a list"),
        pytest.param("{a: 1}", "must be a JSON object", id="YAML, but no JSON"),
    ],
)
def test_engine_arguments_that_are_none(given: str, message: str):
    with pytest.raises(RecipeError, match=message):
        VLLMArguments(vllm_engine_args=given)


def test_engine_arguments_on_the_command_line_are_json():
    assert VLLMArguments(vllm_engine_args='{"max_num_seqs": 4}').vllm_engine_args == {"max_num_seqs": 4}


# ---- waiting and dying, with a server that is only a process or only an address ------------------------------------


def server(program: str, tmp_path: Path, port: int | None = None) -> VLLMServer:
    return VLLMServer(
        [sys.executable, "-u", "-c", program],
        dict(os.environ),
        f"http://127.0.0.1:{port or free_port()}",
        tmp_path / "log",
    )


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        pytest.param(
            "\x1b[31mValueError: no model\x1b[0m\nRuntimeError: see above", "ValueError: no model", id="first"
        ),
        pytest.param(
            "ValidationError: 1 validation error for ModelConfig\n  Value error, too long",
            "ValidationError: 1 validation error for ModelConfig Value error, too long",
            id="pydantic names the reason on the next line",
        ),
    ],
)
def test_a_server_that_ends_is_quoted(log: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dying = server(f"print('loading'); print({log!r}); raise SystemExit(4)", tmp_path)
    with pytest.raises(ServerError) as caught:
        wait_until_healthy(dying.url, 60, dying)
    assert (
        str(caught.value) == f"the vLLM server ended with exit code 4 ({reason}); its whole log is {tmp_path / 'log'}"
    )
    assert f"  vllm | {reason.split(' Value')[0]}\n" in capsys.readouterr().err  # without the colours
    dying.stop()


def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path: Path):
    silent = server("import time; print('thinking'); time.sleep(600)", tmp_path)
    with pytest.raises(ServerError, match=r"not ready within 1 s .*: raise vllm_server_timeout"):
        wait_until_healthy(silent.url, 1, silent)
    assert silent.guard.poll() is None
    silent.stop()
    assert silent.guard.poll() == 0
    silent.stop()  # any number of times


def test_an_older_log_is_kept(tmp_path: Path):
    (tmp_path / "log").write_text("from before")
    again = server("print('now')", tmp_path)
    again.guard.wait(20)
    assert again.lines() == ["now"]
    assert (tmp_path / "log.old").read_text() == "from before"


def test_somebody_elses_server_that_is_not_there():
    with pytest.raises(ServerError, match=r"no vLLM server answers at .*scripts/serve_vllm\.py"):
        wait_until_healthy(f"http://127.0.0.1:{free_port()}", 0.1)


@pytest.mark.parametrize(
    ("placement", "is_rank_zero", "starts"),
    [
        pytest.param(ON_CPU, True, True, id="rank 0 of a run with a server of its own"),
        pytest.param(ON_CPU, False, False, id="another rank"),
        pytest.param(Placement("colocate", on_cpu=True), True, False, id="no server"),
    ],
)
def test_who_starts_a_server(
    placement: Placement, is_rank_zero: bool, starts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(server_module, "serve_command", lambda *arguments: program)
    with vllm_server(recipe(output_dir=tmp_path), placement, is_rank_zero) as running:
        assert (running is not None) == starts
        assert running is None or running.guard.poll() is None
    assert running is None or running.guard.poll() == 0


def test_waiting_ends_when_the_server_answers(tmp_path: Path):
    class Health(http.server.BaseHTTPRequestHandler):
        answers = 0

        def do_GET(self) -> None:
            Health.answers += 1
            self.send_response(503 if Health.answers < 3 else 200)  # starting, starting, ready
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        wait_until_healthy(f"http://127.0.0.1:{httpd.server_port}", 30)
        httpd.shutdown()
    assert Health.answers == 3
