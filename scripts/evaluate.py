"""Measure checkpoints on puzzles that they were not trained on.

    python scripts/evaluate.py runs/grpo-tiny-countdown-cpu                  # a run: its base and every checkpoint
    python scripts/evaluate.py configs/tiny-countdown runs/x/checkpoint-40   # these, side by side
    python scripts/evaluate.py Qwen/Qwen2.5-3B-Instruct@main --number_counts 3 4 5 6 --samples 8 --k 1 8

pass@1 and unbiased pass@k with 95 % intervals, by number count and by whether a solution needs * or /; verdicts,
lengths, cut-off share and speed; and the change from the first checkpoint to each other one, puzzle by puzzle. The
table goes to standard output, everything as JSON and every completion as JSONL into the run folder (`evaluation/`).
Completions are drawn as the run drew its own (temperature, top-p, ...) where no flag says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mini_r1.common import DataError, RecipeError, fail
from mini_r1.countdown.dataset import GENERATE, load_puzzles
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.solver import stratum
from mini_r1.countdown.verifier import Reason
from mini_r1.generation.sampling import (
    Completion,
    Sampling,
    choose_backend,
    load_tokenizer,
    room_for_completion,
    sample,
)
from mini_r1.intervals import difference_interval, pass_at_k, rate_interval
from mini_r1.recipe import parsing as recipe
from mini_r1.responses import has_format, judge, response, thinking
from mini_r1.run_folder.checkpoints import Checkpoint, is_hub_adapter, refuse_trained_puzzles, resolve
from mini_r1.run_folder.samples import Sample
from mini_r1.signs import SIGNS
from run_r1_grpo import build_prompt

ALL = "all puzzles"
# How completions are drawn where neither a flag nor the run says so.
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


# --------------------------------------------------------------------------------------------------------------------
# Puzzles
# --------------------------------------------------------------------------------------------------------------------


def choose_puzzles(args: argparse.Namespace, first: Checkpoint) -> tuple[list[Puzzle], str]:
    """The puzzles to evaluate on, and where they come from in words.

    Without `--puzzles`: held-out ones of the run's own data, or of generated data when the run is not known.

    Raises:
        DataError, RecipeError: when there are none.
    """
    source = args.puzzles or first.recipe("dataset_id_or_path", GENERATE)
    generated = {
        "number_counts": args.number_counts or first.recipe("number_counts", [3, 4]),
        "number_range": first.recipe("number_range", [1, 99]),
        "target_range": first.recipe("target_range", [10, 100]),
    }
    split = load_puzzles(
        source,
        rows=first.recipe("dataset_rows", 50_000) if args.puzzles in (None, GENERATE) else 0,
        seed=first.recipe("dataset_seed", 42),
        held_out_puzzles=first.recipe("held_out_puzzles", 1024),
        dataset_split=first.recipe("dataset_split", "train"),
        **generated,
    )
    if args.puzzles in (None, GENERATE):
        puzzles, which = split.held_out, f"held-out puzzles of {source}"
        if args.number_counts:
            puzzles = [puzzle for puzzle in puzzles if len(puzzle.nums) in args.number_counts]
    else:
        puzzles, which = split.held_out + split.train, f"puzzles of {source}"
    puzzles = puzzles[: args.num_puzzles] if args.num_puzzles else puzzles
    if not puzzles:
        raise DataError(f"{source} offers no puzzle to evaluate on: choose other --puzzles or --number_counts")
    return puzzles, which


# --------------------------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------------------------


def score(
    puzzles: Sequence[Puzzle], prompts: Sequence[str], drawn: Sequence[Sequence[Completion]]
) -> list[list[dict[str, Any]]]:
    """What each completion is worth, by the same functions as the rewards: P lists of G flat records."""
    scored = []
    for (nums, target), prompt, completions in zip(puzzles, prompts, drawn, strict=True):
        rows = []
        for completion in completions:
            text = response(completion.text, prompt)
            verdict = judge(text, nums, target)
            reasoning = thinking(text)
            rows.append(
                {
                    "text": text,
                    "reason": verdict.reason.value,
                    "value": None if verdict.value is None else str(verdict.value),
                    "correct": verdict.correct,
                    "format": has_format(text),
                    "tokens": completion.tokens,
                    "truncated": completion.truncated,
                    **{sign: count(reasoning) for sign, count in SIGNS.items()},
                }
            )
        scored.append(rows)
    return scored


def summarise(scored: Sequence[Sequence[dict[str, Any]]], ks: Sequence[int]) -> dict[str, Any]:
    """Rates with intervals, verdicts and means over some puzzles' records."""
    rows = [row for puzzle in scored for row in puzzle]
    rates = {}
    for k in ks:
        per_puzzle = [pass_at_k(len(puzzle), sum(row["correct"] for row in puzzle), k) for puzzle in scored]
        rates[f"pass@{k}"], rates[f"pass@{k}_low"], rates[f"pass@{k}_high"] = rate_interval(per_puzzle, len(rows))
    reasons = Counter(row["reason"] for row in rows)
    return {
        "puzzles": len(scored),
        "completions": len(rows),
        **rates,
        "format": sum(row["format"] for row in rows) / len(rows),
        "truncated": sum(row["truncated"] for row in rows) / len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        **{sign: sum(row[sign] for row in rows) / len(rows) for sign in SIGNS},
        "reasons": {reason.value: reasons[reason.value] / len(rows) for reason in Reason},
    }


