"""Reproduce DeepSeek-R1's "aha moment" with GRPO on the Countdown numbers game.

    accelerate launch --num_processes 3 --config_file configs/accelerate_configs/deepspeed_zero3.yaml \
        scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml

    accelerate launch --config_file configs/accelerate_configs/cpu.yaml \
        scripts/run_r1_grpo.py --config receipes/grpo-tiny-countdown-cpu.yaml          # no GPU, ten minutes

    python scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml \
        --plan_for 4x80 --plan_with configs/accelerate_configs/deepspeed_zero3.yaml    # what it needs, said anywhere

The method, as it runs here. Each step takes P puzzles and samples G completions of each: B = P x G. Two rules score
every completion: is it `<think>...</think><answer>...</answer>` (format), and is the answer an equation that uses
each number once and hits the target (equation)? A completion's advantage is its summed reward minus the mean of its
group of G, divided by the group's standard deviation; the policy gradient, clipped as in PPO, raises the probability
of the tokens of completions that did better than their siblings. No value network, no reward model, no examples of
reasoning: whatever reasoning pays is reinforced.

Where this departs from the article (Mini-R1, January 2025): answers are checked by an exact parser instead of a
filtered `eval`; the answer graded is the one after the reasoning; a share of the puzzles, fixed by a hash, is never
trained on and measures success; micro-batches are trimmed to their own length. The rest is TRL's GRPOTrainer, and
every hyperparameter stands in the recipe.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mini_r1 import hub
from mini_r1.common import DataError, RecipeError, fail, is_first_process, is_main_process, say
from mini_r1.countdown.dataset import PuzzleSplit, is_local, load_puzzles
from mini_r1.countdown.verifier import Reason
from mini_r1.generation import guard as process_guard
from mini_r1.generation import server as vllm_server
from mini_r1.generation.server import VLLMArguments, VLLMServerError
from mini_r1.recipe import parsing as recipe
from mini_r1.recipe import placement, plan
from mini_r1.responses import has_format, judge, response, thinking
from mini_r1.run_folder import folder as run_folder
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.samples import Sample, SampleLog
from mini_r1.signs import SIGNS
from mini_r1.training import guards

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class ScriptArguments:
    """What a recipe says beyond TRL's ModelConfig and GRPOConfig. Every field is a recipe key."""

    dataset_id_or_path: str = field(
        default="Jiayi-Pan/Countdown-Tasks-3to4",
        metadata={"help": "A data set on the Hub, a local parquet/JSONL/JSON/CSV file or folder, or `generate`."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the Hub data set to draw from."})
    dataset_rows: int = field(
        default=50_000, metadata={"help": "Puzzles to generate, or to draw at random from the data set (0: all)."}
    )
    dataset_seed: int = field(default=42, metadata={"help": "Seed of the generator or of the draw."})
    on_bad_row: str = field(
        default="drop", metadata={"help": "Rows that are no puzzle: `drop` (and report) or `fail`."}
    )
    number_counts: list[int] = field(
        default_factory=lambda: [3, 4], metadata={"help": "generate: how many numbers a puzzle has (2..6)."}
    )
    number_range: list[int] = field(
        default_factory=lambda: [1, 99], metadata={"help": "generate: inclusive range of the numbers."}
    )
    target_range: list[int] = field(
        default_factory=lambda: [10, 100], metadata={"help": "generate: inclusive range of the targets."}
    )
    held_out_puzzles: int = field(
        default=1024, metadata={"help": "Puzzles' worth to keep out of training, at most a tenth of all."}
    )
    eval_puzzles: int = field(
        default=512, metadata={"help": "Held-out puzzles that each evaluation (`eval_strategy`) samples an answer for."}
    )
    max_prompt_tokens: int = field(
        default=256, metadata={"help": "Puzzles whose prompt is longer are dropped; nothing is ever truncated."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer, when it is not the model's own."}
    )
    completion_samples_dir: str = field(
        default="completion_samples", metadata={"help": "Where readable samples go, one folder per run."}
    )
    sample_share: float = field(
        default=0.1, metadata={"help": "Share of all completions kept in completion_samples.txt (0..1)."}
    )
    success_sample_share: float = field(
        default=0.1, metadata={"help": "Share of correct ones kept in success_completion_samples.txt (0..1)."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Only say what the run would do and need, and whether it could start."}
    )
    plan_for: str | None = field(
        default=None,
        metadata={
            "help": "A dry run for another machine: GPUs x GB, as 4x80, or machines x GPUs x GB, as 2x8x80. Nothing is "
            "asked of this one; start it with python, not accelerate."
        },
    )
    plan_with: str | None = field(
        default=None, metadata={"help": "plan_for: the accelerate file that the launch there will name."}
    )
    plan_processes: int | None = field(
        default=None,
        metadata={
            "help": "plan_for: training processes on all machines together, as --num_processes of the launch (default: "
            "the file's, or all GPUs but the vLLM server's)."
        },
    )
    trim_micro_batches: bool = field(
        default=True, metadata={"help": "Cut each micro-batch to its own longest row instead of the whole batch's."}
    )

    def __post_init__(self) -> None:
        self.dry_run = self.dry_run or self.plan_for is not None


# The last line of a dry run, for this machine and for another.
COULD_START = "This run could start (a dry run: it does not)."
COULD_START_THERE = "This run could start there; a dry run there also checks packages, ports, memory and disk."
# What a recipe may say beyond TRL's ModelConfig and GRPOConfig.
OWN_ARGUMENTS = (ScriptArguments, VLLMArguments, hub.HubArguments, guards.GuardArguments)


def check_values(values: Any) -> None:
    """Refuses values that cannot work. `values` holds every recipe key. Raises RecipeError, which names the key."""
    hub.check_values(values)
    guards.check_values(values)
    recipe.require_at_least(
        values, 0, "learning_rate", "temperature", "max_completion_length", "max_prompt_tokens", exclusive=True
    )
    recipe.require_at_least(
        values, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"
    )
    recipe.require_at_least(values, 0, "beta", "held_out_puzzles", "dataset_rows", "eval_puzzles", "weight_decay")
    recipe.require_at_least(values, 2, "num_generations")  # advantages compare siblings
    for key in ("sample_share", "success_sample_share"):
        recipe.require(0 <= getattr(values, key) <= 1, key, "between 0 and 1", getattr(values, key))
    for key in ("number_range", "target_range"):
        pair = getattr(values, key)
        recipe.require(len(pair) == 2 and pair[0] <= pair[1], key, "[low, high]", pair)
    recipe.require(values.on_bad_row in ("drop", "fail"), "on_bad_row", "drop or fail", values.on_bad_row)
    recipe.require(bool(values.model_name_or_path), "model_name_or_path", "a Hub id or a folder", None)
    if values.plan_for is None and (values.plan_with or values.plan_processes is not None):
        raise RecipeError("plan_with and plan_processes are about the machine of plan_for: add --plan_for 4x80")
    processes = placement.training_processes(values)
    plan.batch_of(values, processes)
    if values.eval_strategy != "no":
        plan.evaluation_batch(values, processes, values.eval_puzzles if values.held_out_puzzles else 0)
    plan.check_precision(values)


# --------------------------------------------------------------------------------------------------------------------
# Prompt
# --------------------------------------------------------------------------------------------------------------------

SYSTEM_PROMPT = "You are a careful puzzle solver. You think first and answer afterwards."
USER_PROMPT = (
    "Combine the numbers {nums} into an equation that equals {target}. You may add (+), subtract (-), multiply (*) and "
    "divide (/), with parentheses where needed, and must use each number exactly once. Think inside <think> </think>, "
    "then give only the equation inside <answer> </answer>, for example <answer> (1 + 2) / 3 </answer>."
)
# The assistant's turn is begun for the model, so that it reasons before anything else.
ASSISTANT_PREFILL = "<think>"


def build_prompt(tokenizer: Any, nums: Sequence[int], target: int) -> str:
    """The text that the model completes: system and user turns and the beginning of the assistant's.

    Prompts are strings, not messages, because TRL would close the assistant's turn and open a new one. The trainer
    tokenizes strings with special tokens, so a BOS that the chat template wrote is taken off again where the
    tokenizer adds its own: the model sees exactly one.

    Args:
        tokenizer: a transformers tokenizer; without a chat template (base models, None) the prompt is plain text.
        nums: the given numbers, in the order shown.
        target: the value to reach.
    """
    user = USER_PROMPT.format(nums=list(nums), target=target)
    if not getattr(tokenizer, "chat_template", None):
        return f"{SYSTEM_PROMPT}\n\n{user}\n\n{ASSISTANT_PREFILL}"
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": user},
        {"role": "assistant", "content": ASSISTANT_PREFILL},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        text = text.removeprefix(bos)
    return text


# --------------------------------------------------------------------------------------------------------------------
# Rewards
# --------------------------------------------------------------------------------------------------------------------


def format_reward_func(completions: list, prompts: list | None = None, **kwargs: Any) -> list[float]:
    """1.0 where the response is `<think>…</think>` and then `<answer>…</answer>`, both non-empty, and nothing else.

    Args:
        completions: one string or message list per completion, B in all.
        prompts: the prompts completed, B of them; tells whether `<think>` was prefilled (assumed when missing).

    Returns:
        B floats, each 0.0 or 1.0.

    Example:
        >>> format_reward_func(["2*3 is 6.</think>\\n<answer>2*3</answer>", "6"])
        [1.0, 0.0]
    """
    prompts = prompts if prompts is not None else [None] * len(completions)
    return [float(has_format(response(c, p))) for c, p in zip(completions, prompts, strict=True)]


def equation_reward_func(
    completions: list, target: list[int], nums: list[list[int]], prompts: list | None = None, **kwargs: Any
) -> list[float]:
    """1.0 where the answer after the reasoning uses each number exactly once and equals the target exactly.

    Args:
        completions: one string or message list per completion, B in all.
        target: B targets.
        nums: B lists of the given numbers.
        prompts: as for `format_reward_func`.

    Returns:
        B floats, each 0.0 or 1.0. The reason behind a 0.0 is `completions.judge`'s reason code.

    Example:
        >>> equation_reward_func(["</think><answer>2*3</answer>"], target=[6], nums=[[3, 2]])
        [1.0]
    """
    prompts = prompts if prompts is not None else [None] * len(completions)
    return [
        float(judge(response(c, p), n, t).correct)
        for c, p, t, n in zip(completions, prompts, target, nums, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------------
# What is observed
# --------------------------------------------------------------------------------------------------------------------


def make_observer(sample_log: SampleLog) -> Callable[..., None]:
    """Logs what the rewards do not show and keeps samples; called by the trainer after every scoring."""

    def observe(
        *, rows: list, prompts: list, completions: list, completion_ids: list, tokenizer: Any, step: int, split: str,
        rank: int, log_metric: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        reasons: Counter[str] = Counter()
        thoughts: list[str] = []
        samples = []
        for index, (row, prompt, completion, ids) in enumerate(
            zip(rows, prompts, completions, completion_ids, strict=True)
        ):
            text = response(completion, prompt)
            verdict = judge(text, row["nums"], row["target"])
            reasons[verdict.reason.value] += 1
            thoughts.append(thinking(text))
            samples.append(
                Sample(
                    step=step,
                    split=split,
                    nums=list(row["nums"]),
                    target=row["target"],
                    response=text,
                    reason=verdict.reason.value,
                    value=None if verdict.value is None else str(verdict.value),
                    format_reward=float(has_format(text)),
                    equation_reward=float(verdict.correct),
                    completion_tokens=len(ids),
                    rank=rank,
                    index=index,
                )
            )
        thinking_ids = tokenizer(thoughts, add_special_tokens=False)["input_ids"]
        for reason in Reason:
            log_metric(f"reason/{reason.value}", reasons[reason.value] / len(rows))
        log_metric("thinking/mean_length", sum(map(len, thinking_ids)) / len(rows))
        for sign, count in SIGNS.items():
            log_metric(f"thinking/{sign}", sum(map(count, thoughts)) / len(rows))
        sample_log.record(samples)

    return observe


# --------------------------------------------------------------------------------------------------------------------
# Main
# --------------------------------------------------------------------------------------------------------------------


def prompt_dataset(puzzles: Sequence[Any], tokenizer: Any, max_prompt_tokens: int) -> Any:
    """Puzzles as a data set with the columns `prompt`, `nums`, `target`; over-long prompts are dropped, and counted."""
    from datasets import Dataset

    prompts = [build_prompt(tokenizer, *puzzle) for puzzle in puzzles]
    fits = [len(ids) <= max_prompt_tokens for ids in tokenizer(prompts)["input_ids"]] if prompts else []
    if not all(fits):
        logger.warning("%d of %d prompts exceed max_prompt_tokens (%d) and are dropped",
                       fits.count(False), len(fits), max_prompt_tokens)  # fmt: skip
    kept = [(prompt, puzzle) for prompt, puzzle, fit in zip(prompts, puzzles, fits, strict=True) if fit]
    return Dataset.from_dict(
        {
            "prompt": [prompt for prompt, _ in kept],
            "nums": [list(puzzle.nums) for _, puzzle in kept],
            "target": [puzzle.target for _, puzzle in kept],
        }
    )


def load_split(args: Any) -> PuzzleSplit:
    """The puzzles that the recipe asks for, parted into training and held-out ones."""
    return load_puzzles(
        args.dataset_id_or_path,
        rows=args.dataset_rows,
        seed=args.dataset_seed,
        held_out_puzzles=args.held_out_puzzles,
        dataset_split=args.dataset_split,
        on_bad_row=args.on_bad_row,
        number_counts=args.number_counts,
        number_range=args.number_range,
        target_range=args.target_range,
        progress=is_first_process(),
    )


def whole_batches(eval_dataset: Any, training_args: Any) -> Any:
    """The evaluation puzzles cut to whole batches of all processes; a batch that is too large is made smaller.

    The trainer averages the means of batches, and fills the last one up with repetitions: a short batch would weigh
    its puzzles more, or count some twice.

    Raises:
        RecipeError: when there are too few puzzles for a single batch.
    """
    generations = training_args.num_generations_eval or training_args.num_generations
    per_device = plan.evaluation_batch(training_args, training_args.world_size, len(eval_dataset))
    puzzles_per_batch = per_device * training_args.world_size // generations
    training_args.per_device_eval_batch_size = per_device
    kept = len(eval_dataset) // puzzles_per_batch * puzzles_per_batch
    if kept < len(eval_dataset):
        logger.info("evaluating on %d of %d puzzles: whole batches of %d", kept, len(eval_dataset), puzzles_per_batch)
    return eval_dataset.select(range(kept))


def model_init_kwargs(model_args: Any, training_args: Any) -> dict[str, Any]:
    """What `from_pretrained` gets, for the policy and for a reference model."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "device_map": None,  # the trainer places it; TRL's "auto" spreads one process over all GPUs that it sees
        "use_safetensors": True,  # other weights are pickles, which run code when they are loaded
        **(training_args.model_init_kwargs or {}),
    }


def main(argv: list[str]) -> None:
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from transformers import AutoTokenizer, set_seed
    from trl import GRPOConfig, ModelConfig, get_peft_config, get_quantization_config

    # ---- recipe and plan -------------------------------------------------------------------------------------------
    dataclass_types = (ModelConfig, *OWN_ARGUMENTS, GRPOConfig)
    try:
        model_args, script_args, vllm_args, hub_args, guard_args, training_args = recipe.parse(
            dataclass_types, argv, check_values, plan.as_if_there
        )
        given = recipe.given(dataclass_types, argv)
        run_folder.set_up_logging(training_args)
        values = recipe.merged(model_args, script_args, vllm_args, hub_args, guard_args, training_args)
        if not script_args.dry_run:
            run_folder.check_writable(training_args.output_dir)
            if is_main_process():
                resumption.hold(Path(training_args.output_dir))
            if hub.wants_hub(values):
                with PartialState().main_process_first():
                    if is_main_process():
                        hub.fetch_checkpoint(values)
                values.resume_from_checkpoint = hub.asked_checkpoint(values) or True
        # One process trains on one GPU; transformers would spread it over all that it sees, the server's included.
        training_args._n_gpu = min(training_args.n_gpu, 1)
        if script_args.plan_for is not None:
            machine, resume = placement.planned_machine(values), None
        else:
            machine, resume = placement.this_machine(plan.gpu_memory()), resumption.find(values)
            resumption.check_agreement(gather_object([resume and (str(resume.path), resume.step)]))
        if resume is not None:
            logger.info("going on from %s", resume.path)
            for note in resume.notes:
                logger.warning(note)
        where = placement.plan(values, machine, placement.installed_vllm() if machine.is_here else None)
        asks = hub_args.hub_checks
        hub_line, target = hub.describe(values, resume, asks and machine.is_here and machine.is_rank_zero)
        say(*plan.describe(values, machine, where, given, recipe.path_in(argv), hub_line, ask_hub=asks))
    except resumption.FinishedError as error:
        if training_args.push_to_hub and not script_args.dry_run:
            if not is_main_process():
                sys.exit()  # with an error, the launcher would end the main process in the middle of its uploads
            hub.upload_rest(values)
        fail(str(error))
    except RecipeError as error:
        fail(str(error))

    # ---- data ------------------------------------------------------------------------------------------------------
    could_start = COULD_START if machine.is_here else COULD_START_THERE
    if script_args.dry_run and not is_local(script_args.dataset_id_or_path):  # a plan downloads no puzzles
        return say(f"  data:       {script_args.dataset_id_or_path}, not looked at", could_start)
    try:
        split = load_split(script_args)
        resumption.check_puzzles(resume, split.fingerprint())
        plan.check_puzzles(values, machine.processes, len(split.train), len(split.held_out))
    except (DataError, RecipeError) as error:
        fail(str(error))
    say(f"  data:       {len(split.train)} puzzles to train on, {len(split.held_out)} held out")
    if script_args.dry_run:
        return say(could_start)
    evaluates = training_args.eval_strategy != "no"
    if resume is not None:
        training_args.eval_on_start = resumption.lacks_evaluation(resume, training_args.eval_steps)
    training_args.eval_on_start &= evaluates
    set_seed(training_args.seed)

    # ---- Hub and server --------------------------------------------------------------------------------------------
    try:
        if target is not None:
            hub.make_repository(values, target)
        # Uploads are our own: transformers would make the repository now and hold up the training with each of them.
        pushes, training_args.push_to_hub, training_args.hub_token = training_args.push_to_hub, False, None
        server = None
        if where.generation == "own_server" and machine.is_rank_zero:
            server = vllm_server.launch(values, where)  # vLLM loads in a process of its own from here on
    except RecipeError as error:
        fail(str(error))

    # ---- tokenizer and model ---------------------------------------------------------------------------------------
    from mini_r1.report import card as model_card
    from mini_r1.training.trainer import CountdownGRPOTrainer, is_about_the_disk

    tokenizer_name = script_args.tokenizer_name_or_path or model_args.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_name,
            revision=model_args.model_revision if script_args.tokenizer_name_or_path is None else "main",
            trust_remote_code=training_args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        key = "tokenizer_name_or_path" if script_args.tokenizer_name_or_path else "model_name_or_path"
        fail(f"{key}: cannot load the tokenizer of {tokenizer_name!r}: {error}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    train_dataset = prompt_dataset(split.train, tokenizer, script_args.max_prompt_tokens)
    eval_dataset = prompt_dataset(split.held_out[: script_args.eval_puzzles], tokenizer, script_args.max_prompt_tokens)
    try:  # again: over-long prompts are gone
        plan.check_puzzles(values, machine.processes, len(train_dataset), len(eval_dataset))
        if evaluates:
            eval_dataset = whole_batches(eval_dataset, training_args)
    except RecipeError as error:
        fail(str(error))
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)

    # ---- trainer ---------------------------------------------------------------------------------------------------
    try:
        if training_args.use_vllm:
            from mini_r1.generation import client as vllm_client

            vllm_client.connect(values, where, server, training_args)
        trainer = CountdownGRPOTrainer(
            model=model_args.model_name_or_path,
            reward_funcs=[format_reward_func, equation_reward_func],
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset if evaluates else None,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            quantization_config=get_quantization_config(model_args),
            trim=script_args.trim_micro_batches,
            resume=resume,
        )
    except VLLMServerError as error:
        fail(str(error), code=3)
    except RecipeError as error:
        fail(str(error))
    except (ImportError, OSError, ValueError) as error:  # a package, weights or a value that is not there
        fail(f"cannot set up the trainer as the recipe asks: {error}")
    try:
        run = run_folder.open_run(training_args, resume, argv, split, values, script_args, vllm_args, hub_args,
                                  guard_args, model_args)  # fmt: skip
    except OSError as error:
        fail(f"output_dir: cannot write to {training_args.output_dir}: {error}")
    folders = run_folder.sample_folders(run)
    sample_log = SampleLog(folders["text"], folders["json"], share=script_args.sample_share,
                           success_share=script_args.success_sample_share)  # fmt: skip
    trainer.observer, trainer.sample_sizes = make_observer(sample_log), sample_log.sizes
    trainer.write_card = partial(model_card.write, run.folder, given, train_dataset[0]["prompt"])
    uploader = None
    if pushes and machine.is_rank_zero:
        uploader = hub.Uploader(values, run.folder, target.repo_id if target else None)
        trainer.after_save = uploader.add
        uploader.start()

    trainer.watch(values)

    # ---- train and save --------------------------------------------------------------------------------------------
    try:
        result = trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
        try:
            run_folder.save_final_model(run, trainer)
            trainer.log_metrics("train", result.metrics)
            trainer.save_metrics("train", {**result.metrics, "train_samples": len(train_dataset)})
            run_folder.close_run(run, trainer)
            trainer.save_state()  # last, for it marks the run as finished
        except Exception as error:
            if not is_about_the_disk(error):
                raise
            fail(f"training is done, but its end cannot be written to {run.folder} ({error}): make room and "
                        f"give the same command again, it goes on from the last checkpoint", code=5)  # fmt: skip
    except RecipeError as error:  # a checkpoint that cannot be read
        fail(str(error))
    except VLLMServerError as error:  # raised on every rank at once
        fail(f"{error}; {trainer.save_interrupted()}", code=3)
    except guards.GuardError as error:  # on every rank, too
        saved = trainer.save_interrupted() if error.is_sound else "nothing is saved, for the weights are spoilt"
        fail(f"step {trainer.state.global_step}: {error}; {saved}", code=guards.EXIT_CODE)
    if uploader is not None:
        print("\n".join(uploader.finish(60 * hub_args.hub_wait_minutes)), flush=True)


if __name__ == "__main__":
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        recipe.print_short_help(__doc__, *OWN_ARGUMENTS)
        sys.exit()
    process_guard.die_with_launcher()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader forks after the tokenizer was used
    try:
        try:
            main(sys.argv[1:])
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from the newest checkpoint, if there is one", code=130)
    except SystemExit as end:
        if hub.is_uploading():  # the next start uploads it; Python would wait for a Hub that may never answer
            resumption.wait_for_checkpoints()
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise
