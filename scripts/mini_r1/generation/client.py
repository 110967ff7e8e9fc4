"""TRL's generation with vLLM, for a run that must neither hang nor sample from other weights than it trains.

TRL talks to a server from rank 0 only, and the other ranks wait for what comes back. An exception on rank 0 alone would
leave them waiting; here a failure travels to all of them in place of the completions, so that all raise the same error
at the same place and can still save a checkpoint together. Also here: adapters merged out of place, weights through a
folder instead of NCCL, engines that sample apart, and what a recipe says about colocated engines.

Importing this module loads TRL and vLLM (twenty seconds); scripts import it inside `main()`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import requests
import torch
from accelerate.utils import is_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.trainer import grpo_trainer

from mini_r1.common import RecipeError, ServerError, is_main_process, report
from mini_r1.generation.cpu import leave_weights_unpacked
from mini_r1.generation.server import VLLMServer, context_length, engine_arguments, wait_until_healthy
from mini_r1.recipe import Recipe
from mini_r1.recipe.placement import LOOPBACK, TRL_GROUP_PORT, Placement, free_port
from mini_r1.run_folder.manifest import wait_for_checkpoints

Weights = Iterator[tuple[str, torch.Tensor]]  # by name

_SHARD_BYTES = 4 << 30  # of weights that are held in memory before they are written
_TRANSFERS = ("/init_weight_transfer_engine", "/update_weights")  # requests that run beside an NCCL call
_TRANSFER_SECONDS = 600  # that such a request may take
_HUNG_SECONDS = 60  # that the NCCL call may go on after its request has failed


class RunGeneration(vllm_generation.VLLMGeneration):
    """TRL's generation that sends vLLM the weights as they are trained, and leaves the trained ones alone."""

    def _iter_named_params(self) -> Weights:
        """Name and whole weight of each parameter of the model that vLLM holds; a collective operation.

        TRL merges adapters into the base, yields views of it, and subtracts them again. In bfloat16 the rounding of
        each subtraction stays in the base (huggingface/trl#6688), and whoever holds a view when the iterator ends, as
        vLLM's packer does, gets the bare base. So each merged weight is a tensor of its own here.
        """
        # A forward pass without a backward one, as in an evaluation, leaves weights whole (FSDP2) or on their way
        # (ZeRO-3's prefetch), and what follows expects shards.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if self._dist.is_zero3 and self.accelerator.deepspeed_engine_wrapped is not None:
            self.accelerator.deepspeed_engine_wrapped.engine.empty_partition_cache()
        if not is_peft_model(self.model):
            yield from super()._iter_named_params()
            return
        # An adapter's layer shadows the one within, whose weight is also its own.
        modules = sorted(self.model.modules(), key=lambda module: isinstance(module, LoraLayer))
        owners = {id(m.weight): m for m in modules if isinstance(getattr(m, "weight", None), torch.nn.Parameter)}
        for name, parameter in self.model.named_parameters():
            if self.model.prefix in name or "original_module" in name:  # the adapter; what `modules_to_save` replaces
                continue
            owner = owners.get(id(parameter))
            with self._dist.gather_params(list(owner.parameters()) if isinstance(owner, LoraLayer) else [parameter]):
                if isinstance(owner, LoraLayer):
                    weight = merged_weight(owner)
                else:  # a 4-bit base is dequantized whether an adapter sits on it or not
                    weight = parameter.data if owner is None else dequantize_module_weight(owner).data
                if hasattr(weight, "full_tensor"):  # FSDP2
                    weight = weight.full_tensor()
                name = name.removeprefix("base_model.model.").replace(".base_layer", "")
                yield self._fix_param_name_to_vllm(name, extra_prefixes=["modules_to_save.default."]), weight


def merged_weight(layer: LoraLayer) -> torch.Tensor:
    """A layer's weight with its active adapters added, in the base's precision; the layer itself is not touched."""
    base = dequantize_module_weight(layer.get_base_layer()).detach()
    deltas = [layer.get_delta_weight(adapter).detach() for adapter in layer.active_adapters]
    return sum(deltas, start=base).to(base.dtype)


class Lost:
    """Stands where completions should be; whoever looks at them raises ServerError.

    TRL broadcasts what rank 0 got to all ranks and then iterates over it, so all of them raise at the same place.
    """

    def __init__(self, message: str):
        self.message = message

    def __iter__(self) -> NoReturn:
        raise ServerError(self.message)


