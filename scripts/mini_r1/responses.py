"""From a model's text to a verdict.

A *completion* is what the model wrote. The prompt already ends in `<think>`, so the *response*, the text that is
judged, is that prefill plus the completion. Nothing here knows about trainers or tensors; standard library only.

    >>> text = response(" 44+19+35 is 98.</think>\\n<answer> 44 + 19 + 35 </answer>")
    >>> has_format(text), judge(text, nums=[44, 19, 35], target=98).reason.value
    (True, 'correct')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mini_r1.countdown.verifier import Reason, Verdict, check_equation

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# What the usual model families write at the end of a turn, when special tokens were not skipped in decoding.
END_OF_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")


# --------------------------------------------------------------------------------------------------------------------
# Reading a completion
# --------------------------------------------------------------------------------------------------------------------


def message_text(completion: Any) -> str:
    """The text of a completion, whether it is a string or a list of chat messages.

    Args:
        completion: a string, or a list of `{"role": ..., "content": ...}` whose contents are strings or lists of
            `{"type": "text", "text": ...}` parts. Anything else counts as no text.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        return ""
    contents = [message.get("content") for message in completion if isinstance(message, dict)]
    parts: list[str] = []
    for content in contents:
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            parts.extend(text for text in texts if isinstance(text, str))
    return "".join(parts)


def response(completion: Any, prompt: Any = None) -> str:
    """The whole assistant turn: the prefilled `<think>` and the completion, without end-of-text tokens.

    Args:
        completion: a string or a message list.
        prompt: the prompt that was completed, when known; the prefill is added exactly if it ends with `<think>`.
            When unknown, the prefill is added unless the completion opens with `<think>` itself.
    """
    text = message_text(completion)
    prompt_text = message_text(prompt[-1:] if isinstance(prompt, list) else prompt)
    prefilled = prompt_text.rstrip().endswith(THINK_OPEN) if prompt_text else not text.lstrip().startswith(THINK_OPEN)
    text = text.rstrip()
    while text.endswith(END_OF_TEXT):
        text = next(text.removesuffix(token) for token in END_OF_TEXT if text.endswith(token)).rstrip()
    return THINK_OPEN + text if prefilled else text


# Letters by Unicode's classification that show nothing: the Hangul fillers.
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0"


def _says_something(text: str) -> bool:
    """Whether there is a letter or digit: invisible characters and lone punctuation are not reasoning."""
    return any(char.isalnum() and char not in _INVISIBLE_LETTERS for char in text)


def has_format(text: str) -> bool:
    """Whether a response is one non-empty `<think>…</think>`, then one non-empty `<answer>…</answer>`, no more.

    Only white space may stand before, between and after.
    """
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return False
    before, _, rest = text.partition(THINK_OPEN)
    thinking, closed, rest = rest.partition(THINK_CLOSE)
    between, opened, rest = rest.partition(ANSWER_OPEN)
    answer, answered, after = rest.partition(ANSWER_CLOSE)
    return (
        bool(closed and opened and answered)
        and not (before.strip() or between.strip() or after.strip())
        and _says_something(thinking)
        and _says_something(answer)
    )


def thinking(text: str) -> str:
    """The reasoning: what stands before the first `</think>` (or `<answer>`, when the reasoning is never closed)."""
    body = text.partition(THINK_OPEN)[2] if THINK_OPEN in text else text
    end = THINK_CLOSE if THINK_CLOSE in body else ANSWER_OPEN
    return body.partition(end)[0].strip()


def extract_answer(text: str) -> str | Reason:
    """The one answer that follows the reasoning.

    Only text after the first `</think>` counts, so an answer quoted while thinking is never graded. A response that
    never closes its reasoning may still offer a single answer.

    Returns:
        The text between the tags, or `Reason.NO_ANSWER` / `Reason.SEVERAL_ANSWERS`.
    """
    after = text.partition(THINK_CLOSE)[2] if THINK_CLOSE in text else text
    if after.count(ANSWER_OPEN) > 1 or after.count(ANSWER_CLOSE) > 1:
        return Reason.SEVERAL_ANSWERS
    _, opened, rest = after.partition(ANSWER_OPEN)
    answer, closed, _ = rest.partition(ANSWER_CLOSE)
    return answer if opened and closed else Reason.NO_ANSWER


def judge(text: str, nums: Sequence[int], target: int) -> Verdict:
    """The verdict on a response: the same function for rewards, sample logs, evaluation and reports."""
    answer = extract_answer(text)
    if isinstance(answer, Reason):
        return Verdict(answer)
    return check_equation(answer, nums, target)
