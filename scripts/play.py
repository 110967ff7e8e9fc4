"""Give a checkpoint a puzzle and watch it think.

    python scripts/play.py                                              # the embedded tiny model, interactively
    python scripts/play.py runs/grpo-tiny-countdown-cpu --nums 44,19,35 --target 98
    python scripts/play.py runs/grpo-tiny-countdown-cpu --random 5 --compare configs/tiny-countdown

The prompt, the sampling and the verdict are those of training: `run_r1_grpo.build_prompt`, the recipe's temperature,
top-p and so on (not those of the checkpoint's generation_config.json), and the functions behind the rewards. What a
model writes is data: it is printed with control characters escaped, so it cannot drive the terminal. A handful of
puzzles is an impression, not a measurement.
"""

from __future__ import annotations

import os
import random
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.common import ArgumentParser, RecipeError, RunError, printable, run_cli
from mini_r1.countdown import TASK
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import Puzzle, parse_puzzle
from mini_r1.countdown.solver import is_solvable, solve
from mini_r1.countdown.verifier import explain
from mini_r1.generation.sampling import Completion, Loaded, Sampling, generate, load
from mini_r1.responses import THINK_OPEN, answers_in, has_format, judge, response
from mini_r1.run_folder.checkpoints import Checkpoint, resolve
from mini_r1.task import Verdict
from run_r1_grpo import build_prompt

EXAMPLE = "44 19 35 = 98"
COMMANDS = f"type for example {EXAMPLE}, or random, again, solve, help, quit"
HELP = f"""\
  {EXAMPLE}      a puzzle: the numbers, then the target
  random             a random puzzle that has a solution
  again              the same puzzle, another attempt
  solve              the solver's answer to the last puzzle
  quit               the end (also Ctrl-D); Ctrl-C stops an attempt"""


def coloured(text: str, code: str) -> str:
    """`text` in an ANSI colour where somebody sees it and has not asked for none."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


# --------------------------------------------------------------------------------------------------------------------
# Playing
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A completion, the whole response in which it ends, and the verdict on that."""

    completion: Completion
    text: str
    verdict: Verdict

    def sentence(self, puzzle: Puzzle) -> str:
        """The verdict in words."""
        answers = answers_in(self.text)
        return explain(self.verdict, answers[0] if len(answers) == 1 else "", puzzle)

    def numbers(self, seconds: float) -> str:
        """A line with the rest."""
        kept = "kept" if has_format(self.text) else "broken"
        cut_off = " · cut off before its end" if self.completion.truncated else ""
        return f"format {kept} · {self.completion.tokens} tokens · {seconds:.1f} s{cut_off}"


def random_puzzle(draw: random.Random, number_counts: Sequence[int]) -> Puzzle:
    """A solvable puzzle; the generator deals counts out in turn, so one puzzle's count is drawn here."""
    return generate_puzzles(1, seed=draw.getrandbits(32), number_counts=[draw.choice(number_counts)])[0]


def show(text: str) -> None:
    print(text, end="", flush=True)


def streamer(tokenizer: Any, show: Callable[[str], object] = show) -> Any:
    """What shows a completion as it comes, word by word, with control characters escaped."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(printable(text) + "\n" * stream_end)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def attempts_at(
    puzzles: Sequence[Puzzle], player: Loaded, args: Namespace, show: Callable[[str], object] | None = None
) -> list[Attempt]:
    """A player's attempt at each puzzle, judged; at a single one, `show` gets it as it comes."""
    tokenizer = player.tokenizer
    prompts = [build_prompt(tokenizer, puzzle, TASK, player.chat_template_kwargs) for puzzle in puzzles]
    stream = streamer(tokenizer, show) if show else None
    drawn = generate(player.model, tokenizer, prompts, args.sampling, player.eos_ids, streamer=stream)
    texts = [response(one.text, prompt) for (one,), prompt in zip(drawn, prompts, strict=True)]
    made = zip(drawn, texts, puzzles, strict=True)
    return [Attempt(one, text, judge(TASK, text, puzzle)) for (one,), text, puzzle in made]


def play(players: Mapping[str, Loaded], puzzle: Puzzle, args: Namespace) -> dict[str, Attempt]:
    """Every player's attempt at a puzzle, shown as it comes and judged; Ctrl-C stops it."""
    unsolvable = "" if is_solvable(*puzzle) else "  (it has no solution)"
    print(coloured(f"\nnumbers {list(puzzle.nums)}, target {puzzle.target}{unsolvable}", "1"))
    attempts = {}
    for name, player in players.items():
        if len(players) > 1:
            print(coloured(f"--- {name}", "36"))
        print(THINK_OPEN, end="", flush=True)
        start = time.monotonic()
        (attempt,) = attempts_at([puzzle], player, args, show)
        attempts[name] = attempt
        print(coloured(attempt.sentence(puzzle), "32" if attempt.verdict.correct else "31"))
        print(coloured(attempt.numbers(time.monotonic() - start), "2"), flush=True)
    if args.solve:
        print(solution(puzzle), flush=True)
    return attempts


def solution(puzzle: Puzzle) -> str:
    """The solver's answer, in words."""
    found = solve(*puzzle)
    return f"solver: {found} = {puzzle.target}" if found else "solver: there is no solution"


