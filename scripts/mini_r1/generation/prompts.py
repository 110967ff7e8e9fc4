"""Text that a model continues, through whatever chat template its tokenizer brings; and what a tokenizer must bring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mini_r1.common import RecipeError, first_line

# A thinking block without content, or one that is open, at the end of a text.
_BLANK_THINKING = re.compile(r"(<think>\s*(</think>\s*)?)*$")


def settle_tokenizer(tokenizer: Any) -> None:
    """Pads with the end-of-text token where the tokenizer has none for padding, as TRL does.

    Raises:
        ValueError: when it cannot be trained or sampled with.
    """
    if not tokenizer("1 + 2")["input_ids"]:  # transformers makes an empty tokenizer where there are no files of one
        raise ValueError("it has no tokenizer")
    if tokenizer.eos_token is None:
        raise ValueError("it has no end-of-text token: name its eos_token in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def prompt_text(tokenizer: Any, system: str, user: str, prefill: str, kwargs: Mapping[str, Any] | None = None) -> str:
    """System and user turns, and an assistant's turn that begins with the prefill and stays open.

    A system turn that the template refuses or leaves out becomes the beginning of the user's. A thinking block that it
    writes into the assistant's turn by itself (Qwen3, GLM-4.5) is taken off, so that the prefill opens the only one.

    Prompts are tokenized with special tokens, so a BOS that the template wrote is taken off again where the tokenizer
    adds its own: the model sees exactly one.

    Args:
        tokenizer: a transformers tokenizer; without a chat template (base models, None) the prompt is plain text.
        system, user: what the turns say.
        prefill: `<think>`.
        kwargs: `chat_template_kwargs`, variables for the template.

    Raises:
        RecipeError: when the template cannot render this.
    """
    told = f"{system}\n\n{user}"
    if not getattr(tokenizer, "chat_template", None):
        if kwargs:
            raise RecipeError(
                "chat_template_kwargs: the tokenizer has no chat template that they could reach: remove it"
            )
        return f"{told}\n\n{prefill}"
    text = _rendered(tokenizer, [[("system", system), ("user", user)], [("user", told)]], prefill, kwargs or {})
    text = _BLANK_THINKING.sub("", text) + prefill
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        text = text.removeprefix(bos)
    return text


def _rendered(tokenizer: Any, ways: list[list[tuple[str, str]]], prefill: str, kwargs: Mapping[str, Any]) -> str:
    """The chat in the first of the ways, each a list of (role, content), that the template renders in full."""
    from jinja2 import TemplateError

    fault = ""
    for turns in ways:
        messages = [{"role": role, "content": content} for role, content in (*turns, ("assistant", prefill))]
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True, **kwargs)
        except (TemplateError, TypeError, ValueError) as error:
            fault = first_line(error)
            continue
        if all(content.strip() in text for _, content in turns):
            return text
        fault = "it leaves text out"
    change = "choose another model_name_or_path or tokenizer_name_or_path" + " or chat_template_kwargs" * bool(kwargs)
    raise RecipeError(f"the chat template of {tokenizer.name_or_path} does not render the prompt ({fault}): {change}")