def compare(
    names: Sequence[str], scored: dict[str, list[list[dict[str, Any]]]], groups: dict[str, list[int]]
) -> list[dict[str, Any]]:
    """The change in pass@1 from the first checkpoint to each other one, on the same puzzles."""

    def rates(name: str, members: list[int]) -> list[float]:
        return [sum(row["correct"] for row in scored[name][i]) / len(scored[name][i]) for i in members]

    changes = []
    for name in names[1:]:
        for group, members in groups.items():
            change, low, high = difference_interval(rates(names[0], members), rates(name, members))
            changes.append({"from": names[0], "to": name, "stratum": group, "change": change, "low": low, "high": high})
    return changes


# --------------------------------------------------------------------------------------------------------------------
# Showing
# --------------------------------------------------------------------------------------------------------------------


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as an aligned table, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def as_text(result: dict[str, Any], ks: Sequence[int]) -> str:
    """The result as a person reads it."""
    names = [entry["name"] for entry in result["checkpoints"]]
    table = [["pass@k in % (95 % interval)", "puzzles", "k", *names]]
    for group in result["checkpoints"][0]["strata"]:
        for k in ks:
            cells = []
            for entry in result["checkpoints"]:
                part = entry["strata"][group]
                low, high = part[f"pass@{k}_low"], part[f"pass@{k}_high"]
                cells.append(f"{percent(part[f'pass@{k}'])} ({percent(low)} to {percent(high)})")
            puzzles = result["checkpoints"][0]["strata"][group]["puzzles"]
            table.append([group if k == ks[0] else "", str(puzzles) if k == ks[0] else "", str(k), *cells])
    parts = [columns(table)]
    if result["changes"]:
        table = [["change of pass@1 in points", *names[1:]]]
        for group in result["checkpoints"][0]["strata"]:
            of_group = [change for change in result["changes"] if change["stratum"] == group]
            table.append([f"{group}, from {names[0]}", *(
                f"{100 * c['change']:+.1f} ({100 * c['low']:+.1f} to {100 * c['high']:+.1f})" for c in of_group
            )])  # fmt: skip
        parts.append(columns(table))
    table = [["all puzzles", *names]]
    overall: list[dict[str, Any]] = [entry["strata"][ALL] for entry in result["checkpoints"]]
    for reason in Reason:
        if any(part["reasons"][reason.value] for part in overall):
            table.append([f"verdict {reason.value}, %", *(percent(part["reasons"][reason.value]) for part in overall)])
    table.append(["format, %", *(percent(part["format"]) for part in overall)])
    table.append(["cut off, %", *(percent(part["truncated"]) for part in overall)])
    table.append(["tokens", *(f"{part['mean_tokens']:.1f}" for part in overall)])
    table += [[sign.replace("_", "-"), *(f"{part[sign]:.2f}" for part in overall)] for sign in SIGNS]
    table.append(["puzzles a second", *(f"{entry['puzzles_per_second']:.1f}" for entry in result["checkpoints"])])
    parts.append(columns(table))
    return "\n\n".join(parts)


