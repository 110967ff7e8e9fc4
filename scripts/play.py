"""Give a checkpoint a puzzle and watch it think.

    python scripts/play.py                                              # the embedded tiny model, interactively
    python scripts/play.py runs/grpo-tiny-countdown-cpu --nums 44,19,35 --target 98
    python scripts/play.py runs/grpo-tiny-countdown-cpu --random 5 --compare configs/tiny-countdown

The prompt, the sampling and the verdict are those of training: `run_r1_grpo.build_prompt`, temperature alone (no top-p,
top-k or penalty that the checkpoint may bring), and the functions behind the rewards. What a model writes is data: it
is printed with control characters escaped, so it cannot drive the terminal. A handful of puzzles is an impression, not
a measurement.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, assert_never

from mini_r1.common import RecipeError, fail, printable
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import MAX_NUMBERS, Puzzle
from mini_r1.countdown.solver import is_solvable, solve
from mini_r1.countdown.verifier import MAX_EQUATION_CHARS, MAX_NESTING, Reason, Verdict
from mini_r1.generation.sampling import load
from mini_r1.responses import extract_answer, has_format, judge, response
from mini_r1.run_folder.checkpoints import Checkpoint, is_hub_adapter, resolve
from run_r1_grpo import ASSISTANT_PREFILL, build_prompt

DEFAULT_CHECKPOINT = "configs/tiny-countdown"
EXAMPLE = "44 19 35 = 98"
HELP = f"""\
  {EXAMPLE}      a puzzle: the numbers, then the target
  random             a random puzzle that has a solution
  again              the same puzzle, another attempt
  solve              the solver's answer to the last puzzle
  quit               the end (also Ctrl-D); Ctrl-C stops an attempt"""
MAX_DIGITS = 6
SIDE_BY_SIDE_COLUMNS = 100  # two columns in which a line of reasoning still fits


# --------------------------------------------------------------------------------------------------------------------
# Reading puzzles
# --------------------------------------------------------------------------------------------------------------------


def parse_puzzle(text: str) -> Puzzle:
    """A puzzle in any notation in which the target comes last, or behind `=` or an arrow.

    Raises:
        ValueError: with a sentence for the player.

    Examples:
        >>> parse_puzzle("[44, 19, 35] -> 98") == parse_puzzle("44,19,35 98") == parse_puzzle("44 19 35 = 98")
        True
    """
    sides = [re.sub(r"\b(?:nums|numbers|target)\b|[\[\](){},;:\"']", " ", side, flags=re.IGNORECASE).split()
             for side in re.split(r"=>|->|→|=", text)]  # fmt: skip
    words = [word for side in sides for word in side]
    if not words or not all(re.fullmatch(r"[+-]?[0-9]+", word) for word in words):
        raise ValueError("that is no puzzle")
    if len(sides) > 2 or (len(sides) == 2 and len(sides[1]) != 1):
        raise ValueError("one target, please, after the numbers")
    *numbers, target = words
    if not 1 <= len(numbers) <= MAX_NUMBERS:
        raise ValueError(f"a puzzle has 1 to {MAX_NUMBERS} numbers and a target, not {len(numbers)} numbers")
    if any(len(word.lstrip("+-")) > MAX_DIGITS for word in words):
        raise ValueError(f"{MAX_DIGITS} digits are enough for a number")
    if any(int(number) < 1 for number in numbers):
        raise ValueError("the numbers must be positive")
    return Puzzle(tuple(int(number) for number in numbers), int(target))


def random_puzzle(draw: random.Random, number_counts: Sequence[int]) -> Puzzle:
    """A solvable puzzle; the generator deals counts out in turn, so one puzzle's count is drawn here."""
    return generate_puzzles(1, seed=draw.getrandbits(32), number_counts=[draw.choice(number_counts)])[0]


# --------------------------------------------------------------------------------------------------------------------
# Verdicts in words
# --------------------------------------------------------------------------------------------------------------------


def _wrong_numbers(equation: str, nums: Sequence[int]) -> str:
    used, given = Counter(map(int, re.findall("[0-9]+", equation))), Counter(nums)
    faults = [f"{number} is left out" for number in (given - used)]
    faults += [f"{number} is {'used too often' if number in given else 'not given'}" for number in (used - given)]
    return ", ".join(faults)


