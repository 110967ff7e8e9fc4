"""From a completion to a verdict: its text, its reasoning, its answer, its format."""

import pytest

from mini_r1.countdown import TASK
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.responses import END_OF_TEXT, answers_in, has_format, judge, message_text, response, thinking

PUZZLE = Puzzle((19, 35, 44), 98)


def assistant(content):
    return [{"role": "assistant", "content": content}]


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


@pytest.mark.parametrize("token", END_OF_TEXT)
def test_every_end_of_text_is_taken_off(token):
    assert response(f"Add. {token}\n{token}", "Combine.<think>") == "<think>Add."
    assert response(f"{token} Add.", "Combine.<think>") == f"<think>{token} Add."
    assert has_format(response(f"Add.</think><answer>1</answer>{token}{token}"))


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        pytest.param("<think>a</think><answer> 1+2 </answer>", [" 1+2 "], id="the text between the tags, as it is"),
        pytest.param("<think>a</think><answer>\n1\n+2\n</answer>", ["\n1\n+2\n"], id="several lines"),
        pytest.param("<think>a</think><answer></answer>", [""], id="empty"),
        pytest.param("<think><answer>9</answer></think><answer>1</answer>", ["1"], id="the one after the reasoning"),
        pytest.param("<think>a<answer>1</answer>", ["1"], id="reasoning never closed"),
        pytest.param("<answer>1</answer>", ["1"], id="no reasoning"),
        pytest.param("<think>a</think>b<answer>1</answer>c", ["1"], id="text around"),
        pytest.param("<think>a</think>b</think><answer>1</answer>", ["1"], id="reasoning closed twice"),
        pytest.param("<think><answer>1</answer></think>", [], id="inside the reasoning only"),
        pytest.param("<think>a</think>", [], id="none"),
        pytest.param("", [], id="empty response"),
        pytest.param("<think>a</think><answer>1", [], id="never closed"),
        pytest.param("<think>a</think>1</answer>", [], id="never opened"),
        pytest.param("<think>a</think></answer>1<answer>", [], id="the wrong way round"),
        pytest.param("<think><answer></think>1</answer>", [], id="opened inside the reasoning"),
        pytest.param("</think><answer>1</answer><answer>2</answer>", ["1", "1"], id="two"),
        pytest.param("</think><answer><answer>1</answer></answer>", ["<answer>1"] * 2, id="nested"),
        pytest.param("</think><answer>1</answer><answer>", ["1", "1"], id="a second one begun"),
        pytest.param("<think>a<answer>1</answer><answer>2</answer>", ["1", "1"], id="two, reasoning never closed"),
    ],
)
def test_answers_in(text, answers):
    assert answers_in(text) == answers


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("44 + 19 + 35", "correct", id="correct"),
        pytest.param("44 + 35 - 19", "wrong_value", id="wrong value"),
        pytest.param("44 + 54", "wrong_numbers", id="wrong numbers"),
        pytest.param("44 ** 19 + 35", "malformed", id="malformed"),
        pytest.param("44 / (19 - 19)", "wrong_numbers", id="numbers before division by zero"),
        pytest.param("none", "illegal_character", id="words"),
        pytest.param("1+" * 200 + "1", "too_long", id="too long"),
        pytest.param(" ", "no_answer", id="blank answer"),
        pytest.param("1</answer><answer>1", "several_answers", id="several answers"),
    ],
)
def test_judge_names_the_reason(answer, reason):
    assert judge(TASK, f"<think>a</think><answer>{answer}</answer>", PUZZLE).reason.value == reason


def test_judge_sees_a_missing_answer_and_a_division_by_zero():
    assert judge(TASK, "<think>a</think>", PUZZLE).reason.value == "no_answer"
    divided = judge(TASK, "</think><answer>7 / (8 - 8)</answer>", Puzzle((7, 8, 8), 7))
    assert divided.reason.value == "division_by_zero"


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
