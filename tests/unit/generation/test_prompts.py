"""Prompts through the chat templates that users bring, and tokenizers that lack what training needs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
import play
import run_r1_grpo
from conftest import TINY_MODEL, TINY_RECIPE
from mini_r1.common import RecipeError, UserError
from mini_r1.countdown import SYSTEM_PROMPT, TASK, USER_PROMPT
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.recipe.parsing import read_recipe
from run_r1_grpo import build_prompt, prompt_dataset

pytestmark = pytest.mark.slow

PUZZLE = Puzzle((44, 19, 35), 98)
USER = USER_PROMPT.format(nums=[44, 19, 35], target=98)
TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
FOR_IMAGES = ("idefics3", "llava_next", "smolvlm")  # they take contents that are lists of parts
CHATML = (TINY_MODEL / "chat_template.jinja").read_text()
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATING = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
SILENT = CHATML.replace("for message in messages", "for message in messages if message['role'] != 'system'")
REFUSED = r"the chat template of \S+ does not render the prompt \(.+\): choose another model_name_or_path"
WITH_LEVEL = "Effort: {{ effort }}\n" + CHATML


def tokenizer_with(template: str | None, **tokens: object) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def shipped(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


# ---- templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_every_template_of_trl_opens_one_thinking_block_or_is_refused(name: str):
    tokenizer = tokenizer_with(shipped(name), bos_token="<|endoftext|>")
    for kwargs in (None, {"enable_thinking": False}, {"enable_thinking": True}):
        if name.removesuffix("_training") in FOR_IMAGES:
            with pytest.raises(RecipeError, match=REFUSED):
                build_prompt(tokenizer, PUZZLE, TASK, kwargs)
            continue
        before, user, begun = build_prompt(tokenizer, PUZZLE, TASK, kwargs).partition(USER)
        assert SYSTEM_PROMPT in before
        assert user
        assert begun.endswith("<think>")
        assert (begun.count("<think>"), begun.count("</think>")) == (1, 0)


@pytest.mark.parametrize(
    ("template", "begun"),
    [
        pytest.param(shipped("qwen3_training"), "<|im_end|>\n<|im_start|>assistant\n<think>", id="Qwen3"),
        pytest.param(shipped("qwen3_5_think"), "<|im_end|>\n<|im_start|>assistant\n<think>", id="Qwen3.5"),
        pytest.param(shipped("glm4moe"), "<|assistant|>\n<think>", id="GLM-4.5"),
        pytest.param(shipped("deepseek_r1_distill"), "<｜Assistant｜><think>", id="DeepSeek-R1"),
        pytest.param(shipped("nemotron_3_nano"), "<|im_end|>\n<|im_start|>assistant\n<think>", id="Nemotron 3"),
        pytest.param(shipped("gptoss"), "<|end|><|start|>assistant<|channel|>final<|message|><think>", id="a channel"),
        pytest.param(
            CHATML.replace("{{ '<|im", "{% if message.role == 'assistant' %}<think>\n{% endif %}{{ '<|im"),
            "<|im_end|>\n<think>\n<|im_start|>assistant\n<think>",
            id="only what stands at the end is taken off",
        ),
    ],
)
def test_the_assistants_turn_begins_as_the_family_writes_it(template: str, begun: str):
    assert build_prompt(tokenizer_with(template), PUZZLE).partition(USER)[2] == begun


@pytest.mark.parametrize("template", [CHATML, shipped("qwen2_5")], ids=["the tiny model", "Qwen2.5"])
def test_the_prompts_of_the_recipes_models_stay_as_they_are(template: str):
    expected = (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{USER}<|im_end|>\n"
        "<|im_start|>assistant\n<think>"
    )
    assert build_prompt(tokenizer_with(template), PUZZLE) == expected


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        pytest.param(shipped("gemma"), "<start_of_turn>user\n", id="Gemma 2"),
        pytest.param(NO_SYSTEM + CHATML, "<|im_start|>user\n", id="refuses a system turn"),
        pytest.param(ALTERNATING + CHATML, "<|im_start|>user\n", id="wants alternating roles"),
        pytest.param(SILENT, "<|im_start|>user\n", id="leaves a system turn out"),
    ],
)
def test_without_a_system_turn_the_users_says_both(template: str, opening: str):
    text = build_prompt(tokenizer_with(template), PUZZLE)
    assert text.count(SYSTEM_PROMPT) == 1
    assert f"{opening}{SYSTEM_PROMPT}\n\n{USER}" in text


@pytest.mark.parametrize(
    ("template", "kwargs", "message"),
    [
        pytest.param("{% for m in %}", None, "does not render the prompt", id="no template at all"),
        pytest.param("{{ messages[0].content + 1 }}", None, "does not render the prompt", id="an error of Python's"),
        pytest.param("{{ messages[0].content }}", None, "final message does not appear", id="no assistant's turn"),
        pytest.param(
            "{{ messages[-1].content }}", None, "it leaves text out", id="neither the user's nor the system's text"
        ),
        pytest.param(CHATML, {"tokenize": True}, "tokenize.*or chat_template_kwargs", id="an argument that is ours"),
        pytest.param(CHATML, [1], "must be a mapping.*or chat_template_kwargs", id="kwargs that are none"),
        pytest.param(None, {"effort": "low"}, "^chat_template_kwargs: .* remove", id="kwargs without a template"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(template: str | None, kwargs: Any, message: str):
    with pytest.raises(RecipeError, match=message):
        build_prompt(tokenizer_with(template), PUZZLE, TASK, kwargs)


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def changed_model(folder: Path, template: str = CHATML, **tokens: object) -> Path:
    """The tiny model with another template, and with some of its tokenizer's settings changed."""
    shutil.copytree(TINY_MODEL, folder)
    (folder / "chat_template.jinja").write_text(template)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokens))
    return folder