def verdict_sentence(verdict: Verdict, text: str, puzzle: Puzzle) -> str:
    """What a person wants to know about an answer.

    Args:
        verdict: what `judge` said about `text`.
        text: the whole response, from which the answer is quoted.
    """
    answer = extract_answer(text)
    equation = "" if isinstance(answer, Reason) else " ".join(answer.split())
    quoted = printable(equation if len(equation) <= 80 else equation[:80] + "…")
    match verdict.reason:
        case Reason.CORRECT:
            return f"correct: {quoted} = {puzzle.target}"
        case Reason.WRONG_VALUE:
            return f"wrong value: {quoted} = {verdict.value}, not {puzzle.target}"
        case Reason.WRONG_NUMBERS:
            return f"uses the wrong numbers: {quoted} ({_wrong_numbers(equation, puzzle.nums)})"
        case Reason.DIVISION_BY_ZERO:
            return f"divides by zero: {quoted}"
        case Reason.NO_ANSWER:
            return "no answer: nothing stands between <answer> and </answer>"
        case Reason.SEVERAL_ANSWERS:
            return "several answers: only one may be offered"
        case Reason.TOO_LONG:
            return f"too long: over {MAX_EQUATION_CHARS} characters or {MAX_NESTING} nested parentheses: {quoted}"
        case Reason.ILLEGAL_CHARACTER:
            return f"illegal character: only numbers, + - * / and parentheses make an equation, not {quoted}"
        case Reason.MALFORMED:
            return f"malformed: {quoted} is not an equation"
        case other:
            assert_never(other)


@dataclass(frozen=True)
class Player:
    """A checkpoint that plays, under the name it was given on the command line."""

    name: str
    model: Any
    tokenizer: Any
    eos_ids: list[int]


def known_number_counts(checkpoint: Checkpoint) -> list[int]:
    """How many numbers the puzzles had that the model learnt from; three, as the embedded model's, when unknown."""
    counts = checkpoint.recipe("number_counts", None)
    good = isinstance(counts, list) and counts and all(type(k) is int and 2 <= k <= MAX_NUMBERS for k in counts)
    return counts if good and counts else [3]


# --------------------------------------------------------------------------------------------------------------------
# Playing
# --------------------------------------------------------------------------------------------------------------------


class Streamer:
    """Shows tokens as they come, and is where an attempt is stopped: `generate` calls `put` after each one.

    Only the last few tokens are decoded again, with the ones before them for context, so that long completions do not
    get slower and slower; a character whose bytes are not complete yet waits.
    """

    def __init__(self, tokenizer: Any, show: bool):
        self.tokenizer, self.show = tokenizer, show
        self.ids: list[int] = []
        self.interrupted = self._prompt_seen = False
        self._context = self._shown = 0  # ids[_context:_shown] are shown already

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.reshape(-1).tolist()
        self._show_new()
        if self.interrupted:
            raise KeyboardInterrupt

    def end(self) -> None:
        self._show_new(everything=True)

    def interrupt(self, *_: object) -> None:
        """Takes Ctrl-C: the attempt ends after the token that is being computed, a second Ctrl-C ends it now."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _show_new(self, everything: bool = False) -> None:
        before = self.tokenizer.decode(self.ids[self._context : self._shown], skip_special_tokens=True)
        now = self.tokenizer.decode(self.ids[self._context :], skip_special_tokens=True)
        if self.show and (everything or not now.endswith("\ufffd")):
            print(printable(now[len(before) :]), end="", flush=True)
            self._context, self._shown = self._shown, len(self.ids)


@dataclass
class Attempt:
    """One completion: `text` is the whole response, `ending` says how it came to its end."""

    text: str
    verdict: Verdict
    tokens: int
    seconds: float
    ending: str  # "finished", "cut off" or "stopped"

    def report(self, puzzle: Puzzle) -> str:
        """The verdict, and a line with the rest."""
        numbers = f"{self.tokens} tokens · {self.seconds:.1f} s"
        if self.ending == "stopped":
            return f"stopped by Ctrl-C, not judged\n{numbers}"
        cut_off = " · cut off before its end" if self.ending == "cut off" else ""
        kept = "kept" if has_format(self.text) else "broken"
        return f"{verdict_sentence(self.verdict, self.text, puzzle)}\nformat {kept} · {numbers}{cut_off}"


def attempt(player: Player, puzzle: Puzzle, temperature: float, max_tokens: int, show: bool) -> Attempt:
    """Samples one completion, shows it as it comes if asked to, and judges it."""
    import torch
    from transformers import GenerationConfig

    prompt = build_prompt(player.tokenizer, *puzzle)
    inputs = player.tokenizer(prompt, return_tensors="pt").to(player.model.device)
    room = getattr(player.model.config, "max_position_embeddings", sys.maxsize) - inputs["input_ids"].size(1)
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        do_sample=bool(temperature), max_new_tokens=max(1, min(max_tokens, room)), eos_token_id=player.eos_ids,
        pad_token_id=player.tokenizer.pad_token_id, disable_compile=True, **sampling,
    )  # fmt: skip
    streamer = Streamer(player.tokenizer, show)
    if show:
        print(ASSISTANT_PREFILL, end="", flush=True)
    start = time.monotonic()
    handler = signal.signal(signal.SIGINT, streamer.interrupt)
    try:
        with torch.inference_mode():
            player.model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                generation_config=config, streamer=streamer,
            )  # fmt: skip
        ending = "finished" if streamer.ids[-1] in player.eos_ids else "cut off"
    except KeyboardInterrupt:
        ending = "stopped"
    finally:
        signal.signal(signal.SIGINT, handler)
    seconds = time.monotonic() - start
    if show:
        print()
    text = response(player.tokenizer.decode(streamer.ids, skip_special_tokens=True), prompt)
    return Attempt(text, judge(text, *puzzle), len(streamer.ids), seconds, ending)


def coloured(text: str, code: str) -> str:
    """`text` in an ANSI colour where somebody sees it and has not asked for none."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def coloured_report(one: Attempt, puzzle: Puzzle) -> str:
    verdict, _, rest = one.report(puzzle).partition("\n")
    code = "33" if one.ending == "stopped" else "32" if one.verdict.correct else "31"
    return f"{coloured(verdict, code)}\n{coloured(rest, '2')}"


