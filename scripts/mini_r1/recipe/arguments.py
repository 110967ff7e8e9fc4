"""Every key of a recipe that is not TRL's: one dataclass a subject. A task brings its own (`Task.arguments`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mini_r1.common import key, pairs


@dataclass
class ScriptArguments:
    """What a recipe says beyond TRL's ModelConfig and GRPOConfig. Every field is a recipe key."""

    eval_puzzles: int = key(512, "Held-out puzzles that each evaluation (`eval_strategy`) samples an answer for.")
    max_prompt_tokens: int = key(256, "Puzzles whose prompt is longer are dropped; nothing is ever truncated.")
    tokenizer_name_or_path: str | None = key(None, "Tokenizer, when it is not the model's own.")
    completion_samples_dir: str = key("completion_samples", "Where readable samples go, one folder per run.")
    sample_share: float = key(0.1, "Share of all completions kept in completion_samples.txt (0..1).")
    success_sample_share: float = key(0.1, "Share of correct ones kept in success_completion_samples.txt (0..1).")
    dry_run: bool = key(False, "Only say what the run would do and need, and whether it could start.")
    plan_for: str | None = key(None, "A dry run for another machine: 4x80 (GPUs x GB), 2x8x80 (machines x GPUs x GB).")
    plan_with: str | None = key(None, "plan_for: the accelerate file that the launch there will name.")
    plan_processes: int | None = key(None, "plan_for: the launch's --num_processes, when it is not the file's.")
    puzzle_choice: Literal["uniform", "success"] = key(
        "uniform", "Draw puzzles uniformly, or their kinds by measured success p, most where p (1 - p) peaks."
    )
    refill_rounds: int = key(0, "Rounds in which groups of equal rewards make room for fresh ones (DAPO); 0: none.")
    trim_micro_batches: bool = key(True, "Micro-batches of rows of like length, cut to their own longest row.")
    profile: int = key(0, "Optimizer steps to profile after the first one, into output_dir/profile (0: none).")

    def __post_init__(self) -> None:
        self.dry_run = self.dry_run or self.plan_for is not None


@dataclass
class VLLMArguments:
    """What a recipe says about vLLM beyond TRL's `vllm_...` keys. Every field is a recipe key."""

    vllm_device: str = key("auto", "vllm_mode server: auto, cuda:3, or none (a server that runs already).")
    vllm_dtype: str | None = key(None, "vLLM's precision, when it is not the model's.")
    vllm_kv_cache_dtype: str = key("auto", "Precision of vLLM's KV cache, as `fp8`.")
    vllm_prefix_caching: bool = key(True, "Compute a prompt once for all completions of its group.")
    vllm_weight_transfer: Literal["auto", "nccl", "folder"] = key("auto", "How new weights reach a server.")
    vllm_weight_folder: str | None = key(None, "Folder of `vllm_weight_transfer: folder` (default: in output_dir).")
    vllm_engine_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More vLLM engine arguments, as {max_num_seqs: 64}."}
    )

    def __post_init__(self) -> None:
        self.vllm_engine_args = pairs("vllm_engine_args", self.vllm_engine_args)


# TensorBoard's files and the samples, by name, and their folders in the run folder.
HUB_EXTRAS = {"tensorboard": "tensorboard", "completion_samples": "samples"}


@dataclass
class HubArguments:
    """What a recipe says about the Hub beyond TRL's `push_to_hub`, `hub_model_id`, `hub_strategy`, ..."""

    hub_checks: bool = key(True, "Ask the Hub about model, token and target beforehand.")
    hub_extras: list[str] = field(
        default_factory=list, metadata={"help": "What else goes to the Hub: tensorboard, completion_samples, or both."}
    )
    hub_resume_state: bool = key(True, "Upload optimizer and random states too: the run can resume from the Hub alone.")
    hub_license: str | None = key(None, "Licence on the model card, as the Hub abbreviates it: apache-2.0, mit, ...")
    hub_trust_pickles: bool = key(False, "Resume from DeepSpeed checkpoints on the Hub, which can run code.")
    hub_wait_minutes: float = key(60.0, "How long the end of a run waits for uploads that are not done yet.")


@dataclass
class GuardArguments:
    """Thresholds of the training guards. 0 (for `guard_non_finite`: false) turns one off."""

    guard_non_finite: bool = key(True, "Stop before a loss or gradient that is NaN or infinite reaches the weights.")
    guard_zero_spread_steps: int = key(20, "Stop after this many steps in a row whose groups' rewards are all equal.")
    guard_format_steps: int = key(100, "Stop when no completion had the format in this many first steps.")
    guard_truncated_share: float = key(0.9, "Warn when at least this share of completions is cut off (0..1).")
    guard_held_out: bool = key(True, "Warn when held-out success has fallen by more than chance explains.")
    guard_kl: float = key(1.0, "Warn when the KL term exceeds this many nats a token (needs beta above 0).")
    guard_entropy_factor: float = key(3.0, "Warn when entropy exceeds this multiple of its first mean, or is gone.")
    guard_step_time_factor: float = key(10.0, "Warn when a step takes this many times the median of the last fifty.")
    guard_logprob_gap: float = key(0.5, "Stop when vLLM's and the trainer's log-probabilities differ by more (nats).")
    guard_patience: int = key(5, "Steps in a row for which length, KL, entropy or gap must be off before a guard acts.")
