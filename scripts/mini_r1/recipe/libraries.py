"""What TRL and transformers would refuse only later, asked of them before anything loads.

The libraries decide, by their own lists, messages and constructors; for another machine (`plan_for`) nobody knows which
packages are installed there, so that values alone are checked.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from mini_r1.common import LIBRARY_ERRORS, RecipeError, one_line
from mini_r1.recipe import Recipe

# Text of which TRL looks at in the first step; its `--help` names the values.
_WORDS = (
    "loss_type",
    "scale_rewards",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_importance_sampling_mode",
)


def check_libraries(recipe: Recipe) -> None:
    """Refuses what a library would refuse in the trainer or in the first step. Raises RecipeError, naming the key."""
    is_here = recipe.script.plan_for is None
    _check_words(recipe.training)
    _check_pairs(recipe.resolved)
    _check_sampling(recipe.training)
    _check_attention(recipe.model.attn_implementation, is_here, is_here and recipe.training.device.type == "cpu")
    _check_trackers(recipe.training.report_to, is_here)
    if is_here:
        _check_packages(recipe)
    _check_optimizer(recipe.training, is_here)


def allowed_words(key: str) -> list[str]:
    """The values of one of GRPOConfig's keys that its help quotes, as in "must be `'server'` or `'colocate'`"."""
    from trl import GRPOConfig

    fields = GRPOConfig.__dataclass_fields__
    quoted = re.findall(r"(?<!=)[`'](\w+)[`']", fields[key].metadata["help"])
    return [word for word in dict.fromkeys(quoted) if word not in fields and word not in ("True", "False")]


def _check_words(training: Any) -> None:
    for key in _WORDS:
        value, allowed = getattr(training, key), allowed_words(key)
        if value not in allowed:
            raise RecipeError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")


def _check_pairs(resolved: dict[str, Any]) -> None:
    """Text where a library takes `name: value` pairs; it may name a JSON file instead."""
    for key, value in resolved.items():
        if key.endswith(("_kwargs", "_config")) and isinstance(value, str) and not Path(value).is_file():
            raise RecipeError(f"{key} must be `name: value` pairs, or JSON on the command line, got {value!r}")


def _check_sampling(training: Any) -> None:
    """Makes what shapes the distribution; 0 and None turn top_k off, None min_p."""
    from transformers import (
        GenerationConfig,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    unknown = (training.generation_kwargs or {}).keys() - vars(GenerationConfig()).keys()
    if unknown and not training.use_vllm:  # transformers ignores them
        raise RecipeError(f"generation_kwargs: transformers' GenerationConfig has no {', '.join(sorted(unknown))}")
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    for key, warper in (*warpers.items(), ("repetition_penalty", RepetitionPenaltyLogitsProcessor)):
        value = getattr(training, key)
        try:
            if value is not None and (key, value) != ("top_k", 0):
                warper(value)
        except LIBRARY_ERRORS as error:
            raise RecipeError(f"{key}: {one_line(error)}") from error


def _check_attention(name: str | None, is_here: bool, on_cpu: bool) -> None:
    if name is None:
        return
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils import is_kernels_available

    allowed = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name not in allowed and "/" not in name:  # a kernel on the Hub
        raise RecipeError(f"attn_implementation must be one of {', '.join(allowed)}, or a Hub kernel, got {name!r}")
    version = re.search(r"flash_attention_(\d)$", name)
    if version and on_cpu:
        raise RecipeError(f"attn_implementation: {name} needs a GPU: write sdpa")
    installed = version and FLASH_ATTENTION_COMPATIBILITY_MATRIX[int(version[1])]["general_availability_check"]()
    if is_here and (version or "/" in name) and not installed and not is_kernels_available():
        change = "`pip install 'kernels>=0.16,<0.17'` (`make install-gpu` does), or write sdpa"
        raise RecipeError(f"attn_implementation: {name} needs the package kernels: {change}")


def _check_trackers(names: list[str], is_here: bool) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
        get_reporting_integration_callbacks,
    )

    try:
        get_reporting_integration_callbacks(names)
        for name in set(names) - set(get_available_reporting_integrations()) if is_here else ():
            # Its constructor says which package it lacks. Some destructors fail after that.
            type(name, (INTEGRATION_TO_CALLBACK[name],), {"__del__": lambda self: None})()
    except LIBRARY_ERRORS as error:
        raise RecipeError(f"report_to: {one_line(error)}") from error
    if is_here and "wandb" in names:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            change = "`wandb login`, or keep the run on this machine with `env: {WANDB_MODE: offline}`"
            raise RecipeError(f"report_to: wandb has no API key: {change}")


def _check_packages(recipe: Recipe) -> None:
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_bitsandbytes_available, is_liger_kernel_available

    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(recipe.model, key) and not is_bitsandbytes_available():
            raise RecipeError(f"{key}: true needs the package bitsandbytes: `pip install bitsandbytes`")
    if recipe.training.use_liger_kernel and not is_liger_kernel_available():
        try:
            apply_liger_kernel(None, None)
        except ImportError as error:
            raise RecipeError(f"use_liger_kernel: {one_line(error)}") from error


def _check_optimizer(training: Any, is_here: bool) -> None:
    """Makes optimizer and scheduler of two parameters, and asks for the learning rate at three steps."""
    import torch
    from transformers import Trainer

    class Rehearsal(Trainer):
        def __init__(self, args: Any, model: torch.nn.Module, optimizer: Any):
            self.args, self.model, self.optimizer = args, model, optimizer
            self.lr_scheduler = self.optimizer_cls_and_kwargs = None

    model, args, steps = torch.nn.Linear(1, 1), copy.copy(training), max(training.max_steps, 1)
    if args.optim_target_modules:  # names in the real model
        args.optim_target_modules = "all-linear"
    plain = None if is_here else torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    rehearsal, keys = Rehearsal(args, model, plain), f"optim: {args.optim.value}, optim_args: {args.optim_args}"
    try:
        rehearsal.create_optimizer()
        keys = f"lr_scheduler_type: {args.lr_scheduler_type.value}, lr_scheduler_kwargs: {args.lr_scheduler_kwargs}"
        scheduler = rehearsal.create_scheduler(steps)
        for rate in getattr(scheduler, "lr_lambdas", ()):
            for step in (0, steps // 2, steps):
                rate(step)
    except (*LIBRARY_ERRORS, ArithmeticError) as error:
        raise RecipeError(f"{keys}: {one_line(error)}") from error