def flat_table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per checkpoint and stratum, for reports and data frames."""
    return [
        {"checkpoint": entry["name"], "stratum": group, **{k: v for k, v in part.items() if k != "reasons"}}
        for entry in result["checkpoints"]
        for group, part in entry["strata"].items()
    ]


# --------------------------------------------------------------------------------------------------------------------
# Main
# --------------------------------------------------------------------------------------------------------------------


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT",
                        help="model or adapter folder, run folder, or Hub id[@revision]")  # fmt: skip
    parser.add_argument("--puzzles", help="a parquet, JSONL, JSON or CSV file, a Hub id, or `generate`; default: the "
                        "held-out puzzles of the run's own data")  # fmt: skip
    parser.add_argument("--num_puzzles", type=int, default=512, help="at most so many, 0 for all (default: 512)")
    parser.add_argument("--number_counts", type=int, nargs="+", help="only puzzles with so many numbers")
    parser.add_argument("--samples", type=int, default=1, help="completions per puzzle (default: 1)")
    parser.add_argument("--k", type=int, nargs="+", help="pass@k for these (default: 1 and --samples)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the run's, else 1.0)")
    parser.add_argument("--top_p", type=float, help="share of probability to draw from (default: the run's, else 1)")
    parser.add_argument("--top_k", type=int, help="tokens to draw from, 0 for all (default: the run's, else 0)")
    parser.add_argument("--min_p", type=float, help="least share of the most probable token's probability (default: "
                        "the run's, else none)")  # fmt: skip
    parser.add_argument("--repetition_penalty", type=float, help="of tokens that occurred (default: the run's, else 1)")
    parser.add_argument("--max_completion_length", type=int, help="tokens (default: the run's, else 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
    parser.add_argument("--backend", choices=["auto", "vllm", "transformers"], default="auto",
                        help="auto: vLLM where it is installed")  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=256, help="sequences at a time, for transformers")
    parser.add_argument("--output", type=Path, help="folder for the results (default: evaluation/ in the run folder)")
    parser.add_argument("--allow_trained_puzzles", action="store_true", help="even puzzles that were trained on")
    args = parser.parse_args(argv)
    args.k = sorted(set(args.k or [1, args.samples]))
    for key, least in (("num_puzzles", 0), ("samples", 1), ("batch_size", 1), ("max_completion_length", 1)):
        value = getattr(args, key)
        recipe.require(value is None or value >= least, f"--{key}", f"{least} or more", value)
    check_sampling(args)
    recipe.require(args.k[0] >= 1 and args.k[-1] <= args.samples, "--k", f"between 1 and --samples ({args.samples})",
                   args.k)  # fmt: skip
    return args


def check_sampling(args: argparse.Namespace) -> None:
    """Refuses settings that cannot be drawn with; None is not settled yet. Raises RecipeError."""
    for key, sound, expected in (
        ("temperature", lambda value: value >= 0, "0 or more"),
        ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        ("top_k", lambda value: value >= 0, "0 or more"),
        ("min_p", lambda value: 0 <= value <= 1, "between 0 and 1"),
        ("repetition_penalty", lambda value: value > 0, "positive"),
    ):
        value = getattr(args, key)
        recipe.require(value is None or (math.isfinite(value) and sound(value)), f"--{key}", expected, value)
    recipe.require(args.temperature != 0 or args.samples == 1, "--samples", "1 with --temperature 0, for all would be "
                   "the same", args.samples)  # fmt: skip


def settle_sampling(args: argparse.Namespace, known: Checkpoint) -> None:
    """Fills in what the command line leaves open: the run's sampling, so that what was trained is what is measured."""
    overrides = known.recipe("generation_kwargs", None)
    trained = overrides if isinstance(overrides, dict) else {}  # they win in TRL, too
    for key, default in SAMPLING.items():
        if getattr(args, key) is None:
            value = trained.get(key, known.recipe(key, default))
            setattr(args, key, default if value is None else value)
    args.top_k = max(0, args.top_k)  # older runs wrote -1 for all
    check_sampling(args)


def evaluate(
    checkpoint: Checkpoint, puzzles: Sequence[Puzzle], args: argparse.Namespace, backend: str
) -> tuple[list[list[dict[str, Any]]], float]:
    """Scores one checkpoint; also returns the seconds that sampling took, loading included."""
    from tqdm import tqdm

    tokenizer = load_tokenizer(checkpoint)
    prompts = [build_prompt(tokenizer, *puzzle) for puzzle in puzzles]
    room = room_for_completion(checkpoint, tokenizer, prompts)
    limit = args.max_completion_length if room is None else min(args.max_completion_length, room)
    sampling = Sampling(args.samples, max_tokens=limit, seed=args.seed, batch_size=args.batch_size,
                        **{key: getattr(args, key) for key in SAMPLING})  # fmt: skip
    begin = time.monotonic()
    with tqdm(total=len(puzzles), desc=checkpoint.name, unit="puzzle", disable=None) as bar:
        drawn = sample(backend, checkpoint, tokenizer, prompts, sampling, bar.update)
    return score(puzzles, prompts, drawn), time.monotonic() - begin


