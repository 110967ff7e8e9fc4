"""A page for a checkpoint: type or draw a puzzle and watch it think, beside the model that it was trained from.

    python scripts/app.py                                    # the embedded tiny model
    python scripts/app.py runs/grpo-tiny-countdown-cpu       # a run: its base model and its newest, side by side
    python scripts/app.py CHECKPOINT --compare BASE          # any two

Puzzles, prompt, sampling and verdicts are those of `play.py`. What a model writes is data: it reaches the page with
control characters escaped, and as text, never as HTML. Every visitor gets answers of their own; a model writes one at a
time. As it stands this file is also the `app_file` of a Hugging Face Space (configs/space/README.md).
"""

from __future__ import annotations

import random
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from html import escape
from typing import Any

from mini_r1.common import ArgumentParser, RecipeError, first_line, run_cli
from mini_r1.countdown.puzzle import Puzzle, parse_puzzle
from mini_r1.countdown.solver import is_solvable
from mini_r1.generation.sampling import Loaded
from mini_r1.intervals import wilson_interval
from mini_r1.responses import THINK_OPEN, thinking
from mini_r1.run_folder.checkpoints import Checkpoint, resolve
from mini_r1.signs import count_attempts
from play import EXAMPLE, Attempt, add_player_arguments, attempts_at, load_players, random_puzzle, solution

TALLY_SIZES = (8, 16, 32, 64)  # puzzles, a multiple of the batch: the table grows after each
BATCH = 8
QUEUE = 32  # visitors who may wait for a model
INTRODUCTION = """
# The countdown game
Make the target of the numbers: each exactly once, with + − × ÷. The model thinks first, then answers, and an exact
verifier judges the answer. Every attempt is a new sample: the same puzzle may go well once and badly the next time.
"""
CSS = """
.gradio-container { max-width: 1100px !important; margin: auto; }
.html-container { padding: 0 !important; }
.panel { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 14px 16px; min-height: 19em;
  background: var(--block-background-fill); }
.panel h3 { margin: 0 0 6px; font-size: 1em; overflow-wrap: anywhere; }
.panel pre { font-size: .9em; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0; }
.quiet { opacity: .7; font-size: .9em; }
.verdict { border-radius: 8px; padding: 8px 12px; margin: 8px 0; font-weight: 600; overflow-wrap: anywhere; }
.right { background: #16a34a26; border-left: 4px solid #16a34a; }
.wrong { background: #dc262626; border-left: 4px solid #dc2626; }
.note { min-height: 2.4em; line-height: 2.4em; }
.tile { border-radius: 8px; padding: 4px 12px; margin-right: 6px; font-weight: 700; background: #0596691f; }
.target { background: #059669; color: white; }
.tally { border-top: 1px solid var(--border-color-primary); padding: 10px 0; }
.track { background: var(--border-color-primary); border-radius: 6px; height: 10px; margin: 6px 0; }
.track div { background: #059669; border-radius: 6px; height: 10px; }
"""


class VisitorGoneError(Exception):
    """Ends a completion that nobody waits for any more."""


# --------------------------------------------------------------------------------------------------------------------
# What is shown
# --------------------------------------------------------------------------------------------------------------------


def panel(name: str, text: str = "", result: str = "") -> str:
    """One model's part of the page; `text` is whatever it wrote, `result` is HTML of ours."""
    shown = f"<pre>{escape(text)}</pre>" if text else '<p class="quiet">waits for a puzzle</p>'
    return f'<div class="panel"><h3>{escape(name)}</h3>{shown}{result}</div>'


def verdict(attempt: Attempt, sentence: str, seconds: float) -> str:
    """The verdict in words, and a line with the rest."""
    kind, tried = "right" if attempt.verdict.correct else "wrong", count_attempts(thinking(attempt.text))
    numbers = f"{tried} attempt{'s' * (tried != 1)} · {attempt.numbers(seconds)}"
    return f'<p class="verdict {kind}">{escape(sentence)}</p><p class="quiet">{escape(numbers)}</p>'


def note(text: str, puzzle: Puzzle | None = None) -> str:
    """The line under the buttons: a puzzle's numbers and target, and a word on it."""
    tiles = [f'<span class="tile">{number}</span>' for number in puzzle.nums] if puzzle else []
    tiles += [f'→ <span class="tile target">{puzzle.target}</span>'] if puzzle else []
    return f'<div class="note">{"".join(tiles)} {escape(text)}</div>'


def tally_row(name: str, played: Sequence[Attempt]) -> str:
    """A model's result over random puzzles."""
    reasons = Counter(attempt.verdict.reason.value for attempt in played)
    solved, count = reasons["correct"], len(played)
    share, low, high = (100 * rate for rate in (solved / count, *wilson_interval(solved, count)))
    tokens = sum(attempt.completion.tokens for attempt in played) / count
    tried = sum(count_attempts(thinking(attempt.text)) for attempt in played) / count
    verdicts = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in reasons.most_common())
    return (
        f'<div class="tally"><b>{escape(name)}</b>: {solved} of {count} solved '
        f'<span class="quiet">({share:.0f} %; 95 % interval {low:.0f} to {high:.0f} %)</span>'
        f'<div class="track"><div style="width: {share:.1f}%"></div></div>'
        f'<span class="quiet">{tried:.1f} attempts and {tokens:.0f} tokens on average · {verdicts}</span></div>'
    )


# --------------------------------------------------------------------------------------------------------------------
# What happens
# --------------------------------------------------------------------------------------------------------------------


