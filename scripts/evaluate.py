"""Measure checkpoints on puzzles that they were not trained on.

    python scripts/evaluate.py runs/grpo-tiny-countdown-cpu                  # a run: its base and every checkpoint
    python scripts/evaluate.py configs/tiny-countdown runs/x/checkpoint-40   # these, side by side
    python scripts/evaluate.py Qwen/Qwen2.5-3B-Instruct@main --number_counts 3 4 5 6 --samples 8 --k 1 8

pass@1 and unbiased pass@k with 95 % intervals, by kind of puzzle (number count, and whether a solution needs * or /);
verdicts, lengths, cut-off share and speed; and the change from the first checkpoint to each other one, puzzle by
puzzle. The table goes to standard output, everything as JSON and every completion as JSONL into the run folder
(`evaluation/`). Completions are drawn as the run drew its own (temperature, top-p, ...) where no flag says otherwise.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_r1.common import ArgumentParser, DataError, RecipeError, run_cli
from mini_r1.evaluation.scores import Score, compare, score, strata, summarise
from mini_r1.evaluation.table import as_text, flat_table
from mini_r1.generation.sampling import Sampling, choose_backend, load_tokenizer, room_for_completion, sample
from mini_r1.recipe.checks import check_writable
from mini_r1.run_folder.checkpoints import Checkpoint, refuse_trained_puzzles, resolve
from mini_r1.task import Task
from run_r1_grpo import build_prompt

# The word for puzzles made up on the spot, as in recipes.
GENERATE = "generate"
# How completions are drawn: type, value where neither a flag nor the run gives one, what is sound, and the help.
SAMPLING = {
    "temperature": (float, 1.0, lambda value: value >= 0, "0 or more, 0 is greedy"),
    "top_p": (float, 1.0, lambda value: 0 < value <= 1, "share of probability to draw from, above 0 and at most 1"),
    "top_k": (int, 0, lambda value: value >= 0, "0 or more, how many tokens to draw from, 0 for all"),
    "min_p": (float, None, lambda value: 0 <= value <= 1, "between 0 and 1, least share of the top probability"),
    "repetition_penalty": (float, 1.0, lambda value: value > 0, "positive, above 1 makes repetition less likely"),
}


def arguments(argv: list[str]) -> Namespace:
    """The command line. Raises RecipeError."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="model, adapter or run folder, or Hub id[@revision]")
    add("--puzzles", help="a data file, a Hub id, or `generate`; default: the held-out puzzles of the run's own data")
    add("--puzzles_split", metavar="NAME", help="of a folder or Hub id in --puzzles that has several, as `test`")
    add("--num_puzzles", type=int, default=512, help="at most this many, 0 for all (default: 512)")
    add("--number_counts", type=int, nargs="+", help="only puzzles with this many numbers")
    add("--samples", type=int, default=1, help="completions per puzzle (default: 1)")
    add("--k", type=int, nargs="+", help="pass@k for these (default: 1 and --samples)")
    for key, (kind, default, _, text) in SAMPLING.items():
        add(f"--{key}", type=kind, help=f"{text} (default: the run's, else {'none' if default is None else default})")
    add("--max_completion_length", type=int, help="in tokens (default: the run's, else 1024)")
    add("--seed", type=int, default=0, help="of the sampler (default: 0)")
    add("--backend", choices=["auto", "vllm", "transformers"], default="auto", help="auto: vLLM where it is installed")
    add("--batch_size", type=int, default=256, help="sequences at a time, for transformers")
    add("--output", type=Path, help="folder for the results (default: evaluation/ in the run folder)")
    add("--allow_trained_puzzles", action="store_true", help="even puzzles that were trained on")
    args = parser.parse_args(argv)
    args.k = sorted(set(args.k or [1, args.samples]))
    if not 1 <= args.k[0] <= args.k[-1] <= args.samples:
        raise RecipeError(f"--k must be between 1 and --samples ({args.samples}), got {args.k}")
    return args


def settle_sampling(args: Namespace, known: Checkpoint) -> Sampling:
    """How completions are drawn: as flags say, else as in the run, so that what was trained is what is measured.

    Raises RecipeError on what cannot be drawn with; the settings also go into `args`, for the result.
    """
    as_trained = known.sampling()
    for key, (_, _, is_sound, text) in SAMPLING.items():
        value = as_trained[key] if getattr(args, key) is None else getattr(args, key)
        if value is not None and not is_sound(value):  # nor NaN
            raise RecipeError(f"--{key} must be {text}, got {value}")
        setattr(args, key, value)
    # One limit for all checkpoints, so that none is cut off where another may continue.
    args.max_completion_length = args.max_completion_length or known.recipe("max_completion_length", 1024)
    drawing = {key: getattr(args, key) for key in SAMPLING}
    limit = args.max_completion_length
    return Sampling(args.samples, max_tokens=limit, seed=args.seed, batch_size=args.batch_size, **drawing)


def choose_checkpoints(words: Sequence[str]) -> list[Checkpoint]:
    """What the words name, each under a name of its own. Raises RunError."""
    found = [checkpoint for word in words for checkpoint in resolve(word)]
    if len({checkpoint.name for checkpoint in found}) < len(found):  # two runs' checkpoints of the same step
        found = [replace(one, name=one.path + (f"@{one.revision}" if one.revision else "")) for one in found]
    return list({checkpoint.name: checkpoint for checkpoint in found}.values())


