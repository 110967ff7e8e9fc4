"""The prompt on two tokenizer families, and the tiny model's tokenizer across a save and a load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mini_r1.countdown.puzzle import Puzzle
from run_r1_grpo import build_prompt

pytestmark = pytest.mark.slow

PUZZLE = Puzzle((44, 19, 35), 98)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def llama_tokenizer(chat_template: str | None) -> Any:
    """A tokenizer that puts BOS in front of whatever it tokenizes, as Llama's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        show_progress=False,
    )
    bpe.train_from_iterator(["numbers and targets"], trainer)
    bos = bpe.token_to_id("<|begin_of_text|>")
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=chat_template
    )


def qwen_tokenizer() -> Any:
    from run_cold_start import make_tokenizer

    return make_tokenizer(["44+19=63, 63+35=98 yes!\n"] * 10, 540)


def check_content(text: str) -> None:
    assert text.endswith("<think>")
    assert text.count("[44, 19, 35]") == 1
    assert "98" in text
    for sign in ("+", "-", "*", "/"):
        assert f"({sign})" in text
    assert "exactly once" in text
    assert "<answer> (1 + 2) / 3 </answer>" in text


@pytest.mark.parametrize(
    "template",
    [LLAMA_TEMPLATE, LLAMA_TEMPLATE.removeprefix("{{ bos_token }}"), None],
    ids=["template writes BOS", "template leaves BOS to the tokenizer", "base model"],
)
def test_llama_type_sees_exactly_one_bos(template: str | None):
    tokenizer = llama_tokenizer(template)
    text = build_prompt(tokenizer, PUZZLE)
    check_content(text)
    ids = tokenizer(text)["input_ids"]  # as the trainer tokenizes string prompts
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_qwen_type_has_no_bos_and_an_open_assistant_turn():
    tokenizer = qwen_tokenizer()
    assert tokenizer.bos_token is None
    text = build_prompt(tokenizer, PUZZLE)
    check_content(text)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>assistant\n<think>")
    assert text.count("<|im_start|>") == 3
    assert text.count("<|im_end|>") == 2  # the assistant's turn stays open


def test_base_model_without_a_template_gets_plain_text():
    text = build_prompt(None, PUZZLE)
    check_content(text)
    assert "<|" not in text


def test_numbers_keep_their_order():
    assert "[9, 1, 5]" in build_prompt(None, Puzzle((9, 1, 5), 13))


def test_tiny_tokenizer_survives_saving_and_loading(tmp_path: Path):
    from transformers import AutoConfig, AutoTokenizer, Qwen2Config

    tokenizer = qwen_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)  # model_type decides which class is rebuilt
    assert AutoConfig.from_pretrained(tmp_path).model_type == "qwen2"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        build_prompt(tokenizer, PUZZLE) + "\n44+19=63, 63+35=98 yes!\n</think>\n<answer>(44+19)+35</answer><|im_end|>",
        "words it never saw, été, 数字 and 12345\n\n",
    ]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert build_prompt(loaded, PUZZLE) == build_prompt(tokenizer, PUZZLE)


def test_shipped_tokenizer_reads_numbers_and_tags_whole():
    from transformers import AutoTokenizer

    from conftest import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    assert tokenizer.tokenize("9 98 200 1234") == ["9", "Ġ", "98", "Ġ", "200", "Ġ", "123", "4"]
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tokenizer.tokenize(tag) == [tag]
        assert tokenizer.decode(tokenizer(tag)["input_ids"], skip_special_tokens=True) == tag
    assert len(tokenizer(build_prompt(tokenizer, PUZZLE))["input_ids"]) < 40
