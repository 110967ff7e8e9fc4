"""What vLLM gets is what is trained, and getting it changes nothing: adapters, quantized bases, failed transfers."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT, TINY_MODEL, program_environment

pytestmark = pytest.mark.slow


def generation_of(model: Any) -> Any:
    """TRL's generation as far as it reads weights, without an engine."""
    from mini_r1.generation.client import RunGeneration

    @contextmanager
    def whole(params: list[Any]):
        yield

    generation = RunGeneration.__new__(RunGeneration)
    generation.model, generation._dist = model, SimpleNamespace(is_fsdp=False, is_zero3=False, gather_params=whole)
    return generation


def adapted(dtype: str = "bfloat16", load: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The tiny model with a random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=getattr(torch, dtype), **(load or {}))
    return get_peft_model(
        base, LoraConfig(**{"r": 8, "init_lora_weights": False, "target_modules": "all-linear"} | settings)
    )


def merged_by_peft(model: Any) -> dict[str, Any]:
    return dict(copy.deepcopy(model).merge_and_unload().named_parameters())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="all linear layers"),
        pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, id="modules_to_save"),
        pytest.param({"use_rslora": True}, id="rank-stabilized"),
    ],
)
def test_every_weight_arrives_merged_even_after_the_iterator_has_ended(settings: dict[str, Any]):
    import torch

    model = adapted(**settings)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(0.5)
    arrived = dict(generation_of(model)._iter_named_params())
    wanted = merged_by_peft(model)
    assert set(arrived) == set(wanted)
    plain = adapted(**settings).get_base_model().state_dict()
    assert sum(not torch.equal(arrived[name], plain.get(name, torch.empty(0))) for name in arrived) > 0
    for name, weight in wanted.items():
        torch.testing.assert_close(arrived[name], weight, rtol=0, atol=0, msg=name)


def test_vllms_packer_sends_merged_weights():
    """The packer copies after the iterator has ended; what it got by then must still be merged."""
    import torch
    from vllm.distributed.weight_transfer.packed_tensor import pack_tensors, unpack_tensor

    model = adapted()
    wanted, pairs, arrived = merged_by_peft(model), generation_of(model)._iter_named_params(), {}
    while (chunk := pack_tensors(pairs, lambda pair: pair[1], 1 << 30)) is not None:
        arrived |= dict(unpack_tensor(chunk.packed_tensor, chunk.names, chunk.shapes, chunk.dtypes, chunk.tensor_sizes))
    assert all(torch.equal(arrived[name], weight) for name, weight in wanted.items())


def test_a_bfloat16_base_is_the_same_after_fifty_updates():
    import torch

    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}
    for _ in range(50):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.add_(2e-5 * torch.sign(torch.randn_like(parameter)))
        for _ in generation_of(model)._iter_named_params():
            pass
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_quantized_base_is_dequantized_before_the_adapter_is_added():
    import torch
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    load = {"quantization_config": four_bits, "device_map": {"": "cpu"}}
    model = adapted(load=load, target_modules=["q_proj", "up_proj"])
    arrived = dict(generation_of(model)._iter_named_params())
    plain = adapted().get_base_model().config
    assert arrived["model.layers.0.self_attn.k_proj.weight"].shape == (plain.hidden_size, plain.hidden_size)
    assert {weight.dtype for weight in arrived.values()} == {torch.bfloat16}
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    inputs = torch.randn(16, layer.in_features, dtype=torch.bfloat16)
    weight = arrived["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(torch.nn.functional.linear(inputs, weight), layer(inputs), rtol=0.02, atol=0.03)


def test_one_process_never_spreads_a_model_over_the_servers_gpu(monkeypatch: pytest.MonkeyPatch):
    """TRL's default with one CUDA process is device_map "auto", which takes every GPU that it sees."""
    import torch
    import trl.trainer.utils as trl_utils

    from run_r1_grpo import model_init_kwargs

    monkeypatch.setattr(trl_utils, "PartialState", lambda: SimpleNamespace(device=torch.device("cuda", 0)))
    given: dict[str, Any] = {}
    loader = SimpleNamespace(from_pretrained=lambda name, **kwargs: given.update(kwargs))
    recipe = SimpleNamespace(model_revision="main", attn_implementation="sdpa", dtype="float32")
    kwargs = model_init_kwargs(recipe, SimpleNamespace(model_init_kwargs={"use_cache": False}))
    trl_utils.create_model_from_path(str(TINY_MODEL), architecture=loader, **kwargs)
    assert given["device_map"] is None
    assert given["use_safetensors"] is True
    assert given["use_cache"] is False


# A server that takes the announcement of new weights and never answers, and a trainer whose sending fails.
_FAILED_TRANSFER = """
import threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import torch
from trl.generation import vllm_client as trl_client
from mini_r1.generation import client as vllm_client

class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        if self.path == "/update_weights":
            time.sleep(1000)
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass

def no_memory(**kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
vllm_client._HUNG_TRANSFER_SECONDS = 1
trl_client.ThreadPoolExecutor = vllm_client.TransferExecutor
trl_client.packed_nccl_broadcast_producer = no_memory
torch.cuda.synchronize = lambda: None
client = vllm_client.RunClient.__new__(vllm_client.RunClient)
client.base_url, client.session = f"http://127.0.0.1:{server.server_port}", trl_client.requests.Session()
client.server = client.weight_folder = client.failure = None
client._updating_weights, client.communicator = False, None
client._transfer_failed = vllm_client.TransferExecutor.failed
client.update_named_params([("w", "float32", [1])], iter([("w", torch.ones(1))]))
"""


def test_a_trainer_that_cannot_send_weights_ends_instead_of_waiting_for_the_server():
    done = subprocess.run(
        [sys.executable, "-c", _FAILED_TRANSFER],
        env=program_environment(PYTHONPATH=str(ROOT / "scripts")),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    assert "CUDA out of memory" in done.stderr.splitlines()[-1]
    assert "while weights were on their way to the vLLM server" in done.stderr.splitlines()[-1]


def test_colocated_engines_sample_apart_and_by_the_recipes_seed(monkeypatch: pytest.MonkeyPatch):
    """TRL seeds by rank alone: with any seed of a recipe an engine would sample the same."""
    from trl.generation import vllm_generation
    from trl.trainer import grpo_trainer

    from mini_r1.generation.client import connect
    from mini_r1.recipe.placement import Placement

    keys = {"model_revision": "main", "tokenizer_name_or_path": None, "dtype": "bfloat16", "vllm_dtype": None}
    keys |= {"vllm_prefix_caching": True, "vllm_kv_cache_dtype": "auto", "vllm_engine_args": None}
    keys |= {"vllm_tensor_parallel_size": 1, "vllm_max_model_length": 99}
    seeds = []
    for seed, rank in ((42, 0), (42, 1), (43, 0)):
        monkeypatch.setattr(vllm_generation, "LLM", lambda **arguments: seeds.append(arguments["seed"]))
        monkeypatch.setattr(grpo_trainer, "VLLMGeneration", None)
        values = SimpleNamespace(**keys, seed=seed)
        connect(values, Placement("colocate", on_cpu=False), None, SimpleNamespace(process_index=rank))
        vllm_generation.LLM(seed=rank)  # as TRL does
    assert len(set(seeds)) == 3


def test_one_gpu_is_the_one_that_the_environment_shows(monkeypatch: pytest.MonkeyPatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    config = ROOT / "configs" / "accelerate_configs" / "single_gpu.yaml"
    args = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    args, *_ = _validate_launch_command(args)
    _, environment = prepare_simple_launcher_cmd_env(args)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
