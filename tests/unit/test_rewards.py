"""The two rewards of a completion: what counts as the format, and which answer is graded."""

import pytest

from mini_r1.countdown import TASK
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.verifier import Reason
from mini_r1.responses import judge, response
from run_r1_grpo import equation_reward_func, format_reward_func

NUMS, TARGET = [19, 35, 44], 98
RIGHT = "44 + 19 + 35"
WRONG = "44 + 35 - 19"
PROMPT = "Combine the numbers.\n\n<think>"
BARE_PROMPT = "Combine the numbers."
CHAT_PROMPT = [{"role": "user", "content": "Combine."}, {"role": "assistant", "content": "<think>"}]
BARE_CHAT_PROMPT = [{"role": "user", "content": "Combine. Think inside <think> </think>."}]


def assistant(content):
    return [{"role": "assistant", "content": content}]


def rewards(completion, prompt=None, nums=None, target=TARGET):
    """(format reward, equation reward) of one completion."""
    prompts = None if prompt is None else [prompt]
    (form,) = format_reward_func([completion], prompts=prompts)
    (equation,) = equation_reward_func([completion], target=[target], nums=[nums or NUMS], prompts=prompts)
    assert {type(form), type(equation)} == {float}
    return form, equation


# --------------------------------------------------------------------------------------------------------------------
# Whole completions
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "form", "equation"),
    [
        # The format and small departures from it that are meant to be allowed.
        pytest.param(f"Add them.</think>\n<answer>{RIGHT}</answer>", 1, 1, id="<think> is in the prompt"),
        pytest.param(f"Add them.</think>\n<answer> {RIGHT} </answer>", 1, 1, id="spaces around the answer"),
        pytest.param("Add them.</think>\n<answer>\n44 + 19\n+ 35\n</answer>", 1, 1, id="an answer of several lines"),
        pytest.param(f"Add them.</think><answer>{RIGHT}</answer>", 1, 1, id="nothing between the blocks"),
        pytest.param(f"Add them.</think>\n\n<answer>{RIGHT}</answer>", 1, 1, id="an empty line between the blocks"),
        pytest.param(f"Add them. </think>\n<answer>{RIGHT}</answer>", 1, 1, id="a space before </think>"),
        pytest.param(f"\nAdd\nthem.\n</think>\n<answer>{RIGHT}</answer>\n\n", 1, 1, id="white space at both ends"),
        pytest.param(
            f"Add them: 1 < 2 > 0.</think><answer>{RIGHT}</answer>", 1, 1, id="angle brackets that are no tag"
        ),
        pytest.param(f"就这样。</think><answer>{RIGHT}</answer>", 1, 1, id="reasoning in another script"),
        pytest.param(f"1</think><answer>{RIGHT}</answer>", 1, 1, id="a digit is reasoning"),
        pytest.param(f"Subtract.</think><answer>{WRONG}</answer>", 1, 0, id="the format pays for a wrong answer too"),
        pytest.param("Sums.</think><answer>I do not know</answer>", 1, 0, id="the format does not ask for an equation"),
        # Ends of text.
        pytest.param(f"Add.</think><answer>{RIGHT}</answer><|im_end|>", 1, 1, id="<|im_end|> at the end"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer><|endoftext|>", 1, 1, id="<|endoftext|> at the end"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer></s>", 1, 1, id="</s> at the end"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>\n<|im_end|>\n", 1, 1, id="end of text between line breaks"),
        pytest.param(
            f"Add.</think><answer>{RIGHT}</answer><|im_end|>\n<|endoftext|><|endoftext|></s>", 1, 1, id="several ends"
        ),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer><|im_end|>Bye", 0, 1, id="text after the end of text"),
        pytest.param(f"Add.</think><|im_end|><answer>{RIGHT}</answer>", 0, 1, id="end of text between the blocks"),
        pytest.param(f"Add.</think><answer>{RIGHT}<|im_end|></answer>", 1, 0, id="end of text inside the answer"),
        # Nothing inside.
        pytest.param(f"</think><answer>{RIGHT}</answer>", 0, 1, id="empty reasoning"),
        pytest.param(f" \n\t</think><answer>{RIGHT}</answer>", 0, 1, id="blank reasoning"),
        pytest.param(f"...</think><answer>{RIGHT}</answer>", 0, 1, id="reasoning of punctuation alone"),
        pytest.param(f"\u200b\u200b</think><answer>{RIGHT}</answer>", 0, 1, id="zero-width spaces as reasoning"),
        pytest.param(f"\ufeff\u2060</think><answer>{RIGHT}</answer>", 0, 1, id="other invisible characters"),
        pytest.param(f"\u3164\u3164</think><answer>{RIGHT}</answer>", 0, 1, id="Hangul fillers, invisible letters"),
        pytest.param("Add.</think><answer></answer>", 0, 0, id="empty answer"),
        pytest.param("Add.</think><answer> \n </answer>", 0, 0, id="blank answer"),
        pytest.param("Add.</think><answer>\u200b</answer>", 0, 0, id="a zero-width space as the answer"),
        # Text where none belongs.
        pytest.param(f"Add.</think>So: <answer>{RIGHT}</answer>", 0, 1, id="text between the blocks"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer> Easy.", 0, 1, id="text after the answer"),
        pytest.param(f"Add.</think>\u200b<answer>{RIGHT}</answer>", 0, 1, id="zero-width space between the blocks"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>Add.", 0, 1, id="the same with <think> written out"),
        pytest.param(f"Hi <think>Add.</think><answer>{RIGHT}</answer>", 0, 1, id="text before a written <think>"),
        # Tags missing or in the wrong place.
        pytest.param("", 0, 0, id="nothing"),
        pytest.param("Add them.", 0, 0, id="reasoning alone"),
        pytest.param("Add.</think>", 0, 0, id="no answer"),
        pytest.param(f"Add.</think>{RIGHT}", 0, 0, id="an answer without tags"),
        pytest.param(f"Add.<answer>{RIGHT}</answer>", 0, 1, id="reasoning never closed, a single answer"),
        pytest.param(f"<answer>{RIGHT}</answer>", 0, 1, id="an answer alone"),
        pytest.param(f"Add.<answer>{RIGHT}</answer></think>", 0, 0, id="an answer inside the reasoning alone"),
        pytest.param(f"Add.</think><answer>{RIGHT}", 0, 0, id="an answer never closed"),
        pytest.param(f"Add.</think>{RIGHT}</answer>", 0, 0, id="an answer never opened"),
        pytest.param(f"Add.</think></answer>{RIGHT}<answer>", 0, 0, id="answer tags the wrong way round"),
        pytest.param(f"Add.</THINK><ANSWER>{RIGHT}</ANSWER>", 0, 0, id="tags in capitals"),
        pytest.param(f"Add.</think >< answer>{RIGHT}</answer>", 0, 0, id="tags with spaces"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer></think>", 0, 1, id="reasoning closed twice"),
        pytest.param(f"Add.</think>Or.</think><answer>{RIGHT}</answer>", 0, 1, id="reasoning in two parts"),
        # More than one answer.
        pytest.param(f"Add.</think><answer>{RIGHT}</answer><answer>{RIGHT}</answer>", 0, 0, id="the same answer twice"),
        pytest.param(f"Add.</think><answer>{WRONG}</answer><answer>{RIGHT}</answer>", 0, 0, id="a second attempt"),
        pytest.param(f"Add.</think><answer><answer>{RIGHT}</answer></answer>", 0, 0, id="an answer in an answer"),
        pytest.param(f"Add.</think><answer><answer>{RIGHT}</answer>", 0, 0, id="an answer opened twice"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer></answer>", 0, 0, id="an answer closed twice"),
        pytest.param(f"<answer>{WRONG}</answer>Or<answer>{RIGHT}</answer>", 0, 0, id="two answers, no </think>"),
        # Answers quoted while thinking.
        pytest.param(
            f"Is it <answer>{WRONG}</answer>? No.</think><answer>{RIGHT}</answer>", 0, 1, id="a wrong one is not graded"
        ),
        pytest.param(
            f"Is it <answer>{RIGHT}</answer>? No.</think><answer>{WRONG}</answer>", 0, 0, id="nor is a right one"
        ),
        pytest.param(f"It goes <answer>.</think><answer>{RIGHT}</answer>", 0, 1, id="a tag mentioned is not graded"),
        # Answers that the verifier refuses.
        pytest.param(f"Add.</think><answer>{RIGHT} = 98</answer>", 1, 0, id="the result added"),
        pytest.param("Add.</think><answer>98</answer>", 1, 0, id="the target alone"),
        pytest.param("Add.</think><answer>44 + 44 + 10</answer>", 1, 0, id="other numbers"),
        pytest.param(f"Add.</think><answer>\\boxed{{{RIGHT}}}</answer>", 1, 0, id="LaTeX"),
        pytest.param(f"Add.</think><answer>{RIGHT} <think></answer>", 0, 0, id="a tag inside the answer"),
    ],
)
def test_rewards(completion, form, equation):
    assert rewards(completion) == (form, equation)
    # Neither the prompt, as long as it ends in <think>, nor the kind of completion changes anything.
    if not completion.lstrip().startswith("<think>"):
        assert rewards(completion, PROMPT) == (form, equation)
        assert rewards(assistant(completion), CHAT_PROMPT) == (form, equation)


@pytest.mark.parametrize(
    ("completion", "prompt", "form"),
    [
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", PROMPT, 1, id="prefilled"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", PROMPT + "\n", 1, id="prefilled, with a line break"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", CHAT_PROMPT, 1, id="prefilled, as messages"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>", PROMPT, 0, id="prefilled and repeated"),
        pytest.param(f"\n<think>Add.</think><answer>{RIGHT}</answer>", PROMPT, 0, id="prefilled and repeated below"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>", CHAT_PROMPT, 0, id="the same, as messages"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>", BARE_PROMPT, 1, id="not prefilled"),
        pytest.param(f" <think>Add.</think><answer>{RIGHT}</answer>", BARE_PROMPT, 1, id="not prefilled, space before"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", BARE_PROMPT, 0, id="not prefilled and forgotten"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", BARE_CHAT_PROMPT, 0, id="<think> within the prompt only"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>", BARE_CHAT_PROMPT, 1, id="written as asked for"),
        pytest.param(f"Add.</think><answer>{RIGHT}</answer>", None, 1, id="prompt unknown, <think> left out"),
        pytest.param(f"<think>Add.</think><answer>{RIGHT}</answer>", None, 1, id="prompt unknown, <think> written"),
        pytest.param(
            f"<think><think>Add.</think><answer>{RIGHT}</answer>", None, 0, id="prompt unknown, <think> written twice"
        ),
    ],
)
def test_think_is_counted_once_with_the_prompt(completion, prompt, form):
    # The equation is judged in any case.
    assert rewards(completion, prompt) == (form, 1)


@pytest.mark.parametrize(
    "completion",
    [
        pytest.param(None, id="None"),
        pytest.param(7.5, id="a number"),
        pytest.param(b"Add.", id="bytes"),
        pytest.param([], id="no messages"),
        pytest.param([None, 7, ["Add."]], id="messages that are none"),
        pytest.param(assistant(None), id="no content"),
    ],
)
def test_what_is_no_text_has_no_reward_and_stops_no_run(completion):
    assert rewards(completion) == rewards(completion, PROMPT) == (0, 0)


def test_message_lists_are_rewarded_like_strings():
    parts = [{"type": "text", "text": "Add.</think>"}, {"type": "text", "text": f"<answer>{RIGHT}</answer>"}]
    assert rewards(assistant(parts)) == (1, 1)
    assert rewards(assistant(parts[:1]) + assistant(parts[1:]), CHAT_PROMPT) == (1, 1)


# --------------------------------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------------------------------


def test_each_completion_is_judged_by_its_own_puzzle_and_prompt():
    completions = [
        f"Add.</think><answer>{RIGHT}</answer>",
        f"Add.</think><answer>{RIGHT}</answer>",
        "Multiply.</think><answer>6 * 7</answer>",
        "<think>Multiply.</think><answer>7 * 6</answer>",
        "Hm.",
    ]
    nums, target = [NUMS, [44, 19, 36], [6, 7], [6, 7], [6, 7]], [98, 98, 42, 42, 42]
    prompts = [PROMPT, PROMPT, BARE_PROMPT, BARE_PROMPT, PROMPT]
    assert format_reward_func(completions, prompts=prompts, nums=nums, target=target) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert equation_reward_func(completions, target=target, nums=nums, prompts=prompts) == [1.0, 0.0, 1.0, 1.0, 0.0]


def test_other_columns_are_ignored_and_empty_batches_have_no_rewards():
    extra = {"completion_ids": [[1, 2]], "trainer_state": None, "difficulty": ["easy"]}
    completions = [f"Add.</think><answer>{RIGHT}</answer>"]
    assert format_reward_func(completions, **extra) == [1.0]
    assert equation_reward_func(completions, target=[98], nums=[NUMS], **extra) == [1.0]
    assert format_reward_func([]) == equation_reward_func([], target=[], nums=[]) == []


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        equation_reward_func(["a", "b"], target=[1], nums=[[1], [1]])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        format_reward_func(["a", "b"], prompts=[PROMPT])


# --------------------------------------------------------------------------------------------------------------------
# The article's answers
# --------------------------------------------------------------------------------------------------------------------

# Puzzles with the answers printed in "Mini-R1: Reproduce Deepseek R1 aha moment", Philipp Schmid, January 2025.
ARTICLE = [
    ([14, 70, 80], 85, "80 + (70 / 14)"),
    ([1, 21, 90], 68, "90 - (21 + 1)"),
    ([59, 80, 66], 45, "(59 + 66) - 80"),
    ([61, 4, 94, 21], 50, "(94 - 61) + (21 - 4)"),
    ([63, 25, 57], 31, "63 + 25 - 57"),
    ([39, 16, 55], 78, "55 - 16 + 39"),
    ([21, 5, 40], 24, "5 + 40 - 21"),
    ([75, 99, 62, 34], 72, "75 + 62 - 99 + 34"),
]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("Let me see, this works.</think>\n<answer> {} </answer>", id="</think> and a line break"),
        pytest.param("Let me see, this works. </think>\n<answer>{}</answer>", id="a space before </think>"),
        pytest.param("Let me see.\nThis works.\n</think>\n<answer> {} </answer>", id="</think> on its own line"),
    ],
)
@pytest.mark.parametrize(("nums", "target", "answer"), ARTICLE, ids=[f"{nums} to {t}" for nums, t, _ in ARTICLE])
def test_the_articles_successes_are_successes(layout, nums, target, answer):
    completion = layout.format(answer)
    assert rewards(completion, PROMPT, nums, target) == (1, 1)


def test_the_articles_television_answer_uses_a_number_three_times():
    completion = "Nine hundred and the rest.</think>\n<answer> (100 * (3 * 3)) + (50 + 6 / 3) </answer>"
    assert judge(TASK, response(completion), Puzzle([25, 50, 75, 100, 3, 6], 952)).reason is Reason.WRONG_NUMBERS
    assert rewards(completion, PROMPT, [25, 50, 75, 100, 3, 6], 952) == (1, 0)
