"""Resolving checkpoints: what a path or a Hub id names, which run it comes from, and what that run trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mini_r1.common import RunError
from mini_r1.recipe.files import is_read, place
from mini_r1.run_folder import HELD_OUT, RUN_DESCRIPTION, TRAINER_STATE
from mini_r1.run_folder.manifest import checkpoints_in, fault_in, read_description, read_json
from mini_r1.task import Task, load_task

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
        run: the contents of the run's `run.json`, empty when the run is not known.
        run_folder: where results go, None when there is no run folder.
    """

    name: str
    path: str
    revision: str | None = None
    is_adapter: bool = False
    tokenizer: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    run_folder: Path | None = None

    @property
    def task(self) -> Task:
        """The task that it was trained on, the default one when the run is not known."""
        return load_task(self.run.get("task"))

    def recipe(self, key: str, default: Any) -> Any:
        """A value of the recipe that trained it; the default also stands for null."""
        value = self.run.get("recipe", {}).get(key)
        return default if value is None else value

    def sampling(self) -> dict[str, Any]:
        """How the run drew completions, by the recipe's keys; plain sampling where no run is known."""
        plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        wins = self.recipe("generation_kwargs", {})  # in TRL, too
        values = {key: wins.get(key, self.recipe(key, default)) for key, default in plain.items()}
        return values | {"top_k": max(0, values["top_k"] or 0)}  # older runs wrote -1 for all

    def puzzle_arguments(self, **changes: Any) -> Any:
        """The task's arguments as its run had them, with changes; null and None stand for a default."""
        given = {key: value for key, value in changes.items() if value is not None}
        values = {one.name: self.recipe(one.name, None) for one in fields(self.task.arguments)} | given
        values = {key: place(value) if is_read(key) and value else value for key, value in values.items()}
        return self.task.arguments(**{key: value for key, value in values.items() if value is not None})


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter as safetensors; pickled weights are not read."""
    has_weights = any(folder.glob("*.safetensors"))
    return has_weights and any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _local(folder: Path, name: str | None = None) -> Checkpoint:
    """A model folder, which is a run's own or a checkpoint in one, or of no run that is known."""
    run_folder = next((place for place in (folder, folder.parent) if read_description(place).get("recipe")), None)
    run = read_description(run_folder) if run_folder else {}
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    name = name or "/".join(folder.resolve().parts[-2:])
    return Checkpoint(name, str(folder), is_adapter=is_adapter, run=run, run_folder=run_folder)


def _of_run(folder: Path) -> list[Checkpoint]:
    """The model that a run began with, its checkpoints in order, and its final model unless the last is the same."""
    checkpoints = list(checkpoints_in(folder).values())
    # One that is just being written is left out. Early runs wrote no manifests.
    complete = [path for path in checkpoints if not fault_in(path)] or checkpoints
    found = [_local(path, path.name) for path in complete if _is_model(path)]
    step = (read_json(folder / TRAINER_STATE) or {}).get("global_step")
    if _is_model(folder) and (step is not None or not found):  # without a state it is of a run before this one
        marked = [point["step"] for point in read_json(folder / HELD_OUT) or () if point.get("final")]
        name = f"checkpoint-{marked[0] if marked else step}"
        if not (found and found[-1].name == name):
            is_best = any(checkpoint.name == name for checkpoint in found)
            found.append(_local(folder, f"final model (step {marked[0]})" if is_best and marked else "final model"))
    if found and (base := found[0].recipe("model_name_or_path", "")):
        revision = None if Path(place(base)).is_dir() else found[0].recipe("model_revision", None)
        # Checkpoints bring the tokenizer that they were trained with; the base is to be asked through the same one.
        tokenizer = found[0].recipe("tokenizer_name_or_path", None)
        first = Checkpoint("base", base, revision, False, tokenizer, found[0].run, found[0].run_folder)
        found.insert(0, first)
    return found


def resolve(specification: str) -> list[Checkpoint]:
    """What a word on the command line names.

    Args:
        specification: a model, checkpoint or adapter folder; a run folder, which stands for its base model and every
            checkpoint in it; or a Hub id, as `name` or `name@revision`.

    Raises:
        RunError: when there is nothing to load.
    """
    folder = Path(place(specification))
    if not folder.exists():
        return [_on_hub(specification)]
    if (folder / RUN_DESCRIPTION).is_file() and (found := _of_run(folder)):
        return found
    if _is_model(folder):
        return [_local(folder)]
    raise RunError(
        f"{specification} holds no model that can be loaded (config.json or {ADAPTER_CONFIG}, with *.safetensors): "
        f"if you trust pickled weights in it, load them with transformers or peft and call `save_pretrained`"
    )


def _on_hub(specification: str) -> Checkpoint:
    """What `name` or `name@revision` stands for on the Hub; where it does not answer, a full model."""
    import httpx
    from huggingface_hub import errors, file_exists

    name, _, revision = specification.partition("@")
    try:
        is_adapter = file_exists(name, ADAPTER_CONFIG, revision=revision or "main")
    except errors.HFValidationError as error:
        raise RunError(f"{specification} is no checkpoint folder, and no name on the Hub") from error
    except (OSError, httpx.HTTPError):
        is_adapter = False
    return Checkpoint(specification, name, revision or "main", is_adapter)


def refuse_trained_puzzles(checkpoints: Sequence[Checkpoint], puzzles: Sequence[Any]) -> None:
    """Raises RunError when one of the checkpoints, of known runs, may have been trained on some of the puzzles."""
    for checkpoint in (checkpoint for checkpoint in checkpoints if checkpoint.run):
        arguments, split = checkpoint.puzzle_arguments(), checkpoint.run.get("split", {})
        if trained := sum(checkpoint.task.could_train_on(arguments, split, puzzle) for puzzle in puzzles):
            raise RunError(
                f"{trained} of {len(puzzles)} puzzles are on the training side of the split of the run that made "
                f"{checkpoint.name}, so success on them says nothing about new ones: leave --puzzles out, or add "
                f"--allow_trained_puzzles"
            )