class RunClient(VLLMClient):
    """TRL's client with one way to fail, and with a choice of how weights travel.

    Args:
        server: the run's own server, None for somebody else's.
        weight_folder: where weights are written for the server to read; None sends them over NCCL.
        context: tokens that the server must have room for.
        seed: of the engines' sampling, when there are several behind the address.
        kwargs: what TRL passes.
    """

    def __init__(self, server: VLLMServer | None, weight_folder: Path | None, context: int, seed: int, **kwargs: Any):
        self.server, self.weight_folder, self.context, self.seed = server, weight_folder, context, seed
        self.failure: str | None = None
        self.updates = 0
        self.group_port: int  # TRL's
        super().__init__(**kwargs)
        if server is not None and self.model != server.name:
            raise ServerError(f"another vLLM server answers at {self.base_url}: choose another vllm_server_port")

    # ---- requests --------------------------------------------------------------------------------------------------

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        wait_until_healthy(self.base_url, total_timeout, self.server)
        self.session.trust_env = False  # no proxy stands between a trainer and its server
        # vLLM closes idle connections after seconds, and a step is longer: a new one each time is never stale.
        self.session.headers["Connection"] = "close"
        # Our own server is either there or dead, and a transfer cannot be repeated: TRL's retries are not for these.
        for prefix in ["http://"] if self.server is not None else [self.base_url + path for path in _TRANSFERS]:
            self.session.mount(prefix, requests.adapters.HTTPAdapter(pool_maxsize=64))

    def _check_own_server(self, seconds: float = 0) -> None:
        if self.server is not None:
            self.server.check(seconds)

    def _request(self, method: str, url: str, seconds: float | None = None, **kwargs: Any) -> Any:
        self._check_own_server()
        try:
            response = self.session.request(method, url, timeout=(10, seconds), **kwargs)
        except requests.RequestException as error:
            self._check_own_server(10)
            raise ServerError(f"the vLLM server at {self.base_url} cannot be reached: {error}") from error
        if response.status_code >= 500:
            # One that fails is often one that is dying: what it leaves in its log says more than its last answer.
            self._check_own_server(10)
        if response.status_code != 200:
            raise ServerError(f"the vLLM server answers {url} with {response.status_code}: {response.text[:500]}")
        return response.json() if response.content else {}

    def _get(self, url: str, **kwargs: Any) -> Any:
        return self._request("GET", url, **kwargs)

    def _post(self, url: str, **kwargs: Any) -> Any:
        if not url.endswith(_TRANSFERS):
            return self._request("POST", url, **kwargs)
        try:
            return self._request("POST", url, _TRANSFER_SECONDS, **kwargs)
        except ServerError as error:
            threading.Thread(target=self._end_hung_transfer, args=(error, self._transfer_over), daemon=True).start()
            raise

    def _rpc(self, method: str, **kwargs: Any) -> None:
        self._post(f"{self.base_url}/collective_rpc", json={"method": method, "kwargs": kwargs})

    def _end_hung_transfer(self, error: ServerError, over: threading.Event) -> None:
        """Ends this process when the main thread stays in an NCCL call whose counterpart has failed."""
        if not over.wait(_HUNG_SECONDS):
            wait_for_checkpoints()
            os._exit(report(f"weights on their way to vLLM cannot be recalled, so no new checkpoint is saved: {error}"))

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[None]:
        """Around TRL's NCCL calls.

        TRL sends a request from a second thread while the main thread is in the call, and waits for both. When sending
        fails, the request's time limit ends the wait; when the request fails, `_end_hung_transfer` does.
        """
        self._transfer_over = threading.Event()
        try:
            yield
        finally:
            self._transfer_over.set()

    def _attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a call returns; None when it fails, or another has failed before."""
        if self.failure is None:
            try:
                return call(*args, **kwargs)
            except ServerError as error:
                self.failure = str(error)
        return None

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        answer = self._attempt(super().generate, *args, **kwargs)
        return answer or {"prompt_ids": Lost(str(self.failure)), "completion_ids": None, "logprobs": None}

    def reset_prefix_cache(self) -> None:
        self._attempt(self._post, f"{self.base_url}/reset_prefix_cache")

    # ---- weights ---------------------------------------------------------------------------------------------------

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        try:
            self._prepare_engines(self.get_server_info())
            if self.weight_folder is not None:
                atexit.register(self._remove_weights, self.weight_folder)
                return
            if self.server is not None:
                os.environ.setdefault("VLLM_HOST_IP", LOOPBACK)  # where the rendezvous listens
                if self.group_port == TRL_GROUP_PORT:  # two runs on one machine must not meet there
                    self.group_port = free_port()
            with self._transfer():
                super().init_communicator(device)
        except (RuntimeError, OSError) as error:
            self._check_own_server(10)
            raise ServerError(f"cannot connect to the vLLM server for weights: {error}") from error

    def _prepare_engines(self, info: dict[str, Any]) -> None:
        """Checks that the engines have room for the longest completion, and seeds several apart.

        They begin with the same seed and take a group's completions in turn, so siblings would be copies of each other.
        """
        room, engines = info["model_config"]["max_model_len"], info["parallel_config"]["data_parallel_size"]
        if room < self.context:
            lack = f"the vLLM server has room for {room} tokens a sequence, and prompt and completion may take"
            raise ServerError(f"{lack} {self.context}: start it with --max-model-len {self.context}")
        if engines > 1:
            try:
                self._rpc("reseed", seed=self.seed)
            except ServerError as error:
                change = "start it with scripts/serve_vllm.py, or without data_parallel_size"
                raise ServerError(f"the vLLM server's engines sample with one seed: {change} ({error})") from error

    def update_named_params(self, metadata: list[tuple[str, str, list[int]]], named_params: Weights) -> None:
        """Sends all weights. Reading them is a collective operation, so they are read to the end whatever happens."""
        self._attempt(self._send, metadata, named_params)
        for _ in named_params:
            pass

    def _send(self, metadata: list[tuple[str, str, list[int]]], named_params: Weights) -> None:
        try:
            if self.weight_folder is not None:
                self._update_through_folder(self.weight_folder, named_params)
            else:
                torch.cuda.synchronize()  # vLLM packs on streams of its own, which do not wait for this one
                with self._transfer():
                    super().update_named_params(metadata, named_params)
        except (OSError, SafetensorError, RuntimeError) as error:  # the folder, or NCCL
            raise ServerError(f"new weights do not reach the vLLM server: {error}") from error

    def _update_through_folder(self, parent: Path, named_params: Weights) -> None:
        self.updates += 1
        folder = parent / f"weights-{os.getpid()}-{self.updates}"
        folder.mkdir(parents=True)
        size = 0

        def shard(pair: tuple[str, torch.Tensor]) -> int:
            nonlocal size
            size += pair[1].nbytes
            return size // _SHARD_BYTES

        for number, pairs in itertools.groupby(named_params, shard):
            weights = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in pairs}
            save_file(weights, folder / f"model-{number:05}.safetensors")
        self._rpc("reload_weights", weights_path=str(folder.resolve()))
        self._remove_weights(parent, keep=folder)  # the newest stays: the server takes it for its model's folder now

    def _remove_weights(self, parent: Path, keep: Path | None = None) -> None:
        """Removes what was written for the server, in a folder that others may use as well."""
        for folder in parent.glob(f"weights-{os.getpid()}-*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody's weights are in it
            parent.rmdir()


def connect(recipe: Recipe, placement: Placement, server: VLLMServer | None) -> None:
    """Prepares TRL's generation for this placement; call it on every rank before the trainer is made.

    Args:
        recipe: what was asked; `training` gets the server's address.
        placement: what `placement.place` returned; not the one that generates with transformers.
        server: the run's own server; None on other ranks and for other placements.
    """
    recipe.training.vllm_max_model_length = context_length(recipe)
    grpo_trainer.VLLMGeneration = RunGeneration
    if placement.generation == "colocate":
        _set_up_engines(recipe, placement)
        return
    recipe.training.vllm_server_base_url = server.url if server is not None else placement.url
    if server is not None:
        server.check()
    folder = None
    if placement.weight_transfer == "folder":
        own = Path(recipe.training.output_dir, "_vllm_weights")  # uploads to the Hub leave out what begins with "_"
        folder = Path(recipe.vllm.vllm_weight_folder or own)
        if folder == own and is_main_process():
            shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left there
    ours = {"server": server, "weight_folder": folder, "context": context_length(recipe), "seed": recipe.training.seed}
    vllm_generation.VLLMClient = lambda **theirs: RunClient(**ours, **theirs)


def _set_up_engines(recipe: Recipe, placement: Placement) -> None:
    """Makes TRL's colocated engines what the recipe asks for.

    TRL passes neither revision nor precision on, and seeds by rank alone, so that every seed of a recipe would sample
    the same. Weights arrive merged and dequantized.
    """
    if placement.on_cpu:
        leave_weights_unpacked()
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    engine_rank = recipe.training.process_index // recipe.training.vllm_tensor_parallel_size
    seed = recipe.training.seed + 1000 * engine_rank
    ours = {"quantization": None, "seed": seed} | engine_arguments(recipe, placement.on_cpu)
    if fixed := {"model", "tensor_parallel_size", "distributed_executor_backend"} & ours.keys():
        raise RecipeError(f"vllm_engine_args: {', '.join(sorted(fixed))} cannot be set with vllm_mode: colocate")
    engine = vllm_generation.LLM
    vllm_generation.LLM = lambda **theirs: engine(**(theirs | ours))