def print_side_by_side(players: Sequence[Player], attempts: Sequence[Attempt], puzzle: Puzzle, width: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(width=width, show_lines=True)
    for player in players:
        table.add_column(Text(player.name), ratio=1)
    table.add_row(*(Text(printable(a.text)) for a in attempts))
    table.add_row(*(Text.from_ansi(coloured_report(a, puzzle)) for a in attempts))
    # Without a height, rich takes a dumb terminal to be 80 columns wide whatever it is told.
    Console(width=width, height=len(attempts)).print(table)


def play(players: Sequence[Player], puzzle: Puzzle, args: argparse.Namespace) -> list[Attempt]:
    """Every player's attempt at a puzzle, shown; an attempt that was stopped is the last one."""
    unsolvable = "" if is_solvable(*puzzle) else "  (it has no solution)"
    print(coloured(f"\nnumbers {list(puzzle.nums)}, target {puzzle.target}{unsolvable}", "1"))
    width = shutil.get_terminal_size().columns
    columns = len(players) > 1 and sys.stdout.isatty() and width >= SIDE_BY_SIDE_COLUMNS
    attempts: list[Attempt] = []
    for player in players:
        if columns:
            print(coloured(f"{player.name} thinks …", "2"), flush=True)
        elif len(players) > 1:
            print(coloured(f"--- {player.name}", "36"))
        one = attempt(player, puzzle, args.temperature, args.max_completion_length, show=not columns)
        attempts.append(one)
        if not columns:
            print(coloured_report(one, puzzle), flush=True)
        if one.ending == "stopped":
            break
    if columns:
        print_side_by_side(players[: len(attempts)], attempts, puzzle, width)
    if args.solve:
        print_solution(puzzle)
    return attempts


def print_solution(puzzle: Puzzle) -> None:
    solution = solve(*puzzle)
    print(f"solver: {solution} = {puzzle.target}" if solution else "solver: there is no solution", flush=True)


def print_tally(players: Sequence[Player], rounds: Sequence[Sequence[Attempt]]) -> None:
    print()
    for index, player in enumerate(players):
        judged = [attempts[index] for attempts in rounds if len(attempts) > index]
        judged = [one for one in judged if one.ending != "stopped"]
        reasons = Counter(one.verdict.reason.value for one in judged)
        tokens = sum(one.tokens for one in judged) / max(len(judged), 1)
        print(f"{player.name}: {reasons[Reason.CORRECT]} of {len(judged)} solved, {tokens:.0f} tokens on average ("
              + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) + ")")  # fmt: skip


