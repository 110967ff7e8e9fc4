"""The equation reward against other checkers of Countdown answers: rewards per second, and the worst case.

    python tests/benchmarks/bench_rewards.py               # about three minutes, half of it in time limits

- filtered eval: what reproductions of R1 usually do. An allow-list of characters, the numbers, then Python's `eval`
- reasoning-gym: `score_answer` of its Countdown task, which hands the answer to sympy's parser
- math-verify: the value of the answer alone; it has no notion of given numbers

The three find the answer with the regular expression that reproductions use. Typical responses are search traces
like those of the tiny model's cold start. The worst case is the slowest of ATTACKS, each of at most 100,000 characters,
which a budget of some 32,000 tokens allows. There every check runs in a process of its own, which is killed after five
seconds.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import numpy as np
from math_verify import parse, verify
from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

from comparison import Row, compare, make_row, record, shown
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.traces import find_ways, write_trace
from run_r1_grpo import equation_reward_func

LIMIT = 5.0  # seconds a check may take
TYPICAL = 6_000
A_ROUND = {"filtered eval": 6_000, "reasoning-gym": 500, "math-verify": 300, "here": 6_000}
FORK = multiprocessing.get_context("fork")  # the checkers' imports are not part of the measurement
GYM = CountdownDataset(CountdownConfig())


class Item(NamedTuple):
    """A response to a puzzle."""

    completion: str
    nums: Sequence[int] = (3, 4, 5)
    target: int = 12


def answering(answer: str, nums: Sequence[int] = (3, 4, 5)) -> Item:
    return Item(f"Let me see.</think>\n<answer>{answer}</answer>", nums)


ATTACKS = {
    "power tower": answering("9**9**9", (9, 9, 9)),
    "nested parentheses": answering("(" * 49_000 + "3+4+5" + ")" * 49_000),
    "signs": answering("3+4" + "-" * 98_000 + "5"),
    "operators": answering("3" + "+4" * 49_000),
    "long number": answering("3+4+" + "9" * 98_000),
    "blanks": answering("3+4+" + " " * 98_000 + "5"),
    "fractions": answering(r"\frac{" * 16_000),
    "opened answers": Item("<answer>" * 12_000),
    "ends of text": Item("<|im_end|>" * 9_900),
}


# --------------------------------------------------------------------------------------------------------------------
# Checkers: the reward of one item
# --------------------------------------------------------------------------------------------------------------------


def answer_in(completion: str) -> str:
    found = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return found[1].strip() if found else ""


def filtered_eval(item: Item) -> float:
    answer = answer_in(item.completion)
    if not re.fullmatch(r"[-+*/().\d\s]+", answer):
        return 0.0
    try:
        if sorted(map(int, re.findall(r"\d+", answer))) != sorted(item.nums):
            return 0.0
        value = eval(answer, {"__builtins__": {}}, {})  # noqa: S307  this is what the benchmark is about
        return float(abs(value - item.target) < 1e-5)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return 0.0


def reasoning_gym(item: Item) -> float:
    entry = {"metadata": {"numbers": item.nums, "target": item.target}}
    return float(GYM.score_answer(answer_in(item.completion), entry) == 1.0)


def math_verify(item: Item) -> float:
    return float(verify(parse(str(item.target)), parse(answer_in(item.completion))))


def here(item: Item) -> float:
    return equation_reward_func([item.completion], target=[item.target], nums=[list(item.nums)])[0]


CHECKERS: dict[str, Callable[[Item], float]] = {
    "filtered eval": filtered_eval, "reasoning-gym": reasoning_gym, "math-verify": math_verify, "here": here,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Measurements
# --------------------------------------------------------------------------------------------------------------------


def typical_items() -> list[Item]:
    rng = np.random.default_rng(0)
    puzzles = generate_puzzles(TYPICAL, seed=0, number_counts=(3,))
    shares = {"give_up_share": 0.5, "give_up_rate": 0.3, "max_attempts": 12, "hit_rate": 0.25}
    traces = [write_trace(find_ways(puzzle.nums), puzzle.target, rng, **shares) for puzzle in puzzles]
    return [Item(trace, *puzzle) for trace, puzzle in zip(traces, puzzles, strict=True) if trace]


def typical(items: list[Item]) -> Row:
    """Every round takes other responses, because sympy and math-verify remember what they have parsed."""

    def work(name: str) -> Callable[[int], float]:
        check, count = CHECKERS[name], A_ROUND[name]

        def run(round_: int) -> float:
            for i in range(round_ * count, (round_ + 1) * count):
                check(items[i % len(items)])
            return count

        return run

    return compare("rewards, typical responses", "rewards/s", {name: work(name) for name in CHECKERS})


def differing(items: list[Item]) -> dict[str, int]:
    """How many of the items each contender judges otherwise."""
    return {name: sum(check(item) != here(item) for item in items) for name, check in CHECKERS.items()}


def worst(rounds: int = 3) -> Row:
    slowest: dict[str, list[float]] = {name: [] for name in CHECKERS}
    for _ in range(rounds):
        items = {attack: {name: seconds(name, item) for name in CHECKERS} for attack, item in ATTACKS.items()}
        for name in CHECKERS:
            slowest[name].append(max(item[name] for item in items.values()))
    for attack, item in items.items():
        times = (f"{name} {'over ' * (value >= LIMIT)}{shown(value, 's')}" for name, value in item.items())
        print(f"  {attack:<20}", *times, sep="   ")
    return make_row("one reward, worst case", "s", slowest, limit=LIMIT, items=items)


def seconds(name: str, item: Item) -> float:
    """How long a check takes; LIMIT also when its process dies of it, which would end a training run."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=send_seconds, args=(sender, CHECKERS[name], item))
    process.start()
    sender.close()
    try:
        return min(receiver.recv(), LIMIT) if receiver.poll(LIMIT) else LIMIT
    except EOFError:
        return LIMIT
    finally:
        process.kill()
        process.join()


def send_seconds(sender: Connection, check: Callable[[Item], float], item: Item) -> None:
    started = time.perf_counter()
    check(item)
    sender.send(time.perf_counter() - started)


def main() -> None:
    items = typical_items()
    print("typical responses judged otherwise:", differing(items[-200:]), "of 200")
    record("rewards", [typical(items), worst()])


if __name__ == "__main__":
    main()
