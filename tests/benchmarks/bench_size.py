"""What an optimizer step costs by model, batch and length: one factor at a time, the others as in the tiny recipe.

    python tests/benchmarks/bench_size.py                  # about eight minutes on two idle cores

Forward and backward passes of four micro-batches, without sampling, as in bench_training.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench_training import TINY_MODEL, RunTrainer, make_model, step
from comparison import Row, compare, record


def sizes(folder: Path) -> Iterator[tuple[str, Path, int, int]]:
    """What varies; model, completions a step, the longest completion in tokens."""
    tiny, completions, longest = Path(TINY_MODEL), 128, 256
    yield "1.1 M parameters", tiny, completions, longest
    yield "5 M parameters", make_model(folder / "5m", 256, 4), completions, longest
    yield "29 M parameters", make_model(folder / "29m", 512, 8), completions, longest
    for other in (64, 256):
        yield f"1.1 M parameters, {other} completions", tiny, other, longest
    for other in (128, 512):
        yield f"1.1 M parameters, up to {other} tokens", tiny, completions, other


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for what, model, completions, longest in sizes(Path(folder)):
            run = step(RunTrainer, model, completions // 4, longest)
            rows.append(compare(f"seconds a step: {what}", "s", {"here": run}, rounds=3))
    record("size", rows)


if __name__ == "__main__":
    main()
