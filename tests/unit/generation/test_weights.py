"""What vLLM gets is what is trained, and getting it changes nothing: adapters, quantized bases, failed transfers."""

from __future__ import annotations

import copy
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT, TINY_MODEL

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


# ---- failed transfers, with a server that only answers --------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Takes the announcement of new weights and answers it as the test wants."""

    answer: Callable[[], int]  # HTTP status

    def do_POST(self) -> None:
        self.send_response(type(self).answer() if self.path == "/update_weights" else 200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def client_of(url: str) -> Any:
    """A client that sends weights over NCCL, as far as that is known without a GPU."""
    import requests

    from mini_r1.generation.client import RunClient

    client = RunClient.__new__(RunClient)
    client.base_url, client.session = url, requests.Session()
    client.server = client.weight_folder = client.failure = client.communicator = None
    client._updating_weights = False
    return client


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], int], Callable[..., None]], Any]]:
    """Given the server's answer and what NCCL does, a client after its update."""
    import torch
    from trl.generation import vllm_client as trl_client

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()

    def update(answer: Callable[[], int], send: Callable[..., None]) -> Any:
        monkeypatch.setattr(Answers, "answer", staticmethod(answer), raising=False)
        monkeypatch.setattr(trl_client, "packed_nccl_broadcast_producer", send)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        client = client_of(f"http://127.0.0.1:{httpd.server_port}")
        client.update_named_params([("w", "float32", [1])], iter([("w", torch.ones(1))]))
        return client

    yield update
    httpd.shutdown()
    httpd.server_close()


def test_a_trainer_that_cannot_send_weights_does_not_wait_for_the_server(
    answering: Any, monkeypatch: pytest.MonkeyPatch
):
    """The server waits for weights that do not come; every rank hears of it, so that a checkpoint can be saved."""
    import torch

    from mini_r1.common import ServerError
    from mini_r1.generation import client as client_module

    def no_memory(**kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(client_module, "_TRANSFER_SECONDS", 1)
    answered = threading.Event()
    client = answering(lambda: 200 if answered.wait(60) else 500, no_memory)
    answered.set()
    with pytest.raises(ServerError, match="new weights do not reach the vLLM server: CUDA out of memory"):
        list(client.generate([[1]])["prompt_ids"])


def test_a_server_that_is_gone_is_told_where_completions_are_read():
    """TRL asks on rank 0 and reads on all ranks: an error that rank 0 alone raises would leave the others waiting."""
    from mini_r1.common import ServerError
    from mini_r1.recipe.placement import free_port

    client = client_of(f"http://127.0.0.1:{free_port()}")
    client.model = "model"
    for _ in range(2):
        answer = client.generate([[1]])
        with pytest.raises(ServerError, match="cannot be reached"):
            list(answer["prompt_ids"])


def test_a_server_that_fails_in_a_transfer_ends_a_trainer_that_waits_for_it(
    answering: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """NCCL waits for ever, and nothing reaches the main thread: the process ends, in one line."""
    from mini_r1.generation import client as client_module

    ended: list[int] = []
    over = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        over.set()

    monkeypatch.setattr(client_module.os, "_exit", end)
    monkeypatch.setattr(client_module, "_HUNG_SECONDS", 1)
    answering(lambda: 500, lambda **kwargs: over.wait(60))
    assert ended == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: weights on their way to vLLM cannot be recalled")
    assert "answers" in line


def test_a_failed_transfer_that_is_over_ends_nothing(answering: Any, monkeypatch: pytest.MonkeyPatch):
    from mini_r1.generation import client as client_module

    ended: list[int] = []
    monkeypatch.setattr(client_module.os, "_exit", ended.append)
    monkeypatch.setattr(client_module, "_HUNG_SECONDS", 1)
    client = answering(lambda: 500, lambda **kwargs: None)
    assert "/update_weights with 500" in client.failure
    time.sleep(1.5)
    assert ended == []


# ---- engines -------------------------------------------------------------------------------------------------------


def test_colocated_engines_sample_apart_and_by_the_recipes_seed(monkeypatch: pytest.MonkeyPatch):
    """TRL seeds by rank alone: with any seed of a recipe an engine would sample the same."""
    from trl.generation import vllm_generation
    from trl.trainer import grpo_trainer

    from mini_r1.countdown import TASK
    from mini_r1.generation.client import connect
    from mini_r1.recipe import Recipe
    from mini_r1.recipe.placement import Placement

    keys = {"model_revision": "main", "tokenizer_name_or_path": None, "dtype": "bfloat16", "vllm_dtype": None}
    keys |= {"vllm_prefix_caching": True, "vllm_kv_cache_dtype": "auto", "vllm_engine_args": None}
    keys |= {"vllm_tensor_parallel_size": 1, "vllm_max_model_length": 99}
    seeds = []
    for seed, rank in ((42, 0), (42, 1), (43, 0)):
        monkeypatch.setattr(vllm_generation, "LLM", lambda **arguments: seeds.append(arguments["seed"]))
        monkeypatch.setattr(grpo_trainer, "VLLMGeneration", None)
        recipe = Recipe.draft(TASK, SimpleNamespace(**keys, seed=seed, process_index=rank))
        connect(recipe, Placement("colocate", on_cpu=False), None)
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