def choose_puzzles(args: Namespace, known: Checkpoint) -> tuple[list[Any], str]:
    """The puzzles to evaluate on, and where they come from in words.

    Without `--puzzles`: held-out ones of the run's own data, or of generated data when the run is not known. With it,
    all that it offers, in their order.

    Raises:
        DataError, RecipeError: when there are none.
    """
    keys = known.task.arguments.__dataclass_fields__
    for flag, value, key in (
        ("--puzzles", args.puzzles, "dataset_id_or_path"),
        ("--puzzles_split", args.puzzles_split, "dataset_split"),
        ("--number_counts", args.number_counts, "number_counts"),
    ):
        if value is not None and key not in keys:
            raise RecipeError(f"{flag} is not for {known.task.path}, whose recipes have no {key}: leave it out")
    source = args.puzzles or known.recipe("dataset_id_or_path", known.recipe("task", GENERATE))
    is_own = args.puzzles in (None, GENERATE)
    changes = {"dataset_id_or_path": source, "dataset_split": args.puzzles_split, "number_counts": args.number_counts}
    changes = {key: value for key, value in changes.items() if key in keys}
    if not is_own:  # every puzzle, in the order in which they come
        changes |= {"dataset_rows": 0, "held_out_puzzles": 0}
    split = known.task.load(known.puzzle_arguments(**changes), True)
    puzzles = split.held_out if is_own else split.train
    if args.number_counts:
        puzzles = [puzzle for puzzle in puzzles if len(puzzle.nums) in args.number_counts]
    if not puzzles:
        raise DataError(f"{source} offers no puzzle to evaluate on: choose other --puzzles or --number_counts")
    return puzzles[: args.num_puzzles or None], f"{'held-out ' if is_own else ''}puzzles of {source}"


def evaluate(
    checkpoint: Checkpoint, task: Task, puzzles: Sequence[Any], sampling: Sampling, backend: str
) -> list[list[Score]]:
    """The scores of one checkpoint's completions, G for each puzzle of the task."""
    from tqdm import tqdm

    tokenizer = load_tokenizer(checkpoint)
    kwargs = checkpoint.recipe("chat_template_kwargs", None)
    prompts = [build_prompt(tokenizer, puzzle, task, kwargs) for puzzle in puzzles]
    if room := room_for_completion(checkpoint, tokenizer, prompts):
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
    with tqdm(total=len(puzzles), desc=checkpoint.name, unit="puzzle", disable=None) as bar:
        drawn = sample(backend, checkpoint, tokenizer, prompts, sampling, bar.update)
    return [
        [score(task, puzzle, prompt, completion, index) for index, completion in enumerate(completions)]
        for puzzle, prompt, completions in zip(puzzles, prompts, drawn, strict=True)
    ]


def main(argv: list[str]) -> None:
    args = arguments(argv)
    checkpoints = choose_checkpoints(args.checkpoints)
    known = next((checkpoint for checkpoint in checkpoints if checkpoint.run), checkpoints[0])
    folder = args.output or (known.run_folder or Path()) / "evaluation"
    check_writable(str(folder))
    sampling = settle_sampling(args, known)
    puzzles, source = choose_puzzles(args, known)
    if not args.allow_trained_puzzles:
        refuse_trained_puzzles(checkpoints, puzzles)
    backend = choose_backend(args.backend)
    drawing = ", ".join(f"{key} {getattr(args, key)}" for key in SAMPLING)
    print(f"{len(puzzles)} {source}, {args.samples} completions each by {backend}, {drawing}", file=sys.stderr)

    groups = strata(known.task, puzzles)
    scored: dict[str, list[list[Score]]] = {}
    entries: list[dict[str, Any]] = []
    for one in checkpoints:
        begin = time.monotonic()
        scores = scored[one.name] = evaluate(one, known.task, puzzles, sampling, backend)
        seconds = time.monotonic() - begin
        parts = {
            group: summarise(known.task, [scores[i] for i in members], args.k) for group, members in groups.items()
        }
        entry = {"name": one.name, "path": one.path, "revision": one.revision, "adapter": one.is_adapter}
        entries.append(entry | {"seconds": seconds, "puzzles_per_second": len(puzzles) / seconds, "strata": parts})

    result: dict[str, Any] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "puzzles": source,
        "backend": backend,
        "settings": {key: value for key, value in vars(args).items() if key not in ("output", "checkpoints")},
        "checkpoints": entries,
        "changes": compare(scored, groups),
    }
    result["table"] = flat_table(result)
    print(as_text(result, args.k))
    write(folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json", result, scored)


def write(path: Path, result: dict[str, Any], scored: dict[str, list[list[Score]]]) -> None:
    """Writes the result, and every completion into the `.jsonl` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".jsonl").open("w", encoding="utf-8") as lines:
        for name, of_checkpoint in scored.items():
            for one in (one for scores in of_checkpoint for one in scores):
                lines.write(json.dumps({"checkpoint": name, **one.sample.as_record()}) + "\n")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    run_cli(main)
