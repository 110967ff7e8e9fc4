"""Between the recipe and the first step: where a run resumes, its plan, its puzzles, its tokenizer, its trainer."""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import try_to_load_from_cache
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoTokenizer

from mini_r1 import hub
from mini_r1.common import (
    LIBRARY_ERRORS,
    RecipeError,
    RunError,
    first_line,
    is_first_process,
    is_main_process,
    masked,
    one_line,
    say,
)
from mini_r1.generation import server as vllm
from mini_r1.generation.prompts import prompt_text, settle_tokenizer
from mini_r1.recipe import Recipe
from mini_r1.recipe import plan as planning
from mini_r1.recipe.checks import check_puzzles, check_writable, evaluation_batch
from mini_r1.report import card
from mini_r1.responses import THINK_OPEN
from mini_r1.run_folder import resume as resuming
from mini_r1.run_folder.folder import Run, set_up_logging
from mini_r1.run_folder.record import pass_metric
from mini_r1.run_folder.resume import Resume
from mini_r1.training.adapters import settle_targets
from mini_r1.training.trackers import settle_trackers
from mini_r1.training.trainer import RunTrainer

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------------------
# Plan
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunPlan(planning.Plan):
    """A plan, where its run resumes, and where its uploads go (None: not known, or nowhere)."""

    resume: Resume | None = None
    target: hub.Target | None = None


def find_resume(recipe: Recipe) -> Resume | None:
    """Takes the run folder for this run, fetches a checkpoint from the Hub where asked, and finds where to resume.

    A dry run changes nothing and looks at this folder only; for another machine (`plan_for`) it does not look.

    Raises:
        UserError: when the folder cannot be used, or the recipe asks for another run than the one in it.
    """
    set_up_logging(recipe.training.output_dir)
    if recipe.script.plan_for is not None:
        return None
    if not recipe.script.dry_run:
        check_writable(recipe.training.output_dir)
        if is_main_process():
            resuming.hold(Path(recipe.training.output_dir))
        PartialState().wait_for_everyone()  # the run that holds the folder may still write to it
        if hub.wants_hub(recipe):
            with PartialState().main_process_first():
                if is_main_process():
                    hub.fetch_checkpoint(recipe)
            recipe.training.resume_from_checkpoint = hub.asked_checkpoint(recipe) or True
    resume = resuming.find(recipe)
    resuming.check_agreement(gather_object([resume and (str(resume.path), resume.step)]))
    return resume


def say_finished(recipe: Recipe, resume: Resume) -> None:
    """Says that a run is finished, and uploads what it still owes the Hub."""
    say(
        f"the run in {recipe.training.output_dir} is finished (step {resume.step}): choose another --output_dir, "
        f"remove the folder, or raise max_steps to continue"
    )
    if recipe.training.push_to_hub and not recipe.script.dry_run and is_main_process():
        hub.upload_rest(recipe)


def make_plan(recipe: Recipe, resume: Resume | None) -> RunPlan:
    """Plans the run, checks that the machine and the Hub allow it, and prints the plan. Raises UserError."""
    if resume is not None:
        logger.info("resuming from %s", resume.path)
        for note in resume.notes:
            logger.warning(note)
    made = planning.make_plan(recipe)
    settle_targets(recipe)
    asks = recipe.hub.hub_checks and made.machine.is_here and made.machine.is_rank_zero
    line, target = hub.describe(recipe, resume, asks)
    say(*made.lines, line)
    return RunPlan(**vars(made), resume=resume, target=target)


def load_puzzles(recipe: Recipe, plan: RunPlan) -> Any:
    """The puzzles that the recipe asks for, a `Split`; None where a dry run ends.

    Raises:
        DataError, RecipeError, RunError: when there are too few, or not those that the run began with.
    """
    could_start = planning.COULD_START if plan.machine.is_here else planning.COULD_START_THERE
    if recipe.script.dry_run and not recipe.puzzles.is_local():  # a plan downloads no puzzles
        say(f"  data:       {recipe.puzzles.dataset_id_or_path}, not looked at", could_start)
        return None
    puzzles = recipe.task.load(recipe.puzzles, is_first_process())
    resuming.check_same_puzzles(plan.resume, puzzles.fingerprint())
    check_puzzles(recipe, plan.machine.processes, len(puzzles.train), len(puzzles.held_out))
    say(f"  data:       {len(puzzles.train)} puzzles to train on, {len(puzzles.held_out)} held out")
    if recipe.script.dry_run:
        say(could_start)
        return None
    return puzzles


# --------------------------------------------------------------------------------------------------------------------
# Trainer
# --------------------------------------------------------------------------------------------------------------------


@contextmanager
def setting_up(recipe: Recipe, trainer: Any = None) -> Iterator[None]:
    """Within it, what a library raises becomes one line; its traceback goes to a file that the line names.

    Args:
        recipe: says where the file goes.
        trainer: one that trains within: from its first step on errors are raised as they are.

    Raises:
        RunError: in place of the library's error.
    """
    try:
        yield
    except (*LIBRARY_ERRORS, SafetensorError, TemplateError) as error:
        if trainer is not None and trainer.state.global_step > trainer.start_step:
            raise
        text = masked("".join(traceback.format_exception(error)))
        name = f"setup-error-{os.environ.get('RANK', '0')}.txt"
        path = Path(recipe.training.output_dir, name)
        try:
            path.write_text(text, errors="replace")
        except OSError:  # the disk may be what is wrong
            path = Path(tempfile.mkdtemp(), name)
            path.write_text(text, errors="replace")
        raise RunError(f"cannot set up the run: {one_line(error)} (traceback: {path})") from error


