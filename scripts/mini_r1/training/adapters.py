"""What a recipe asks of a LoRA adapter, held against the model's modules before any weight is loaded.

peft matches names silently: of two targets it is content with one that exists.
"""

from __future__ import annotations

import re

from accelerate import init_empty_weights
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoConfig, AutoModelForCausalLM

from mini_r1.common import RecipeError
from mini_r1.recipe import Recipe

ALL_LINEAR = "all-linear"


def settle_targets(recipe: Recipe) -> None:
    """Makes `lora_target_modules` a list where it is one name, and checks that each name is one of the model's.

    ModelConfig unpacks a list of one, and peft takes text for a pattern of the whole path.

    Args:
        recipe: what was asked; `lora_target_modules` is changed.

    Raises:
        RecipeError: naming what matches nothing.
    """
    model = recipe.model
    if not model.use_peft or model.lora_target_modules in (None, ALL_LINEAR):
        return
    if isinstance(model.lora_target_modules, str) and re.fullmatch(r"[\w.]+", model.lora_target_modules):
        model.lora_target_modules = [model.lora_target_modules]
    if (names := _module_names(recipe)) is None:
        return
    targets = model.lora_target_modules
    for target in [targets] if isinstance(targets, str) else targets:
        config = LoraConfig(target_modules=target if isinstance(targets, str) else [target])
        try:
            found = any(check_target_module_exists(config, name) for name in names)
        except re.error as error:
            raise RecipeError(f"lora_target_modules: {target} is no pattern: {error}") from error
        if not found:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise RecipeError(f"lora_target_modules: no module of the model is called {target}: it has {known}")


def _module_names(recipe: Recipe) -> list[str] | None:
    """The paths of the modules with weights of their own; None where the model's configuration cannot be had."""
    trust = recipe.training.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(
            recipe.model.model_name_or_path,
            revision=recipe.model.model_revision,
            trust_remote_code=trust,
            local_files_only=recipe.script.dry_run,  # a plan downloads nothing
        )
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except (OSError, ValueError):  # loading the model says what is wrong with it
        return None
    return [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
