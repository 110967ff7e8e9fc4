"""From a model's text to a verdict.

A *completion* is what the model wrote. The prompt already ends in `<think>`, so the *response*, the text that is
judged, is that prefill plus the completion. Nothing here knows about trainers or tensors; standard library only.

    >>> text = response(" 44+19+35 is 98.</think>\\n<answer> 44 + 19 + 35 </answer>")
    >>> has_format(text), answers_in(text)
    (True, [' 44 + 19 + 35 '])
"""

from __future__ import annotations

import re
from typing import Any

from mini_r1.task import Task, Verdict

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# What the common model families write at the end of a turn, when decoding does not skip special tokens.
END_OF_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")
_END = re.compile(rf"(?:\s|{'|'.join(re.escape(token[::-1]) for token in END_OF_TEXT)})*")  # of a text read backwards


# --------------------------------------------------------------------------------------------------------------------
# Reading a completion
# --------------------------------------------------------------------------------------------------------------------


def message_text(completion: Any) -> str:
    """The text of a completion, whether it is a string or a list of chat messages.

    Args:
        completion: a string, or a list of `{"role": ..., "content": ...}` whose contents are strings or lists of
            `{"type": "text", "text": ...}` parts. Anything else has no text.
    """
    if isinstance(completion, list):
        parts = [part for part in completion if isinstance(part, dict)]
        return "".join(message_text(part.get("content", part.get("text"))) for part in parts)
    return completion if isinstance(completion, str) else ""


def response(completion: Any, prompt: Any = None) -> str:
    """The whole assistant turn: the prefilled `<think>` and the completion, without end-of-text tokens.

    Args:
        completion: a string or a message list.
        prompt: what was completed, a string or a message list; the prefill is added if it ends with `<think>`. None
            when unknown: then the prefill is added unless the completion begins with `<think>`.
    """
    text = message_text(completion)
    prompt_text = message_text(prompt[-1:] if isinstance(prompt, list) else prompt)
    prefilled = prompt_text.rstrip().endswith(THINK_OPEN) if prompt_text else not text.lstrip().startswith(THINK_OPEN)
    text = _END.sub("", text[::-1], count=1)[::-1]
    return THINK_OPEN + text if prefilled else text


_FORM = re.compile(rf"\s*{THINK_OPEN}(.*){THINK_CLOSE}\s*{ANSWER_OPEN}(.*){ANSWER_CLOSE}\s*", re.DOTALL)
# Invisible, yet letters by Unicode's classification: the Hangul fillers.
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0"


def _says_something(text: str) -> bool:
    """Whether there is a letter or digit: invisible characters and lone punctuation are not reasoning."""
    return any(char.isalnum() and char not in _INVISIBLE_LETTERS for char in text)


def has_format(text: str) -> bool:
    """Whether a response is one `<think>…</think>` and one `<answer>…</answer>`, with a letter or digit in each.

    Only white space may stand before, between and after.
    """
    form = _FORM.fullmatch(text)
    once = all(text.count(tag) == 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE))
    return form is not None and once and all(map(_says_something, form.groups()))


def thinking(text: str) -> str:
    """The reasoning: the text before the first `</think>`, or before `<answer>` when it is never closed."""
    body = text.partition(THINK_OPEN)[2] if THINK_OPEN in text else text
    end = THINK_CLOSE if THINK_CLOSE in body else ANSWER_OPEN
    return body.partition(end)[0].strip()


def answers_in(text: str) -> list[str]:
    """The answers after the reasoning, as they are between the tags: none, one, or two for "more than one".

    Only text after the first `</think>` counts, so an answer quoted while thinking is never graded. A response that
    never closes its reasoning may still offer a single answer.
    """
    after = text.partition(THINK_CLOSE)[2] if THINK_CLOSE in text else text
    _, opened, rest = after.partition(ANSWER_OPEN)
    answer, closed, rest = rest.partition(ANSWER_CLOSE)
    several = after.count(ANSWER_OPEN) > 1 or after.count(ANSWER_CLOSE) > 1
    return [answer] * (2 if several else bool(opened and closed))


def judge(task: Task, text: str, puzzle: Any) -> Verdict:
    """The verdict on a response to a puzzle of the task: one function for rewards, sample logs and evaluation."""
    answers = answers_in(text)
    if len(answers) != 1:
        return Verdict(task.reasons("several_answers" if answers else "no_answer"))
    return task.check(answers[0], puzzle)