def vllm_server(recipe: Recipe, plan: RunPlan) -> AbstractContextManager[Any]:
    """The vLLM server that the plan asks for, ended with the context; None elsewhere than on rank 0."""
    return vllm.vllm_server(recipe, plan.placement, plan.machine.is_rank_zero)


def load_tokenizer(recipe: Recipe) -> Any:
    """The recipe's tokenizer, able to pad, to end a completion and to render the task's prompt.

    A dry run takes it from a folder or the cache, and returns None where it is not there.

    Raises:
        RecipeError: when it cannot be loaded, or lacks one of these.
    """
    own = recipe.script.tokenizer_name_or_path
    name = own or recipe.model.model_name_or_path
    revision = "main" if own else recipe.model.model_revision
    trust, is_plan = recipe.training.trust_remote_code, recipe.script.dry_run
    try:
        is_here = Path(name).is_dir() or isinstance(
            try_to_load_from_cache(name, "tokenizer_config.json", revision=revision), str
        )
        if is_plan and not is_here:  # a plan downloads nothing
            say(f"  tokenizer:  {name}, not looked at")
            return None
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust, local_files_only=is_plan
        )
        settle_tokenizer(tokenizer)
    except (OSError, ValueError) as error:
        key = "tokenizer_name_or_path" if own else "model_name_or_path"
        raise RecipeError(f"{key}: cannot load the tokenizer of {name!r}: {first_line(error)}") from error
    task = recipe.task
    prompt_text(tokenizer, task.system_prompt, task.user_prompt, THINK_OPEN, recipe.training.chat_template_kwargs)
    return tokenizer


def whole_batches(recipe: Recipe, plan: RunPlan, train: Any, held_out: Any) -> Any:
    """The evaluation's puzzles, cut to whole batches of all processes; None without evaluations.

    The trainer averages the means of batches, and fills the last one up with repetitions: a short batch would weigh
    its puzzles more, or count some twice. A batch that is larger than the puzzles are many is made smaller.

    Args:
        recipe: what was asked; `per_device_eval_batch_size` is changed.
        plan: its plan.
        train, held_out: data sets, over-long prompts dropped.

    Raises:
        RecipeError: when there are too few puzzles for a step, or for a single batch of an evaluation.
    """
    training, processes = recipe.training, plan.machine.processes
    check_puzzles(recipe, processes, len(train), len(held_out))
    if training.eval_strategy == "no":
        return None
    training.per_device_eval_batch_size = per_device = evaluation_batch(recipe, processes, len(held_out))
    puzzles_per_batch = per_device * processes // (training.num_generations_eval or training.num_generations)
    kept = len(held_out) // puzzles_per_batch * puzzles_per_batch
    if kept < len(held_out):
        logger.info("evaluating on %d of %d puzzles: whole batches of %d", kept, len(held_out), puzzles_per_batch)
    return held_out.select(range(kept))


def uploads(recipe: Recipe, plan: RunPlan, run: Run) -> hub.Uploads:
    """What uploads checkpoints while the run trains, where the recipe asks for it. Raises HubError when refused."""
    if recipe.resolved["push_to_hub"] and plan.machine.is_rank_zero and plan.target is not None:
        hub.make_repository(plan.target)
    return hub.Uploads(recipe, run.folder, plan.target)


def model_init_kwargs(recipe: Recipe) -> dict[str, Any]:
    """What `from_pretrained` gets, for the policy and for a reference model."""
    return {
        "revision": recipe.model.model_revision,
        "attn_implementation": recipe.model.attn_implementation,
        "dtype": recipe.model.dtype,
        "device_map": None,  # the trainer places it; TRL's "auto" spreads one process over all GPUs that it sees
        "use_safetensors": True,  # other weights are pickles, which run code when they are loaded
        **(recipe.training.model_init_kwargs or {}),
    }


def make_trainer(
    recipe: Recipe, plan: RunPlan, run: Run, server: Any, uploads: hub.Uploads, **kwargs: Any
) -> RunTrainer:
    """The trainer, with the arguments that follow from the plan.

    Args:
        recipe, plan: what was asked, and its plan.
        run: keeps samples and gets the model card.
        server: the run's own vLLM server on rank 0, else None.
        uploads: what `uploads` returned.
        kwargs: as for `RunTrainer`.

    Raises:
        ServerError: when the vLLM server cannot be used.
    """
    training, resume = recipe.training, plan.resume
    training.model_init_kwargs = model_init_kwargs(recipe)
    settle_trackers(training, run.name)
    if resume is not None:
        training.eval_on_start = resuming.lacks_evaluation(resume, training.eval_steps)
    training.eval_on_start = training.eval_on_start and training.eval_strategy != "no"
    if training.eval_strategy != "no" and "metric_for_best_model" not in recipe.given:
        training.metric_for_best_model, training.greater_is_better = pass_metric(), True
    # Uploads are our own: transformers would make the repository now and hold up the training with each of them.
    training.push_to_hub, training.hub_token = False, None
    if training.use_vllm:
        from mini_r1.generation.client import connect

        connect(recipe, plan.placement, server)
    prompt = kwargs["train_dataset"][0]["prompt"]
    return RunTrainer(
        args=training,
        recipe=recipe,
        resume=resume,
        sample_sizes=run.samples.sizes,
        on_saved=uploads.add if recipe.resolved["push_to_hub"] else None,
        write_card=partial(card.write, run.folder, recipe.given, prompt),
        **kwargs,
    )
