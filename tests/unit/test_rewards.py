"""From a completion to its rewards: what counts as the format, what counts as the answer, and signs of search."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.countdown.verifier import Reason
from mini_r1.responses import END_OF_TEXT, extract_answer, has_format, judge, message_text, response, thinking
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
# Rewards of whole completions
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


@pytest.mark.parametrize("token", END_OF_TEXT)
def test_every_end_of_text_is_taken_off(token):
    assert rewards(f"Add.</think><answer>{RIGHT}</answer>{token}{token}") == (1, 1)
    assert response(f"Add. {token}\n", PROMPT) == "<think>Add."
    assert response(f"{token} Add.", PROMPT) == f"<think>{token} Add."


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
    ("completion", "text"),
    [
        pytest.param("Add.", "Add.", id="a string"),
        pytest.param(assistant("Add."), "Add.", id="one message"),
        pytest.param(assistant([{"type": "text", "text": "Add."}]), "Add.", id="content in parts"),
        pytest.param(
            assistant([{"type": "text", "text": "Ad"}, {"type": "text", "text": "d."}]), "Add.", id="several parts"
        ),
        pytest.param(assistant("Ad") + assistant("d."), "Add.", id="several messages"),
        pytest.param(
            assistant([{"type": "image"}, {"type": "text", "text": "Add."}]), "Add.", id="an image is no text"
        ),
        pytest.param(
            assistant([{"type": "image", "text": None}, {"type": "text", "text": "Add."}]), "Add.", id="nor is None"
        ),
        pytest.param(assistant(None), "", id="no content"),
        pytest.param([{"role": "assistant"}], "", id="content missing"),
        pytest.param(assistant(7), "", id="content that is a number"),
        pytest.param(assistant([None, 7, "Add."]), "", id="parts that are none"),
        pytest.param([], "", id="no messages"),
        pytest.param([None, 7, ["Add."]], "", id="messages that are none"),
        pytest.param(None, "", id="None"),
        pytest.param(7.5, "", id="a number"),
        pytest.param({"content": "Add."}, "", id="a message outside a list"),
        pytest.param(b"Add.", "", id="bytes"),
        pytest.param(object(), "", id="any object"),
    ],
)
def test_message_text(completion, text):
    assert message_text(completion) == text
    assert rewards(completion) == (0, 0)  # none of these is an answer, and none may stop a training run
    assert rewards(completion, PROMPT) == (0, 0)


def test_message_lists_are_rewarded_like_strings():
    parts = [{"type": "text", "text": "Add.</think>"}, {"type": "text", "text": f"<answer>{RIGHT}</answer>"}]
    assert rewards(assistant(f"Add.</think><answer>{RIGHT}</answer>")) == (1, 1)
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


def test_columns_of_other_data_are_ignored():
    completions = [f"Add.</think><answer>{RIGHT}</answer>"]
    extra = {"completion_ids": [[1, 2]], "trainer_state": None, "difficulty": ["easy"]}
    assert format_reward_func(completions, **extra) == [1.0]
    assert equation_reward_func(completions, target=[98], nums=[NUMS], **extra) == [1.0]


def test_empty_batches_have_no_rewards():
    assert format_reward_func([]) == []
    assert equation_reward_func([], target=[], nums=[]) == []


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        equation_reward_func(["a", "b"], target=[1], nums=[[1], [1]])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        format_reward_func(["a", "b"], prompts=[PROMPT])


any_text = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", RIGHT, "42", " ", "\n", "why", "<|im_end|>"]),
        max_size=12,
    ).map("".join),
)
anything = st.recursive(
    st.one_of(any_text, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(anything, anything), max_size=4), st.booleans())
def test_any_batch_has_one_float_per_completion(batch, prompts_known):
    completions = [completion for completion, _ in batch]
    prompts = [prompt for _, prompt in batch] if prompts_known else None
    count = len(batch)
    for found in (
        format_reward_func(completions, prompts=prompts),
        equation_reward_func(completions, target=[TARGET] * count, nums=[NUMS] * count, prompts=prompts),
    ):
        assert len(found) == count
        assert all(type(value) is float and value in (0.0, 1.0) for value in found)


@settings(max_examples=300, deadline=None)
@given(any_text)
def test_the_format_implies_a_single_answer_after_the_reasoning(text):
    if has_format(text):
        assert text.startswith("<think>") or text.lstrip().startswith("<think>")
        assert text.index("<think>") < text.index("</think>") < text.index("<answer>") < text.index("</answer>")
        assert isinstance(extract_answer(text), str)
        assert thinking(text)
    assert (judge(text, NUMS, TARGET).reason is Reason.SEVERAL_ANSWERS) == (
        extract_answer(text) is Reason.SEVERAL_ANSWERS
    )


# --------------------------------------------------------------------------------------------------------------------
# The answer and the reasoning
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param("<think>a</think><answer> 1+2 </answer>", " 1+2 ", id="the text between the tags, as it is"),
        pytest.param("<think>a</think><answer>\n1\n+2\n</answer>", "\n1\n+2\n", id="several lines"),
        pytest.param("<think>a</think><answer></answer>", "", id="empty"),
        pytest.param("<think><answer>9</answer></think><answer>1</answer>", "1", id="the one after the reasoning"),
        pytest.param("<think>a<answer>1</answer>", "1", id="reasoning never closed"),
        pytest.param("<answer>1</answer>", "1", id="no reasoning"),
        pytest.param("<think>a</think>b<answer>1</answer>c", "1", id="text around"),
        pytest.param("<think>a</think>b</think><answer>1</answer>", "1", id="reasoning closed twice"),
        pytest.param("<think><answer>1</answer></think>", Reason.NO_ANSWER, id="inside the reasoning only"),
        pytest.param("<think>a</think>", Reason.NO_ANSWER, id="none"),
        pytest.param("", Reason.NO_ANSWER, id="empty response"),
        pytest.param("<think>a</think><answer>1", Reason.NO_ANSWER, id="never closed"),
        pytest.param("<think>a</think>1</answer>", Reason.NO_ANSWER, id="never opened"),
        pytest.param("<think>a</think></answer>1<answer>", Reason.NO_ANSWER, id="the wrong way round"),
        pytest.param("<think><answer></think>1</answer>", Reason.NO_ANSWER, id="opened inside the reasoning"),
        pytest.param("</think><answer>1</answer><answer>1</answer>", Reason.SEVERAL_ANSWERS, id="two"),
        pytest.param("</think><answer><answer>1</answer></answer>", Reason.SEVERAL_ANSWERS, id="nested"),
        pytest.param("</think><answer>1</answer><answer>", Reason.SEVERAL_ANSWERS, id="a second one begun"),
        pytest.param("<think>a<answer>1</answer><answer>2</answer>", Reason.SEVERAL_ANSWERS, id="two, never closed"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer
    assert isinstance(extract_answer(text), Reason) == isinstance(answer, Reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(f"<think>a</think><answer>{RIGHT}</answer>", "correct", id="correct"),
        pytest.param(f"<think>a</think><answer>{WRONG}</answer>", "wrong_value", id="wrong value"),
        pytest.param("<think>a</think><answer>44 + 54</answer>", "wrong_numbers", id="wrong numbers"),
        pytest.param("<think>a</think><answer>44 ** 19 + 35</answer>", "malformed", id="malformed"),
        pytest.param("<think>a</think><answer>19 / 0</answer>", "wrong_numbers", id="numbers before division by zero"),
        pytest.param("<think>a</think><answer>none</answer>", "illegal_character", id="words"),
        pytest.param(f"<think>a</think><answer>{'1+' * 200}1</answer>", "too_long", id="too long"),
        pytest.param("<think>a</think><answer> </answer>", "no_answer", id="blank answer"),
        pytest.param("<think>a</think>", "no_answer", id="no answer"),
        pytest.param("</think><answer>1</answer><answer>1</answer>", "several_answers", id="several answers"),
    ],
)
def test_judge_names_the_reason(text, reason):
    assert judge(text, NUMS, TARGET).reason.value == reason


def test_judge_sees_division_by_zero():
    assert judge("</think><answer>7 / (8 - 8)</answer>", [7, 8, 8], 7).reason is Reason.DIVISION_BY_ZERO


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        pytest.param("<think> Add them. </think><answer>1</answer>", "Add them.", id="between the tags"),
        pytest.param("<think>Add <answer>1</answer>?</think>", "Add <answer>1</answer>?", id="with a quoted answer"),
        pytest.param("<think>Add them.<answer>1</answer>", "Add them.", id="up to the answer when never closed"),
        pytest.param("<think>Add them.", "Add them.", id="cut off"),
        pytest.param("Add them.</think>", "Add them.", id="never opened"),
        pytest.param("</think><answer>1</answer>", "", id="none"),
    ],
)
def test_thinking(text, reasoning):
    assert thinking(text) == reasoning


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
    assert judge(response(completion, PROMPT), nums, target).reason is Reason.CORRECT
    assert rewards(completion, PROMPT, nums, target) == (1, 1)


def test_the_articles_television_answer_uses_a_number_three_times():
    completion = "Nine hundred and the rest.</think>\n<answer> (100 * (3 * 3)) + (50 + 6 / 3) </answer>"
    verdict = judge(response(completion), [25, 50, 75, 100, 3, 6], 952)
    assert verdict.reason is Reason.WRONG_NUMBERS
    assert rewards(completion, PROMPT, [25, 50, 75, 100, 3, 6], 952) == (1, 0)