def converse(players: Sequence[Player], draw: random.Random, args: argparse.Namespace) -> None:
    """The interactive session: one line, one puzzle, until the player leaves."""
    import readline  # noqa: F401  (gives input() a history and the arrow keys)

    puzzle: Puzzle | None = None
    print(f"numbers and a target, for example {EXAMPLE}; or random, again, solve, help, quit")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command = line.lower()
        if command in ("quit", "exit"):
            return
        if not command:
            continue
        if command == "help":
            print(HELP)
        elif command in ("again", "solve") and puzzle is None:
            print(f"there is no puzzle yet: type one, for example {EXAMPLE}, or random")
        elif command == "solve" and puzzle is not None:
            print_solution(puzzle)
        else:
            if command == "random":
                puzzle = random_puzzle(draw, args.number_counts)
            elif command != "again":
                try:
                    puzzle = parse_puzzle(line)
                except ValueError as error:
                    print(f"{error}: type for example {EXAMPLE}, or random, again, solve, help, quit")
                    continue
            assert puzzle is not None
            try:
                play(players, puzzle, args)
            except KeyboardInterrupt:  # just before or after the model's turn
                print()


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(message)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", nargs="?", default=DEFAULT_CHECKPOINT, metavar="CHECKPOINT",
        help=f"run folder, model or adapter folder, or Hub id[@revision]; default: {DEFAULT_CHECKPOINT}",
    )  # fmt: skip
    parser.add_argument("--nums", nargs="+", metavar="N", help="play one puzzle with these numbers, and exit")
    parser.add_argument("--target", help="its target")
    parser.add_argument("--random", type=int, metavar="N", help="play N random puzzles, and exit with a tally")
    parser.add_argument("--solve", action="store_true", help="show the solver's answer, too")
    parser.add_argument("--compare", metavar="BASE", help="a second checkpoint that plays the same puzzles")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1.0)")
    parser.add_argument("--max_completion_length", type=int, metavar="TOKENS",
                        help="default: the value that CHECKPOINT was trained with, else 512")  # fmt: skip
    parser.add_argument("--seed", type=int, help="the same puzzles and the same samples every time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    args = parser.parse_args(argv)
    if (args.nums is None) != (args.target is None):
        parser.error("--nums and --target go together")
    if args.nums and args.random is not None:
        parser.error("either --nums and --target, or --random")
    if args.random is not None and args.random < 1:
        parser.error(f"--random must be 1 or more, got {args.random}")
    if args.max_completion_length is not None and args.max_completion_length < 1:
        parser.error(f"--max_completion_length must be 1 or more, got {args.max_completion_length}")
    if not (math.isfinite(args.temperature) and args.temperature >= 0):
        parser.error(f"--temperature must be 0 or more, got {args.temperature}")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    puzzle = None
    if args.nums:
        try:
            puzzle = parse_puzzle(f"{' '.join(args.nums)} = {args.target}")
        except ValueError as error:
            fail(f"--nums and --target: {error}; for example: --nums 44,19,35 --target 98")
    names = [args.checkpoint, args.compare] if args.compare else [args.checkpoint]
    try:  # before anything heavy is imported; of a run, its newest model
        checkpoints = [resolve(name)[-1] for name in names]
    except RecipeError as error:
        fail(str(error))
    args.number_counts = known_number_counts(checkpoints[0])
    if args.max_completion_length is None:
        limit = checkpoints[0].recipe("max_completion_length", None)
        args.max_completion_length = limit if type(limit) is int and limit > 0 else 512
    print(coloured(f"loading {' and '.join(names)} …", "2"), flush=True)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        loaded = [
            load(replace(checkpoint, is_adapter=checkpoint.is_adapter or is_hub_adapter(checkpoint)), args.device)
            for checkpoint in checkpoints
        ]
    except RecipeError as error:
        fail(str(error))
    players = [Player(name, one.model, one.tokenizer, one.eos_ids) for name, one in zip(names, loaded, strict=True)]
    draw = random.Random(args.seed)
    if args.seed is not None:
        from transformers import set_seed

        set_seed(args.seed)

    if puzzle is None and args.random is None:
        converse(players, draw, args)
        return
    puzzles = [puzzle] if puzzle else [random_puzzle(draw, args.number_counts) for _ in range(args.random)]
    rounds: list[list[Attempt]] = []
    for one in puzzles:
        rounds.append(play(players, one, args))
        if rounds[-1][-1].ending == "stopped":
            break
    if args.random is not None:
        print_tally(players, rounds)
    if rounds[-1][-1].ending == "stopped":
        raise SystemExit(130)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except BrokenPipeError:  # `| head` has seen enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
