"""Checkpoints to evaluate: what a path or a Hub id names, which run it comes from, and what that run trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError
from mini_r1.countdown.dataset import GENERATE, is_there, local_path
from mini_r1.countdown.puzzle import MAX_HELD_OUT_SHARE, Puzzle, is_held_out
from mini_r1.run_folder import resume as resumption

ROOT = Path(__file__).resolve().parents[3]
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """Weights that `from_pretrained` loads.

    Attributes:
        name: what tables call it.
        path: a local folder or a Hub id.
        revision: of a Hub id; None locally.
        is_adapter: whether it is a LoRA adapter, whose base model its configuration names.
        tokenizer: folder or Hub id of the tokenizer, None when it is the checkpoint's own.
        run: the contents of the run's `run.json`, None when the run is not known.
        run_folder: where results go, None when there is no run folder.
    """

    name: str
    path: str
    revision: str | None = None
    is_adapter: bool = False
    tokenizer: str | None = None
    run: dict[str, Any] | None = None
    run_folder: Path | None = None

    def recipe(self, key: str, default: Any) -> Any:
        """A value of the recipe that trained it."""
        return ((self.run or {}).get("recipe") or {}).get(key, default)

    def may_have_trained_on(self, puzzle: Puzzle) -> bool:
        """Whether the run's training side of the split could have held the puzzle; False when no run is known."""
        if self.run is None:
            return False
        try:
            share = (self.run.get("split") or {}).get("share", MAX_HELD_OUT_SHARE)
            if is_held_out(*puzzle, share=share):
                return False
            if self.recipe("dataset_id_or_path", None) != GENERATE:
                return True
            low, high = self.recipe("number_range", [1, 99])
            counts = self.recipe("number_counts", [3, 4])
            return len(puzzle.nums) in counts and all(low <= n <= high for n in puzzle.nums)
        except (AttributeError, TypeError, ValueError):  # a broken run.json rules nothing out
            return True


def local_folder(name: str) -> Path:
    """The path that is meant: recipes and adapters name models relative to the repository, wherever one stands."""
    path = local_path(name)
    return path if is_there(path) or not is_there(ROOT / name) else ROOT / name


def _run_of(folder: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The run that a model folder belongs to: the folder itself is a run's, or a checkpoint in one."""
    for candidate in (folder, folder.parent):
        try:
            run = json.loads((candidate / "run.json").read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(run, dict) and isinstance(run.get("recipe"), dict):
            return run, candidate
    return None, None


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter as safetensors; pickled weights are not read."""
    has_weights = any(folder.glob("*.safetensors"))
    return has_weights and ((folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file())


def _pickled(folder: Path) -> Path | None:
    """The first file of pickled weights in a model folder, or in a checkpoint of a run folder; None without any."""
    patterns = ("pytorch_model*.bin", "adapter_model*.bin")
    files = (path for place in ("", "checkpoint-*/") for name in patterns for path in folder.glob(place + name))
    return min(files, default=None)


def _local(folder: Path, name: str | None = None) -> Checkpoint:
    run, run_folder = _run_of(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    return Checkpoint(name or "/".join(folder.resolve().parts[-2:]), str(folder), is_adapter=is_adapter, run=run,
                      run_folder=run_folder)  # fmt: skip


def _of_run(folder: Path) -> list[Checkpoint]:
    """The model that a run began with, its checkpoints in order, and its final model unless the last is the same."""
    checkpoints = list(resumption.checkpoints_in(folder).values())
    if any(resumption.read_manifest(path) for path in checkpoints):  # one that is just being written is left out
        checkpoints = [path for path in checkpoints if not resumption.fault_in(path)]
    found = [_local(path, path.name) for path in checkpoints if _is_model(path)]
    run, run_folder = _run_of(folder)
    if _is_model(folder):
        try:
            step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            step = None
        if not (found and found[-1].name == f"checkpoint-{step}"):
            found.append(_local(folder, "final model"))
    recipe = (run or {}).get("recipe", {})
    base = recipe.get("model_name_or_path")
    if isinstance(base, str) and base and found:
        revision = None if local_folder(base).is_dir() else recipe.get("model_revision")
        # Checkpoints bring the tokenizer that they were trained with; the base is to be asked through the same one.
        found.insert(0, Checkpoint("base", base, revision, tokenizer=recipe.get("tokenizer_name_or_path"), run=run,
                                   run_folder=run_folder))  # fmt: skip
    return found


def resolve(specification: str) -> list[Checkpoint]:
    """What a word on the command line names.

    Args:
        specification: a model, checkpoint or adapter folder; a run folder, which stands for its base model and every
            checkpoint in it; or a Hub id, as `name` or `name@revision`.

    Raises:
        RecipeError: when there is nothing to load.
    """
    folder = local_folder(specification)
    if is_there(folder) and folder.is_dir():
        if (folder / "run.json").is_file():
            found = _of_run(folder)
            if found:
                return found
        if _is_model(folder):
            return [_local(folder)]
        if pickled := _pickled(folder):
            library, model = ("peft", "AutoPeftModelForCausalLM") if pickled.name.startswith("adapter") else (
                "transformers", "AutoModelForCausalLM")  # fmt: skip
            raise RecipeError(
                f"{specification} holds pickled weights ({pickled.name}), and only safetensors are read; if you trust "
                f'their origin, convert them: python -c "from {library} import {model} as M; '
                f"M.from_pretrained('{pickled.parent}').save_pretrained('{pickled.parent}')\""
            )
        raise RecipeError(
            f"{specification} holds no model that can be loaded (config.json or {ADAPTER_CONFIG}, and *.safetensors)"
        )
    name, _, revision = specification.partition("@")
    if is_there(folder) or name.startswith(".") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise RecipeError(f"{specification} is no checkpoint folder")
    return [Checkpoint(specification, name, revision or "main")]


def is_hub_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a Hub id names an adapter; asks the Hub, and without it takes it for a full model."""
    import httpx
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HfHubHTTPError

    if local_folder(checkpoint.path).is_dir():
        return False
    try:
        return file_exists(checkpoint.path, ADAPTER_CONFIG, revision=checkpoint.revision)
    except (OSError, HfHubHTTPError, httpx.HTTPError):
        return False


def refuse_trained_puzzles(checkpoints: Sequence[Checkpoint], puzzles: Sequence[Puzzle]) -> None:
    """Refuses puzzles that one of the checkpoints may have been trained on.

    Raises:
        RecipeError: naming how many there are and what to do.
    """
    for checkpoint in checkpoints:
        trained = sum(checkpoint.may_have_trained_on(puzzle) for puzzle in puzzles)
        if trained:
            raise RecipeError(
                f"{trained} of {len(puzzles)} puzzles are on the training side of the split of the run that made "
                f"{checkpoint.name}, so success on them says nothing about new ones: leave --puzzles out, or add "
                f"--allow_trained_puzzles"
            )
