"""Sampling that lets finished rows go draws from the distribution of transformers' own loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from conftest import TINY_MODEL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny() -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL).eval(), tokenizer


def draw(tiny: Any, puzzles: int, completions: int, ours: bool, **settings: Any) -> Any:
    """Prompts of different lengths, continued: (B, T) ids and the length of the prompts."""
    import torch
    from transformers import GenerationConfig, set_seed

    from mini_r1.countdown.generator import generate_puzzles
    from mini_r1.generation.rollouts import decoding
    from run_r1_grpo import build_prompt

    model, tokenizer = tiny
    prompts = [build_prompt(tokenizer, p) for p in generate_puzzles(puzzles, seed=3, number_counts=(2, 3, 4))]
    inputs = tokenizer([p for p in prompts for _ in range(completions)], return_tensors="pt", padding=True)
    config = GenerationConfig(
        **{"max_new_tokens": 160, "do_sample": True, "temperature": 1.0, "top_k": 0} | settings,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(0)
    with torch.no_grad():
        output = model.generate(**inputs, generation_config=config, **(decoding(model) if ours else {}))
    return output, inputs["input_ids"].size(1), inputs["attention_mask"]


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="greedy"),
    pytest.param({"repetition_penalty": 1.2}, id="a processor that looks at what was written"),
    pytest.param({"min_new_tokens": 30}, id="a processor that looks at the length"),
])  # fmt: skip
def test_greedy_completions_are_the_same(tiny: Any, settings: dict):
    import torch

    (ours, length, _), (theirs, _, _) = (
        draw(tiny, 24, 1, which, do_sample=False, **settings) for which in (True, False)
    )
    lengths = (theirs[:, length:] != tiny[1].pad_token_id).sum(1)
    assert len(lengths.unique()) > 3  # rows left the batch one after the other
    assert torch.equal(ours, theirs)


def test_the_model_gives_what_was_sampled_the_log_probabilities_that_sampling_saw(tiny: Any):
    """As seen by a processor of the last scores, against one forward pass over whole completions."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    model, tokenizer = tiny
    seen: list[tuple[Any, Any]] = []

    class Watch(LogitsProcessor):
        def __call__(self, ids: Any, scores: Any) -> Any:
            seen.append((ids.clone(), scores.log_softmax(-1)))
            return scores

    generate, model.generate = model.generate, partial(
        model.generate, logits_processor=LogitsProcessorList([Watch()])
    )  # fmt: skip
    try:
        output, length, mask = draw(tiny, 12, 2, True)
    finally:
        model.generate = generate
    whole = torch.cat([mask, torch.ones_like(output[:, length:])], dim=1)
    with torch.no_grad():
        positions = (whole.cumsum(-1) - 1).clamp(min=0)
        logps = model(input_ids=output, attention_mask=whole, position_ids=positions).logits.log_softmax(-1)
    assert len(seen[-1][0]) < len(seen[0][0])
    rows = {tuple(row.tolist()): i for i, row in enumerate(output)}
    checked = 0
    for ids, scores in seen:
        end = ids.size(1)
        for row, score in zip(ids.tolist(), scores, strict=True):
            match = [i for full, i in rows.items() if list(full[:end]) == row]
            if match and tokenizer.eos_token_id not in row[length:]:  # behind its end anything may stand
                torch.testing.assert_close(score, logps[match[0], end - 1], rtol=1e-4, atol=1e-4)
                checked += 1
    assert checked > 1000


def test_lengths_and_success_are_those_of_transformers(tiny: Any):
    """Two samples of 512 completions: means within four standard errors."""
    import torch

    stats = []
    for ours in (True, False):
        output, length, _ = draw(tiny, 64, 8, ours, max_new_tokens=120)
        written = (output[:, length:] != tiny[1].pad_token_id).sum(1).float()
        first = (output[:, length + 8] % 7).float()  # any function of the text
        stats.append(torch.stack([written, written**2 / 100, first]))
    a, b = stats
    error = ((a.var(1) + b.var(1)) / a.size(1)).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() < 4 * error).all()
    assert not torch.equal(a, b)


def test_other_models_keep_transformers_loop(tiny: Any):
    from transformers import BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM

    from mini_r1.generation.rollouts import decoding

    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16, "vocab_size": 64}
    sliding = Gemma2ForCausalLM(Gemma2Config(num_hidden_layers=2, num_key_value_heads=2, **small))
    assert decoding(sliding) == {}
    assert decoding(BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))) == {}
    assert decoding(tiny[0])