def write(folder: Path, result: dict[str, Any], puzzles: Sequence[Puzzle], scored: dict[str, Any]) -> Path:
    """Writes `<time>.json` and, with every completion, `<time>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y%m%d-%H%M%S")
    with (folder / f"{stem}.jsonl").open("w", encoding="utf-8") as stream:
        for name, of_checkpoint in scored.items():
            for puzzle, rows in zip(puzzles, of_checkpoint, strict=True):
                for index, row in enumerate(rows):
                    kept = Sample(0, "evaluation", list(puzzle.nums), puzzle.target, row["text"], row["reason"],
                                  row["value"], float(row["format"]), float(row["correct"]), row["tokens"], 0,
                                  index)  # fmt: skip
                    stream.write(json.dumps({"checkpoint": name, **asdict(kept)}) + "\n")
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def main(argv: list[str]) -> None:
    try:
        args = arguments(argv)
        checkpoints = [checkpoint for word in args.checkpoints for checkpoint in resolve(word)]
        names = [checkpoint.name for checkpoint in checkpoints]
        if len(set(names)) < len(names):  # two runs' checkpoints of the same step
            checkpoints = [replace(c, name=c.path + (f"@{c.revision}" if c.revision else "")) for c in checkpoints]
        checkpoints = list({checkpoint.name: checkpoint for checkpoint in checkpoints}.values())
        known = next((checkpoint for checkpoint in checkpoints if checkpoint.run), checkpoints[0])
        settle_sampling(args, known)
        # One limit for all, so that none is cut off where another may go on.
        args.max_completion_length = args.max_completion_length or known.recipe("max_completion_length", 1024)
        puzzles, which = choose_puzzles(args, known)
        if not args.allow_trained_puzzles:
            refuse_trained_puzzles(checkpoints, puzzles)
        backend = choose_backend(args.backend)
        # Besides the temperature, only what is not the default is worth a word.
        drawn = "".join(f", {key} {getattr(args, key):g}" for key, default in SAMPLING.items()
                        if key != "temperature" and getattr(args, key) != default)  # fmt: skip
        print(f"{len(puzzles)} {which}, {args.samples} completion{'s' * (args.samples > 1)} each at temperature "
              f"{args.temperature:g}{drawn}, by {backend}", file=sys.stderr, flush=True)  # fmt: skip
        groups: dict[str, list[int]] = {ALL: list(range(len(puzzles)))}
        for i, puzzle in enumerate(puzzles):
            groups.setdefault(stratum(*puzzle), []).append(i)
        groups = dict(sorted(groups.items(), key=lambda item: (item[0] != ALL, item[0])))
        scored: dict[str, list[list[dict[str, Any]]]] = {}
        entries: list[dict[str, Any]] = []
        for found in checkpoints:
            checkpoint = replace(found, is_adapter=found.is_adapter or is_hub_adapter(found))
            scored[checkpoint.name], seconds = evaluate(checkpoint, puzzles, args, backend)
            strata = {
                group: summarise([scored[checkpoint.name][i] for i in members], args.k)
                for group, members in groups.items()
            }
            entries.append({"name": checkpoint.name, "path": checkpoint.path, "revision": checkpoint.revision,
                            "adapter": checkpoint.is_adapter, "seconds": seconds,
                            "puzzles_per_second": len(puzzles) / seconds, "strata": strata})  # fmt: skip
    except (RecipeError, DataError) as error:
        fail(str(error))
    result: dict[str, Any] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "puzzles": which,
        "backend": backend,
        "settings": {key: value for key, value in vars(args).items() if key not in ("output", "checkpoints")},
        "checkpoints": entries,
        "changes": compare(list(scored), scored, groups),
    }
    result["table"] = flat_table(result)
    print(as_text(result, args.k))
    folder = args.output or (known.run_folder / "evaluation" if known.run_folder else Path("evaluation"))
    try:
        print(f"\nwritten to {write(folder, result, puzzles, scored)}")
    except OSError as error:
        fail(f"cannot write the results to {folder}: {error}; choose another --output")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", code=130)
