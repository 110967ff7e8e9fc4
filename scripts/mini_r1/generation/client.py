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
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from torch.nn import Parameter
from trl.generation import vllm_client as trl_client
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.trainer import grpo_trainer

from mini_r1.common import RecipeError
from mini_r1.generation.server import (
    VLLMServer,
    VLLMServerError,
    context_length,
    end_by_force,
    engine_arguments,
    wait_until_healthy,
)
from mini_r1.recipe.placement import LOOPBACK, TRL_GROUP_PORT, Placement, free_port

_SHARD_BYTES = 4 << 30  # of weights that are held in memory before they are written
_TRANSFERS = ("/init_weight_transfer_engine", "/update_weights")  # requests that run beside an NCCL call
_HUNG_TRANSFER_SECONDS = 60


class RunGeneration(vllm_generation.VLLMGeneration):
    """TRL's generation that sends vLLM the weights as they are trained, and leaves the trained ones alone."""

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
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
        modules = [module for module in self.model.modules() if isinstance(getattr(module, "weight", None), Parameter)]
        layers = {id(module.weight): module for module in modules if isinstance(module, LoraLayer)}
        others = {id(module.weight): module for module in modules if not isinstance(module, LoraLayer)}
        for name, parameter in self.model.named_parameters():
            if self.model.prefix in name or "original_module" in name:  # the adapter; what `modules_to_save` replaces
                continue
            layer = layers.get(id(parameter))
            with self._dist.gather_params([parameter] if layer is None else list(layer.parameters())):
                if layer is not None:
                    weight = merged_weight(layer)
                else:  # a 4-bit base is dequantized whether an adapter sits on it or not
                    module = others.get(id(parameter))
                    weight = parameter.data if module is None else dequantize_module_weight(module).data
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
    """Stands where completions should be; whoever looks at them raises VLLMServerError.

    TRL broadcasts what rank 0 got to all ranks and then iterates over it, so all of them raise at the same place.
    """

    def __init__(self, message: str):
        self.message = message

    def __iter__(self) -> NoReturn:
        raise VLLMServerError(self.message)


class TransferExecutor(ThreadPoolExecutor):
    """What TRL runs the request beside an NCCL call with; notes an error of the call before it waits for the request.

    The request waits for the call, so that waiting would never end.
    """

    failed = threading.Event()
    reason: str | None = None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        if error is not None:
            TransferExecutor.reason = " ".join(f"{kind.__name__}: {error}".split())[:300]
            self.failed.set()
        return super().__exit__(kind, error, traceback)