def test_a_tokenizer_that_is_nowhere_is_one_line_also_for_a_dry_run():
    from mini_r1.training.start import load_tokenizer

    for dry_run in (False, True):
        with pytest.raises(RecipeError, match="tokenizer_name_or_path: cannot load the tokenizer of '/not/a/folder'"):
            load_tokenizer(recipe_with("--tokenizer_name_or_path", "/not/a/folder", "--dry_run", dry_run))


def recipe_with(*overrides: object) -> Any:
    return read_recipe(["--config", str(TINY_RECIPE), *map(str, overrides)], TASK)


BAD_MODELS = [
    pytest.param({"eos_token": None, "pad_token": None}, "it has no end-of-text token", id="neither end nor padding"),
    pytest.param({"eos_token": None}, "it has no end-of-text token", id="padding alone"),
    pytest.param({"template": shipped("smolvlm")}, "does not render the prompt", id="a template for images"),
]


@pytest.mark.parametrize("key", ["model_name_or_path", "tokenizer_name_or_path"])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("changes", "message"), BAD_MODELS)
def test_a_run_and_its_dry_run_refuse_the_same(changes: Any, message: str, dry_run: bool, key: str, tmp_path: Path):
    from mini_r1.training.start import load_tokenizer

    recipe = recipe_with(f"--{key}", changed_model(tmp_path / "model", **changes), "--dry_run", dry_run)
    with pytest.raises(RecipeError, match=message) as caught:
        load_tokenizer(recipe)
    assert key in str(caught.value)


def test_a_dry_run_comes_to_that_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = changed_model(tmp_path / "model", eos_token=None, pad_token=None)
    words = ["--config", TINY_RECIPE, "--model_name_or_path", model, "--output_dir", tmp_path / "run", "--dry_run"]
    with pytest.raises(RecipeError, match="model_name_or_path: cannot load the tokenizer of "):
        run_r1_grpo.main([str(word) for word in words])
    assert "could start" not in capsys.readouterr().out


def test_a_dry_run_does_not_look_for_a_tokenizer_elsewhere(capsys: pytest.CaptureFixture[str]):
    from mini_r1.training.start import load_tokenizer

    recipe = recipe_with("--model_name_or_path", "nobody/nothing-is-cached", "--dry_run", True)
    assert load_tokenizer(recipe) is None
    assert "tokenizer:  nobody/nothing-is-cached, not looked at" in capsys.readouterr().out


def test_an_end_token_alone_pads_as_well(tmp_path: Path):
    from mini_r1.training.start import load_tokenizer

    model = changed_model(tmp_path / "model", pad_token=None)
    assert load_tokenizer(recipe_with("--model_name_or_path", model)).pad_token == "<|im_end|>"


def playing(model: Path) -> None:
    play.main([str(model), "--nums", "44,19,35", "--target", "98", "--max_completion_length", "2"])


def evaluating(model: Path) -> None:
    flags = "--puzzles generate --num_puzzles 2 --max_completion_length 2 --backend transformers --output".split()
    evaluate.main([str(model), *flags, str(model / "evaluation")])


@pytest.mark.parametrize("program", [playing, evaluating])
@pytest.mark.parametrize(("changes", "message"), BAD_MODELS)
def test_play_and_evaluate_refuse_in_one_line(
    program: Callable[[Path], None], changes: Any, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message):
        program(changed_model(tmp_path / "model", **changes))


# ---- chat_template_kwargs ------------------------------------------------------------------------------------------


def test_chat_template_kwargs_reach_the_prompts_of_training(tmp_path: Path):
    from mini_r1.training.start import load_tokenizer

    model = changed_model(tmp_path / "model", WITH_LEVEL)
    kwargs = json.dumps({"effort": "low"})
    recipe = recipe_with("--model_name_or_path", model, "--chat_template_kwargs", kwargs)
    (row,) = prompt_dataset([PUZZLE], load_tokenizer(recipe), recipe)
    assert row["prompt"].startswith("Effort: low\n<|im_start|>system")


@pytest.mark.parametrize(("module", "drawer"), [(play, "generate"), (evaluate, "sample")])
def test_chat_template_kwargs_of_a_run_reach_play_and_evaluate(
    module: Any, drawer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = changed_model(tmp_path / "run", WITH_LEVEL)
    recipe = {"model_name_or_path": str(changed_model(tmp_path / "base", WITH_LEVEL)), "number_counts": [3]}
    recipe |= {"dataset_id_or_path": "generate", "dataset_rows": 50, "chat_template_kwargs": {"effort": "low"}}
    (run / "run.json").write_text(json.dumps({"name": "run", "recipe": recipe, "split": {"share": 0.1}}))
    seen: list[str] = []
    draw = getattr(module, drawer)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.extend(text for argument in args if isinstance(argument, list) for text in argument)
        return draw(*args, **kwargs)

    monkeypatch.setattr(module, drawer, watched)
    (playing if module is play else evaluating)(run)
    assert seen
    assert all(prompt.startswith("Effort: low\n<|im_start|>system") for prompt in seen if isinstance(prompt, str))


def test_a_run_with_other_chat_template_kwargs_is_another_run():
    from mini_r1.run_folder.resume import identity

    fixed = identity(recipe_with("--chat_template_kwargs", json.dumps({"effort": "low"})))["fixed"]
    assert fixed["chat_template_kwargs"] == {"effort": "low"}
