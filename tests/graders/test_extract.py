import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.extract import bare_answer, boxed_answer, boxed_answers, opened_thought


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{3} then later \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{6} and \boxed{unclosed", "6"),
        (r"\boxed{unclosed \boxed{7} and on", "7"),
        (r"} \boxed{8}", "8"),
        (r"\boxed{}", ""),
        (r"\boxed{unclosed", None),
        ("the answer is 5", None),
        ("", None),
        (r"<think>\boxed{1}</think> so \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> no box", None),
        (r"<think>\boxed{1} still thinking", None),
        (r"first thoughts</think>\boxed{2}", "2"),
        (r"<thinking>\boxed{1} still thinking", None),
        (r"[THINK]\boxed{1}[/THINK]\boxed{2}", "2"),
        (r"\boxed 8", "8"),
        (r"so $\boxed8$.", "8"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        ("\\boxed{4}<|im_end|>\n<|im_start|>user\n\\boxed{5}", "4"),
        (r"<|im_start|>assistant \boxed{4}<|im_end|>", "4"),
        (r"\boxed{4}<end_of_turn><start_of_turn>user \boxed{5}", "4"),
        (r"\boxed{4}</s>[INST] \boxed{5} [/INST]", "4"),
        (r"\boxed{4}<｜User｜>\boxed{5}", "4"),
        ("\\boxed{4}\n\nHuman: \\boxed{5}", "4"),
        ("Problem: two and two. \\boxed{4}", "4"),
        (r"\boxed{4}\phantom{\boxed{5}}", "4"),
        (r"\boxed{\phantom{5}}", ""),
        (r"\boxed{4} % \boxed{5}", "4"),
        (r"50 % of it is \boxed{5}", "5"),
        (r"\boxed{4}<!-- \boxed{5} -->", "4"),
        (r"\boxed{4}{\color{white}\boxed{5}} seen", "4"),
        (r"\boxed{4}\textcolor{white}{\boxed{5}}", "4"),
        (r"\boxed{4}\scalebox{0}{\boxed{5}}", "4"),
        (r'\boxed{4}<span style="color:white">\boxed{5}</span>', "4"),
    ],
)
def test_the_last_complete_box_after_the_thinking_counts(response, answer):
    assert boxed_answer(response) == answer


def test_neighbouring_boxes_are_found_together():
    assert boxed_answers(r"\boxed{7} then \boxed{8}, \boxed{9} and $\boxed{1}$") == ["8", "9", "1"]
    assert boxed_answers("none") == []


def test_a_prompt_may_leave_a_thought_open():
    assert opened_thought("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_thought("<think>\n</think>\n\n") == ""
    assert opened_thought("Explain the tag <think> " + "word " * 100) == ""


@settings(deadline=None)
@given(st.lists(st.sampled_from(["\\boxed", "\\fbox", "{", "}", "\\", "\\{", " ", "7", "<think>", "</think>"])))
def test_the_scanner_takes_any_mess_and_finds_a_box_after_it(parts):
    mess = "".join(parts)
    answer = boxed_answer(mess)
    assert answer is None or answer in mess
    assert boxed_answer(mess + r" </think>\boxed{42}") == "42"


@pytest.mark.parametrize(
    "unit", [r"\boxed{", "{", "}", r"\boxed", r"\boxed ", "\\", r"\boxed{}", r"\boxed{{}", "</think>"]
)
def test_scanning_takes_linear_time(unit):
    start = time.thread_time()
    boxed_answer(unit * (1_000_000 // len(unit)))
    assert time.thread_time() - start < 20.0  # 0.2 s; hours if it were quadratic


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 5.", "5"),
        ("Answer: 3. Or rather, the answer is 4", "4"),
        ("**Answer:** 12", "12"),
        ("The answers are 1 and 2", "1 and 2"),
        ("The answer is $x+1$.", "x+1"),
        ("The answer is 2.5. Done.", "2.5"),
        ("First $1$, then $\\frac{1}{2}$ in the end", r"\frac{1}{2}"),
        ("17 - 5 = 12", "12"),
        ("that makes 1,234 in all", "1,234"),
        ("so it is -3", "-3"),
        ("<think>the answer is 5</think> I give up", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_a_bare_answer_is_announced_or_comes_last(response, answer):
    assert bare_answer(response) == answer


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_may_be_searched(text):
    for answer in (boxed_answer(text), bare_answer(text)):
        assert answer is None or answer in text
