"""The supervised cold start: its order of examples, its arithmetic check, and a short real run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, TINY_MODEL, flags
from mini_r1.common import UserError
from mini_r1.countdown import TASK
from mini_r1.countdown.dataset import PuzzleArguments
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.traces import find_ways, needs_products
from run_cold_start import (
    CIRCLE_RADIUS,
    LOG2_PERIODS,
    PERIODS,
    ColdStartArguments,
    check_arithmetic,
    main,
    make_model,
    make_tokenizer,
    order_examples,
    sample_held_out,
    write_traces,
)


def test_order_keeps_every_example_the_curriculum_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(10, 300, 64 * 32).tolist()
    order = order_examples(lengths, batch_size=32, seed=1, window=8)
    for start in range(0, len(order), 8 * 32):  # a window's examples stay in their window
        assert sorted(order[start : start + 8 * 32]) == list(range(start, start + 8 * 32))

    def padding(indices: list[int]) -> int:
        batches = [[lengths[i] for i in indices[b : b + 32]] for b in range(0, len(indices), 32)]
        return sum(max(batch) * 32 - sum(batch) for batch in batches)

    assert padding(order) < padding(list(range(len(lengths)))) / 4
    assert order_examples(lengths, 32, seed=1, window=8) == order
    assert order_examples(lengths, 32, seed=2, window=8) != order


def test_arithmetic_is_counted_by_operation():
    text = "44-19=25, 25+35=60 too low\n7*8=54, 54/6=9 yes!\n8/3=2\n<answer>(44-19)+35</answer>"
    assert check_arithmetic([text, "2+2=5"]) == {"+": "1 of 2", "-": "1 of 1", "*": "0 of 1", "/": "1 of 2"}


def test_the_curriculum_persists_first_and_gives_up_later():
    args = ColdStartArguments(
        persistent_first_share=0.5, give_up_share=1.0, give_up_rate=1.0, max_attempts=100, hit_rate=0.5
    )
    puzzles = generate_puzzles(450, seed=0, number_counts=[3])
    examples = write_traces(puzzles, 400, 0, args)
    assert {puzzle for puzzle, _ in examples} <= set(puzzles)
    early, late = ([("I give up." in trace) for _, trace in half] for half in (examples[:200], examples[200:]))
    assert not any(early)
    assert sum(late) > 100  # all but those who succeed at once


def test_as_many_puzzles_need_products_as_asked_for():
    args = ColdStartArguments(products_share=0.4, max_attempts=2)
    examples = write_traces(generate_puzzles(600, seed=0), 500, 0, args)
    needed = [needs_products(find_ways(puzzle.nums), puzzle.target) for puzzle, _ in examples]
    assert sum(needed) / len(needed) == pytest.approx(0.4, abs=0.07)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param({"number_counts": 5}, "number_counts must be at most 4", id="too many attempts to list"),
        pytest.param({"dataset_id_or_path": "sums.csv"}, "none needs", id="sums alone"),
    ],
)
def test_puzzles_that_cannot_be_shown_are_refused(
    keys: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rows = [f"{n} {n + 50},{2 * n + 50}" for n in range(2, 45)]
    (tmp_path / "sums.csv").write_text("\n".join(["nums,target", *rows]))
    own = {"output_dir": "out", "dataset_rows": 40, "held_out_puzzles": 1, "max_steps": 10}
    with pytest.raises(UserError, match=message):
        main(["--config", str(ROOT / "receipes" / "sft-tiny-countdown.yaml"), *flags(**own | keys)])


def test_numbers_start_on_circles():
    tokenizer = make_tokenizer(["44-19=25, 35+25=60 too low\n"], 540)
    model = make_model(ColdStartArguments(hidden_size=64, num_hidden_layers=1), tokenizer)
    table = model.get_input_embeddings().weight.detach()
    assert tokenizer.tokenize("[44, 199] 5*40=200") == [*"[", "44", *",Ġ", "199", *"]Ġ5*", "40", "=", "200"]

    def place(number: int, period: int) -> complex:
        row = table[tokenizer.convert_tokens_to_ids(str(number))]
        column = PERIODS.index(period)
        return complex(row[column], row[column + len(PERIODS) + len(LOG2_PERIODS)])

    assert place(13, 10) == pytest.approx(place(143, 10), abs=1e-5)  # the same last digit
    assert abs(place(13, 10) - place(18, 10)) == pytest.approx(2 * CIRCLE_RADIUS)  # opposite
    # Sums add angles, as products do on the circles of logarithms.
    assert place(13, 400) * place(150, 400) == pytest.approx(CIRCLE_RADIUS * place(163, 400))


SMALL = {
    "max_steps": 10,
    "logging_steps": 5,
    "per_device_train_batch_size": 8,
    "dataset_rows": 500,
    "held_out_puzzles": 50,
    "max_attempts": 2,
    "eval_puzzles": 8,
    "save_strategy": "no",
    "report_to": "none",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
}


def cold_start(folder: Path, **settings: Any) -> dict[str, Any]:
    """Runs the script in this process and returns what it wrote of its result."""
    keys = {**SMALL, **settings, "output_dir": folder}
    main(["--config", str(ROOT / "receipes" / "sft-tiny-countdown.yaml"), *flags(**keys)])
    return json.loads((folder / "cold_start.json").read_text())


@pytest.mark.slow
def test_a_short_cold_start_leaves_a_checkpoint_to_train_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = cold_start(tmp_path / "first")
    assert result["puzzles"] == sum(result["reasons"].values()) == 8
    assert capsys.readouterr().out.count("'loss'") == 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert model.num_parameters() == result["parameters"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.use_cache
    assert tokenizer.eos_token == "<|im_end|>"

    started_from = {"model_name_or_path": tmp_path / "first", "learning_rate": 1e-9, "max_steps": 2}
    further = cold_start(tmp_path / "further", **started_from)
    assert further["parameters"] == result["parameters"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "further")
    for before, after in zip(model.parameters(), again.parameters(), strict=True):
        assert after.detach().numpy() == pytest.approx(before.detach().numpy(), abs=1e-6)


@pytest.mark.slow
def test_a_stopped_cold_start_goes_on_bit_by_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import shutil

    from safetensors.numpy import load_file

    saving = {"save_strategy": "steps", "save_steps": 6}
    cold_start(tmp_path / "whole", **saving)
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "stopped" / "checkpoint-6")
    capsys.readouterr()
    cold_start(tmp_path / "stopped", **saving)
    assert capsys.readouterr().out.count("'loss'") == 1  # of steps 6 to 10; the first five are not trained again
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all((whole[name] == stopped[name]).all() for name in whole)


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_checkpoint_does_what_its_card_says():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mini_r1.intervals import wilson_interval

    card = json.loads((TINY_MODEL / "cold_start.json").read_text())
    assert sum(path.stat().st_size for path in TINY_MODEL.iterdir()) <= 12 * 2**20
    sizes = {"dataset_rows": 200_000, "held_out_puzzles": 20_000}
    split = TASK.load(PuzzleArguments("generate", dataset_seed=0, **sizes), False)
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY_MODEL), AutoTokenizer.from_pretrained(TINY_MODEL)
    assert model.num_parameters() == card["parameters"]
    measured = sample_held_out(model, tokenizer, split.held_out[:256], 384)
    # z = 4: other threads and library builds sample differently, so only a real difference may fail this.
    low, high = wilson_interval(measured["pass@1"] * 256, 256, z=4)
    assert low < card["pass@1"] < high
    for sign, counted in measured["arithmetic_right"].items():
        right, total = (int(n) for n in counted.split(" of "))
        assert right / total > 0.9, sign