class Game:
    """The models, and what a visitor can ask of them; keeps nothing of any visitor."""

    def __init__(self, players: Mapping[str, Loaded], args: Namespace):
        self.players, self.args, self.draw = players, args, random.Random()
        # A tokenizer's padding is a setting of its own, so two threads must not use one at a time.
        self.turns = {name: threading.Lock() for name in players}

    def think(self, typed: str) -> Iterator[list[str]]:
        """The note under the puzzle and every model's panel, again and again until all have answered."""
        try:
            puzzle = parse_puzzle(typed)
        except ValueError as error:
            yield [note(f"{error}: type for example {EXAMPLE}"), *map(panel, self.players)]
            return
        head = note("" if is_solvable(*puzzle) else "it has no solution", puzzle)
        texts, gone = dict.fromkeys(self.players, ""), threading.Event()

        def answer(name: str) -> str:
            def show(text: str) -> None:
                if gone.is_set():
                    raise VisitorGoneError
                texts[name] += text

            with self.turns[name]:
                start = time.monotonic()
                show(THINK_OPEN)
                (attempt,) = attempts_at([puzzle], self.players[name], self.args, show)
            return verdict(attempt, attempt.sentence(puzzle), time.monotonic() - start)

        pool = ThreadPoolExecutor(len(self.players))
        answers = {name: pool.submit(answer, name) for name in self.players}
        pool.shutdown(wait=False)  # Gradio closes this generator on its event loop, which must not wait for a model
        try:
            waiting = True
            while waiting:
                waiting = bool(wait(answers.values(), timeout=0.05).not_done)
                results = {name: one.result() if one.done() else "" for name, one in answers.items()}
                yield [head, *(panel(name, texts[name] or "…", results[name]) for name in self.players)]
        finally:
            gone.set()

    def tally(self, count: int) -> Iterator[str]:
        """The table over random puzzles, the same for all models, after every batch."""
        played: dict[str, list[Attempt]] = {name: [] for name in self.players}
        for _ in range(count // BATCH):
            puzzles = [random_puzzle(self.draw, self.args.number_counts) for _ in range(BATCH)]
            for name, player in self.players.items():
                with self.turns[name]:
                    played[name] += attempts_at(puzzles, player, self.args)
            yield "".join(tally_row(name, attempts) for name, attempts in played.items())

    def random(self) -> str:
        puzzle = random_puzzle(self.draw, self.args.number_counts)
        return f"{' '.join(map(str, puzzle.nums))} = {puzzle.target}"

    def solve(self, typed: str) -> str:
        try:
            puzzle = parse_puzzle(typed)
            return note(solution(puzzle), puzzle)
        except ValueError as error:
            return note(f"{error}: type for example {EXAMPLE}")


def build(game: Game) -> Any:
    """The page."""
    import gradio as gr

    with gr.Blocks(title="Mini-R1: watch it think", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        puzzle = gr.Textbox(
            EXAMPLE, label="Puzzle: the numbers, then the target", max_lines=1, max_length=200, elem_id="puzzle"
        )
        with gr.Row():
            go = gr.Button("Think", variant="primary", min_width=120, elem_id="think")
            draw = gr.Button("Random puzzle", min_width=120, elem_id="random")
            solve = gr.Button("Solver's answer", min_width=120, elem_id="solve")
            stop = gr.Button("Stop", min_width=120, elem_id="stop")
        head = gr.HTML(note(""), elem_id="note")
        with gr.Row():
            panels = [gr.HTML(panel(name), min_width=300, elem_classes="player") for name in game.players]
        gr.Markdown("### How often?\nRandom puzzles that have a solution. A few are an impression: mind the interval.")
        with gr.Row():
            count = gr.Radio(TALLY_SIZES, value=16, label="Puzzles", min_width=260, scale=3)
            start = gr.Button("Tally", min_width=120, elem_id="start")
        table = gr.HTML(elem_id="tally")

        # One listener, so that two answers never write into the same panels: while one is shown, no other begins.
        asked = gr.on(
            [go.click, puzzle.submit], game.think, inputs=puzzle, outputs=[head, *panels], show_progress="hidden"
        )
        draw.click(game.random, outputs=puzzle, show_progress="hidden")
        counting = start.click(game.tally, inputs=count, outputs=table, show_progress="minimal")
        solve.click(game.solve, inputs=puzzle, outputs=head, show_progress="hidden")
        stopped = note("stopped, not judged")
        stop.click(lambda: stopped, outputs=head, show_progress="hidden", cancels=[asked, counting])
    # A model's lock lets one visitor in at a time; the others see that they wait.
    return page.queue(max_size=QUEUE, default_concurrency_limit=8)


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def choose(args: Namespace) -> dict[str, Checkpoint]:
    """The models by the names on the page, what was trained last; of a run, where it began and its newest model."""
    found = resolve(args.checkpoint)
    if args.compare:
        return {args.compare: resolve(args.compare)[-1], args.checkpoint: found[-1]}
    if len(found) == 1:
        return {args.checkpoint: found[0]}
    return {f"before training: {found[0].path}": found[0], f"after training: {found[-1].name}": found[-1]}


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    add_player_arguments(parser)
    parser.add_argument("--host", help="default: 127.0.0.1, this machine alone; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860")
    args = parser.parse_args(argv)
    checkpoints = choose(args)
    try:
        import gradio as gr
    except ImportError as error:
        raise RecipeError(
            "the page needs gradio: `make demo` installs it, or `pip install -c configs/constraints.txt -e '.[demo]'`"
        ) from error
    *_, trained = checkpoints.values()
    page = build(Game(load_players(checkpoints, trained, args), args))
    try:
        _, url, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            theme=gr.themes.Soft(primary_hue="emerald", font=["system-ui", "sans-serif"]),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot serve the page: {first_line(error)}; choose another --host or --port") from error
    print(f"open {url} in a browser; Ctrl-C ends it", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    run_cli(main, abandon=lambda: True)  # no model need finish its sentence
