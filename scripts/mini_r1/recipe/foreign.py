"""Keys of other projects' recipes and of older versions, and what to write here.

Collected from recipes of open-r1, TRL's example scripts, ms-swift, and TRL and transformers before their present
versions. In a text, what stands in backticks is a key of ours; a test looks each of them up.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

_PROMPT = "remove it; the prompt stands in the task (mini_r1/countdown), and is filled into the model's chat template"
_REWARD = "remove it; the rewards are functions in run_r1_grpo.py, and `reward_weights` weighs them"
_SPLIT = "remove it; `held_out_puzzles` are split off by a hash, `dataset_split` names the split to load"
_TRACKER = "write `report_to`; a tracker's own settings are environment variables, in `env`"
_LORA_ONLY = "write `use_peft`: true for an adapter, false for all weights"

# Names may hold a `*`; the first that fits counts.
FOREIGN_KEYS = {
    # TRL and transformers
    "torch_dtype": "write `dtype`",
    "warmup_ratio": "write `warmup_steps`, where a value below 1 is the ratio",
    "max_prompt_length": "`max_prompt_tokens` drops longer puzzles; if the recipe is for TRL 0.14 or 0.15, multiply "
    "`per_device_train_batch_size` by `num_generations`, because batch sizes count completions now",
    "overwrite_output_dir": "choose another `output_dir`, or remove the old one",
    "vllm_max_model_len": "write `vllm_max_model_length`",
    "vllm_guided_decoding_regex": "write `vllm_structured_outputs_regex`",
    "dataset_splits": "write `dataset_split`",
    "logging_dir": "remove it; TENSORBOARD_LOGGING_DIR in `env` names another folder",
    "evaluation_strategy": "write `eval_strategy`",
    "no_cuda": "write `use_cpu`",
    "save_safetensors": "remove it, safetensors is the only format",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "use_liger_loss": "write `use_liger_kernel`",
    "reward_model_name_or_path": _REWARD,
    # open-r1, and TRL's example scripts
    "dataset_name": "write `dataset_id_or_path`",
    "dataset_mixture": "write one `dataset_id_or_path`",
    "dataset_config": "remove it; `dataset_id_or_path` and `dataset_split` name the data",
    "dataset_train_split": "write `dataset_split`",
    "dataset_test_split": _SPLIT,
    "dataset_prompt_column": "remove it; the columns are nums and target",
    "dataset_streaming": "remove it; `dataset_rows` bounds how much is read",
    "reward_funcs": _REWARD,
    "system_prompt": _PROMPT,
    "prompt_template": _PROMPT,
    "chat_template": _PROMPT,
    "cosine_*": _REWARD,
    "repetition_n_grams": _REWARD,
    "repetition_max_penalty": _REWARD,
    "use_liger": "write `use_liger_kernel`",
    "wandb_*": _TRACKER,
    "trackio_*": _TRACKER,
    "swanlab_*": _TRACKER,
    "benchmarks": "remove it; evaluate.py measures checkpoints, `eval_steps` during training",
    "callbacks": "remove it; `push_to_hub` uploads, and the guards are keys (`guard_patience`, ...)",
    "hub_model_revision": "remove it; with `push_to_hub` each save becomes a revision",
    "overwrite_hub_revision": "remove it; with `push_to_hub` each save becomes a revision",
    "push_to_hub_revision": "write `push_to_hub`; each save becomes a revision",
    # ms-swift
    "model": "write `model_name_or_path`",
    "model_id_or_path": "write `model_name_or_path`",
    "model_type": "remove it; `model_name_or_path` says it",
    "template": _PROMPT,
    "system": _PROMPT,
    "dataset": "write `dataset_id_or_path`",
    "val_dataset": _SPLIT,
    "split_dataset_ratio": _SPLIT,
    "rlhf_type": "remove it; GRPO is what run_r1_grpo.py does",
    "train_type": _LORA_ONLY,
    "tuner_type": _LORA_ONLY,
    "lora_rank": "write `lora_r`",
    "target_modules": "write `lora_target_modules`",
    "modules_to_save": "write `lora_modules_to_save`",
    "quant_bits": "write `load_in_4bit` or `load_in_8bit`",
    "attn_impl": "write `attn_implementation`",
    "external_plugins": _REWARD,
    "num_infer_workers": "remove it; `vllm_tensor_parallel_size` is the number of a server's GPUs",
    "sleep_level": "write `vllm_enable_sleep_mode`",
    "deepspeed_config": "remove it; --config_file of accelerate launch names the strategy",
    "dynamic_sample": "write `refill_rounds`, the rounds of resampling",
}


def instead(key: str, known: Iterable[str]) -> str:
    """What to write in place of a key that is not ours: its successor, or the nearest of the known ones."""
    for name, text in FOREIGN_KEYS.items():
        if fnmatchcase(key, name):
            return f"{key} is no key here: {text}"
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}; " + (f"did you mean {close[0]}?" if close else "remove it")