def play_series(players: Mapping[str, Loaded], puzzles: Sequence[Puzzle], args: Namespace) -> None:
    """Plays puzzles one after the other, and ends with a tally, also when Ctrl-C stops it."""
    played: list[dict[str, Attempt]] = []
    try:
        for puzzle in puzzles:
            played.append(play(players, puzzle, args))
    finally:
        for name in players:
            reasons = Counter(attempts[name].verdict.reason.value for attempts in played)
            tokens = sum(attempts[name].completion.tokens for attempts in played) / max(len(played), 1)
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            solved = f"{reasons['correct']} of {len(played)} solved"
            print(f"\n{name}: {solved}, {tokens:.0f} tokens on average ({counts})")


def converse(players: Mapping[str, Loaded], draw: random.Random, args: Namespace) -> None:
    """The interactive session: one line, one puzzle, until the player leaves."""
    import readline  # noqa: F401  (gives input() a history and the arrow keys)

    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    puzzle = parse_puzzle(EXAMPLE)
    print(COMMANDS)
    while True:
        try:
            line = input("> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            line = "quit"
        if line in ("quit", "exit"):
            return print()
        if line == "help":
            print(HELP)
        elif line == "solve":
            print(solution(puzzle), flush=True)
        elif line:
            try:
                if line == "random":
                    puzzle = random_puzzle(draw, args.number_counts)
                elif line != "again":
                    puzzle = parse_puzzle(line)
            except ValueError as error:
                print(f"{error}: {COMMANDS}")
                continue
            try:
                play(players, puzzle, args)
            except KeyboardInterrupt:
                print("\nstopped by Ctrl-C, not judged")


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def add_player_arguments(parser: ArgumentParser) -> None:
    """What a game needs to know of the models, in the terminal and on the page."""
    add, default = parser.add_argument, "configs/tiny-countdown"
    checkpoint = f"run folder, model or adapter folder, or Hub id[@revision]; default: {default}"
    add("checkpoint", nargs="?", default=default, metavar="CHECKPOINT", help=checkpoint)
    add("--compare", metavar="BASE", help="a second checkpoint that plays the same puzzles")
    add("--temperature", type=float, help="0 is greedy (default: CHECKPOINT's in training, else 1.0)")
    add("--max_completion_length", type=int, metavar="TOKENS", help="default: CHECKPOINT's in training, else 512")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def load_players(checkpoints: Mapping[str, Checkpoint], first: Checkpoint, args: Namespace) -> dict[str, Loaded]:
    """The models in memory; what the command line leaves open is the recipe's that trained the first.

    Raises:
        RecipeError, RunError: when they cannot play.
    """
    if first.task is not TASK:
        raise RunError(
            f"{args.checkpoint} was trained on {first.task.path}, and only Countdown is played: read its samples"
        )
    drawn = first.sampling() | ({} if args.temperature is None else {"temperature": args.temperature})
    if not drawn["temperature"] >= 0:  # nor NaN
        raise RecipeError(f"--temperature must be 0 or more, got {args.temperature}")
    args.number_counts = first.recipe("number_counts", [3, 4])  # as the embedded model's
    limit = args.max_completion_length or first.recipe("max_completion_length", 512)
    args.sampling = Sampling(**drawn, max_tokens=limit)
    print(coloured(f"loading {' and '.join(checkpoints)} …", "2"), flush=True)
    from transformers.utils import logging

    logging.disable_progress_bar()
    return {name: load(checkpoint, args.device) for name, checkpoint in checkpoints.items()}


def arguments(argv: list[str]) -> Namespace:
    """The command line; `puzzle` is the one of `--nums` and `--target`, or None. Raises RecipeError."""
    parser = ArgumentParser(__doc__)
    add_player_arguments(parser)
    add, ways = parser.add_argument, parser.add_mutually_exclusive_group()
    ways.add_argument("--nums", nargs="+", metavar="N", help="play one puzzle with these numbers, and exit")
    add("--target", help="its target")
    ways.add_argument("--random", type=int, metavar="N", help="play N random puzzles, and exit with a tally")
    add("--solve", action="store_true", help="show the solver's answer, too")
    add("--seed", type=int, help="the same puzzles and the same samples every time")
    args = parser.parse_args(argv)
    args.puzzle = None
    if args.nums or args.target:
        try:
            args.puzzle = parse_puzzle(f"{' '.join(args.nums or ())} = {args.target or ''}")
        except ValueError as error:
            raise RecipeError(f"--nums and --target: {error}; for example: --nums 44,19,35 --target 98") from error
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    names = [args.checkpoint, *([args.compare] if args.compare else [])]
    checkpoints = {name: resolve(name)[-1] for name in names}  # of a run, its newest model
    first = checkpoints[args.checkpoint]
    players = load_players(checkpoints, first, args)
    draw = random.Random(args.seed)
    if args.seed is not None:
        from transformers import set_seed

        set_seed(args.seed)
    if args.puzzle:
        play(players, args.puzzle, args)
    elif args.random is not None:
        play_series(players, [random_puzzle(draw, args.number_counts) for _ in range(args.random)], args)
    else:
        converse(players, draw, args)


if __name__ == "__main__":
    run_cli(main)
