"""The supervised cold start: its order of examples, its arithmetic check, and a short real run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, TINY_MODEL, flags
from mini_r1.countdown import TASK
from mini_r1.countdown.dataset import PuzzleArguments
from mini_r1.countdown.generator import generate_puzzles
from run_cold_start import (
    ColdStartArguments,
    check_arithmetic,
    main,
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
    args = ColdStartArguments(persistent_first_share=0.5, give_up_share=1.0, give_up_rate=1.0, max_attempts=100)
    puzzles = generate_puzzles(450, seed=0, number_counts=[3])
    examples = write_traces(puzzles, 400, 0, args)
    assert {puzzle for puzzle, _ in examples} <= set(puzzles)
    early, late = ([("I give up." in trace) for _, trace in half] for half in (examples[:200], examples[200:]))
    assert not any(early)
    assert sum(late) > 100  # all but those who succeed at once


@pytest.mark.slow
def test_a_short_cold_start_leaves_a_checkpoint_to_resume_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    settings = {
        "max_steps": 10,
        "logging_steps": 5,
        "per_device_train_batch_size": 8,
        "dataset_rows": 500,
        "max_attempts": 2,
        "eval_puzzles": 8,
        "save_strategy": "no",
        "report_to": "none",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "output_dir": tmp_path,
    }
    main(["--config", str(ROOT / "receipes" / "sft-tiny-countdown.yaml"), *flags(**settings)])
    result = json.loads((tmp_path / "cold_start.json").read_text())
    assert result["puzzles"] == sum(result["reasons"].values()) == 8
    assert capsys.readouterr().out.count("'loss'") == 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.num_parameters() == result["parameters"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.use_cache
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_checkpoint_does_what_its_card_says():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mini_r1.intervals import wilson_interval

    card = json.loads((TINY_MODEL / "cold_start.json").read_text())
    assert sum(path.stat().st_size for path in TINY_MODEL.iterdir()) <= 12 * 2**20
    sizes = {"dataset_rows": 100_000, "held_out_puzzles": 10_000}
    split = TASK.load(PuzzleArguments("generate", dataset_seed=0, number_counts=[3], **sizes), False)
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY_MODEL), AutoTokenizer.from_pretrained(TINY_MODEL)
    assert model.num_parameters() == card["parameters"]
    measured = sample_held_out(model, tokenizer, split.held_out[:256], 288)
    # z = 4: other threads and library builds sample differently, so only a real difference may fail this.
    low, high = wilson_interval(measured["pass@1"] * 256, 256, z=4)
    assert low < card["pass@1"] < high
    right, total = (int(n) for n in measured["arithmetic_right"]["+"].split(" of "))
    assert right / total > 0.9