class RunClient(VLLMClient):
    """TRL's client with one way to fail, and with a choice of how weights travel.

    Args:
        server: the run's own server, None for somebody else's.
        weight_folder: where weights are written for the server to read; None sends them over NCCL.
        context: tokens that the server must have room for.
        seed: of the engines' sampling, when there are several behind the address.
        kwargs: what TRL passes.
    """

    def __init__(
        self, *, server: VLLMServer | None, weight_folder: Path | None, context: int, seed: int, **kwargs: Any
    ):
        self.server, self.weight_folder, self.context, self.seed = server, weight_folder, context, seed
        self.failure: str | None = None
        self.updates = 0
        self._transfer_failed = TransferExecutor.failed
        self.group_port: int  # TRL's
        super().__init__(**kwargs)
        if server is not None and self.model != server.name:
            raise VLLMServerError(f"another vLLM server answers at {self.base_url}: choose another vllm_server_port")

    # ---- requests --------------------------------------------------------------------------------------------------

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        wait_until_healthy(self.base_url, total_timeout, self.server)
        self.session.trust_env = False  # no proxy stands between a trainer and its server
        # vLLM closes idle connections after seconds, and a step is longer: a new one each time is never stale.
        self.session.headers["Connection"] = "close"
        if self.server is not None:  # it is either there or dead: trying again for a minute helps nobody
            self.session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))

    def _checked(self, method: str, url: str, **kwargs: Any) -> Any:
        try:
            if self.server is not None:
                self.server.check()
            response = self.session.request(method, url, timeout=(10, None), **kwargs)
            if response.status_code >= 500:
                self._check_own_server()
            if response.status_code != 200:
                raise VLLMServerError(
                    f"the vLLM server answers {url} with {response.status_code}: {response.text[:500]}"
                )
            return response.json() if response.content else {}
        except (requests.RequestException, VLLMServerError) as error:
            if url.endswith(_TRANSFERS):
                self._transfer_failed.set()
            if isinstance(error, VLLMServerError):
                raise
            self._check_own_server()
            raise VLLMServerError(f"the vLLM server at {self.base_url} cannot be reached: {error}") from error

    def _check_own_server(self) -> None:
        """A server that fails is often one that is dying: what it leaves in its log says more than its last answer."""
        if self.server is not None:
            self.server.wait_for_end(10)
            self.server.check()

    def _get(self, url: str, **kwargs: Any) -> Any:
        return self._checked("GET", url, **kwargs)

    def _post(self, url: str, **kwargs: Any) -> Any:
        return self._checked("POST", url, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            if self.failure is not None:
                raise VLLMServerError(self.failure)
            return super().generate(*args, **kwargs)
        except VLLMServerError as error:
            self.failure = str(error)
            return {"prompt_ids": Lost(self.failure), "completion_ids": None, "logprobs": None}

    def reset_prefix_cache(self) -> None:
        try:
            if self.failure is None:
                self._post(f"{self.base_url}/reset_prefix_cache")
        except VLLMServerError as error:
            self.failure = str(error)

    # ---- weights ---------------------------------------------------------------------------------------------------

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        try:
            info = self.get_server_info()
        except RuntimeError as error:  # TRL's: no development endpoints
            raise VLLMServerError(str(error)) from error
        room, engines = info["model_config"]["max_model_len"], info["parallel_config"]["data_parallel_size"]
        if room < self.context:
            raise VLLMServerError(
                f"the vLLM server has room for {room} tokens a sequence, and prompt and completion may take "
                f"{self.context}: start it with --max-model-len {self.context}"
            )
        if engines > 1:
            self._reseed()
        if self.weight_folder is not None:
            atexit.register(self._remove_weights)
            return
        if self.server is not None:
            os.environ.setdefault("VLLM_HOST_IP", LOOPBACK)  # where the rendezvous listens
            if self.group_port == TRL_GROUP_PORT:  # two runs on one machine must not meet there
                self.group_port = free_port()
        try:
            with self._bounded_transfer():
                super().init_communicator(device)
        except (RuntimeError, NotImplementedError, OSError) as error:
            self._check_own_server()
            raise VLLMServerError(f"cannot connect to the vLLM server for weights: {error}") from error

    def _reseed(self) -> None:
        """Seeds each engine behind the address apart.

        All begin with the same seed and take a group's completions in turn, so siblings would be copies of each other.
        """
        try:
            self._post(f"{self.base_url}/collective_rpc", json={"method": "reseed", "kwargs": {"seed": self.seed}})
        except VLLMServerError as error:
            raise VLLMServerError(
                f"the vLLM server has several engines that all sample with the same seed: start it with "
                f"scripts/serve_vllm.py, or without data_parallel_size ({error})"
            ) from error

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Sends all weights. Reading them is a collective operation, so they are read to the end whatever happens."""
        try:
            if self.failure is not None:
                pass
            elif self.weight_folder is not None:
                self._update_through_folder(named_params)
            else:
                torch.cuda.synchronize()  # vLLM packs on streams of its own, which do not wait for this one
                with self._bounded_transfer():
                    super().update_named_params(metadata, named_params)
        except VLLMServerError as error:
            self.failure = str(error)
        except (OSError, SafetensorError, RuntimeError) as error:  # the folder, or NCCL
            self.failure = f"new weights do not reach the vLLM server: {error}"
        for _ in named_params:
            pass

    @contextlib.contextmanager
    def _bounded_transfer(self) -> Iterator[None]:
        """Around NCCL calls, which wait for their counterpart for ever, should either side fail in between."""
        self._transfer_failed.clear()
        TransferExecutor.reason = None
        done = threading.Event()

        def watch() -> None:
            failed_for = 0
            while not done.wait(1):
                dead = self.server is not None and self.server.exit_code() is not None
                failed_for = failed_for + 1 if dead or self._transfer_failed.is_set() else 0
                if failed_for > _HUNG_TRANSFER_SECONDS:
                    reason = TransferExecutor.reason or "the vLLM server failed"
                    end_by_force(
                        f"{reason} while weights were on their way to the vLLM server, and they cannot be recalled: "
                        f"this process ends without a new checkpoint",
                        self.server,
                    )

        threading.Thread(target=watch, name="weight-transfer-watch", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _update_through_folder(self, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        assert self.weight_folder is not None
        self.updates += 1
        folder = self.weight_folder / f"weights-{os.getpid()}-{self.updates}"
        folder.mkdir(parents=True)
        shard: dict[str, torch.Tensor] = {}
        size = shards = 0

        def write() -> None:
            save_file(shard, folder / f"model-{shards:05}.safetensors")
            shard.clear()

        for name, parameter in named_params:
            # A copy: what is gathered from other ranks is gone when the next one is asked for.
            shard[name] = parameter.detach().to("cpu", copy=True).contiguous()
            size += shard[name].nbytes
            if size >= _SHARD_BYTES:
                shards, size = shards + 1, 0
                write()
        if shard:
            shards += 1
            write()
        self._post(
            f"{self.base_url}/collective_rpc",
            json={"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}},
        )
        self._remove_weights(keep=folder)  # the newest stays: the server takes it for its model's folder now

    def _remove_weights(self, keep: Path | None = None) -> None:
        """Removes what was written for the server, in a folder that others may use as well."""
        assert self.weight_folder is not None
        for folder in self.weight_folder.glob(f"weights-{os.getpid()}-*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)
        if keep is None:
            with contextlib.suppress(OSError):
                self.weight_folder.rmdir()


def connect(values: Any, placement: Placement, server: VLLMServer | None, training_args: Any) -> None:
    """Prepares TRL's generation for this placement; call it on every rank before the trainer is made.

    Args:
        values: the recipe's keys as attributes.
        placement: what `placement.plan` returned.
        server: the run's own server; None on other ranks and for other placements.
        training_args: GRPOConfig, which gets the server's address.
    """
    if placement.generation == "transformers":
        return
    training_args.vllm_max_model_length = context_length(values)
    grpo_trainer.VLLMGeneration = RunGeneration
    if placement.generation == "colocate":
        if placement.on_cpu:
            from mini_r1.generation.cpu import leave_weights_unpacked

            leave_weights_unpacked()
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # TRL passes neither revision nor precision on, and what the recipe says goes before what TRL says. Weights
        # arrive merged and dequantized. TRL seeds by rank alone: every seed of a recipe would sample the same.
        engine_rank = training_args.process_index // values.vllm_tensor_parallel_size
        seed = values.seed + 1000 * engine_rank
        ours = {"quantization": None, "seed": seed} | engine_arguments(values, placement.on_cpu)
        fixed = {"model", "tensor_parallel_size", "distributed_executor_backend"} & ours.keys()
        if fixed:
            raise RecipeError(f"vllm_engine_args: {', '.join(sorted(fixed))} cannot be set with vllm_mode: colocate")
        engine = vllm_generation.LLM
        vllm_generation.LLM = lambda **theirs: engine(**(theirs | ours))
        return
    training_args.vllm_server_base_url = server.url if server is not None else placement.url
    if server is not None:
        server.check()
    folder = None
    if placement.weight_transfer == "folder":
        folder = Path(values.vllm_weight_folder or Path(values.output_dir, "_vllm_weights"))  # "_": not for the Hub
        if values.vllm_weight_folder is None and int(os.environ.get("RANK", "0")) == 0:
            shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left there
    vllm_generation.VLLMClient = functools.partial(
        RunClient, server=server, weight_folder=folder, context=context_length(values), seed=values.seed
    )
    trl_client.ThreadPoolExecutor = TransferExecutor
